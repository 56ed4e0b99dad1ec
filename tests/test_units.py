"""The algebra of units against independent oracles: every subset of units tried out, and networkx.

A test makes a random history of fresh, tied, split, merged, taken, joined and frozen axes, and writes
down what each step promises in terms of indices alone: "index i of this axis dies if and only if index i of
that one does". In the end every subset of live units is killed (a sample of them where there are many), and
every promise must hold, also those made long before.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import networkx as nx
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from graphprune.units import Rows, Units, concat_rows, frozen_rows, is_plainly_frozen, merge_rows, pad_columns

LONGEST = 12  # indices of an axis here
EXHAUSTIVE = 9  # live units up to which every subset is tried

Dead = Callable[[Rows], np.ndarray]  # row table -> bool[subsets, n], which indices die
Step = tuple[str, int, int, list[int]]


@dataclass
class History:
    """Units, the axes made so far, and what was promised about them."""

    units: Units = field(default_factory=Units)
    tables: list[Rows] = field(default_factory=list)
    promises: list[tuple[str, Callable[[Dead], bool]]] = field(default_factory=list)

    def promise(self, text: str, holds: Callable[[Dead], bool]) -> None:
        self.promises.append((text, holds))

    def pick(self, number: int) -> Rows:
        return self.tables[number % len(self.tables)]

    def run(self, step: Step) -> None:
        verb, a, b, numbers = step
        if verb == "fresh" or not self.tables:
            self.tables.append(self.units.fresh(1 + a % 6)[:, None])
            return
        getattr(self, verb)(self.pick(a), b, numbers)

    def tie(self, x: Rows, other: int, _: list[int]) -> None:
        same = [table for table in self.tables if len(table) == len(x)]
        y = same[other % len(same)]
        self.units.tie(x, y)
        self.promise("tied axes die index by index", lambda dead: bool((dead(x) == dead(y)).all()))

    def split(self, x: Rows, which: int, _: list[int]) -> None:
        n = len(x)
        ways = [s for k in (2, 3) for s in itertools.product(range(1, n + 1), repeat=k) if np.prod(s) == n]
        sizes = ways[which % len(ways)]
        factors = self.units.split(x, sizes)
        assert [len(factor) for factor in factors] == list(sizes)
        self.tables.extend(factors)
        self.promise("an axis dies where one of its factors does", lambda dead: _product(dead, x, factors))

    def merge(self, x: Rows, other: int, _: list[int]) -> None:
        y = self.pick(other)
        if len(x) * len(y) > LONGEST:
            return
        merged = merge_rows([self.units.resolve(x), y])
        self.tables.append(merged)
        self.promise("a product dies where one of its factors does", lambda dead: _product(dead, merged, [x, y]))

    def take(self, x: Rows, _: int, numbers: list[int]) -> None:
        indices = np.asarray(numbers[:LONGEST]) % len(x)
        taken = x[indices]
        self.tables.append(taken)
        self.promise(
            "what is taken dies with its source", lambda dead: bool((dead(taken) == dead(x)[:, indices]).all())
        )

    def join(self, x: Rows, other: int, _: list[int]) -> None:
        y = self.pick(other)
        if len(x) + len(y) > LONGEST:
            return
        joined = concat_rows([x, y])
        self.tables.append(joined)
        self.promise(
            "a concatenation dies like its pieces",
            lambda dead: bool((dead(joined) == np.concatenate([dead(x), dead(y)], axis=1)).all()),
        )

    def freeze(self, x: Rows, _: int, numbers: list[int]) -> None:
        rows = x[np.unique(np.asarray(numbers) % len(x))]
        self.units.freeze(rows)
        self.promise("what is frozen never dies", lambda dead: not dead(rows).any())


def _product(dead: Dead, whole: Rows, factors: list[Rows]) -> bool:
    """Whether ``whole`` dies where any factor does, row-major."""
    out = np.zeros((len(dead(whole)), 1), np.bool_)
    for factor in factors:
        out = (out[:, :, None] | dead(factor)[:, None, :]).reshape(len(out), -1)
    return bool((out == dead(whole)).all())


def live_units(history: History) -> list[int]:
    found = {int(u) for table in history.tables for u in np.unique(history.units.resolve(table))}
    return sorted(found - {0})


def subsets(live: list[int], count: int) -> np.ndarray:
    """bool[m, count], the units that are dead in each of ``m`` experiments."""
    k = len(live)
    if k <= EXHAUSTIVE:
        chosen = np.asarray(list(itertools.product([False, True], repeat=k)), np.bool_).reshape(2**k, k)
    else:
        rng = np.random.default_rng(k)
        chosen = np.concatenate([np.eye(k, dtype=np.bool_), ~np.eye(k, dtype=np.bool_), rng.random((200, k)) < 0.3])
    out = np.zeros((len(chosen), count), np.bool_)
    out[:, live] = chosen
    return out


def check(history: History) -> None:
    units = history.units
    live = live_units(history)
    # Live means: its own representative, and not made of parts.
    assert all(int(units.find(np.asarray([u]))[0]) == u and not units._refined[u] for u in live)
    trials = subsets(live, len(units))

    def dead(rows: Rows) -> np.ndarray:
        return np.asarray(trials[:, units.resolve(rows)].any(axis=2))

    for text, holds in history.promises:
        assert holds(dead), text
    refined = [int(u) for u in np.flatnonzero(units._refined[: len(units)])]
    parts = [(u, int(p)) for u in refined for p in units.find(units._parts[u]) if p > 0]
    assert nx.is_directed_acyclic_graph(nx.DiGraph(parts)), "a unit is part of itself"


VERBS = ["fresh", "tie", "split", "merge", "take", "join", "freeze"]
steps = st.tuples(
    st.sampled_from(VERBS), st.integers(0, 11), st.integers(0, 11), st.lists(st.integers(0, 11), min_size=1, max_size=6)
)


@settings(max_examples=600, deadline=None)
@given(st.lists(steps, max_size=14))
# Two refinements of one axis that are tied to each other afterwards: (2 3) against (3 2).
@example([("fresh", 5, 0, [0]), ("split", 0, 1, [0]), ("split", 0, 2, [0]), ("tie", 1, 0, [0]), ("tie", 3, 1, [0])])
# A product tied to a factor of itself would be a cycle.
@example([("fresh", 1, 0, [0]), ("fresh", 0, 0, [0]), ("merge", 0, 1, [0]), ("tie", 2, 0, [0]), ("tie", 0, 2, [0])])
def test_every_promise_holds_for_every_subset(history: list[Step]) -> None:
    made = History()
    for step in history:
        made.run(step)
    check(made)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(2, 4), st.integers(2, 4)), min_size=1, max_size=3), st.lists(steps, max_size=8))
# Two products of an axis with itself, tied: settling one pair of units must not leave other rows behind.
@example([(2, 3), (3, 3), (3, 3)], [("fresh", 0, 0, [0]), ("tie", 4, 2, [0]), ("tie", 6, 0, [0])])
def test_more_refinement(shapes: list[tuple[int, int]], history: list[Step]) -> None:
    """As above, from axes that are split at once: most steps then meet refined units."""
    made = History()
    for a, b in shapes:
        axis = made.units.fresh(a * b)[:, None]
        factors = made.units.split(axis, [a, b])
        made.tables.extend([axis, *factors])
        made.promise("split", functools.partial(_product, whole=axis, factors=factors))
    for step in history:
        made.run(step)
    check(made)


pairs = st.lists(st.tuples(st.integers(0, 14), st.integers(0, 14)), max_size=20)


@settings(max_examples=300, deadline=None)
@given(st.lists(pairs, max_size=5), st.booleans())
def test_unions_are_connected_components(batches: list[list[tuple[int, int]]], by_tie: bool) -> None:
    """Without refinement units are the components of a graph; that of unit 0 is frozen."""
    units = Units()
    units.fresh(14)
    graph = nx.Graph()
    graph.add_nodes_from(range(15))
    for batch in batches:
        graph.add_edges_from(batch)
        a, b = np.asarray([p for p, _ in batch], np.int64), np.asarray([q for _, q in batch], np.int64)
        if by_tie:
            units.tie(a[:, None], b[:, None])
        else:
            units.union(a, b)
    found = units.find(np.arange(15))
    for component in nx.connected_components(graph):
        assert set(found[list(component)].tolist()) == {min(component)}
    assert units.conflicts == 0


@pytest.mark.parametrize("sizes", [(4, 6), (2, 3, 4), (5, 2), (2, 2, 2)])
def test_split_of_fresh_units_frees_every_factor(sizes: tuple[int, ...]) -> None:
    units = Units()
    axis = units.fresh(int(np.prod(sizes)))[:, None]
    factors = units.split(axis, sizes)
    live = np.unique(np.concatenate([units.resolve(f).reshape(-1) for f in factors]))
    assert len(live) == sum(sizes)
    assert live.all()
    assert np.array_equal(np.sort(units.resolve(axis), axis=1), np.sort(merge_rows(factors), axis=1))
    # A second time nothing new is made.
    before = len(units)
    again = units.split(axis, sizes)
    assert len(units) == before
    assert all(np.array_equal(p, q) for p, q in zip(again, factors, strict=True))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_product_recovers_its_factors(order: tuple[int, ...]) -> None:
    """merge, tie to an axis of nobody, split: the factors come back, in whatever order they were merged."""
    units = Units()
    sizes = [2, 3, 4]
    factors = [units.fresh(n)[:, None] for n in sizes]
    merged = merge_rows([factors[i] for i in order])
    bare = units.fresh(24)[:, None]
    units.tie(bare, merged)
    back = units.split(bare, [sizes[i] for i in order])
    for i, found in zip(order, back, strict=True):
        assert np.array_equal(found, factors[i])


def test_repeated_and_tiled_rows_belong_to_one_factor() -> None:
    units = Units()
    x = units.fresh(3)[:, None]
    outer, inner = units.split(x[np.repeat(np.arange(3), 2)], [3, 2])
    assert np.array_equal(outer, x)
    assert not inner.any()
    outer, inner = units.split(x[np.tile(np.arange(3), 2)], [2, 3])
    assert not outer.any()
    assert np.array_equal(inner, x)
    assert len(units) == 4


@pytest.mark.xfail(
    strict=True, reason="an index (i, i) holds its unit once, so the column that is left has holes: frozen"
)
def test_square_of_an_axis_splits_into_it() -> None:
    """Sound but coarser than need be: (a a) is frozen when it is split, where both factors could be a."""
    units = Units()
    a = units.fresh(3)[:, None]
    left, right = units.split(merge_rows([a, a]), [3, 3])
    assert np.array_equal(left, a)
    assert np.array_equal(right, a)


def test_crossing_families_conflict_and_stay_sound() -> None:
    """(2 6) against (3 4): neither family can be told apart, so they become one or are frozen, and it is counted."""
    made = History()
    units = made.units
    a, b = (
        merge_rows([units.fresh(2)[:, None], units.fresh(6)[:, None]]),
        merge_rows([units.fresh(3)[:, None], units.fresh(4)[:, None]]),
    )
    made.tables += [a, b]
    made.tie(a, 1, [])
    assert units.conflicts == 1
    check(made)


def test_frozen_rows_cost_nothing_and_pad() -> None:
    rows = frozen_rows(1 << 40)
    assert is_plainly_frozen(rows)
    assert rows.base is not None
    assert not is_plainly_frozen(np.zeros((3, 1), np.int64))
    assert pad_columns(np.ones((2, 1), np.int64), 3).tolist() == [[1, 0, 0], [1, 0, 0]]


def test_long_chains_of_refinement() -> None:
    """A thousand splits behind each other: no recursion, and what is frozen at the end is frozen at the start."""
    units = Units()
    first = units.fresh(4)[:, None]
    axis = first
    for _ in range(1000):
        outer, inner = units.split(axis, [2, 2])
        bare = units.fresh(4)[:, None]
        units.tie(bare, merge_rows([outer, inner]))
        axis = bare
    units.freeze(outer)
    assert len(np.unique(units.resolve(first))) == 2  # the inner family is all that is left
    units.freeze(inner)
    assert not units.resolve(first).any()


def test_axes_divided_crosswise_keep_the_steps_they_share() -> None:
    """24 + 3 x 72 against 3 x 80: classes modulo 8 are the finest that fit both."""
    units = Units()
    single = units.fresh(24)[:, None]
    groups, places = units.fresh(3)[:, None], units.fresh(72)[:, None]
    rows = concat_rows([single, merge_rows([groups, places])])
    factors = units.split(rows, [3, 80])
    found = units.resolve(rows).max(axis=1)
    assert not units.resolve(factors[0]).any()
    for i in range(8):
        assert len(set(found[i::8].tolist())) == 1
    assert len(set(found.tolist())) == 8


def test_what_becomes_one_unit_of_the_whole_axis_is_frozen() -> None:
    """3 x 20 shuffled against 3 x 20: nothing smaller than all fits both, so nothing may die."""
    units = Units()
    rows = merge_rows([units.fresh(3)[:, None], units.fresh(20)[:, None]])
    shuffled = rows[np.arange(60).reshape(3, 20).T.reshape(-1)]
    units.split(shuffled, [3, 20])
    assert not units.resolve(rows).any()
