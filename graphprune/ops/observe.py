"""Values inside the bodies of If, Loop and Scan, made visible: they leave as further outputs of the node.

A branch that is not taken gives an empty tensor; a loop gives one value an iteration, stacked on a new first axis. So one
run of an ordinary runtime shows what every layer inside a body sees, each time it runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.coupler import subgraphs
from graphprune.facts import Facts

Array = NDArray[Any]
#: The bodies around a node, outermost first: the node that carries each, and which of its bodies it is.
Path = tuple[tuple[ir.Node, int], ...]
#: A value, looked at from inside these bodies.
Place = tuple[ir.Value, Path]


def walk(nodes: Iterable[ir.Node], path: Path = ()) -> Iterator[tuple[ir.Node, Path]]:
    """All nodes with the bodies that they are in; what is inside a node comes before the node."""
    for node in nodes:
        for number, body in enumerate(subgraphs(node)):
            yield from walk(body, (*path, (node, number)))
        yield node, path


def hidden(path: Path) -> str:
    """Why values under ``path`` cannot be made visible; empty if they can."""
    kinds = [node.op_type for node, _ in path]
    for kind in kinds:
        if kind not in ("If", "Loop", "Scan"):
            return f"it is in the body of a {kind} node"
    repeated = [kind != "If" for kind in kinds]
    if repeated != sorted(repeated):
        return "it is in a branch inside the body of a loop: its values differ in number from one iteration to the next"
    if any(node.op_type == "Scan" and len(node.inputs) and node.inputs[0] is None for node, _ in path):
        return "it is in the body of a Scan of opset 8"
    return ""


def repeats(path: Path) -> bool:
    """Whether what is under ``path`` runs several times in one run of the model."""
    return any(node.op_type != "If" for node, _ in path)


class Visible:
    """A copy of a model some of whose inner values leave as outputs of top-level nodes.

    Parameters
    ----------
    model
        Not changed; tensors are shared.
    places
        Values to show, each with the bodies it is looked at from (:func:`walk`): of a value that a body captures,
        one from inside is shown as often as the body runs. Places that are :func:`hidden` are no business of this class.
    facts
        Element types and ranks of the values.

    Attributes
    ----------
    model
        The copy; ``model`` itself where every place is in the main graph.
    names : dict
        Place -> name of the output to ask a runtime for.
    """

    def __init__(self, model: ir.Model, places: Iterable[Place], facts: Facts) -> None:
        places = list(dict.fromkeys(places))
        self.names = {(value, path): str(value.name) for value, path in places if not path}
        inner = [place for place in places if place[1]]
        self.model = model.clone() if inner else model
        if not inner:
            return
        twins: dict[ir.Value, ir.Value] = {}
        nodes: dict[ir.Node, ir.Node] = {}
        _pair(model.graph, self.model.graph, twins, nodes)
        taken = {str(v.name) for node, _ in walk(self.model.graph) for v in node.outputs}
        for value, path in inner:
            shown = twins[value]
            kind = value.dtype or facts.dtype(value) or ir.DataType.FLOAT
            shape = facts.shape(value)
            rank = None if shape is None else len(shape)
            for node, number in reversed(path):
                name, n = f"{value.name}_seen", 0
                while name in taken:
                    name, n = f"{value.name}_seen_{n}", n + 1
                taken.add(name)
                shown = _lead_out(nodes[node], number, shown, kind, rank, name)
                rank = None if rank is None or node.op_type == "If" else rank + 1
            self.names[value, path] = str(shown.name)

    def outputs(self) -> list[str]:
        """Names of all outputs to ask for, each once."""
        return list(dict.fromkeys(self.names.values()))

    def instances(self, place: Place, found: Mapping[str, Array]) -> Sequence[Array]:
        """What a value was in one run: once in the main graph, as often as the bodies around its place ran elsewhere."""
        array, path = found[self.names[place]], place[1]
        if path and array.size == 0:
            return ()
        loops = sum(node.op_type != "If" for node, _ in path)
        return [array] if not loops else list(array.reshape(-1, *array.shape[loops:]))


def _pair(old: ir.Graph, new: ir.Graph, values: dict[ir.Value, ir.Value], nodes: dict[ir.Node, ir.Node]) -> None:
    values.update(zip(old.inputs, new.inputs, strict=True))
    values.update((value, new.initializers[name]) for name, value in old.initializers.items())
    for a, b in zip(old, new, strict=True):
        nodes[a] = b
        values.update(zip(a.outputs, b.outputs, strict=True))
        for p, q in zip(subgraphs(a), subgraphs(b), strict=True):
            _pair(p, q, values, nodes)


def _lead_out(node: ir.Node, number: int, value: ir.Value, kind: ir.DataType, rank: int | None, name: str) -> ir.Value:
    """A further output of a control-flow node that is ``value`` of its body ``number``."""
    for n, body in enumerate(subgraphs(node)):
        if n == number:
            new = ir.node("Identity", [value])
        else:
            new = ir.node("Constant", [], {"value": ir.Tensor(np.zeros(0, kind.numpy()), dtype=kind)})
        out = new.outputs[0]
        out.name = f"{name}_{n}"
        out.dtype = kind
        if rank is not None and n == number:
            out.shape = ir.Shape([None] * rank)
        body.append(new)
        body.outputs.append(out)
    for listed in ("scan_output_axes", "scan_output_directions"):
        if listed in node.attributes:
            node.attributes[listed] = ir.AttrInt64s(listed, [*node.attributes[listed].as_ints(), 0])
    node.resize_outputs(len(node.outputs) + 1)
    shown = node.outputs[-1]
    shown.name = name
    return shown
