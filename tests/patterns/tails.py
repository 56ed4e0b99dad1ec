"""What networks end in: detection decoders, selections, samplings, and operators whose indices depend on data."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto

from tests.patterns.build import F32, I64, Net, pattern


def _trunk(c: int = 12, size: int = 6) -> tuple[Net, str]:
    g = Net()
    return g, g.cbr(g.x("N", 3, size, size), "a", c, 3)


def _end(g: Net, x: str, c: int) -> ModelProto:
    g.head(g.cbr(x, "b", 10, c), 10, dtype=F32, shape=["N", 5])
    return g.model()


@pattern("a.w:0 b.w:0,1 box.w:1 cls.w:1", frozen="cls.w:0", inexact=True)
def dfl_detection_head() -> ModelProto:
    """YOLOv8: box bins through softmax and a convolution with fixed weights 0..7: bins are summed over, inexactly."""
    g, x = _trunk()
    x = g.cbr(x, "b", 14, 12)
    box = g.reshape(g.conv(x, "box", 32, 14, 1), 0, 4, 8, 36)
    box = g.Softmax(g.t(box, 0, 2, 1, 3), axis=1)
    box = g.Conv(box, g.f(np.arange(8).reshape(1, 8, 1, 1), "dfl"))
    box = g.reshape(box, 0, 4, 36)
    cls = g.Sigmoid(g.reshape(g.conv(x, "cls", 3, 14, 1), 0, 3, 36))
    lt, rb = g.split(box, 2, 2)
    anchors = g.f(np.indices((6, 6)).reshape(1, 2, 36) + 0.5, "anchors")
    box = g.Concat(g.Sub(anchors, lt), g.Add(anchors, rb), axis=1)
    g.out(g.Concat(box, cls, axis=1))
    return g.model()


@pattern("a.w:0 det.w:1", frozen="det.w:0")
def anchor_head_with_grid() -> ModelProto:
    """YOLOv5: [N, 3, 9, H, W] permuted, sigmoid, grid and anchor constants, five-way concat."""
    g, x = _trunk()
    y = g.reshape(g.conv(x, "det", 27, 12, 1), 0, 3, 9, 6, 6)
    y = g.Sigmoid(g.t(y, 0, 1, 3, 4, 2))
    xy, wh, rest = g.split(y, 2, 2, 5, axis=4)
    grid = g.f(np.indices((6, 6)).transpose(1, 2, 0).reshape(1, 1, 6, 6, 2), "grid")
    xy = g.Mul(g.Add(g.Mul(xy, g.f(2)), grid), g.f(8))
    wh = g.Mul(g.Pow(g.Mul(wh, g.f(2)), g.f(2)), g.f(np.arange(6).reshape(1, 3, 1, 1, 2) + 1, "sizes"))
    g.out(g.reshape(g.Concat(xy, wh, rest, axis=4), 0, -1, 9))
    return g.model()


@pattern("a.w:0 box.w:1 cls.w:1", frozen="box.w:0 cls.w:0")
def nms_tail() -> ModelProto:
    """NonMaxSuppression and Gathers by its result."""
    g = Net()
    x = g.cbr(g.x(1, 3, 6, 6), "a", 12, 3)
    box = g.t(g.reshape(g.Sigmoid(g.conv(x, "box", 4, 12, 1)), 1, 4, 36), 0, 2, 1)
    cls = g.reshape(g.Sigmoid(g.conv(x, "cls", 3, 12, 1)), 1, 3, 36)
    keep = g.NonMaxSuppression(box, cls, g.c(5), g.f(0.5), g.f(0.4))
    index = g.Squeeze(g.slice(keep, 2, 3), g.c([1]))
    g.out(g.Gather(box, index, axis=1), "kept_boxes")
    g.out(keep, "kept", dtype=I64, shape=[None, 3])
    return g.model()


@pattern("a.w:0 b.w:0,1 fc.w:1", frozen="fc.w:0")
def top_k_and_arg_max_tail() -> ModelProto:
    g, x = _trunk()
    x = g.Flatten(g.GlobalAveragePool(g.cbr(x, "b", 10, 12)))
    x = g.gemm(x, "fc", 10, 7)
    v, i = g.TopK(x, g.c([3]), axis=-1, n=2)
    g.out(v, "values")
    g.out(i, "indices")
    g.out(g.ArgMax(x, axis=1, keepdims=0), "best")
    return g.model()


@pattern("fc.w:1", frozen="a.w:0")
def top_k_over_channels() -> ModelProto:
    """k-max over the channel axis: which one wins depends on data, so the axis is frozen, or k is honoured."""
    g, x = _trunk()
    v, _ = g.TopK(g.Flatten(g.GlobalMaxPool(x)), g.c([4]), axis=1, n=2)
    x = g.Relu(g.linear(v, "fc", 4, 10))
    g.out(g.linear(x, "o", 10, 3))
    return g.model()


@pattern("b.w:0", frozen="a.w:0")
def arg_max_over_channels_feeds_embedding() -> ModelProto:
    """Vector quantisation: ArgMax over channels indexes a table."""
    g, x = _trunk()
    i = g.ArgMax(x, axis=1, keepdims=0)
    e = g.t(g.Gather(g.w("code", 12, 8, scale=1), i), 0, 3, 1, 2)
    return _end(g, e, 8)


@pattern("q.w:0 b.w:0", inexact=True)
def vector_quantiser_distances() -> ModelProto:
    """||x||^2 - 2 x e + ||e||^2 to code vectors, ArgMin, lookup: the code width is summed over."""
    g, x = _trunk()
    x = g.t(g.conv(x, "q", 8, 12, 1), 0, 2, 3, 1)
    code = g.w("code", 9, 8, scale=1)
    d = g.Sub(g.ReduceSum(g.Mul(code, code), g.c([1]), keepdims=0), g.Mul(g.f(2), g.MatMul(x, g.t(code, 1, 0))))
    e = g.Gather(code, g.ArgMin(d, axis=-1, keepdims=0))
    return _end(g, g.t(e, 0, 3, 1, 2), 8)


@pattern("w.w:1")
def non_zero_and_compress() -> ModelProto:
    """Rows chosen by their values: how many is known only when it runs, which freezes what goes through."""
    g = Net()
    x = g.Relu(g.linear(g.x("N", 7), "w", 7, 12))
    s = g.gemm(x, "a", 12, 6)
    keep = g.Greater(g.Squeeze(g.slice(s, 0, 1), g.c([1])), g.f(-10))
    rows = g.Squeeze(g.NonZero(keep), g.c([0]))
    y = g.Compress(g.Gather(s, rows, axis=0), keep, axis=0)
    g.out(g.linear(g.Relu(y), "o", 6, 3), dtype=F32, shape=[None, 3])
    return g.model()


@pattern("a.w:0 off.w:1 b.w:0,1")
def grid_sample_with_learned_grid() -> ModelProto:
    """Spatial transformer: the grid is predicted, the sampled map keeps its channels."""
    g, x = _trunk()
    off = g.t(g.Tanh(g.conv(x, "off", 2, 12)), 0, 2, 3, 1)
    return _end(g, g.GridSample(x, off, mode="bilinear", padding_mode="zeros"), 12)


@pattern("a.w:0 fc.w:1")
def roi_align() -> ModelProto:
    g = Net()
    x = g.cbr(g.x(2, 3, 8, 8), "a", 12, 3)
    rois, batch = g.x("R", 4, name="rois"), g.x("R", name="batch", dtype=I64)
    y = g.RoiAlign(x, g.Abs(rois), batch, output_height=2, output_width=2, spatial_scale=1.0, sampling_ratio=2)
    g.out(g.gemm(g.Flatten(y), "fc", 48, 5))
    return g.model()


@pattern("a.w:0 b.w:0,1")
def lp_pools() -> ModelProto:
    g = Net()
    x = g.cbr(g.x(2, 3, 8, 8), "a", 12, 3)
    x = g.LpPool(x, kernel_shape=[2, 2], strides=[2, 2], p=2)
    s = g.GlobalLpPool(x, p=3)
    return _end(g, g.Mul(x, s), 12)


@pattern("u.w:1 b.w:0,1", widths={"u.w:1": 24, "b.w:1": 6})
def col2im_fold() -> ModelProto:
    """Fold: [N, C k k, L] to [N, C, H, W]; C units of k k columns each."""
    g = Net()
    x = g.Relu(g.linear(g.x("N", 9, 7), "u", 7, 48))
    x = g.Col2Im(g.t(x, 0, 2, 1), g.c([6, 6]), g.c([2, 2]), strides=[2, 2])
    return _end(g, x, 12)


@pattern("a.w:0 b.w:0,1")
def scatter_and_gather_on_space() -> ModelProto:
    """GatherElements, ScatterElements and GatherND along frozen spatial axes."""
    g, x = _trunk()
    flat = g.reshape(x, 0, 12, 36)
    order = g.Cast(g.x("N", 36, name="order", dtype=I64), to=I64)
    order = g.Unsqueeze(order, g.c([1]))
    ones = g.Expand(order, g.Shape(flat))
    y = g.GatherElements(flat, ones, axis=2)
    y = g.ScatterElements(flat, ones, y, axis=2)
    t = g.GatherND(g.t(y, 2, 0, 1), g.c(np.arange(0, 36)[:, None]))
    return _end(g, g.reshape(g.t(t, 1, 2, 0), -1, 12, 6, 6), 12)


@pattern("b.w:0")
def cumulative_sum_over_channels() -> ModelProto:
    """CumSum along the channels: frozen with a reason, or cut only where that is exact."""
    g, x = _trunk()
    return _end(g, g.CumSum(x, g.c(1)), 12)


@pattern("a.w:0 b.w:0,1")
def cumulative_sum_over_space() -> ModelProto:
    g, x = _trunk()
    return _end(g, g.CumSum(x, g.c(3), reverse=1), 12)


@pattern("fc.w:1")
def unique_and_det_tail() -> ModelProto:
    """Det of [N, 3, 3] from a layer, and Unique of rounded scores as a second output."""
    g = Net()
    x = g.Relu(g.linear(g.x("N", 7), "fc", 7, 12))
    m = g.linear(x, "m", 12, 9)
    g.out(g.Det(g.reshape(m, -1, 3, 3)), "det")
    g.out(g.Shape(g.Unique(g.Round(m), sorted=1)), "count", dtype=I64, shape=[1])
    return g.model()


@pattern("a.w:0 b.w:0,1")
def inference_dropout_and_casts() -> ModelProto:
    """Dropout in inference, Identity chains, Cast round trips."""
    g, x = _trunk()
    x, _ = g.Dropout(g.Identity(g.Identity(x)), n=2)
    x = g.Cast(g.Cast(x, to=11), to=1)
    return _end(g, g.CastLike(x, g.f(1)), 12)


@pattern("mel:1 a.w:0 m.w:0,1 b.w:0", frozen="mel:0 b.w:1")
def mel_spectrogram_front_end() -> ModelProto:
    """Speech: a fixed mel filter bank before the network is a weight like any other."""
    g = Net()
    x = g.Log(g.Add(g.Abs(g.MatMul(g.x("N", 9, 20), g.w("mel", 20, 8))), g.f(1e-3)))
    x = g.Relu(g.Conv(g.t(x, 0, 2, 1), g.w("a.w", 12, 8, 3), pads=[1, 1]))
    x = g.Relu(g.linear(g.t(x, 0, 2, 1), "m", 12, 10))
    g.out(g.linear(x, "b", 10, 4))
    return g.model()


@pattern("a.w:0 p.w:0,1")
def deformable_convolution() -> ModelProto:
    """DeformConv with predicted offsets; offset channels are fixed by the kernel."""
    g, x = _trunk(8)
    off = g.conv(x, "off", 18, 8)
    y = g.DeformConv(x, g.w("p.w", 10, 8, 3, 3), off, g.w("p.b", 10), pads=[1] * 4, kernel_shape=[3, 3])
    g.head(g.Relu(y), 10, dtype=F32, shape=["N", 5])
    return g.model(opset=19)


@pattern("a.w:0", frozen="mu.w:0")
def variational_head_two_outputs() -> ModelProto:
    g, x = _trunk()
    x = g.Flatten(g.GlobalAveragePool(x))
    mu, lv = g.gemm(x, "mu", 12, 4), g.gemm(x, "lv", 12, 4)
    g.out(mu, "mean")
    g.out(g.Exp(g.Mul(lv, g.f(0.5))), "std")
    return g.model()


@pattern("f.w:1", inexact=True)
def point_net_max_over_points() -> ModelProto:
    """Shared MLP over points, max over points, pairwise distances of features in a second output."""
    g = Net()
    x = g.Relu(g.linear(g.x("N", 9, 3), "f", 3, 12))
    x = g.linear(x, "h", 12, 16)
    s = g.ReduceSum(g.Mul(x, x), g.c([2]))
    d = g.Add(g.Sub(s, g.Mul(g.f(2), g.MatMul(x, g.t(x, 0, 2, 1)))), g.t(s, 0, 2, 1))
    g.out(d, "distances")
    g.out(g.linear(g.ReduceMax(x, g.c([1]), keepdims=0), "o", 16, 4))
    return g.model()


@pattern("a.w:0 b.w:0,1")
def einsum_outer_product_gate() -> ModelProto:
    """Outer product of channel gate and spatial gate by Einsum."""
    g, x = _trunk()
    c = g.ReduceMean(x, g.c([2, 3]), keepdims=0)
    s = g.Sigmoid(g.Squeeze(g.conv(x, "s", 1, 12), g.c([1])))
    return _end(g, g.Add(x, g.Einsum(c, s, equation="nc,nhw->nchw")), 12)
