"""``canonicalize``: what files write in many ways, written in one, before anything is analysed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from graphprune.cut import set_weight
from graphprune.folding import FOLDED, FOLDED_OF_MODULES, fold_constants
from graphprune.ops.movement import atoms
from graphprune.ops.traits import idle_addend
from graphprune.passes.base import Kind, Pass, State
from graphprune.passes.couple import probe
from graphprune.plan import DERIVED


@dataclass(frozen=True)
class Canonicalize(Pass):
    """Remove dead nodes and computed zeros that are added, and write channel shuffles as Gather. Changes the graph.

    (Constants, local functions and sparse tensors are brought into one form while loading.) A shuffle that
    stays Reshape - Transpose - Reshape would look like a division into groups and positions; as a Gather it
    only reorders, and couples nothing.
    """

    name: ClassVar[str] = "canonicalize"
    kind: ClassVar[Kind] = "transform"
    changes_graph: ClassVar[bool] = True

    def run(self, state: State) -> None:
        drop_idle_addends(state.model)
        RemoveUnusedNodesPass()(state.model)
        before = dict(state.model.graph.initializers)
        users = {name: [node for node, _ in value.uses()] for name, value in before.items()}
        if fold_constants(state.model, FOLDED if state.loaded.torch is None else FOLDED_OF_MODULES):
            RemoveUnusedNodesPass()(state.model)
            for name, value in before.items():
                if name not in state.model.graph.initializers and users[name]:
                    state.folded.append((value, users[name][0]))
        state.facts = probe(state)
        # A module's own code goes on dividing its channels as written; any other order would take a graph in its place.
        graphs = state.model.graphs() if state.loaded.torch is None else ()
        if sum([self._shuffles(state, graph) for graph in graphs]):
            RemoveUnusedNodesPass()(state.model)
            state.facts = probe(state)

    @staticmethod
    def _shuffles(state: State, graph: ir.Graph) -> int:
        facts, count = state.need_facts(), 0
        for last in tuple(graph):
            chain = _chain(last)
            if chain is None:
                continue
            first, middle = chain
            x = first.inputs[0]
            assert x is not None
            shape, split = facts.shape(x), facts.shape(first.outputs[0])
            if shape is None or split is None or shape != facts.shape(last.outputs[0]):
                continue
            perm = middle.attributes.get_ints("perm", tuple(range(len(split)))[::-1])
            found = permutation(shape, split, tuple(perm))
            if found is None:
                continue
            axis, order = found
            indices = ir.Value(name=f"{last.outputs[0].name}_shuffle")
            indices.meta[DERIVED] = True
            set_weight(indices, ir.Tensor(order, name=indices.name))
            graph.register_initializer(indices)
            gather = ir.node("Gather", [x, indices], attributes={"axis": axis}, name=f"{last.name}_shuffle")
            dtype = facts.dtype(last.outputs[0])
            _replace(graph, last, gather)
            # A shuffle behind this one reads the new value's shape.
            facts.set_shape(gather.outputs[0], shape, dtype)
            count += 1
        return count


def drop_idle_addends(model: ir.Model) -> None:
    """Take biases away that are computed and zero: a layer without a bias reads its weight once, and is cut and fitted as such."""
    for node in model.graph.all_nodes():
        index = idle_addend(node)
        if index is not None:
            node.replace_input_with(index, None)
            node.resize_inputs(index)


def _chain(last: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """The Reshape and the Transpose before a Reshape, if nothing else reads between them."""
    nodes = []
    node: ir.Node | None = last
    for op_types in (("Reshape", "Flatten"), ("Transpose",), ("Reshape",)):
        if node is None or node.domain or node.op_type not in op_types:
            return None
        nodes.append(node)
        value = node.inputs[0]
        node = None if value is None else value.producer()
    for inner in nodes[1:]:
        out = inner.outputs[0]
        if len(out.uses()) != 1 or out.is_graph_output():
            return None
    return nodes[2], nodes[1]


def permutation(shape: tuple[int, ...], split: tuple[int, ...], perm: tuple[int, ...]) -> tuple[int, np.ndarray] | None:
    """The one axis that Reshape(split) - Transpose(perm) - Reshape(shape) permutes, and its order.

    Returns
    -------
    (axis, int64[n]) or None
        None if it does more than to reorder indices within one axis.
    """
    sizes: dict[int, list[tuple[int, int]]] = {}
    owner: dict[int, int] = {}
    pieces: dict[int, list[int]] = {}
    count = 0
    for left, right, factors in atoms(shape, split):
        if factors is None:
            return None
        numbers = list(range(count, count + len(factors)))
        count += len(factors)
        _assign(numbers, factors, left, shape, sizes, owner)
        rest = list(zip(numbers, factors, strict=True))
        for j in right:
            product = 1
            while product < split[j]:
                number, factor = rest.pop(0)
                pieces.setdefault(j, []).append(number)
                product *= factor
    factor_of = {number: factor for own in sizes.values() for number, factor in own}
    moved = [number for j in perm for number in pieces.get(j, [])]
    found: tuple[int, np.ndarray] | None = None
    for axis, n in enumerate(shape):
        if n == 1:
            continue
        mine, product = [], 1
        while product < n and moved:
            mine.append(moved.pop(0))
            product *= factor_of[mine[-1]]
        own = [number for number, _ in sizes[axis]]
        if product != n or set(mine) != set(own):
            return None
        if mine != own:
            if found is not None:
                return None
            grid = np.arange(n).reshape([factor for _, factor in sizes[axis]])
            found = axis, grid.transpose([own.index(number) for number in mine]).reshape(-1)
    return found


def _assign(
    numbers: list[int], factors: list[int], axes: list[int], shape: tuple[int, ...],
    sizes: dict[int, list[tuple[int, int]]], owner: dict[int, int],
) -> None:  # fmt: skip
    rest = list(zip(numbers, factors, strict=True))
    for axis in axes:
        product = 1
        sizes[axis] = []
        while product < shape[axis]:
            number, factor = rest.pop(0)
            sizes[axis].append((number, factor))
            owner[number] = axis
            product *= factor


def _replace(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    """Put ``new`` where ``old`` stood; its output takes over name, type and uses."""
    before, after = old.outputs[0], new.outputs[0]
    name, after.type, after.shape = before.name, before.type, before.shape
    before.name = f"{name}_replaced"
    after.name = name
    old.append(new)
    before.replace_all_uses_with(after, replace_graph_outputs=True)
    graph.remove(old, safe=True)
