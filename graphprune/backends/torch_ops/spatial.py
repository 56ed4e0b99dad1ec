"""Pooling, resizing and sampling over spatial axes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from graphprune.backends.torch_ops.linear import same_pads, torch_pads, window
from graphprune.backends.torch_ops.registry import Result, lower, traceable

if TYPE_CHECKING:
    from graphprune.backends.torch_call import Call

_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


@traceable
def global_average_pool(x: torch.Tensor) -> torch.Tensor:
    """Average over all spatial axes, which stay as ones."""
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


@traceable
def global_max_pool(x: torch.Tensor) -> torch.Tensor:
    """Largest value over all spatial axes, which stay as ones."""
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)


@lower("GlobalAveragePool")
def _global_average(call: Call) -> Result:
    return call.emit(F.adaptive_avg_pool2d, call.tensor(0), 1) if call.const_rank(0) == 4 else call.emit(
        global_average_pool, call.tensor(0)
    )  # fmt: skip


@lower("GlobalMaxPool")
def _global_max(call: Call) -> Result:
    return call.emit(global_max_pool, call.tensor(0))


@traceable
def global_lp_pool(x: torch.Tensor, p: int) -> torch.Tensor:
    """Norm over all spatial axes, which stay as ones."""
    y: torch.Tensor = torch.linalg.vector_norm(x, p, tuple(range(2, x.ndim)), keepdim=True)
    return y


@lower("GlobalLpPool")
def _global_lp(call: Call) -> Result:
    return call.emit(global_lp_pool, call.tensor(0), int(call.attr("p", 2)))


def _geometry(
    sizes: tuple[int, ...], kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...],
    pads: tuple[int, ...], auto: str, ceil: bool,
) -> tuple[list[int], list[int], list[int]]:  # fmt: skip
    """Return padding before, after and the number of windows of each axis."""
    rank = len(kernel)
    before, after, count = list(pads[:rank]), list(pads[rank:]), []
    for axis, size in enumerate(sizes):
        span = (kernel[axis] - 1) * dilations[axis] + 1
        if auto.startswith("SAME"):
            before[axis], after[axis] = same_pads(
                size, kernel[axis], strides[axis], dilations[axis], auto == "SAME_UPPER"
            )
        room = size + before[axis] + after[axis] - span
        number = (-(-room // strides[axis]) if ceil else room // strides[axis]) + 1
        if ceil and (number - 1) * strides[axis] >= size + before[axis]:
            number -= 1  # a window that would begin in the padding after the end is left out
        count.append(number)
    return before, after, count


def windows(
    x: torch.Tensor, kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...],
    before: list[int], after: list[int], count: list[int], fill: float,
) -> torch.Tensor:  # fmt: skip
    """Return all windows of the padded input, ``[n, c, *windows, *kernel]``."""
    rank = len(kernel)
    ends = []
    for axis in range(rank):
        need = (count[axis] - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1
        ends.append(need - x.shape[2 + axis] - before[axis])
    x = F.pad(x, torch_pads((*before, *ends)), value=fill)
    for axis in range(rank):
        start = torch.arange(count[axis], device=x.device)[:, None] * strides[axis]
        index = start + torch.arange(kernel[axis], device=x.device) * dilations[axis]
        place = 2 + 2 * axis
        shape = (*x.shape[:place], count[axis], kernel[axis], *x.shape[place + 1 :])
        x = x.index_select(place, index.reshape(-1)).reshape(shape)
    order = [0, 1, *range(2, 2 + 2 * rank, 2), *range(3, 3 + 2 * rank, 2)]
    return x.permute(order)


@traceable
def max_pool(
    x: torch.Tensor, kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...],
    pads: tuple[int, ...], auto: str, ceil: bool, columns: bool, indices: bool,
) -> Any:  # fmt: skip
    """Largest value of each window; with ``indices``, where it stood in the whole input."""
    rank, sizes, dtype = len(kernel), x.shape[2:], x.dtype
    before, after, count = _geometry(tuple(sizes), kernel, strides, dilations, pads, auto, ceil)
    work = x if x.is_floating_point() else x.to(torch.float64)
    frames = windows(work, kernel, strides, dilations, before, after, count, -math.inf)
    flat = frames.reshape(*frames.shape[: 2 + rank], -1)
    values, best = flat.max(-1)
    if not indices:
        return values.to(dtype)
    place = torch.zeros_like(best)
    taps = 1
    strides_of = [1] * rank
    for axis in range(rank - 2, -1, -1):
        strides_of[axis] = strides_of[axis + 1] * sizes[axis + 1]
    if columns:
        strides_of = [1] * rank
        for axis in range(1, rank):
            strides_of[axis] = strides_of[axis - 1] * sizes[axis - 1]
    for axis in reversed(range(rank)):
        tap = (best // taps) % kernel[axis]
        taps *= kernel[axis]
        start = torch.arange(count[axis], device=x.device) * strides[axis] - before[axis]
        start = start.reshape([-1] + [1] * (rank - 1 - axis))
        place = place + (start + tap * dilations[axis]) * strides_of[axis]
    plane = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(x.shape[0], x.shape[1], *[1] * rank)
    return values.to(dtype), place + plane * math.prod(sizes)


@lower("MaxPool")
def _max_pool(call: Call) -> Result:
    kernel = call.attr("kernel_shape")
    rank = len(kernel)
    strides, dilations, pads, auto = window(call, rank)
    ceil = call.flag("ceil_mode")
    before, after = pads[:rank], pads[rank:]
    fits = before == after and all(2 * p <= k for p, k in zip(before, kernel, strict=True))
    plain = rank in _MAX and not auto.startswith("SAME") and call.is_float(0) and not call.wants(1)
    if plain and fits:
        return call.emit(_MAX[rank], call.tensor(0), kernel, strides, before, dilations, ceil)
    if plain and not ceil:
        padded = call.emit(F.pad, call.tensor(0), torch_pads(pads), value=-math.inf)
        return call.emit(_MAX[rank], padded, kernel, strides, 0, dilations)
    columns = call.flag("storage_order")
    made = call.emit(max_pool, call.tensor(0), kernel, strides, dilations, pads, auto, ceil, columns, call.wants(1))
    return call.unpack(made) if call.wants(1) else made


@traceable
def average_pool(
    x: torch.Tensor, kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...],
    pads: tuple[int, ...], auto: str, ceil: bool, count_pad: bool,
) -> torch.Tensor:  # fmt: skip
    """Average of each window, padding counted or not; what lies beyond the padding never counts."""
    before, after, count = _geometry(tuple(x.shape[2:]), kernel, strides, dilations, pads, auto, ceil)
    rank = len(kernel)
    dims = tuple(range(-rank, 0))
    total = windows(x, kernel, strides, dilations, before, after, count, 0.0).sum(dims)
    ones = x.new_ones(1, 1, *x.shape[2:])
    if count_pad:
        ones = F.pad(ones, torch_pads((*before, *after)), value=1.0)
        before = [0] * rank
    share = windows(ones, kernel, strides, dilations, before, after, count, 0.0).sum(dims)
    return total / share


_AVERAGE: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@lower("AveragePool")
def _average_pool(call: Call) -> Result:
    kernel = call.attr("kernel_shape")
    rank = len(kernel)
    strides, dilations, pads, auto = window(call, rank)
    ceil, count_pad = call.flag("ceil_mode"), call.flag("count_include_pad")
    before, after = pads[:rank], pads[rank:]
    fits = before == after and all(2 * p <= k for p, k in zip(before, kernel, strict=True))
    if rank in _AVERAGE and fits and not auto.startswith("SAME") and set(dilations) == {1}:
        return call.emit(_AVERAGE[rank], call.tensor(0), kernel, strides, before, ceil, count_pad)
    return call.emit(average_pool, call.tensor(0), kernel, strides, dilations, pads, auto, ceil, count_pad)


@traceable
def lp_pool(
    x: torch.Tensor, kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...],
    pads: tuple[int, ...], auto: str, ceil: bool, p: int,
) -> torch.Tensor:  # fmt: skip
    """Norm of each window."""
    before, after, count = _geometry(tuple(x.shape[2:]), kernel, strides, dilations, pads, auto, ceil)
    frames = windows(x, kernel, strides, dilations, before, after, count, 0.0)
    y: torch.Tensor = torch.linalg.vector_norm(frames.reshape(*frames.shape[: 2 + len(kernel)], -1), p, -1)
    return y


@lower("LpPool")
def _lp_pool(call: Call) -> Result:
    kernel = call.attr("kernel_shape")
    strides, dilations, pads, auto = window(call, len(kernel))
    return call.emit(
        lp_pool, call.tensor(0), kernel, strides, dilations, pads, auto, call.flag("ceil_mode"), int(call.attr("p", 2))
    )


@traceable
def max_unpool(
    x: torch.Tensor, index: torch.Tensor, kernel: tuple[int, ...], strides: tuple[int, ...], pads: tuple[int, ...],
    shape: tuple[int, ...] | None,
) -> torch.Tensor:  # fmt: skip
    """Put values back where MaxPool found them, zero elsewhere."""
    rank = len(kernel)
    spatial = tuple(
        (x.shape[2 + a] - 1) * strides[a] - pads[a] - pads[rank + a] + kernel[a] for a in range(rank)
    )  # what MaxPool had seen: the indices count in it
    plane = math.prod(spatial)
    lines = x.reshape(x.shape[0], x.shape[1], -1)
    places = index.reshape(lines.shape) % plane
    y = torch.zeros(*lines.shape[:2], plane, dtype=x.dtype, device=x.device).scatter(2, places, lines)
    y = y.reshape(*x.shape[:2], *spatial)
    if shape is None:
        return y
    return F.pad(y, [p for a in reversed(range(rank)) for p in (0, shape[2 + a] - spatial[a])])


@lower("MaxUnpool")
def _max_unpool(call: Call) -> Result:
    kernel = call.attr("kernel_shape")
    strides, _, pads, _ = window(call, len(kernel))
    shape = call.ints(2) if call.has(2) else None
    return call.emit(max_unpool, call.tensor(0), call.tensor(1), kernel, strides, pads, shape)


@traceable
def affine_grid(theta: torch.Tensor, size: tuple[int, ...], aligned: bool) -> torch.Tensor:
    """Grid of sampling positions of an affine transform."""
    return F.affine_grid(theta, list(size), align_corners=aligned)


@lower("AffineGrid")
def _affine_grid(call: Call) -> Result:
    return call.emit(affine_grid, call.tensor(0), call.ints(1), call.flag("align_corners"))


_SAMPLE = {"linear": "bilinear", "bilinear": "bilinear", "cubic": "bicubic", "bicubic": "bicubic", "nearest": "nearest"}


@lower("GridSample")
def _grid_sample(call: Call) -> Result:
    mode = _SAMPLE[call.attr("mode", "linear")]
    padding = call.attr("padding_mode", "zeros")
    return call.emit(
        F.grid_sample, call.tensor(0), call.tensor(1), mode=mode, padding_mode=padding,
        align_corners=call.flag("align_corners"),
    )  # fmt: skip


@traceable
def col_to_im(
    x: torch.Tensor, image: tuple[int, ...], block: tuple[int, ...], strides: tuple[int, ...] | None,
    dilations: tuple[int, ...] | None, pads: tuple[int, ...] | None,
) -> torch.Tensor:  # fmt: skip
    """Add up blocks where they overlap: the reverse of taking windows, for any number of axes."""
    rank = len(image)
    strides, dilations, pads = strides or (1,) * rank, dilations or (1,) * rank, pads or (0,) * 2 * rank
    batch, channels = x.shape[0], x.shape[1] // math.prod(block)
    full = [image[a] + pads[a] + pads[rank + a] for a in range(rank)]
    count = [(full[a] - (block[a] - 1) * dilations[a] - 1) // strides[a] + 1 for a in range(rank)]
    place = torch.zeros([1] * 2 * rank, dtype=torch.int64, device=x.device)
    step = 1
    for axis in reversed(range(rank)):
        taps = torch.arange(block[axis], device=x.device) * dilations[axis] * step
        start = torch.arange(count[axis], device=x.device) * strides[axis] * step
        place = place + taps.reshape([-1 if i == axis else 1 for i in range(2 * rank)])
        place = place + start.reshape([-1 if i == rank + axis else 1 for i in range(2 * rank)])
        step *= full[axis]
    y = torch.zeros(batch, channels, step, dtype=x.dtype, device=x.device)
    y = y.index_add(2, place.reshape(-1), x.reshape(batch, channels, -1)).reshape(batch, channels, *full)
    return F.pad(y, [-p for p in torch_pads(pads)])


@lower("Col2Im")
def _col_to_im(call: Call) -> Result:
    return call.emit(
        col_to_im, call.tensor(0), call.ints(1), call.ints(2), call.attr("strides"), call.attr("dilations"),
        call.attr("pads"),
    )  # fmt: skip


@traceable
def roi_align(
    x: torch.Tensor, rois: torch.Tensor, batch: torch.Tensor, height: int, width: int, ratio: int, scale: float,
    largest: bool, half: bool,
) -> torch.Tensor:  # fmt: skip
    """Pool regions of an image to one size by bilinear samples."""
    shift = 0.5 if half else 0.0
    pooled = []
    for roi, index in zip(rois, batch.tolist(), strict=True):
        x1, y1, x2, y2 = (roi * scale - shift).unbind(0)
        wide, high = x2 - x1, y2 - y1
        if not half:
            wide, high = wide.clamp(min=1.0), high.clamp(min=1.0)
        ny = ratio if ratio > 0 else int(torch.ceil(high / height))
        nx = ratio if ratio > 0 else int(torch.ceil(wide / width))
        ys = y1 + (torch.arange(height * ny, device=x.device) + 0.5) * high / (height * ny)
        xs = x1 + (torch.arange(width * nx, device=x.device) + 0.5) * wide / (width * nx)
        rows, columns = _corners(ys, x.shape[2]), _corners(xs, x.shape[3])
        image = x[int(index)]
        if largest:  # the largest of the four weighted corners, as ONNX defines it
            corners = [image[:, r][:, :, c] * (wr[:, None] * wc) for r, wr in rows for c, wc in columns]
            samples = torch.stack(corners).amax(0)
        else:
            along = sum(image[:, r] * wr[:, None] for r, wr in rows)
            assert isinstance(along, torch.Tensor)
            both = sum(along[:, :, c] * wc for c, wc in columns)
            assert isinstance(both, torch.Tensor)
            samples = both
        cells = samples.reshape(x.shape[1], height, ny, width, nx)
        pooled.append(cells.amax((2, 4)) if largest else cells.mean((2, 4)))
    return torch.stack(pooled) if pooled else x.new_zeros(0, x.shape[1], height, width)


def _corners(at: torch.Tensor, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Both neighbours of each position and their weights; outside of the image by more than one, zero."""
    inside = ((at >= -1) & (at <= size)).to(at.dtype)
    at = at.clamp(min=0)
    low = at.floor().to(torch.int64).clamp(max=size - 1)
    high = (low + 1).clamp(max=size - 1)
    part = torch.where(low >= size - 1, torch.zeros_like(at), at - low)
    return [(low, (1 - part) * inside), (high, part * inside)]


@lower("RoiAlign")
def _roi_align(call: Call) -> Result:
    half = call.attr("coordinate_transformation_mode", "half_pixel" if call.version >= 16 else "output_half_pixel")
    return call.emit(
        roi_align, call.tensor(0), call.tensor(1), call.tensor(2), int(call.attr("output_height", 1)),
        int(call.attr("output_width", 1)), int(call.attr("sampling_ratio", 0)), call.attr("spatial_scale", 1.0),
        call.attr("mode", "avg") == "max", half == "half_pixel",
    )  # fmt: skip
