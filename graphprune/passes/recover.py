"""``recover``: the accuracy of a cut model brought back without labels or training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from graphprune.calibration import samples_for
from graphprune.errors import GraphPruneError
from graphprune.feeding import feed_size
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
        samples = samples_for(state, batch=feed_size(state))
        feeds = list(samples)
        recovery = Recovery(
            state.rewriter, state.cut, feeds, samples.batch, mode="scale" if self.mode == "bn" else self.mode,
            spread=self.spread, patches=self.patches, holdout=self.holdout, memory=int(self.memory * (1 << 30)),
            seed=state.options.seed, progress=state.progress,
        )  # fmt: skip
        record = recovery.run()
        state.plan.recovery = {"mode": self.mode, "samples": len(samples), **record.to_json()}
