"""Normalisations, as operators and written out."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto

from tests.patterns.build import F32, Net, pattern


def _mlp(g: Net, x: str, c: int, name: str = "m", hidden: int = 20) -> str:
    return g.linear(g.Gelu(g.linear(x, f"{name}1", c, hidden), approximate="tanh"), f"{name}2", hidden, c)


@pattern("m1.w:1 m2.w:0", inexact_cut="e.w:1 n.s:0 m1.w:0 m2.w:1", widths={"m1.w:1": 10})
def layer_norm_op() -> ModelProto:
    g = Net()
    x = g.linear(g.x("N", 6, 7), "e", 7, 12)
    x = g.Add(x, _mlp(g, g.ln(x, "n", 12), 12))
    g.out(g.linear(x, "o", 12, 3))
    return g.model(opset=20)


@pattern("m1.w:1 m2.w:0", inexact_cut="e.w:1 n.s:0 m1.w:0 m2.w:1")
def layer_norm_decomposed() -> ModelProto:
    g = Net()
    x = g.linear(g.x("N", 6, 7), "e", 7, 12)
    d = g.Sub(x, g.ReduceMean(x, g.c([-1])))
    v = g.ReduceMean(g.Pow(d, g.f(2)), g.c([-1]))
    n = g.Div(d, g.Sqrt(g.Add(v, g.f(1e-5))))
    n = g.Add(g.Mul(n, g.w("n.s", 12, shift=1)), g.w("n.h", 12))
    x = g.Add(x, _mlp(g, n, 12))
    g.out(g.linear(x, "o", 12, 3))
    return g.model(opset=20)


@pattern("m1.w:1 m2.w:0", inexact_cut="e.w:1 m1.w:0 m2.w:1")
def rms_norm_decomposed() -> ModelProto:
    g = Net()
    x = g.linear(g.x("N", 6, 7), "e", 7, 12, bias=False)
    v = g.ReduceMean(g.Mul(x, x), g.c([-1]))
    n = g.Mul(g.w("n.s", 12, shift=1), g.Mul(x, g.Reciprocal(g.Sqrt(g.Add(v, g.f(1e-6))))))
    x = g.Add(x, _mlp(g, n, 12))
    g.out(g.linear(x, "o", 12, 3))
    return g.model(opset=20)


@pattern("m1.w:1 m2.w:0", inexact_cut="e.w:1 m1.w:0 m2.w:1")
def rms_norm_op() -> ModelProto:
    g = Net()
    x = g.linear(g.x("N", 6, 7), "e", 7, 12, bias=False)
    n = g.RMSNormalization(x, g.w("n.s", 12, shift=1), axis=-1)
    x = g.Add(x, _mlp(g, n, 12))
    g.out(g.linear(x, "o", 12, 3))
    return g.model(opset=23, ir=11)


@pattern(inexact_cut="a.w:0 b.w:0,1")
def layer_norm_channels_first() -> ModelProto:
    """ConvNeXt's LayerNorm2d: mean over axis 1 with weight [C, 1, 1]."""
    g = Net()
    x = g.conv(g.x("N", 3, 6, 6), "a", 12, 3)
    d = g.Sub(x, g.ReduceMean(x, g.c([1])))
    v = g.ReduceMean(g.Mul(d, d), g.c([1]))
    x = g.Div(d, g.Sqrt(g.Add(v, g.f(1e-6))))
    x = g.Add(g.Mul(x, g.w("n.s", 12, 1, 1, shift=1)), g.w("n.h", 12, 1, 1))
    g.head(g.Relu(g.conv(x, "b", 10, 12)), 10)
    return g.model()


@pattern("p1.w:1 p2.w:0", inexact_cut="dw.w:0 p1.w:0 p2.w:1 gamma:0")
def convnext_block() -> ModelProto:
    """Depthwise, LayerNorm in NHWC, two linear layers, layer scale, residual."""
    g = Net()
    x = g.conv(g.x("N", 3, 8, 8), "stem", 12, 3)
    y = g.t(g.conv(x, "dw", 12, 12, 7, group=12), 0, 2, 3, 1)
    y = g.Gelu(g.linear(g.ln(y, "n", 12), "p1", 12, 30))
    y = g.Mul(g.linear(y, "p2", 30, 12), g.w("gamma", 12))
    x = g.Add(x, g.t(y, 0, 3, 1, 2))
    g.head(x, 12)
    return g.model(opset=20)


@pattern("a.w:0 n.s:0 b.w:0,1", families=True)
def group_norm_op() -> ModelProto:
    """Whole groups leave exactly; positions within groups would not."""
    g = Net()
    x = g.conv(g.x("N", 3, 6, 6), "a", 16, 3)
    x = g.Relu(g.GroupNormalization(x, g.w("n.s", 16, scale=0.2, shift=1), g.w("n.h", 16, scale=0.2), num_groups=4))
    g.head(g.cbr(x, "b", 10, 16), 10, dtype=F32, shape=["N", 5])
    return g.model(opset=21, ir=10)


@pattern("a.w:0 b.w:0,1", families=True)
def group_norm_instance_norm() -> ModelProto:
    """PyTorch's spelling: Reshape to [N, G, -1], InstanceNormalization of ones and zeros, Reshape, Mul, Add."""
    g = Net()
    x = g.conv(g.x("N", 3, 6, 6), "a", 16, 3)
    y = g.Reshape(x, g.c([0, 4, -1]))
    y = g.InstanceNormalization(y, g.f(np.ones(4), "ones"), g.f(np.zeros(4), "zeros"))
    y = g.Reshape(y, g.Shape(x))
    y = g.Relu(g.Add(g.Mul(y, g.w("n.s", 16, 1, 1, shift=1)), g.w("n.h", 16, 1, 1)))
    g.head(g.cbr(y, "b", 10, 16), 10)
    return g.model()


@pattern("a.w:0 b.w:0,1", families=True)
def group_norm_decomposed() -> ModelProto:
    g = Net()
    x = g.conv(g.x("N", 3, 6, 6), "a", 16, 3)
    y = g.reshape(x, -1, 4, 4, 6, 6)
    d = g.Sub(y, g.ReduceMean(y, g.c([2, 3, 4])))
    y = g.Div(d, g.Sqrt(g.Add(g.ReduceMean(g.Mul(d, d), g.c([2, 3, 4])), g.f(1e-5))))
    y = g.reshape(y, -1, 16, 6, 6)
    y = g.Relu(g.Add(g.Mul(y, g.w("n.s", 16, 1, 1, shift=1)), g.w("n.h", 16, 1, 1)))
    g.head(g.cbr(y, "b", 10, 16), 10)
    return g.model()


@pattern("a.w:0 n.s:0 n.h:0 b.w:0,1", widths={"a.w:0": 6})
def instance_norm() -> ModelProto:
    g = Net()
    x = g.conv(g.x("N", 3, 6, 6), "a", 12, 3)
    x = g.Relu(g.InstanceNormalization(x, g.w("n.s", 12, shift=1), g.w("n.h", 12)))
    g.head(g.cbr(x, "b", 10, 12), 10)
    return g.model()


@pattern("b.w:0", inexact=True)
def mean_variance_normalisation() -> ModelProto:
    """ONNX Runtime divides by the bare deviation: a zeroed channel is 0/0, so no channel is exact."""
    g = Net()
    x = g.conv(g.x("N", 3, 6, 6), "a", 12, 3)
    x = g.MeanVarianceNormalization(x, axes=[0, 2, 3])
    g.head(g.cbr(x, "b", 10, 12), 10)
    return g.model()


@pattern("b.w:0", inexact=True)
def local_response_norm() -> ModelProto:
    """LRN sums over neighbouring channels: inexact or frozen, never silently wrong."""
    g = Net()
    x = g.cbr(g.x("N", 3, 6, 6), "a", 12, 3)
    x = g.LRN(x, size=5, alpha=0.1)
    g.head(g.cbr(x, "b", 10, 12), 10)
    return g.model()


@pattern("b.w:0", inexact=True)
def l2_normalise_features() -> ModelProto:
    """x / ReduceL2(x) over channels, then a convolution."""
    g = Net()
    x = g.conv(g.x("N", 3, 6, 6), "a", 12, 3)
    x = g.Div(x, g.Max(g.ReduceL2(x, g.c([1])), g.f(1e-6)))
    g.head(g.cbr(x, "b", 10, 12), 10)
    return g.model()


@pattern("b.w:0", inexact=True)
def lp_normalisation_op() -> ModelProto:
    g = Net()
    x = g.conv(g.x("N", 3, 6, 6), "a", 12, 3)
    x = g.LpNormalization(x, axis=1, p=2)
    g.head(g.cbr(x, "b", 10, 12), 10)
    return g.model()


@pattern("b.w:0", inexact_cut="a.w:0 b.w:1")
def softmax_over_channels() -> ModelProto:
    g = Net()
    x = g.Softmax(g.conv(g.x("N", 3, 6, 6), "a", 12, 3), axis=1)
    g.head(g.cbr(x, "b", 10, 12), 10)
    return g.model()


@pattern("b.w:0", inexact=True)
def mean_over_channels() -> ModelProto:
    g = Net()
    x = g.cbr(g.x("N", 3, 6, 6), "a", 12, 3)
    x = g.Sub(x, g.ReduceMean(x, g.c([1])))
    g.head(g.cbr(x, "b", 10, 12), 10)
    return g.model()


@pattern("b.w:0", inexact=True)
def sum_and_max_over_channels() -> ModelProto:
    """ReduceSum of a map that is zero where its weights are; ReduceMax after Relu; then Sigmoid whose zero is 0.5."""
    g = Net()
    x = g.cbr(g.x("N", 3, 6, 6), "a", 12, 3)
    s = g.Add(g.ReduceSum(x, g.c([1])), g.ReduceMax(g.Sigmoid(x), g.c([1])))
    g.head(g.cbr(g.Mul(x, s), "b", 10, 12), 10)
    return g.model()


@pattern("b.w:0", inexact=True)
def product_over_channels() -> ModelProto:
    """A zeroed channel would zero the product: never exact."""
    g = Net()
    x = g.Sigmoid(g.conv(g.x("N", 3, 6, 6), "a", 4, 3))
    x = g.Concat(x, g.ReduceProd(x, axes=[1]), axis=1)
    g.head(g.cbr(x, "b", 10, 5), 10)
    return g.model(opset=17)


@pattern("fc.w:1 h.w:0,1 n.s:0 a.w:0", widths={"fc.w:1": 5})
def batch_norm_1d_after_gemm() -> ModelProto:
    g = Net()
    x = g.Relu(g.bn(g.linear(g.x("N", 7), "fc", 7, 10), "n1", 10))
    x = g.reshape(x, -1, 10)
    x = g.Relu(g.bn(g.linear(x, "h", 10, 12), "n", 12))
    g.out(g.linear(x, "a", 12, 4))
    return g.model()


@pattern("a.w:0 b.w:0,1 m:0 v:0")
def batch_norm_as_arithmetic() -> ModelProto:
    """FrozenBatchNorm: (x - m) * (gamma / sqrt(v + eps)) + beta with constants kept apart."""
    g = Net()
    x = g.conv(g.x("N", 3, 6, 6), "a", 12, 3, bias=False)
    scale = g.Div(g.w("gamma", 12, shift=1), g.Sqrt(g.Add(g.positive("v", 12), g.f(1e-5))))
    x = g.Sub(x, g.reshape(g.w("m", 12), 1, 12, 1, 1))
    x = g.Add(g.Mul(x, g.reshape(scale, 1, 12, 1, 1)), g.reshape(g.w("beta", 12), 1, 12, 1, 1))
    g.head(g.cbr(g.Relu(x), "b", 10, 12), 10)
    return g.model()


@pattern("b.w:0", inexact=True)
def global_response_norm() -> ModelProto:
    """ConvNeXt v2's GRN: L2 over space, mean over channels."""
    g = Net()
    x = g.t(g.cbr(g.x("N", 3, 6, 6), "a", 12, 3), 0, 2, 3, 1)
    n = g.ReduceL2(x, g.c([1, 2]))
    n = g.Div(n, g.Add(g.ReduceMean(n, g.c([-1])), g.f(1e-6)))
    x = g.Add(g.Add(g.Mul(g.Mul(x, n), g.w("gamma", 1, 1, 1, 12)), g.w("beta", 1, 1, 1, 12)), x)
    g.head(g.cbr(g.t(x, 0, 3, 1, 2), "b", 10, 12), 10)
    return g.model()


@pattern("b.w:0")
def weight_standardised_conv() -> ModelProto:
    """The kernel is standardised by constant arithmetic in the graph; folding it away is exact."""
    g = Net()
    w = g.w("ws", 12, 8, 3, 3)
    d = g.Sub(w, g.ReduceMean(w, g.c([1, 2, 3])))
    w = g.Div(d, g.Sqrt(g.Add(g.ReduceMean(g.Mul(d, d), g.c([1, 2, 3])), g.f(1e-5))))
    x = g.cbr(g.x("N", 3, 6, 6), "a", 8, 3)
    x = g.Relu(g.Conv(x, w, pads=[1] * 4))
    g.head(g.cbr(x, "b", 10, 12), 10)
    return g.model()
