"""Arithmetic and logic that older parsers lack."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphprune.backends.tensorrt.rewriting import Builder, Values, attribute, lowers


@lowers("Xor")
def xor(node: ir.Node, b: Builder) -> Values | None:
    """Not equal, as integers."""
    x, y = node.inputs
    assert x is not None and y is not None
    return b.op("Not", b.op("Equal", b.cast(x, ir.DataType.INT32), b.cast(y, ir.DataType.INT32)))


@lowers("Mod")
def mod(node: ir.Node, b: Builder) -> Values | None:
    """What a division leaves, by Div, Mul and Sub."""
    x, y = node.inputs
    assert x is not None and y is not None
    floating = b.dtype(x) in (ir.DataType.FLOAT, ir.DataType.FLOAT16)
    quotient = b.op("Div", x, y)
    if floating:  # fmod: the sign of x
        zero = b.constant(0.0, x)
        quotient = b.op("Where", b.op("Less", quotient, zero), b.op("Ceil", quotient), b.op("Floor", quotient))
    rest = b.op("Sub", x, b.op("Mul", quotient, y))
    if floating or attribute(node, "fmod", 0):
        return rest
    known = b.known(y)
    zero = b.constant(0, x)
    # Integer division goes towards zero; ONNX's remainder has the sign of y.
    below = b.op("Less", rest, zero)
    other = below if known is not None and (known > 0).all() else None
    if other is None:
        differs = b.op(
            "Not", b.op("Equal", b.cast(below, ir.DataType.INT32), b.cast(b.op("Less", y, zero), ir.DataType.INT32))
        )
        other = b.op("And", differs, b.op("Not", b.op("Equal", rest, zero)))
    return b.op("Where", other, b.op("Add", rest, y), rest)


@lowers("IsInf")
def is_inf(node: ir.Node, b: Builder) -> Values | None:
    """Equal to infinity."""
    x = node.inputs[0]
    assert x is not None
    up, down = attribute(node, "detect_positive", 1), attribute(node, "detect_negative", 1)
    if up and down:
        return b.op("Equal", b.op("Abs", x), b.constant(np.inf, x))
    return b.op("Equal", x, b.constant(np.inf if up else -np.inf, x)) if up or down else None


@lowers("IsNaN")
def is_nan(node: ir.Node, b: Builder) -> Values | None:
    """Not equal to itself."""
    x = node.inputs[0]
    assert x is not None
    return b.op("Not", b.op("Equal", x, x))


@lowers("Sign")
def sign(node: ir.Node, b: Builder) -> Values | None:
    """Comparisons with zero."""
    x = node.inputs[0]
    assert x is not None
    zero = b.constant(0, x)
    dtype = b.dtype(x)
    return b.op("Sub", b.cast(b.op("Greater", x, zero), dtype), b.cast(b.op("Less", x, zero), dtype))


@lowers("Round")
def round_to_even(node: ir.Node, b: Builder) -> Values | None:
    """Floor of x + 1/2, one less where a half would go to an odd number."""
    x = node.inputs[0]
    assert x is not None
    half = b.constant(0.5, x)
    up = b.op("Floor", b.op("Add", x, half))
    tie = b.op("Equal", b.op("Sub", up, x), half)
    odd = b.op("Sub", up, b.op("Mul", b.constant(2.0, x), b.op("Floor", b.op("Mul", up, half))))
    back = b.op("Mul", b.cast(tie, b.dtype(x)), odd)
    return b.op("Sub", up, back)


@lowers("Sum", "Max", "Min")
def pairwise(node: ir.Node, b: Builder) -> Values | None:
    """Two inputs at a time."""
    values = [v for v in node.inputs if v is not None]
    if len(values) < 3:
        return None
    op_type = "Add" if node.op_type == "Sum" else node.op_type
    out = values[0]
    for value in values[1:]:
        out = b.op(op_type, out, value)
    return out
