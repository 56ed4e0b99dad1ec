"""Fused ops of ONNX Runtime that are neither attention nor quantised, and those that stay as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphprune.ops.linear import fused_activation_keeps_zero, grouped_axes, shrink_groups
from graphprune.ops.pointwise import broadcast
from graphprune.rules import Axes, Axis, OpView, UnknownShape, frozen_by_design, op

if TYPE_CHECKING:
    from graphprune.cut import Cut

_SUMMED = "is summed over where the removed values need not be zero"


@op("com.microsoft::FusedConv", text="b (g i) _..., (g o) i _..., (g o), b (g o) _... -> b (g o) _...",
    shrink=shrink_groups)  # fmt: skip
def fused_conv(view: OpView) -> list[Axes | None]:
    """As Conv, with a residual sum and an activation behind it."""
    x, w = view.axes(0), view.axes(1)
    view.weight(1, "weight")
    view.weight(2, "bias")
    xi, wg, wo = grouped_axes(view, w)
    if not (view.is_parameter(1) or xi.zero):
        view.inexact(xi, _SUMMED)
    out, batch = view.merge([wg, wo]), x[0]
    zero = view.is_parameter(1) and fused_activation_keeps_zero(view)
    if view.has(2):
        view.tie(out, view.axes(2)[0])
        zero = zero and view.is_parameter(2)
    if view.has(3):
        z = view.axes(3)
        view.weight(3, "shift")
        batch = view.tie(batch, z[0])
        view.tie(out, z[1])
        zero = zero and (z[1].zero or view.is_parameter(3))
        for axis in z[2:]:
            view.freeze(axis, "spatial axis of FusedConv")
    shape = view.out_shape()
    batch = Axis(batch.rows, False, batch.places)
    return [[batch, Axis(out.rows, zero, out.places), *(view.frozen(n) for n in shape[2:])]]


# -- image generators ------------------------------------------------------------------------------------
def _shrink_group_norm(cut: Cut) -> None:
    channel = len(cut.old_in(0)) - 1 if cut.attr("channels_last", 1) else 1
    groups, channels, kept = int(cut.attr("groups")), cut.old_in(0)[channel], cut.kept_in(0, channel)
    if kept is not None:
        cut.set_attr("groups", len(set((kept // (channels // groups)).tolist())))


def _group_norm(view: OpView, x: Axes) -> Axes:
    """Groups and positions side by side; all positions of a group are normalised over."""
    channel = len(x) - 1 if view.attr("channels_last", 1) else 1
    groups = int(view.attr("groups"))
    g, i = view.split(x[channel], [groups, len(x[channel]) // groups])
    view.mark(g, "group")
    name = view.node.op_type
    view.inexact(i, f"is normalised over by {name}")
    for operand, role in ((1, "scale"), (2, "bias")):
        view.weight(operand, role)
        view.tie(x[channel], view.axes(operand)[0])
    for position, axis in enumerate(x):
        if position not in (0, channel):
            view.freeze(axis, f"spatial axis of {name}")
    merged = view.merge([g, i])
    out = [Axis(axis.rows, False, axis.places) for axis in x]
    out[channel] = Axis(merged.rows, view.is_parameter(1) and view.is_parameter(2), x[channel].places)
    return out


@op("com.microsoft::GroupNorm", text="b _... (g i), (g i), (g i) -> b _... (g i)", shrink=_shrink_group_norm)
def group_norm(view: OpView) -> list[Axes | None]:
    """GroupNormalization with an activation, channels last by default."""
    return [_group_norm(view, list(view.axes(0)))]


@op("com.microsoft::SkipGroupNorm", text="b _... (g i), (g i), (g i), b _... (g i), (g i) -> b _... (g i), b _... (g i)",
    shrink=_shrink_group_norm)  # fmt: skip
def skip_group_norm(view: OpView) -> list[Axes | None]:
    """A residual sum, normalised; the sum is handed out too."""
    x, skip = list(view.axes(0)), view.axes(3)
    channel = len(x) - 1 if view.attr("channels_last", 1) else 1
    # The skip is of the same shape, [b, 1, 1, c] or [b, c].
    follows = len(skip) - 1 if view.attr("channels_last", 1) or len(skip) == 2 else 1
    tied = view.tie(x[channel], skip[follows])
    batch = view.tie(x[0], skip[0])
    for i, axis in enumerate(skip):
        if i not in (0, follows):
            view.freeze(axis, "spatial axis of SkipGroupNorm")
    zero = tied.zero
    if view.has(4):
        view.weight(4, "bias")
        tied = view.tie(tied, view.axes(4)[0])
        zero = zero and view.is_parameter(4)
    summed = [Axis(axis.rows, False, axis.places) for axis in (batch, *x[1:])]
    summed[channel] = Axis(tied.rows, zero, tied.places)
    outs: list[Axes | None] = [_group_norm(view, summed), summed]
    return outs[: len(view.node.outputs)]


@op("com.microsoft::BiasAdd", text="b s c, c, b s c -> b s c")
def bias_add(view: OpView) -> list[Axes | None]:
    """A bias and a residual sum."""
    view.weight(1, "bias")
    return [broadcast(view, [0, 1, 2], "all", {1} if view.is_parameter(1) else ())]


@op("com.microsoft::BiasSplitGelu", text="b s (2 c), (2 c) -> b s c")
def bias_split_gelu(view: OpView) -> list[Axes | None]:
    """The first half of the channels times the gelu of the second: a product is zero where either is."""
    x = view.axes(0)
    view.weight(1, "bias")
    view.tie(x[2], view.axes(1)[0])
    pair, half = view.split(x[2], [2, len(x[2]) // 2])
    view.freeze(pair, "halves of BiasSplitGelu")
    others = [Axis(axis.rows, False, axis.places) for axis in x[:2]]
    return [[*others, Axis(half.rows, x[2].zero and view.is_parameter(1), half.places)]]


@op("com.microsoft::BiasSoftmax", text="..., ... -> ...")
def bias_softmax(view: OpView) -> list[Axes | None]:
    """A softmax of a sum, over all axes from one on; the bias is broadcast along inner or outer batches."""
    x, bias = view.axes(0), view.axes(1)
    first = int(view.attr("axis", 1)) % len(x)
    view.freeze_inputs("is added in a layout of its own by BiasSoftmax", [1] if len(bias) != len(x) else [])
    for axis, own in zip(x, bias, strict=False):
        if len(bias) != len(x):
            view.freeze(axis, "meets a bias in a layout of its own")
        elif len(axis) == len(own):
            view.tie(axis, own)
    for axis in x[first:]:
        view.inexact(axis, "is normalised over by BiasSoftmax")
    return [[Axis(axis.rows, False, axis.places) for axis in x]]


@op("com.microsoft::ExpandDims", text="an axis of one index is put in")
def expand_dims(view: OpView) -> list[Axes | None]:
    """As Unsqueeze; the place of the new axis is an input."""
    x, place = list(view.axes(0)), view.constant(1)
    if place is None:
        view.freeze_inputs("its new axis is computed when it runs", [0])
        return view.frozen_outputs()
    at = int(place.reshape(-1)[0])
    x.insert(at if at >= 0 else at + len(x) + 1, view.frozen(1))
    return [x]


@op("com.microsoft::CDist", text="n k, m k -> n m")
def distances(view: OpView) -> list[Axes | None]:
    """Distances between rows: where both are zero a feature adds nothing."""
    a, b = view.axes(0), view.axes(1)
    view.tie(a[1], b[1])
    for axis in (a[1], b[1]):
        if not axis.zero:
            view.inexact(axis, "is summed over where the removed values need not be zero")
    return [[Axis(a[0].rows, False, a[0].places), Axis(b[0].rows, False, b[0].places)]]


def _experts_inside(view: OpView, axis: Axis, size: int) -> Axis:
    """The inner width of experts on an axis that may hold a gate beside each, interleaved or one behind the other."""
    if len(axis) == size:
        return axis
    if len(axis) != 2 * size or int(view.attr("swiglu_fusion", 0)) not in (1, 2):
        raise UnknownShape(f"{len(axis)} indices for experts of width {size}")
    interleaved = int(view.attr("swiglu_fusion", 0)) == 1
    factors = view.split(axis, [size, 2] if interleaved else [2, size])
    inside, gate = factors if interleaved else factors[::-1]
    view.freeze(gate, "a gate and what it gates stand side by side")
    return inside


@op("com.microsoft::MoE", text="... h, _n _e, _e i h, _e i, _e h i, _e h, _e i h, _e i -> ... h")
def experts(view: OpView) -> list[Axes | None]:
    """Experts share their widths; which of them work for a token is decided inside, so all of them stay."""
    x = view.axes(0)
    size, hidden = len(view.axes(4)[2]), x[-1]
    for axis in (*x[:-1], *view.axes(1)):
        view.freeze(axis, "tokens are routed by MoE")
    inside = view.axes(4)[2]
    for i, place in ((2, 2), (4, 1), (5, 1), (6, 2)):
        if view.has(i):
            view.tie(hidden, view.axes(i)[place])
    for i in (2, 3, 6, 7):
        if view.has(i):
            view.tie(inside, _experts_inside(view, view.axes(i)[1], size))
    for i in range(2, 8):
        if view.has(i):
            view.weight(i, "bias" if i % 2 else "weight")
            view.freeze(view.axes(i)[0], "experts are chosen by MoE when it runs")
    for i in (2, 6):
        if view.has(i) and not (hidden.zero or view.is_parameter(i)):
            view.inexact(hidden, _SUMMED)
    if not view.is_parameter(4):
        view.inexact(inside, _SUMMED)
    zero = view.is_parameter(4) and (not view.has(5) or view.is_parameter(5))
    return [[*(view.frozen(len(axis)) for axis in x[:-1]), Axis(hidden.rows, zero, hidden.places)]]


# -- frozen ----------------------------------------------------------------------------------------------
frozen_by_design(
    "its experts are packed or routed in a layout of its own",
    "com.microsoft::QMoE", "com.microsoft::MoEPacked", "com.microsoft::MoEGroupRouter",
    "com.microsoft::RouterGateUpProj",
)  # fmt: skip
frozen_by_design(
    "its channels stand last for one kind of processor: no other runtime can prove a cut of it",
    "com.microsoft::NhwcConv", "com.microsoft::NhwcFusedConv", "com.microsoft::NhwcMaxPool",
    "com.microsoft::QLinearConv",
)  # fmt: skip
frozen_by_design(
    "its layout is blocked for one processor: cut the file before the runtime optimises it",
    "com.microsoft.nchwc::Conv", "com.microsoft.nchwc::MaxPool", "com.microsoft.nchwc::AveragePool",
    "com.microsoft.nchwc::GlobalAveragePool", "com.microsoft.nchwc::GlobalMaxPool",
    "com.microsoft.nchwc::ReorderInput", "com.microsoft.nchwc::ReorderOutput", "com.microsoft.nchwc::Upsample",
)  # fmt: skip
frozen_by_design(
    "it computes with positions or frequencies along its axes",
    "com.microsoft::Rfft", "com.microsoft::Irfft", "com.microsoft::ComplexMul", "com.microsoft::ComplexMulConj",
    "com.microsoft::UnfoldTensor", "com.microsoft::CropAndResize", "com.microsoft::MaxpoolWithMask",
    "com.microsoft::ConvTransposeWithDynamicPads", "com.microsoft::DynamicTimeWarping",
)  # fmt: skip
frozen_by_design(
    "it works on tokens or choices, not on channels",
    "com.microsoft::NGramRepeatBlock", "com.microsoft::BifurcationDetector", "com.microsoft::Tokenizer",
    "com.microsoft::MurmurHash3", "com.microsoft::WordConvEmbedding", "com.microsoft::TorchEmbedding",
    "com.microsoft::SampleOp", "com.microsoft::SparseToDenseMatMul",
)  # fmt: skip
frozen_by_design("it is compiled for one device: cut the file it was compiled from",
                 "com.microsoft::EPContext", "com.microsoft::Snpe")  # fmt: skip
frozen_by_design("it is an early form of a standard op: convert the file to that one", "com.microsoft::Pad",
                 "com.microsoft::GatherND", "com.microsoft::Range", "com.microsoft::Unique",
                 "com.microsoft::IsAllFinite")  # fmt: skip
frozen_by_design("it is fused for one kind of processor: cut the file before the runtime optimises it",
                 "com.microsoft::GemmFastGelu", "com.microsoft::FusedMatMulActivation")  # fmt: skip
frozen_by_design("attention and recurrence share its weights", "com.microsoft::AttnLSTM")
frozen_by_design("its random mask is packed into bits", "com.microsoft::BitmaskDropout",
                 "com.microsoft::BitmaskBiasDropout")  # fmt: skip
