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
