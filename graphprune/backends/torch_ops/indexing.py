"""Operators that address by data: gather, scatter, top-k, non-zero, unique, ranges, one-hot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch
import torch.nn.functional as F

from graphprune.backends.torch_ops.dtypes import torch_dtype
from graphprune.backends.torch_ops.registry import Result, lower, traceable

if TYPE_CHECKING:
    from graphprune.backends.torch_call import Call


@traceable
def gather(x: torch.Tensor, index: torch.Tensor, axis: int) -> torch.Tensor:
    """Take indices along an axis; the index's axes take its place. Negative ones count from the end."""
    size = x.shape[axis]
    flat = index.reshape(-1).to(torch.int64)
    flat = torch.where(flat < 0, flat + size, flat)
    taken = x.index_select(axis, flat)
    axis = axis % x.ndim
    return taken if index.ndim == 1 else taken.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


@traceable
def embedding(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Look rows up; negative indices count from the end."""
    index = index.to(torch.int64)
    return F.embedding(torch.where(index < 0, index + table.shape[0], index), table)


@lower("Gather")
def _gather(call: Call) -> Result:
    x, axis = call.tensor(0), int(call.attr("axis", 0))
    found = call.builder.val(call.value(1))
    if found.array is not None and found.array.ndim == 0:
        return call.emit(torch.select, x, axis, int(found.array))
    if found.host is not None and found.rank == 0 and found.node is None:
        return call.emit(torch.select, x, axis, found.host)
    if axis == 0 and call.const_rank(0) == 2:
        return call.emit(embedding, x, call.tensor(1))
    return call.emit(gather, x, call.tensor(1), axis)


@traceable
def gather_elements(x: torch.Tensor, index: torch.Tensor, axis: int) -> torch.Tensor:
    """Take one element per index along an axis."""
    index = index.to(torch.int64)
    return torch.gather(x, axis, torch.where(index < 0, index + x.shape[axis], index))


@lower("GatherElements")
def _gather_elements(call: Call) -> Result:
    return call.emit(gather_elements, call.tensor(0), call.tensor(1), int(call.attr("axis", 0)))


@traceable
def gather_nd(x: torch.Tensor, index: torch.Tensor, batch: int) -> torch.Tensor:
    """Take slices by tuples of indices; the first ``batch`` axes go together."""
    lead, depth = x.shape[:batch], index.shape[-1]
    rows = 1
    for size in lead:
        rows *= size
    flat = x.reshape(rows, *x.shape[batch:])
    tuples = index.reshape(rows, -1, depth).to(torch.int64)
    row = torch.arange(rows, device=x.device)[:, None].expand(-1, tuples.shape[1])
    taken = flat[(row, *tuples.unbind(-1))]
    return taken.reshape(*index.shape[:-1], *x.shape[batch + depth :])


@lower("GatherND")
def _gather_nd(call: Call) -> Result:
    return call.emit(gather_nd, call.tensor(0), call.tensor(1), int(call.attr("batch_dims", 0)))


_MODES = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@traceable
def scatter_elements(
    x: torch.Tensor, index: torch.Tensor, updates: torch.Tensor, axis: int, reduction: str
) -> torch.Tensor:
    """Write (or add, multiply, ...) one element per index along an axis of a copy."""
    index = index.to(torch.int64)
    index = torch.where(index < 0, index + x.shape[axis], index)
    if reduction == "none":
        return torch.scatter(x, axis, index, updates)
    return torch.scatter_reduce(x, axis, index, updates, _MODES[reduction], include_self=True)


@lower("ScatterElements", "Scatter")
def _scatter_elements(call: Call) -> Result:
    return call.emit(scatter_elements, *call.tensors(), int(call.attr("axis", 0)), call.attr("reduction", "none"))


@traceable
def scatter_nd(x: torch.Tensor, index: torch.Tensor, updates: torch.Tensor, reduction: str) -> torch.Tensor:
    """Write (or add, multiply, ...) slices by tuples of indices into a copy."""
    depth = index.shape[-1]
    index = index.to(torch.int64)
    if reduction in ("none", "add"):
        where = tuple(torch.where(i < 0, i + x.shape[k], i) for k, i in enumerate(index.unbind(-1)))
        return x.index_put(where, updates, accumulate=reduction == "add")
    strides = [1] * depth
    for k in reversed(range(depth - 1)):
        strides[k] = strides[k + 1] * x.shape[k + 1]
    flat = sum(torch.where(i < 0, i + x.shape[k], i) * strides[k] for k, i in enumerate(index.unbind(-1)))
    assert isinstance(flat, torch.Tensor)
    rows = x.reshape(strides[0] * x.shape[0] if depth else 1, -1)
    new = updates.reshape(-1, rows.shape[1])
    spread = flat.reshape(-1, 1).expand(-1, rows.shape[1])
    return torch.scatter_reduce(rows, 0, spread, new, _MODES[reduction], include_self=True).reshape(x.shape)


@lower("ScatterND")
def _scatter_nd(call: Call) -> Result:
    return call.emit(scatter_nd, *call.tensors(), call.attr("reduction", "none"))


@traceable
def tensor_scatter(
    past: torch.Tensor, update: torch.Tensor, starts: torch.Tensor | None, axis: int, circular: bool
) -> torch.Tensor:
    """Write new steps of a sequence into a cache, at a place per batch entry."""
    axis = axis % past.ndim
    size, steps = past.shape[axis], update.shape[axis]
    batch = past.shape[0]
    starts = torch.zeros(batch, dtype=torch.int64, device=past.device) if starts is None else starts.to(torch.int64)
    index = starts[:, None] + torch.arange(steps, device=past.device)
    index = index % size if circular else index
    shape = [1] * past.ndim
    shape[0], shape[axis] = batch, steps
    return torch.scatter(past, axis, index.reshape(shape).expand(update.shape), update)


@lower("TensorScatter")
def _tensor_scatter(call: Call) -> Result:
    return call.emit(
        tensor_scatter, call.tensor(0), call.tensor(1), call.optional(2), int(call.attr("axis", -2)),
        call.attr("mode", "linear") == "circular",
    )  # fmt: skip


@traceable
def top_k(x: torch.Tensor, k: Any, axis: int, largest: bool, ordered: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Largest or smallest elements along an axis; of equals, those of lower index first."""
    k = k[0] if isinstance(k, tuple) else k
    work = x
    if x.dtype in (torch.uint16, torch.uint32, torch.uint64):
        work = x.to(torch.int64)
    values, index = torch.sort(work, dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, k).to(x.dtype), index.narrow(axis, 0, k)


@lower("TopK")
def _top_k(call: Call) -> Result:
    k = call.int_input(1) if call.has(1) else int(call.attr("k"))
    made = call.emit(
        top_k, call.tensor(0), k, int(call.attr("axis", -1)), call.flag("largest", 1), call.flag("sorted", 1)
    )
    return call.unpack(made)


@traceable
def non_zero(x: torch.Tensor) -> torch.Tensor:
    """Positions of non-zero elements, one column each, ``int64[rank, n]``."""
    return torch.nonzero(x).t() if x.ndim else torch.nonzero(x.reshape(1)).t()[:0]


@lower("NonZero")
def _non_zero(call: Call) -> Result:
    return call.emit(non_zero, call.tensor(0))


@traceable
def compress(x: torch.Tensor, condition: torch.Tensor, axis: int | None) -> torch.Tensor:
    """Keep what a condition marks along an axis, or of all elements."""
    x, axis = (x.reshape(-1), 0) if axis is None else (x, axis)
    return x.index_select(axis, torch.nonzero(condition).reshape(-1))


@lower("Compress")
def _compress(call: Call) -> Result:
    axis = call.attr("axis")
    return call.emit(compress, call.tensor(0), call.tensor(1), None if axis is None else int(axis))


@traceable
def unique(x: torch.Tensor, axis: int | None, ordered: bool) -> tuple[torch.Tensor, ...]:
    """Distinct elements or slices, first positions, inverse and counts; sorted, or as they first appear."""
    if axis is None:
        x = x.reshape(-1)
    along = 0 if axis is None else axis
    values, inverse, counts = torch.unique(x, sorted=True, return_inverse=True, return_counts=True, dim=along)
    size = x.shape[along]
    positions = torch.arange(size, device=x.device)
    first = torch.full((values.shape[along],), size, device=x.device, dtype=torch.int64)
    first = first.scatter_reduce(0, inverse.reshape(-1), positions, "amin")
    if not ordered:
        order = torch.argsort(first)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=x.device)
        values, first, counts, inverse = values.index_select(along, order), first[order], counts[order], back[inverse]
    return values, first, inverse.reshape(-1), counts


@lower("Unique")
def _unique(call: Call) -> Result:
    axis = call.attr("axis")
    made = call.emit(unique, call.tensor(0), None if axis is None else int(axis), call.flag("sorted", 1))
    return call.unpack(made)


@traceable
def arange(start: Any, limit: Any, step: Any, dtype: torch.dtype | None, like: torch.Tensor | None) -> torch.Tensor:
    """Numbers from ``start`` up to ``limit``."""
    if isinstance(start, torch.Tensor):
        dtype, like = start.dtype, start
    start, limit, step = (v.item() if isinstance(v, torch.Tensor) else v for v in (start, limit, step))
    return torch.arange(start, limit, step, dtype=dtype, device=None if like is None else like.device)


@lower("Range")
def _range(call: Call) -> Result:
    if all(call.builder.hostable(v) for v in call.node.inputs):
        parts = [call.host(i) for i in range(3)]
        found = call.builder.val(call.value(1))
        dtype = torch.int32 if torch.int32 in (call.dtype(0), call.dtype(1), found.dtype) else torch.int64
        return call.emit(arange, *parts, dtype, call.builder.device())
    return call.emit(arange, *call.tensors(), None, None)


@traceable
def one_hot(index: torch.Tensor, depth: Any, values: torch.Tensor, axis: int) -> torch.Tensor:
    """Off and on values: on where the new axis equals the index."""
    depth = depth[0] if isinstance(depth, tuple) else depth
    index = index.to(torch.int64)
    index = torch.where(index < 0, index + depth, index)
    axis = axis % (index.ndim + 1)
    hot = index.unsqueeze(axis) == torch.arange(depth, device=index.device).reshape(-1, *[1] * (index.ndim - axis))
    return torch.where(hot, values[1], values[0])


@lower("OneHot")
def _one_hot(call: Call) -> Result:
    depth = call.const(1)
    size = int(depth.reshape(-1)[0]) if depth is not None else call.emit(as_int, call.tensor(1))
    return call.emit(one_hot, call.tensor(0), size, call.tensor(2), int(call.attr("axis", -1)))


@traceable
def as_int(x: torch.Tensor) -> int:
    """Read one number as an int."""
    return int(x.reshape(-1)[0].item())


@traceable
def triangle(x: torch.Tensor, k: Any, upper: bool) -> torch.Tensor:
    """Keep one side of a diagonal."""
    k = k.item() if isinstance(k, torch.Tensor) else k
    return torch.triu(x, k) if upper else torch.tril(x, k)


@lower("Trilu")
def _trilu(call: Call) -> Result:
    return call.emit(triangle, call.tensor(0), call.int_input(1) if call.has(1) else 0, call.flag("upper", 1))


@traceable
def eye_like(x: torch.Tensor, k: int, dtype: torch.dtype | None) -> torch.Tensor:
    """Ones on a diagonal, in the shape of a matrix."""
    rows, columns = x.shape
    line = torch.arange(rows, device=x.device)[:, None] + k == torch.arange(columns, device=x.device)
    return line.to(dtype or x.dtype)


@lower("EyeLike")
def _eye_like(call: Call) -> Result:
    from graphprune.backends.torch_call import label

    asked = call.attr("dtype")
    dtype = None if asked is None else torch_dtype(ir.DataType(asked), label(call.node))
    return call.emit(eye_like, call.tensor(0), int(call.attr("k", 0)), dtype)


@traceable
def full(shape: tuple[int, ...], value: Any, dtype: torch.dtype, like: torch.Tensor | None) -> torch.Tensor:
    """Return a tensor of one value."""
    return torch.full(shape, value, dtype=dtype, device=None if like is None else like.device)


@lower("ConstantOfShape")
def _constant_of_shape(call: Call) -> Result:
    from graphprune.backends.torch_call import label

    value = call.attr("value")
    dtype = torch.float32 if value is None else torch_dtype(value.dtype, label(call.node))
    number = 0.0 if value is None else value.numpy().reshape(-1)[0].item()
    return call.emit(full, call.ints(0), number, dtype, call.builder.device())


@traceable
def reverse_sequence(x: torch.Tensor, lengths: torch.Tensor, batch: int, time: int) -> torch.Tensor:
    """Reverse the first ``lengths[b]`` steps of every batch entry."""
    size = x.shape[time]
    step = torch.arange(size, device=x.device)[None]
    lengths = lengths.to(torch.int64)[:, None]
    index = torch.where(step < lengths, lengths - 1 - step, step)
    moved = x.movedim((batch, time), (0, 1))
    index = index.reshape(*index.shape, *[1] * (x.ndim - 2)).expand(moved.shape)
    return torch.gather(moved, 1, index).movedim((0, 1), (batch, time))


@lower("ReverseSequence")
def _reverse_sequence(call: Call) -> Result:
    return call.emit(
        reverse_sequence,
        call.tensor(0),
        call.tensor(1),
        int(call.attr("batch_axis", 1)),
        int(call.attr("time_axis", 0)),
    )


@traceable
def non_max_suppression(
    boxes: torch.Tensor, scores: torch.Tensor, limit: Any, overlap: Any, least: Any, centres: bool
) -> torch.Tensor:
    """Best boxes per class that overlap no better one, as ``int64[n, 3]`` of batch, class and box."""
    limit, overlap, least = (
        v.reshape(-1)[0].item() if isinstance(v, torch.Tensor) else v for v in (limit, overlap, least)
    )
    chosen: list[list[int]] = []
    for batch in range(scores.shape[0]):
        table = boxes[batch].double()
        if centres:
            x1, y1 = table[:, 0] - table[:, 2] / 2, table[:, 1] - table[:, 3] / 2
            x2, y2 = table[:, 0] + table[:, 2] / 2, table[:, 1] + table[:, 3] / 2
        else:
            y1, y2 = torch.minimum(table[:, 0], table[:, 2]), torch.maximum(table[:, 0], table[:, 2])
            x1, x2 = torch.minimum(table[:, 1], table[:, 3]), torch.maximum(table[:, 1], table[:, 3])
        area = (x2 - x1) * (y2 - y1)
        for label in range(scores.shape[1]):
            line = scores[batch, label]
            order = torch.argsort(line, descending=True, stable=True)
            if least is not None:
                order = order[line[order] > least]
            count = 0
            while len(order) and count < limit:
                best, rest = order[0], order[1:]
                chosen.append([batch, label, int(best)])
                count += 1
                w = torch.minimum(x2[best], x2[rest]) - torch.maximum(x1[best], x1[rest])
                h = torch.minimum(y2[best], y2[rest]) - torch.maximum(y1[best], y1[rest])
                meet = w.clamp(min=0) * h.clamp(min=0)
                order = rest[meet <= overlap * (area[best] + area[rest] - meet)]
    return torch.tensor(chosen, dtype=torch.int64, device=boxes.device).reshape(-1, 3)


@lower("NonMaxSuppression")
def _non_max_suppression(call: Call) -> Result:
    def given(index: int, default: Any) -> Any:
        array = call.const(index)
        return call.tensor(index) if call.has(index) and array is None else call.number(index, default)

    return call.emit(
        non_max_suppression, call.tensor(0), call.tensor(1), given(2, 0), given(3, 0.0), given(4, None),
        call.flag("center_point_box"),
    )  # fmt: skip
