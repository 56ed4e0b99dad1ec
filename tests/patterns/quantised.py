"""Quantised weights and activations.

Tolerances: one step of an 8-bit tensor is 1/255 of its range, and a sum may round differently by one step.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto

from tests.patterns.build import F32, I8, I32, U8, Net, pattern

STEP = 2e-2


def _dq(g: Net, name: str, shape: tuple[int, ...], axis: int | None, zero: bool = False, bits: object = np.int8) -> str:
    """An int8 weight behind DequantizeLinear, per tensor or per channel."""
    w = g.q(name, *shape, dtype=bits)
    n = () if axis is None else (shape[axis],)
    scale = g.positive(f"{name}.scale", *n, low=0.004, high=0.01)
    point = g.q(f"{name}.zero", *n, low=-9, high=9, dtype=bits) if zero else None
    return g.DequantizeLinear(w, scale, *([point] if point else []), **({} if axis is None else {"axis": axis}))


@pattern("a:0 b:0,1 c:1", widths={"a:0": 6})
def qdq_weights_per_tensor() -> ModelProto:
    g = Net()
    x = g.Relu(g.Conv(g.x("N", 3, 6, 6), _dq(g, "a", (12, 3, 3, 3), None), pads=[1] * 4))
    x = g.Relu(g.Conv(x, _dq(g, "b", (10, 12, 3, 3), None), g.w("b.b", 10)))
    x = g.Flatten(g.GlobalAveragePool(x))
    g.out(g.Gemm(x, _dq(g, "c", (4, 10), None), transB=1))
    return g.model()


@pattern("a:0 a.scale:0 b:0,1 b.scale:0 c:0", widths={"a.scale:0": 6})
def qdq_weights_per_channel() -> ModelProto:
    """Scales and zero points are as long as the channel axis and shrink with it."""
    g = Net()
    x = g.Relu(g.Conv(g.x("N", 3, 6, 6), _dq(g, "a", (12, 3, 3, 3), 0, True), pads=[1] * 4))
    x = g.Relu(g.Conv(x, _dq(g, "b", (10, 12, 3, 3), 0, True), g.w("b.b", 10)))
    x = g.Flatten(g.GlobalAveragePool(x))
    g.out(g.MatMul(x, _dq(g, "c", (10, 4), 1)))
    return g.model()


@pattern("a:0 b:0,1")
def qdq_weights_per_input_channel() -> ModelProto:
    """The quantisation axis is the one that is contracted."""
    g = Net()
    x = g.Relu(g.Conv(g.x("N", 3, 6, 6), _dq(g, "a", (12, 3, 3, 3), 0), pads=[1] * 4))
    x = g.Relu(g.Conv(x, _dq(g, "b", (10, 12, 3, 3), 1, True)))
    g.head(x, 10)
    return g.model()


def _act(g: Net, x: str, scale: float = 0.03, zero: int = 12) -> str:
    q = g.QuantizeLinear(x, g.f(scale), g.c(zero, np.uint8))
    return g.DequantizeLinear(q, g.f(scale), g.c(zero, np.uint8))


@pattern("a:0 b:0,1 bias:0", tolerance=STEP)
def qdq_everything() -> ModelProto:
    """Weights, int32 bias and activations, residual add in between, as static quantisation writes it."""
    g = Net()
    x = _act(g, g.x("N", 3, 6, 6), zero=128)
    bias = g.DequantizeLinear(g.q("bias", 12, low=-900, high=900, dtype=np.int32), g.f(0.0005))
    x = _act(g, g.Relu(g.Conv(x, _dq(g, "a", (12, 3, 3, 3), 0), bias, pads=[1] * 4)))
    y = _act(g, g.Relu(g.Conv(x, _dq(g, "r", (12, 12, 1, 1), 0))))
    x = _act(g, g.Add(x, y))
    x = _act(g, g.Relu(g.Conv(x, _dq(g, "b", (10, 12, 3, 3), 0))))
    x = _act(g, g.GlobalAveragePool(x))
    g.out(g.Gemm(g.Flatten(x), _dq(g, "c", (4, 10), 0), transB=1))
    return g.model()


@pattern("a:0 b:0,1", tolerance=STEP)
def qdq_activations_per_channel() -> ModelProto:
    """Activation scales along the channel axis."""
    g = Net()
    x = g.Relu(g.conv(g.x("N", 3, 6, 6), "f", 12, 3))
    s = g.positive("act.scale", 12, low=0.01, high=0.03)
    z = g.q("act.zero", 12, low=0, high=20, dtype=np.uint8)
    x = g.DequantizeLinear(g.QuantizeLinear(x, s, z, axis=1), s, z, axis=1)
    x = g.Relu(g.Conv(x, g.w("a", 8, 12, 3, 3)))
    x = g.Relu(g.Conv(x, g.w("b", 10, 8, 1, 1)))
    g.head(x, 10)
    return g.model()


def _qconv(g: Net, x: str, name: str, o: int, i: int, *, per_channel: bool = True, bias: bool = True) -> str:
    """QLinearConv with input scale .03 zero 5 and output scale .05 zero 7 (both uint8)."""
    n = (o,) if per_channel else ()
    return g.QLinearConv(
        x,
        g.f(0.03),
        g.c(5, np.uint8),
        g.q(name, o, i, 3, 3),
        g.positive(f"{name}.scale", *n, low=0.004, high=0.01),
        g.c(np.zeros(n), np.int8, f"{name}.zero"),
        g.f(0.03),
        g.c(5, np.uint8),
        *([g.q(f"{name}.bias", o, low=-900, high=900, dtype=np.int32)] if bias else []),
        pads=[1] * 4,
    )


@pattern("a:0 a.scale:0 a.bias:0 b:0,1 b.bias:0", tolerance=STEP)
def qlinear_conv() -> ModelProto:
    g = Net()
    x = g.QuantizeLinear(g.x("N", 3, 6, 6), g.f(0.03), g.c(5, np.uint8))
    x = _qconv(g, _qconv(g, x, "a", 12, 3), "b", 10, 12, per_channel=False)
    x = _qconv(g, x, "c", 4, 10, bias=False)
    g.out(g.DequantizeLinear(x, g.f(0.03), g.c(5, np.uint8)))
    return g.model()


@pattern("a:1 b:0,1", tolerance=STEP)
def qlinear_matmul() -> ModelProto:
    g = Net()
    x = g.QuantizeLinear(g.x("N", 7), g.f(0.03), g.c(128, np.uint8))
    for n, i, o in (("a", 7, 12), ("b", 12, 10), ("c", 10, 4)):
        s = g.positive(f"{n}.scale", o, low=0.004, high=0.01) if n == "b" else g.f(0.01)
        z = g.c(np.zeros(o), np.int8, f"{n}.zero") if n == "b" else g.c(3, np.int8)
        x = g.QLinearMatMul(x, g.f(0.03), g.c(128, np.uint8), g.q(n, i, o), s, z, g.f(0.03), g.c(128, np.uint8))
    g.out(g.DequantizeLinear(x, g.f(0.03), g.c(128, np.uint8)))
    return g.model()


@pattern("a:0 b:0,1", tolerance=STEP)
def conv_integer() -> ModelProto:
    """Dynamic quantisation of a convolution: the range is read off the values, of which zero always is one."""
    g = Net()
    x = g.x("N", 3, 6, 6)
    for n, i, o in (("a", 3, 12), ("b", 12, 10), ("c", 10, 4)):
        q, s, z = g.DynamicQuantizeLinear(x, n=3)
        y = g.ConvInteger(q, g.q(n, o, i, 3, 3, dtype=np.uint8, low=60, high=200), z, g.c(128, np.uint8), pads=[1] * 4)
        y = g.Mul(g.Cast(y, to=F32), g.Mul(s, g.f(0.004)))
        x = y if n == "c" else g.Relu(y)
    g.out(x)
    return g.model()


@pattern("a:1 b:0,1 b.scale:0", tolerance=STEP)
def matmul_integer_dynamic() -> ModelProto:
    """ORT's dynamic quantisation: DynamicQuantizeLinear, MatMulInteger, Cast, Mul by scales, bias."""
    g = Net()
    x = g.x("N", "T", 7)
    for n, i, o in (("a", 7, 12), ("b", 12, 10), ("c", 10, 4)):
        q, s, z = g.DynamicQuantizeLinear(x, n=3)
        scale = g.positive(f"{n}.scale", o, low=0.004, high=0.01) if n == "b" else g.f(0.008)
        zero = g.q(f"{n}.zero", o, low=-4, high=4) if n == "b" else g.c(2, np.int8)
        y = g.MatMulInteger(q, g.q(n, i, o), z, zero)
        y = g.Mul(g.Cast(y, to=F32), g.Mul(s, scale))
        x = y if n == "c" else g.Relu(g.Add(y, g.w(f"{n}.b", o, scale=0.1)))
    g.out(x)
    return g.model()


@pattern("a:1 b:0,1")
def dequantised_embedding_and_int32() -> ModelProto:
    """An int8 table gathered before DequantizeLinear."""
    g = Net()
    e = g.Gather(g.q("a", 30, 12), g.x("N", "T", name="ids", dtype=7), axis=0)
    x = g.DequantizeLinear(e, g.f(0.01), g.c(4, np.int8))
    x = g.Relu(g.MatMul(x, _dq(g, "b", (12, 10), 1)))
    g.out(g.linear(x, "o", 10, 3))
    return g.model()


@pattern("a:1", dims={})
def blocked_quantisation() -> ModelProto:
    """Opset 21: one scale per block of 4 along the contracted axis; blocks leave whole or the axis stays."""
    g = Net()
    x = g.Relu(g.linear(g.x("N", 7), "f", 7, 16))
    w = g.DequantizeLinear(g.q("a", 16, 10), g.positive("a.scale", 4, 10, low=0.004, high=0.01), axis=0, block_size=4)
    x = g.Relu(g.MatMul(x, w))
    g.out(g.linear(x, "o", 10, 3))
    return g.model(opset=21, ir=10)


@pattern("a:0", tolerance=STEP)
def quantised_interface() -> ModelProto:
    """uint8 image in, int8 map out."""
    g = Net()
    x = g.DequantizeLinear(g.x("N", 3, 6, 6, dtype=U8), g.f(0.01), g.c(100, np.uint8))
    x = g.Relu(g.Conv(x, _dq(g, "a", (12, 3, 3, 3), 0)))
    x = g.Conv(x, g.w("o", 4, 12, 1, 1))
    g.out(g.QuantizeLinear(x, g.f(0.02), g.c(0, np.int8)))
    return g.model()


@pattern("f.w:0 a:0", tolerance=1e-6)
def integer_lookup_and_casts() -> ModelProto:
    """int32 and int8 values on the way of shapes and masks, none of them a weight."""
    g = Net()
    x = g.cbr(g.x("N", 3, 6, 6), "f", 12, 3)
    keep = g.Cast(g.Greater(x, g.f(0.2)), to=I32)
    x = g.Mul(x, g.Cast(g.Cast(keep, to=I8), to=F32))
    x = g.Relu(g.Conv(x, g.w("a", 10, 12, 1, 1)))
    g.head(x, 10)
    return g.model()


@pattern(inexact_cut="f.w:0 a:1 a:0", tolerance=STEP)
def dynamic_quantisation_of_what_is_not_zero() -> ModelProto:
    """The range of a sigmoid's values: without the removed channels, whose halves would count in it."""
    g = Net()
    x = g.Sigmoid(g.conv(g.x("N", 3, 6, 6), "f", 12, 3))
    q, scale, point = g.DynamicQuantizeLinear(x, n=3)
    y = g.Cast(g.ConvInteger(q, g.q("a", 10, 12, 3, 3), point, pads=[1] * 4), to=F32)
    g.head(g.Relu(g.Mul(y, g.Mul(scale, g.f(0.01)))), 10)
    return g.model()
