"""Pooling, resizing, sampling and transforms: the axes they work along are frozen, the others flow through."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphprune.rules import Axes, Axis, OpView, UnknownShape, op

if TYPE_CHECKING:
    from graphprune.cut import Cut


def text_attr(view: OpView, name: str, default: str) -> str:
    """A string attribute as ``str``."""
    value = view.attr(name, default)
    return value.decode() if isinstance(value, bytes) else str(value)


def sized(shape: Iterable[int], kept: dict[int, Axis], view: OpView) -> Axes:
    """Axes of a result: those of ``kept``, all others frozen."""
    return [kept[i] if i in kept else view.frozen(n) for i, n in enumerate(shape)]


# -- pooling ---------------------------------------------------------------------------------------------
op("AveragePool", rule="b c _... -> b c _...")
op("LpPool", rule="b c _... -> b c _...")


@op("MaxPool", text="b c _... -> b c _..., b c _...")
def max_pool(view: OpView) -> list[Axes | None]:
    """As the other pools; the positions it may hand out count channels, so only MaxUnpool may read them."""
    x = view.axes(0)
    for axis in x[2:]:
        view.freeze(axis, "spatial axis of MaxPool")
    if len(view.node.outputs) > 1 and not _only_unpooled(view.node.outputs[1], view.value(0)):
        for axis in x[:2]:
            view.freeze(axis, "is counted in the positions that MaxPool hands out, which are not only unpooled")
    out: list[Axes | None] = []
    for j in range(len(view.node.outputs)):
        own = {i: Axis(axis.rows, axis.zero and j == 0, axis.places) for i, axis in enumerate(x[:2])}
        out.append(sized(view.out_shape(j), own, view))
    return out


def _only_unpooled(positions: ir.Value, pooled: ir.Value) -> bool:
    """Whether positions among all channels end in MaxUnpool, or in a difference where the channels cancel."""
    queue = [positions]
    while queue:
        value = queue.pop()
        if value.is_graph_output():
            return False
        for node, index in value.uses():
            if node.op_type in ("Identity", "Cast", "Slice"):
                queue.append(node.outputs[0])
            elif node.op_type == "Sub":
                if not all(_positions_in(operand, pooled) for operand in node.inputs):
                    return False
            elif node.op_type != "MaxUnpool" or index != 1:
                return False
    return True


def _positions_in(value: ir.Value | None, pooled: ir.Value) -> bool:
    """Whether a value holds positions that a MaxPool found in ``pooled``, or a slice of them."""
    node = _maker(value)
    while node is not None and node.op_type == "Slice":
        node = _maker(node.inputs[0])
    return node is not None and node.op_type == "MaxPool" and node.inputs[0] is pooled


def _maker(value: ir.Value | None) -> ir.Node | None:
    """The node behind a value, looking through what only passes values on."""
    while value is not None:
        node = value.producer()
        if node is None or node.op_type not in ("Identity", "Cast"):
            return node
        value = node.inputs[0]
    return None


def _shrink_unpool(cut: Cut) -> None:
    if cut.view.has(2):
        cut.mend_shape(2, zero_copies=False)


@op("MaxUnpool", text="b c _..., b c _... -> b c _...", shrink=_shrink_unpool)
def max_unpool(view: OpView) -> list[Axes | None]:
    """Positions that MaxPool counts in the cut tensor fit the cut result; any others do not."""
    x, positions = view.axes(0), view.axes(1)
    for axis in (*x[2:], *positions[2:]):
        view.freeze(axis, "spatial axis of MaxUnpool")
    maker = _maker(view.value(1))
    counted = maker is not None and maker.op_type == "MaxPool"
    own: dict[int, Axis] = {}
    for i in (0, 1):
        view.tie(x[i], positions[i])
        if counted:
            own[i] = x[i]
        else:
            view.freeze(x[i], "is counted in positions that do not come from MaxPool")
    return [sized(view.out_shape(), own, view)]


@op("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", text="b c ... -> b c 1")
def global_pool(view: OpView) -> list[Axes | None]:
    """What is pooled over counts in the mean and the maximum, so cutting it is inexact."""
    x = view.axes(0)
    for axis in x[2:]:
        if not (view.node.op_type == "GlobalLpPool" and axis.zero):
            view.inexact(axis, f"is pooled over by {view.node.op_type}")
    return [[*x[:2], *(view.frozen(1) for _ in x[2:])]]


# -- regions and grids -----------------------------------------------------------------------------------
@op("RoiAlign", "MaxRoiPool", text="_b c _h _w, k _4, k -> k c _p _q")
def regions(view: OpView) -> list[Axes | None]:
    """Channels pass; regions keep their axis; the images they are looked up in are frozen."""
    name = view.node.op_type
    x, rois = view.axes(0), view.axes(1)
    view.freeze(x[0], f"images are looked up in it by {name}")
    for axis in (*x[2:], rois[1]):
        view.freeze(axis, f"spatial axis of {name}")
    if view.has(2):
        view.tie(rois[0], view.axes(2)[0])
    count = Axis(rois[0].rows, False, rois[0].places)
    return [sized(view.out_shape(), {0: count, 1: x[1]}, view)]


@op("GridSample", "com.microsoft::GridSample", text="b c _..., b _... -> b c _...")
def grid_sample(view: OpView) -> list[Axes | None]:
    """Batch and channel pass; the grid is frozen but for its batch axis."""
    x, grid = view.axes(0), view.axes(1)
    for axis in (*x[2:], *grid[1:]):
        view.freeze(axis, "spatial axis of GridSample")
    view.tie(x[0], grid[0])
    return [sized(view.out_shape(), {0: x[0], 1: x[1]}, view)]


def _shrink_affine_grid(cut: Cut) -> None:
    planned, found = cut.new_out(0)[0], cut.known_new(1)
    if found is None or found[0] != planned:
        cut.override(1, {0: planned})


@op("AffineGrid", text="b _2 _3, _ -> b _...", shrink=_shrink_affine_grid)
def affine_grid(view: OpView) -> list[Axes | None]:
    """One grid a sample."""
    theta = view.axes(0)
    for axis in theta[1:]:
        view.freeze(axis, "holds an affine map")
    if view.known(1) is None:
        view.freeze(theta[0], "the size of its grid is computed when it runs")
        return view.frozen_outputs()
    return [sized(view.out_shape(), {0: Axis(theta[0].rows, False, theta[0].places)}, view)]


# -- resizing --------------------------------------------------------------------------------------------
def _scales_and_sizes(view: OpView) -> tuple[int | None, int | None]:
    """Numbers of the inputs that hold scales and sizes; None for one that is not given."""
    if view.node.op_type == "Upsample" or view.opset < 11:
        return (1 if view.opset >= 9 else None), None
    if view.has(3):
        return None, 3
    return 2, None


def _moving_axes(view: OpView, rank: int) -> list[int]:
    """The axes that scales or sizes speak of, in their order."""
    given = view.attr("axes")
    return list(range(rank)) if given is None else [int(a) % rank for a in given]


def _still_axes(view: OpView, x: Axes) -> dict[int, bool]:
    """Axis -> whether it surely comes out index by index as it went in."""
    rank = len(x)
    moving = _moving_axes(view, rank)
    still = dict.fromkeys(range(rank), True)
    scales, sizes = _scales_and_sizes(view)
    mode = text_attr(view, "coordinate_transformation_mode", "half_pixel")
    if sizes is not None:
        stretched = text_attr(view, "keep_aspect_ratio_policy", "stretch") == "stretch"
        wanted, steady = view.known(sizes), view.steady(sizes)
        for t, axis in enumerate(moving):
            # Any other policy computes one scale for all these axes from all their sizes.
            sure = stretched and wanted is not None and steady is not None and bool(steady[t])
            still[axis] = sure and wanted is not None and int(wanted[t]) == len(x[axis])
    else:
        factors = np.asarray(view.attr("scales")) if scales is None else view.known(scales)
        steady = None if scales is None else view.steady(scales)
        for t, axis in enumerate(moving):
            sure = factors is not None and len(factors) == len(moving) and (steady is None or bool(steady[t]))
            still[axis] = sure and factors is not None and float(factors[t]) == 1.0
    if mode == "tf_crop_and_resize":
        roi = view.constant(1)
        for t, axis in enumerate(moving):
            whole = roi is not None and roi[t] == 0 and roi[t + len(moving)] == 1
            still[axis] = still[axis] and whole
    elif mode == "tf_half_pixel_for_nn":
        # Looks half an index to the right, which only rounding towards the left makes good.
        still.update((a, still[a] and "floor" in text_attr(view, "nearest_mode", "floor")) for a in moving)
    return still


def _shrink_resize(cut: Cut) -> None:
    """Sizes on cut axes are mended; scales are 1 there and stay."""
    _, sizes = _scales_and_sizes(cut.view)
    if sizes is None:
        return
    found, planned = cut.known_new(sizes), cut.new_out(0)
    entries = {
        t: planned[axis]
        for t, axis in enumerate(_moving_axes(cut.view, len(planned)))
        if cut.kept_out(0, axis) is not None and (found is None or found[t] != planned[axis])
    }
    if entries:
        cut.override(sizes, entries)


@op("Resize", "Upsample", text="an axis of scale 1 passes, the others are frozen", shrink=_shrink_resize)
def resize(view: OpView) -> list[Axes | None]:
    """Axes that keep their size pass; a size computed at run time follows the cut."""
    x, shape = view.axes(0), view.out_shape()
    still = _still_axes(view, x)
    # Outside the image a crop is filled with a value of its own.
    filled = float(view.attr("extrapolation_value", 0.0)) != 0.0
    own: dict[int, Axis] = {}
    for i, axis in enumerate(x):
        if still[i] and len(axis) == shape[i]:
            own[i] = Axis(axis.rows, axis.zero and not filled, axis.places)
        else:
            view.freeze(axis, f"is resized by {view.node.op_type}")
    return [sized(shape, own, view)]


def _shrink_center(cut: Cut) -> None:
    """Target sizes on cut axes are mended."""
    found, planned = cut.known_new(1), cut.new_out(0)
    entries = {
        t: planned[axis]
        for t, axis in enumerate(_moving_axes(cut.view, len(planned)))
        if cut.kept_out(0, axis) is not None and (found is None or found[t] != planned[axis])
    }
    if entries:
        cut.override(1, entries)


@op("CenterCropPad", text="an axis that keeps its size passes, the others are frozen", shrink=_shrink_center)
def center_crop_pad(view: OpView) -> list[Axes | None]:
    """Where the middle lies depends on the size, so only axes that keep theirs pass."""
    x, target, steady = view.axes(0), view.known(1), view.steady(1)
    moving = _moving_axes(view, len(x))
    own: dict[int, Axis] = {}
    for i, axis in enumerate(x):
        t = moving.index(i) if i in moving else -1
        if t < 0 or (target is not None and steady is not None and steady[t] and int(target[t]) == len(axis)):
            own[i] = axis
        else:
            view.freeze(axis, "is cropped or padded about its middle")
    return [sized(view.out_shape(), own, view)]


# -- blocks ----------------------------------------------------------------------------------------------
@op("DepthToSpace", text="b (_p _q c) h w -> b c (h _p) (w _q); CRD: b (c _p _q) h w -> b c (h _p) (w _q)")
def depth_to_space(view: OpView) -> list[Axes | None]:
    """Blocks of channels become space: a channel is cut with all the places of its block."""
    b, c, h, w = view.axes(0)
    n = int(view.attr("blocksize"))
    order = [len(c) // n**2, n, n]
    if text_attr(view, "mode", "DCR") == "CRD":
        channel, p, q = view.split(c, order)
    else:
        p, q, channel = view.split(c, order[::-1])
    for block in (p, q):
        view.freeze(block, "block axis of DepthToSpace")
    return [[b, channel, view.merge([h, view.frozen(n)]), view.merge([w, view.frozen(n)])]]


@op("SpaceToDepth", text="b c (h _p) (w _q) -> b (_p _q c) h w; CRD: -> b (c _p _q) h w")
def space_to_depth(view: OpView) -> list[Axes | None]:
    """Space becomes channels: a channel is cut at every place of its block."""
    b, c, h, w = view.axes(0)
    n = int(view.attr("blocksize"))
    rows, p = view.split(h, [len(h) // n, n])
    columns, q = view.split(w, [len(w) // n, n])
    for block in (p, q):
        view.freeze(block, "block axis of SpaceToDepth")
    block = view.frozen(n * n)
    crd = text_attr(view, "mode", "DCR") == "CRD"
    return [[b, view.merge([c, block] if crd else [block, c]), rows, columns]]


@op("Col2Im", text="b (c _k) _l, _, _ -> b c _...")
def col_to_image(view: OpView) -> list[Axes | None]:
    """Columns of patches are put together again; a channel holds one patch of each column."""
    b, ck, columns = view.axes(0)
    block = view.constant(2)
    if block is None:
        raise UnknownShape("its block shape is computed when it runs")
    n = math.prod(int(size) for size in block)
    c, patch = view.split(ck, [len(ck) // n, n])
    view.freeze(patch, "patch axis of Col2Im")
    view.freeze(columns, "spatial axis of Col2Im")
    return [sized(view.out_shape(), {0: b, 1: c}, view)]


# -- transforms ------------------------------------------------------------------------------------------
@op("DFT", text="... _n ... _2 -> ... _m ... _2")
def fourier(view: OpView) -> list[Axes | None]:
    """A linear map along one axis; the axis of real and imaginary parts is no channel either."""
    x = view.axes(0)
    given = np.asarray(view.attr("axis", 1)) if view.opset < 20 else view.constant(2) if view.has(2) else np.asarray(-2)
    if given is None:
        raise UnknownShape("its axis is computed when it runs")
    along = int(given.reshape(-1)[0]) % len(x)
    for i in (along, len(x) - 1):
        view.freeze(x[i], "is transformed by DFT")
    own = {i: axis for i, axis in enumerate(x) if i not in (along, len(x) - 1)}
    return [sized(view.out_shape(), own, view)]


op("STFT", rule="b _..., , _w -> b _...")


@op("CausalConvWithState", text="b c _l, c _i _k, c, b c _s -> b c _l, b c _s")
def causal_conv(view: OpView) -> list[Axes | None]:
    """Depthwise along time, with the last positions handed on."""
    x, weight = view.axes(0), view.axes(1)
    for i, role in ((1, "weight"), (2, "bias")):
        view.weight(i, role)
    for axis in (x[2], *weight[1:]):
        view.freeze(axis, "time or kernel axis of CausalConvWithState")
    channel = view.tie(x[1], weight[0])
    zero = (x[1].zero or view.is_parameter(1)) and (not view.has(2) or view.is_parameter(2))
    if view.has(2):
        view.tie(channel, view.axes(2)[0])
    batch, state_zero = x[0], True
    if view.has(3):
        past = view.axes(3)
        view.freeze(past[2], "time axis of CausalConvWithState")
        view.tie(batch, past[0])
        view.tie(channel, past[1])
        zero, state_zero = zero and (past[1].zero or view.is_parameter(1)), past[1].zero
    out: list[Axes | None] = []
    for j in range(len(view.node.outputs)):
        flag = zero if j == 0 else x[1].zero and state_zero
        own = {0: Axis(batch.rows, False, batch.places), 1: Axis(channel.rows, flag, channel.places)}
        out.append(sized(view.out_shape(j), own, view))
    return out
