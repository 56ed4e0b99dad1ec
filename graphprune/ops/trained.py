"""Which inputs of an op hold what training learns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import onnx_ir as ir

from graphprune.ops.traits import joins

_ALL = frozenset(range(16))
#: Inputs that are weights whatever their size.
_WEIGHTS: dict[str, frozenset[int]] = {
    "Conv": frozenset({1, 2}),
    "ConvTranspose": frozenset({1, 2}),
    "DeformConv": frozenset({1, 3}),
    "FusedConv": frozenset({1, 2}),
    "NhwcFusedConv": frozenset({1, 2}),
    "Gemm": frozenset({0, 1, 2}),
    "FusedGemm": frozenset({0, 1, 2}),
    "MatMul": frozenset({0, 1}),
    "FusedMatMul": frozenset({0, 1}),
    "Einsum": _ALL,
    "BatchNormalization": frozenset({1, 2}),
    "InstanceNormalization": frozenset({1, 2}),
    "LayerNormalization": frozenset({1, 2}),
    "GroupNormalization": frozenset({1, 2}),
    "RMSNormalization": frozenset({1}),
    "SimplifiedLayerNormalization": frozenset({1}),
    "PRelu": frozenset({1}),
    "LSTM": frozenset({1, 2, 3, 5, 6, 7}),
    "GRU": frozenset({1, 2, 3, 5}),
    "RNN": frozenset({1, 2, 3, 5}),
    "Gather": frozenset({0}),
    "Attention": frozenset({0, 1, 2}),
    "MultiHeadAttention": frozenset({0, 1, 2, 3}),
    "SkipLayerNormalization": _ALL,
    "SkipSimplifiedLayerNormalization": _ALL,
    "EmbedLayerNormalization": _ALL,
    "BiasGelu": frozenset({1}),
    "FastGelu": frozenset({1}),
    "BiasAdd": frozenset({1}),
    "BiasSplitGelu": frozenset({1}),
    "GroupNorm": frozenset({1, 2}),
    "SkipGroupNorm": _ALL,
    "MoE": frozenset(range(1, 8)),
    "CausalConvWithState": frozenset({1, 2}),
}
#: Inputs that are weights when they are more than one number: arithmetic with learned tables, scales and shifts.
_TABLES: dict[str, frozenset[int]] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Sum"), _ALL),
    "Expand": frozenset({0}),
    "Tile": frozenset({0}),
    "ScatterND": frozenset({0, 2}),
    "ReduceL2": frozenset({0}),
    "ReduceSum": frozenset({0}),
    "ReduceMean": frozenset({0}),
    "Softmax": frozenset({0}),
    "Exp": frozenset({0}),
    "Softplus": frozenset({0}),
    "Neg": frozenset({0}),
    "Resize": frozenset({0}),
}
#: Operators that hand a weight on as it is.
_THROUGH = frozenset({
    "Transpose", "Reshape", "Identity", "Cast", "CastLike", "Unsqueeze", "Squeeze", "Flatten", "Concat", "Slice", "Split", "Pad",
})  # fmt: skip
#: Ops that look rows up: in a list of single numbers there is nothing that is learnt.
_LOOKUPS = frozenset({"Gather"})


def weight_use(value: ir.Value) -> Literal["weight", "table"] | None:
    """What the users of a constant, behind ops that only move it, take it for.

    ``weight``: learnt, whatever its size. ``table``: arithmetic with it, which is with something learnt where it is more than
    one number.
    """
    table = False
    for op_type, index in _uses(value):
        if index in _WEIGHTS.get(op_type, ()):
            rows = value.const_value is None or len(value.const_value.shape) > 1
            return "weight" if rows or op_type not in _LOOKUPS else None
        table = table or index in _TABLES.get(op_type, ())
    return "table" if table else None


def _uses(value: ir.Value) -> Iterator[tuple[str, int]]:
    """Where a value ends up, through operators that only move it."""
    queue, seen = [value], {value}
    while queue:
        for use in queue.pop().uses():
            node, index = use.node, use.idx
            if node.op_type in _THROUGH and (index == 0 or joins(node)):
                for output in node.outputs:
                    if output not in seen:
                        seen.add(output)
                        queue.append(output)
            else:
                yield node.op_type, index
