"""Quantised values: what stands for zero is the zero point, and scales follow the axis they are given for.

``Axis.zero`` of a quantised value says that it equals its zero point at removed indices, so that it is zero
once dequantised. Scales and zero points never make an axis prunable and are never masked, but they are cut
with the axis they belong to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphprune.ops.linear import (
    follow,
    follow_rows,
    grouped_axes,
    matmul_axes,
    shrink_groups,
    weights_of,
)
from graphprune.ops.pointwise import broadcast
from graphprune.rules import Axes, Axis, OpView, frozen_by_design, op
from graphprune.units import is_plainly_frozen

if TYPE_CHECKING:
    from graphprune.cut import Cut

_SUMMED = "is summed over where the removed values need not be zero"


# -- to and from quantised values ------------------------------------------------------------------------
@op("QuantizeLinear", "DequantizeLinear", "com.microsoft::QuantizeLinear", "com.microsoft::DequantizeLinear",
    text="... c ..., c, c -> ... c ...; or ... (c _n) ..., ... c ..., ... c ... in blocks")  # fmt: skip
def quantise(view: OpView) -> list[Axes | None]:
    """Scale and zero point are for the whole, an index of one axis, or a block of it; blocks are cut whole."""
    x = view.axes(0)
    scale = view.axes(1)
    along = int(view.attr("axis", 1))
    if len(x) > 1 and len(scale) == len(x):
        for i in (1, 2):
            for position, (axis, own) in enumerate(zip(x, view.axes(i) if view.has(i) else (), strict=False)):
                if len(own) == len(axis):
                    view.tie(axis, own)
                elif position == along % len(x):
                    in_blocks(view, axis, own, int(view.attr("block_size", 0)))
                else:
                    view.freeze(own, "a scale for several indices")
                    view.freeze(axis, "shares a scale")
    elif max((len(own) for own in scale), default=1) > 1:
        follow(view, x[along % len(x)], 1, 2)
    return [x]


def in_blocks(view: OpView, axis: Axis, scales: Axis, size: int) -> None:
    """One scale for ``size`` indices each: the block is what can be removed."""
    if size < 1 or len(axis) != size * len(scales):
        for one in (axis, scales):
            view.freeze(one, f"{len(axis)} indices in {len(scales)} blocks of {size}")
        return
    block, inside = view.split(axis, [len(scales), size])
    view.freeze(inside, f"is quantised in blocks of {size}")
    view.tie(block, scales)


@op("DynamicQuantizeLinear", text="... -> ..., (), ()")
def dynamic_quantise(view: OpView) -> list[Axes | None]:
    """The range is read off all values and always holds zero, so zeros do not move it."""
    x = view.axes(0)
    for axis in x:
        if not axis.zero:
            view.inexact(axis, "is looked across for the range of DynamicQuantizeLinear")
    # Zeros become the zero point; where the node is shown the kept indices alone, the rest is not set to it.
    zero = all(axis.zero or is_plainly_frozen(axis.rows) for axis in x)
    return [[Axis(axis.rows, axis.zero and zero, axis.places) for axis in x], [], []]


# -- products of quantised values ------------------------------------------------------------------------
@op("QLinearConv", text="b (g i) _..., (g o) i _..., (g o), (g o) -> b (g o) _...", shrink=shrink_groups)
def qlinear_conv(view: OpView) -> list[Axes | None]:
    """As Conv, with scales and zero points a channel."""
    x, w = view.axes(0), view.axes(3)
    view.weight(3, "weight")
    view.weight(8, "bias")
    follow(view, w[0], 4, 5, 8)
    xi, wg, wo = grouped_axes(view, w)
    masked = view.is_parameter(3)
    if not (masked or xi.zero or w[1].zero):
        view.inexact(xi, _SUMMED)
    out = view.merge([wg, wo])
    out = Axis(out.rows, masked and (not view.has(8) or view.is_parameter(8)), out.places)
    batch = Axis(x[0].rows, x[0].zero and not view.has(8), x[0].places)
    return [[batch, out, *(view.frozen(n) for n in view.out_shape()[2:])]]


def _product(view: OpView, a: Axes, b: Axes, at: tuple[int, int]) -> Axes:
    weights_of(view, at)
    return matmul_axes(view, a, b, (view.is_parameter(at[0]), view.is_parameter(at[1])))


def _bias(view: OpView, out: Axes, i: int) -> Axes:
    """A sum that follows the columns, and the rows where it has any."""
    if not view.has(i):
        return out
    view.weight(i, "bias")
    masked = view.is_parameter(i)
    own = view.axes(i)
    result = list(out)
    for position in range(1, len(out) + 1):
        axis = out[-position]
        mine = own[-position] if position <= len(own) else None
        if mine is not None and len(mine) == len(axis) > 1:
            view.tie(axis, mine)
            zero = axis.zero and (masked or mine.zero)
        else:
            # A sum that is broadcast along an axis is not masked there.
            zero = False
        result[-position] = Axis(axis.rows, zero, axis.places)
    return result


@op("QLinearMatMul", text="... i k, i, i, ... k j, j, j -> ... i j")
def qlinear_matmul(view: OpView) -> list[Axes | None]:
    """As MatMul, with scales and zero points a row and a column."""
    a, b = view.axes(0), view.axes(3)
    follow_rows(view, a, 1, 2)
    follow(view, b[-1], 4, 5)
    return [_product(view, a, b, (0, 3))]


@op("com.microsoft::DynamicQuantizeMatMul", text="... i k, ... k j, j, j, j -> ... i j")
def dynamic_quantize_matmul(view: OpView) -> list[Axes | None]:
    """The left operand is quantised on the way, so its range is looked across."""
    a, b = view.axes(0), view.axes(1)
    for axis in a:
        if not axis.zero:
            view.inexact(axis, "is looked across for the range of DynamicQuantizeMatMul")
    follow(view, b[-1], 2, 3)
    return [_bias(view, _product(view, a, b, (0, 1)), 4)]


@op("com.microsoft::MatMulIntegerToFloat", text="... i k, ... k j, i, j, i, j, j -> ... i j")
def matmul_integer_to_float(view: OpView) -> list[Axes | None]:
    """MatMulInteger, scaled, with a bias."""
    a, b = view.axes(0), view.axes(1)
    follow_rows(view, a, 2, 4)
    follow(view, b[-1], 3, 5)
    return [_bias(view, _product(view, a, b, (0, 1)), 6)]


@op("com.microsoft::QGemm", text="i k, k j, j, j, j -> i j")
def qgemm(view: OpView) -> list[Axes | None]:
    """Gemm of quantised values; either operand may be transposed."""
    a, b = list(view.axes(0)), list(view.axes(3))
    a = a[::-1] if view.attr("transA", 0) else a
    b = b[::-1] if view.attr("transB", 0) else b
    follow(view, b[1], 4, 5)
    return [_bias(view, _product(view, a, b, (0, 3)), 6)]


# -- blocks of few bits ----------------------------------------------------------------------------------
def _shrink_nbits(cut: Cut) -> None:
    cut.set_attr("N", cut.new_in(1)[0])
    cut.set_attr("K", cut.new_in(0)[-1])


@op(
    "com.microsoft::MatMulNBits",
    text="... (k _n), n k _p, (n k), (n _p) -> ... n; blocks are cut whole",
    shrink=_shrink_nbits,
)
def matmul_nbits(view: OpView) -> list[Axes | None]:
    """Columns are packed one by one, what is contracted in blocks that share a scale."""
    x, packed = list(view.axes(0)), view.axes(1)
    columns, blocks = packed[0], packed[1]
    size = int(view.attr("block_size"))
    view.freeze(packed[2], "is packed by MatMulNBits")
    # A column is zero once its scales are; the packed bits have no zero of their own.
    view.weight(2, "weight")
    for i in (2, 3):
        if not view.has(i):
            continue
        own = view.axes(i)
        if len(own) == 1:
            own = view.split(own[0], [len(columns), len(own[0]) // len(columns)])
        view.tie(columns, own[0])
        if len(own[1]) == len(blocks):
            view.tie(blocks, own[1])
        else:
            view.freeze(own[1], "zero points of several blocks share a byte")
            view.freeze(blocks, "its zero points share bytes")
    if view.has(4):
        view.freeze_inputs("groups of MatMulNBits", [4])
        view.freeze(x[-1], "its order is an input of MatMulNBits")
    in_blocks(view, x[-1], blocks, size)
    if not (x[-1].zero or view.is_parameter(2)):
        view.inexact(x[-1], _SUMMED)
    out: Axes = [*x[:-1], Axis(columns.rows, view.is_parameter(2), columns.places)]
    return [_bias(view, out, 5)]


# -- one or two quantised values, index by index ---------------------------------------------------------
def _quantised_pair(view: OpView, zero: str, role: str) -> list[Axes | None]:
    parameters = {i for i in (0, 3) if view.is_parameter(i)}
    for i in parameters:
        view.weight(i, role)
    return [broadcast(view, [0, 3], zero, parameters)]


@op("com.microsoft::QLinearAdd", text="..., (), (), ... -> ...")
def qlinear_add(view: OpView) -> list[Axes | None]:
    """A sum is zero where both terms are."""
    return _quantised_pair(view, "all", "shift")


@op("com.microsoft::QLinearMul", text="..., (), (), ... -> ...")
def qlinear_mul(view: OpView) -> list[Axes | None]:
    """A product is zero where either factor is."""
    return _quantised_pair(view, "any", "gain")


@op("com.microsoft::QLinearWhere", text="..., ..., (), (), ... -> ...")
def qlinear_where(view: OpView) -> list[Axes | None]:
    """A choice between two quantised values."""
    return [broadcast(view, [0, 1, 4], "")]


@op("com.microsoft::QLinearConcat", text="rows one after the other")
def qlinear_concat(view: OpView) -> list[Axes | None]:
    """Behind scale and zero point of the result come triples of value, scale and zero point."""
    operands = [view.axes(i) for i in range(2, len(view.node.inputs), 3)]
    along = int(view.attr("axis", 0)) % len(operands[0])
    out: Axes = []
    for i, first in enumerate(operands[0]):
        if i == along:
            out.append(view.concat([axes[i] for axes in operands]))
            continue
        axis = first
        for other in operands[1:]:
            axis = view.tie(axis, other[i])
        out.append(axis)
    return [out]


@op("com.microsoft::QLinearLeakyRelu", "com.microsoft::QLinearSigmoid", text="... -> ...")
def qlinear_unary(view: OpView) -> list[Axes | None]:
    """One quantised operand."""
    keeps = view.node.op_type == "QLinearLeakyRelu"
    return [[Axis(axis.rows, axis.zero and keeps, axis.places) for axis in view.axes(0)]]


@op("com.microsoft::QLinearSoftmax", text="... -> ...")
def qlinear_softmax(view: OpView) -> list[Axes | None]:
    """Normalised over one axis, or over all from one on in files that follow opset 12 and before."""
    x = view.axes(0)
    along = int(view.attr("axis", -1)) % len(x)
    over = {along} if int(view.attr("opset", 13)) >= 13 else set(range(along, len(x)))
    for i in over:
        view.inexact(x[i], "is normalised over by QLinearSoftmax")
    return [[Axis(axis.rows, False, axis.places) for axis in x]]


@op("com.microsoft::QLinearAveragePool", "com.microsoft::QLinearGlobalAveragePool", text="b c _... -> b c _...")
def qlinear_pool(view: OpView) -> list[Axes | None]:
    """Batch and channel pass, wherever the channels stand."""
    x, shape = view.axes(0), view.out_shape()
    channel = len(x) - 1 if view.attr("channels_last", 0) else 1
    out: Axes = []
    for i, axis in enumerate(x):
        if i in (0, channel):
            out.append(axis)
            continue
        if view.node.op_type == "QLinearGlobalAveragePool":
            view.inexact(axis, "is pooled over by QLinearGlobalAveragePool")
        else:
            view.freeze(axis, "spatial axis of QLinearAveragePool")
        out.append(view.frozen(shape[i]))
    return [out]


@op("com.microsoft::QLinearReduceMean", text="the mean over some axes")
def qlinear_mean(view: OpView) -> list[Axes | None]:
    """What is averaged over counts in the mean, so cutting it is inexact."""
    x = view.axes(0)
    over = {int(a) % len(x) for a in view.attr("axes") or range(len(x))}
    out: Axes = []
    for i, axis in enumerate(x):
        if i not in over:
            out.append(axis)
            continue
        view.inexact(axis, "is averaged over by QLinearReduceMean")
        if view.attr("keepdims", 1):
            out.append(view.frozen(1))
    return [out]


frozen_by_design(
    "its weights are packed in blocks that run across both axes",
    "com.microsoft::MatMulBnb4", "com.microsoft::MatMulFpQ4", "com.microsoft::MatMulPacked",
    "com.microsoft::MatMulNBitsMlp", "com.microsoft::MatMulNBitsQkv", "com.microsoft::MatMulNBitsQLoRA",
    "com.microsoft::MatMulBlockQuantizedFp4Weight", "com.microsoft::MatMulBlockQuantizedFp8Weight",
    "com.microsoft::GatherBlockQuantized", "com.microsoft::QuantizeBFP", "com.microsoft::DequantizeBFP",
)  # fmt: skip
frozen_by_design(
    "it is laid out for one kind of graphics processor: no runtime on a CPU can prove a cut of it",
    "com.microsoft::QOrderedGelu", "com.microsoft::QOrderedLayerNormalization", "com.microsoft::QOrderedMatMul",
    "com.microsoft::QuantizeWithOrder", "com.microsoft::DequantizeWithOrder", "com.microsoft::GemmFloat8",
)  # fmt: skip
frozen_by_design("its integers are summed or multiplied without a zero point that is known",
                 "com.microsoft::MulInteger", "com.microsoft::ReduceSumInteger")  # fmt: skip
