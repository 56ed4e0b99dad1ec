"""YOLO and its kin as their makers export them: grids, anchors, decoupled heads, distributions, top-k tails, suppression inside."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto

from tests.patterns.build import F32, I64, Net, pattern


def silu(g: Net, x: str) -> str:
    return g.Mul(x, g.Sigmoid(x))


def mish(g: Net, x: str) -> str:
    return g.Mul(x, g.Tanh(g.Softplus(x)))


def csp(g: Net, x: str, name: str, c: int) -> str:
    """Two halves of ``c`` channels by strided convolutions of one map; a residual block on one."""
    one, two = g.cbr(x, f"{name}.one", c, 2 * c, 1), g.cbr(x, f"{name}.two", c, 2 * c, 1)
    inner = g.cbr(g.cbr(two, f"{name}.m1", c, c, 1), f"{name}.m2", c, c, 3)
    return g.cbr(g.Concat(g.Add(two, inner), one, axis=1), f"{name}.out", 2 * c, 2 * c, 1)


def up(g: Net, x: str) -> str:
    """Twice as large by Resize with scales."""
    return g.Resize(x, None, g.f([1, 1, 2, 2]), mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")


def grid(h: int, w: int) -> np.ndarray:
    """x and y of each cell, [1, 2, h, w]."""
    y, x = np.indices((h, w))
    return np.stack([x, y])[None].astype(np.float32)


@pattern("stem.w:0 a.one.w:0 a.m1.w:0 p5.w:0,1 p4.w:0 h4.w:1 h5.w:1 spp.w:1", frozen="h4.w:0 h5.w:0")
def yolov4_darknet2onnx() -> ModelProto:
    """Mish, SPP, PAN; upsampling by Reshape and Expand; boxes of each level sliced column by column, two outputs."""
    g = Net()
    x = mish(g, g.bn(g.conv(g.x(1, 3, 32, 32), "stem", 16, 3, bias=False, strides=[2, 2]), "stem", 16))
    x = csp(g, x, "a", 8)
    x = g.cbr(x, "p4", 12, 16, 3, strides=[2, 2])
    deep = g.LeakyRelu(g.conv(x, "p5", 10, 12, 3, strides=[2, 2]), alpha=0.1)
    pools = [g.MaxPool(deep, kernel_shape=[k, k], pads=[k // 2] * 4, strides=[1, 1]) for k in (13, 9, 5)]
    deep = g.LeakyRelu(g.conv(g.Concat(*pools, deep, axis=1), "spp", 12, 40, 1), alpha=0.1)
    # darknet2onnx: [1, C, H, 1, W, 1] expanded to [1, C, H, 2, W, 2].
    lifted = g.Expand(g.reshape(deep, 1, 12, 4, 1, 4, 1), g.c([1, 12, 4, 2, 4, 2]))
    wide = g.Concat(g.reshape(lifted, 1, 12, 8, 8), x, axis=1)
    boxes, scores = [], []
    for name, value, c, size, anchors in (("h4", wide, 24, 8, (12, 16, 19, 36)), ("h5", deep, 12, 4, (40, 28, 36, 75))):
        y = g.conv(value, name, 2 * (5 + 3), c, 1)
        for a in range(2):
            first = a * 8
            bx = g.Add(g.Sigmoid(g.slice(y, first, first + 1)), g.f(grid(size, size)[:, :1]))
            by = g.Add(g.Sigmoid(g.slice(y, first + 1, first + 2)), g.f(grid(size, size)[:, 1:]))
            bw = g.Mul(g.Exp(g.slice(y, first + 2, first + 3)), g.f(anchors[2 * a] / 32))
            bh = g.Mul(g.Exp(g.slice(y, first + 3, first + 4)), g.f(anchors[2 * a + 1] / 32))
            objectness = g.Sigmoid(g.slice(y, first + 4, first + 5))
            classes = g.Sigmoid(g.slice(y, first + 5, first + 8))
            bx, by = g.Div(bx, g.f(size)), g.Div(by, g.f(size))
            left, top = g.Sub(bx, g.Mul(bw, g.f(0.5))), g.Sub(by, g.Mul(bh, g.f(0.5)))
            corners = g.Concat(left, top, g.Add(left, bw), g.Add(top, bh), axis=1)
            boxes.append(g.Unsqueeze(g.t(g.reshape(corners, 1, 4, size * size), 0, 2, 1), g.c([2])))
            scores.append(g.t(g.reshape(g.Mul(classes, objectness), 1, 3, size * size), 0, 2, 1))
    g.out(g.Concat(*boxes, axis=1), "boxes")
    g.out(g.Concat(*scores, axis=1), "confs")
    return g.model(opset=13)


@pattern("a.one.w:0 p.w:0,1 d4.w:1 d3.w:1", frozen="d3.w:0 d4.w:0")
def yolov5_dynamic_grid() -> ModelProto:
    """The grid is made when it runs: Shape, Range, Expand; sizes of the picture are open, anchors are constants by channel."""
    g = Net()
    x = csp(g, silu(g, g.conv(g.x("N", 3, "H", "W"), "stem", 16, 3, strides=[2, 2])), "a", 8)
    deep = silu(g, g.conv(x, "p", 12, 16, 3, strides=[2, 2]))
    wide = g.Concat(up(g, deep), x, axis=1)
    tables = []
    for name, value, c, stride in (("d3", wide, 28, 2), ("d4", deep, 12, 4)):
        y = g.conv(value, name, 3 * 9, c, 1)
        size = g.Shape(y)
        n, h, w = (g.slice(size, k, k + 1, axis=0) for k in (0, 2, 3))
        y = g.Reshape(y, g.Concat(n, g.c([3, 9]), h, w, axis=0))
        y = g.Sigmoid(g.t(y, 0, 1, 3, 4, 2))
        rows, columns = (g.Range(g.c(0), g.Squeeze(s, g.c([0])), g.c(1)) for s in (h, w))
        ys = g.Expand(g.Unsqueeze(rows, g.c([1])), g.Concat(h, w, axis=0))
        xs = g.Expand(g.Unsqueeze(columns, g.c([0])), g.Concat(h, w, axis=0))
        cells = g.Cast(g.Unsqueeze(g.Concat(g.Unsqueeze(xs, g.c([2])), g.Unsqueeze(ys, g.c([2])), axis=2), g.c([0, 1])), to=F32)
        xy, wh, rest = g.split(y, 2, 2, 5, axis=4)
        xy = g.Mul(g.Add(g.Sub(g.Mul(xy, g.f(2)), g.f(0.5)), cells), g.f(stride))
        anchors = np.array([[10, 13], [16, 30], [33, 23]], np.float32).reshape(1, 3, 1, 1, 2) * stride / 8
        wh = g.Mul(g.Pow(g.Mul(wh, g.f(2)), g.f(2)), g.f(anchors))
        table = g.Concat(xy, wh, rest, axis=4)
        total = g.Mul(g.c([3]), g.Mul(h, w))
        tables.append(g.Reshape(table, g.Concat(n, total, g.c([9]), axis=0)))
    g.out(g.Concat(*tables, axis=1), "output", dtype=F32, shape=["N", "M", 9])
    return g.model(opset=13)


@pattern("stem.w:0 r1.a.w:0 r1.b.w:0 m.w:1", frozen="m.w:0")
def yolov7_implicit_and_rep() -> ModelProto:
    """ImplicitA and ImplicitM, constants per channel around the head; a RepConv of two branches; suppression with offsets by class
    behind it, in ONNX Runtime's form: [n, 7] rows."""
    g = Net()
    x = silu(g, g.conv(g.x(1, 3, 16, 16), "stem", 12, 3, strides=[2, 2]))
    x = silu(g, g.Add(g.conv(x, "r1.a", 10, 12, 3), g.conv(x, "r1.b", 10, 12, 1)))
    x = g.Add(x, g.w("ia", 1, 10, 1, 1, scale=0.02))
    y = g.Mul(g.conv(x, "m", 3 * 8, 10, 1), g.w("im", 1, 24, 1, 1, scale=0.02, shift=1))
    y = g.Sigmoid(g.t(g.reshape(y, 1, 3, 8, 8, 8), 0, 1, 3, 4, 2))
    cells = g.f(grid(8, 8).transpose(0, 2, 3, 1)[:, None])
    xy = g.Mul(g.Add(g.Mul(g.slice(y, 0, 2, axis=4), g.f(2)), cells), g.f(2))
    wh = g.Mul(g.Pow(g.Mul(g.slice(y, 2, 4, axis=4), g.f(2)), g.f(2)), g.f(np.arange(1, 7).reshape(1, 3, 1, 1, 2) * 2))
    y = g.reshape(g.Concat(xy, wh, g.slice(y, 4, 8, axis=4), axis=4), 1, 192, 8)
    box, objectness, classes = g.split(y, 4, 1, 3, axis=2)
    # Centre and size to corners as a matrix, as export.py's ORT_NMS has it.
    corners = g.MatMul(box, g.f([[1, 0, 1, 0], [0, 1, 0, 1], [-0.5, 0, 0.5, 0], [0, -0.5, 0, 0.5]]))
    scores = g.Mul(classes, objectness)
    best, kind = g.ReduceMax(scores, axes=[2], keepdims=1), g.ArgMax(scores, axis=2, keepdims=1)
    apart = g.Add(corners, g.Mul(g.Cast(kind, to=F32), g.f(640)))
    chosen = g.NonMaxSuppression(apart, g.t(best, 0, 2, 1), g.c([100]), g.f([0.45]), g.f([0.05]))
    picture, place = g.Gather(chosen, g.c([0]), axis=1), g.Gather(chosen, g.c([0, 2]), axis=1)
    rows = [g.GatherND(value, place) for value in (corners, g.Cast(kind, to=F32), best)]
    g.out(g.Concat(g.Cast(picture, to=F32), *rows, axis=1), "output", dtype=F32, shape=["n", 7])
    return g.model(opset=13)


@pattern("stem.w:0 b1.w:0 b2.w:0,1 c1.w:0 c2.w:0,1 b3.w:1 c3.w:1", frozen="b3.w:0 c3.w:0")
def yolov8_distribution_and_classes() -> ModelProto:
    """Three convolutions for boxes and for classes, joined, split again after Reshape; expectation over 16 bins by a convolution."""
    g = Net()
    x = silu(g, g.conv(g.x("N", 3, 16, 16), "stem", 12, 3, strides=[2, 2]))
    box = silu(g, g.conv(silu(g, g.conv(x, "b1", 10, 12)), "b2", 10, 10))
    cls = silu(g, g.conv(silu(g, g.conv(x, "c1", 8, 12)), "c2", 8, 8))
    y = g.Concat(g.conv(box, "b3", 64, 10, 1), g.conv(cls, "c3", 5, 8, 1), axis=1)
    y = g.reshape(y, 0, 69, -1)
    y = g.Concat(y, axis=2)
    bins, scores = g.split(y, 64, 5)
    bins = g.Softmax(g.t(g.reshape(bins, 0, 4, 16, 64), 0, 2, 1, 3), axis=1)
    sides = g.reshape(g.Conv(bins, g.f(np.arange(16).reshape(1, 16, 1, 1), "dfl")), 0, 4, 64)
    low, high = g.split(sides, 2, 2)
    points = g.f((grid(8, 8) + 0.5).reshape(1, 2, 64), "points")
    one, two = g.Sub(points, low), g.Add(points, high)
    box = g.Mul(g.Concat(g.Div(g.Add(one, two), g.f(2)), g.Sub(two, one), axis=1), g.f(np.full((1, 64), 2)))
    g.out(g.Concat(box, g.Sigmoid(scores), axis=1), "output0")
    return g.model(opset=17)


@pattern("stem.w:0 b.w:0 c.dw.w:0 c.pw.w:0,1 b2.w:1 c2.w:1", frozen="b2.w:0 c2.w:0")
def yolov10_top_k_head() -> ModelProto:
    """One-to-one head: the best class of each place, the best places, then the best (place, class) pairs: [1, 30, 6]."""
    g = Net()
    x = silu(g, g.conv(g.x(1, 3, 16, 16), "stem", 12, 3, strides=[2, 2]))
    box = g.conv(silu(g, g.conv(x, "b", 10, 12)), "b2", 4, 10, 1)
    cls = silu(g, g.conv(silu(g, g.conv(x, "c.dw", 12, 12, 3, group=12)), "c.pw", 10, 12, 1))
    cls = g.conv(cls, "c2", 5, 10, 1)
    y = g.t(g.reshape(g.Concat(g.Softplus(box), g.Sigmoid(cls), axis=1), 1, 9, 64), 0, 2, 1)
    boxes, scores = g.split(y, 4, 5, axis=2)
    _, index = g.TopK(g.ReduceMax(scores, axes=[2], keepdims=0), g.c([30]), axis=-1, n=2)
    index = g.Unsqueeze(index, g.c([2]))
    boxes = g.GatherElements(boxes, g.Tile(index, g.c([1, 1, 4])), axis=1)
    scores = g.GatherElements(scores, g.Tile(index, g.c([1, 1, 5])), axis=1)
    values, pairs = g.TopK(g.reshape(scores, 1, -1), g.c([30]), axis=-1, n=2)
    kinds = g.Cast(g.Mod(pairs, g.c(5)), to=F32)
    places = g.Tile(g.Unsqueeze(g.Div(pairs, g.c(5)), g.c([2])), g.c([1, 1, 4]))
    boxes = g.GatherElements(boxes, places, axis=1)
    g.out(g.Concat(boxes, g.Unsqueeze(values, g.c([2])), g.Unsqueeze(kinds, g.c([2])), axis=2), "output0")
    return g.model(opset=13)


@pattern("pw.w:0 q.w:0 f1.w:0 f2.w:0,1 head.w:1", frozen="head.w:0", families=True)
def yolo11_attention_block() -> ModelProto:
    """C2PSA: half of the channels through attention with a convolution for position, q and k narrower than v."""
    g = Net()
    x = silu(g, g.conv(g.x("N", 3, 8, 8), "stem", 24, 3, strides=[2, 2]))
    a, b = g.split(silu(g, g.conv(x, "pw", 48, 24, 1)), 24, 24)
    qkv = g.reshape(g.conv(b, "q", 48, 24, 1), 0, 2, 24, 16)
    q, k, v = g.split(qkv, 6, 6, 12, axis=2)
    weights = g.Softmax(g.Mul(g.MatMul(g.t(q, 0, 1, 3, 2), k), g.f(6**-0.5)), axis=-1)
    out = g.reshape(g.MatMul(v, g.t(weights, 0, 1, 3, 2)), 0, 24, 4, 4)
    out = g.Add(out, g.conv(g.reshape(v, 0, 24, 4, 4), "pe", 24, 24, 3, group=24))
    b = g.Add(b, g.conv(out, "proj", 24, 24, 1))
    b = g.Add(b, g.conv(silu(g, g.conv(b, "f1", 20, 24, 1)), "f2", 24, 20, 1))
    y = silu(g, g.conv(g.Concat(a, b, axis=1), "join", 16, 48, 1))
    g.out(g.reshape(g.conv(y, "head", 9, 16, 1), 0, 9, -1), "output0", dtype=F32, shape=["N", 9, 16])
    return g.model(opset=13)


@pattern("stem.w:0 s.w:0,1 rc.w:0,1 ro.w:0,1 reg.w:1 obj.w:1 cls.w:1", frozen="reg.w:0 obj.w:0 cls.w:0")
def yolox_decoupled_raw() -> ModelProto:
    """Focus, one stem a level, separate branches; boxes not decoded, scores through a sigmoid, levels joined: [1, 85, n] turned."""
    g = Net()
    x = g.x(1, 3, 32, 32)
    parts = []
    for dy, dx in ((0, 0), (1, 0), (0, 1), (1, 1)):
        rows = g.slice(x, dy, 9223372036854775807, axis=2, step=2)
        parts.append(g.slice(rows, dx, 9223372036854775807, axis=3, step=2))
    x = silu(g, g.conv(g.Concat(*parts, axis=1), "stem", 12, 12))
    levels = [x, silu(g, g.conv(x, "down", 16, 12, 3, strides=[2, 2]))]
    flat = []
    for n, (value, c, size) in enumerate(zip(levels, (12, 16), (16, 8), strict=True)):
        name = ("s", "s2")[n]
        tag = "" if n == 0 else "2"
        value = silu(g, g.conv(value, name, 12, c, 1))
        one = silu(g, g.conv(value, f"rc{tag}", 10, 12))
        two = silu(g, g.conv(value, f"ro{tag}", 10, 12))
        reg, obj = g.conv(two, f"reg{tag}", 4, 10, 1), g.Sigmoid(g.conv(two, f"obj{tag}", 1, 10, 1))
        y = g.Concat(reg, obj, g.Sigmoid(g.conv(one, f"cls{tag}", 3, 10, 1)), axis=1)
        flat.append(g.reshape(y, 1, 8, size * size))
    g.out(g.t(g.Concat(*flat, axis=2), 0, 2, 1), "output")
    return g.model(opset=11)


@pattern("c1.w:0 c2.w:0,1 head.w:1", frozen="head.w:0")
def yolov2_reorg_and_image_scaler() -> ModelProto:
    """Passthrough by Reshape and Transpose, joined with a deeper map; one raw output [N, anchors (5 + classes), h, w]."""
    g = Net()
    x = g.Add(g.Mul(g.x("N", 3, 16, 16), g.f(1 / 255)), g.f(np.zeros((3, 1, 1))))
    x = g.LeakyRelu(g.conv(x, "c1", 8, 3), alpha=0.1)
    deep = g.LeakyRelu(g.conv(x, "c2", 12, 8, 3, strides=[2, 2]), alpha=0.1)
    y = g.t(g.reshape(x, -1, 8, 8, 2, 8, 2), 0, 3, 5, 1, 2, 4)
    y = g.reshape(y, -1, 32, 8, 8)
    y = g.conv(g.Concat(y, deep, axis=1), "join", 16, 44)
    g.out(g.conv(g.LeakyRelu(y, alpha=0.1), "head", 5 * 8, 16, 1), "grid", dtype=F32, shape=["N", 40, 8, 8])
    return g.model(opset=9)


@pattern("c1.w:0 c2.w:0,1 out.w:1")
def yolov3_keras2onnx() -> ModelProto:
    """Channels last between Transposes, the picture's size beside it, one raw head turned back to NHWC, suppression on top."""
    g = Net()
    x = g.t(g.x(1, 16, 16, 3, name="input_1"), 0, 3, 1, 2)
    size = g.x(1, 2, name="image_shape")
    x = g.LeakyRelu(g.bn(g.conv(x, "c1", 12, 3, bias=False), "c1", 12), alpha=0.1)
    x = g.Pad(x, g.c([0, 0, 1, 1, 0, 0, 0, 0]))
    x = g.LeakyRelu(g.bn(g.Conv(x, g.w("c2.w", 10, 12, 3, 3), strides=[2, 2]), "c2", 10), alpha=0.1)
    y = g.t(g.conv(x, "out", 3 * 7, 10, 1), 0, 2, 3, 1)
    y = g.reshape(y, -1, 8, 8, 3, 7)
    cells = g.f(grid(8, 8).transpose(0, 2, 3, 1)[:, :, :, None])
    xy = g.Div(g.Add(g.Sigmoid(g.slice(y, 0, 2, axis=4)), cells), g.f([8, 8]))
    wh = g.Div(g.Mul(g.Exp(g.slice(y, 2, 4, axis=4)), g.f([[[[[10, 13], [16, 30], [33, 23]]]]])), g.f([416, 416]))
    objectness, classes = g.Sigmoid(g.slice(y, 4, 5, axis=4)), g.Sigmoid(g.slice(y, 5, 7, axis=4))
    # Turned to rows first, and scaled to the picture.
    yx, hw = g.Gather(xy, g.c([1, 0]), axis=4), g.Gather(wh, g.c([1, 0]), axis=4)
    low, high = g.Sub(yx, g.Mul(hw, g.f(0.5))), g.Add(yx, g.Mul(hw, g.f(0.5)))
    both = g.Concat(size, size, axis=1)
    boxes = g.Mul(g.reshape(g.Concat(low, high, axis=4), 1, -1, 4), both)
    scores = g.t(g.reshape(g.Mul(objectness, classes), 1, -1, 2), 0, 2, 1)
    g.out(g.NonMaxSuppression(boxes, scores, g.c(20), g.f(0.5), g.f(0.3)), "yolonms_layer_1/ExpandDims_1:0", dtype=I64, shape=[None, 3])
    g.out(boxes, "yolonms_layer_1/ExpandDims_2:0")
    g.out(scores, "yolonms_layer_1/concat_2:0")
    return g.model(opset=11)
