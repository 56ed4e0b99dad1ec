"""Ops that move data without changing it: every one of them is fancy indexing on rows."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np

from graphprune.rules import Axes, Axis, OpView, UnknownShape, op

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphprune.cut import Cut


# -- Reshape and its relatives ---------------------------------------------------------------------------
def atoms(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int], list[int] | None]]:
    """Align the factors of two shapes of equal product.

    Returns blocks ``(old axes, new axes, sizes)`` of axes with more than one index: the axes of a block have equal
    product, and ``sizes`` are the common factors both sides are made of, outer first, or None where they do not align.
    """
    i = [axis for axis, n in enumerate(old) if n != 1]
    j = [axis for axis, n in enumerate(new) if n != 1]
    blocks: list[tuple[list[int], list[int], list[int] | None]] = []
    while i and j:
        left, right = [i.pop(0)], [j.pop(0)]
        p, q = old[left[0]], new[right[0]]
        cuts = {1, p, q}
        while p != q:
            if p < q:
                left.append(i.pop(0))
                p *= old[left[-1]]
            else:
                right.append(j.pop(0))
                q *= new[right[-1]]
            cuts |= {p, q}
        # Sizes outer first: a cut at product c leaves whole / c behind it.
        order = sorted(cuts)
        sizes = [b // a for a, b in itertools.pairwise(order)] if _divide(order) else None
        blocks.append((left, right, sizes))
    return blocks


def _divide(products: list[int]) -> bool:
    return all(b % a == 0 for a, b in itertools.pairwise(products))


def reshape_axes(view: OpView, x: Axes, new: tuple[int, ...]) -> Axes:
    """Axes of ``x`` read anew as shape ``new``."""
    old = tuple(len(axis) for axis in x)
    if 0 in old or 0 in new or math.prod(old) != math.prod(new):
        raise UnknownShape(f"shape {old} cannot become {new}")
    out: list[Axis | None] = [None] * len(new)
    for left, right, sizes in atoms(old, new):
        if sizes is None:
            reason = f"sizes {[old[i] for i in left]} and {[new[j] for j in right]} do not align"
            for i in left:
                view.freeze(x[i], reason)
            for j in right:
                out[j] = Axis(view.frozen(new[j]).rows, True, tuple(p for i in left for p in x[i].places))
            continue
        factors: Axes = []
        rest = list(sizes)
        for i in left:
            own: list[int] = []
            while math.prod(own) < old[i]:
                own.append(rest.pop(0))
            factors.extend(view.split(x[i], own) if own else [])
        for j in right:
            mine: Axes = []
            while math.prod(map(len, mine)) < new[j]:
                mine.append(factors.pop(0))
            out[j] = view.merge(mine) if mine else view.frozen(1)
    return [view.frozen(n) if axis is None else axis for axis, n in zip(out, new, strict=True)]


def _shrink_reshape(cut: Cut) -> None:
    cut.mend_shape(1, zero_copies=not cut.attr("allowzero", 0))


@op("Reshape", text="gcd walk over both shapes", shrink=_shrink_reshape)
def reshape(view: OpView) -> list[Axes | None]:
    """Factors of both shapes are aligned; what does not align freezes."""
    if view.known(1) is None and view.opset >= 5:
        view.freeze_inputs("its new shape is computed when it runs", [0])
        return view.frozen_outputs()
    return [reshape_axes(view, view.axes(0), view.out_shape())]


@op("Flatten", "Squeeze", "Unsqueeze", text="gcd walk over both shapes")
def flatten(view: OpView) -> list[Axes | None]:
    """Axes are merged, dropped or added."""
    if view.node.op_type == "Unsqueeze" and len(view.axes(0)) == 0:
        return view.frozen_outputs()
    return [reshape_axes(view, view.axes(0), view.out_shape())]


@op("Transpose", text="a permutation of axes")
def transpose(view: OpView) -> list[Axes | None]:
    """Axes change places."""
    x = view.axes(0)
    perm = view.attr("perm") or list(range(len(x)))[::-1]
    return [[x[i] for i in perm]]


# -- taking ----------------------------------------------------------------------------------------------
def transposition(node: ir.Node) -> tuple[int, ...] | None:
    """The order of axes that a Transpose makes, empty where it reverses them; None for other nodes."""
    if node.op_type != "Transpose" or node.domain:
        return None
    return tuple(node.attributes.get_ints("perm", ()))


def _shrink_gather(cut: Cut) -> None:
    """Constant indices are counted among the indices that are left."""
    rank = len(cut.old_in(0))
    along = int(cut.attr("axis", 0)) % rank
    kept = cut.kept_in(0, along)
    indices = cut.view.constant(1)
    if kept is None and not any(
        cut.kept_out(0, along + a) is not None for a in range(0 if indices is None else indices.ndim)
    ):
        return
    if indices is None:
        raise cut.error("its indices are computed when it runs")
    wanted = indices % cut.old_in(0)[along]
    for a in range(indices.ndim):
        left = cut.kept_out(0, along + a)
        if left is not None:
            wanted = wanted.take(left, axis=a)
    cut.set_input(1, cut.positions(kept, wanted).astype(indices.dtype))


@op("Gather", text="take along an axis", shrink=_shrink_gather)
def gather(view: OpView) -> list[Axes | None]:
    """Constant indices take rows; computed indices freeze the axis they read (a vocabulary)."""
    x = view.axes(0)
    along = int(view.attr("axis", 0)) % len(x)
    shape = view.shape(1)
    indices = view.constant(1)
    if view.is_parameter(0) and not view.is_parameter(1):
        view.weight(0, "table")
        x = [Axis(axis.rows, True, axis.places) for axis in x]
    if indices is None:
        view.freeze(x[along], "is read at indices computed when it runs")
        middle = [_computed(view, i, shape) for i in range(len(shape))]
        return [[*x[:along], *middle, *x[along + 1 :]]]
    wanted = indices.reshape(-1) % len(x[along])
    taken = view.take(x[along], wanted)
    if indices.ndim == 0:
        # One index is read and its axis is gone: it may not be removed.
        view.freeze(taken, "is the one index read here")
        return [[*x[:along], *x[along + 1 :]]]
    return [[*x[:along], *view.split(taken, list(indices.shape)), *x[along + 1 :]]]


def _computed(view: OpView, i: int, shape: tuple[int, ...]) -> Axis:
    """Axis ``i`` of computed indices goes on as it came."""
    axis = view.axes(1)[i]
    return Axis(axis.rows, False, axis.places)


def slice_parameters(view: OpView, rank: int, shape: tuple[int, ...]) -> dict[int, np.ndarray | None] | None:
    """Axis -> taken positions, None where its bounds are computed when it runs; None if even the axes are."""
    if view.opset >= 10:
        starts, ends = view.known(1), view.known(2)
        given = view.constant(3)
        steps = view.constant(4)
        if starts is None or ends is None or (view.has(3) and given is None) or (view.has(4) and steps is None):
            return None
        steady = np.asarray(view.steady(1)) & np.asarray(view.steady(2))
    else:
        starts, ends = np.asarray(view.attr("starts")), np.asarray(view.attr("ends"))
        axes = view.attr("axes")
        given, steps = None if axes is None else np.asarray(axes), None
        steady = np.ones(len(starts), np.bool_)
    n = len(starts)
    where = list(range(n)) if given is None else [int(a) % rank for a in given.reshape(-1)]
    steps = np.ones(n, np.int64) if steps is None else steps
    out: dict[int, np.ndarray | None] = {}
    for axis, start, end, step, fixed in zip(where, starts, ends, steps, steady, strict=True):
        size = shape[axis]
        low, high = (0, size) if step > 0 else (-1, size - 1)
        begin = int(start) + size if start < 0 else int(start)
        stop = int(end) + size if end < 0 else int(end)
        begin = min(max(begin, low, 0), high)
        stop = min(max(stop, low), size)
        out[axis] = np.arange(begin, stop, int(step)) if fixed else None
    return out


def _shrink_slice(cut: Cut) -> None:
    rank = len(cut.old_in(0))
    taken = slice_parameters(cut.view, rank, cut.old_in(0)) or {}
    for axis, positions in taken.items():
        kept_in, kept_out = cut.kept_in(0, axis), cut.kept_out(0, axis)
        if positions is not None and (kept_in is not None or kept_out is not None):
            wanted = positions if kept_out is None else positions[kept_out]
            cut.set_slice(axis, cut.positions(kept_in, wanted))


@op("Slice", text="take along axes", shrink=_shrink_slice)
def slice_(view: OpView) -> list[Axes | None]:
    """Any start, end and step, also negative, is a take; bounds computed when it runs freeze their axis."""
    x, shape = list(view.axes(0)), view.out_shape()
    taken = slice_parameters(view, len(x), tuple(len(axis) for axis in x))
    if taken is None:
        axes = view.constant(3) if view.opset >= 10 and view.has(3) else None
        moving = range(len(x)) if axes is None else {int(a) % len(x) for a in axes.reshape(-1)}
        taken = dict.fromkeys(moving)
    out: Axes = []
    for i, axis in enumerate(x):
        positions = taken.get(i)
        if positions is not None:
            out.append(view.take(axis, positions))
        elif i in taken:
            view.freeze(axis, "is sliced at bounds computed when it runs")
            out.append(view.frozen(shape[i]))
        else:
            out.append(axis)
    return [out]


def _shrink_split(cut: Cut) -> None:
    along = int(cut.attr("axis", 0)) % len(cut.old_in(0))
    if cut.kept_in(0, along) is None:
        return
    sizes = [cut.new_out(j)[along] for j in range(len(cut.node.outputs))]
    if cut.opset >= 13:
        cut.set_attr("num_outputs", None)
        cut.set_input(1, np.asarray(sizes, np.int64))
    else:
        cut.set_attr("split", sizes)


@op("Split", text="take along an axis", shrink=_shrink_split)
def split(view: OpView) -> list[Axes | None]:
    """Each result takes its stretch."""
    x = view.axes(0)
    along = int(view.attr("axis", 0)) % len(x)
    outs: list[Axes | None] = []
    start = 0
    for j in range(len(view.node.outputs)):
        size = view.out_shape(j)[along]
        part = view.take(x[along], np.arange(start, start + size))
        outs.append([part if i == along else axis for i, axis in enumerate(x)])
        start += size
    if start != len(x[along]):
        raise UnknownShape(f"parts of {start} from an axis of {len(x[along])}")
    return outs


@op("Concat", text="rows one after the other")
def concat(view: OpView) -> list[Axes | None]:
    """Rows one after the other; the other axes are tied."""
    given = [i for i in range(len(view.node.inputs)) if view.has(i)]
    operands = [view.axes(i) for i in given]
    along = int(view.attr("axis", 1)) % len(operands[0])
    out: Axes = []
    for i in range(len(operands[0])):
        if i == along:
            out.append(view.concat([axes[i] for axes in operands]))
            continue
        axis = operands[0][i]
        for other in operands[1:]:
            axis = view.tie(axis, other[i])
        out.append(axis)
    return [out]


# -- making more -----------------------------------------------------------------------------------------
def _shrink_expand(cut: Cut) -> None:
    cut.mend_shape(1, zero_copies=False)


@op("Expand", text="broadcast; new indices are free", shrink=_shrink_expand)
def expand(view: OpView) -> list[Axes | None]:
    """Axes of one index become as many as wanted, each free until it is tied."""
    x, new = view.axes(0), view.out_shape()
    if view.known(1) is None:
        view.freeze_inputs("its new shape is computed when it runs", [0])
        return view.frozen_outputs()
    out: Axes = []
    for j, n in enumerate(new):
        i = j - (len(new) - len(x))
        if i >= 0 and len(x[i]) == n:
            out.append(x[i])
        else:
            fresh = view.fresh(n)
            out.append(Axis(fresh.rows, False, fresh.places))
    return [out]


def _shrink_constant_of_shape(cut: Cut) -> None:
    cut.mend_shape(0, zero_copies=False)


@op("ConstantOfShape", text="new indices are free", shrink=_shrink_constant_of_shape)
def constant_of_shape(view: OpView) -> list[Axes | None]:
    """All indices are free until tied."""
    if view.known(0) is None:
        return view.frozen_outputs()
    value = view.node.attributes.get("value")
    zero = value is None or not np.any(value.as_tensor().numpy())
    return [[Axis(view.fresh(n).rows, zero) for n in view.out_shape()]]


def _shrink_tile(cut: Cut) -> None:
    repeats = cut.known(1)
    for axis, n in enumerate(cut.old_in(0)):
        kept, left = cut.kept_in(0, axis), cut.kept_out(0, axis)
        if left is None or repeats is None:
            continue
        per = n if kept is None else len(kept)
        if per * int(repeats[axis]) != len(left):
            # Whole repeats were removed.
            cut.override(1, {axis: len(left) // per})


@op("Tile", text="rows repeated", shrink=_shrink_tile)
def tile(view: OpView) -> list[Axes | None]:
    """Rows over and over."""
    repeats, steady = view.known(1), view.steady(1)
    if repeats is None or steady is None:
        view.freeze_inputs("its repeats are computed when it runs", [0])
        return view.frozen_outputs()
    out: Axes = []
    for axis, n, fixed in zip(view.axes(0), repeats.reshape(-1), steady.reshape(-1), strict=True):
        if n == 1 and (fixed or len(axis) > 1):
            out.append(axis)
        elif len(axis) == 1 and not fixed:
            out.append(view.frozen(int(n)))
        elif len(axis) == 1:
            fresh = view.fresh(int(n))
            out.append(Axis(fresh.rows, False, fresh.places))
        else:
            out.append(view.merge([view.frozen(int(n)), axis]))
    return [out]


def pad_amounts(view: OpView, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Padding before and after each axis, and whether it is constant, int64[rank] twice and bool[rank]."""
    if view.opset < 11:
        amounts = np.asarray(view.attr("pads") or view.attr("paddings"), np.int64)
        return amounts[:rank], amounts[rank:], np.ones(rank, np.bool_)
    known, steady = view.known(1), view.steady(1)
    axes = view.constant(3)
    if known is None or steady is None or (view.has(3) and axes is None):
        return None
    begin, end, fixed = np.zeros(rank, np.int64), np.zeros(rank, np.int64), np.ones(rank, np.bool_)
    where = np.arange(rank) if axes is None else axes.reshape(-1) % rank
    n = len(where)
    begin[where], end[where], fixed[where] = known[:n], known[n:], steady[:n] & steady[n:]
    return begin, end, fixed


def _mode(view: OpView) -> str:
    mode = view.attr("mode", "constant")
    return mode.decode() if isinstance(mode, bytes) else str(mode)


def _shrink_pad(cut: Cut) -> None:
    rank = len(cut.old_in(0))
    amounts = pad_amounts(cut.view, rank)
    if amounts is None:
        return
    begin, end, _ = amounts
    changed: dict[int, tuple[int, int]] = {}
    for axis in range(rank):
        left = cut.kept_out(0, axis)
        left = np.arange(cut.old_out(0)[axis]) if left is None and cut.kept_in(0, axis) is not None else left
        if left is not None and (begin[axis] or end[axis]):
            kept = cut.kept_in(0, axis)
            n = cut.old_in(0)[axis]
            own = np.arange(n) if kept is None else kept
            # What is put in counts by the new indices left, what is taken away by the old ones that were left.
            before = (left < begin[axis]).sum() if begin[axis] > 0 else -(own < -begin[axis]).sum()
            after = (left >= begin[axis] + n).sum() if end[axis] > 0 else -(own >= n + end[axis]).sum()
            changed[axis] = (int(before), int(after))
    if changed:
        cut.set_pads(begin, end, changed)


@op("Pad", text="rows between free ones", shrink=_shrink_pad)
def pad(view: OpView) -> list[Axes | None]:
    """New indices are free (their number can be cut), negative ones take; other modes freeze."""
    x = view.axes(0)
    amounts = pad_amounts(view, len(x))
    if amounts is None:
        view.freeze_inputs("its amounts are computed when it runs", [0])
        return view.frozen_outputs()
    value = view.known(2) if view.opset >= 11 and view.has(2) else view.attr("value", 0.0)
    zero = value is not None and not np.any(value)
    out: Axes = []
    for axis, before, after, fixed in zip(x, *amounts, strict=True):
        if not fixed:
            view.freeze(axis, "is padded by amounts computed when it runs")
            out.append(view.frozen(len(axis) + int(before + after)))
        elif not before and not after:
            # A slice of zeros stays one only if nothing else is put in along the other axes.
            out.append(Axis(axis.rows, axis.zero and zero, axis.places))
        elif _mode(view) != "constant":
            view.freeze(axis, f"is padded with mode {_mode(view)}")
            out.append(view.frozen(len(axis) + int(before + after)))
        else:
            made = [view.fresh(max(int(n), 0)) for n in (before, after)]
            own = np.arange(max(-int(before), 0), len(axis) + min(int(after), 0))
            parts = [made[0], view.take(axis, own), made[1]]
            joined = view.concat([part for part in parts if len(part)])
            out.append(Axis(joined.rows, axis.zero and zero, axis.places))
    return [out]
