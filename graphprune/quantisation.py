"""INT8 by ONNX Runtime's quantiser: a model prepared, calibrated, and given QuantizeLinear and DequantizeLinear.

What is the quantiser's own is which numbers stand for which (scales, zero points, integer weights and biases) and how each op
carries Q/DQ. What is decided here is which nodes are quantised and where pairs stand for which runtime
(:mod:`graphprune.ops.placement`), and from which ranges.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from graphprune.backends import onnx as writer
from graphprune.backends.ort import Runner
from graphprune.comparing import compare
from graphprune.errors import DataError, ModelError, UsageError
from graphprune.inputs import Feed
from graphprune.ops.placement import WEIGHTED, Placement, is_quantised, output_axis, quantisable, spare_pairs
from graphprune.passes.verify import tolerance_of

Method = Literal["minmax", "entropy", "percentile"]
#: The first opset in which scales may follow an axis.
PER_AXIS = 13
#: Bins of a histogram, and levels that entropy calibration compares them with.
BINS, LEVELS = 512, 128


@dataclass(frozen=True)
class Settings:
    """How a model is quantised; see :class:`graphprune.passes.quantize.Quantize`."""

    placement: Placement
    method: Method = "minmax"
    percentile: float = 99.99
    per_channel: bool = True
    reduce_range: bool = False


class Quantiser:
    """One model, prepared and calibrated once, quantised as often as asked.

    Parameters
    ----------
    model
        In float32; not changed.
    feeds
        Calibration samples, in feeds.

    Raises
    ------
    UsageError
        The model is quantised already, in half precision, too large, or has nothing to quantise.
    """

    def __init__(
        self, model: ir.Model, feeds: Sequence[Feed], settings: Settings,
        progress: Callable[[str, float], None] = lambda _what, _share: None,
    ) -> None:  # fmt: skip
        check_types(model)
        check_size(model)
        self.settings, self.source = settings, model
        self.proto = prepare(model, feeds[:1])
        self.model = ir.from_proto(self.proto)
        self.nodes = [str(node.name) for node in quantisable(settings.placement, self.model.graph)]
        #: Nodes with a weight, in order.
        self.layers = [n for n in self.nodes if self._node(n).op_type in WEIGHTED]
        if not self.layers:
            ops = ", ".join(op for op in settings.placement.ops if op in WEIGHTED)
            raise UsageError(f"quantize: the model has no layer ({ops}) with a float32 weight in its main graph")
        self.ranges = ranges(self.model, feeds, settings, progress)

    def _node(self, name: str) -> ir.Node:
        if not hasattr(self, "_by_name"):
            self._by_name = {str(node.name): node for node in self.model.graph}
        return self._by_name[name]

    def matching(self, names: Collection[str]) -> list[str]:
        """Layers by the names that their nodes had before preparation, which may add to them."""
        return [n for n in self.layers if any(n == name or n.startswith(f"{name}/") for name in names)]

    def run(self, leave: Collection[str] = ()) -> ir.Model:
        """The model with Q/DQ; the nodes named in ``leave`` stay in floating point."""
        from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType
        from onnxruntime.quantization.calibrate import TensorData, TensorsData

        place, settings = self.settings.placement, self.settings
        nodes = [str(node.name) for node in quantisable(place, self.model.graph, leave)]
        limits = {name: TensorData(lowest=low, highest=high) for name, (low, high) in self.ranges.items()}
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        if nodes:
            kind = QuantType.QInt8 if place.signed else QuantType.QUInt8
            with quiet():
                quantiser: Any = QDQQuantizer(
                    proto, settings.per_channel, settings.reduce_range, QuantType.QInt8, kind,
                    TensorsData(CalibrationMethod.MinMax, limits), nodes, [], list(place.ops),
                    {
                        "ActivationSymmetric": place.signed, "WeightSymmetric": True, "QuantizeBias": place.bias,
                        "DedicatedQDQPair": not place.outputs,
                        "TensorQuantOverrides": self._dead() if settings.per_channel else {},
                        "OpTypesToExcludeOutputQuantization": [] if place.outputs else list(place.ops),
                    },
                )  # fmt: skip
                quantiser.quantize_model()
                proto = quantiser.model.model
        return self._finished(proto)

    def _dead(self) -> dict[str, list[dict[str, Any]]]:
        """Ranges of weights of which some outputs are all zero: these get that of the whole weight.

        Left to itself the quantiser gives them a scale of 1, and their biases, which are all that is left of them, the steps of
        that scale times the input's.
        """
        found: dict[str, list[dict[str, Any]]] = {}
        for name in self.layers:
            node = self._node(name)
            weight = node.inputs[1]
            if weight is None or weight.const_value is None:
                continue
            array, axis = np.abs(weight.const_value.numpy()), output_axis(node)
            most = array.max(axis=tuple(a for a in range(array.ndim) if a != axis))
            if most.any() and not most.all():
                limits = np.where(most == 0, most.max(), most).astype(np.float32)
                found[str(weight.name)] = [{"rmin": -limit, "rmax": limit} for limit in limits]
                found[str(weight.name)][0]["axis"] = axis
        return found

    def _finished(self, proto: onnx.ModelProto) -> ir.Model:
        """What the quantiser made, without what is better left out, and with the source's own descriptions."""
        model = ir.from_proto(proto)
        for node, index, value in spare_pairs(self.settings.placement, model.graph):
            node.replace_input_with(index, value)
        RemoveUnusedNodesPass()(model)
        RemoveUnusedOpsetsPass()(model)
        model.producer_name, model.producer_version = self.source.producer_name, self.source.producer_version
        model.metadata_props.clear()
        model.metadata_props.update(self.source.metadata_props)
        return model


def check_types(model: ir.Model) -> None:
    """Raise :class:`UsageError` for models that INT8 cannot start from: quantised already, or in half precision."""
    node = is_quantised(model.graph.all_nodes())
    if node is not None:
        raise UsageError(
            f"quantize: the model is quantised already ({node.op_type} '{node.name or node.outputs[0].name}'): give the "
            "floating-point model that it was made from"
        )
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.size > 1 and tensor.dtype in _OTHER_FLOATS:
                raise UsageError(
                    f"quantize: tensor '{value.name}' is {tensor.dtype.name.lower()}; INT8 starts from float32: export the "
                    "model in float32 (a device's build may still compute the rest in half precision)"
                )


def check_size(model: ir.Model) -> None:
    """Raise :class:`UsageError` for a model that does not fit into one message."""
    size = sum(v.const_value.nbytes for g in model.graphs() for v in g.initializers.values() if v.const_value is not None)
    if size > writer.INLINE_LIMIT:
        raise UsageError(
            f"quantize: {size / 1e9:.1f} GB of weights are left after the cut, and the quantiser works on one message of at "
            "most 2 GB: cut more, or quantise parts of it"
        )


_OTHER_FLOATS = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


def prepare(model: ir.Model, feeds: Sequence[Feed]) -> onnx.ModelProto:
    """The same network as quantisation wants it: norms folded into layers, opset 13 or later, nodes and types known by name.

    Raises
    ------
    ModelError
        It cannot be raised to opset 13, the runtime cannot load it, or what comes out computes something else.
    """
    proto = writer.to_proto(model)
    taken = {node.name for node in proto.graph.node}
    for number, node in enumerate(proto.graph.node):
        if not node.name:
            name = f"{node.op_type}_{number}"
            while name in taken:
                name += "_"
            taken.add(name)
            node.name = name
    opset = max((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset < PER_AXIS:
        try:
            proto = onnx.version_converter.convert_version(proto, PER_AXIS)
        except Exception as error:
            raise ModelError(
                f"quantize: scales a channel need opset {PER_AXIS}, and the file of opset {opset} cannot be raised to it "
                f"({' '.join(str(error).split())[:300]}): export it again for opset {PER_AXIS} or later"
            ) from error
    with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
        path = Path(folder) / "prepared.onnx"
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 4
        try:
            ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
            prepared = onnx.shape_inference.infer_shapes(onnx.load(path))
        except Exception as error:
            raise ModelError(f"quantize: ONNX Runtime cannot prepare the model: {' '.join(str(error).split())[:300]}") from error
    worst, where = compare(model, ir.from_proto(prepared), list(feeds))
    allowed = tolerance_of(model)
    if not worst <= allowed:
        raise ModelError(
            f"quantize: preparing the model changed output '{where}' by {worst:.2g} of its maximum (allowed {allowed:g}). "
            "Please report this model"
        )
    return prepared


def ranges(
    model: ir.Model, feeds: Sequence[Feed], settings: Settings, progress: Callable[[str, float], None]
) -> dict[str, tuple[Any, Any]]:
    """Least and greatest value, float32[] both, that integers stand for, of every floating value that nodes read or make.

    Raises
    ------
    DataError
        A value is not finite on the calibration data, or there is none.
    """
    inputs = [v for v in model.graph.inputs if not v.is_initializer() and v.dtype == ir.DataType.FLOAT]
    computed = [str(v.name) for node in model.graph for v in node.outputs if v.name and v.dtype in (ir.DataType.FLOAT, None)]
    runner = Runner(model, outputs=computed) if computed else None
    histograms = None if settings.method == "minmax" else _collector(settings)
    found: dict[str, tuple[Any, Any]] = {}
    for number, feed in enumerate(feeds):
        progress("calibrating", number / len(feeds))
        values = {str(v.name): np.asarray(feed[str(v.name)]) for v in inputs}
        values |= {} if runner is None else runner.run(feed)
        values = {name: array for name, array in values.items() if array.dtype == np.float32 and array.size}
        for name, array in values.items():
            low, high = array.min(), array.max()
            if not (np.isfinite(low) and np.isfinite(high)):
                raise DataError(f"quantize: value '{name}' is not finite on the calibration data: give other data")
            if name in found:
                low, high = np.minimum(low, found[name][0]), np.maximum(high, found[name][1])
            found[name] = np.float32(low), np.float32(high)
        if histograms is not None:
            with quiet():
                histograms.collect({name: [array] for name, array in values.items()})
    if not found:
        raise DataError("quantize: there is no calibration data: give --data")
    if histograms is not None:
        with quiet():
            limits = histograms.compute_collection_result()
        for name, (low, high, *_) in limits.items():
            # Histograms know values to the width of a bin.
            least, most = found[name]
            found[name] = np.float32(max(low, least)), np.float32(min(high, most))
    return {name: (np.asarray(low), np.asarray(high)) for name, (low, high) in found.items()}


def _collector(settings: Settings) -> Any:
    from onnxruntime.quantization.calibrate import HistogramCollector

    return HistogramCollector(settings.method, False, BINS, LEVELS, settings.percentile, "same")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the quantiser's lines on standard output and its warnings, which speak of its own options."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
