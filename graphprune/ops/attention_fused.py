"""Attention as ONNX Runtime fuses it, and what stands around it in fused files."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graphprune.ops.attention import (
    SUMMED,
    Stack,
    added_to_scores,
    behind,
    both,
    grouped,
    heads_left,
    meet,
    outputs,
    pin_scale,
    result,
    rotate,
    shrink_heads,
    stack_of,
)
from graphprune.ops.norm import layer_norm_axes
from graphprune.ops.pointwise import broadcast
from graphprune.rules import Axes, Axis, OpView, UnknownShape, frozen_by_design, op

if TYPE_CHECKING:
    from graphprune.cut import Cut


# -- projection and attention in one ---------------------------------------------------------------------
@dataclass(frozen=True)
class _Packed:
    """Where an attention with packed weights has its inputs: optional ones, and the scales of columns."""

    mask: int
    past: int
    added: int | None
    columns: tuple[int, ...]
    others: tuple[int, ...]


_PACKED = {"Attention": _Packed(3, 4, 5, (), (6,)), "QAttention": _Packed(5, 8, None, (4, 7), (3, 6))}


def _sizes(view: OpView) -> list[int]:
    """Widths of packed queries, keys and values."""
    total = view.shape(1)[1]
    return [int(n) for n in view.attr("qkv_hidden_sizes") or [total // 3] * 3]


def _shrink_packed(cut: Cut) -> None:
    sizes, heads, kept = _sizes(cut.view), int(cut.attr("num_heads")), cut.kept_in(1, 1)
    if kept is None:
        return
    edges = np.cumsum([0, *sizes])
    own = [kept[(kept >= a) & (kept < b)] - a for a, b in itertools.pairwise(edges)]
    left = heads_left(own[0], sizes[0], heads)
    cut.set_attr("num_heads", left)
    if cut.attr("qkv_hidden_sizes") or len({len(part) for part in own}) > 1:
        cut.set_attr("qkv_hidden_sizes", [len(part) for part in own])
    pin_scale(cut, sizes[0] // heads, len(own[0]) // left)


@op("com.microsoft::Attention", "com.microsoft::QAttention",
    text="b _s i, i ((h d) + (h d) + (h e)), ((h d) + (h d) + (h e)) -> b _s (h e)", shrink=_shrink_packed)  # fmt: skip
def packed_attention(view: OpView) -> list[Axes | None]:
    """Projection and attention in one: the weight holds queries, keys and values side by side."""
    at = _PACKED[view.node.op_type]
    name, x, w = view.node.op_type, view.axes(0), view.axes(1)
    heads, masked = int(view.attr("num_heads")), view.is_parameter(1)
    view.weight(1, "weight")
    view.tie(x[2], w[0])
    if not (masked or x[2].zero or w[0].zero):
        view.inexact(x[2], SUMMED)
    columns = Axis(w[1].rows, w[1].zero or masked, w[1].places)
    batch = x[0]
    if view.has(2):
        view.weight(2, "bias")
        bias = view.axes(2)[0]
        tied = view.tie(columns, bias)
        columns = Axis(tied.rows, columns.zero and (bias.zero or view.is_parameter(2)), tied.places)
        batch = Axis(batch.rows, False, batch.places)
    for i in at.columns:
        if view.has(i) and view.axes(i) and len(view.axes(i)[0]) == len(columns):
            view.tie(columns, view.axes(i)[0])
    edges = np.cumsum([0, *_sizes(view)])
    parts = [view.take(columns, np.arange(a, b)) for a, b in itertools.pairwise(edges)]
    q, k, v = (Stack(*grouped(view, part, heads), batch, x[1]) for part in parts)
    meet(view, q, k, v)
    if view.attr("do_rotary", 0):
        for stack in (q, k):
            view.freeze(stack.lanes, f"{name} rotates lanes by their place")
    handed_out = len(view.node.outputs) > 1 and bool(view.node.outputs[1].name)
    if view.has(at.past) or handed_out or at.added is None:
        # One tensor holds keys and values, or there is no attribute for two widths.
        view.tie(k.lanes, v.lanes)
    if view.has(at.past):
        past = view.axes(at.past)
        view.freeze(past[0], "keys and values stand one behind the other")
        view.freeze(past[3], f"cache of {name}")
        k = Stack(both(view, k.heads, past[2]), both(view, k.lanes, past[4]), both(view, batch, past[1]), x[1])
        v = Stack(both(view, v.heads, past[2]), both(view, v.lanes, past[4]), both(view, batch, past[1]), x[1])
    for i in (at.mask, *at.others):
        for axis in view.axes(i) if view.has(i) else ():
            if len(axis) == len(batch) > 1 and axis is view.axes(i)[0] and len(view.axes(i)) > 1:
                view.tie(batch, axis)
            else:
                view.freeze(axis, f"input {i} of {name}")
    if view.has(at.mask) and len(view.axes(at.mask)) < 2:
        view.freeze(batch, f"mask of {name}")
    if at.added is not None:
        added_to_scores(view, at.added, q)
    outs: list[Axes | None] = [result(view, q, v, 1, 3)]
    if handed_out:
        shape = view.sweep.shape_of(view.node.outputs[1])
        if shape is None:
            outs.append(None)
            for axis in (batch, k.heads, k.lanes):
                view.freeze(axis, "is handed out in a number of steps not known before running")
        else:
            outs.append([view.frozen(2), k.batch, k.heads, view.frozen(shape[3]), k.lanes])
    return outs


# -- attention on projected values -----------------------------------------------------------------------
def _shrink_multi_head(cut: Cut) -> None:
    shape = cut.old_in(0)
    if len(shape) == 3:
        pin_scale(cut, *shrink_heads(cut, 0, "num_heads"))
    else:
        cut.set_attr("num_heads", cut.new_in(0)[2])
        pin_scale(cut, shape[4], cut.new_in(0)[4])


def _side_by_side(view: OpView, i: int) -> Stack:
    """Queries, keys or values as [b, s, heads, 2 or 3, lanes]."""
    axes = view.axes(i)
    view.freeze(axes[3], "queries, keys and values stand side by side")
    return Stack(axes[2], axes[4], axes[0], axes[1])


def _multi_head_inputs(view: OpView, heads: int) -> tuple[Stack, Stack, Stack]:
    if len(view.axes(0)) == 5:
        stack = _side_by_side(view, 0)
        return stack, stack, stack
    q = stack_of(view, 0, heads)
    if not view.has(1):
        raise UnknownShape("queries without keys")
    if len(view.axes(1)) == 5:
        stack = _side_by_side(view, 1)
        return q, stack, stack
    return q, stack_of(view, 1, heads), stack_of(view, 2, heads)


@op("com.microsoft::MultiHeadAttention",
    text="b _s (h d), b _t (h d), b _t (h e), ((h d) + (h d) + (h e)) -> b _s (h e)", shrink=_shrink_multi_head)  # fmt: skip
def multi_head(view: OpView) -> list[Axes | None]:
    """Attention on projected queries, keys and values, also packed ones."""
    heads = int(view.attr("num_heads"))
    q, k, v = _multi_head_inputs(view, heads)
    separate = len(view.axes(0)) == 3 and (len(view.axes(1)) == 3)
    if view.has(3):
        view.weight(3, "bias")
        bias = view.axes(3)[0]
        masked = bias.zero or view.is_parameter(3)
        edges = np.cumsum([0, *(heads * len(stack.lanes) for stack in (q, k, v))])
        for stack, a, b in zip((q, k, v), edges[:-1], edges[1:], strict=True):
            own_heads, own_lanes = grouped(view, view.take(bias, np.arange(a, b)), heads)
            view.tie(stack.heads, own_heads)
            view.tie(stack.lanes, own_lanes)
        q, k, v = (stack.masked(masked) for stack in (q, k, v))
    k, v = behind(view, 6, k), behind(view, 7, v)
    meet(view, q, k, v)
    if view.has(6) or not separate:
        # A cache, or keys that come projected, are of one width with the values.
        view.tie(k.lanes, v.lanes)
    if view.has(4):
        mask = view.axes(4)
        for place, axis in enumerate(mask):
            if place == 0 and len(mask) > 1 and len(axis) == len(q.batch) > 1:
                view.tie(q.batch, axis)
            else:
                view.freeze(axis, "mask of MultiHeadAttention")
        if len(mask) == 1:
            view.freeze(q.batch, "mask of MultiHeadAttention")
    view.freeze_inputs("cache of MultiHeadAttention", [8, 9])
    added_to_scores(view, 5, q)
    return outputs(view, q, k, v, 1, 3)


def _shrink_grouped_query(cut: Cut) -> None:
    heads, kv = int(cut.attr("num_heads")), int(cut.attr("kv_num_heads"))
    kept, old, new = cut.kept_in(0, 2), cut.old_in(0)[2], cut.new_in(0)[2]
    if kept is None:
        return
    stacked = heads if cut.view.has(1) else heads + 2 * kv
    left = heads_left(kept, old, stacked) * heads // stacked
    cut.set_attr("num_heads", left)
    cut.set_attr("kv_num_heads", left * kv // heads)
    pin_scale(cut, old // stacked, new // (left * stacked // heads))


#: Lanes that the kernels of GroupQueryAttention take together.
_BLOCK = 8


@op("com.microsoft::GroupQueryAttention", text="b _s (h _r d), b _t (h d), b _t (h d) -> b _s (h _r d); lanes in blocks of 8",
    shrink=_shrink_grouped_query)  # fmt: skip
def grouped_query(view: OpView) -> list[Axes | None]:
    """Key-value heads with their query heads; the runtime takes head widths in multiples of 8 only."""
    total, kv = int(view.attr("num_heads")), int(view.attr("kv_num_heads"))
    if not kv or total % kv:
        raise UnknownShape(f"{total} query heads for {kv} key heads")
    repeat = total // kv
    if view.has(1):
        q, k, v = stack_of(view, 0, kv, repeat), stack_of(view, 1, kv), stack_of(view, 2, kv)
    else:
        x = view.axes(0)
        edges = np.asarray([0, total, total + kv, total + 2 * kv]) * (len(x[2]) // (total + 2 * kv))
        parts = [view.take(x[2], np.arange(a, b)) for a, b in itertools.pairwise(edges)]
        stacks = [Stack(*grouped(view, part, kv, n), x[0], x[1]) for part, n in zip(parts, (repeat, 1, 1), strict=True)]
        q, k, v = stacks
    k, v = behind(view, 3, k), behind(view, 4, v)
    meet(view, q, k, v)
    view.tie(k.lanes, v.lanes)
    _lane_blocks(view, q)
    added_to_scores(view, 10, q, repeat)
    if view.has(11):
        view.tie(q.heads, grouped(view, view.axes(11)[0], kv, repeat)[0])
    for i in (14, 15):
        if view.has(i):
            view.weight(i, "scale")
            view.tie(q.lanes, view.axes(i)[0])
            view.inexact(q.lanes, "is normalised over by GroupQueryAttention")
    others = [i for i in (5, 6, 9, 12, 13, *range(16, len(view.node.inputs))) if view.has(i)]
    view.freeze_inputs("positions of GroupQueryAttention", others)
    # Lengths are one a sample: they go with the batch, which is then nobody's to cut.
    view.freeze(q.batch, "lengths of GroupQueryAttention")
    return outputs(view, q, k, v, repeat, 3)


def _lane_blocks(view: OpView, q: Stack) -> None:
    """Keep lanes together that the op only takes together, or turns in pairs."""
    lanes = q.lanes
    packed = str(view.attr("k_quant_type", "NONE")) != "NONE" or str(view.attr("v_quant_type", "NONE")) != "NONE"
    if view.attr("do_rotary", 0):
        for i in (7, 8):
            view.freeze(view.axes(i)[0], "positions of GroupQueryAttention")
        whole = 2 * view.shape(7)[-1] == len(lanes)
        rotate(view, lanes, (7, 8), bool(view.attr("rotary_interleaved", 0)), _BLOCK)
    else:
        whole = len(lanes) % _BLOCK == 0
        if whole:
            view.freeze(
                view.split(lanes, [len(lanes) // _BLOCK, _BLOCK])[1], f"the op takes lanes in blocks of {_BLOCK}"
            )
    if packed or not whole:
        view.freeze(lanes, "the op takes lanes in blocks")


# -- what stands around attention in fused files ---------------------------------------------------------
@op("com.microsoft::SkipLayerNormalization", "com.microsoft::SkipSimplifiedLayerNormalization",
    "SkipSimplifiedLayerNormalization", text="... c, ... c, c, c, c -> ... c, ..., ..., ... c")  # fmt: skip
def skip_layer_norm(view: OpView) -> list[Axes | None]:
    """A residual sum, normalised; the sum is handed out too."""
    simplified = "Simplified" in view.node.op_type
    bias = 3 if simplified else 4
    for i in (0, 1):
        view.weight(i, "shift")
    summed = broadcast(view, [0, 1], "all", {i for i in (0, 1) if view.is_parameter(i)})
    if view.has(bias):
        view.weight(bias, "bias")
        own, last = view.axes(bias)[0], summed[-1]
        tied = view.tie(last, own)
        summed = [Axis(axis.rows, False, axis.places) for axis in summed]
        summed[-1] = Axis(tied.rows, last.zero and (own.zero or view.is_parameter(bias)), tied.places)
    parameters: Sequence[int] = [i for i in ((2,) if simplified else (2, 3)) if view.has(i)]
    outs: list[Axes | None] = [layer_norm_axes(view, summed, len(summed) - 1, tuple(parameters))]
    for j in range(1, len(view.node.outputs)):
        if j == 3:
            outs.append(summed)
        else:
            outs.append([*(Axis(axis.rows, False, axis.places) for axis in summed[:-1]), view.frozen(1)])
    return outs


@op("com.microsoft::EmbedLayerNormalization", text="_b _s, _b _s, _v c, _p c, _t c, c, c -> _b _s c")
def embed_layer_norm(view: OpView) -> list[Axes | None]:
    """Three embeddings are read, summed and normalised."""
    lanes: Axis | None = None
    for i in (2, 3, 4):
        if not view.has(i):
            continue
        table = view.axes(i)
        view.weight(i, "table")
        view.freeze(table[0], "is read at indices computed when it runs")
        lanes = table[1] if lanes is None else view.tie(lanes, table[1])
    assert lanes is not None
    view.freeze_inputs(f"indices of {view.node.op_type}", [0, 1, 7, 8])
    masked = all(view.is_parameter(i) for i in (2, 3, 4) if view.has(i))
    shape = view.out_shape()
    summed: Axes = [view.frozen(shape[0]), view.frozen(shape[1]), Axis(lanes.rows, masked, lanes.places)]
    outs: list[Axes | None] = [layer_norm_axes(view, summed, 2, tuple(i for i in (5, 6) if view.has(i)))]
    for j in range(1, len(view.node.outputs)):
        own = view.sweep.shape_of(view.node.outputs[j])
        outs.append(summed if j == 2 else None if own is None else [view.frozen(n) for n in own])
    return outs


# -- frozen ----------------------------------------------------------------------------------------------
frozen_by_design(
    "its tokens are packed without their padding: no runtime on a CPU can prove a cut of it",
    "com.microsoft::PackedAttention", "com.microsoft::PackedMultiHeadAttention", "com.microsoft::PagedAttention",
    "com.microsoft::RemovePadding", "com.microsoft::RestorePadding",
)  # fmt: skip
frozen_by_design(
    "its kernels are written for few head widths and patterns",
    "com.microsoft::LongformerAttention", "com.microsoft::SparseAttention", "com.microsoft::QOrderedAttention",
    "com.microsoft::QOrderedLongformerAttention",
)  # fmt: skip
frozen_by_design(
    "it decodes step by step into a cache that its caller owns",
    "com.microsoft::DecoderMaskedMultiHeadAttention", "com.microsoft::DecoderMaskedSelfAttention",
    "com.microsoft::DecoderAttention", "com.microsoft::BeamSearch", "com.microsoft::GreedySearch",
    "com.microsoft::Sampling", "com.microsoft::WhisperBeamSearch",
)  # fmt: skip
frozen_by_design("its bias is computed from buckets inside the op", "com.microsoft::RelativePositionBias",
                 "com.microsoft::GatedRelativePositionBias")  # fmt: skip
frozen_by_design("its embeddings are quantised with scales of their own", "com.microsoft::QEmbedLayerNormalization")
