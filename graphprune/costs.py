"""MACs, parameters and bytes, before and after any decision, from real shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.coupler import subgraphs
from graphprune.coupling import Coupling
from graphprune.facts import Facts
from graphprune.ops.macs import terms_of
from graphprune.rules import OpView, Place, UnknownShape


@dataclass(frozen=True)
class Costs:
    """What a model costs.

    Attributes
    ----------
    macs
        Multiply-accumulates of one inference at the analysed shape, batch 1 where the batch is dynamic.
    params
        Elements of all parameters.
    bytes
        Bytes of all parameters.
    """

    macs: int
    params: int
    bytes: int

    def to_json(self) -> dict[str, int]:
        return {"macs": self.macs, "params": self.params, "bytes": self.bytes}

    def measure(self, name: str) -> int:
        return int(getattr(self, name))


class CostModel:
    """Prices decisions: the cost of a model as a function of which units are dead.

    Axes that a decision can shorten are listed once; a price is a few vector operations over them, so that a
    budget can be searched by bisection.
    """

    def __init__(self, model: ir.Model, coupling: Coupling, facts: Facts) -> None:
        self._coupling = coupling
        self._facts = facts
        #: Nodes whose MACs are left out because a shape is only known when they run.
        self.uncounted: list[ir.Node] = []
        self._batch = _dynamic_batch(model, facts)
        self._places: dict[Place, int] = {}
        self._sizes: list[int] = []
        self._macs: list[tuple[float, list[int]]] = []
        self._tensors: list[tuple[int, float, list[int]]] = []
        self._walk(model.graph)
        self._variable = [(slot, *place) for place, slot in self._places.items() if coupling.has_units(*place)]

    def _walk(self, graph: ir.Graph) -> None:
        for value in graph.initializers.values():
            self._tensor(value)
        for node in graph:
            try:
                terms = terms_of(OpView(node, self._coupling.coupler))
                for factor, places in terms:
                    batch = self._batch if _carries_batch(places, self._coupling, self._batch) else 1
                    self._macs.append((factor / batch, [self._slot(place) for place in places]))
            except UnknownShape:
                self.uncounted.append(node)
            for inner in subgraphs(node):
                self._walk(inner)

    def _tensor(self, value: ir.Value) -> None:
        tensor = value.const_value
        if tensor is None or tensor.dtype in (ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.STRING):
            return
        slots = [self._slot((value, axis)) for axis in range(len(tensor.shape))] if tensor.size > 1 else []
        self._tensors.append((int(tensor.size), tensor.nbytes / max(tensor.size, 1), slots))

    def _slot(self, place: Place) -> int:
        if place not in self._places:
            value, axis = place
            shape = self._facts.shape(value)
            if shape is None or axis >= len(shape):
                raise UnknownShape(f"'{value.name}' has no known axis {axis}")
            self._places[place] = len(self._sizes)
            self._sizes.append(shape[axis])
        return self._places[place]

    def price(self, dead: NDArray[np.bool_] | None = None) -> Costs:
        """Costs with the units of ``dead`` (bool[n_units]) gone."""
        sizes = np.asarray(self._sizes, np.float64)
        if dead is not None:
            gone = np.append(dead, False)
            for slot, value, axis in self._variable:
                rows = self._coupling.rows(value, axis)
                sizes[slot] = len(rows) - int(gone[rows].any(axis=1).sum())
        macs = sum(factor * float(np.prod(sizes[slots])) for factor, slots in self._macs)
        elements = [(float(np.prod(sizes[slots])) if slots else size, each) for size, each, slots in self._tensors]
        return Costs(round(macs), round(sum(n for n, _ in elements)), round(sum(n * each for n, each in elements)))


class Widths:
    """Sizes of axes as a function of how many units each group loses, in a given order: a table look-up.

    Exact where an axis belongs to one family of units; where two share it (heads and lanes), the kept shares
    are multiplied.

    Parameters
    ----------
    coupling
        The analysis.
    places
        The axes, each with its slot.
    sizes
        int[slots], sizes in the source.
    orders
        Group number -> its units in the order in which they go.
    """

    def __init__(
        self, coupling: Coupling, places: Mapping[Place, int], sizes: Sequence[int], orders: Mapping[int, NDArray[np.int64]]
    ) -> None:
        self.full = np.asarray(sizes, np.float64)
        #: Slot -> groups that can shorten it.
        self.groups: dict[int, frozenset[int]] = {}
        self._tables: dict[int, tuple[NDArray[np.int64], NDArray[np.float64]]] = {}
        self._shared = np.zeros(len(self.full), np.bool_)
        when = np.full(coupling.n_units + 1, -1)
        owner = np.full(coupling.n_units + 1, -1)
        for number, units in orders.items():
            when[units], owner[units] = np.arange(len(units)), number
        found: dict[int, list[tuple[int, NDArray[np.float64]]]] = {number: [] for number in orders}
        for (value, axis), slot in places.items():
            if not coupling.has_units(value, axis):
                continue
            rows = coupling.rows(value, axis)
            self._shared[slot] = rows.shape[1] > 1
            owners = owner[rows]
            numbers = np.unique(owners[owners >= 0]).tolist()
            self.groups[slot] = frozenset(numbers)
            for number in numbers:
                mine = np.where(owners == number, when[rows], len(when))
                first = mine.min(axis=1)
                gone = np.bincount(first[first < len(when)], minlength=len(orders[number]))
                found[number].append((slot, np.concatenate([[0], np.cumsum(gone)]) / len(rows)))
        for number, entries in found.items():
            if entries:
                slots, shares = zip(*entries, strict=True)
                self._tables[number] = np.asarray(slots), np.stack(shares)

    def sizes(self, removed: Mapping[int, int]) -> NDArray[np.float64]:
        """Sizes with that many units of each group gone, float64[slots]."""
        kept = np.ones(len(self.full))
        for number, count in removed.items():
            if count and number in self._tables:
                slots, shares = self._tables[number]
                gone = shares[:, count]
                kept[slots] = np.where(self._shared[slots], kept[slots] * (1 - gone), kept[slots] - gone)
        return self.full * kept


class Profile:
    """The same prices as a function of how many units each group loses, in a given order; see :class:`Widths`.

    Parameters
    ----------
    costs
        The model's costs.
    orders
        Group number -> its units in the order in which they go.
    """

    def __init__(self, costs: CostModel, orders: Mapping[int, NDArray[np.int64]]) -> None:
        places = {(value, axis): slot for slot, value, axis in costs._variable}
        self._widths = Widths(costs._coupling, places, costs._sizes, orders)
        self._macs = self._terms([(factor, slots) for factor, slots in costs._macs])
        params = [(1.0 if slots else float(size), slots) for size, _, slots in costs._tensors]
        each = [per for _, per, _ in costs._tensors]
        self._params = self._terms(params)
        self._bytes = self._terms([(n * per, slots) for (n, slots), per in zip(params, each, strict=True)])

    def _terms(self, terms: Sequence[tuple[float, list[int]]]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        return padded_terms(terms, len(self._widths.full))

    def price(self, measure: str, removed: Mapping[int, int]) -> float:
        """Cost by a measure (``macs``, ``params``, ``bytes``) with that many units of each group gone."""
        sizes = np.append(self._widths.sizes(removed), 1.0)
        factors, index = {"macs": self._macs, "params": self._params, "bytes": self._bytes}[measure]
        return float(factors @ sizes[index].prod(axis=1))


def padded_terms(
    terms: Sequence[tuple[float, list[int]]], one: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Factors and slots of products as arrays; ``one`` is the slot of a size that is always 1 and fills up rows."""
    width = max((len(slots) for _, slots in terms), default=1)
    index = np.asarray([[*slots, *[one] * (width - len(slots))] for _, slots in terms], np.int64).reshape(-1, width)
    return np.asarray([factor for factor, _ in terms]), index


def _dynamic_batch(model: ir.Model, facts: Facts) -> int:
    """The probed size of a dynamic batch axis; 1 where there is none."""
    for value in model.graph.inputs:
        shape = facts.shape(value)
        if shape and not value.is_initializer() and value.shape is not None and not isinstance(value.shape[0], int):
            return max(shape[0], 1)
    return 1


def batch_is_dynamic(model: ir.Model) -> bool:
    """Whether the first axis of the first input has no fixed size."""
    for value in model.graph.inputs:
        if not value.is_initializer() and value.shape is not None and len(value.shape):
            return not isinstance(value.shape[0], int)
    return False


def _carries_batch(places: tuple[Place, ...], coupling: Coupling, batch: int) -> bool:
    """Whether work that grows with the batch: all but what is made from parameters alone."""
    return batch > 1 and not all(coupling.coupler.is_parameter(value) for value, _ in places)
