"""Operators that move elements, and those that make them from nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch.fx import Node

from graphprune.frontends.aten.writer import DTYPES, Unknown, Writer, aten, meta

_END = (1 << 63) - 1


def _sizes(shape: Sequence[Any]) -> list[int]:
    if not all(type(n) is int for n in shape):
        raise Unknown("sizes that are computed")
    return list(shape)


def _reshape(write: Writer, x: Node, shape: Sequence[Any]) -> ir.Value:
    sizes = _sizes(shape)
    if 0 in sizes:
        raise Unknown("nothing")
    return write.op("Reshape", [write.of(x), write.constant(np.array(sizes, np.int64))])


aten("view.default", "reshape.default", "_unsafe_view.default")(_reshape)


@aten("flatten.using_ints")
def _flatten(write: Writer, x: Node, start: int, end: int) -> ir.Value:
    shape = list(meta(x).shape)
    start, end = start % max(len(shape), 1), end % max(len(shape), 1)
    return _reshape(write, x, [*shape[:start], int(np.prod(shape[start : end + 1], dtype=np.int64)), *shape[end + 1 :]])


@aten("unflatten.int")
def _unflatten(write: Writer, x: Node, axis: int, sizes: Sequence[int]) -> ir.Value:
    shape = list(meta(x).shape)
    axis %= len(shape)
    return _reshape(write, x, [*shape[:axis], *sizes, *shape[axis + 1 :]])


def _turn(write: Writer, x: Node, order: Sequence[int]) -> Any:
    if list(order) == list(range(len(order))):
        return write.of(x)
    return write.op("Transpose", [write.of(x)], {"perm": list(order)})


@aten("transpose.int")
def _transpose(write: Writer, x: Node, a: int, b: int) -> Any:
    order = list(range(meta(x).ndim))
    order[a], order[b] = order[b], order[a]
    return _turn(write, x, order)


@aten("permute.default")
def _permute(write: Writer, x: Node, order: Sequence[int]) -> Any:
    return _turn(write, x, [axis % len(order) for axis in order])


@aten("t.default", "numpy_T.default")
def _t(write: Writer, x: Node) -> Any:
    return _turn(write, x, list(range(meta(x).ndim))[::-1])


@aten("unsqueeze.default")
def _unsqueeze(write: Writer, x: Node, axis: int) -> ir.Value:
    return write.op("Unsqueeze", [write.of(x), write.constant([axis])])


@aten("squeeze.dim")
def _squeeze(write: Writer, x: Node, axis: int) -> Any:
    if meta(x).shape[axis] != 1:
        return write.of(x)
    return write.op("Squeeze", [write.of(x), write.constant([axis])])


@aten("expand.default")
def _expand(write: Writer, x: Node, shape: Sequence[Any], _implicit: bool) -> ir.Value:
    sizes = [1 if n == -1 else n for n in _sizes(shape)]
    return write.op("Expand", [write.of(x), write.constant(np.array(sizes, np.int64))])


@aten("cat.default")
def _cat(write: Writer, tensors: Sequence[Node], axis: int) -> ir.Value:
    if len({meta(t).dtype for t in tensors}) > 1 or any(0 in meta(t).shape for t in tensors):
        raise Unknown("pieces of several kinds")
    return write.op("Concat", [write.of(t) for t in tensors], {"axis": axis})


@aten("stack.default")
def _stack(write: Writer, tensors: Sequence[Node], axis: int) -> ir.Value:
    if len({meta(t).dtype for t in tensors}) > 1:
        raise Unknown("pieces of several types")
    axis %= meta(tensors[0]).ndim + 1
    where = write.constant([axis])
    return write.op("Concat", [write.op("Unsqueeze", [write.of(t), where]) for t in tensors], {"axis": axis})


def _split(write: Writer, x: Node, sizes: Sequence[int], axis: int) -> list[ir.Value]:
    return write.ops("Split", [write.of(x), write.constant(np.array(sizes, np.int64))], {"axis": axis}, len(sizes))


@aten("split.Tensor")
def _split_every(write: Writer, x: Node, size: int, axis: int) -> list[ir.Value]:
    n = meta(x).shape[axis]
    return _split(write, x, [min(size, n - start) for start in range(0, n, size)], axis)


@aten("chunk.default")
def _chunk(write: Writer, x: Node, count: int, axis: int) -> list[ir.Value]:
    return _split_every(write, x, -(-meta(x).shape[axis] // count), axis)


@aten("split_with_sizes.default", "split.sizes")
def _split_sizes(write: Writer, x: Node, sizes: Sequence[int], axis: int) -> list[ir.Value]:
    return _split(write, x, _sizes(sizes), axis)


@aten("slice.Tensor")
def _slice(write: Writer, x: Node, axis: int, start: Any, end: Any, step: int) -> Any:
    start, end = 0 if start is None else start, _END if end is None else end
    _sizes([start, end, step])
    if start == 0 and end >= meta(x).shape[axis] and step == 1:
        return write.of(x)
    return write.op("Slice", [write.of(x), *(write.constant([n]) for n in (start, end, axis, step))])


@aten("select.int")
def _select(write: Writer, x: Node, axis: int, index: int) -> ir.Value:
    _sizes([index])
    return write.op("Gather", [write.of(x), write.constant(index)], {"axis": axis})


@aten("index_select.default")
def _index_select(write: Writer, x: Node, axis: int, indices: Node) -> ir.Value:
    return write.op("Gather", [write.of(x), write.of(indices)], {"axis": axis})


@aten("index.Tensor")
def _index(write: Writer, x: Node, indices: Sequence[Node | None]) -> ir.Value:
    found = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    if not found or any(meta(index).dtype not in (torch.int64, torch.int32) for _, index in found):
        raise Unknown("an index by truths")
    if len(found) == 1:
        return write.op("Gather", [write.of(x), write.of(found[0][1])], {"axis": found[0][0]})
    if [axis for axis, _ in found] != list(range(len(found))) or meta(x).dtype.is_floating_point:
        raise Unknown("an index into several axes")
    shape = np.broadcast_shapes(*(tuple(meta(index).shape) for _, index in found))
    target, last = write.constant(np.array(shape, np.int64)), write.constant([-1])
    parts = [write.op("Expand", [write.cast(write.of(i), meta(i).dtype, torch.int64), target]) for _, i in found]
    where = write.op("Concat", [write.op("Unsqueeze", [part, last]) for part in parts], {"axis": -1})
    return write.op("GatherND", [write.of(x), where])


@aten("diff.default")
def _diff(write: Writer, x: Node, n: int, axis: int, before: Any, after: Any) -> ir.Value:
    if n != 1 or meta(x).dtype == torch.bool:
        raise Unknown("a difference of another order")
    whole = [write.of(part) for part in (before, x, after) if part is not None]
    joined = write.op("Concat", whole, {"axis": axis}) if len(whole) > 1 else whole[0]
    along, first = write.constant([axis]), write.constant([0])
    later = write.op("Slice", [joined, write.constant([1]), write.constant([_END]), along])
    return write.op("Sub", [later, write.op("Slice", [joined, first, write.constant([-1]), along])])


@aten("arange.default")
def _arange(write: Writer, end: Any, *_: Any) -> ir.Value:
    return _arange_step(write, 0, end, 1)


@aten("arange.start")
def _arange_start(write: Writer, start: Any, end: Any, *_: Any) -> ir.Value:
    return _arange_step(write, start, end, 1)


@aten("arange.start_step")
def _arange_step(write: Writer, start: Any, end: Any, step: Any, *_: Any) -> ir.Value:
    assert write.node is not None
    dtype = meta(write.node).dtype
    if dtype not in (torch.int64, torch.int32, torch.float32) or not all(
        type(n) in (int, float) for n in (start, end, step)
    ):
        raise Unknown("a range of another kind")
    return write.op("Range", [write.constant(n, dtype) for n in (start, end, step)])


def _full(write: Writer, number: Any) -> ir.Value:
    assert write.node is not None
    like = meta(write.node)
    shape = write.constant(np.array(like.shape, np.int64))
    if like.dtype not in DTYPES or not isinstance(number, (int, float)):
        raise Unknown("a number of another kind")
    return write.op("Expand", [write.constant(number, like.dtype), shape])


@aten("full.default", "full_like.default", "new_full.default")
def _full_of(write: Writer, _like: Any, number: Any, *_: Any) -> ir.Value:
    return _full(write, number)


@aten("zeros.default", "zeros_like.default", "new_zeros.default")
def _zeros(write: Writer, *_: Any) -> ir.Value:
    return _full(write, 0)


@aten("ones.default", "ones_like.default", "new_ones.default")
def _ones(write: Writer, *_: Any) -> ir.Value:
    return _full(write, 1)
