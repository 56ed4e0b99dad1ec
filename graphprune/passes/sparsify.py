"""``sparsify``: 2:4 sparse weights behind the cut, for the sparse tensor cores of Orin, Ampere and later."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from graphprune.errors import GraphPruneError, UsageError
from graphprune.frontends.onnx import plan_name
from graphprune.lstsq import one_thread
from graphprune.ops.linear_form import linear_form
from graphprune.passes.base import Kind, Pass, State
from graphprune.recovery import Recovery
from graphprune.sparsity import Masks
from graphprune.spec import nearest
from graphprune.stages import SPARSE, deliver, stages_of


@dataclass(frozen=True)
class Sparsify(Pass):
    """Zero two of every four weights along the input channels and fit the others anew; runs behind the cut and its recovery.

    Layer by layer in topological order. The pair goes that costs least when the other weights of its output are fitted
    anew; those are, within the mask, by least squares to what the source computes, on --data. Layers whose input channels
    are no multiple of 4, and grouped convolutions, stay dense and are fitted to the changed inputs. Changes the graph's weights.
    'graphprune build' then asks TensorRT for sparse kernels. Cost: as 'recover'.
    Source: Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021; Frantar and Alistarh, "SparseGPT", 2023.

    Parameters
    ----------
    criterion
        ``obs``: by the loss after refitting; ``magnitude``: by the weights alone.
    refit
        Fit what is left; else zeros are all that changes.
    keep
        Globs of weights and nodes that stay dense.
    patches
        Output positions a sample that a fit sees, at least.
    memory
        Gigabytes of activations held in memory; the rest lies in a temporary file.
    """

    name: ClassVar[str] = "sparsify"
    kind: ClassVar[Kind] = "compress"
    changes_graph: ClassVar[bool] = True
    last: ClassVar[bool] = True
    criterion: Literal["obs", "magnitude"] = "obs"
    refit: bool = True
    keep: tuple[str, ...] = ()
    patches: int = 50
    memory: float = 2.0

    def check(self, state: State) -> None:
        if self.patches < 1 or self.memory <= 0:
            raise UsageError("sparsify: patches and memory are above 0")
        self._kept(state.model)

    def run(self, state: State) -> None:
        if state.rewriter is None or state.cut is None or state.plan is None:
            raise GraphPruneError("there is no model to make sparse: run 'rewrite' first")
        stages = stages_of(state)
        if state.options.data is None:
            state.note("sparsify: fitted to made-up inputs; give --data with samples of what the model will see")
        if (state.plan.recovery.get("distill") or {}).get("used"):
            state.note("sparsify: weights are fitted to the source's layers, which distillation had left behind")
        before = stages.last.fidelity.get("divergence", 0.0)
        masks = Masks(self.criterion, frozenset(self._kept(state.cut)), [], {})
        constants = set(state.cut.graph.initializers)
        feeds = [*stages.fitting, *(stages.held if stages.held[0] is not stages.fitting[0] else [])]
        recovery = Recovery(
            state.rewriter, state.cut, feeds, max(1, stages.fitting_count // len(stages.fitting)), patches=self.patches,
            holdout=len(stages.held) / len(feeds), memory=int(self.memory * (1 << 30)), seed=state.options.seed,
            progress=state.progress, mask=masks, refit=self.refit,
        )  # fmt: skip
        with one_thread():
            record = recovery.run()
        RemoveUnusedNodesPass()(state.cut)
        if not masks.sparse:
            state.note("sparsify: no layer has input channels in fours: nothing was made sparse")
        stage = stages.add(SPARSE, state.cut.clone())
        state.plan.sparsify = {
            "criterion": self.criterion, "refit": self.refit, "sparse": masks.sparse, "dense": {**masks.dense, **record.left},
            "layers": record.to_json()["layers"], "tensors": record.tensors,
            "dropped": sorted(constants - set(state.cut.graph.initializers)),
            "divergence": {"before": before, "after": stage.fidelity["divergence"]},
        }  # fmt: skip
        deliver(state, stage)

    def _kept(self, model: ir.Model) -> set[str]:
        """Names of the layers that ``keep`` means, by their own names or by those of their weights."""
        names: dict[str, set[str]] = {}
        for node in model.graph.all_nodes():
            form = linear_form(node)
            weight = None if form is None else node.inputs[form.w]
            if weight is not None:
                layer = node.name or str(node.outputs[0].name)
                for name in (layer, plan_name(weight)):
                    names.setdefault(name, set()).add(layer)
        kept: set[str] = set()
        for pattern in self.keep:
            hit = [layers for name, layers in names.items() if fnmatch.fnmatch(name, pattern)]
            if not hit:
                raise UsageError(f"sparsify: keep={pattern} matches no layer and no weight{nearest(pattern, names)}")
            kept.update(*hit)
        return kept
