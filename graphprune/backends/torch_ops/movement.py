"""Operators that move, repeat, cut and join: nothing is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from graphprune.backends.torch_ops.registry import Result, lower, traceable

if TYPE_CHECKING:
    from graphprune.backends.torch_call import Call


@traceable
def reshape(x: torch.Tensor, shape: tuple[int, ...], allow_zero: bool = False) -> torch.Tensor:
    """Reshape; 0 keeps the size of that axis unless ``allow_zero``, -1 is what is left."""
    if not allow_zero and 0 in shape:
        shape = tuple(x.shape[i] if size == 0 else size for i, size in enumerate(shape))
        if x.numel() == 0 and -1 in shape:
            rest = 1
            for size in shape:
                rest *= 1 if size == -1 else size
            shape = tuple((x.numel() // rest if rest else 0) if size == -1 else size for size in shape)
    return torch.reshape(x, shape)


@lower("Reshape")
def _reshape(call: Call) -> Result:
    target = call.ints(1) if call.has(1) else call.attr("shape")
    allow_zero = call.flag("allowzero")
    if isinstance(target, tuple) and (0 not in target or allow_zero):
        return call.emit(torch.reshape, call.tensor(0), target)
    return call.emit(reshape, call.tensor(0), target, allow_zero)


@traceable
def flatten(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Make a matrix: axes before ``axis``, and the others."""
    axis = axis + x.ndim if axis < 0 else axis
    rows = 1
    for size in x.shape[:axis]:
        rows *= size
    return x.reshape(rows, -1) if x.numel() else x.reshape(rows, x[(0,) * axis].numel() if rows else 0)


@lower("Flatten")
def _flatten(call: Call) -> Result:
    axis = int(call.attr("axis", 1))
    if axis == 1 and (call.const_rank(0) or 0) >= 2:
        return call.emit(torch.flatten, call.tensor(0), 1)
    return call.emit(flatten, call.tensor(0), axis)


@traceable
def transpose(x: torch.Tensor) -> torch.Tensor:
    """Reverse the axes."""
    return x.permute(*reversed(range(x.ndim)))


@lower("Transpose")
def _transpose(call: Call) -> Result:
    perm = call.attr("perm")
    return call.emit(transpose, call.tensor(0)) if perm is None else call.emit(torch.permute, call.tensor(0), perm)


@lower("Concat")
def _concat(call: Call) -> Result:
    parts = call.tensors()
    return parts[0] if len(parts) == 1 else call.emit(torch.cat, parts, int(call.attr("axis", 1)))


@traceable
def split(x: torch.Tensor, sizes: tuple[int, ...], axis: int) -> tuple[torch.Tensor, ...]:
    """Cut along an axis into pieces of given sizes."""
    return torch.split(x, list(sizes), axis)


@traceable
def split_evenly(x: torch.Tensor, count: int, axis: int) -> tuple[torch.Tensor, ...]:
    """Cut along an axis into pieces of one size, the last of which may be smaller."""
    return torch.split(x, -(-x.shape[axis] // count), axis)


@lower("Split")
def _split(call: Call) -> Result:
    axis = int(call.attr("axis", 0))
    if call.has(1):
        return call.unpack(call.emit(split, call.tensor(0), call.ints(1), axis))
    sizes = call.attr("split")
    if sizes is not None:
        return call.unpack(call.emit(split, call.tensor(0), sizes, axis))
    return call.unpack(call.emit(split_evenly, call.tensor(0), int(call.attr("num_outputs", call.outputs)), axis))


@traceable
def slice_axes(x: torch.Tensor, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> torch.Tensor:
    """Slice along axes, clamping as ONNX does; steps may be negative."""
    axes = range(len(starts)) if axes is None else axes
    index: list[Any] = [slice(None)] * x.ndim
    for i, axis in enumerate(axes):
        step, size = 1 if steps is None else steps[i], x.shape[axis]
        start, end = starts[i], ends[i]
        if step > 0:
            index[axis] = slice(start, end, step)
            continue
        start = min(start + size if start < 0 else start, size - 1)
        end = max(end + size if end < 0 else end, -1)
        index[axis] = torch.arange(start, end, step, device=x.device) if start > end else slice(0, 0)
    for axis, part in enumerate(index):
        if isinstance(part, torch.Tensor):
            x, index[axis] = x.index_select(axis, part), slice(None)
    return x[tuple(index)]


@lower("Slice")
def _slice(call: Call) -> Result:
    x = call.tensor(0)
    if call.version < 10:
        starts, ends, axes, steps = call.attr("starts"), call.attr("ends"), call.attr("axes"), None
    else:
        starts, ends = call.ints(1), call.ints(2)
        axes = call.ints(3) if call.has(3) else None
        steps = call.ints(4) if call.has(4) else None
    known = [v is None or isinstance(v, tuple) for v in (starts, ends, axes, steps)]
    if all(known):
        axes = tuple(range(len(starts))) if axes is None else axes
        steps = steps or (1,) * len(starts)
        rank = call.const_rank(0)
        if rank is not None:
            axes = tuple(a % rank for a in axes)
        if min(steps, default=1) > 0 and axes and (min(axes) >= 0 or max(axes) < 0):
            parts = {a: slice(s, e, t) for a, s, e, t in zip(axes, starts, ends, steps, strict=True)}
            full = [slice(None)] * (max(axes) + 1 if min(axes) >= 0 else -min(axes))
            for axis, part in parts.items():
                full[axis] = part
            import operator

            return call.emit(operator.getitem, x, tuple(full) if min(axes) >= 0 else (..., *full))
    return call.emit(slice_axes, x, starts, ends, axes, steps)


@traceable
def squeeze(x: torch.Tensor, axes: tuple[int, ...] | None) -> torch.Tensor:
    """Drop axes of size one: those given, or all."""
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


@lower("Squeeze")
def _squeeze(call: Call) -> Result:
    axes = call.ints(1) if call.has(1) else call.attr("axes")
    return call.emit(torch.squeeze, call.tensor(0), axes) if isinstance(axes, tuple) else call.emit(
        squeeze, call.tensor(0), axes
    )  # fmt: skip


@traceable
def unsqueeze(x: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    """Put in axes of size one; ``axes`` are positions in the result."""
    rank = x.ndim + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


@lower("Unsqueeze")
def _unsqueeze(call: Call) -> Result:
    axes = call.ints(1) if call.has(1) else call.attr("axes")
    if isinstance(axes, tuple) and len(axes) == 1:
        return call.emit(torch.unsqueeze, call.tensor(0), axes[0])
    return call.emit(unsqueeze, call.tensor(0), axes)


@lower("com.microsoft::ExpandDims")
def _expand_dims(call: Call) -> Result:
    return call.emit(torch.unsqueeze, call.tensor(0), call.int_input(1))


@traceable
def expand(x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Broadcast both ways: a size of one in ``shape`` keeps the axis of ``x``."""
    extra = len(shape) - x.ndim
    if extra < 0:
        shape, extra = (1,) * -extra + tuple(shape), 0
    return x.expand(*(s if i < extra or s != 1 else x.shape[i - extra] for i, s in enumerate(shape)))


@lower("Expand")
def _expand(call: Call) -> Result:
    return call.emit(expand, call.tensor(0), call.ints(1))


@traceable
def tile(x: torch.Tensor, repeats: tuple[int, ...]) -> torch.Tensor:
    """Repeat along every axis."""
    return x.repeat(*repeats) if x.ndim else x


@lower("Tile")
def _tile(call: Call) -> Result:
    if call.version < 6:
        raise call.refuse("Tile before opset 6 is not supported: convert the model with onnx.version_converter")
    return call.emit(tile, call.tensor(0), call.ints(1))


@traceable
def pad(x: torch.Tensor, pads: tuple[int, ...], mode: str, value: Any, axes: tuple[int, ...] | None) -> torch.Tensor:
    """Pad axes; negative amounts crop. Modes: constant, reflect, edge, wrap."""
    rank = x.ndim
    if axes is not None:
        full = [0] * 2 * rank
        for i, axis in enumerate(axes):
            full[axis % rank], full[rank + axis % rank] = pads[i], pads[len(axes) + i]
        pads = tuple(full)
    if mode == "constant":
        flat = [p for axis in reversed(range(rank)) for p in (pads[axis], pads[rank + axis])]
        number = 0 if value is None else value
        if isinstance(number, torch.Tensor):
            number = number.reshape(()).item()
        if x.dtype == torch.bool:
            return F.pad(x.to(torch.uint8), flat, value=int(number)).to(torch.bool)
        return F.pad(x, flat, value=number)
    for axis in range(rank):
        before, after = pads[axis], pads[rank + axis]
        if before or after:
            size = x.shape[axis]
            index = torch.arange(-before, size + after, device=x.device)
            if mode == "edge":
                index = index.clamp(0, size - 1)
            elif mode == "wrap":
                index = index % size
            else:
                period = max(2 * (size - 1), 1)
                index = index % period
                index = torch.where(index >= size, period - index, index)
            x = x.index_select(axis, index)
    return x


@lower("Pad")
def _pad(call: Call) -> Result:
    mode = call.attr("mode", "constant")
    if call.version < 11:
        pads, value, axes = call.attr("pads"), call.attr("value", 0.0), None
    else:
        pads = call.ints(1)
        constant = call.const(2)
        value = call.optional(2) if constant is None else constant.reshape(-1)[0].item() if constant.size else 0
        axes = call.ints(3) if call.has(3) else None
    return call.emit(pad, call.tensor(0), pads, mode, value, axes)


@traceable
def depth_to_space(x: torch.Tensor, block: int, columns: bool) -> torch.Tensor:
    """Move channels into blocks of space; ``columns`` is the CRD order of channels."""
    n, c, h, w = x.shape
    if columns:
        parts = x.reshape(n, c // block**2, block, block, h, w).permute(0, 1, 4, 2, 5, 3)
    else:
        parts = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // block**2, h * block, w * block)


@lower("DepthToSpace")
def _depth_to_space(call: Call) -> Result:
    return call.emit(depth_to_space, call.tensor(0), int(call.attr("blocksize")), call.attr("mode", "DCR") == "CRD")


@traceable
def space_to_depth(x: torch.Tensor, block: int, columns: bool = False) -> torch.Tensor:
    """Move blocks of space into channels."""
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // block, block, w // block, block)
    parts = parts.permute(0, 1, 3, 5, 2, 4) if columns else parts.permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * block**2, h // block, w // block)


@lower("SpaceToDepth")
def _space_to_depth(call: Call) -> Result:
    return call.emit(space_to_depth, call.tensor(0), int(call.attr("blocksize")), call.attr("mode", "DCR") == "CRD")


@traceable
def center_crop_pad(x: torch.Tensor, shape: tuple[int, ...], axes: tuple[int, ...] | None) -> torch.Tensor:
    """Crop or pad with zeros around the centre to given sizes."""
    for i, axis in enumerate(range(x.ndim) if axes is None else axes):
        size, want = x.shape[axis], shape[i]
        if want < size:
            x = x.narrow(axis, (size - want) // 2, want)
        elif want > size:
            before = (want - size) // 2
            flat = [0] * 2 * (x.ndim - axis % x.ndim)
            flat[-2:] = [before, want - size - before]
            x = F.pad(x, flat)
    return x


@lower("CenterCropPad")
def _center_crop_pad(call: Call) -> Result:
    return call.emit(center_crop_pad, call.tensor(0), call.ints(1), call.attr("axes"))
