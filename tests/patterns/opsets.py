"""The same operators in the spellings of their ages: attributes that became inputs, and back."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto

from tests.patterns.build import F32, Net, pattern

TWO = "a.w:0 b.w:0,1"


def _old_bn(g: Net, x: str, name: str, c: int, **kw: int) -> str:
    return g.BatchNormalization(
        x,
        g.w(f"{name}.s", c, scale=0.2, shift=1),
        g.w(f"{name}.h", c),
        g.w(f"{name}.m", c),
        g.positive(f"{name}.v", c),
        **kw,
    )


def _dense(g: Net, x: str, name: str, i: int, o: int, **kw: int) -> str:
    return g.Gemm(x, g.w(f"{name}.w", o, i), g.w(f"{name}.b", o), transB=1, **kw)


@pattern(TWO + " fc.w:0,1", widths={"a.w:0": 4, "fc.w:1": 5 * 4})
def opset_7() -> ModelProto:
    """BatchNormalization with spatial, Upsample with scales as attribute, Reshape by input, Dropout with a mask."""
    g = Net()
    x = g.x("N", 3, 4, 4)
    x = g.Relu(_old_bn(g, g.conv(x, "a", 8, 3), "n", 8, spatial=1))
    x = g.Upsample(x, scales=[1.0, 1.0, 2.0, 2.0], mode="nearest")
    x = g.conv(x, "b", 10, 8, strides=[4, 4])
    x, _ = g.Dropout(g.Relu(x), ratio=0.3, n=2)
    x = g.Reshape(x, g.c([-1, 40]))
    x = g.Relu(_dense(g, x, "fc", 40, 12))
    g.out(_dense(g, x, "o", 12, 3), dtype=F32, shape=["N", 3])
    return g.model(opset=7, ir=4)


@pattern(TWO)
def opset_8_slices_and_pads() -> ModelProto:
    """Slice, Pad, Split, Squeeze, Unsqueeze and Clip by attributes; Gemm's C needs broadcasting; Sum, Max of many."""
    g = Net()
    x = g.Clip(g.conv(g.x("N", 3, 6, 6), "a", 12, 3), min=0.0, max=6.0)
    x = g.Pad(x, pads=[0, 1, 0, 0, 0, 3, 0, 0], mode="constant", value=0.25)
    u, v = g.Split(x, axis=1, split=[6, 10], n=2)
    v = g.Slice(v, axes=[1], starts=[-7], ends=[2147483647])
    s = g.Unsqueeze(g.Squeeze(g.GlobalAveragePool(v), axes=[2, 3]), axes=[2, 3])
    x = g.Concat(u, g.Mul(v, s), axis=1)
    x = g.Relu(g.conv(x, "b", 10, 13))
    g.head(x, 10)
    return g.model(opset=8, ir=4)


@pattern(TWO)
def opset_9_upsample_and_scatter() -> ModelProto:
    """Upsample with scales as input, BatchNormalization-9, Where."""
    g = Net()
    x = g.Relu(_old_bn(g, g.conv(g.x("N", 3, 5, 5), "a", 8, 3), "n", 8))
    x = g.Upsample(x, g.f([1, 1, 2, 2]), mode="linear")
    x = g.Where(g.Greater(x, g.f(0.3)), x, g.f(0.1))
    g.head(g.Relu(g.conv(x, "b", 10, 8)), 10)
    return g.model(opset=9, ir=4)


@pattern(TWO)
def opset_10_resize_and_slice_inputs() -> ModelProto:
    """Resize-10 (X, scales), Slice with inputs, Dropout-10, TopK with k as input."""
    g = Net()
    x = g.Relu(g.conv(g.x("N", 3, 5, 5), "a", 8, 3))
    x = g.Resize(x, g.f([1, 1, 2, 2]), mode="nearest")
    x = g.slice(x, 1, 7)
    x, _ = g.Dropout(x, ratio=0.5, n=2)
    g.head(g.Relu(g.conv(x, "b", 10, 6)), 10)
    return g.model(opset=10, ir=5)


@pattern(TWO + " fc.w:1")
def opset_11_attributes_remain() -> ModelProto:
    """Resize with roi, scales and sizes; Pad and Clip by inputs; Squeeze, Unsqueeze, Split, ReduceSum by attributes."""
    g = Net()
    x = g.Clip(g.conv(g.x("N", 3, 5, 5), "a", 12, 3), g.f(-1.0), g.f(1.0))
    x = g.Pad(x, g.c([0, 0, 1, 1, 0, 0, 0, 0]), g.f(0.0), mode="constant")
    x = g.Resize(x, g.f(np.zeros(0)), g.f([1, 1, 1.5, 2]), mode="linear", coordinate_transformation_mode="asymmetric")
    u, v = g.Split(x, axis=1, split=[4, 8], n=2)
    s = g.Unsqueeze(g.ReduceSum(u, axes=[2, 3], keepdims=0), axes=[2, 3])
    x = g.Concat(g.Mul(u, g.Sigmoid(s)), v, axis=1)
    g.head(g.Relu(g.conv(x, "b", 10, 12)), 10)
    return g.model(opset=11, ir=6)


@pattern(TWO)
def opset_12_softmax_flattens() -> ModelProto:
    """Softmax before 13 flattens from its axis on: over the last axis it is the same, channels stay free."""
    g = Net()
    x = g.conv(g.x("N", 3, 5, 5), "a", 12, 3)
    y = g.Softmax(g.reshape(x, 0, 0, 25), axis=2)
    x = g.Mul(x, g.reshape(y, 0, 0, 5, 5))
    g.head(g.Relu(g.conv(x, "b", 10, 12)), 10)
    return g.model(opset=12, ir=7)


@pattern("b.w:0", inexact=True)
def opset_11_softmax_over_channels_and_space() -> ModelProto:
    """Softmax-11 with axis=1 runs over channels and positions together."""
    g = Net()
    x = g.Softmax(g.conv(g.x("N", 3, 5, 5), "a", 12, 3), axis=1)
    g.head(g.Relu(g.conv(x, "b", 10, 12)), 10)
    return g.model(opset=11, ir=6)


@pattern(TWO)
def opset_13_axes_as_inputs() -> ModelProto:
    g = Net()
    x = g.Relu(g.conv(g.x("N", 3, 5, 5), "a", 12, 3))
    u, v = g.Split(x, g.c([4, 8]), axis=1, n=2)
    s = g.Unsqueeze(g.ReduceSum(u, g.c([2, 3]), keepdims=0), g.c([2, 3]))
    m = g.ReduceMean(v, axes=[2, 3], keepdims=1)
    x = g.Concat(g.Mul(u, g.Sigmoid(s)), g.Mul(v, m), axis=1)
    x, _ = g.Dropout(x, g.f(0.4), g.c(False, bool), n=2)
    g.head(g.Relu(g.conv(x, "b", 10, 12)), 10)
    return g.model(opset=13, ir=7)


@pattern(TWO)
def opset_14_batch_norm_training_attribute() -> ModelProto:
    g = Net()
    x = g.conv(g.x("N", 3, 5, 5), "a", 12, 3)
    x = g.Relu(_old_bn(g, x, "n", 12, training_mode=0))
    x = g.HardSwish(x)
    x = g.Reshape(x, g.c([0, 12, -1]), allowzero=0)
    x = g.Reshape(x, g.c([-1, 12, 5, 5]), allowzero=1)
    g.head(g.Relu(g.conv(x, "b", 10, 12)), 10)
    return g.model(opset=14, ir=7)


@pattern(TWO)
def opset_18_resize_axes_and_split_num_outputs() -> ModelProto:
    """Resize on two axes only with antialias, Split by num_outputs (uneven last part), Pad with axes."""
    g = Net()
    x = g.Relu(g.conv(g.x("N", 3, 6, 6), "a", 10, 3))
    x = g.Resize(x, None, None, g.c([9, 9]), axes=[2, 3], mode="linear", antialias=1)
    p = g.Split(x, axis=1, num_outputs=4, n=4)
    x = g.Concat(p[3], p[1], p[0], p[2], axis=1)
    x = g.Pad(x, g.c([1, 1]), g.f(0), g.c([3]))
    g.head(g.Relu(g.conv(x, "b", 12, 10)), 12)
    return g.model(opset=18, ir=8)


@pattern(TWO, widths={"a.w:0": 5})
def opset_21() -> ModelProto:
    g = Net()
    x = g.Relu(g.conv(g.x("N", 3, 6, 6), "a", 10, 3))
    x = g.t(g.Reshape(x, g.c([0, 10, -1])), 0, 2, 1)
    x = g.Reshape(g.t(x, 0, 2, 1), g.c([-1, 10, 6, 6]))
    g.head(g.Gelu(g.conv(x, "b", 12, 10)), 12)
    return g.model(opset=21, ir=10)


@pattern(TWO)
def newest_opset() -> ModelProto:
    g = Net()
    x = g.Relu(g.conv(g.x("N", 3, 6, 6), "a", 10, 3))
    x = g.slice(x, 8, 0, step=-1)
    g.head(g.Mish(g.conv(x, "b", 12, 8)), 12)
    return g.model(opset=26, ir=13)


@pattern(TWO)
def resize_by_sizes_with_channel_count() -> ModelProto:
    """sizes and scales name all four axes: the channel entry must follow the cut, the spatial ones must not."""
    g = Net()
    x = g.Relu(g.conv(g.x(2, 3, 6, 6), "a", 10, 3))
    x = g.Resize(x, None, None, g.c([2, 10, 9, 12]), mode="nearest")
    g.head(g.Relu(g.conv(x, "b", 12, 10)), 12)
    return g.model()


@pattern(TWO)
def shared_shape_constants() -> ModelProto:
    """One constant is target of two Reshapes with different fates, and a pad amount elsewhere."""
    g = Net()
    shape = g.c([-1, 8, 16])
    x = g.Relu(g.conv(g.x("N", 3, 4, 4), "a", 8, 3))
    x = g.Reshape(g.Softmax(g.Reshape(x, shape), axis=-1), g.c([-1, 8, 4, 4]))
    z = g.Reshape(g.x("N", 128, name="z"), shape)  # frozen: an input
    x = g.Relu(g.conv(x, "b", 10, 8))
    g.head(x, 10)
    g.out(g.ReduceMean(z, g.c([2]), keepdims=0), "zm")
    return g.model()
