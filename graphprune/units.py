"""The algebra of units: who lives and dies together.

A *row table* ``rows: int64[n, k]`` tells for each of the ``n`` indices along one axis of one tensor which
units kill it: index ``i`` dies if and only if any unit in ``rows[i]`` dies. Unit 0 never dies, so it is
also the padding of short rows, and a row of zeros is a frozen index.

:class:`Units` holds what is known about the units themselves. A unit is *live*, *merged* into another one
(a union-find keeps the smallest number as representative; so whatever is merged with unit 0 is frozen), or
*refined*: it dies if and only if one of its parts dies. Refining is how heads and lanes, or groups and
positions, come to stand side by side: ``u_ij := {a_i, b_j}``.

Row tables are never rewritten when units change: they are read through :meth:`Units.resolve`. Every fact
that was true of two row tables stays true under later unions and refinements, so one sweep over a graph in
topological order is enough, and it terminates: each operation is finite, and a refined unit is replaced
by units from which it cannot be reached (:meth:`Units.refine` refuses anything else).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Ids = NDArray[np.int64]

FROZEN = np.int64(0)


def frozen_rows(n: int) -> Rows:
    """Rows of ``n`` frozen indices, int64[n, 1], held in no memory at all."""
    return np.broadcast_to(FROZEN, (n, 1))


def is_plainly_frozen(rows: Rows) -> bool:
    """Whether ``rows`` came from :func:`frozen_rows` (a cheap sufficient test)."""
    return rows.strides[0] == 0 and rows.shape[0] != 1 and not rows[:1].any()


def pad_columns(rows: Rows, k: int) -> Rows:
    """``rows`` widened to ``k`` columns by the unit that never dies."""
    if rows.shape[1] >= k:
        return rows
    return np.concatenate([rows, np.zeros((rows.shape[0], k - rows.shape[1]), np.int64)], axis=1)


def concat_rows(tables: Sequence[Rows]) -> Rows:
    """Row tables one below the other, int64[sum n, max k]."""
    k = max(table.shape[1] for table in tables)
    return np.concatenate([pad_columns(table, k) for table in tables], axis=0)


def merge_rows(tables: Sequence[Rows]) -> Rows:
    """Rows of the row-major product of several axes: index (i, j) dies with i or with j."""
    sizes = [len(table) for table in tables]
    if all(is_plainly_frozen(table) or (len(table) == 1 and not table.any()) for table in tables):
        return frozen_rows(int(np.prod(sizes)))
    columns = []
    for position, table in enumerate(tables):
        if not table.any():
            continue
        shape = [1] * len(sizes)
        shape[position] = sizes[position]
        grid = np.broadcast_to(table.reshape(*shape, table.shape[1]), (*sizes, table.shape[1]))
        columns.append(grid.reshape(-1, table.shape[1]))
    return np.concatenate(columns, axis=1) if columns else frozen_rows(int(np.prod(sizes)))


def _partition(column: Ids) -> bytes:
    """A label of the partition a column makes: equal for two columns that are equal up to renaming."""
    _, first, inverse = np.unique(column, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return bytes(rank[inverse.reshape(-1)].astype(np.int64).tobytes())


class Units:
    """All units of one analysis: live, merged or refined.

    Notes
    -----
    Every method works on whole arrays; none loops over indices in Python except where units meet in a way
    that needs refinement case by case.
    """

    def __init__(self) -> None:
        self._count = 1
        self._parent: Ids = np.zeros(1024, np.int64)
        self._parts: Rows = np.zeros((1024, 2), np.int64)
        self._refined: NDArray[np.bool_] = np.zeros(1024, np.bool_)
        self._any_refined = False
        #: How often axes met that are divided in different ways, so that units were frozen or made one.
        self.conflicts = 0

    def __len__(self) -> int:
        return self._count

    def fresh(self, n: int) -> Ids:
        """``n`` new live units, int64[n]."""
        start, self._count = self._count, self._count + n
        if self._count > len(self._parent):
            size = max(self._count, 2 * len(self._parent))
            old = len(self._parent)
            self._parent = np.concatenate([self._parent, np.arange(old, size)])
            self._parts = np.concatenate([self._parts, np.zeros((size - old, self._parts.shape[1]), np.int64)])
            self._refined = np.concatenate([self._refined, np.zeros(size - old, np.bool_)])
        ids = np.arange(start, self._count)
        self._parent[ids] = ids
        return ids

    def find(self, ids: Ids) -> Ids:
        """Representatives of ``ids`` (any shape)."""
        root = self._parent[ids]
        while True:
            up = self._parent[root]
            if (up == root).all():
                break
            root = self._parent[up]
        self._parent[ids] = root
        return root

    def resolve(self, rows: Rows) -> Rows:
        """``rows`` in terms of live units: refined ones replaced by their parts, duplicate columns dropped."""
        if rows.strides[0] == 0 and not rows[:1].any():
            return rows
        out = self.find(rows)
        while self._any_refined:
            refined = self._refined[out]
            if not refined.any():
                break
            columns = []
            for j in range(out.shape[1]):
                if not refined[:, j].any():
                    columns.append(out[:, j : j + 1])
                    continue
                parts = self._parts[out[:, j]]
                parts[~refined[:, j]] = 0
                parts[~refined[:, j], 0] = out[~refined[:, j], j]
                columns.append(self.find(parts))
            out = np.concatenate(columns, axis=1)
        return _tidy(out)

    def union(self, a: Ids, b: Ids) -> None:
        """Make ``a[i]`` and ``b[i]`` one unit each, int64[n] both; with unit 0 this freezes."""
        a, b = self.find(a.reshape(-1)), self.find(b.reshape(-1))
        differ = a != b
        if not differ.any():
            return
        a, b = a[differ], b[differ]
        # A refined representative dies with its parts: what joins it must be tied to these, not to its name.
        if self._any_refined and (self._refined[a] | self._refined[b]).any():
            self.tie(a[:, None], b[:, None])
            return
        while len(a):
            # Every larger root hangs itself below the smallest root it meets; each round at least one root
            # goes, and pairs that were not joined by it meet again.
            low, high = np.minimum(a, b), np.maximum(a, b)
            self._parent[high] = low
            np.minimum.at(self._parent, high, low)
            a, b = self.find(low), self.find(high)
            differ = a != b
            a, b = a[differ], b[differ]

    def freeze(self, rows: Rows) -> None:
        """No unit in ``rows`` may ever die."""
        live = self.resolve(rows).reshape(-1)
        live = live[live > 0]
        if len(live):
            self._parent[live] = 0

    def refine(self, units: Ids, parts: Rows) -> None:
        """``units[i]`` (live, distinct) dies if and only if one of ``parts[i]`` dies.

        A unit that would contain itself cannot be refined; it and its parts become one unit instead.
        """
        parts = self.resolve(parts)
        stale = self._refined[units] | (self._parent[units] != units)
        if stale.any():
            self.tie(units[stale][:, None], parts[stale])
            units, parts = units[~stale], self.resolve(parts[~stale])
        cyclic = (parts == units[:, None]).any(axis=1)
        # Parts may hold other units of the same call: a chain among them could close a cycle, so those
        # are taken out by the same coarse rule (sound: whatever is one unit dies together).
        cyclic |= np.isin(parts, units).any(axis=1)
        for row in np.flatnonzero(cyclic):
            everything = np.concatenate([units[row : row + 1], parts[row][parts[row] > 0]])
            self.union(everything[:-1], everything[1:])
        if cyclic.any():
            # Those unions may have reached the other units of this call: look at what is left of it anew.
            self.refine(units[~cyclic], parts[~cyclic])
            return
        if not len(units):
            return
        if parts.shape[1] > self._parts.shape[1]:
            self._parts = pad_columns(self._parts, parts.shape[1])
        self._parts[units] = pad_columns(parts, self._parts.shape[1])
        self._refined[units] = True
        self._any_refined = True

    # -- the verbs of the coupling model ------------------------------------------------------------

    def split(self, rows: Rows, sizes: Sequence[int]) -> list[Rows]:
        """Rows of the factors of one axis of ``prod(sizes)`` indices, row-major.

        A column that is constant along a factor does not concern it. A column that concerns several
        factors is refined into one fresh unit per index of each of them.
        """
        rows = self.resolve(rows)
        if len(sizes) == 1:
            return [rows]
        if not rows.any():
            return [frozen_rows(size) for size in sizes]
        if rows.shape[1] > 1 and any(_collapses(column, sizes) for column in rows.T):
            # Column by column all of it would become one unit: let the rows meet the grid as a whole instead.
            self.conflicts += 1
            factors = [self.fresh(size)[:, None] if size > 1 else frozen_rows(size) for size in sizes]
            self.tie(rows, merge_rows(factors))
            return [self.resolve(factor) for factor in factors]
        out: list[list[Rows]] = [[] for _ in sizes]
        for j in range(rows.shape[1]):
            if not rows[:, j].any():
                continue
            column = rows[:, j].reshape(*sizes)
            concerns = _concerns(column)
            if len(concerns) <= 1:
                factor = concerns[0] if concerns else int(np.argmax(np.asarray(sizes) > 1))
                pick = tuple(slice(None) if f == factor else 0 for f in range(len(sizes)))
                out[factor].append(column[pick].reshape(-1, 1))
                continue
            fresh = {f: self.fresh(sizes[f]) for f in concerns}
            core = column[tuple(slice(None) if f in fresh else 0 for f in range(len(sizes)))]
            grids = np.meshgrid(*fresh.values(), indexing="ij")
            parts = np.stack([grid.reshape(-1) for grid in grids], axis=1)
            self._define(core.reshape(-1), parts)
            for f, ids in fresh.items():
                out[f].append(ids[:, None])
        return [
            self.resolve(np.concatenate(tables, axis=1)) if tables else frozen_rows(size)
            for tables, size in zip(out, sizes, strict=True)
        ]

    def _define(self, units: Ids, parts: Rows) -> None:
        """``units[i] := parts[i]`` where a unit may stand several times: its parts are then made equal."""
        ids, first, inverse = np.unique(units, return_index=True, return_inverse=True)
        inverse = inverse.reshape(-1)
        representative = parts[first]
        for j in range(parts.shape[1]):
            self.union(parts[:, j], representative[inverse, j])
        never = ids == 0
        if never.any():
            self.freeze(representative[never])
        # The units may be the result of earlier unions only, so they're live; a part may have been frozen.
        self.refine(ids[~never], representative[~never])

    def tie(self, a: Rows, b: Rows) -> None:
        """Index i of one axis lives and dies with index i of another: ``a: int64[n, k]``, ``b: int64[n, m]``."""
        if a is b:
            return
        a, b = self.resolve(a), self.resolve(b)
        if a.shape == b.shape and np.array_equal(a, b):
            return
        single = (_width(a) <= 1) & (_width(b) <= 1)
        if single.any():
            self.union(a[single].max(axis=1), b[single].max(axis=1))
            if single.all():
                return
        rest_a, rest_b, before = a[~single], b[~single], self.conflicts
        a, b = self.resolve(rest_a), self.resolve(rest_b)
        a, b = self._refine_singles(a, b)
        a, b = self._refine_singles(b, a)
        if len(a):
            self._match(a, b)
        self._settle(rest_a, rest_b)
        if self.conflicts > before:
            # What has become one unit of the whole axis can never die: frozen, it is in nobody's way.
            for unit in np.unique(self.resolve(rest_a)[:1]):
                if single.sum() == 0 and (self.resolve(rest_a) == unit).any(axis=1).all():
                    self.freeze(np.asarray([[unit]]))

    def _settle(self, a: Rows, b: Rows) -> None:
        """What finer means left open is settled coarsely: all units of a row become one.

        Each round joins or freezes at least one unit, so it ends.
        """
        while True:
            left_a, left_b = self.resolve(a), self.resolve(b)
            left = ~_same_sets(left_a, left_b)
            if not left.any():
                return
            left_a, left_b = left_a[left], left_b[left]
            lonely = (_width(left_a) == 0) | (_width(left_b) == 0)
            self.freeze(left_a[lonely])
            self.freeze(left_b[lonely])
            k = max(left_a.shape[1], left_b.shape[1])
            both = np.concatenate([pad_columns(left_a, k), pad_columns(left_b, k)], axis=1)[~lonely]
            for row in both:
                units = np.unique(self.resolve(row[None]))
                units = units[units > 0]
                if len(units) > 1:
                    self.union(units[1:], np.full(len(units) - 1, units[0]))

    def _refine_singles(self, one: Rows, many: Rows) -> tuple[Rows, Rows]:
        """Refine a unit that alone stands against several; give back what this could not settle."""
        if not len(one):
            return one, many
        single = (_width(one) <= 1) & (_width(many) > 1)
        frozen = single & ~one.any(axis=1)
        if frozen.any():
            self.freeze(many[frozen])
        single &= ~frozen
        if single.any():
            units = one.max(axis=1)
            parts = np.sort(many, axis=1)
            ids, first, inverse = np.unique(units, return_index=True, return_inverse=True)
            inverse = inverse.reshape(-1)
            agree = (parts == parts[first][inverse]).all(axis=1) & single & ~(many == units[:, None]).any(axis=1)
            settled = np.ones(len(ids), np.bool_)
            np.logical_and.at(settled, inverse, agree)
            chosen = settled & (ids > 0)
            self.refine(ids[chosen], many[first][chosen])
        one, many = self.resolve(one), self.resolve(many)
        left = ~_same_sets(one, many)
        return one[left], many[left]

    def _match(self, a: Rows, b: Rows) -> None:
        """Match columns by the partition they make; a column too many is frozen, the rest made one."""
        free = list(range(b.shape[1]))
        labels = {j: _partition(b[:, j]) for j in free}
        rest = []
        for i in range(a.shape[1]):
            label = _partition(a[:, i])
            hit = next((j for j in free if labels[j] == label), None)
            if hit is None:
                rest.append(i)
                continue
            free.remove(hit)
            self.union(a[:, i], b[:, hit])
        if not rest and not free:
            return
        a, b = self.resolve(a), self.resolve(b)
        left = ~_same_sets(a, b)
        a, b = _without_common(a[left], b[left])
        if not len(a):
            return
        self.conflicts += 1
        pair = _finest_pair(a, b)
        if pair is not None:
            i, j = pair
            self.freeze(_others(a, i))
            self.freeze(_others(b, j))
            self.union(_column(a, i), _column(b, j))
            return
        lonely = (_width(a) == 0) | (_width(b) == 0)
        self.freeze(a[lonely])
        self.freeze(b[lonely])
        if rest and free and len(rest) != a.shape[1]:
            a, b = self._refine_singles(self.resolve(a[~lonely]), self.resolve(b[~lonely]))
        both = self.resolve(np.concatenate([a, b], axis=1)) if len(a) else a
        for j in range(both.shape[1]) if len(both) else ():
            mask = both[:, j] > 0
            anchor = both.max(axis=1)
            self.union(both[mask, j], anchor[mask])


def _concerns(column: NDArray[np.int64]) -> list[int]:
    """Factors along which a column, reshaped to one axis a factor, is not constant."""
    return [f for f, n in enumerate(column.shape) if n > 1 and not (column == column.take([0], axis=f)).all()]


def _collapses(column: Ids, sizes: Sequence[int]) -> bool:
    """Whether refining a column over the factors would make all indices of each factor one unit.

    That is so where a unit stands at positions that lie apart in every factor, and these chain up.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    grid = column.reshape(*sizes)
    concerns = _concerns(grid)
    units, inverse, counts = np.unique(column, return_inverse=True, return_counts=True)
    if len(concerns) < 2 or counts.max() == 1:
        return False
    for f in concerns:
        positions = np.broadcast_to(np.arange(sizes[f]).reshape([-1 if g == f else 1 for g in range(len(sizes))]), sizes)
        links = coo_array(
            (np.ones(len(column), np.int8), (positions.reshape(-1), sizes[f] + inverse.reshape(-1))),
            shape=(sizes[f] + len(units),) * 2,
        )
        if connected_components(links, directed=False)[0] > 1:
            return False
    return True


def _finest_pair(a: Rows, b: Rows) -> tuple[int, int] | None:
    """The columns of ``a`` and ``b`` that leave most units if they are tied and all others frozen.

    Axes divided in different ways, 3 x 80 against 24 + 3 x 72 say, often still share what lies a common step
    apart. None where that leaves no more than one unit.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    nodes, flat = np.unique(np.concatenate([[0], a.reshape(-1), b.reshape(-1)]), return_inverse=True)
    flat = flat.reshape(-1)[1:]
    left, right = flat[: a.size].reshape(a.shape), flat[a.size :].reshape(b.shape)
    best, most = None, 1
    for i in range(a.shape[1]):
        for j in range(b.shape[1]):
            never = np.concatenate([_others(left, i), _others(right, j)])[:, 0]
            ends = np.concatenate([_column(right, j), np.zeros_like(never)])
            starts = np.concatenate([_column(left, i), never])
            links = coo_array((np.ones(len(starts), np.int8), (starts, ends)), shape=(len(nodes), len(nodes)))
            # The component of unit 0 is what is frozen.
            count = connected_components(links, directed=False)[0] - 1
            if count > most:
                best, most = (i, j), count
    return best


def _column(rows: Rows, j: int) -> Ids:
    """Column ``j``, with the only unit of a row that has no other, wherever that stands."""
    return np.where(_width(rows) > 1, rows[:, j], rows.max(axis=1))


def _others(rows: Rows, j: int) -> Rows:
    """All that :func:`_column` leaves out, int64[m, 1]."""
    return np.delete(rows[_width(rows) > 1], j, axis=1).reshape(-1, 1)


def _width(rows: Rows) -> NDArray[np.int64]:
    """Number of distinct units that can die in each row, int64[n]."""
    if rows.shape[1] == 1:
        return (rows[:, 0] > 0).astype(np.int64)
    ordered = np.sort(rows, axis=1)
    new = np.ones_like(ordered, np.bool_)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return np.asarray((new & (ordered > 0)).sum(axis=1))


def _tidy(rows: Rows) -> Rows:
    """``rows`` without repeated units in a row and without columns of zeros; column order kept."""
    if rows.shape[1] == 1:
        return rows
    kept: list[Ids] = []
    for j in range(rows.shape[1]):
        column = rows[:, j]
        for other in kept:
            column = np.where(column == other, 0, column)
        if column.any():
            kept.append(column)
    return np.stack(kept, axis=1) if kept else frozen_rows(len(rows))


def _sets(rows: Rows, k: int) -> Rows:
    return np.sort(pad_columns(_tidy(rows), k), axis=1)


def _same_sets(a: Rows, b: Rows) -> NDArray[np.bool_]:
    """Rows of ``a`` and ``b`` that hold the same units, bool[n]."""
    k = max(a.shape[1], b.shape[1])
    return np.asarray((_sets(a, k) == _sets(b, k)).all(axis=1))


def _without_common(a: Rows, b: Rows) -> tuple[Rows, Rows]:
    """Both with the units that stand in the same row of the other taken out."""
    in_b = (a[:, :, None] == b[:, None, :]).any(axis=2)
    in_a = (b[:, :, None] == a[:, None, :]).any(axis=2)
    return np.where(in_b, 0, a), np.where(in_a, 0, b)
