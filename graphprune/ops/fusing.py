"""What compilers for GPUs make of a node: a kernel, a part of the kernel before it, or nothing at all."""

from __future__ import annotations

import onnx_ir as ir

from graphprune.ops.pointwise import FIRST, OTHERS, PRODUCTS, SUMS, ZERO_KEEPING, ZERO_LOSING

#: Computed by the kernel that gives an operand, while that is still in registers.
_POINTWISE = frozenset({*ZERO_KEEPING, *ZERO_LOSING, *PRODUCTS, *SUMS, *FIRST, *OTHERS, "Cast", "BatchNormalization"})
#: Another view of the same memory.
_VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"})


def _name(node: ir.Node) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def is_pointwise(node: ir.Node) -> bool:
    """Whether a node works element by element, or is a batch norm that became two numbers a channel."""
    return _name(node) in _POINTWISE


def is_view(node: ir.Node) -> bool:
    """Whether a node moves no data."""
    return _name(node) in _VIEWS
