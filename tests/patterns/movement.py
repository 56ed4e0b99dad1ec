"""Channels that are moved, sliced, split, shuffled, padded, repeated, scattered."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto

from tests.patterns.build import Net, pattern


def _start(channels: int = 12, size: int = 6, batch: int | str = "N") -> tuple[Net, str]:
    g = Net()
    return g, g.cbr(g.x(batch, 3, size, size), "a", channels, 3)


def _end(g: Net, x: str, channels: int, **kw: int) -> ModelProto:
    g.head(g.cbr(x, "b", 10, channels), 10)
    return g.model(**kw)


@pattern("a.w:0 b.w:0,1", widths={"a.w:0": 8, "b.w:1": 2})
def pixel_shuffle_crd() -> ModelProto:
    g, x = _start(16)
    return _end(g, g.DepthToSpace(x, blocksize=2, mode="CRD"), 4)


@pattern("a.w:0 b.w:0,1", widths={"a.w:0": 8, "b.w:1": 2})
def pixel_shuffle_dcr() -> ModelProto:
    g, x = _start(16)
    return _end(g, g.DepthToSpace(x, blocksize=2, mode="DCR"), 4)


@pattern("a.w:0 b.w:0,1", widths={"a.w:0": 8, "b.w:1": 2})
def pixel_shuffle_by_reshape() -> ModelProto:
    g, x = _start(16)
    x = g.t(g.reshape(x, -1, 4, 2, 2, 6, 6), 0, 1, 4, 2, 5, 3)
    return _end(g, g.reshape(x, -1, 4, 12, 12), 4)


@pattern("a.w:0 b.w:0,1", widths={"a.w:0": 6, "b.w:1": 24})
def pixel_unshuffle_space_to_depth() -> ModelProto:
    g, x = _start(12)
    return _end(g, g.SpaceToDepth(x, blocksize=2), 48)


@pattern("a.w:0 b.w:0,1", widths={"a.w:0": 6, "b.w:1": 24})
def pixel_unshuffle_by_reshape() -> ModelProto:
    g, x = _start(12)
    x = g.t(g.reshape(x, -1, 12, 3, 2, 3, 2), 0, 1, 3, 5, 2, 4)
    return _end(g, g.reshape(x, -1, 48, 3, 3), 48)


@pattern("a.w:0 b.w:0,1")
def focus_by_strided_slices() -> ModelProto:
    """YOLOv5 Focus on an inner map: four strided spatial slices side by side."""
    g, x = _start(8)
    parts = [g.slice(g.slice(x, i, 99, 2, 2), j, 99, 3, 2) for i in (0, 1) for j in (0, 1)]
    return _end(g, g.Concat(*parts, axis=1), 32)


@pattern("a.w:0 b.w:0,1")
def strided_channel_slice() -> ModelProto:
    """Every third channel, from the second on."""
    g, x = _start(12)
    return _end(g, g.Concat(g.slice(x, 1, 12, step=3), x, axis=1), 16)


@pattern("a.w:0 b.w:0,1", widths={"a.w:0": 6})
def negative_step_slice() -> ModelProto:
    """Channels in reverse order meet nothing but a dense convolution."""
    g, x = _start(12)
    return _end(g, g.slice(x, -1, -99, step=-1), 12)


@pattern("a.w:0 b.w:0,1")
def reversed_plus_itself() -> ModelProto:
    """x + reverse(x): channel i and 11 - i leave together."""
    g, x = _start(12)
    return _end(g, g.Add(x, g.slice(x, -1, -99, step=-1)), 12)


@pattern("a.w:0 b.w:0,1")
def slice_at_odd_offset() -> ModelProto:
    g, x = _start(14)
    return _end(g, g.Add(g.slice(x, 3, 8), g.slice(x, -5, 2**31)), 5)


@pattern("a.w:0 b.w:0,1")
def overlapping_slices() -> ModelProto:
    g, x = _start(12)
    return _end(g, g.Concat(g.slice(x, 0, 8), g.slice(x, 4, 12), axis=1), 16)


@pattern("a.w:0 b.w:0,1", widths={"a.w:0": 6})
def index_permutation() -> ModelProto:
    g, x = _start(12)
    return _end(g, g.Gather(x, g.c([5, 0, 11, 3, 8, 1, 10, 2, 9, 4, 7, 6]), axis=1), 12)


@pattern("a.w:0 b.w:0,1")
def gather_with_repeats() -> ModelProto:
    """Some channels twice, some never; negative indices too."""
    g, x = _start(12)
    return _end(g, g.Gather(x, g.c([1, 1, 3, -1, 5, 7, -2, 3]), axis=1), 8)


@pattern("a.w:0 b.w:0,1", widths={"a.w:0": 6, "b.w:1": 18})
def tile_channels() -> ModelProto:
    """repeat([1, 3, 1, 1]): copies of a channel leave with it."""
    g, x = _start(12)
    return _end(g, g.Tile(x, g.c([1, 3, 1, 1])), 36)


@pattern("a.w:0 b.w:0,1", widths={"a.w:0": 6})
def repeat_interleave() -> ModelProto:
    """Unsqueeze, Expand, Reshape: each channel twice in a row."""
    g, x = _start(12)
    x = g.Expand(g.Unsqueeze(x, g.c([2])), g.c([1, 12, 2, 6, 6]))
    return _end(g, g.reshape(x, -1, 24, 6, 6), 24)


@pattern("a.w:0 b.w:0,1")
def channel_padding() -> ModelProto:
    """Zero-padded shortcut (ResNet option A): the padded channels belong to the wider trunk."""
    g, x = _start(8)
    y = g.bn(g.conv(x, "w", 14, 8, bias=False), "w", 14)
    p = g.Pad(x, g.c([0, 2, 0, 0, 0, 4, 0, 0]), g.f(0))
    return _end(g, g.Relu(g.Add(y, p)), 14)


@pattern("a.w:0 b.w:0,1")
def channel_padding_alone() -> ModelProto:
    g, x = _start(10)
    return _end(g, g.Pad(x, g.c([3, 1]), g.f(0.5), g.c([1])), 14, opset=18)


@pattern("a.w:0 b.w:0,1")
def channel_cropping() -> ModelProto:
    """Negative Pad takes channels away."""
    g, x = _start(12)
    return _end(g, g.Pad(x, g.c([0, -1, 0, 0, 0, -3, 0, 0])), 8)


@pattern("a.w:0 c.w:0 b.w:0,1")
def slice_assignment_scatter_nd() -> ModelProto:
    """x[:, 4:8] = conv(x): torch writes ScatterND on a transposed copy."""
    g, x = _start(12, batch=2)
    y = g.cbr(x, "c", 4, 12)
    t, u = g.t(x, 1, 0, 2, 3), g.t(y, 1, 0, 2, 3)
    s = g.ScatterND(t, g.c([[4], [5], [6], [7]]), u)
    return _end(g, g.t(s, 1, 0, 2, 3), 12)


@pattern("b.w:0")
def slice_assignment_index_grid() -> ModelProto:
    """The same with a full index grid over batch and channel, as older exporters write it."""
    g, x = _start(8, batch=2)
    y = g.cbr(x, "c", 3, 8)
    grid = np.stack(np.meshgrid(np.arange(2), np.arange(2, 5), indexing="ij"), -1)
    return _end(g, g.ScatterND(x, g.c(grid), y), 8)


@pattern("a.w:0 b.w:0,1")
def space_moves_only() -> ModelProto:
    """Spatial flips, crops, pads and tiles leave channels alone."""
    g, x = _start(12)
    x = g.slice(x, -1, -99, 3, -1)
    x = g.Pad(x, g.c([0, 0, 1, 2, 0, 0, 1, 0]), mode="reflect")
    return _end(g, g.Tile(x, g.c([1, 1, 2, 1])), 12)


@pattern("a.w:0 b.w:0,1 fc.w:1", widths={"a.w:0": 6, "b.w:0": 5})
def nhwc_sandwich() -> ModelProto:
    """Keras: Transpose pairs around every convolution, bias and activation in NHWC."""
    g = Net()
    x = g.x("N", 8, 8, 3)
    x = g.t(g.Conv(g.t(x, 0, 3, 1, 2), g.w("a.w", 12, 3, 3, 3), pads=[1] * 4), 0, 2, 3, 1)
    x = g.Relu(g.Add(x, g.w("a.bias", 12)))
    x = g.t(g.Conv(g.t(x, 0, 3, 1, 2), g.w("b.w", 10, 12, 3, 3)), 0, 2, 3, 1)
    x = g.Relu(g.Mul(x, g.w("b.scale", 10, shift=1)))
    x = g.ReduceMean(x, g.c([1, 2]), keepdims=0)
    g.out(g.gemm(x, "fc", 10, 4))
    return g.model()


@pattern("a.w:0 fc.w:0,1 o.w:1", widths={"a.w:0": 4, "fc.w:1": 64})
def flatten_conv_to_fc() -> ModelProto:
    g, x = _start(8, 4)
    x = g.Relu(g.gemm(g.Flatten(x), "fc", 128, 12))
    g.out(g.gemm(x, "o", 12, 3))
    return g.model()


@pattern("a.w:0 fc.w:0,1 o.w:1", widths={"fc.w:0": 64})
def flatten_by_reshape_to_matmul() -> ModelProto:
    g, x = _start(8, 4)
    x = g.Relu(g.linear(g.reshape(x, -1, 128), "fc", 128, 12))
    g.out(g.gemm(x, "o", 12, 3))
    return g.model()


@pattern("a.w:0 c.w:0 fc.w:0,1")
def flatten_then_concat() -> ModelProto:
    """Two flattened maps of different size and a vector input meet in one layer."""
    g, x = _start(8, 4)
    y = g.cbr(x, "c", 6, 8, strides=[2, 2])
    z = g.Concat(g.Flatten(x), g.x("N", 5, name="z"), g.Flatten(y), axis=1)
    x = g.Relu(g.gemm(z, "fc", 128 + 5 + 24, 12))
    g.out(g.gemm(x, "o", 12, 3))
    return g.model()


@pattern("a.w:0 fc.w:0,1", widths={"fc.w:0": 64})
def flatten_nhwc_to_fc() -> ModelProto:
    """Channels last before flattening: kept columns are strided."""
    g, x = _start(8, 4)
    x = g.Relu(g.linear(g.reshape(g.t(x, 0, 2, 3, 1), -1, 128), "fc", 128, 12))
    g.out(g.gemm(x, "o", 12, 3))
    return g.model()


@pattern("z.w:1 b.w:0,1", widths={"z.w:1": 64, "b.w:1": 4})
def unflatten_fc_to_conv() -> ModelProto:
    """A generator's first layer: Gemm, Reshape to [C, 4, 4], convolution."""
    g = Net()
    x = g.Relu(g.linear(g.x("N", 7), "z", 7, 128))
    return _end(g, g.reshape(x, -1, 8, 4, 4), 8)


@pattern("a.w:0 b.w:0,1")
def view_with_constants() -> ModelProto:
    """Merge and split of spatial axes with the channel count written in the targets."""
    g, x = _start(12)
    x = g.reshape(x, -1, 12, 36)
    x = g.Softmax(x, axis=-1)
    return _end(g, g.reshape(x, -1, 12, 6, 6), 12)


@pattern("a.w:0 b.w:0,1", widths={"a.w:0": 6})
def split_by_attribute_num_outputs() -> ModelProto:
    """Split into equal parts by num_outputs, put back in another order."""
    g, x = _start(12)
    p = g.Split(x, axis=1, num_outputs=3, n=3)
    return _end(g, g.Concat(p[2], p[0], p[1], axis=1), 12)


@pattern("a.w:0 b.w:0,1")
def buffer_scale() -> ModelProto:
    """Per-channel constants that are no norm: scale, shift, a zero-one mask."""
    g, x = _start(12)
    x = g.Mul(x, g.w("gain", 1, 12, 1, 1, shift=1))
    x = g.Sub(x, g.w("mean", 12, 1, 1))
    mask = g.f((np.arange(12) % 4 != 0).reshape(12, 1, 1), "mask")
    return _end(g, g.Div(g.Mul(x, mask), g.positive("std", 12, 1, 1)), 12)


@pattern("a.w:0 b.w:0,1")
def where_mask() -> ModelProto:
    g, x = _start(12)
    x = g.Where(g.c((np.arange(12) % 3 == 0).reshape(12, 1, 1), bool), x, g.w("other", 12, 1, 1))
    x = g.Where(g.Greater(x, g.f(0.1)), x, g.Mul(x, g.f(0.2)))
    return _end(g, x, 12)


@pattern("a.w:0 b.w:0,1")
def batch_folding() -> ModelProto:
    """Video: time folded into batch around 2-d convolutions, mean over time after."""
    g = Net()
    x = g.x("N", 4, 3, 6, 6)
    x = g.cbr(g.reshape(x, -1, 3, 6, 6), "a", 12, 3)
    x = g.ReduceMean(g.reshape(x, -1, 4, 12, 6, 6), g.c([1]), keepdims=0)
    return _end(g, x, 12)


@pattern("a.w:0 b.w:0,1")
def temporal_shift() -> ModelProto:
    """TSM: a quarter of the channels looks ahead, a quarter back, padded with zeros."""
    g = Net()
    x = g.x("N", 4, 3, 6, 6)
    x = g.reshape(g.cbr(g.reshape(x, -1, 3, 6, 6), "a", 12, 3), -1, 4, 12, 6, 6)
    fwd, back, stay = g.split(x, 3, 3, 6, axis=2)
    fwd = g.Pad(g.slice(fwd, 1, 4), g.c([0, 0, 0, 0, 0, 0, 1, 0, 0, 0]))
    back = g.Pad(g.slice(back, 0, 3), g.c([0, 1, 0, 0, 0, 0, 0, 0, 0, 0]))
    x = g.reshape(g.Concat(fwd, back, stay, axis=2), -1, 12, 6, 6)
    return _end(g, x, 12)


@pattern("a.w:0 u.w:1 v.w:0 o.w:0,1 p.w:0,1", frozen="u.w:0 v.w:1")
def mlp_mixer() -> ModelProto:
    """Token mixing over a fixed number of patches; token and channel widths are both prunable inside the MLPs.

    The residual trunk sees LayerNorm nowhere here, so every cut is exact.
    """
    g = Net()
    x = g.Conv(g.x("N", 3, 8, 8), g.w("a.w", 10, 3, 2, 2), g.w("a.b", 10), strides=[2, 2])
    x = g.t(g.reshape(x, 0, 10, 16), 0, 2, 1)
    t = g.t(x, 0, 2, 1)
    t = g.linear(g.Gelu(g.linear(t, "u", 16, 24)), "v", 24, 16)
    x = g.Add(x, g.t(t, 0, 2, 1))
    x = g.Add(x, g.linear(g.Gelu(g.linear(x, "o", 10, 20)), "p", 20, 10))
    g.out(g.linear(g.ReduceMean(x, g.c([1]), keepdims=0), "fc", 10, 4))
    return g.model(opset=20)


@pattern("a.w:0 b.w:0,1")
def reshape_with_zero_and_minus_one() -> ModelProto:
    g, x = _start(12)
    x = g.Reshape(g.Reshape(x, g.c([0, 0, -1])), g.c([0, -1, 6, 6]))
    return _end(g, x, 12)


@pattern("a.w:0 b.w:0,1")
def squeeze_unsqueeze_flatten_axes() -> ModelProto:
    g, x = _start(12)
    s = g.Squeeze(g.GlobalAveragePool(x), g.c([2, 3]))
    s = g.Unsqueeze(g.Tanh(s), g.c([2, -1]))
    y = g.Flatten(x, axis=2)
    y = g.reshape(y, -1, 12, 6, 6)
    return _end(g, g.Add(s, y), 12)


@pattern()
def reshape_that_does_not_align() -> ModelProto:
    """[10, 4] seen as [8, 5] mixes channels and positions: they freeze or couple, never break."""
    g, x = _start(10, 2)
    x = g.reshape(x, -1, 8, 5, 1)
    return _end(g, x, 8)
