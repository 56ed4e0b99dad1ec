"""The network as one draws it: boxes for layers and for joins, and the groups whose widths run between them.

What only passes data on (activations, reshapes, normalisations behind a layer) is no box of its own; it belongs to the
box that feeds it. One sweep in the order of execution, linear in the nodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphprune.coupling import Coupling, node_name
from graphprune.frontends.onnx import plan_name
from graphprune.ops.traits import reads_sizes

#: Roles of parameters that make a node a layer; other parameters (scales, biases) belong to the layer before.
LAYER_ROLES = frozenset({"weight", "table"})
#: Constants noted for one value: what an expression of many constants would add tells nobody anything.
_MOST_CONSTANTS = 32


@dataclass
class Box:
    """A layer, a join of several branches, or an input or output of the network."""

    kind: str
    node: ir.Node | None
    values: Sequence[ir.Value]
    #: Ops that belong to it, its own first.
    ops: list[str] = field(default_factory=list)
    tensors: dict[ir.Value, None] = field(default_factory=dict)
    #: Numbers of the boxes that it reads.
    reads: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The layer's name by its weights where those have one that says something, else the node's."""
        if self.node is None:
            return str(self.values[0].name)
        return stem(map(plan_name, self.tensors)) or node_name(self.node)

    def groups(self, coupling: Coupling) -> list[tuple[int, int]]:
        """Groups that its output's axes are made of, each with the axis."""
        out: dict[int, int] = {}
        for value in self.values:
            for axis in range(len(coupling.coupler.axes.get(value) or ())):
                if coupling.has_units(value, axis):
                    units = np.unique(coupling.rows(value, axis))
                    for number in np.unique(coupling.group_of[units[units >= 0]]).tolist():
                        out.setdefault(number, axis)
        return list(out.items())


def stem(names: Iterator[str] | Sequence[str]) -> str:
    """The first dotted (or slashed) name without its last part: ``block1.conv`` of ``block1.conv.weight``."""
    for name in names:
        for mark in (".", "/"):
            head, found, _ = name.rpartition(mark)
            if found and head:
                return head
    return ""


def boxes_of(model: ir.Model, coupling: Coupling) -> list[Box]:
    """The boxes of a model, in the order of execution."""
    return _Sweep(coupling).run(model)


class _Sweep:
    def __init__(self, coupling: Coupling) -> None:
        self.boxes: list[Box] = []
        #: The box that a value's data come from; none for constants and sizes.
        self.origin: dict[ir.Value, int] = {}
        #: Source tensors that a constant value is computed from.
        self.made_of: dict[ir.Value, tuple[ir.Value, ...]] = {value: (value,) for value in coupling.constants}
        self.layers = {operand.node for operand in coupling.coupler.operands if operand.role in LAYER_ROLES}

    def run(self, model: ir.Model) -> list[Box]:
        graph = model.graph
        for value in graph.inputs:
            if not value.is_initializer():
                self._add(Box("input", None, [value]), [value])
        self._graph(graph)
        for value in graph.outputs:
            source = self.origin.get(value)
            self._add(Box("output", None, [value], reads=[] if source is None else [source]), [])
        return self.boxes

    def _add(self, box: Box, values: Sequence[ir.Value]) -> None:
        for value in values:
            self.origin[value] = len(self.boxes)
        self.boxes.append(box)

    def _graph(self, graph: ir.Graph) -> None:
        for node in graph:
            self._node(node)

    def _node(self, node: ir.Node) -> None:
        inputs = [value for value in node.inputs if value is not None]
        # A size is no data: what is reshaped by it does not join the two.
        read = [] if reads_sizes(node) else [self.origin[v] for v in inputs if v in self.origin]
        for body in _bodies(node):
            # A body's inputs come from the node's last inputs, in order (Loop, Scan); an If has none.
            for inner, outer in zip(reversed(body.inputs), reversed(inputs), strict=False):
                if outer in self.origin:
                    self.origin[inner] = self.origin[outer]
            self._graph(body)
            read += [self.origin[v] for v in body.outputs if v in self.origin]
        sources = list(dict.fromkeys(read))
        made_of = dict.fromkeys(tensor for value in inputs for tensor in self.made_of.get(value, ()))
        tensors = tuple(made_of)[:_MOST_CONSTANTS]
        if node in self.layers or len(sources) > 1:
            kind = "layer" if node in self.layers else "join"
            box = Box(kind, node, list(node.outputs), [node.op_type], dict.fromkeys(tensors), sources)
            self._add(box, node.outputs)
        elif sources:
            box = self.boxes[sources[0]]
            if box.node is not None:
                box.ops.append(node.op_type)
                box.tensors.update(dict.fromkeys(tensors))
            for value in node.outputs:
                self.origin[value] = sources[0]
        else:
            for value in node.outputs:
                self.made_of[value] = tensors


def _bodies(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if isinstance(attribute, ir.Attr) and attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
