"""Ops that work element by element, with broadcasting: index i of every operand lives and dies together."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphprune.rules import Axes, Axis, OpView, op

if TYPE_CHECKING:
    from graphprune.cut import Cut

ZERO_KEEPING = [
    "Abs",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "BitwiseAnd",
    "Ceil",
    "Celu",
    "Clip",
    "Dropout",
    "Elu",
    "Erf",
    "Floor",
    "Gelu",
    "HardSwish",
    "Identity",
    "LeakyRelu",
    "Mish",
    "Neg",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sign",
    "Sin",
    "Sinh",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "com.microsoft::FastGelu",
    "com.microsoft::Gelu",
    "com.microsoft::QuickGelu",
    "com.microsoft::BiasGelu",
    "com.microsoft::BiasDropout",
]
ZERO_LOSING = [
    "Acos",
    "Acosh",
    "BitwiseNot",
    "Cos",
    "Cosh",
    "Exp",
    "HardSigmoid",
    "IsInf",
    "IsNaN",
    "Log",
    "Not",
    "Reciprocal",
    "Sigmoid",
    "Softplus",
    "BitCast",
]
#: Zero wherever any operand is zero.
PRODUCTS = ("Mul", "And", "SwiGLU")
#: Zero wherever all operands are zero.
SUMS = ("Add", "Sub", "Sum", "Max", "Min", "Mean", "Or", "Xor", "BitwiseOr", "BitwiseXor")
#: Zero wherever the first operand is zero.
FIRST = ("Div", "Mod", "PRelu", "BitShift")
#: Flat at their ends: far out, only rounding is left of a difference in the input.
_SATURATING = ("Sigmoid", "Tanh", "HardSigmoid", "Erf", "Softmax", "LogSoftmax", "Softplus")
OTHERS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Pow", "Where")


def saturates(node: ir.Node) -> bool:
    """Whether a node's function is flat at its ends."""
    return node.op_type in _SATURATING


def align(view: OpView, operands: list[int], rank: int | None = None) -> list[list[tuple[int, Axis]]]:
    """Per result axis, the (operand, axis) pairs that meet there, broadcast ones (size 1) left out."""
    axes = {i: view.axes(i) for i in operands}
    rank = max(map(len, axes.values())) if rank is None else rank
    met: list[list[tuple[int, Axis]]] = []
    for position in range(rank):
        column = []
        for i, own in axes.items():
            j = position - (rank - len(own))
            if j >= 0 and len(own[j]) != 1:
                column.append((i, own[j]))
        met.append(column)
    return met


def broadcast(view: OpView, operands: list[int], zero: str, masked: Collection[int] = ()) -> Axes:
    """Tie operands along every axis where they meet; ``zero`` tells when a result is zero.

    ``masked`` operands are parameters with a role, which are zero wherever an index of theirs is removed.
    """
    out: Axes = []
    for column in align(view, operands):
        if not column:
            out.append(view.frozen(1))
            continue
        first = column[0][1]
        places = first.places
        for _, axis in column[1:]:
            view.tie(first, axis)
            places += axis.places
        # An operand that is broadcast here is not masked along this axis.
        flags = {i: axis.zero or i in masked for i, axis in column}
        if zero == "any":
            flag = any(flags.values())
        elif zero == "first":
            flag = flags.get(operands[0], False)
        elif zero == "all":
            flag = all(flags.get(i, False) for i in operands)
        else:
            flag = False
        rows = max((axis for _, axis in column), key=lambda axis: axis.rows.shape[1]).rows
        out.append(Axis(rows, flag, places))
    return out


def _given(view: OpView) -> list[int]:
    return [i for i in range(len(view.node.inputs)) if view.has(i)]


def _unary(view: OpView, zero: bool) -> list[Axes | None]:
    for i in range(1, len(view.node.inputs)):
        if view.has(i) and any(len(axis) > 1 for axis in view.axes(i)):
            result = broadcast(view, [0, i], "all", {i} if view.is_parameter(i) else ())
            view.weight(i, "bias")
            return [result, *[result] * (len(view.node.outputs) - 1)]
    axes = [Axis(axis.rows, axis.zero and zero, axis.places) for axis in view.axes(0)]
    # A second result is the mask of a Dropout.
    return [axes, *([Axis(a.rows, False, a.places) for a in axes] for _ in view.node.outputs[1:])]


def _cast(view: OpView) -> list[Axes | None]:
    """The same values in another type, of which a second operand gives nothing else."""
    return [[Axis(axis.rows, axis.zero, axis.places) for axis in view.axes(0)]]


@op(*ZERO_KEEPING, text="... -> ...")
def zero_keeping(view: OpView) -> list[Axes | None]:
    """One operand, f(0) = 0."""
    zero = True
    if view.node.op_type == "Clip":
        low = view.known(1) if view.opset >= 11 else view.attr("min", -1.0)
        high = view.known(2) if view.opset >= 11 else view.attr("max", 1.0)
        zero = (low is None or float(np.max(low)) <= 0) and (high is None or float(np.min(high)) >= 0)
    return _unary(view, zero)


@op(*ZERO_LOSING, text="... -> ...")
def zero_losing(view: OpView) -> list[Axes | None]:
    """One operand, f(0) is not 0."""
    if view.node.op_type in ("Log", "Reciprocal"):
        _apart(view, 0)
    axes = [Axis(axis.rows, False, axis.places) for axis in view.axes(0)]
    return [axes] * len(view.node.outputs)


@op(*PRODUCTS, text="..., ... -> ...")
def products(view: OpView) -> list[Axes | None]:
    """Operands meet axis by axis; a product is zero where one factor is."""
    return [broadcast(view, _given(view), "any", _masked(view, "gain"))]


@op(*SUMS, text="..., ... -> ...")
def sums(view: OpView) -> list[Axes | None]:
    """Operands meet axis by axis; a sum is zero where all terms are."""
    masked = _masked(view, "shift") if view.node.op_type in ("Add", "Sub", "Sum") else set()
    return [broadcast(view, _given(view), "all", masked)]


@op(*FIRST, text="..., ... -> ...")
def firsts(view: OpView) -> list[Axes | None]:
    """Operands meet axis by axis; the result is zero where the first operand is."""
    if view.node.op_type in ("Div", "Mod"):
        _apart(view, 1)
    return [broadcast(view, _given(view), "first")]


@op(*OTHERS, text="..., ... -> ...")
def others(view: OpView) -> list[Axes | None]:
    """Operands meet axis by axis."""
    zero = ""
    if view.node.op_type == "Pow":
        exponent = view.known(1)
        if exponent is None or (exponent.size and float(np.min(exponent)) < 0):
            _apart(view, 0)
        zero = "first" if exponent is not None and exponent.size and float(np.min(exponent)) > 0 else ""
    return [broadcast(view, _given(view), zero)]


def _apart(view: OpView, i: int) -> None:
    """Operand ``i`` must not be zero: where removed values may be, the node works on the kept ones alone."""
    for axis in view.axes(i):
        if axis.zero:
            view.apart(axis, f"is zero where {view.node.op_type} would give no finite number")


def _shrink_cast(cut: Cut) -> None:
    """A size that becomes data (the width under a square root, a mean's divisor) stays what it was."""
    old, new = cut.known(0), cut.known_new(0)
    like = cut.node.inputs[1] if cut.node.op_type == "CastLike" else None
    target = ir.DataType(int(cut.attr("to", 1))) if like is None else cut.rewriter.facts.dtype(like)
    if old is None or new is None or old.shape != new.shape or (target is not None and not target.is_floating_point()):
        return
    changed = np.flatnonzero(old.reshape(-1) != new.reshape(-1))
    if len(changed):
        cut.override(0, {int(t): old.reshape(-1)[t] for t in changed})


def _masked(view: OpView, role: str) -> set[int]:
    """Parameters that meet data in a sum or product are masked like a bias or a scale."""
    parameters = {i for i in _given(view) if view.is_parameter(i)}
    for i in parameters:
        view.weight(i, role)
    return parameters


op("Cast", "CastLike", text="... -> ...", shrink=_shrink_cast)(_cast)
