"""What the sweep found, in terms of decisions: prunable units, their groups, and what is frozen and why."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.coupler import Across, Coupler, Freeze, Operand
from graphprune.plan import DERIVED
from graphprune.rules import Place
from graphprune.units import is_plainly_frozen

if TYPE_CHECKING:
    import networkx as nx

#: What plays a part in pruning: an axis of one of these roles makes its units prunable.
PRUNABLE_ROLES = frozenset({"weight", "bias", "scale", "table"})
#: Families that are cut whole by default where two share an axis.
COARSE_KINDS = ("head", "group", "expert")


@dataclass(frozen=True, eq=False)
class Group:
    """Units of one kind that touch the same tensor axes: one layer width.

    Attributes
    ----------
    units
        int64[m], prunable units in the order of the first axis they stand on.
    members
        (source tensor, axis) pairs that lose indices with them.
    fine
        Whether a coarser family shares an axis (lanes within heads, positions within groups).
    shared
        Whether any other family shares an axis.
    """

    id: int
    kind: str
    units: NDArray[np.int64]
    members: tuple[Place, ...]
    exact: bool
    fine: bool
    shared: bool


@dataclass(frozen=True)
class Frozen:
    """Indices of a tensor axis that nothing may remove, with the node and the reason in words."""

    tensor: ir.Value
    axis: int
    size: int
    node: str
    reason: str
    op: str = ""


@dataclass(eq=False)
class Coupling:
    """The finished analysis.

    Units are numbered anew, 0 .. ``n_units`` - 1, prunable ones only; -1 in a row stands for none.
    """

    coupler: Coupler
    n_units: int = 0
    groups: list[Group] = field(default_factory=list)
    inexact: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    #: Tensors that only constants were computed from: such nodes are folded, so nothing is left to cut.
    folded: list[Frozen] = field(default_factory=list)
    #: Indices of weight axes that die with each unit, int64[n_units].
    weight: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    #: Numbers of the groups that share a tensor axis with a group.
    near: dict[int, set[int]] = field(default_factory=dict)
    _compact: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    _whole: dict[Place, str] = field(default_factory=dict)
    _cache: dict[Place, NDArray[np.int64]] = field(default_factory=dict)

    # -- reading -----------------------------------------------------------------------------------
    def rows(self, value: ir.Value, axis: int) -> NDArray[np.int64]:
        """Prunable units of each index of an axis, int64[n, k], -1 for none."""
        place = (value, axis)
        if place not in self._cache:
            axes = self.coupler.axes.get(value)
            if axes is None:
                raise KeyError(f"'{value.name}' has no known axes")
            raw = axes[axis].rows
            if is_plainly_frozen(raw):
                self._cache[place] = np.broadcast_to(np.int64(-1), raw.shape)
            else:
                self._cache[place] = self._compact[self.coupler.units.resolve(raw)]
        return self._cache[place]

    def has_units(self, value: ir.Value, axis: int) -> bool:
        """Whether any index of the axis can be removed."""
        axes = self.coupler.axes.get(value)
        if axes is None or is_plainly_frozen(axes[axis].rows):
            return False
        return bool((self.rows(value, axis) >= 0).any())

    def places(self) -> Iterator[Place]:
        """Every (value, axis) that some unit can shorten."""
        for value, axes in self.coupler.axes.items():
            for axis in range(len(axes or ())):
                if self.has_units(value, axis):
                    yield value, axis

    @cached_property
    def constants(self) -> list[ir.Value]:
        """Source tensors in the order they were met."""
        return list(dict.fromkeys(self.coupler.constants))

    @cached_property
    def operands(self) -> list[Operand]:
        """Parameters with their roles, each (value, role) once."""
        return list({(o.value, o.role): o for o in self.coupler.operands}.values())

    @cached_property
    def group_of(self) -> NDArray[np.int64]:
        """Group number of each unit, int64[n_units]."""
        out = np.full(self.n_units, -1)
        for group in self.groups:
            out[group.units] = group.id
        return out

    @cached_property
    def graph(self) -> nx.Graph[Place]:
        """The coupling graph: (value, axis) nodes; edges carry the op node through which they are coupled."""
        import networkx as nx

        graph: nx.Graph[Place] = nx.Graph()
        for a, b, node in self.coupler.edges:
            graph.add_edge(a, b, node=node)
        for freeze in self.coupler.freezes:
            graph.add_node(freeze.place)
        return graph

    @cached_property
    def causes(self) -> dict[Place, Freeze]:
        """The first reason noted for each place."""
        out: dict[Place, Freeze] = {}
        for freeze in self.coupler.freezes:
            out.setdefault(freeze.place, freeze)
        return out

    # -- frozen ------------------------------------------------------------------------------------
    def _nearest_causes(self) -> dict[Place, Freeze]:
        """For every place that holds frozen indices, the nearest reason along the coupling graph."""
        found = dict(self.causes)
        near: dict[Place, list[Place]] = {}
        for a, b, _ in self.coupler.edges:
            near.setdefault(a, []).append(b)
            near.setdefault(b, []).append(a)
        queue = deque(found)
        while queue:
            place = queue.popleft()
            for other in near.get(place, ()):
                if other not in found and self._some_frozen(other):
                    found[other] = found[place]
                    queue.append(other)
        return found

    def _some_frozen(self, place: Place) -> bool:
        value, axis = place
        axes = self.coupler.axes.get(value)
        return axes is not None and bool((~(self.rows(value, axis) >= 0).any(axis=1)).any())

    @cached_property
    def frozen(self) -> list[Frozen]:
        """Every axis of a source tensor that holds indices nothing may remove, with its reason."""
        nearest = self._nearest_causes()
        out = list(self.folded)
        for tensor in self.constants:
            if DERIVED in tensor.meta:
                continue
            for axis, own in enumerate(self.coupler.axes.get(tensor) or ()):
                free = (self.rows(tensor, axis) >= 0).any(axis=1)
                if free.all():
                    continue
                place, size = (tensor, axis), int((~free).sum())
                out.append(self._frozen_entry(place, size, len(own), nearest.get(place)))
        return out

    def _frozen_entry(self, place: Place, size: int, n: int, cause: Freeze | None) -> Frozen:
        tensor, axis = place
        if place in self._whole:
            users = [node for node, _ in tensor.uses()]
            name = node_name(users[0]) if users else str(tensor.name)
            return Frozen(tensor, axis, size, name, self._whole[place], users[0].op_type if users else "")
        if cause is not None:
            node = cause.node
            if node is None:
                return Frozen(tensor, axis, size, str(cause.place[0].name), cause.reason)
            return Frozen(tensor, axis, size, node_name(node), cause.reason, node.op_type)
        users = [node for node, _ in tensor.uses()]
        name = node_name(users[0]) if users else str(tensor.name)
        reason = "has one index: removing it would leave nothing" if n == 1 else "no weight axis is coupled with it"
        return Frozen(tensor, axis, size, name, reason, users[0].op_type if users else "")

    def why(self, tensor: ir.Value, axis: int) -> list[tuple[Place, ir.Node | None]]:
        """The shortest path from an axis to what froze it: places, each with the node it was reached by."""
        import networkx as nx

        sources = {place for place in self.causes if place in self.graph}
        start = (tensor, axis)
        if start not in self.graph or not sources:
            return []
        keep = {place for place in nx.node_connected_component(self.graph, start) if self._some_frozen(place)}
        view = self.graph.subgraph(keep | {start})
        paths: dict[Place, list[Place]] = nx.single_source_shortest_path(view, start)
        ends = [path for place, path in paths.items() if place in sources]
        if not ends:
            return []
        path = min(ends, key=len)
        steps: list[tuple[Place, ir.Node | None]] = [(path[0], None)]
        steps.extend((b, self.graph.edges[a, b]["node"]) for a, b in itertools.pairwise(path))
        return steps


def node_name(node: ir.Node) -> str:
    """A node's name, or its op and first output where it has none."""
    if node.name:
        return node.name
    return f"{node.op_type} -> {node.outputs[0].name}" if node.outputs else node.op_type


def finish(coupler: Coupler) -> Coupling:
    """Number the prunable units, group them, and note why the rest is not prunable."""
    units = coupler.units
    coupling = Coupling(coupler)
    n = len(units)
    prunable = np.zeros(n, np.bool_)
    for operand in coupler.operands:
        if operand.role in PRUNABLE_ROLES:
            for part in coupler.axes_of(operand.value) or ():
                prunable[units.resolve(part.rows).reshape(-1)] = True
    prunable[0] = False
    constants = coupling.constants
    touched = np.zeros(n, np.bool_)
    for value, axes in coupler.axes.items():
        for axis, whole_axis in enumerate(axes or ()):
            if is_plainly_frozen(whole_axis.rows):
                continue
            rows = units.resolve(whole_axis.rows)
            whole = _covering(rows, prunable)
            if len(whole):
                prunable[whole] = False
                if value.is_initializer() or value.const_value is not None:
                    coupling._whole[value, axis] = "all its indices live and die together: removing them leaves nothing"
    for value in constants:
        for own in coupler.axes.get(value) or ():
            if not is_plainly_frozen(own.rows):
                touched[units.resolve(own.rows).reshape(-1)] = True
    prunable &= touched
    old = np.flatnonzero(prunable)
    coupling.n_units = len(old)
    coupling._compact = np.full(n, -1)
    coupling._compact[old] = np.arange(len(old))
    coupling.inexact = _inexact(coupling, coupler.across)
    _group(coupling, constants)
    return coupling


def _covering(rows: NDArray[np.int64], prunable: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Prunable units that stand in every row: without them nothing of the axis is left."""
    if not len(rows):
        return np.zeros(0, np.int64)
    first = np.unique(rows[0])
    first = first[prunable[first]]
    return np.asarray([u for u in first if (rows == u).any(axis=1).all()], np.int64)


def _inexact(coupling: Coupling, across: Iterable[Across]) -> NDArray[np.bool_]:
    out = np.zeros(coupling.n_units, np.bool_)
    for item in across:
        if item.exact:
            continue
        ids = coupling._compact[coupling.coupler.units.resolve(item.rows)].reshape(-1)
        out[ids[ids >= 0]] = True
    return out


def _kinds(coupling: Coupling) -> NDArray[np.object_]:
    kinds = np.full(coupling.n_units, "channel", dtype=object)
    for rows, kind in coupling.coupler.marks:
        ids = coupling._compact[coupling.coupler.units.resolve(rows)]
        ids = ids[ids >= 0]
        # A depthwise group of one channel is a channel; a head is a head even where an expert axis meets it.
        kinds[ids] = kind
    return kinds


def _group(coupling: Coupling, constants: Sequence[ir.Value]) -> None:
    """Sort units into groups by the tensor axes they touch and their kind."""
    n = coupling.n_units
    rng = np.random.default_rng(0)
    signature = np.zeros(n, np.uint64)
    first_seen = np.full(n, np.iinfo(np.int64).max)
    weight = np.zeros(n, np.int64)
    fine = np.zeros(n, np.bool_)
    shared = np.zeros(n, np.bool_)
    kinds = _kinds(coupling)
    marked = np.isin(kinds, COARSE_KINDS)
    touches: list[tuple[Place, NDArray[np.int64]]] = []
    position = 0
    for value in constants:
        for axis in range(len(coupling.coupler.axes.get(value) or ())):
            if not coupling.has_units(value, axis):
                continue
            rows = coupling.rows(value, axis)
            flat = rows[rows >= 0]
            ids, first, counts = np.unique(flat, return_index=True, return_counts=True)
            signature[ids] += rng.integers(1, 1 << 63, dtype=np.uint64)
            first_seen[ids] = np.minimum(first_seen[ids], position + first)
            weight[ids] += counts
            position += rows.size
            touches.append(((value, axis), ids))
            if rows.shape[1] > 1:
                _mark_families(rows, marked, fine, shared)
    coupling.weight = weight
    kinds[fine] = "lane"
    kinds[(kinds == "group") & ~shared] = "channel"
    codes = np.unique(kinds.astype(str), return_inverse=True)[1].astype(np.uint64) if n else signature
    keys = signature * np.uint64(8) + codes + np.uint64(1 << 62) * fine
    _, inverse = np.unique(keys, return_inverse=True)
    # Groups in the order in which their first unit was met, units within a group likewise.
    order = np.argsort(first_seen, kind="stable")
    kinds_of, first_of, place_of = np.unique(inverse[order], return_index=True, return_inverse=True)
    number_of = np.empty(len(kinds_of), np.int64)
    number_of[np.argsort(first_of, kind="stable")] = np.arange(len(kinds_of))
    numbers = number_of[place_of.reshape(-1)]
    sizes = np.bincount(numbers, minlength=len(kinds_of))
    buckets = np.split(order[np.argsort(numbers, kind="stable")], np.cumsum(sizes)[:-1]) if n else []
    group_of = np.empty(n, np.int64)
    group_of[order] = numbers
    members: list[list[Place]] = [[] for _ in buckets]
    for place, ids in touches:
        for number in np.unique(group_of[ids]).tolist():
            members[number].append(place)
    for number, ids in enumerate(buckets):
        coupling.groups.append(
            Group(
                number,
                str(kinds[ids[0]]),
                ids,
                tuple(members[number]),
                not coupling.inexact[ids].any(),
                bool(fine[ids[0]]),
                bool(shared[ids[0]]),
            )
        )
    _promote(coupling, touches)


def _promote(coupling: Coupling, touches: Sequence[tuple[Place, NDArray[np.int64]]]) -> None:
    """A fine family whose coarser neighbours are all fine themselves is what there is to cut: it counts as coarse.

    So two grouped convolutions behind each other, whose groups divide the same channels crosswise, both lose
    something at the coarse grain, and no axis loses by two families at once.
    """
    near = coupling.near
    group_of = np.append(coupling.group_of, -1)
    for (value, axis), _ in touches:
        rows = coupling.rows(value, axis)
        for i, j in itertools.combinations(range(rows.shape[1]), 2):
            pairs = np.unique(group_of[rows[:, [i, j]]], axis=0)
            for a, b in pairs[(pairs >= 0).all(axis=1)].tolist():
                near.setdefault(a, set()).add(b)
                near.setdefault(b, set()).add(a)
    for number, group in enumerate(coupling.groups):
        if group.fine and all(coupling.groups[other].fine for other in near.get(number, ())):
            coupling.groups[number] = replace(group, fine=False)


def _mark_families(
    rows: NDArray[np.int64], marked: NDArray[np.bool_], fine: NDArray[np.bool_], shared: NDArray[np.bool_]
) -> None:
    """Where several families share an index, all but the coarsest are fine: marked ones first, else the outer."""
    live = rows >= 0
    several = live.sum(axis=1) > 1
    if not several.any():
        return
    rows, live = rows[several], live[several]
    preferred = live & marked[np.maximum(rows, 0)]
    chosen = np.where(preferred.any(axis=1), preferred.argmax(axis=1), live.argmax(axis=1))
    coarse = rows[np.arange(len(rows)), chosen]
    other = live & (rows != coarse[:, None])
    fine[rows[other]] = True
    shared[rows[live]] = True
