"""Constants of a model, followed forward through arithmetic and movement to where they serve as weights.

Part of the oracle: nothing of graphprune is imported here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

Array = np.ndarray

# Inputs that play the part of a weight, per operator (any domain).  Values beside them are left alone.
WEIGHT_SLOTS: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "DeformConv": (1, 3),
    "FusedConv": (1, 2),
    "Gemm": (0, 1, 2),
    "FusedGemm": (0, 1, 2),
    "MatMul": (0, 1),
    "FusedMatMul": (0, 1),
    "TransposeMatMul": (0, 1),
    "Einsum": (0, 1, 2, 3),
    "LSTM": (1, 2, 3, 7),
    "DynamicQuantizeLSTM": (1, 2, 3, 7),
    "GRU": (1, 2, 3),
    "RNN": (1, 2, 3),
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "GroupNorm": (1, 2),
    "LayerNormalization": (1, 2),
    "SimplifiedLayerNormalization": (1,),
    "RMSNormalization": (1,),
    "SkipLayerNormalization": (2, 3, 4),
    "SkipSimplifiedLayerNormalization": (2, 3),
    "QLinearConv": (3, 8),
    "QLinearMatMul": (0, 3),
    "ConvInteger": (1,),
    "MatMulInteger": (0, 1),
    "DynamicQuantizeMatMul": (1, 4),
    "MatMulIntegerToFloat": (1, 6),
    "QGemm": (3, 6),
    "MultiHeadAttention": (3,),
    "BiasGelu": (1,),
    "FastGelu": (1,),
    "BiasAdd": (1,),
    "MoE": (2, 3, 4, 5, 6, 7),
    "Gather": (0,),
    "GatherND": (0,),
}
CONTRIB_ATTENTION = {"Attention": (1, 2), "QAttention": (1, 2)}  # com.microsoft: weights are inputs
CONV_WEIGHTS = {"Conv": 1, "ConvTranspose": 1, "DeformConv": 1, "FusedConv": 1, "QLinearConv": 3, "ConvInteger": 1}
RECURRENT = {"LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"}
LINEAR = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "FusedMatMul", "DeformConv", "FusedConv",
          "ConvInteger", "MatMulInteger"}  # fmt: skip
# A constant added behind these is still the bias of the linear operator before them.
CARRIERS = {"Cast", "Mul", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Slice"}
# What stands for zero in a quantised weight: the input that carries the zero point, and the channel axis.
ZERO_POINT: dict[tuple[str, int], tuple[int, int]] = {
    ("QLinearConv", 3): (5, 0),
    ("QLinearMatMul", 3): (5, -1),
    ("QLinearMatMul", 0): (2, -2),
    ("ConvInteger", 1): (3, 0),
    ("MatMulInteger", 1): (3, -1),
    ("MatMulInteger", 0): (2, -2),
    ("DynamicQuantizeMatMul", 1): (3, -1),
    ("MatMulIntegerToFloat", 1): (5, -1),
    ("QGemm", 3): (5, -1),
    ("QAttention", 1): (7, -1),
}
MOVEMENT = {
    "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Gather", "Expand", "Tile", "Split",
    "Concat", "Identity", "Pad", "DepthToSpace", "SpaceToDepth",
}  # fmt: skip
ELEMENTWISE = {
    "Add", "Sub", "Mul", "Div", "Pow", "Sum", "Neg", "Abs", "Sqrt", "Exp", "Log", "Cast", "CastLike", "Reciprocal",
    "Sign", "Round", "Clip", "Tanh", "Sigmoid", "Relu", "Max", "Min", "Softplus", "Where", "Erf",
}  # fmt: skip
# Constants of these are not pure values.
NEVER_FOLD = {"If", "Loop", "Scan", "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike",
              "Multinomial", "Bernoulli", "Dropout", "Constant"}  # fmt: skip


@dataclass
class Slot:
    """A constant used as a weight: input ``index`` of ``node`` in ``graph``."""

    graph: GraphProto
    node: NodeProto
    index: int
    name: str
    kind: str  # "weight" must be accounted for in the plan, "embed" is only masked


# ---------------------------------------------------------------------------------------------- reading


def load(model: str | Path | bytes | ModelProto) -> ModelProto:
    """A private copy of the model, external data resolved."""
    if isinstance(model, ModelProto):
        copy = ModelProto()
        copy.CopyFrom(model)
        return copy
    if isinstance(model, bytes):
        return onnx.load_from_string(model)
    return onnx.load(str(model))


def opset(model: ModelProto) -> int:
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def attr(node: NodeProto, name: str, default: Any = None) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    return default


def dense(sparse: onnx.SparseTensorProto) -> Array:
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    out = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 1:
        out.reshape(-1)[indices] = values
    else:
        out[tuple(indices.T)] = values
    return out


def constant_value(node: NodeProto) -> Array | None:
    """Value of a Constant node, float/int forms and sparse ones included."""
    for a in node.attribute:
        if a.name == "value":
            return numpy_helper.to_array(a.t)
        if a.name == "sparse_value":
            return dense(a.sparse_tensor)
        if a.name in ("value_float", "value_floats"):
            return np.asarray(helper.get_attribute_value(a), np.float32)
        if a.name in ("value_int", "value_ints"):
            return np.asarray(helper.get_attribute_value(a), np.int64)
    return None


def graph_constants(graph: GraphProto) -> Iterator[tuple[str, Array]]:
    for tensor in graph.initializer:
        yield tensor.name, numpy_helper.to_array(tensor)
    for sparse in graph.sparse_initializer:
        yield sparse.values.name, dense(sparse)
    yield from node_constants(graph.node)


def node_constants(nodes: Iterable[NodeProto]) -> Iterator[tuple[str, Array]]:
    for node in nodes:
        if node.op_type == "Constant" and (value := constant_value(node)) is not None:
            yield node.output[0], value
        for sub in subgraphs(node):
            yield from graph_constants(sub)


def all_constants(model: ModelProto) -> dict[str, list[Array]]:
    """Every initializer and Constant of the file by name; a list, for sibling scopes may reuse a name."""
    found: dict[str, list[Array]] = {}
    functions = (node_constants(f.node) for f in model.functions)
    for name, value in itertools.chain(graph_constants(model.graph), *functions):
        found.setdefault(name, []).append(value)
    return found


def same_bits(a: Array, b: Array) -> bool:
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()
    )


# ---------------------------------------------------------------------------------- following constants


class Constants:
    """Every value of a model that depends on constants alone, and the places where one serves as a weight."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.opset = opset(model)
        self.values: dict[str, Array] = {}
        self.nodes: list[NodeProto] = []  # constant arithmetic, in topological order
        self.slots: list[Slot] = []
        self._linear: set[str] = set()
        self._walk(model.graph, top=True)

    def _walk(self, graph: GraphProto, top: bool = False) -> None:
        for name, value in itertools.chain(
            ((t.name, numpy_helper.to_array(t)) for t in graph.initializer),
            ((s.values.name, dense(s)) for s in graph.sparse_initializer),
        ):
            self.values[name] = value
        live = live_nodes(graph)
        for position, node in enumerate(graph.node):
            if node.op_type == "Constant":
                if (value := constant_value(node)) is not None:
                    self.values[node.output[0]] = value
                continue
            for sub in subgraphs(node):
                self._walk(sub)
            used = [name for name in node.input if name]
            if used and all(n in self.values for n in used) and node.op_type not in NEVER_FOLD and self._fold(node):
                continue
            if position in live:
                self._note_slots(graph, node)

    def _fold(self, node: NodeProto) -> bool:
        if sum(self.values[n].size for n in node.input if n) > 50_000_000:
            return False
        try:
            outputs = evaluate(node, [self.values[n] if n else None for n in node.input], self.model)
        except Exception:
            return False  # a constant this file cannot compute is no constant here
        for name, value in zip(node.output, outputs, strict=False):
            if name:
                self.values[name] = np.asarray(value)
        self.nodes.append(node)
        return True

    def _note_slots(self, graph: GraphProto, node: NodeProto) -> None:
        op = node.op_type
        slots = WEIGHT_SLOTS.get(op, ())
        if node.domain == "com.microsoft":
            slots = CONTRIB_ATTENTION.get(op, slots)
        if op == "Scan":  # constants that are scanned are the weights of one layer a step
            slots = tuple(range(len(node.input) - int(attr(node, "num_scan_inputs")), len(node.input)))
        for index in slots:
            if index < len(node.input) and node.input[index] in self.values:
                kind = "embed" if op.startswith("Gather") else "weight"
                if kind == "weight" or is_float(self.values[node.input[index]]):
                    self.slots.append(Slot(graph, node, index, node.input[index], kind))
        if op in ("Add", "Sum") and any(n in self._linear for n in node.input):
            for index, name in enumerate(node.input):
                if name in self.values:
                    self.slots.append(Slot(graph, node, index, name, "weight"))
        if op in LINEAR or (op in CARRIERS and any(n in self._linear for n in node.input)):
            self._linear.update(node.output)

    def spread(self, dead: Mapping[str, Array], through_scales: bool = True) -> dict[str, Array]:
        """Carry dead positions forward through constant arithmetic.

        Parameters
        ----------
        dead : mapping of value name to bool array of that value's shape.
        through_scales : also through the scale of DequantizeLinear (off when asking what a weight is).

        Returns
        -------
        The same mapping, completed with every constant that is computed from the given ones.
        """
        found = dict(dead)
        for node in self.nodes:
            if not any(n in found for n in node.input):
                continue
            masks = [
                found.get(n, np.zeros(self.values[n].shape, bool)) if n else np.zeros((), bool) for n in node.input
            ]
            outputs = self._spread_node(node, masks, through_scales)
            for name, mask in zip(node.output, outputs, strict=False):
                if name and mask is not None and mask.any():
                    found[name] = found[name] | mask if name in found else mask
        return found

    def _spread_node(self, node: NodeProto, masks: list[Array], through_scales: bool) -> Sequence[Array | None]:
        op = node.op_type
        if op in MOVEMENT:
            inputs: list[Array | None] = [self.values[n] if n else None for n in node.input]
            for i in range(len(inputs) if op == "Concat" else 1):
                inputs[i] = masks[i].astype(np.float32)
            if op == "Pad" and len(inputs) > 2:
                inputs[2] = np.zeros((), np.float32)
            return [np.asarray(o) > 0.5 for o in evaluate(node, inputs, self.model)]
        shape = self.values[node.output[0]].shape
        if op == "DequantizeLinear":
            out = masks[0].copy()
            if through_scales and masks[1].ndim == 1 and masks[1].size > 1:
                axis = attr(node, "axis", 1)
                view = [1] * out.ndim
                view[axis] = -1
                out |= masks[1].reshape(view)
            return [out]
        if op in ELEMENTWISE:
            out = np.zeros(shape, bool)
            for mask in masks:
                out = out | mask
            return [np.broadcast_to(out, shape)]
        if op.startswith("Reduce"):
            axes = attr(node, "axes")
            if axes is None and len(node.input) > 1 and node.input[1]:
                axes = self.values[node.input[1]].tolist()
            reduced = masks[0].all(
                axis=tuple(axes) if axes is not None else None, keepdims=bool(attr(node, "keepdims", 1))
            )
            return [np.asarray(reduced).reshape(shape)]
        if op == "BatchNormalization":  # of a weight: standardisation as frameworks write it
            return [masks[0]]
        if op == "MatMul":
            alive = np.matmul((~masks[0]).astype(np.float32), (~masks[1]).astype(np.float32))
            return [np.asarray(alive == 0).reshape(shape)]
        return []

    def channel_axes(self, name: str) -> list[int]:
        """Axes of constant ``name`` that are channel axes of some weight it ends up in."""
        value = self.values[name]
        out = []
        for axis, size in enumerate(value.shape):
            if size < 2:
                continue
            probe = np.zeros(value.shape, bool)
            np.moveaxis(probe, axis, 0)[0] = True
            reached = self.spread({name: probe}, through_scales=False)
            if any(self._kills_channel(slot, reached[slot.name]) for slot in self.slots if slot.name in reached):
                out.append(axis)
        return out

    def _kills_channel(self, slot: Slot, mask: Array) -> bool:
        if slot.kind != "weight":
            return False
        op = slot.node.op_type
        axes = range(mask.ndim)
        if CONV_WEIGHTS.get(op) == slot.index:
            axes = range(2)
        elif op in RECURRENT:
            axes = range(1, mask.ndim)
        for axis in axes:
            if mask.shape[axis] < 2:
                continue
            rest = tuple(a for a in range(mask.ndim) if a != axis)
            if mask.all(axis=rest).any():
                return True
        return False

    def roots(self) -> list[str]:
        """Initializers and Constants (not computed values) that reach a weight slot as data."""
        produced = {o for node in self.nodes for o in node.output}
        wanted = {slot.name for slot in self.slots if slot.kind == "weight"}
        for node in reversed(self.nodes):
            if wanted.intersection(node.output):
                data = node.input[:1] if node.op_type in MOVEMENT - {"Concat"} | {"DequantizeLinear"} else node.input
                wanted.update(n for n in data if n)
        return sorted(n for n in wanted if n not in produced and n in self.values)


def is_float(value: Array) -> bool:
    return value.dtype.kind == "f" or value.dtype.name == "bfloat16"


def live_nodes(graph: GraphProto) -> set[int]:
    """Positions of nodes whose results reach the graph's outputs (protobuf's Python objects have no identity)."""
    needed = {o.name for o in graph.output}
    live: set[int] = set()
    for position in reversed(range(len(graph.node))):
        node = graph.node[position]
        if needed.intersection(node.output):
            live.add(position)
            needed.update(captured(node))
    return live


def captured(node: NodeProto) -> Iterator[str]:
    yield from node.input
    for sub in subgraphs(node):
        yield from (o.name for o in sub.output)
        for inner in sub.node:
            yield from captured(inner)


def evaluate(node: NodeProto, inputs: Sequence[Array | None], model: ModelProto) -> list[Array]:
    """Run one node by ONNX's reference implementation."""
    named = [(n, v) for n, v in zip(node.input, inputs, strict=True) if n]
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_value_info(n, helper.make_tensor_type_proto(TensorProto.FLOAT, None)) for n in dict(named)],
        [helper.make_value_info(o, helper.make_tensor_type_proto(TensorProto.FLOAT, None)) for o in node.output if o],
    )
    one = helper.make_model(graph, opset_imports=list(model.opset_import))
    try:
        return [np.asarray(v) for v in ReferenceEvaluator(one).run(None, dict(named))]
    except RuntimeError:
        # The reference lacks some older versions (DequantizeLinear before 19): ONNX Runtime has them.
        for value, (_, array) in zip(graph.input, named, strict=True):
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            value.type.CopyFrom(helper.make_tensor_type_proto(kind, array.shape))
        for value in graph.output:
            value.type.Clear()
        one = helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=9)
        return [np.asarray(v) for v in session(one).run(None, dict(named))]


def session(model: ModelProto, optimise: bool = False) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    integer = ("MatMulInteger", "ConvInteger", "QLinear", "QGemm", "QAttention", "DynamicQuantize")
    signed = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8}
    products = [node for node in model.graph.node if node.op_type.startswith(integer)]
    if products and not any(n.op_type[0] == "Q" and n.input[2] in signed for n in products if len(n.input) > 2):
        # Without VNNI, sums of signed products saturate, by which are neighbours; not so after this rewrite.
        options.graph_optimization_level = level.ORT_ENABLE_EXTENDED
        options.add_session_config_entry("session.x64quantprecision", "1")
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
