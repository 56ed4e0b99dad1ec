"""Activations that older parsers lack, from those they have."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from graphprune.backends.tensorrt.rewriting import Builder, Values, attribute, given, lowers


@lowers("Mish")
def mish(node: ir.Node, b: Builder) -> Values | None:
    """x * Tanh(Softplus(x))."""
    x = node.inputs[0]
    assert x is not None
    return b.op("Mul", x, b.op("Tanh", b.op("Softplus", x)))


@lowers("HardSwish")
def hard_swish(node: ir.Node, b: Builder) -> Values | None:
    """x * HardSigmoid(x)."""
    x = node.inputs[0]
    assert x is not None
    return b.op("Mul", x, b.op("HardSigmoid", x, alpha=1 / 6, beta=0.5))


@lowers("Swish")
def swish(node: ir.Node, b: Builder) -> Values | None:
    """x * Sigmoid(alpha x)."""
    x = node.inputs[0]
    assert x is not None
    alpha = float(attribute(node, "alpha", 1.0))
    scaled = x if alpha == 1 else b.op("Mul", x, b.constant(alpha, x))
    return b.op("Mul", x, b.op("Sigmoid", scaled))


@lowers("Gelu")
def gelu(node: ir.Node, b: Builder) -> Values | None:
    """The error function, or its tanh approximation where the node asks for it."""
    x = node.inputs[0]
    assert x is not None
    if attribute(node, "approximate", "none") == "tanh":
        cube = b.op("Mul", b.op("Mul", x, x), x)
        inner = b.op("Add", x, b.op("Mul", cube, b.constant(0.044715, x)))
        gate = b.op("Tanh", b.op("Mul", inner, b.constant(math.sqrt(2 / math.pi), x)))
    else:
        gate = b.op("Erf", b.op("Mul", x, b.constant(math.sqrt(0.5), x)))
    half = b.op("Mul", x, b.constant(0.5, x))
    return b.op("Mul", half, b.op("Add", gate, b.constant(1.0, x)))


@lowers("Celu")
def celu(node: ir.Node, b: Builder) -> Values | None:
    """Max(0, x) + Min(0, alpha (Exp(x / alpha) - 1))."""
    x = node.inputs[0]
    assert x is not None
    alpha, zero = b.constant(float(attribute(node, "alpha", 1.0)), x), b.constant(0.0, x)
    low = b.op("Mul", alpha, b.op("Sub", b.op("Exp", b.op("Div", x, alpha)), b.constant(1.0, x)))
    return b.op("Add", b.op("Max", x, zero), b.op("Min", low, zero))


@lowers("Shrink")
def shrink(node: ir.Node, b: Builder) -> Values | None:
    """Comparisons and Where."""
    x = node.inputs[0]
    assert x is not None
    lambd, bias = float(attribute(node, "lambd", 0.5)), float(attribute(node, "bias", 0.0))
    shift, zero = b.constant(bias, x), b.constant(0.0, x)
    low = b.op("Where", b.op("Less", x, b.constant(-lambd, x)), b.op("Add", x, shift), zero)
    return b.op("Where", b.op("Greater", x, b.constant(lambd, x)), b.op("Sub", x, shift), low)


@lowers("Reciprocal")
def reciprocal(node: ir.Node, b: Builder) -> Values | None:
    """1 / x."""
    x = node.inputs[0]
    assert x is not None
    return b.op("Div", b.constant(1.0, x), x)


@lowers("Clip")
def clip_by_bounds(node: ir.Node, b: Builder) -> Values | None:
    """Max with the lower bound, Min with the upper."""
    x = node.inputs[0]
    assert x is not None
    low, high = given(node, 1), given(node, 2)
    for name in ("min", "max"):  # before opset 11 the bounds are attributes
        if name in node.attributes:
            bound = b.constant(np.float32(attribute(node, name)), x)
            low, high = (bound, high) if name == "min" else (low, bound)
    out = x
    out = b.op("Max", out, low) if low is not None else out
    return b.op("Min", out, high) if high is not None else out
