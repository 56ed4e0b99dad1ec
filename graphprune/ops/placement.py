"""Where QuantizeLinear and DequantizeLinear stand, so that a runtime computes in integers: what differs between runtimes.

Sources: ONNX Runtime's QDQ selectors (which groups become QLinear ops on a CPU); "Explicit quantization" in NVIDIA's TensorRT
guide (inputs of weighted layers, outputs in floating point, one input of a residual addition); OpenVINO's low precision
transformations (FakeQuantize at inputs, biases in floating point).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import onnx_ir as ir

from graphprune.ops.traits import QUANTISING
from graphprune.rules import attribute

#: Ops with a weight, where the work is.
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
#: Ops that take two computed values in step.
_PAIRED = ("Add", "Mul", "MatMul")
#: Words at the start of the names of ops that compute with quantised values, beside those that make them.
_INTEGER = ("DequantizeLinear", "MatMulInteger", "ConvInteger", "MatMulNBits", "MatMulBnb4", "GatherBlockQuantized")


@dataclass(frozen=True)
class Placement:
    """How one runtime wants a quantised model.

    Attributes
    ----------
    ops
        Ops that it has integer kernels for; those without a weight are quantised behind one that has.
    signed
        Activations are int8 about zero; else uint8 with a zero point.
    outputs
        What these ops put out is quantised too, so that chains of them run in integers without a float between; otherwise
        their inputs alone, and the runtime fuses what lies behind a layer into it.
    bias
        Biases are int32, of the scales of input and weight.
    products
        Products of two computed values, as in attention, are quantised.
    one_addend
        Of the two addends of a residual addition the one that a layer makes for it alone stays in floating point, so that
        the addition is fused into that layer.
    """

    ops: tuple[str, ...]
    signed: bool
    outputs: bool
    bias: bool
    products: bool
    one_addend: bool


PLACEMENTS = {
    "onnxruntime": Placement(
        ("Conv", "Gemm", "MatMul", "Add", "Mul", "Relu", "Clip", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool",
         "Concat", "Resize", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Pad"),
        signed=False, outputs=True, bias=True, products=True, one_addend=False,
    ),
    "tensorrt": Placement(
        ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "AveragePool", "GlobalAveragePool"),
        signed=True, outputs=False, bias=False, products=False, one_addend=True,
    ),
    "openvino": Placement(
        ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "AveragePool", "GlobalAveragePool"),
        signed=False, outputs=False, bias=False, products=True, one_addend=True,
    ),
}  # fmt: skip


def is_quantised(nodes: Iterable[ir.Node]) -> ir.Node | None:
    """The first node that makes or takes quantised values."""
    return next((node for node in nodes if node.op_type.startswith((*QUANTISING, *_INTEGER))), None)


def quantisable(placement: Placement, nodes: Iterable[ir.Node], leave: Collection[str] = ()) -> list[ir.Node]:
    """Nodes of one graph, in its order, that a runtime computes in integers; those named in ``leave`` stay."""
    chosen: list[ir.Node] = []
    made: set[ir.Value] = set()
    for node in nodes:
        if node.domain not in ("", "ai.onnx") or node.op_type not in placement.ops or node.name in leave:
            continue
        computed = [value for value in node.inputs if value is not None and value.const_value is None]
        if node.op_type in WEIGHTED and len(computed) == 1:
            fits = _weight_fits(node)
        elif node.op_type in WEIGHTED:
            fits = node.op_type == "MatMul" and placement.products
        elif node.op_type in _PAIRED and not placement.outputs:
            # A constant that is added or multiplied is fused into the layer before it.
            fits = len(computed) == 2 and any(value in made for value in computed)
        else:
            # One float among them has to be quantised for this op alone, which costs more than it saves.
            fits = bool(computed) and all(value in made or not _is_float(value) for value in computed)
        if fits and _is_float(node.outputs[0]):
            chosen.append(node)
            made.update(node.outputs)
        elif node.op_type in ("Relu", "Clip", "MaxPool") and any(value in made for value in computed):
            made.update(node.outputs)  # fused into what it follows
    return chosen


def output_axis(node: ir.Node) -> int:
    """The axis of a layer's weight that has a scale for each output."""
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return 0 if node.op_type == "Conv" else 1


def _weight_fits(node: ir.Node) -> bool:
    """Whether the weight has one axis of outputs that scales can follow."""
    weight = next((v for v in node.inputs[:2] if v is not None and v.const_value is not None), None)
    if weight is None or weight.const_value is None or weight.const_value.dtype != ir.DataType.FLOAT:
        return False
    if node.op_type == "ConvTranspose":
        return int(attribute(node, "group", 1)) == 1
    return node.op_type == "Conv" or len(weight.const_value.shape) == 2


def _is_float(value: ir.Value) -> bool:
    return value.dtype in (None, ir.DataType.FLOAT)


def spare_pairs(placement: Placement, nodes: Iterable[ir.Node]) -> list[tuple[ir.Node, int, ir.Value]]:
    """Inputs of residual additions that are better off without their Q/DQ: node, input, and the value before the pair."""
    found = []
    for node in nodes if placement.one_addend else ():
        if node.op_type != "Add" or node.domain not in ("", "ai.onnx"):
            continue
        sources = [_before_pair(value) for value in node.inputs]
        if len(sources) != 2 or any(source is None for source in sources):
            continue
        alone = [i for i, s in enumerate(sources) if s is not None and _made_for(s, node)]
        if alone:
            index = alone[-1]
            value = sources[index]
            assert value is not None
            found.append((node, index, value))
    return found


def _before_pair(value: ir.Value | None) -> ir.Value | None:
    """What a QuantizeLinear and a DequantizeLinear behind it were given."""
    back = None if value is None else value.producer()
    codes = back.inputs[0] if back is not None and back.op_type == "DequantizeLinear" else None
    there = None if codes is None else codes.producer()
    return there.inputs[0] if there is not None and there.op_type == "QuantizeLinear" else None


def _made_for(value: ir.Value, reader: ir.Node) -> bool:
    """Whether a layer with a weight makes a value for one node, through a Q/DQ pair, and for no other."""
    node = value.producer()
    uses = value.uses()
    if node is None or node.op_type not in WEIGHTED or len(uses) != 1 or value.is_graph_output():
        return False
    ends = [end for use in uses for end in use.node.outputs]
    return all(user.node is reader for end in ends for back in end.uses() for out in back.node.outputs for user in out.uses())
