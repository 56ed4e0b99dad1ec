"""Convolutional backbones and blocks."""

from __future__ import annotations

from onnx import ModelProto

from tests.patterns.build import Net, pattern


@pattern("a.w:0 a.b:0 b.w:0,1 b.s:0 c.w:0,1 fc.w:1", frozen="a.w:1 fc.w:0", widths={"a.w:0": 4, "b.w:0": 6, "c.w:0": 8})
def vgg() -> ModelProto:
    g = Net()
    x = g.x("N", 3, 16, 16)
    x = g.MaxPool(g.Relu(g.conv(x, "a", 8, 3)), kernel_shape=[2, 2], strides=[2, 2])
    x = g.cbr(x, "b", 12, 8)
    x = g.AveragePool(x, kernel_shape=[2, 2], strides=[2, 2])
    g.head(g.cbr(x, "c", 16, 12), 16)
    return g.model()


@pattern("stem.w:0 a1.w:0 a2.w:0,1 b1.w:0 b2.w:0 d.w:0,1 fc.w:1", widths={"stem.w:0": 4, "a1.w:0": 5, "d.w:0": 8})
def resnet_basic() -> ModelProto:
    g = Net()
    x = g.cbr(g.x("N", 3, 16, 16), "stem", 8, 3)
    y = g.cbr(x, "a1", 10, 8)
    x = g.Relu(g.Add(g.bn(g.conv(y, "a2", 8, 10, bias=False), "a2", 8), x))
    y = g.cbr(x, "b1", 12, 8, strides=[2, 2])
    y = g.bn(g.conv(y, "b2", 16, 12), "b2", 16)
    x = g.Relu(g.Add(y, g.conv(x, "d", 16, 8, 1, strides=[2, 2])))
    g.head(x, 16)
    return g.model()


@pattern("stem.w:0 p.w:0 q.w:0,1 r.w:0,1 fc.w:1")
def resnet_bottleneck_folded() -> ModelProto:
    """BatchNormalization folded away, three blocks on one trunk."""
    g = Net()
    x = g.Relu(g.conv(g.x("N", 3, "H", "W"), "stem", 16, 3))
    for i, s in enumerate(["", "2", "3"]):
        y = g.Relu(g.conv(x, f"p{s}", 6 + i, 16, 1))
        y = g.Relu(g.conv(y, f"q{s}", 8 + i, 6 + i))
        x = g.Relu(g.Add(x, g.conv(y, f"r{s}", 16, 8 + i, 1)))
    g.head(x, 16)
    return g.model()


@pattern("stem.w:0 l0.w:0,1 l1.w:0,1 l2.w:0,1 tr.w:0,1 fc.w:1", widths={"l1.w:1": 7})
def densenet() -> ModelProto:
    g = Net()
    x = g.conv(g.x("N", 3, 16, 16), "stem", 8, 3, bias=False)
    c = 8
    for i in range(3):
        y = g.Relu(g.bn(x, f"n{i}", c))
        x = g.Concat(x, g.conv(y, f"l{i}", 6, c, bias=False), axis=1)
        c += 6
    x = g.conv(g.Relu(g.bn(x, "nt", c)), "tr", 14, c, 1)
    g.head(g.AveragePool(x, kernel_shape=[2, 2], strides=[2, 2]), 14)
    return g.model()


@pattern("a.w:0 b.w:0 b2.w:0,1 c.w:0 d.w:0 e.w:0,1 fc.w:1")
def inception() -> ModelProto:
    g = Net()
    x = g.x("N", 3, 16, 16)
    a = g.cbr(x, "a", 8, 3, 1)
    b = g.cbr(g.cbr(x, "b", 6, 3, 1), "b2", 10, 6)
    c = g.cbr(x, "c", 4, 3, 5)
    d = g.cbr(g.MaxPool(x, kernel_shape=[3, 3], pads=[1] * 4), "d", 12, 3, 1)
    x = g.Concat(a, b, c, d, axis=1)
    g.head(g.cbr(x, "e", 14, 34), 14)
    return g.model()


@pattern("stem.w:0 e.w:0,1 d.w:0 d.s:0 p.w:0,1 fc.w:1", widths={"e.w:0": 12, "d.w:0": 12, "stem.w:0": 4})
def mobilenet_v2() -> ModelProto:
    g = Net()
    x = g.cbr(g.x("N", 3, 16, 16), "stem", 8, 3)
    y = g.Clip(g.bn(g.conv(x, "e", 24, 8, 1, bias=False), "e", 24), g.f(0), g.f(6))
    y = g.Clip(g.bn(g.conv(y, "d", 24, 24, group=24, bias=False), "d", 24), g.f(0), g.f(6))
    x = g.Add(x, g.bn(g.conv(y, "p", 8, 24, 1, bias=False), "p", 8))
    g.head(x, 8)
    return g.model()


@pattern("a.w:0 d.w:0 p.w:0,1 fc.w:1", families=True)
def depthwise_multiplier_2() -> ModelProto:
    g = Net()
    x = g.cbr(g.x("N", 3, 8, 8), "a", 6, 3)
    x = g.cbr(x, "d", 12, 6, group=6)
    g.head(g.cbr(x, "p", 10, 12, 1), 10)
    return g.model()


@pattern("a.w:0 r.w:0,1 e.w:0,1 p.w:0,1")
def squeeze_excite_conv() -> ModelProto:
    g = Net()
    x = g.cbr(g.x("N", 3, 8, 8), "a", 16, 3)
    s = g.Relu(g.conv(g.GlobalAveragePool(x), "r", 6, 16, 1))
    x = g.Mul(x, g.Sigmoid(g.conv(s, "e", 16, 6, 1)))
    g.head(g.cbr(x, "p", 10, 16, 1), 10)
    return g.model()


@pattern("a.w:0 r.w:0,1 e.w:0,1 p.w:0,1")
def squeeze_excite_gemm_reshape() -> ModelProto:
    """Gate computed by Gemm and brought back to [N, C, 1, 1] by a Reshape with a constant target."""
    g = Net()
    x = g.cbr(g.x("N", 3, 8, 8), "a", 12, 3)
    s = g.Reshape(g.ReduceMean(x, g.c([2, 3]), keepdims=1), g.c([-1, 12]))
    s = g.HardSigmoid(g.gemm(g.Relu(g.gemm(s, "r", 12, 4)), "e", 4, 12))
    x = g.Mul(x, g.Reshape(s, g.c([-1, 12, 1, 1])))
    g.head(g.cbr(x, "p", 10, 12, 1), 10)
    return g.model()


def _shuffle(g: Net, x: str, groups: int, channels: int, size: int) -> str:
    x = g.reshape(x, -1, groups, channels // groups, size, size)
    return g.reshape(g.t(x, 0, 2, 1, 3, 4), -1, channels, size, size)


@pattern("stem.w:0 u0a.w:0,1 u0b.w:0 u0c.w:0,1 u1c.w:0,1 fc.w:1")
def shufflenet_v2_units() -> ModelProto:
    g = Net()
    x = g.cbr(g.x("N", 3, 8, 8), "stem", 16, 3)
    for u in range(3):
        left, right = g.split(x, 8, 8)
        y = g.cbr(right, f"u{u}a", 8, 8, 1)
        y = g.bn(g.conv(y, f"u{u}b", 8, 8, group=8, bias=False), f"u{u}b", 8)
        y = g.cbr(y, f"u{u}c", 8, 8, 1)
        x = _shuffle(g, g.Concat(left, y, axis=1), 2, 16, 8)
    g.head(x, 16)
    return g.model()


@pattern("a.w:0 b.w:0 fc.w:1", widths={"a.w:0": 6, "b.w:0": 8})
def shuffle_only_reorders() -> ModelProto:
    """A shuffle between dense convolutions must not couple the channels it moves: 12 units, not fewer."""
    g = Net()
    x = g.cbr(g.x("N", 3, 6, 6), "a", 12, 3)
    g.head(g.cbr(_shuffle(g, x, 3, 12, 6), "b", 16, 12), 16)
    return g.model()


@pattern("a.w:0 b.w:0,1 fc.w:1")
def shuffle_by_gather() -> ModelProto:
    g = Net()
    x = g.cbr(g.x("N", 3, 6, 6), "a", 12, 3)
    x = g.Gather(x, g.c([0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11]), axis=1)
    g.head(g.cbr(x, "b", 10, 12), 10)
    return g.model()


@pattern("a.w:0 b.w:0,1 fc.w:1")
def shuffle_by_stack() -> ModelProto:
    """Interleave two halves by Unsqueeze, Concat, Reshape."""
    g = Net()
    x = g.cbr(g.x("N", 3, 6, 6), "a", 12, 3)
    l, r = (g.Unsqueeze(v, g.c([2])) for v in g.split(x, 6, 6))
    x = g.reshape(g.Concat(l, r, axis=2), 0, 12, 6, 6)
    g.head(g.cbr(x, "b", 10, 12), 10)
    return g.model()


@pattern("a.w:0 g1.w:0 g2.w:0 p.w:0,1 fc.w:1", families=True)
def shufflenet_v1_grouped() -> ModelProto:
    """Grouped convolution, shuffle, depthwise, grouped convolution."""
    g = Net()
    x = g.cbr(g.x("N", 3, 6, 6), "a", 16, 3)
    x = _shuffle(g, g.cbr(x, "g1", 24, 16, 1, group=4), 4, 24, 6)
    x = g.cbr(x, "d", 24, 24, group=24)
    x = g.cbr(x, "g2", 16, 24, 1, group=4)
    g.head(g.cbr(x, "p", 10, 16, 1), 10)
    return g.model()


@pattern("a.w:0 m.w:0 o.w:0,1 fc.w:1", families=True, widths={"m.w:0": 8})
def resnext_block() -> ModelProto:
    g = Net()
    x = g.cbr(g.x("N", 3, 8, 8), "stem", 12, 3)
    y = g.cbr(g.cbr(x, "a", 16, 12, 1), "m", 16, 16, group=4)
    x = g.Relu(g.Add(x, g.bn(g.conv(y, "o", 12, 16, 1, bias=False), "o", 12)))
    g.head(x, 12)
    return g.model()


@pattern("a.w:0 k0.w:0,1 k1.w:0,1 k2.w:0,1 o.w:1")
def res2net() -> ModelProto:
    g = Net()
    x = g.cbr(g.x("N", 3, 8, 8), "stem", 16, 3)
    parts = g.split(g.cbr(x, "a", 24, 16, 1), 6, 6, 6, 6)
    outs, y = [], None
    for i in range(3):
        y = g.cbr(g.Add(parts[i], y) if y else parts[i], f"k{i}", 6, 6)
        outs.append(y)
    y = g.conv(g.Concat(*outs, parts[3], axis=1), "o", 16, 24, 1)
    g.head(g.Add(x, y), 16)
    return g.model()


def _silu(g: Net, x: str) -> str:
    return g.Mul(x, g.Sigmoid(x))


@pattern("in.w:0 cv1.w:0,1 m0a.w:0,1 m0b.w:0,1 m1b.w:0,1 cv2.w:0,1 fc.w:1")
def yolo_c2f() -> ModelProto:
    g = Net()
    x = _silu(g, g.conv(g.x("N", 3, 8, 8), "in", 12, 3))
    x = _silu(g, g.conv(x, "cv1", 16, 12, 1))
    a, b = g.split(x, 8, 8)
    ys = [a, b]
    for i in range(2):
        y = _silu(g, g.conv(_silu(g, g.conv(ys[-1], f"m{i}a", 6, 8)), f"m{i}b", 8, 6))
        ys.append(g.Add(ys[-1], y))
    x = _silu(g, g.conv(g.Concat(*ys, axis=1), "cv2", 20, 32, 1))
    g.head(x, 20)
    return g.model()


@pattern("in.w:0 cv1.w:0,1 cv2.w:0,1 ma.w:0,1 mb.w:0 cv3.w:0,1")
def yolo_c3() -> ModelProto:
    g = Net()
    x = _silu(g, g.conv(g.x("N", 3, 8, 8), "in", 12, 3))
    a, b = _silu(g, g.conv(x, "cv1", 8, 12, 1)), _silu(g, g.conv(x, "cv2", 10, 12, 1))
    a = g.Add(a, _silu(g, g.conv(_silu(g, g.conv(a, "ma", 6, 8)), "mb", 8, 6)))
    x = _silu(g, g.conv(g.Concat(a, b, axis=1), "cv3", 14, 18, 1))
    g.head(x, 14)
    return g.model()


@pattern("a.w:0 b.w:0,1 up.w:0,1 up.b:0 d.w:0,1 o.w:1", frozen="o.w:0")
def unet() -> ModelProto:
    g = Net()
    x = g.x("N", 3, "H", "W")
    a = g.cbr(x, "a", 8, 3)
    b = g.cbr(g.MaxPool(a, kernel_shape=[2, 2], strides=[2, 2]), "b", 12, 8)
    u = g.ConvTranspose(b, g.w("up.w", 12, 10, 2, 2), g.w("up.b", 10), strides=[2, 2])
    d = g.cbr(g.Concat(a, u, axis=1), "d", 14, 18)
    g.out(g.Sigmoid(g.conv(d, "o", 2, 14, 1)))
    return g.model()


@pattern("a.w:0 t.w:0 t.b:0 b.w:0,1", families=True)
def grouped_conv_transpose() -> ModelProto:
    g = Net()
    x = g.cbr(g.x("N", 3, 6, 6), "a", 16, 3)
    x = g.ConvTranspose(x, g.w("t.w", 16, 3, 2, 2), g.w("t.b", 12), strides=[2, 2], group=4)
    g.head(g.cbr(x, "b", 10, 12), 10)
    return g.model()


@pattern("a.w:0 t.w:0 t.b:0 b.w:0,1", widths={"t.w:0": 5})
def depthwise_conv_transpose() -> ModelProto:
    g = Net()
    x = g.cbr(g.x("N", 3, 6, 6), "a", 10, 3)
    x = g.ConvTranspose(x, g.w("t.w", 10, 1, 2, 2), g.w("t.b", 10), strides=[2, 2], group=10)
    g.head(g.cbr(x, "b", 8, 10), 8)
    return g.model()


@pattern("stem.w:0 g2.w:0 g4.w:0 fc.w:1", families=True)
def two_group_counts_one_residual() -> ModelProto:
    g = Net()
    x = g.cbr(g.x("N", 3, 6, 6), "stem", 16, 3)
    x = g.Add(x, g.cbr(x, "g2", 16, 16, group=2))
    x = g.Add(x, g.cbr(x, "g4", 16, 16, group=4))
    g.head(x, 16)
    return g.model()


@pattern("m.w:0 p.w:1", frozen="p.w:0 q.w:1")
def residual_from_raw_input() -> ModelProto:
    """The trunk is the input itself: only the inner width may shrink."""
    g = Net()
    x = g.x("N", 6, 8, 8)
    y = g.conv(g.cbr(x, "m", 12, 6), "p", 6, 12)
    x = g.Add(x, y)
    g.out(g.conv(x, "q", 4, 6))
    return g.model()


@pattern("a.w:0 b.w:0,1 fc.w:1", widths={"a.w:0": 5, "b.w:1": 8})
def concat_with_raw_input() -> ModelProto:
    g = Net()
    x = g.x("N", 3, 8, 8)
    x = g.Concat(x, g.cbr(x, "a", 10, 3), axis=1)
    g.head(g.cbr(x, "b", 12, 13), 12)
    return g.model()


@pattern("a.w:0 b.w:0,1 c.w:0,1 d.w:0,1")
def uneven_split() -> ModelProto:
    g = Net()
    x = g.cbr(g.x("N", 3, 8, 8), "a", 18, 3)
    p, q, r = g.split(x, 4, 6, 8)
    x = g.Concat(g.cbr(p, "b", 6, 4), g.cbr(q, "c", 10, 6), g.cbr(r, "d", 12, 8), axis=1)
    g.head(x, 28)
    return g.model()


@pattern("a.w:0 b.w:0,1")
def maxout() -> ModelProto:
    """Max over two halves of the channels: partners leave together."""
    g = Net()
    x = g.conv(g.x("N", 3, 8, 8), "a", 16, 3)
    x = g.Max(*g.split(x, 8, 8))
    g.head(g.cbr(x, "b", 10, 8), 10)
    return g.model()


@pattern("a.w:0 b.w:0,1", widths={"a.w:0": 6})
def maxout_reduce() -> ModelProto:
    """Maxout as Reshape and ReduceMax over the pieces."""
    g = Net()
    x = g.conv(g.x("N", 3, 6, 6), "a", 12, 3)
    x = g.ReduceMax(g.reshape(x, -1, 6, 2, 6, 6), g.c([2]), keepdims=0)
    g.head(g.cbr(x, "b", 10, 6), 10)
    return g.model()


@pattern("a.w:0 a.b:0 b.w:0,1", widths={"a.w:0": 8, "b.w:1": 4})
def glu() -> ModelProto:
    g = Net()
    x = g.conv(g.x("N", 3, 8, 8), "a", 16, 3)
    u, v = g.split(x, 8, 8)
    g.head(g.cbr(g.Mul(u, g.Sigmoid(v)), "b", 10, 8), 10)
    return g.model()


@pattern("a.w:0 b.w:0,1 c.w:0,1 d.w:0,1 e.w:0,1 f.w:0,1")
def activations() -> ModelProto:
    """Mish, HardSwish, Gelu, PRelu per channel, Elu, Softsign."""
    g = Net()
    x = g.Mish(g.conv(g.x("N", 3, 6, 6), "a", 8, 3))
    x = g.HardSwish(g.conv(x, "b", 10, 8))
    x = g.Gelu(g.conv(x, "c", 6, 10))
    x = g.PRelu(g.conv(x, "d", 12, 6), g.w("slope", 12, 1, 1, scale=0.2))
    x = g.Elu(g.conv(x, "e", 14, 12), alpha=0.7)
    x = g.Softsign(g.conv(x, "f", 9, 14))
    g.head(x, 9)
    return g.model(opset=20)


@pattern("a.w:0 slope:0 b.w:0,1")
def prelu_per_channel() -> ModelProto:
    g = Net()
    x = g.PRelu(g.conv(g.x("N", 3, 6, 6), "a", 12, 3), g.w("slope", 12, 1, 1, scale=0.2))
    g.head(g.cbr(x, "b", 10, 12), 10)
    return g.model()


@pattern("r.w:0", inexact_cut="a.w:0", inexact=True)
def cbam() -> ModelProto:
    """Channel attention with a shared MLP, then spatial attention on mean and max over channels (inexact)."""
    g = Net()
    x = g.cbr(g.x("N", 3, 8, 8), "a", 12, 3)
    w1, w2 = g.w("r.w", 4, 12, 1, 1), g.w("e.w", 12, 4, 1, 1)
    avg = g.Conv(g.Relu(g.Conv(g.GlobalAveragePool(x), w1)), w2)
    top = g.Conv(g.Relu(g.Conv(g.GlobalMaxPool(x), w1)), w2)
    x = g.Mul(x, g.Sigmoid(g.Add(avg, top)))
    s = g.Concat(g.ReduceMean(x, g.c([1])), g.ReduceMax(x, g.c([1])), axis=1)
    x = g.Mul(x, g.Sigmoid(g.conv(s, "sp", 1, 2, 7, bias=False)))
    g.head(g.cbr(x, "p", 10, 12), 10)
    return g.model()


@pattern("a.w:0 cheap.w:0 b.w:0,1")
def ghost_module() -> ModelProto:
    g = Net()
    x = g.cbr(g.x("N", 3, 8, 8), "a", 8, 3, 1)
    x = g.Concat(x, g.cbr(x, "cheap", 8, 8, group=8), axis=1)
    g.head(g.cbr(x, "b", 10, 16), 10)
    return g.model()


@pattern("hi.w:0 lo.w:0 down.w:0,1 up.w:0,1 fc.w:1")
def hrnet_fuse() -> ModelProto:
    g = Net()
    x = g.x("N", 3, 16, 16)
    hi, lo = g.cbr(x, "hi", 8, 3), g.cbr(x, "lo", 12, 3, strides=[2, 2])
    down = g.conv(hi, "down", 12, 8, strides=[2, 2])
    up = g.Resize(g.conv(lo, "up", 8, 12, 1), None, g.f([1, 1, 2, 2]), mode="nearest")
    hi, lo = g.Relu(g.Add(hi, up)), g.Relu(g.Add(lo, down))
    lo = g.Resize(lo, None, g.f([1, 1, 2, 2]), mode="linear")
    g.head(g.Concat(hi, lo, axis=1), 20)
    return g.model()
