"""Normalisations: what they look across is cut inexactly, what they scale a channel at a time is cut exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphprune.rules import Axes, Axis, OpView, op

if TYPE_CHECKING:
    from graphprune.cut import Cut


@op("BatchNormalization", text="b c ..., c, c, c, c -> b c ...")
def batch_norm(view: OpView) -> list[Axes | None]:
    """Scale, bias, mean and variance follow the channel axis."""
    x = list(view.axes(0))
    channel = 1 if len(x) > 1 else 0
    for i, role in ((1, "scale"), (2, "bias"), (3, "mean"), (4, "variance")):
        view.weight(i, role)
        view.tie(x[channel], view.axes(i)[0])
    masked = view.is_parameter(1) and view.is_parameter(2)
    out = [Axis(axis.rows, masked and i == channel, axis.places) for i, axis in enumerate(x)]
    rest: list[Axes | None] = [[Axis(x[channel].rows, False, x[channel].places)] for _ in view.node.outputs[1:]]
    return [out, *rest]


@op("InstanceNormalization", text="b c _..., c, c -> b c _...")
def instance_norm(view: OpView) -> list[Axes | None]:
    """Statistics a channel; whatever is merged into the spatial axes is normalised over."""
    x = list(view.axes(0))
    for i, role in ((1, "scale"), (2, "bias")):
        view.weight(i, role)
        view.tie(x[1], view.axes(i)[0])
    for axis in x[2:]:
        view.inexact(axis, "is normalised over by InstanceNormalization")
    view.mark(x[1], "channel")
    masked = view.is_parameter(1) and view.is_parameter(2)
    return [[Axis(axis.rows, masked if i == 1 else False, axis.places) for i, axis in enumerate(x)]]


def _shrink_group_norm(cut: Cut) -> None:
    groups = int(cut.attr("num_groups", 1))
    channels, kept = cut.old_in(0)[1], cut.kept_in(0, 1)
    if kept is not None:
        cut.set_attr("num_groups", len(set((kept // (channels // groups)).tolist())))


@op("GroupNormalization", text="b (g i) ..., (g i), (g i) -> b (g i) ...", shrink=_shrink_group_norm)
def group_norm(view: OpView) -> list[Axes | None]:
    """Groups and positions side by side; the positions of a group are normalised over."""
    x = list(view.axes(0))
    groups = int(view.attr("num_groups", 1))
    g, i = view.split(x[1], [groups, len(x[1]) // groups])
    view.mark(g, "group")
    view.inexact(i, "is normalised over by GroupNormalization")
    masked = True
    for operand, role in ((1, "scale"), (2, "bias")):
        view.weight(operand, role)
        own = view.axes(operand)[0]
        masked = masked and view.is_parameter(operand) and len(own) == len(x[1])
        # Before opset 21 scale and bias are per group.
        view.tie(g if len(own) == groups != len(x[1]) else x[1], own)
    for axis in x[2:]:
        view.inexact(axis, "is normalised over by GroupNormalization")
    merged = view.merge([g, i])
    out = [Axis(axis.rows, False, axis.places) for axis in x]
    out[1] = Axis(merged.rows, masked, x[1].places)
    return [out]


def layer_norm_axes(view: OpView, x: Axes, first: int, parameters: tuple[int, ...]) -> Axes:
    """Axes from ``first`` on are normalised over; parameters broadcast against them."""
    masked = bool(parameters)
    for i in parameters:
        view.weight(i, "scale" if i == parameters[0] else "bias")
        masked = masked and view.is_parameter(i)
        own = view.axes(i)
        for axis, mine in zip(reversed(x), reversed(own), strict=False):
            if len(axis) == len(mine):
                view.tie(axis, mine)
    for axis in x[first:]:
        view.inexact(axis, f"is normalised over by {view.node.op_type}")
    # A slice of zeros is normalised to zeros, to which a bias is added.
    kept = len(parameters) < 2
    return [Axis(a.rows, masked if i >= first else a.zero and kept, a.places) for i, a in enumerate(x)]


@op("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization",
    "com.microsoft::SimplifiedLayerNormalization", text="... (c ...), c ..., c ... -> ... (c ...)")  # fmt: skip
def layer_norm(view: OpView) -> list[Axes | None]:
    """The axes from ``axis`` on are normalised over; scale and bias follow them."""
    x = list(view.axes(0))
    first = int(view.attr("axis", -1)) % len(x)
    out = layer_norm_axes(view, x, first, tuple(i for i in (1, 2) if view.has(i)))
    statistics = [Axis(axis.rows, False, axis.places) for axis in x[:first]] + [view.frozen(1) for _ in x[first:]]
    return [out, *[statistics] * len(view.node.outputs[1:])]


@op("LpNormalization", "MeanVarianceNormalization", "Softmax", "LogSoftmax", "Hardmax", text="... -> ...")
def normalised(view: OpView) -> list[Axes | None]:
    """Normalised over some axes, without parameters."""
    x = list(view.axes(0))
    name = view.node.op_type
    if name == "MeanVarianceNormalization":
        axes = {a % len(x) for a in view.attr("axes", [0, 2, 3])}
    elif name == "LpNormalization" or view.opset >= 13:
        axes = {int(view.attr("axis", -1)) % len(x)}
    else:
        # Before opset 13 everything from ``axis`` on is one axis.
        axes = set(range(int(view.attr("axis", 1)) % len(x), len(x)))
    out = []
    for i, axis in enumerate(x):
        if i in axes and not (name == "LpNormalization" and axis.zero):
            view.inexact(axis, f"is normalised over by {name}")
            axis = Axis(axis.rows, False, axis.places)
        elif name == "MeanVarianceNormalization":
            # ONNX Runtime gives NaN for a slice of zeros, so a masked original cannot be run.
            view.freeze(axis, "MeanVarianceNormalization gives no number for a slice of zeros: no cut can be proved")
        # Along the other axes a slice of zeros gives a slice of zeros only where zero is kept.
        elif name != "LpNormalization":
            axis = Axis(axis.rows, False, axis.places)
        out.append(axis)
    return [out]


@op("LRN", text="b c ... -> b c ...")
def lrn(view: OpView) -> list[Axes | None]:
    """Normalised over neighbouring channels."""
    x = list(view.axes(0))
    view.inexact(x[1], "is normalised over by LRN")
    return [x]
