"""``quantize``: INT8 behind the cut and its recovery."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import onnx_ir as ir

from graphprune.backends.onnx import to_bytes
from graphprune.calibration import samples_for
from graphprune.errors import GraphPruneError, UsageError
from graphprune.frontends.onnx import plan_name
from graphprune.ops.linear_form import linear_form
from graphprune.ops.placement import PLACEMENTS
from graphprune.passes.base import Kind, Pass, State
from graphprune.spec import nearest
from graphprune.stages import ALONE, INT8, Stages, deliver, stages_of

#: Rounds in which the float model and the quantised one are timed.
TIMED = 10
#: Held-out feeds that single layers are judged on.
FEEDS_A_LAYER = 2


@dataclass(frozen=True)
class Quantize(Pass):
    """Quantise the model to INT8 with Q/DQ, calibrated on --data; runs last, and alone without a cut where none is asked.

    ONNX Runtime's quantiser with the placement that ``backend`` fuses best. Every stage of the run (source, cut,
    recovered, INT8) and the source quantised in the same way, INT8 alone, are judged on the same held-out samples and by
    --eval. Changes the graph; the plan replays to the weights before. Cost: two passes of the calibration samples.
    Source: Nagel et al., "A White Paper on Neural Network Quantization", 2021.

    Parameters
    ----------
    backend
        ``onnxruntime``: uint8 activations, chains in integers, int32 biases. ``tensorrt``: int8 about zero, at the inputs of
        layers. ``openvino``: as it reads FakeQuantize.
    calibrate
        Ranges of activations: ``percentile`` leaves out the outermost, ``minmax`` nothing, ``entropy`` loses the least
        information (slow: a second a tensor).
    percentile
        Share of the values that is kept, in percent.
    per_channel
        A scale for every output of a layer; else one for its whole weight.
    reduce_range
        Weights in 7 bits, for x86 processors without VNNI, whose sums of 8 bits may saturate.
    keep
        Globs of weights and nodes that stay in floating point.
    ends
        Leave the first and the last layer in floating point.
    tolerance
        Divergence from the source (held-out samples) that INT8 may add; the most harmful layers are put back to floating
        point until it holds.
    alone
        Quantise the source as well, to compare with.
    """

    name: ClassVar[str] = "quantize"
    kind: ClassVar[Kind] = "compress"
    changes_graph: ClassVar[bool] = True
    last: ClassVar[bool] = True
    order: ClassVar[int] = 1
    backend: Literal["onnxruntime", "tensorrt", "openvino"] = "onnxruntime"
    calibrate: Literal["percentile", "minmax", "entropy"] = "percentile"
    percentile: float = 99.99
    per_channel: bool = True
    reduce_range: bool = False
    keep: tuple[str, ...] = ()
    ends: bool = False
    tolerance: float | None = None
    alone: bool = True

    def check(self, state: State) -> None:
        from graphprune.quantisation import check_types

        if not 50 < self.percentile <= 100 or (self.tolerance is not None and self.tolerance < 0):
            raise UsageError("quantize: percentile lies in (50, 100], tolerance is 0 or more")
        check_types(state.model)
        self._kept(state.model)

    def run(self, state: State) -> None:
        if state.rewriter is None or state.cut is None or state.plan is None or state.dead is None:
            raise GraphPruneError("there is no model to quantise: run 'rewrite' first")
        stages = stages_of(state)
        if state.options.data is None:
            state.note("quantize: calibrated on made-up inputs; give --data with samples of what the model will see")
        before = stages.last.fidelity.get("divergence", 0.0)
        quantiser = self._quantiser(state, state.cut, stages)
        left = self._left(quantiser, state.cut)
        model = quantiser.run(left)
        harmful: list[str] = []
        if self.tolerance is not None:
            harmful, model = self._within(state, stages, quantiser, left, model, before + self.tolerance)
        stage = stages.add(INT8, model)
        if self.alone and state.dead.any():
            self._add_alone(state, stages)
        state.quantised = model
        state.plan.quantize = {
            **{k: v for k, v in asdict(self).items() if v is not None}, "samples": stages.fitting_count,
            "layers": len(quantiser.layers), "left": left, "harmful": harmful, "tensors": quantised_tensors(model),
            "divergence": {"before": before, "after": stage.fidelity["divergence"]},
        }  # fmt: skip
        if self.backend == "onnxruntime":
            self._time(state, model)
        if state.loaded.torch is not None:
            state.note("quantize: the graph (result.ir, the .onnx file) is INT8, the torch module stays in floating point")
        deliver(state, stage)

    @staticmethod
    def _time(state: State, model: ir.Model) -> None:
        """Time the float model and the quantised one in turns, and say so where integers are no faster here."""
        from graphprune.timing import interleaved

        assert state.cut is not None and state.plan is not None
        feed = dict(next(iter(samples_for(state, n=1))))
        before, after = interleaved([to_bytes(state.cut), to_bytes(model)], feed, runs=TIMED)
        state.plan.quantize["latency_ms"] = {"before": before, "after": after}
        if after > 0.97 * before:
            state.note(
                f"quantize: INT8 is no faster in ONNX Runtime on this machine ({before:.3g} ms before, {after:.3g} ms now): small "
                "layers gain little, and ops between them that have no integer kernels cost; 'graphprune bench' times it with care"
            )

    def _quantiser(self, state: State, model: ir.Model, stages: Stages) -> Any:
        from graphprune.quantisation import Quantiser, Settings

        settings = Settings(PLACEMENTS[self.backend], self.calibrate, self.percentile, self.per_channel, self.reduce_range)
        return Quantiser(model, stages.fitting, settings, state.progress)

    def _left(self, quantiser: Any, model: ir.Model) -> list[str]:
        """Layers that stay in floating point because it was asked."""
        left = [quantiser.layers[0], quantiser.layers[-1]] if self.ends else []
        return list(dict.fromkeys([*left, *quantiser.matching(self._kept(model))]))

    def _kept(self, model: ir.Model) -> set[str]:
        """Names of the nodes that ``keep`` means, by their own names or by those of their weights."""
        names: dict[str, set[str]] = {}
        for number, node in enumerate(model.graph):
            known, form = node.name or f"{node.op_type}_{number}", linear_form(node)
            weight = None if form is None else node.inputs[form.w]
            for name in (known, *(() if weight is None else (plan_name(weight),))):
                names.setdefault(name, set()).add(known)
        kept: set[str] = set()
        for pattern in self.keep:
            hit = [nodes for name, nodes in names.items() if fnmatch.fnmatch(name, pattern)]
            if not hit:
                raise UsageError(f"quantize: keep={pattern} matches no node and no weight{nearest(pattern, names)}")
            kept.update(*hit)
        return kept

    def _within(
        self, state: State, stages: Stages, quantiser: Any, left: Sequence[str], model: ir.Model, allowed: float
    ) -> tuple[list[str], ir.Model]:
        """Layers to leave in floating point so that the outputs diverge by no more than allowed, and the model."""
        if stages.judge(model)["divergence"] <= allowed:
            return [], model
        layers = [name for name in quantiser.layers if name not in left]
        harm = {}
        for number, name in enumerate(layers):
            state.progress("judging layers", number / len(layers))
            single = quantiser.run([one for one in quantiser.layers if one != name])
            harm[name] = stages.judge(single, FEEDS_A_LAYER)["divergence"]
        order = sorted(layers, key=lambda name: -harm[name])
        count, found = 1, model
        while count <= len(order):
            found = quantiser.run([*left, *order[:count]])
            divergence = stages.judge(found)["divergence"]
            if divergence <= allowed:
                break
            count = len(order) if count < len(order) < 2 * count else 2 * count
        count = min(count, len(order))
        said = "within" if divergence <= allowed else "still above"
        state.note(
            f"quantize: {count} of {len(quantiser.layers)} layers stay in floating point, which do the most harm (first: "
            f"{order[0]}); divergence {divergence:.3g} is {said} {allowed:.3g}"
        )
        return order[:count], found

    def _add_alone(self, state: State, stages: Stages) -> None:
        """The source quantised in the same way, beside what is delivered."""
        try:
            quantiser = self._quantiser(state, state.model, stages)
            stages.add(ALONE, quantiser.run(self._left(quantiser, state.model)), delivered=False)
        except GraphPruneError as error:
            state.note(f"the source is not shown in INT8 alone: {error}")


def quantised_tensors(model: ir.Model) -> list[str]:
    """Constants that hold integers for floats, by the names that these had in the float model."""
    names = []
    for node in model.graph:
        codes = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if codes is not None and codes.const_value is not None:
            names.append(str(codes.name).removesuffix("_quantized"))
    return sorted(set(names))
