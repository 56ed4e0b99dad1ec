"""Multiply-accumulates of one node, as a sum of products of axis sizes, so that a cut can be priced at once.

Only ops that multiply by weights or contract activations count, as is usual in the field.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from graphprune.rules import OpView, Place, attribute

#: A constant factor and the axes whose sizes it is multiplied by.
Term = tuple[float, tuple[Place, ...]]
Counter = Callable[[OpView], list[Term]]
COUNTERS: dict[tuple[str, str], Counter] = {}


def counts(*names: str) -> Callable[[Counter], Counter]:
    """Register how the MACs of ops are counted."""

    def register(counter: Counter) -> Counter:
        for name in names:
            domain, _, base = name.rpartition("::")
            COUNTERS[domain, base] = counter
        return counter

    return register


def terms_of(view: OpView) -> list[Term]:
    """MACs of a node; none for ops that do not count."""
    node = view.node
    counter = COUNTERS.get(("" if node.domain == "ai.onnx" else node.domain, node.op_type))
    return [] if counter is None else counter(view)


def _axes(value: ir.Value, rank: int, start: int = 0) -> tuple[Place, ...]:
    return tuple((value, axis) for axis in range(start, rank))


@counts("Conv", "ConvInteger", "DeformConv", "com.microsoft::FusedConv", "QLinearConv")
def conv(view: OpView) -> list[Term]:
    """Every output element sums over the weight's input channels and kernel."""
    weight = 3 if view.node.op_type == "QLinearConv" else 1
    out, rank = view.node.outputs[0], len(view.out_shape())
    return [(1.0, _axes(out, rank) + _axes(view.value(weight), rank, 1))]


@counts("ConvTranspose")
def conv_transpose(view: OpView) -> list[Term]:
    """Every input element is spread over the weight's output channels and kernel."""
    rank = len(view.shape(0))
    return [(1.0, _axes(view.value(0), rank) + _axes(view.value(1), rank, 1))]


@counts("MatMul", "MatMulInteger", "com.microsoft::MatMulInteger16", "com.microsoft::DynamicQuantizeMatMul",
        "com.microsoft::MatMulIntegerToFloat", "com.microsoft::MatMulNBits", "QLinearMatMul")  # fmt: skip
def matmul(view: OpView) -> list[Term]:
    """Every output element sums over the last axis of the left operand."""
    return [(1.0, (*_axes(view.node.outputs[0], len(view.out_shape())), (view.value(0), len(view.shape(0)) - 1)))]


@counts("com.microsoft::FusedMatMul", "com.microsoft::TransposeMatMul")
def fused_matmul(view: OpView) -> list[Term]:
    """As MatMul, the left operand perhaps transposed."""
    rank = len(view.shape(0))
    k = rank - (2 if attribute(view.node, "transA", 0) else 1)
    return [(1.0, (*_axes(view.node.outputs[0], len(view.out_shape())), (view.value(0), k)))]


@counts("Gemm", "com.microsoft::FusedGemm", "com.microsoft::QGemm")
def gemm(view: OpView) -> list[Term]:
    """Every output element sums over the left operand's inner axis."""
    k = 0 if attribute(view.node, "transA", 0) else 1
    return [(1.0, (*_axes(view.node.outputs[0], 2), (view.value(0), k)))]


@counts("Einsum")
def einsum(view: OpView) -> list[Term]:
    """The product of the sizes of all names (two operands or more)."""
    from graphprune.ops.linear import einsum_terms

    n = len(view.node.inputs)
    raw = attribute(view.node, "equation", "")
    equation = raw.decode() if isinstance(raw, bytes) else str(raw)
    inputs, _ = einsum_terms(equation, [len(view.shape(i)) for i in range(n)])
    places: dict[str, Place] = {}
    for i, names in enumerate(inputs):
        for axis, name in enumerate(names):
            if name not in places or view.shape(i)[axis] > 1:
                places[name] = (view.value(i), axis)
    return [(1.0, tuple(places.values()))] if n > 1 else []


@counts("LSTM", "GRU", "RNN", "com.microsoft::DynamicQuantizeLSTM")
def recurrent(view: OpView) -> list[Term]:
    """Input and recurrent weights, once a step and sample."""
    x = view.value(0)
    return [(1.0, ((x, 0), (x, 1), *_axes(view.value(i), 3))) for i in (1, 2)]


@counts("com.microsoft::Attention", "com.microsoft::QAttention")
def packed_attention(view: OpView) -> list[Term]:
    """The projection, the scores and their sum over values."""
    x, w, out = view.value(0), view.value(1), view.node.outputs[0]
    return [(1.0, ((x, 0), (x, 1), (w, 0), (w, 1))), (2.0, ((x, 0), (x, 1), (x, 1), (out, len(view.out_shape()) - 1)))]


@counts("Attention", "com.microsoft::MultiHeadAttention", "com.microsoft::GroupQueryAttention")
def attention(view: OpView) -> list[Term]:
    """The scores, and their sum over values."""
    q, out = view.value(0), view.node.outputs[0]
    k = view.value(1) if view.has(1) else q
    if len(view.shape(0)) == 4:
        return [(1.0, ((q, 0), (q, 1), (q, 2), (k, 2), last)) for last in ((q, 3), (out, 3))]
    sizes = ((q, 0), (q, 1), (k, 1))
    return [(1.0, (*sizes, (q, len(view.shape(0)) - 1))), (1.0, (*sizes, (out, len(view.out_shape()) - 1)))]


@counts("com.microsoft::MoE")
def experts(view: OpView) -> list[Term]:
    """The experts that work for a token, each with two or three matrices."""
    x, chosen = view.value(0), float(attribute(view.node, "k", 1))
    tokens = _axes(x, len(view.shape(0)) - 1)
    return [(chosen, (*tokens, *_axes(view.value(i), 3, 1))) for i in (2, 4, 6) if view.has(i)]
