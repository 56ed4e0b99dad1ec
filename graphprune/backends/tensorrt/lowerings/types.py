"""Element types that a target's operator does not take, carried through by one that it does; inputs that must be stored."""

from __future__ import annotations

import onnx_ir as ir

from graphprune.backends.tensorrt.legality import type_name
from graphprune.backends.tensorrt.rewriting import Builder, Values, attribute, given, is_constant, schema
from graphprune.devices import operator
from graphprune.devices.tables import typed_by

#: Operators whose result on whole numbers is the same in float32, up to 2^24.
_EXACT_TEXT = """
    Abs Add ArgMax ArgMin Concat ConstantOfShape CumSum DepthToSpace EyeLike Equal Expand Flatten Gather GatherElements
    GatherND Greater GreaterOrEqual Identity Less LessOrEqual Max MaxPool Min Mul Neg OneHot Pad Range ReduceL1 ReduceMax
    ReduceMin ReduceProd ReduceSum Relu Reshape ReverseSequence ScatterElements ScatterND Sign Slice SpaceToDepth Split
    Squeeze Sub Sum Tile TopK Transpose Trilu Unsqueeze Where Sqrt Floor Ceil
"""
_EXACT = frozenset(_EXACT_TEXT.split())
_WHOLE = (ir.DataType.INT32, ir.DataType.INT64, ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.BOOL)
_CARRIERS = (ir.DataType.INT32, ir.DataType.FLOAT)


def through_other_type(node: ir.Node, b: Builder) -> Values | None:
    """Cast to a type that the operator takes, and back."""
    row, at = operator(node.op_type, b.target.tensorrt), schema(node.op_type, b.opset)
    if row is None or at is None or node.op_type not in _EXACT:
        return None
    index = typed_by(node.op_type)[0]
    first = node.outputs[0] if index < 0 else given(node, index)
    dtype = None if first is None else b.facts.dtype(first)
    if dtype not in _WHOLE:
        return None
    taken = row.types.split()
    carrier = next((c for c in _CARRIERS if c != dtype and type_name(c, b.context) in taken
                    and type_name(c, b.context) != type_name(dtype, b.context)), None)  # fmt: skip
    if carrier is None:
        return None
    if node.op_type == "ConstantOfShape":
        tensor = attribute(node, "value")
        carried = ir.tensor(tensor.numpy().astype(carrier.numpy()))
        return b.op("Cast", b.op("ConstantOfShape", node.inputs[0], value=carried), to=int(dtype))
    inputs: list[ir.Value | None] = []
    formal = [at.inputs[min(i, len(at.inputs) - 1)].type_str for i in range(len(node.inputs))]
    tied = formal[index] if index >= 0 else at.outputs[0].type_str
    for value, kind in zip(node.inputs, formal, strict=True):
        inputs.append(b.cast(value, carrier) if value is not None and kind == tied else value)
    options = {name: attribute(node, name) for name in node.attributes}
    if node.op_type == "EyeLike":
        options["dtype"] = int(carrier)
    made = b.many(node.op_type, *inputs, outputs=len(node.outputs), **options)
    kinds = [at.outputs[min(i, len(at.outputs) - 1)].type_str for i in range(len(made))]
    return [b.cast(v, dtype) if kind == tied else v for v, kind in zip(made, kinds, strict=True)]


def stored_inputs(node: ir.Node, b: Builder) -> Values | None:
    """Inputs that are known stored as constants."""
    inputs: list[ir.Value | None] = []
    changed = False
    for value in node.inputs:
        known = None if value is None or is_constant(value) else b.known(value)
        changed |= known is not None
        inputs.append(value if known is None else b.constant(known))
    if not changed:
        return None
    options = {name: attribute(node, name) for name in node.attributes}
    return b.of_opset(b.context.opset_of(node), node.op_type, inputs, len(node.outputs), options)
