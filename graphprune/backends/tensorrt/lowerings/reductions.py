"""Reductions, whose axes were an attribute before opset 18 (ReduceSum: 13)."""

from __future__ import annotations

import onnx_ir as ir

from graphprune.backends.tensorrt.rewriting import Builder, Values, attribute, axes_as_input, given, lowers

REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
)  # fmt: skip


@lowers(*REDUCTIONS)
def axes_as_attribute(node: ir.Node, b: Builder) -> Values | None:
    """Constant axes, where the target's opset has them."""
    x, second = node.inputs[0], given(node, 1)
    assert x is not None
    rank = b.rank(x)
    if second is None:
        axes = attribute(node, "axes")
    else:
        known = b.known(second)
        if known is None:
            return None
        axes = [int(a) for a in known]
    if not axes:
        if attribute(node, "noop_with_empty_axes", 0):
            return b.op("Identity", x) if node.op_type not in ("ReduceSumSquare", "ReduceL1", "ReduceL2") else None
        if rank is None:
            return None
        axes = list(range(rank))
    as_input = axes_as_input(node.op_type, b.opset)
    if b.context.opset_of(node) == b.opset and as_input == (second is not None):
        return None  # nothing would change
    return b.reduce(node.op_type, x, axes, int(attribute(node, "keepdims", 1)))
