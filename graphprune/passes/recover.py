"""``recover``: the accuracy of a cut model brought back without labels or training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from onnx_ir.passes.common import RemoveUnusedNodesPass

from graphprune.calibration import samples_for
from graphprune.comparing import run_all
from graphprune.errors import GraphPruneError, UsageError
from graphprune.feeding import feed_size, fitting_feeds, samples_in
from graphprune.fidelity import compare_outputs
from graphprune.lstsq import one_thread
from graphprune.passes.base import Kind, Pass, State
from graphprune.recovery import Recovery


@dataclass(frozen=True)
class Recover(Pass):
    """Fit the weights of the cut model to what the source computes, on calibration data without labels.

    Layer by layer in topological order, on the already recovered part of the cut model: inputs U come from
    the cut model, targets T are the source's outputs at the kept channels, dW = (T - U W')' U (U'U + lambda I)^-1,
    with an intercept wherever there is a place for one. The ridge and whether the fit is kept at all are judged
    on held-out samples. Changes the graph's weights. Unit of the errors: share of a layer's variance.
    Cost: one pass of the source, one of the cut model, one factorisation a layer. Source: patch least squares,
    criteria.md.

    Parameters
    ----------
    mode
        ``ls``: least squares. ``bn``: mean and spread of every channel are brought back to the source's, which
        is what re-estimating batch-norm statistics does, also where these were folded away. ``bias``: the mean
        alone.
    spread
        After least squares, bring back each channel's spread too.
    patches
        Output positions a sample that a fit sees, at least.
    holdout
        Share of the samples that judge.
    memory
        Gigabytes of activations held in memory; the rest lies in a temporary file.
    """

    name: ClassVar[str] = "recover"
    kind: ClassVar[Kind] = "recover"
    changes_graph: ClassVar[bool] = True
    mode: Literal["ls", "bn", "bias"] = "ls"
    spread: bool = False
    patches: int = 50
    holdout: float = 0.2
    memory: float = 2.0

    def run(self, state: State) -> None:
        if state.rewriter is None or state.cut is None or state.plan is None:
            raise GraphPruneError("there is no cut to recover: run 'rewrite' first")
        if not 0 < self.holdout < 1 or self.patches < 1 or self.memory <= 0:
            raise UsageError("recover: holdout lies in (0, 1), patches and memory are above 0")
        samples = samples_for(state, batch=feed_size(state))
        feeds = list(samples)
        held = feeds[fitting_feeds(len(feeds), self.holdout) :] or feeds
        if state.options.data is None:
            state.note("recover: fitted to made-up inputs; give --data with samples of what the model will see")
        source = run_all(state.model, held)
        constants = set(state.cut.graph.initializers)
        before = compare_outputs(source, run_all(state.cut, held))
        recovery = Recovery(
            state.rewriter, state.cut, feeds, samples.batch, mode="scale" if self.mode == "bn" else self.mode,
            spread=self.spread, patches=self.patches, holdout=self.holdout, memory=int(self.memory * (1 << 30)),
            seed=state.options.seed, progress=state.progress,
        )  # fmt: skip
        with one_thread():
            record = recovery.run()
        RemoveUnusedNodesPass()(state.cut)
        after = compare_outputs(source, run_all(state.cut, held))
        used = after["divergence"] < before["divergence"]
        if not used:
            # Every layer came nearer to the source, the outputs did not: the plain cut is what is delivered.
            state.cut = state.rewriter.again()
            record.tensors, after = [], before
            state.note("recover: the outputs on held-out samples came no nearer to the source's: the weights stay as cut")
        count = sum(samples_in(feed, samples.batched) for feed in held)
        state.plan.fidelity = {"samples": count, **after}
        state.plan.recovery = {
            "mode": self.mode, "samples": len(samples), "used": used, **record.to_json(),
            "dropped": sorted(constants - set(state.cut.graph.initializers)) if used else [],
            "fidelity": {"samples": count, "before": before, "after": after},
        }  # fmt: skip
