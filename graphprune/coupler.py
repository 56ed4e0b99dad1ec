"""One sweep over the graph in topological order: every op does to labels what it does to data.

:class:`Coupler` runs the rules of :mod:`graphprune.ops` and records, beside the units, what people ask
about later: which node froze what and why, which axes met where, which inputs are weights, and which nodes
look across an axis in a way that makes a cut inexact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphprune.ops.traits import contracts
from graphprune.rules import Axes, Axis, OpRule, OpView, Place, UnknownShape, rule_for
from graphprune.shapes import Facts
from graphprune.units import Rows, Units, concat_rows, frozen_rows, is_plainly_frozen, merge_rows

#: What a rule may stumble over in a malformed node.
MALFORMED = (TypeError, ValueError, IndexError, KeyError, AttributeError, AssertionError, ArithmeticError)
#: No tensor has an axis of this many indices; a file that says so is not believed.
ABSURD = 1 << 40

#: An axis longer than this is frozen instead of labelled: no layer is that wide, and labels cost memory.
LONGEST_AXIS = 1 << 23


@dataclass(frozen=True)
class Freeze:
    """Why some indices of one axis are frozen: ``node`` is None for the graph's own inputs and outputs."""

    place: Place
    node: ir.Node | None
    reason: str


#: Numbers of a constant that was written down: fewer are chance, more are no bins.
FEWEST_BINS, MOST_BINS = 8, 4096


@dataclass(frozen=True)
class Operand:
    """An input of a node that is a parameter, with the part it plays: weight, bias, scale, table, ..."""

    node: ir.Node
    index: int
    value: ir.Value
    role: str


@dataclass(frozen=True)
class Across:
    """A node that must not see zeros along an axis.

    It looks across it, so that cutting ``rows`` changes what the others see; or (``exact``) it does not, but
    divides by what would be zero.
    """

    node: ir.Node
    places: tuple[Place, ...]
    rows: Rows
    reason: str
    exact: bool = False


class Coupler:
    """The running analysis: implements what :class:`graphprune.rules.OpView` asks of it."""

    def __init__(self, facts: Facts, opsets: Mapping[str, int], varied: Facts | None = None) -> None:
        self.units = Units()
        self.facts = facts
        self.varied = varied
        self.opsets = opsets
        self.axes: dict[ir.Value, Axes | None] = {}
        self.constants: list[ir.Value] = []
        self.parameters: set[ir.Value] = set()
        self.freezes: list[Freeze] = []
        self.edges: list[tuple[Place, Place, ir.Node]] = []
        self.operands: list[Operand] = []
        self.across: list[Across] = []
        self.marks: list[tuple[Rows, str]] = []
        self.unknown_ops: dict[str, ir.Node] = {}
        self.unshaped: list[tuple[ir.Node, str]] = []
        self._live: set[int] = set()

    # -- the sweep ---------------------------------------------------------------------------------
    def run(self, graph: ir.Graph) -> None:
        """Sweep the whole graph; its inputs and outputs are frozen."""
        for value in graph.inputs:
            if not value.is_initializer():
                self.bind(value, None, f"graph input '{value.name}'")
        self.sweep(graph)
        for value in graph.outputs:
            for i, axis in enumerate(self.axes_of(value) or []):
                self._freeze(axis, (value, i), None, f"graph output '{value.name}'")

    def bind(self, value: ir.Value, axes: Axes | None, reason: str) -> None:
        """Give a graph input its axes; without any it is frozen."""
        shape = self.shape_of(value)
        if axes is not None and shape is not None and tuple(map(len, axes)) == shape:
            self._store(value, axes, None)
            return
        for axis in axes or []:
            for place in axis.places:
                self._freeze(axis, place, None, reason)
        self.axes[value] = None if shape is None else self._frozen(value, shape, None, reason)

    def sweep(self, graph: ir.Graph) -> None:
        """Run the rule of every node, in order."""
        for node in graph:
            rule = rule_for(node)
            outs = self._run_rule(node, rule)
            parameter = all(v is None or self.is_parameter(v) for v in node.inputs) and not subgraphs(node)
            for value, axes in zip(node.outputs, [*outs, *[None] * len(node.outputs)], strict=False):
                if parameter:
                    self.parameters.add(value)
                self._store(value, axes, node)

    def _run_rule(self, node: ir.Node, rule: OpRule | None) -> Sequence[Axes | None]:
        view = OpView(node, self)
        if rule is None:
            self.unknown_ops.setdefault(f"{node.domain or 'ai.onnx'}::{node.op_type}", node)
            return self._freeze_node(view, f"no rule for op {node.domain + '::' if node.domain else ''}{node.op_type}")
        if rule.couple is None:
            return self._freeze_node(view, rule.reason)
        try:
            outs = rule.couple(view)
            for value, axes in zip(node.outputs, outs, strict=False):
                shape = self.shape_of(value)
                if axes is not None and shape is not None and tuple(map(len, axes)) != shape:
                    got = "x".join(str(len(axis)) for axis in axes)
                    raise UnknownShape(f"the result '{value.name}' has shape {'x'.join(map(str, shape))}, not {got}")
            return outs
        except UnknownShape as problem:
            self.unshaped.append((node, str(problem)))
            return self._freeze_node(view, str(problem))
        except MALFORMED as problem:
            # The node does not fit its operator in a way that no check foresaw; what was tied so far is sound.
            reason = f"the node does not fit its operator ({type(problem).__name__}: {problem})"
            self.unshaped.append((node, reason))
            return self._freeze_node(view, reason)

    def _freeze_node(self, view: OpView, reason: str) -> list[Axes | None]:
        view.freeze_inputs(reason)
        for graph in subgraphs(view.node):
            # Values of the outer graph that a body reads are frozen too: nobody knows what it does to them.
            for inner in graph.all_nodes():
                for value in inner.inputs:
                    if value is not None and value in self.axes:
                        for i, axis in enumerate(self.axes[value] or []):
                            self._freeze(axis, (value, i), view.node, reason)
        outs: list[Axes | None] = []
        for value in view.node.outputs:
            shape = self.shape_of(value)
            outs.append(None if shape is None else self._frozen(value, shape, view.node, reason))
        return outs

    def _frozen(self, value: ir.Value, shape: Sequence[int], node: ir.Node | None, reason: str) -> Axes:
        self.freezes.extend(Freeze((value, i), node, reason) for i in range(len(shape)))
        return [Axis(frozen_rows(n), True, ((value, i),)) for i, n in enumerate(shape)]

    def _store(self, value: ir.Value, axes: Axes | None, node: ir.Node | None) -> None:
        if axes is None:
            self.axes[value] = None
            return
        kept = []
        for i, axis in enumerate(axes):
            place = (value, i)
            for other in axis.places:
                if other != place and node is not None:
                    self.edges.append((place, other, node))
            if not axis.places and is_plainly_frozen(axis.rows) and node is not None:
                self.freezes.append(Freeze(place, node, f"axis {i} of {node.op_type} is no channel axis"))
            kept.append(Axis(axis.rows, axis.zero, (place,)))
        self.axes[value] = kept

    # -- what rules ask (rules.Sweep) ----------------------------------------------------------------
    def axes_of(self, value: ir.Value) -> Axes | None:
        if value in self.axes:
            return self.axes[value]
        if not value.is_initializer() and value.const_value is None:
            return None
        shape = self.shape_of(value)
        axes: Axes | None = None
        if shape is not None:
            axes = []
            fixed, why = fixed_axes(value)
            for i, n in enumerate(shape):
                place = (value, i)
                if n > LONGEST_AXIS:
                    self.freezes.append(Freeze(place, None, f"axis of {n} indices: longer than any layer is wide"))
                if i in fixed:
                    self.freezes.append(Freeze(place, None, f"'{value.name}' {why}"))
                rows = frozen_rows(n) if n <= 1 or n > LONGEST_AXIS or i in fixed else self.units.fresh(n)[:, None]
                # Constants are zero at removed indices only where a role masks them.
                axes.append(Axis(rows, False, (place,)))
            self.constants.append(value)
        self.parameters.add(value)
        self.axes[value] = axes
        return axes

    def shape_of(self, value: ir.Value) -> tuple[int, ...] | None:
        shape = self.facts.shape(value)
        return None if shape is not None and any(not 0 <= n < ABSURD for n in shape) else shape

    def known(self, value: ir.Value) -> np.ndarray | None:
        return self.facts.known(value)

    def constant(self, value: ir.Value) -> np.ndarray | None:
        steady = self.steady(value)
        return self.facts.known(value) if steady is not None and bool(steady.all()) else None

    def steady(self, value: ir.Value) -> np.ndarray | None:
        known = self.facts.known(value)
        if known is None:
            return None
        if self.varied is None or self.is_parameter(value):
            return np.ones(known.shape, np.bool_)
        other = self.varied.known(value)
        if other is None or other.shape != known.shape:
            return np.zeros(known.shape, np.bool_)
        return np.asarray(known == other)

    def is_parameter(self, value: ir.Value) -> bool:
        return value in self.parameters or value.is_initializer() or value.const_value is not None

    def opset(self, domain: str) -> int:
        return self.opsets.get("" if domain == "ai.onnx" else domain, 1)

    def tie(self, node: ir.Node, a: Axis, b: Axis) -> None:
        self.edges.extend((p, q, node) for p in a.places[:1] for q in b.places if p != q)
        if len(a) != len(b):
            raise UnknownShape(f"axes of {len(a)} and {len(b)} indices meet in {node.op_type}")
        before = self.units.conflicts
        self.units.tie(a.rows, b.rows)
        if self.units.conflicts > before:
            reason = f"{node.op_type} makes axes meet that are divided in different ways"
            self.freezes.extend(Freeze(place, node, reason) for place in a.places + b.places)

    def split(self, node: ir.Node, axis: Axis, sizes: Sequence[int]) -> Axes:
        before = self.units.conflicts
        tables = self.units.split(axis.rows, sizes)
        if self.units.conflicts > before:
            reason = f"{node.op_type} divides what is divided in another way already"
            self.freezes.extend(Freeze(place, node, reason) for place in axis.places)
        # A factor of one index says nothing of the axis it came from.
        factors = zip(tables, sizes, strict=True)
        return [Axis(rows, axis.zero, axis.places if n > 1 or len(axis) == 1 else ()) for rows, n in factors]

    def merge(self, axes: Sequence[Axis]) -> Axis:
        if len(axes) == 1:
            return axes[0]
        if math.prod(map(len, axes)) > LONGEST_AXIS and any(self.units.resolve(a.rows).any() for a in axes):
            raise UnknownShape(f"merging axes into one of {math.prod(map(len, axes))} indices")
        rows = merge_rows([self.units.resolve(axis.rows) for axis in axes])
        return Axis(rows, all(axis.zero for axis in axes), _places(axes))

    def take(self, axis: Axis, indices: np.ndarray) -> Axis:
        rows = frozen_rows(len(indices)) if is_plainly_frozen(axis.rows) else axis.rows[indices]
        return Axis(rows, axis.zero, axis.places)

    def concat(self, axes: Sequence[Axis]) -> Axis:
        if len(axes) == 1:
            return axes[0]
        if all(is_plainly_frozen(axis.rows) for axis in axes):
            return Axis(frozen_rows(sum(map(len, axes))), True, _places(axes))
        rows = concat_rows([self.units.resolve(axis.rows) for axis in axes])
        return Axis(rows, all(axis.zero for axis in axes), _places(axes))

    def fresh(self, n: int) -> Axis:
        return Axis(self.units.fresh(n)[:, None] if 1 < n <= LONGEST_AXIS else frozen_rows(n))

    def freeze(self, node: ir.Node, axis: Axis, reason: str) -> Axis:
        for place in axis.places:
            self._freeze(axis, place, node, reason)
        if not axis.places:
            self.units.freeze(axis.rows)
        return Axis(frozen_rows(len(axis)), axis.zero, axis.places)

    def _freeze(self, axis: Axis, place: Place, node: ir.Node | None, reason: str) -> None:
        if not is_plainly_frozen(axis.rows):
            self.freezes.append(Freeze(place, node, reason))
            self.units.freeze(axis.rows)

    def weight(self, node: ir.Node, index: int, role: str) -> None:
        value = node.inputs[index]
        if value is not None and self.is_parameter(value):
            self.axes_of(value)
            self.operands.append(Operand(node, index, value, role))

    def mark(self, axis: Axis, kind: str) -> None:
        if not is_plainly_frozen(axis.rows):
            self.marks.append((axis.rows, kind))

    def inexact(self, node: ir.Node, axis: Axis, reason: str, exact: bool = False) -> None:
        if not is_plainly_frozen(axis.rows):
            self.across.append(Across(node, axis.places, axis.rows, reason, exact))

    def standardised(self, weight: ir.Value, statistic: ir.Value) -> None:
        """A statistic was taken over a weight: without some of what it was taken over it would be another one."""
        held = [self.units.resolve(axis.rows).reshape(-1) for axis in self.axes_of(statistic) or []]
        there = np.unique(np.concatenate(held)) if held else np.zeros(0, np.int64)
        users = [node for node, _ in statistic.uses()]
        for axis in self.axes_of(weight) or []:
            rows = self.units.resolve(axis.rows)
            if users and not np.isin(rows[rows > 0], there).any():
                self.inexact(users[0], axis, f"a statistic of '{weight.name}' is taken over it")

    def graph(self, graph: ir.Graph, bind: Mapping[ir.Value, Axes | None]) -> list[Axes | None]:
        """Sweep a body whose inputs have the axes of ``bind`` (None: frozen); the axes of its outputs."""
        for value in graph.inputs:
            self.bind(value, bind.get(value), f"input '{value.name}' of a subgraph")
        self.sweep(graph)
        return [self.axes_of(value) for value in graph.outputs]


def fixed_axes(value: ir.Value) -> tuple[set[int], str]:
    """Axes of a constant that was written down, not trained, and what shows it.

    One kind is contracted with and counts evenly from 0 on: an expectation over bins (the sides of a box, an age), which without
    some of its bins could not say all that it is there to say. The other is a 4 x 4 matrix of few halves and wholes that mixes
    what it is given, as turns centre and size of a box into corners: without some of its rows it means something else.
    """
    tensor = value.const_value
    if tensor is None or not tensor.dtype.is_floating_point() or not FEWEST_BINS <= tensor.size <= MOST_BINS:
        return set(), ""
    sizes = tensor.shape.numpy()
    wide = [axis for axis, n in enumerate(sizes) if n > 1]
    if len(wide) == 1 and all(contracts(node) for node, _ in value.uses()):
        numbers = tensor.numpy().reshape(-1).astype(np.float64)
        even = numbers[0] == 0 and numbers[1] > 0 and np.allclose(np.diff(numbers), numbers[1], rtol=1e-5, atol=0)
        return (set(wide), "counts along it: positions, no trained weights") if even else (set(), "")
    if [sizes[axis] for axis in wide] == [4, 4]:
        matrix = tensor.numpy().reshape(4, 4).astype(np.float64)
        plain = bool(np.isin(matrix, (-1, -0.5, 0, 0.5, 1)).all()) and (matrix == 0).sum() >= 8
        mixes = ((matrix != 0).sum(axis=0) == 2).all() and ((matrix != 0).sum(axis=1) == 2).all()
        return (set(wide), "is a fixed transform of boxes, no trained weights") if plain and mixes else (set(), "")
    return set(), ""


def _places(axes: Sequence[Axis]) -> tuple[Place, ...]:
    return tuple(dict.fromkeys(place for axis in axes for place in axis.places))


def subgraphs(node: ir.Node) -> list[ir.Graph]:
    out: list[ir.Graph] = []
    for attr in node.attributes.values():
        if attr.type == ir.AttributeType.GRAPH:
            out.append(attr.as_graph())
        elif attr.type == ir.AttributeType.GRAPHS:
            out.extend(attr.as_graphs())
    return out
