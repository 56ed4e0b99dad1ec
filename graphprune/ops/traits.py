"""Small facts about single ops that other parts of the package ask for: what an input is, what an output has in common with it."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

#: Output 0 holds the elements of input 0, in another shape or type.
SAME_ELEMENTS = frozenset({"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Expand"})
#: Ops (by how their names begin) that round values to steps: a difference of rounding shows as a whole step behind them.
QUANTISING = ("QuantizeLinear", "DynamicQuantizeLinear", "QLinear", "QGemm", "QAttention")
#: Where convolutions have their weight, if not at input 1.
_WEIGHT_INPUTS = {"QLinearConv": 3}
#: Target shapes in which a 1 leaves a larger size as it is.
_BROADCASTING = frozenset({"Expand"})
#: Operators that runtimes keep in the default domain, though no release of ONNX has them (any more).
_OF_RUNTIMES = frozenset({
    "Affine", "Crop", "DisentangledAttention_TRT", "DynamicSlice", "EfficientNMS_TRT", "GRUUnit", "GivenTensorFill",
    "ImageScaler", "MultilevelCropAndResize_TRT", "ParametricSoftplus", "PyramidROIAlign_TRT", "Scale", "ScaledTanh",
    "SimplifiedLayerNormalization",
})  # fmt: skip
#: Operators that ONNX Runtime fuses in files of any opset: the release that brought them.
_FUSED_EARLY = {"LayerNormalization": 17}


#: Inputs that are added to the result and may be left out.
_OPTIONAL_ADDENDS = {"Conv": 2, "ConvTranspose": 2}
#: The same, where they hold one number an output channel or column.
_BIASES = {**_OPTIONAL_ADDENDS, "Gemm": 2}
#: Ops that sum products.
_CONTRACTING = frozenset({"Conv", "Einsum", "Gemm", "MatMul"})
#: Ops that choose or step by the values of floating-point numbers: where two of them are nearly equal, rounding decides.
_DECIDING = frozenset({
    "ArgMax", "ArgMin", "Ceil", "Equal", "Floor", "Greater", "GreaterOrEqual", "Hardmax", "Less", "LessOrEqual", "Mod",
    "NonMaxSuppression", "NonZero", "Round", "Sign", "TopK", "Unique",
})  # fmt: skip
#: Ops that read how large their input is, not what it holds.
_SIZES = frozenset({"Shape", "Size"})
#: Ops that only say which elements stay and where.
_PICKING = frozenset({"Concat", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
#: Ops that make much of little -> the input that is the shape of the result; None where no input is.
_GROWING = {"ConstantOfShape": 0, "Expand": 1, "Tile": None, "Range": None, "OneHot": None, "EyeLike": None}
#: Element types of the inputs that a body begins with by its op: the step's number, and whether to go on.
BODY_TYPES = {"Loop": (ir.DataType.INT64, ir.DataType.BOOL)}


def reads_sizes(node: ir.Node) -> bool:
    """Whether a node gives the sizes of its input, whatever that holds."""
    return node.op_type in _SIZES and not node.domain


def contracts(node: ir.Node) -> bool:
    """Whether a node sums products along an axis that its inputs share."""
    return node.op_type in _CONTRACTING and not node.domain


def decides(node: ir.Node) -> bool:
    """Whether a node chooses by the values of numbers, so that its outputs jump where its inputs hardly differ."""
    if node.domain:
        return False
    if node.op_type == "Cast":
        target = ir.DataType(node.attributes.get_int("to", int(ir.DataType.FLOAT)))
        return not target.is_floating_point()
    # Where the largest one stands is a second output.
    return node.op_type in _DECIDING or (node.op_type == "MaxPool" and len(node.outputs) > 1)


def picks(node: ir.Node) -> bool:
    """Whether every element that a node gives is one of those that it is given, and which does not hang on what they are."""
    return node.op_type in _PICKING and not node.domain


def copies(node: ir.Node) -> bool:
    """Whether a node gives its input as it is."""
    return node.op_type == "Identity"


def grows(node: ir.Node) -> tuple[bool, int | None]:
    """Whether a node may make much of little, and which input says how much, None where none does."""
    return node.op_type in _GROWING, _GROWING.get(node.op_type)


def bias_of(node: ir.Node) -> ir.Value | None:
    """The bias that a linear layer is given."""
    index = _BIASES.get(node.op_type)
    return node.inputs[index] if index is not None and index < len(node.inputs) else None


def contracted(node: ir.Node, axis: int, rank: int) -> int | None:
    """The size that an axis of the first input must have, read off a weight that it is multiplied with.

    Parameters
    ----------
    axis, rank
        Of the input.
    """
    weight = node.inputs[1].shape if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if node.domain or weight is None:
        return None
    if node.op_type == "Conv" and axis == 1 and len(weight) > 1 and isinstance(weight[1], int):
        return int(weight[1]) * int(node.attributes.get_int("group", 1))
    if node.op_type == "MatMul" and axis == rank - 1 and len(weight) == 2 and isinstance(weight[0], int):
        return int(weight[0])
    return None


def softmax_over_last(node: ir.Node, version: int) -> bool:
    """Whether a node is a Softmax over the last axis alone.

    Parameters
    ----------
    version
        Of the model's opset.
    """
    if node.op_type != "Softmax" or node.domain:
        return False
    axis = node.attributes.get_int("axis", -1 if version >= 13 else 1)
    shape = node.outputs[0].shape
    # Before opset 13 all axes from this one on are one.
    return axis == -1 or (shape is not None and axis == len(shape) - 1)


def idle_addend(node: ir.Node) -> int | None:
    """Which optional addend of a node is computed, and zero whatever the sizes are; None where there is none.

    Exporters write a bias for layers that have none: as many zeros as the weight has outputs, counted as the model runs.
    """
    index = None if node.domain else _OPTIONAL_ADDENDS.get(node.op_type)
    if index is None or index >= len(node.inputs):
        return None
    value = node.inputs[index]
    weight = node.inputs[weight_input(node)]
    # Zeros of another length would be a damaged file, which is for the checks to tell.
    return index if value is not None and value.const_value is None and _is_zero(value) and _sized_by(value, weight) else None


def _sized_by(value: ir.Value, weight: ir.Value | None) -> bool:
    """Whether the shape of ``weight`` is among what a value is computed from."""
    seen: set[ir.Value] = set()
    stack = [value]
    while stack:
        node = stack.pop().producer()
        if node is None:
            continue
        if node.op_type == "Shape" and node.inputs[0] is weight:
            return True
        new = [v for v in node.inputs if v is not None and v not in seen]
        seen.update(new)
        stack.extend(new)
    return False


def _is_zero(value: ir.Value) -> bool:
    """Whether a value holds nothing but zeros, as far as constants and operators that only copy elements tell."""
    current: ir.Value | None = value
    while current is not None and current.const_value is None:
        node = current.producer()
        if node is None or node.domain:
            return False
        if node.op_type == "ConstantOfShape":
            filled = node.attributes.get_tensor("value", None)
            return filled is None or not filled.numpy().any()
        if node.op_type not in SAME_ELEMENTS and node.op_type != "CastLike":
            return False
        current = node.inputs[0]
    return current is not None and current.const_value is not None and not current.const_value.numpy().any()


def weight_input(node: ir.Node) -> int:
    """Which input of a convolution is its weight."""
    return _WEIGHT_INPUTS.get(node.op_type, 1)


def broadcasts_ones(node: ir.Node) -> bool:
    """Whether a 1 in the node's target shape stands for whatever size meets it."""
    return node.op_type in _BROADCASTING


def looked_up(node: ir.Node, index: int) -> tuple[ir.Value, int] | None:
    """The table, and the axis of it, that input ``index`` gives positions in; None where it gives none."""
    if node.op_type != "Gather" or index != 1 or node.inputs[0] is None:
        return None
    return node.inputs[0], node.attributes.get_int("axis", 0)


def joins(node: ir.Node | None) -> bool:
    """Whether a node sets its inputs one behind the other."""
    return node is not None and node.op_type == "Concat" and not node.domain


def of_runtimes(op_type: str, opsets: Iterable[int]) -> bool:
    """Whether an op of the default domain is one that runtimes have and these releases of ONNX do not."""
    return op_type in _OF_RUNTIMES or (op_type in _FUSED_EARLY and any(v < _FUSED_EARLY[op_type] for v in opsets))
