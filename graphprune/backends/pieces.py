"""Cut a graph, in topological order, into pieces that hold a bounded amount of weights each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from graphprune.errors import ModelError
from graphprune.facts import constant_tensor

#: Constants of at most this many bytes are written into a session's model; larger ones are handed over.
SMALL = 16 << 10


@dataclass
class Piece:
    """Consecutive nodes that run in one session.

    Attributes
    ----------
    nodes
        In topological order, Constant nodes left out.
    weights
        Constants that the nodes and their bodies read, each once.
    inputs, outputs
        Values that enter from the graph's inputs or earlier pieces, and that leave to later ones or the user.
    last
        Values that no later piece reads.
    cost
        Bytes that the weights take in a session.
    """

    nodes: list[ir.Node] = field(default_factory=list)
    weights: dict[ir.Value, None] = field(default_factory=dict)
    inputs: list[ir.Value] = field(default_factory=list)
    outputs: list[ir.Value] = field(default_factory=list)
    last: list[ir.Value] = field(default_factory=list)
    cost: int = 0


def bodies(node: ir.Node) -> Iterator[ir.Graph]:
    """Yield the graphs that a node carries."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def is_large(value: ir.Value) -> bool:
    """Whether a constant is handed to a session apart from its model.

    Strings and types of less than a byte have no plain buffer, and a body's own output must be made in it.
    """
    tensor = constant_tensor(value)
    return (
        tensor is not None
        and tensor.dtype != ir.DataType.STRING
        and tensor.dtype.bitwidth >= 8
        and tensor.nbytes > SMALL
    )


def is_hoisted(value: ir.Value) -> bool:
    """Whether a constant inside a body is supplied from outside it."""
    return is_large(value) and not value.is_graph_output()


def reads(node: ir.Node) -> tuple[list[ir.Value], list[ir.Value]]:
    """Return what a node takes from around it, captured values included.

    Returns
    -------
    tuple
        Values that must be computed or fed, and constants: those around the node and the large ones of its
        bodies.
    """
    values: dict[ir.Value, None] = {}
    constants: dict[ir.Value, None] = {}
    own: set[ir.Value] = set()
    taken: list[ir.Value] = [v for v in node.inputs if v is not None]
    stack = list(bodies(node))
    while stack:
        graph = stack.pop()
        own.update(graph.inputs)
        own.update(graph.initializers.values())
        # One that nobody reads any more (a masked weight) is gone before the runtime would take its data.
        constants.update((v, None) for v in graph.initializers.values() if is_hoisted(v) and v.uses())
        taken.extend(graph.outputs)
        for inner in graph:
            own.update(inner.outputs)
            taken.extend(v for v in inner.inputs if v is not None)
            if inner.op_type == "Constant":
                constants.update((v, None) for v in inner.outputs if is_hoisted(v))
            stack.extend(bodies(inner))
    for value in taken:
        if value not in own:
            (values if constant_tensor(value) is None else constants)[value] = None
    return list(values), list(constants)


def needed_nodes(graph: ir.Graph, wanted: Sequence[ir.Value]) -> list[ir.Node]:
    """Return the nodes that ``wanted`` depends on, sorted topologically; the graph's order where it is one."""
    sources = {node: reads(node)[0] for node in graph if not _is_constant(node)}
    keep: set[ir.Node] = set()
    stack = [producer for v in wanted if (producer := v.producer()) is not None]
    while stack:
        node = stack.pop()
        if node in keep or node not in sources:
            continue
        keep.add(node)
        stack.extend(producer for v in sources[node] if (producer := v.producer()) is not None)
    nodes = [node for node in sources if node in keep]
    place = {node: i for i, node in enumerate(nodes)}

    def before(node: ir.Node) -> list[ir.Node]:
        found = (v.producer() for v in sources[node])
        return [p for p in found if p is not None and p in place]

    if all(place[p] < i for i, node in enumerate(nodes) for p in before(node)):
        return nodes
    ordered: list[ir.Node] = []
    done: set[ir.Node] = set()
    waiting: set[ir.Node] = set()
    for root in nodes:
        stack = [root]
        while stack:
            node = stack[-1]
            missing = [p for p in before(node) if p not in done]
            if node in done or not missing:
                stack.pop()
                waiting.discard(node)
                if node not in done:
                    done.add(node)
                    ordered.append(node)
                continue
            if node in waiting:
                raise ModelError(f"the graph has a cycle through {node.op_type} '{node.name or ''}'")
            waiting.add(node)
            stack.extend(missing)
    return ordered


def _is_constant(node: ir.Node) -> bool:
    return node.op_type == "Constant" and not node.domain and constant_tensor(node.outputs[0]) is not None


def cut(graph: ir.Graph, wanted: Sequence[ir.Value], limit: int | None, cost: Callable[[ir.Value], int]) -> list[Piece]:
    """Cut what ``wanted`` depends on into pieces.

    Parameters
    ----------
    graph
        The top-level graph; bodies stay whole, with the node that carries them.
    wanted
        Values to compute.
    limit
        Bytes of weights per piece; None for one piece. A node with more gets a piece to itself.
    cost
        Bytes that a constant takes.
    """
    pieces: list[Piece] = []
    for node in needed_nodes(graph, wanted):
        values, constants = reads(node)
        piece = pieces[-1] if pieces else None
        fresh = [v for v in constants if piece is None or v not in piece.weights]
        more = sum(cost(v) for v in fresh)
        if piece is None or (limit is not None and more and piece.cost + more > limit and piece.nodes):
            piece = Piece()
            pieces.append(piece)
            more = sum(cost(v) for v in constants)
        piece.nodes.append(node)
        piece.weights.update(dict.fromkeys(constants))
        piece.cost += more
        piece.inputs.extend(values)
    _connect(pieces, wanted)
    return pieces


def _connect(pieces: list[Piece], wanted: Sequence[ir.Value]) -> None:
    """Find what passes between pieces, and where each value is read for the last time."""
    later: set[ir.Value] = set()
    leaving = set(wanted)
    for piece in reversed(pieces):
        made = [v for node in piece.nodes for v in node.outputs if v.name != ""]
        inside = set(made)
        piece.inputs = [v for v in dict.fromkeys(piece.inputs) if v not in inside]
        piece.outputs = [v for v in made if v in later or v in leaving]
        piece.last = [v for v in (*piece.inputs, *piece.outputs) if v not in later]
        later.update(piece.inputs)
