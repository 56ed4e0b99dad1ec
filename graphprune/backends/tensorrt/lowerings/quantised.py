"""Quantisation as TensorRT has it: signed, symmetric, by QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphprune.backends.tensorrt.rewriting import Builder, Values, attribute, given, lowers


def _shifted(b: Builder, value: ir.Value | None) -> bool:
    """Whether a zero point is uint8 and 128 everywhere."""
    known = b.known(value)
    return known is not None and known.dtype == np.uint8 and bool((known == 128).all())


@lowers("QuantizeLinear")
def signed_quantize(node: ir.Node, b: Builder) -> Values | None:
    """int8 with zero point 0 instead of uint8 with 128."""
    x, scale, zero = node.inputs[0], node.inputs[1], given(node, 2)
    readers = [use.node for use in node.outputs[0].uses()]
    if not _shifted(b, zero) or node.outputs[0].is_graph_output():
        return None
    if any(r.op_type != "DequantizeLinear" or not _shifted(b, given(r, 2)) for r in readers):
        return None
    assert zero is not None and x is not None
    axis = attribute(node, "axis") if b.opset >= 13 else None
    out = b.op("QuantizeLinear", x, scale, b.constant(np.zeros(b.shape(zero) or (), np.int8)), axis=axis)
    return out


@lowers("DequantizeLinear")
def signed_dequantize(node: ir.Node, b: Builder) -> Values | None:
    """int8 with zero point 0 instead of uint8 with 128."""
    x, scale, zero = node.inputs[0], node.inputs[1], given(node, 2)
    if not _shifted(b, zero) or x is None or zero is None:
        return None
    known = b.facts.constant(x)
    if known is not None and known.dtype == np.uint8:
        x = b.constant((known.astype(np.int16) - 128).astype(np.int8))
    elif b.facts.dtype(x) != ir.DataType.INT8:
        return None
    axis = attribute(node, "axis") if b.opset >= 13 else None
    return b.op("DequantizeLinear", x, scale, b.constant(np.zeros(b.shape(zero) or (), np.int8)), axis=axis)


@lowers("DequantizeLinear")
def dequantised_in_advance(node: ir.Node, b: Builder) -> Values | None:
    """Stored weights in float32, where the parser does not take how they are quantised."""
    x, scale, zero = node.inputs[0], node.inputs[1], given(node, 2)
    assert x is not None and scale is not None
    codes, factor, shift = b.facts.constant(x), b.known(scale), b.known(zero)
    if codes is None or factor is None or (zero is not None and shift is None) or attribute(node, "block_size", 0):
        return None
    shape = [1] * codes.ndim
    if factor.size > 1:
        shape[int(attribute(node, "axis", 1))] = factor.size
    offset = np.float32(0) if shift is None else shift.astype(np.float32).reshape(shape if shift.size > 1 else ())
    wide = codes.astype(np.float64) - offset
    return b.op("Identity", b.constant((wide * factor.reshape(shape if factor.size > 1 else ())).astype(factor.dtype)))
