"""Patterns of fx nodes that torch has one function for. Only what is equal up to rounding is replaced."""

from __future__ import annotations

import operator
from typing import Any

import torch.nn.functional as F
from torch import fx


def _is(node: Any, target: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target is target


def _other(node: fx.Node, one: Any) -> Any:
    """The operand of a commutative node beside ``one``; None where ``one`` is no operand."""
    a, b = node.args[:2]
    return b if a is one else a if b is one else None


def _shifted(node: Any) -> Any:
    """``x`` where the node is ``relu6(x + 3)``."""
    if not _is(node, F.relu6):
        return None
    inner = node.args[0]
    if not _is(inner, operator.add) or not _one_number(inner):
        return None
    x, number = _number(inner)
    return x if number == 3 else None


def _one_number(node: fx.Node) -> bool:
    return sum(isinstance(a, fx.Node) for a in node.args[:2]) == 1


def _number(node: fx.Node) -> tuple[Any, Any]:
    """The node and the number of an operation on one of each."""
    a, b = node.args[:2]
    return (a, b) if isinstance(a, fx.Node) else (b, a)


def _sixth(node: fx.Node) -> Any:
    """``y`` where the node is ``y / 6``."""
    if _is(node, operator.truediv) and node.args[1] == 6 and isinstance(node.args[0], fx.Node):
        return node.args[0]
    if _is(node, operator.mul) and _one_number(node):
        y, number = _number(node)
        return y if abs(number - 1 / 6) < 1e-8 else None
    return None


def fuse(graph: fx.Graph) -> None:
    """Replace ``x relu6(x + 3) / 6`` by hardswish, ``relu6(x + 3) / 6`` by hardsigmoid, and the two with ``x`` last."""
    for node in list(graph.nodes):
        y = _sixth(node)
        if y is not None:
            made = _hard(graph, node, y)
        elif _is(node, operator.mul) and not _one_number(node):
            made = _gated(graph, node)
        else:
            continue
        if made is not None:
            made.meta = dict(node.meta)
            node.replace_all_uses_with(made)
            graph.erase_node(node)


def _hard(graph: fx.Graph, node: fx.Node, y: fx.Node) -> fx.Node | None:
    x = _shifted(y)
    function: Any = F.hardsigmoid
    if x is None and _is(y, operator.mul) and not _one_number(y):
        function = F.hardswish
        for gate in y.args[:2]:
            if (found := _shifted(gate)) is not None and _other(y, gate) is found:
                x = found
    if x is None:
        return None
    with graph.inserting_before(node):
        return graph.call_function(function, (x,))


def _gated(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """``x hardsigmoid(x)``, where nobody else uses the gate."""
    for gate in node.args[:2]:
        if _is(gate, F.hardsigmoid) and isinstance(gate, fx.Node) and gate.args[0] is _other(node, gate):
            if len(gate.users) > 1:
                return None
            with graph.inserting_before(node):
                return graph.call_function(F.hardswish, (gate.args[0],))
    return None
