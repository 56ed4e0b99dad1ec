"""Reading and writing at positions: an axis that is looked into at positions nobody knows is frozen.

Positions that are known before running are fancy indexing like any other: the rows are taken, and the
positions are counted anew among what is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphprune.rules import Axes, Axis, OpView, op

if TYPE_CHECKING:
    from graphprune.cut import Cut


@op("Shape", "Size", text="... -> the sizes, which follow the cut by themselves")
def sizes(view: OpView) -> list[Axes | None]:
    """Sizes are read when it runs, after the cut: nothing has to be frozen."""
    return view.frozen_outputs()


def _shrink_range(cut: Cut) -> None:
    """Positions counted up to a size that was cut stay what they were: what reads them counts anew by itself."""
    for i in range(3):
        old, new = cut.known(i), cut.known_new(i)
        if old is None or new is None or np.array_equal(old, new):
            continue
        if cut.view.constant(i) is None:
            raise cut.error("it counts up to a size that is cut and computed when it runs")
        cut.set_input(i, old)


@op("Range", text="-> _n", shrink=_shrink_range)
def positions(view: OpView) -> list[Axes | None]:
    """Positions are nobody's channels."""
    return view.frozen_outputs()


# -- one axis, positions element by element ------------------------------------------------------------
def _prefix(view: OpView, axis: Axis, index: Axis) -> Axis:
    """The first indices of a data axis, as many as the index axis has: these two meet."""
    return axis if len(axis) == len(index) else view.take(axis, np.arange(len(index)))


def _table(view: OpView, x: Axes) -> Axes:
    """Data axes; a parameter that is read at computed positions is a table of weights, zero where masked."""
    if not view.is_parameter(0) or view.is_parameter(1):
        return x
    view.weight(0, "table")
    return [Axis(axis.rows, True, axis.places) for axis in x]


@op("GatherElements", text="... _n ..., ... m ... -> ... m ...")
def gather_elements(view: OpView) -> list[Axes | None]:
    """The axis looked into is frozen; along the others data and indices meet, from the first index on."""
    x, indices = _table(view, view.axes(0)), view.axes(1)
    along = int(view.attr("axis", 0)) % len(x)
    out: Axes = []
    for i, (axis, index) in enumerate(zip(x, indices, strict=True)):
        if i == along:
            view.freeze(axis, "is read at positions element by element")
            out.append(Axis(index.rows, False, index.places))
        else:
            view.tie(_prefix(view, axis, index), index)
            out.append(Axis(index.rows, axis.zero, axis.places + index.places))
    return [out]


@op("ScatterElements", "Scatter", text="... _n ..., ... _m ..., ... _m ... -> ... _n ...")
def scatter_elements(view: OpView) -> list[Axes | None]:
    """The axis written into is frozen; along the others all operands meet, from the first index on."""
    x, indices, updates = view.axes(0), view.axes(1), view.axes(2)
    along = int(view.attr("axis", 0)) % len(x)
    out: Axes = []
    for i, (axis, index, update) in enumerate(zip(x, indices, updates, strict=True)):
        if i == along:
            for own in (axis, index, update):
                view.freeze(own, "is written at positions element by element")
            out.append(view.frozen(len(axis)))
            continue
        view.tie(_prefix(view, axis, index), index)
        view.tie(index, _prefix(view, update, index))
        out.append(Axis(axis.rows, axis.zero and update.zero, axis.places + update.places))
    return [out]


# -- several axes, positions as tuples -----------------------------------------------------------------
def _flat(positions: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Row-major numbers of position tuples: ``positions: int64[..., k]`` in ``shape`` of length k."""
    wrapped = positions % np.asarray(shape)
    return np.asarray(np.ravel_multi_index(tuple(np.moveaxis(wrapped, -1, 0)), shape))


def _addressed(view: OpView, axes: Axes, positions: np.ndarray) -> Axes:
    """Rows of the places that position tuples address, one axis for each axis of tuples."""
    shape = tuple(len(axis) for axis in axes)
    taken = view.take(view.merge(axes), _flat(positions, shape).reshape(-1))
    return view.split(taken, list(positions.shape[:-1]))


def _has_units(axes: Axes) -> bool:
    return any(axis.rows.any() for axis in axes)


def _mend_positions(cut: Cut, kept: list[np.ndarray | None]) -> None:
    """Drop position tuples that were removed, and count the others among the indices that are left.

    ``kept`` is what is left of each axis of tuples; they address the leading axes of the data.
    """
    positions, found = cut.view.constant(1), cut.known_new(1)
    lefts = [cut.kept_in(0, t) for t in range(cut.old_in(1)[-1])]
    if all(left is None for left in (*kept, *lefts)):
        return
    if positions is None:
        raise cut.error("its indices are computed when it runs")
    for axis, left in enumerate(kept):
        positions = positions if left is None else positions.take(left, axis=axis)
    columns = [positions[..., t] % cut.old_in(0)[t] for t in range(len(lefts))]
    new = np.stack([cut.positions(left, column) for left, column in zip(lefts, columns, strict=True)], axis=-1)
    if found is None or not np.array_equal(found, new):
        cut.set_input(1, new.astype(positions.dtype))


def _shrink_gather_nd(cut: Cut) -> None:
    rank = len(cut.old_in(1)) - 1
    batch = int(cut.attr("batch_dims", 0))
    # With batch axes nothing that is addressed is ever cut: what flows needs no mending.
    if not batch and any(cut.kept_in(0, t) is not None for t in range(cut.old_in(1)[-1])):
        _mend_positions(cut, [cut.kept_out(0, axis) for axis in range(rank)])


@op("GatherND", text="(n m) ..., i _k -> i ...: taken where positions are known, else n, m frozen",
    shrink=_shrink_gather_nd)  # fmt: skip
def gather_nd(view: OpView) -> list[Axes | None]:
    """Known positions take rows; else the axes they address are frozen. Batch axes meet, trailing ones flow."""
    x, indices, positions = _table(view, view.axes(0)), view.axes(1), view.constant(1)
    batch = int(view.attr("batch_dims", 0))
    depth = len(indices[-1])
    head, tail = x[batch : batch + depth], x[batch + depth :]
    view.freeze(indices[-1], "is a position tuple")
    if positions is not None and not batch and _has_units(head):
        return [[*_addressed(view, head, positions), *tail]]
    for axis in head:
        view.freeze(axis, "is read at indices computed when it runs")
    shared: Axes = []
    for axis, index in zip(x[:batch], indices[:batch], strict=True):
        tied = view.tie(axis, index)
        shared.append(Axis(tied.rows, axis.zero, tied.places))
    middle = [Axis(index.rows, False, index.places) for index in indices[batch:-1]]
    return [[*shared, *middle, *tail]]


def _shrink_scatter_nd(cut: Cut) -> None:
    _mend_positions(cut, [cut.kept_in(2, axis) for axis in range(len(cut.old_in(1)) - 1)])


@op("ScatterND", text="(n m) ..., i _k, i ... -> (n m) ...: i taken where positions are known, else frozen",
    shrink=_shrink_scatter_nd)  # fmt: skip
def scatter_nd(view: OpView) -> list[Axes | None]:
    """Updates live and die with the places they are written to; trailing axes of data and updates meet."""
    x, indices, updates, positions = view.axes(0), view.axes(1), view.axes(2), view.constant(1)
    depth = len(indices[-1])
    count = len(indices) - 1
    view.freeze(indices[-1], "is a position tuple")
    head = x[:depth]
    if positions is not None and _has_units([*head, *updates[:count]]):
        for place, update in zip(_addressed(view, head, positions), updates[:count], strict=True):
            view.tie(place, update)
    else:
        for axis in head:
            view.freeze(axis, "is written at indices computed when it runs")
        for axis in (*indices[:-1], *updates[:count]):
            view.freeze(axis, "counts what is written at indices computed when it runs")
    for axis, update in zip(x[depth:], updates[count:], strict=True):
        view.tie(axis, update)
    # A removed slice is zero only if nothing else is written into it: its updates are removed with it.
    out = []
    for i, axis in enumerate(x):
        own = updates[count + i - depth].zero if i >= depth else all(update.zero for update in updates[:count])
        out.append(Axis(axis.rows, axis.zero and own, axis.places))
    return [out]


@op("TensorScatter", text="b ... _n d, b ... _m d, b -> b ... _n d")
def tensor_scatter(view: OpView) -> list[Axes | None]:
    """The axis of steps is frozen; along the others cache and update meet."""
    cache, update = view.axes(0), view.axes(1)
    along = int(view.attr("axis", -2)) % len(cache)
    out: Axes = []
    for i, (axis, new) in enumerate(zip(cache, update, strict=True)):
        if i == along:
            for own in (axis, new):
                view.freeze(own, "is written at positions computed when it runs")
            out.append(view.frozen(len(axis)))
        else:
            out.append(view.tie(axis, new))
    if view.has(2):
        view.tie(cache[0], view.axes(2)[0])
    return [out]


# -- positions as an axis ------------------------------------------------------------------------------
@op("OneHot", text="... -> ... _n ...")
def one_hot(view: OpView) -> list[Axes | None]:
    """The new axis is what indices count along; the others flow."""
    indices, shape = view.axes(0), view.out_shape()
    along = int(view.attr("axis", -1)) % len(shape)
    out = [Axis(axis.rows, False, axis.places) for axis in indices]
    out.insert(along, view.frozen(shape[along]))
    return [out]


@op("ReverseSequence", text="_n b ..., b -> _n b ...")
def reverse_sequence(view: OpView) -> list[Axes | None]:
    """Time is frozen; the batch axis meets the lengths."""
    x = list(view.axes(0))
    time, batch = int(view.attr("time_axis", 0)), int(view.attr("batch_axis", 1))
    x[time % len(x)] = view.freeze(x[time % len(x)], "is reversed up to lengths computed when it runs")
    view.tie(x[batch % len(x)], view.axes(1)[0])
    return [x]


@op("Trilu", "com.microsoft::Trilu", text="... _i _j -> ... _i _j")
def trilu(view: OpView) -> list[Axes | None]:
    """The two axes of the triangle are frozen."""
    x = list(view.axes(0))
    for i in (-2, -1):
        x[i] = view.freeze(x[i], "is an axis of the triangle")
    return [x]


def _shrink_compress(cut: Cut) -> None:
    condition, rank = cut.view.constant(1), len(cut.old_in(0))
    kept = cut.kept_in(0, int(cut.attr("axis", 0)) % rank)
    if kept is not None and condition is not None:
        cut.set_input(1, np.pad(condition, (0, max(0, int(kept[-1]) + 1 - len(condition))))[kept])


@op("Compress", text="... n ..., _ -> ... n[known] ...", shrink=_shrink_compress)
def compress(view: OpView) -> list[Axes | None]:
    """A known condition takes; one that is computed freezes the axis, and all of them without ``axis``."""
    x, condition, given = view.axes(0), view.constant(1), view.attr("axis")
    if condition is None or given is None:
        view.freeze_inputs("is picked from by a condition computed when it runs, or over all axes", [0, 1])
        return view.frozen_outputs()
    along = int(given) % len(x)
    out = list(x)
    out[along] = view.take(x[along], np.flatnonzero(condition[: len(x[along])]))
    return [out]
