"""Attention as one op: heads and the lanes within them side by side.

A query head lives with its key-value head: the repeats between them are frozen. Queries and keys share their
lanes, values have lanes of their own. Where lanes are cut, the softmax scale that an op derives from their
number is pinned to what the source had.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from graphprune.rules import Axes, Axis, OpView, UnknownShape, op

if TYPE_CHECKING:
    from graphprune.cut import Cut

SUMMED = "is summed over where the removed values need not be zero"
_SHARED = "query heads that share a key head live and die with it"


@dataclass(frozen=True)
class Stack:
    """Queries, keys or values: key-value heads and lanes, with the axes of batch and sequence they came with."""

    heads: Axis
    lanes: Axis
    batch: Axis
    steps: Axis

    def masked(self, masked: bool) -> Stack:
        """The same after a sum with something that is zero at removed indices or (not ``masked``) is not."""
        return replace(
            self, heads=_but(self.heads, masked), lanes=_but(self.lanes, masked), batch=_but(self.batch, False)
        )


def _but(axis: Axis, zero: bool) -> Axis:
    return Axis(axis.rows, axis.zero and zero, axis.places)


def both(view: OpView, a: Axis, b: Axis) -> Axis:
    """Two axes tied; the result is zero where both are."""
    tied = view.tie(a, b)
    return Axis(tied.rows, a.zero and b.zero, tied.places)


def grouped(view: OpView, axis: Axis, heads: int, repeat: int = 1) -> tuple[Axis, Axis]:
    """Heads and lanes of one axis of ``heads * repeat * lanes`` indices, the repeats frozen."""
    if not heads or len(axis) % (heads * repeat):
        raise UnknownShape(f"an axis of {len(axis)} indices does not hold {heads * repeat} heads")
    outer, inner, lanes = view.split(axis, [heads, repeat, len(axis) // heads // repeat])
    view.freeze(inner, _SHARED)
    return outer, lanes


def stack_of(view: OpView, i: int, heads: int, repeat: int = 1) -> Stack:
    """Queries, keys or values at input ``i``: [b, s, heads * lanes] or [b, heads, s, lanes].

    ``heads`` counts those of the keys; ``repeat`` query heads go with each.
    """
    axes = view.axes(i)
    if len(axes) == 3:
        outer, lanes = grouped(view, axes[2], heads, repeat)
        return Stack(outer, lanes, axes[0], axes[1])
    if len(axes) != 4:
        raise UnknownShape(f"input {i} of rank {len(axes)}")
    outer, _ = grouped(view, axes[1], heads, repeat)
    return Stack(outer, axes[3], axes[0], axes[2])


def meet(view: OpView, q: Stack, k: Stack, v: Stack) -> None:
    """Tie what the scores and the sum over values contract; steps are frozen."""
    name = view.node.op_type
    tied = view.tie(q.lanes, k.lanes)
    if not (q.lanes.zero or k.lanes.zero):
        view.inexact(tied, SUMMED)
    for stack in (k, v):
        view.tie(q.heads, stack.heads)
        view.tie(q.batch, stack.batch)
    view.mark(q.heads, "head")
    view.mark(k.lanes, "lane")
    view.mark(v.lanes, "lane")
    for stack in (q, k, v):
        view.freeze(stack.steps, f"sequence axis of {name}")


def added_to_scores(view: OpView, i: int, q: Stack, repeat: int = 1) -> None:
    """A mask or bias added to the scores, [b, heads, s, t] or less: the last two axes are frozen."""
    if not view.has(i):
        return
    axes = view.axes(i)
    for position, axis in enumerate(reversed(axes)):
        if position == 2 and len(axis) == len(q.heads) * repeat > 1:
            view.tie(q.heads, grouped(view, axis, len(q.heads), repeat)[0])
        elif position == 3 and len(axis) == len(q.batch) > 1:
            view.tie(q.batch, axis)
        else:
            view.freeze(axis, f"mask of {view.node.op_type}")


def behind(view: OpView, i: int, stack: Stack) -> Stack:
    """Keys or values behind a cache [b, heads, past, lanes] of earlier ones."""
    if not view.has(i):
        return stack
    axes = view.axes(i)
    if len(axes) != 4:
        raise UnknownShape(f"input {i} of rank {len(axes)}")
    view.freeze(axes[2], f"cache of {view.node.op_type}")
    heads, lanes = both(view, stack.heads, axes[1]), both(view, stack.lanes, axes[3])
    return Stack(heads, lanes, both(view, stack.batch, axes[0]), stack.steps)


def result(view: OpView, q: Stack, v: Stack, repeat: int, rank: int) -> Axes:
    """What attention hands out: zero where the values are."""
    steps = view.frozen(view.out_shape()[1 if rank == 3 else 2])
    batch = Axis(q.batch.rows, v.batch.zero, q.batch.places)
    heads = Axis(q.heads.rows, v.heads.zero, q.heads.places + v.heads.places)
    if rank == 3:
        return [batch, steps, view.merge([heads, view.frozen(repeat), v.lanes])]
    return [batch, view.merge([heads, view.frozen(repeat)]), steps, v.lanes]


def cache(view: OpView, j: int, stack: Stack) -> Axes | None:
    """Keys or values handed out as [b, heads, steps, lanes]."""
    value = view.node.outputs[j]
    shape = view.sweep.shape_of(value)
    if shape is not None:
        return [stack.batch, stack.heads, view.frozen(shape[2]), stack.lanes]
    # Only the number of steps can be unknown; a cache that somebody reads keeps all its places.
    if value.uses() or value.is_graph_output():
        for axis in (stack.batch, stack.heads, stack.lanes):
            view.freeze(axis, "is handed out in a number of steps not known before running")
    return None


def scores(view: OpView, j: int, q: Stack, repeat: int) -> Axes | None:
    """The scores [b, heads, s, t], before or after the softmax."""
    value = view.node.outputs[j]
    shape = view.sweep.shape_of(value)
    if shape is None:
        if value.uses() or value.is_graph_output():
            for axis in (q.batch, q.heads):
                view.freeze(axis, "is handed out in a number of steps not known before running")
        return None
    heads = view.merge([_but(q.heads, False), view.frozen(repeat)])
    return [_but(q.batch, False), heads, view.frozen(shape[2]), view.frozen(shape[3])]


def outputs(view: OpView, q: Stack, k: Stack, v: Stack, repeat: int, rank: int) -> list[Axes | None]:
    """Result, keys, values and scores, as many as the node hands out."""
    outs: list[Axes | None] = [result(view, q, v, repeat, rank)]
    for j, value in enumerate(view.node.outputs[1:], start=1):
        if not value.name:
            outs.append(None)
        else:
            outs.append(scores(view, j, q, repeat) if j == 3 else cache(view, j, k if j == 1 else v))
    return outs


# -- the numbers that these ops store -------------------------------------------------------------------
def heads_left(kept: np.ndarray | None, size: int, heads: int) -> int:
    """Heads that still have a lane on an axis of ``size`` indices."""
    return heads if kept is None else len(set((kept // (size // heads)).tolist()))


def pin_scale(cut: Cut, old: int, new: int) -> None:
    """The default scale counts lanes: it stays the source's."""
    if old != new and not cut.attr("scale"):
        cut.set_attr("scale", float(old**-0.5))


def shrink_heads(cut: Cut, i: int, name: str) -> tuple[int, int]:
    """Mend the number of heads stacked on the last axis of input ``i``; lanes before and after."""
    old, heads = cut.old_in(i)[2], int(cut.attr(name))
    left = heads_left(cut.kept_in(i, 2), old, heads)
    cut.set_attr(name, left)
    return old // heads, cut.new_in(i)[2] // left


def _shrink_attention(cut: Cut) -> None:
    if len(cut.old_in(0)) == 4:
        pin_scale(cut, cut.old_in(0)[3], cut.new_in(0)[3])
        return
    pin_scale(cut, *shrink_heads(cut, 0, "q_num_heads"))
    shrink_heads(cut, 1, "kv_num_heads")


@op("Attention", text="b _s (h _r d), b _t (h d), b _t (h e) -> b _s (h _r e); or heads as an axis of their own",
    shrink=_shrink_attention)  # fmt: skip
def attention(view: OpView) -> list[Axes | None]:
    """Scaled dot-product attention on stacked or separate heads, with cache and mask."""
    rank = len(view.axes(0))
    if rank == 3:
        total, kv = int(view.attr("q_num_heads", 0)), int(view.attr("kv_num_heads", 0))
    else:
        total, kv = view.shape(0)[1], view.shape(1)[1]
    if not kv or total % kv:
        raise UnknownShape(f"{total} query heads for {kv} key heads")
    repeat = total // kv
    q, k, v = stack_of(view, 0, kv, repeat), stack_of(view, 1, kv), stack_of(view, 2, kv)
    k, v = behind(view, 4, k), behind(view, 5, v)
    meet(view, q, k, v)
    added_to_scores(view, 3, q, repeat)
    if view.has(6):
        view.tie(q.batch, view.axes(6)[0])
    return outputs(view, q, k, v, repeat, rank)


# -- rotary embedding -----------------------------------------------------------------------------------
def _cosines(contrib: bool) -> tuple[int, int]:
    """Inputs that hold cosines and positions."""
    return (2, 1) if contrib else (1, 3)


def _rotary_heads(view: OpView) -> int:
    """Heads that are stacked on the last axis of a 3-d input."""
    contrib = view.node.domain == "com.microsoft"
    heads = int(view.attr("num_heads", 0))
    if heads or not contrib:
        return heads
    # Without a count the runtime reads the width of a head off the cosines.
    return view.shape(0)[2] // (2 * view.shape(_cosines(contrib)[0])[-1])


def _shrink_rotary(cut: Cut) -> None:
    if len(cut.old_in(0)) == 3 and cut.attr("num_heads", 0):
        shrink_heads(cut, 0, "num_heads")
    if cut.attr("rotary_embedding_dim", 0):
        cosines, _ = _cosines(cut.old.domain == "com.microsoft")
        cut.set_attr("rotary_embedding_dim", 2 * cut.new_in(cosines)[-1])


def rotate(view: OpView, lanes: Axis, caches: tuple[int, int], interleaved: bool, block: int = 1) -> None:
    """The first lanes turn in pairs, so a pair lives and dies with its column of cosines and sines.

    Parameters
    ----------
    block
        Columns that the op takes together only.
    """
    columns = [view.axes(i)[-1] for i in caches]
    pairs = len(columns[0])
    if 2 * pairs > len(lanes) or pairs % block:
        for axis in (lanes, *columns):
            view.freeze(axis, f"{pairs} cosines for {len(lanes)} lanes")
        return
    turning = lanes if 2 * pairs == len(lanes) else view.take(lanes, np.arange(2 * pairs))
    factors = view.split(turning, [pairs, 2] if interleaved else [2, pairs])
    pair, two = factors if interleaved else factors[::-1]
    view.freeze(two, "lanes rotate in pairs")
    for column in columns:
        pair = view.tie(pair, column)
    if block > 1:
        view.freeze(view.split(pair, [pairs // block, block])[1], f"the op takes lanes in blocks of {2 * block}")


@op("RotaryEmbedding", "com.microsoft::RotaryEmbedding",
    text="b _s (h ((_2 r) + p)), _p r, _p r -> b _s (h ((_2 r) + p)); in pairs of lanes", shrink=_shrink_rotary)  # fmt: skip
def rotary(view: OpView) -> list[Axes | None]:
    """Heads pass, and so do the lanes that do not rotate."""
    cosines, positions = _cosines(view.node.domain == "com.microsoft")
    x = view.axes(0)
    q = stack_of(view, 0, _rotary_heads(view) if len(x) == 3 else len(x[1]))
    name = view.node.op_type
    view.freeze(q.steps, f"sequence axis of {name}")
    for i in (cosines, cosines + 1):
        for axis in view.axes(i)[:-1]:
            if len(view.axes(i)) == 3 and axis is view.axes(i)[0] and len(axis) == len(q.batch) > 1:
                view.tie(q.batch, axis)
            else:
                view.freeze(axis, f"positions of {name}")
    if view.has(positions):
        ids = view.axes(positions)
        for place, axis in enumerate(ids):
            if place == 0 and len(ids) == 2 and len(axis) == len(q.batch) > 1:
                view.tie(q.batch, axis)
            else:
                view.freeze(axis, f"positions of {name}")
    rotate(view, q.lanes, (cosines, cosines + 1), bool(view.attr("interleaved", 0)))
    steps = view.frozen(len(q.steps))
    if len(x) == 3:
        return [[q.batch, steps, view.merge([q.heads, q.lanes])]]
    return [[q.batch, q.heads, steps, q.lanes]]
