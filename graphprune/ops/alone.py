"""What an op's attributes hold of its sizes, so that one node can be run alone at other widths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir

from graphprune.ops.macs import COUNTERS
from graphprune.rules import attribute

Shape = tuple[int, ...]
#: Attributes of a node whose inputs have these shapes.
Mender = Callable[[ir.Node, Sequence[Shape]], dict[str, Any]]


def _conv(node: ir.Node, shapes: Sequence[Shape]) -> dict[str, Any]:
    """A convolution has as many groups as its weight's second axis divides the input's channels into."""
    weight = shapes[3 if node.op_type == "QLinearConv" else 1]
    return {"group": max(shapes[0][1] // max(weight[1], 1), 1)} if attribute(node, "group", 1) != 1 else {}


def _recurrent(node: ir.Node, shapes: Sequence[Shape]) -> dict[str, Any]:
    return {"hidden_size": shapes[2][2]}


def _nothing(node: ir.Node, shapes: Sequence[Shape]) -> dict[str, Any]:
    return {}


_MENDERS: dict[str, Mender] = {
    "Conv": _conv, "ConvInteger": _conv, "QLinearConv": _conv, "ConvTranspose": _conv, "FusedConv": _conv,
    "LSTM": _recurrent, "GRU": _recurrent, "RNN": _recurrent,
    "MatMul": _nothing, "Gemm": _nothing, "Einsum": _nothing, "MatMulInteger": _nothing, "FusedMatMul": _nothing,
    "QLinearMatMul": _nothing,
}  # fmt: skip


def mender_of(node: ir.Node) -> Mender | None:
    """How a node's attributes follow its sizes; None for ops that are not timed alone."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    return _MENDERS.get(node.op_type) if (domain, node.op_type) in COUNTERS else None
