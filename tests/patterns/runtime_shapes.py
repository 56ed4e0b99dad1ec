"""Shapes computed while the network runs; batch, height, width and length stay dynamic in the cut file."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto

from tests.patterns.build import F32, I64, Net, pattern

HW = {"H": (6, 9), "W": (8, 5)}


def _dim(g: Net, x: str, i: int) -> str:
    return g.Gather(g.Shape(x), g.c([i]))


def _end(g: Net, x: str, c: int) -> ModelProto:
    g.head(g.cbr(x, "b", 10, c), 10, dtype=F32, shape=["N", 5])
    return g.model()


@pattern("a.w:0 b.w:0,1", dims=HW)
def flatten_and_back_by_shape() -> ModelProto:
    """Reshape to [N, C, H*W] and back, every entry read off Shape, the channel one included."""
    g = Net()
    x = g.cbr(g.x("N", 3, "H", "W"), "a", 12, 3)
    n, c, h, w = (_dim(g, x, i) for i in range(4))
    y = g.Reshape(x, g.Concat(n, c, g.Mul(h, w), axis=0))
    y = g.Softmax(y, axis=-1)
    return _end(g, g.Reshape(y, g.Concat(n, c, h, w, axis=0)), 12)


@pattern("a.w:0 b.w:0,1", dims=HW)
def channel_count_constant_beside_dynamic() -> ModelProto:
    """torch: Concat of run-time batch with a constant channel count."""
    g = Net()
    x = g.cbr(g.x("N", 3, "H", "W"), "a", 12, 3)
    n, h, w = (_dim(g, x, i) for i in (0, 2, 3))
    y = g.Reshape(x, g.Concat(n, g.c([12]), g.c([-1]), axis=0))
    y = g.t(g.Tanh(g.t(y, 0, 2, 1)), 0, 2, 1)
    return _end(g, g.Reshape(y, g.Concat(n, g.c([12]), h, w, axis=0)), 12)


@pattern("a.w:0 b.w:0,1", dims=HW)
def shuffle_with_computed_group_width() -> ModelProto:
    """Channels per group computed as C / 3 at run time."""
    g = Net()
    x = g.cbr(g.x("N", 3, "H", "W"), "a", 12, 3)
    n, c, h, w = (_dim(g, x, i) for i in range(4))
    per = g.Div(c, g.c([3]))
    y = g.t(g.Reshape(x, g.Concat(n, g.c([3]), per, h, w, axis=0)), 0, 2, 1, 3, 4)
    return _end(g, g.Reshape(y, g.Concat(n, g.c([-1]), h, w, axis=0)), 12)


@pattern("a.w:0 b.w:0,1", dims=HW)
def halves_split_at_computed_point() -> ModelProto:
    """chunk(2) as Shape, Gather, Add, Div, Mul and two Slices."""
    g = Net()
    x = g.cbr(g.x("N", 3, "H", "W"), "a", 12, 3)
    half = g.Div(g.Add(_dim(g, x, 1), g.c([1])), g.c([2]))
    u = g.Slice(x, g.c([0]), half, g.c([1]))
    v = g.Slice(x, half, g.Mul(half, g.c([2])), g.c([1]))
    return _end(g, g.Mul(u, g.Sigmoid(v)), 6)


@pattern("a.w:0 c.w:0,1 b.w:0,1", dims={"H": (6, 10), "W": (8, 6)})
def resize_to_shape_of_other() -> ModelProto:
    """Upsampling to the exact size of a skip map; sizes are [N, C] of one and [H, W] of the other."""
    g = Net()
    x = g.cbr(g.x("N", 3, "H", "W"), "a", 8, 3)
    y = g.cbr(x, "c", 12, 8, strides=[2, 2])
    sizes = g.Concat(g.Slice(g.Shape(y), g.c([0]), g.c([2])), g.Slice(g.Shape(x), g.c([2]), g.c([4])), axis=0)
    y = g.Resize(y, None, None, sizes, mode="linear")
    return _end(g, g.Concat(x, y, axis=1), 20)


@pattern("a.w:0 b.w:0,1", dims={"H": (6, 10), "W": (8, 6)})
def resize_scales_from_shapes() -> ModelProto:
    """Scales computed as quotient of target and present size in floats, concatenated with ones."""
    g = Net()
    x = g.cbr(g.x("N", 3, "H", "W"), "a", 8, 3)
    now = g.Cast(g.Slice(g.Shape(x), g.c([2]), g.c([4])), to=F32)
    scales = g.Concat(g.f([1, 1]), g.Div(g.f([12, 10]), now), axis=0)
    return _end(g, g.Resize(x, None, scales, mode="nearest"), 8)


@pattern("a.w:0 fc.w:1", dims={"N": (1, 4)})
def flatten_by_computed_batch() -> ModelProto:
    """x.view(x.size(0), -1), the classic."""
    g = Net()
    x = g.cbr(g.x("N", 3, 4, 4), "a", 8, 3)
    x = g.Reshape(x, g.Concat(g.Unsqueeze(g.Gather(g.Shape(x), g.c(0)), g.c([0])), g.c([-1]), axis=0))
    g.out(g.gemm(x, "fc", 128, 5), dtype=F32, shape=["N", 5])
    return g.model()


@pattern("a.w:0 fc.w:0", dims={"N": (1, 4)})
def flatten_with_product_of_dims() -> ModelProto:
    """The flattened width computed by ReduceProd of Shape's tail."""
    g = Net()
    x = g.cbr(g.x("N", 3, 4, 4), "a", 8, 3)
    s = g.Shape(x)
    width = g.ReduceProd(g.Slice(s, g.c([1]), g.c([4])), axes=[0], keepdims=1)
    x = g.Reshape(x, g.Concat(g.Slice(s, g.c([0]), g.c([1])), width, axis=0))
    g.out(g.linear(x, "fc", 128, 5), dtype=F32, shape=["N", 5])
    return g.model(opset=17)


@pattern("a.w:0 b.w:0,1", dims=HW)
def expand_like_and_constant_of_shape() -> ModelProto:
    """zeros_like, ones_like and Expand of a vector to a map's Shape."""
    g = Net()
    x = g.cbr(g.x("N", 3, "H", "W"), "a", 12, 3)
    zeros = g.ConstantOfShape(g.Shape(x))
    ones = g.Expand(g.f([[[[1.0]]]]), g.Shape(x))
    bias = g.Expand(g.w("vec", 12, 1, 1), g.Shape(x))
    x = g.Add(g.Max(x, zeros), g.Mul(ones, bias))
    return _end(g, x, 12)


@pattern("a.w:0 b.w:0,1", dims={"H": (8, 12), "W": (8, 4)})
def window_partition_dynamic() -> ModelProto:
    """Windows of 2 x 2 in NHWC with the number of windows computed at run time."""
    g = Net()
    x = g.t(g.cbr(g.x("N", 3, "H", "W"), "a", 12, 3), 0, 2, 3, 1)
    n, h, w = (_dim(g, x, i) for i in range(3))
    hh, ww = g.Div(h, g.c([2])), g.Div(w, g.c([2]))
    two, c = g.c([2]), g.c([12])
    y = g.Reshape(x, g.Concat(n, hh, two, ww, two, c, axis=0))
    y = g.Reshape(g.t(y, 0, 1, 3, 2, 4, 5), g.c([-1, 4, 12]))
    y = g.Tanh(y)
    y = g.t(g.Reshape(y, g.Concat(n, hh, ww, two, two, c, axis=0)), 0, 1, 3, 2, 4, 5)
    y = g.Reshape(y, g.Concat(n, h, w, g.c([-1]), axis=0))
    return _end(g, g.t(y, 0, 3, 1, 2), 12)


@pattern("a.w:0 b.w:0,1", dims=HW)
def coordinates_concatenated() -> ModelProto:
    """CoordConv: Range over run-time height and width, expanded and concatenated to the channels."""
    g = Net()
    x = g.cbr(g.x("N", 3, "H", "W"), "a", 10, 3)
    n, h, w = (_dim(g, x, i) for i in (0, 2, 3))

    def line(size: str, axes: list[int]) -> str:
        r = g.Cast(g.Range(g.c(0), g.Squeeze(size, g.c([0])), g.c(1)), to=F32)
        return g.Expand(g.Unsqueeze(g.Mul(r, g.f(0.1)), g.c(axes)), g.Concat(n, g.c([1]), h, w, axis=0))

    x = g.Concat(x, line(h, [0, 1, 3]), line(w, [0, 1, 2]), axis=1)
    return _end(g, x, 12)


@pattern("e.w:1 o.w:0", dims={"T": (5, 9)})
def one_hot_eye_trilu_range() -> ModelProto:
    """OneHot labels through a layer, EyeLike and Trilu masks over run-time length."""
    g = Net()
    ids = g.x("N", "T", name="ids", dtype=I64)
    x = g.OneHot(ids, g.c(11), g.f([0.0, 1.0]), axis=-1)
    x = g.Relu(g.linear(x, "e", 11, 12))
    s = g.MatMul(x, g.t(x, 0, 2, 1))
    t = _dim(g, ids, 1)
    square = g.ConstantOfShape(g.Concat(t, t, axis=0))
    eye = g.EyeLike(square, dtype=F32)
    s = g.Trilu(g.Sub(s, eye), upper=0)
    g.out(g.linear(g.MatMul(g.Softmax(s, axis=-1), x), "o", 12, 3), dtype=F32, shape=["N", "T", 3])
    return g.model()


@pattern("a.w:0 b.w:0,1", dims=HW)
def pad_to_multiple() -> ModelProto:
    """Pads computed from the run-time size so that it divides by 4, then cropped back."""
    g = Net()
    x = g.cbr(g.x("N", 3, "H", "W"), "a", 12, 3)
    h, w = _dim(g, x, 2), _dim(g, x, 3)
    four = g.c([4])
    ph, pw = (g.Mod(g.Sub(four, g.Mod(v, four)), four) for v in (h, w))
    zero = g.c([0, 0, 0, 0])
    y = g.Pad(x, g.Concat(zero, g.c([0, 0]), ph, pw, axis=0))
    y = g.AveragePool(y, kernel_shape=[3, 3], pads=[1] * 4)
    y = g.Slice(y, g.c([0, 0]), g.Concat(h, w, axis=0), g.c([2, 3]))
    return _end(g, y, 12)


@pattern("a.w:0 b.w:0,1", dims=HW)
def size_and_shape_attributes() -> ModelProto:
    """Shape with start and end (opset 15), Size, and a mean written as sum over count."""
    g = Net()
    x = g.cbr(g.x("N", 3, "H", "W"), "a", 12, 3)
    hw = g.Cast(g.ReduceProd(g.Shape(x, start=2), keepdims=0), to=F32)
    m = g.Div(g.ReduceSum(x, g.c([2, 3])), hw)
    y = g.Reshape(x, g.Concat(g.Shape(x, start=0, end=2), g.c([-1]), axis=0))
    y = g.Reshape(y, g.Shape(x))
    return _end(g, g.Add(y, m), 12)


@pattern(inexact=True, dims=HW)
def mean_by_channel_count() -> ModelProto:
    """A mean over channels whose divisor is read off the channel count at run time: folding must not leave a stale 12."""
    g = Net()
    x = g.cbr(g.x("N", 3, "H", "W"), "a", 12, 3)
    c = g.Cast(g.Squeeze(_dim(g, x, 1), g.c([0])), to=F32)
    x = g.Sub(x, g.Div(g.ReduceSum(x, g.c([1])), c))
    return _end(g, x, 12)


@pattern("k.w:1 v.w:1 o.w:0", dims={"T": (4, 7)})
def lengths_mask_from_input() -> ModelProto:
    """Sequence mask from a lengths input, broadcast against features."""
    g = Net()
    x, lens = g.x("N", "T", 7), g.x("N", name="lens", dtype=I64)
    r = g.Unsqueeze(g.Range(g.c(0), g.Squeeze(_dim(g, x, 1), g.c([0])), g.c(1)), g.c([0]))
    m = g.Unsqueeze(g.Cast(g.LessOrEqual(r, g.Unsqueeze(lens, g.c([1]))), to=F32), g.c([2]))
    k, v = g.Tanh(g.linear(x, "k", 7, 12)), g.linear(x, "v", 7, 12)
    y = g.Div(g.ReduceSum(g.Mul(g.Mul(k, v), m), g.c([1]), keepdims=0), g.ReduceSum(m, g.c([1]), keepdims=0))
    g.out(g.linear(y, "o", 12, 3), dtype=F32, shape=["N", 3])
    return g.model()


@pattern("a.w:0 b.w:0,1", dims=HW)
def batch_times_channels() -> ModelProto:
    """Depthwise blur as a one-channel convolution over [N*C, 1, H, W], a fixed kernel."""
    g = Net()
    x = g.cbr(g.x("N", 3, "H", "W"), "a", 12, 3)
    n, c, h, w = (_dim(g, x, i) for i in range(4))
    y = g.Reshape(x, g.Concat(g.Mul(n, c), g.c([1]), h, w, axis=0))
    y = g.Conv(y, g.f(np.full((1, 1, 3, 3), 1 / 9), "blur"), pads=[1] * 4)
    return _end(g, g.Reshape(y, g.Concat(n, c, h, w, axis=0)), 12)
