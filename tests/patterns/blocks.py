"""Necks, shared layers, gates, and convolutions of other shapes."""

from __future__ import annotations

from onnx import ModelProto

from tests.patterns.build import Net, pattern


@pattern("c1.w:0 c2.w:0,1 l1.w:0,1 l2.w:0,1 h.w:0,1 cls.w:1 reg.w:1", frozen="cls.w:0 reg.w:0")
def fpn_shared_heads() -> ModelProto:
    """Lateral convolutions, top-down Resize to the Shape of the finer map, one head shared by both levels."""
    g = Net()
    c1 = g.cbr(g.x("N", 3, "H", "W"), "c1", 8, 3)
    c2 = g.cbr(c1, "c2", 12, 8, strides=[2, 2])
    p1, p2 = g.conv(c1, "l1", 10, 8, 1), g.conv(c2, "l2", 10, 12, 1)
    p1 = g.Add(p1, g.Resize(p2, None, None, g.Shape(p1), mode="nearest"))
    hw, hb = g.w("h.w", 14, 10, 3, 3), g.w("h.b", 14)
    outs = []
    for i, p in enumerate((p1, p2)):
        h = g.Relu(g.Conv(p, hw, hb, pads=[1] * 4))
        cls = g.Conv(h, "cls.w" if i else g.w("cls.w", 4, 14, 1, 1))
        reg = g.Conv(h, "reg.w" if i else g.w("reg.w", 8, 14, 1, 1))
        flat = [g.reshape(g.t(v, 0, 2, 3, 1), 0, -1, c) for v, c in ((cls, 2), (reg, 4))]
        outs.append(flat)
    g.out(g.Concat(outs[0][0], outs[1][0], axis=1), "scores")
    g.out(g.Concat(outs[0][1], outs[1][1], axis=1), "boxes")
    return g.model()


@pattern("a.w:0 b.w:0,1 fc.w:0", frozen="fc.w:1")
def siamese() -> ModelProto:
    g = Net()
    w, b = g.w("a.w", 8, 3, 3, 3), g.w("b.w", 12, 8, 3, 3)
    es = []
    for name in ("left", "right"):
        x = g.Relu(g.Conv(g.x("N", 3, 8, 8, name=name), w, pads=[1] * 4))
        x = g.Relu(g.Conv(x, b, pads=[1] * 4))
        es.append(g.Flatten(g.GlobalAveragePool(x)))
    g.out(g.linear(g.Abs(g.Sub(*es)), "fc", 12, 3))
    return g.model()


@pattern("a.w:0 b.w:0 p.w:0 o.w:0,1")
def aspp() -> ModelProto:
    """Dilated branches and a pooled one, brought back to size by Expand to a run-time shape."""
    g = Net()
    x = g.x("N", 3, "H", "W")
    a = g.cbr(x, "a", 8, 3, dilations=[2, 2], pads=[2] * 4)
    b = g.cbr(x, "b", 6, 3, dilations=[3, 3], pads=[3] * 4)
    p = g.Relu(g.conv(g.GlobalAveragePool(x), "p", 10, 3, 1))
    hw = g.Slice(g.Shape(x), g.c([2]), g.c([4]))
    p = g.Expand(p, g.Concat(g.c([1, 1]), hw, axis=0))
    g.head(g.cbr(g.Concat(a, b, p, axis=1), "o", 12, 24, 1), 12)
    return g.model()


@pattern("a.w:0 b.w:0,1 fc.w:0")
def conv1d() -> ModelProto:
    g = Net()
    x = g.Relu(g.Conv(g.x("N", 4, "T"), g.w("a.w", 8, 4, 5), g.w("a.b", 8), pads=[2, 2]))
    x = g.Relu(g.Conv(x, g.w("b.w", 12, 8, 3), strides=[2], pads=[1, 1]))
    g.out(g.linear(g.ReduceMax(x, g.c([2]), keepdims=0), "fc", 12, 4))
    return g.model()


@pattern("a.w:0 b.w:0,1 fc.w:1")
def conv3d() -> ModelProto:
    g = Net()
    x = g.Relu(g.Conv(g.x("N", 2, 4, 6, 6), g.w("a.w", 8, 2, 3, 3, 3), pads=[1] * 6))
    x = g.Relu(g.Conv(x, g.w("b.w", 10, 8, 3, 3, 3), strides=[2, 2, 2]))
    g.head(x, 10)
    return g.model()


@pattern("a.w:0 b.w:0,1 c.w:0,1")
def spp() -> ModelProto:
    g = Net()
    x = g.cbr(g.x("N", 3, 8, 8), "a", 8, 3)
    pools = [g.MaxPool(x, kernel_shape=[k, k], pads=[k // 2] * 4) for k in (3, 5)]
    x = g.cbr(g.Concat(x, *pools, axis=1), "b", 12, 24, 1)
    g.head(g.cbr(x, "c", 10, 12), 10)
    return g.model()


@pattern("a.w:0 b.w:0,1 aux.w:1 fc.w:1", frozen="aux.w:0 fc.w:0")
def auxiliary_output() -> ModelProto:
    g = Net()
    x = g.cbr(g.x("N", 3, 8, 8), "a", 8, 3)
    g.head(g.cbr(x, "b", 12, 8), 12)
    g.out(g.conv(x, "aux", 4, 8, 1), "aux")
    return g.model()


@pattern("a.w:0 b.w:1 c.w:0", frozen="a.w:1 b.w:0 c.w:1")
def feature_map_is_also_output() -> ModelProto:
    """An inner map that leaves the graph may not lose channels; what follows may."""
    g = Net()
    x = g.cbr(g.x("N", 3, 8, 8), "a", 8, 3)
    x = g.Relu(g.conv(x, "b", 12, 8))
    g.out(x, "features")
    g.head(g.cbr("features", "c", 10, 12), 10)
    return g.model()


@pattern(frozen="a.w:0")
def eca_slides_over_channels() -> ModelProto:
    """A convolution whose spatial axis is the channels: they cannot be taken out."""
    g = Net()
    x = g.cbr(g.x("N", 3, 8, 8), "a", 12, 3)
    s = g.t(g.Squeeze(g.GlobalAveragePool(x), g.c([3])), 0, 2, 1)
    s = g.Conv(s, g.w("eca.w", 1, 1, 3), pads=[1, 1])
    x = g.Mul(x, g.Sigmoid(g.Unsqueeze(g.t(s, 0, 2, 1), g.c([3]))))
    g.head(g.cbr(x, "b", 10, 12), 10)
    return g.model()


@pattern("h.w:1 k.w:0,1", families=True)
def dynamic_filter() -> ModelProto:
    """Weights of the second convolution are computed from a second input: its outputs and inputs are two families."""
    g = Net()
    x = g.cbr(g.x("N", 3, 8, 8), "a", 8, 3)
    z = g.Relu(g.linear(g.x(1, 4, name="z"), "h", 4, 12))
    k = g.reshape(g.linear(z, "k", 12, 6 * 8), 6, 8, 1, 1)
    g.head(g.Conv(x, k), 6)
    return g.model()


@pattern("a.w:0 b.w:0 c.w:0,1")
def asymmetric_and_strided() -> ModelProto:
    g = Net()
    x = g.x("N", 3, 9, 11)
    a = g.Relu(g.Conv(x, g.w("a.w", 8, 3, 1, 5), pads=[0, 2, 0, 2], strides=[2, 3]))
    b = g.Relu(g.Conv(x, g.w("b.w", 8, 3, 5, 1), auto_pad="SAME_UPPER", strides=[2, 3]))
    g.head(g.cbr(g.Mul(a, b), "c", 10, 8), 10)
    return g.model()


@pattern("b.w:0")
def max_unpool() -> ModelProto:
    g = Net()
    x = g.cbr(g.x(2, 3, 8, 8), "a", 8, 3)
    y, idx = g.MaxPool(x, kernel_shape=[2, 2], strides=[2, 2], n=2)
    y = g.cbr(y, "b", 12, 8)
    y = g.cbr(y, "b2", 8, 12)
    g.out(g.conv(g.MaxUnpool(y, idx, kernel_shape=[2, 2], strides=[2, 2]), "c", 2, 8))
    return g.model()
