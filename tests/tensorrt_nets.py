"""Small networks that older TensorRT versions do not take as they are, by name."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper, parser

RNG = np.random.default_rng(7)


def net(opset: int, signature: str, body: str, ir: int = 10, **weights: np.ndarray | tuple[int, ...]) -> onnx.ModelProto:
    """A model in ONNX text, with initializers: arrays, or shapes that are filled at random; outputs may be left without shape."""
    model = parser.parse_model(f'<ir_version: {ir}, opset_import: ["": {opset}]> net {signature} {{ {body} }}')
    for output in model.graph.output:
        if not output.type.tensor_type.shape.dim:
            output.type.tensor_type.ClearField("shape")
    rng = np.random.default_rng(3)
    for name, value in weights.items():
        array = rng.standard_normal(value).astype(np.float32) if isinstance(value, tuple) else np.asarray(value)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    if all(output.type.tensor_type.HasField("shape") for output in model.graph.output):
        onnx.checker.check_model(model, full_check=True)
    return model


def _image(body: str, opset: int = 18, **weights: np.ndarray | tuple[int, ...]) -> onnx.ModelProto:
    return net(opset, "(float[N, 3, 16, 16] x) => (float y)", body, **weights)


def _rows(body: str, opset: int = 18, **weights: np.ndarray | tuple[int, ...]) -> onnx.ModelProto:
    return net(opset, "(float[2, 6, 8] x) => (float y)", body, **weights)


def transformer() -> onnx.ModelProto:
    """A block of a transformer with a dynamic sequence, LayerNormalization and Gelu."""
    return net(
        20, "(float[B, S, 16] x) => (float[B, S, 16] y)",
        """n = LayerNormalization<epsilon=1e-6>(x, g1, b1)
        qkv = MatMul(n, wqkv)
        q, k, v = Split<axis=2, num_outputs=3>(qkv)
        qh = Reshape(q, heads)  kh = Reshape(k, heads)  vh = Reshape(v, heads)
        qt = Transpose<perm=[0, 2, 1, 3]>(qh)  kt = Transpose<perm=[0, 2, 3, 1]>(kh)  vt = Transpose<perm=[0, 2, 1, 3]>(vh)
        s = MatMul(qt, kt)  p = Softmax<axis=-1>(s)  o = MatMul(p, vt)
        ot = Transpose<perm=[0, 2, 1, 3]>(o)  of = Reshape(ot, flat)
        a = Add(x, of)
        n2 = LayerNormalization(a, g2, b2)
        h = MatMul(n2, w1)  e = Gelu(h)  f = MatMul(e, w2)
        y = Add(a, f)""",
        g1=(16,), b1=(16,), g2=(16,), b2=(16,), wqkv=(16, 48), w1=(16, 32), w2=(32, 16),
        heads=np.array([0, 0, 4, 4]), flat=np.array([0, 0, 16]),
    )  # fmt: skip


def detector(opset: int = 17) -> onnx.ModelProto:
    """Boxes and scores from a convolution, NonMaxSuppression, and the rows it selects."""
    return net(
        opset, "(float[1, 3, 16, 16] x) => (int64[K, 3] selected, float feature)",
        """c = Conv<strides=[4, 4]>(x, w)
        feature = Relu(c)
        r = Reshape(c, flat)
        t = Transpose<perm=[0, 2, 1]>(r)
        raw, logits = Split<axis=2>(t, parts)
        half = Sigmoid(raw)
        low, high = Split<axis=2>(half, pairs)
        top = Add(low, high)
        boxes = Concat<axis=2>(low, top)
        probabilities = Sigmoid(logits)
        scores = Transpose<perm=[0, 2, 1]>(probabilities)
        selected = NonMaxSuppression(boxes, scores, most, iou, score)""",
        w=(7, 3, 4, 4), flat=np.array([1, 7, 16]), parts=np.array([4, 3]), pairs=np.array([2, 2]), most=np.array([5]),
        iou=np.array([0.5], np.float32), score=np.array([0.3], np.float32),
    )  # fmt: skip


def quantised(kind: str = "int8") -> onnx.ModelProto:
    """A convolution between QuantizeLinear and DequantizeLinear."""
    zero = np.int8(0) if kind == "int8" else np.uint8(128)
    weight = RNG.integers(-100, 100, (8, 3, 3, 3)).astype(np.int8)
    return net(
        13, "(float[1, 3, 16, 16] x) => (float y)",
        """q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
        w = DequantizeLinear<axis=0>(wq, sw, zw)
        y = Conv(d, w)""",
        ir=8, s=np.array(0.03, np.float32), z=np.array(zero), wq=weight, sw=np.full(8, 0.01, np.float32), zw=np.zeros(8, np.int8),
    )  # fmt: skip


F = np.float32
#: Every network: name -> model.
NETS: dict[str, onnx.ModelProto] = {
    "conv-bn-mish": _image(
        "c = Conv(x, w) n = BatchNormalization(c, g, b, m, v) y = Mish(n)", w=(8, 3, 3, 3), g=(8,), b=(8,), m=(8,), v=np.ones(8, F),
    ),
    "transformer": transformer(),
    "conv1d": net(
        17, "(float[N, 4, 20] x) => (float y)",
        "c = Conv<pads=[1, 2], strides=[2], dilations=[1]>(x, w, b) p = MaxPool<kernel_shape=[2], strides=[2]>(c) "
        "a = AveragePool<kernel_shape=[2], pads=[1, 0]>(p) y = ConvTranspose<strides=[2], output_padding=[1]>(a, t)",
        w=(6, 4, 3), b=(6,), t=(6, 3, 2),
    ),
    "hardswish": _image("c = Conv(x, w) h = HardSwish(c) y = Celu<alpha=0.7>(h)", w=(8, 3, 3, 3)),
    "gelu": _rows("e = Gelu(x) y = Gelu<approximate=\"tanh\">(e)", 20),
    "swish": _rows("y = Swish<alpha=1.5>(x)", 24, ),
    "groupnorm": _image("c = Conv(x, w) y = GroupNormalization<num_groups=4>(c, g, b)", 21, w=(8, 3, 3, 3), g=(8,), b=(8,)),
    "rmsnorm": _rows("y = RMSNormalization<axis=-1>(x, g)", 23, g=(8,)),
    "mvn": _image("y = MeanVarianceNormalization(x)"),
    "attention": net(23, "(float[2, 4, 6, 8] q, float[2, 4, 9, 8] k, float[2, 4, 9, 8] v) => (float y)", "y = Attention(q, k, v)"),
    "rotary": net(
        23, "(float[2, 4, 6, 8] x) => (float y)", "y = RotaryEmbedding(x, c, s)",
        c=RNG.standard_normal((2, 6, 4)).astype(F), s=RNG.standard_normal((2, 6, 4)).astype(F),
    ),
    "instancenorm": net(17, "(float[2, 3, 9] x, float[3] g) => (float y)", "y = InstanceNormalization(x, g, b)", b=(3,)),
    "reductions": _rows(
        "m = ReduceMean(x, a) s = ReduceL2<keepdims=0>(x, b) t = ReduceMax(x) u = Add(m, t) n = ReduceSum<keepdims=0>(u, b) y = Sub(n, s)",
        a=np.array([1]), b=np.array([-1]),
    ),
    "split": _rows("a, b, c = Split<axis=2, num_outputs=3>(x) d = Concat<axis=2>(c, a) y = Concat<axis=2>(d, b)"),
    "shape-arithmetic": net(
        18, "(float[N, 3, H, W] x) => (float y)",
        "s = Shape<start=0, end=2>(x) t = Concat<axis=0>(s, rest) y = Reshape<allowzero=1>(x, t)", rest=np.array([-1]),
    ),
    "indices": net(
        17, "(int64[2, 5] i) => (float y, int64[N, M] z)",
        "c = Clip(i, low, high) e = Gather(table, c) l = Gather<axis=1>(e, last) y = Slice(l, zero, far, ax) z = Max(i, low)",
        table=(20, 4), low=np.array(1), high=np.array(9), last=np.array([-1, 0]), zero=np.array([0]), far=np.array([2**63 - 1]),
        ax=np.array([1]),
    ),
    "integers": net(
        17, "(int64[6] i) => (int64[6] a, float[6, 9] h, bool[6] x)",
        "a = Mod(i, jj) k = Abs(i) h = OneHot(k, depth, values) p = Greater(i, jj) q = Less(k, jj) x = Xor(p, q)",
        depth=np.array(9), values=np.array([0.5, 2], F), jj=np.array([3, -2, 5, 1, 7, -4]),
    ),
    "odd-arithmetic": _rows(
        "r = Round(x) s = Sign(x) h = Shrink<lambd=0.4, bias=0.1>(x) k = Add(r, s) m = Add(k, h) e = Exp(m) v = Reciprocal(e) "
        "f = Mod<fmod=1>(v, d) i = IsInf(v) c = Cast<to=1>(i) y = Add(f, c)", d=np.array(0.3, F),
    ),
    "triangle": _rows("t = Trilu<upper=0>(x) u = Trilu(x, k) y = Add(t, u)", k=np.array(1)),
    "pads": net(
        18, "(float[1, 3, 16, 16] x) => (float y)", "a = Pad(x, p, z, ax) b = Pad<mode=\"reflect\">(a, q) y = Pad(b, r, one)",
        p=np.array([1, 2, 0, 3]), z=np.array(0, F), ax=np.array([2, 3]), q=np.array([0, 0, 1, 1, 0, 0, 2, 1]),
        r=np.array([0, 1, 0, 0, 0, 2, 0, 0]), one=np.array(1, F),
    ),
    "pads-dynamic": net(
        17, "(float[N, 3, H, 8] x) => (float y)", "a = Pad(x, p, v) b = Pad(a, q) y = Pad<mode=\"reflect\">(b, r)",
        p=np.array([0, 1, 1, 0, 0, 0, 0, 2]), v=np.array(-2, F), q=np.array([1, 0, 0, 0, 0, 2, 0, 0]), r=np.array([0, 1, 0, 1, 0, 0, 0, 1]),
    ),
    "pad-of-unknown-rank": net(
        17, "(float[N, 3, H, 8] x) => (float y)", "r = Squeeze(x) p = Pad(r, a) f = Reshape(p, flat) y = Mul(f, f)",
        a=np.array([1, 0, 0, 0, 2, 0]), flat=np.array([-1]),
    ),
    "window-over-everything": net(
        18, "(float[1, 3, 5, 7] x) => (float y)", "y = AveragePool<kernel_shape=[640, 640], strides=[640, 640], ceil_mode=1, count_include_pad=1>(x)",
    ),
    "scatter": net(
        16, "(float[4, 5, H] x, float[2, 3, H] u, float[4, 5] e, float[3, 2] v, float[2, 1] w) => (float y, float z, float q)",
        "y = ScatterND(x, i, u) z = ScatterElements<axis=-1>(e, j, v) n = ScatterND(e, k, w) q = Add(n, e)",
        i=np.array([[[0, 1], [-1, 4], [2, 0]], [[1, -5], [3, 3], [0, 0]]]), j=np.array([[0, -1], [2, 3], [4, 0]]),
        k=np.array([[[1, 2]], [[0, -1]]]),
    ),
    "wrap": net(19, "(float[1, 3, 8, 8] x) => (float y)", "y = Pad<mode=\"wrap\">(x, p)", p=np.array([0, 0, 1, 2, 0, 0, 3, 0])),
    "resize-axes": net(
        18, "(float[1, 3, 8, 8] x) => (float y)", "y = Resize<axes=[2, 3], mode=\"nearest\", coordinate_transformation_mode=\"asymmetric\", "
        "nearest_mode=\"floor\">(x, , s)", s=np.array([2, 3], F),
    ),
    "resize-cubic": net(
        18, "(float[1, 3, 8, 8] x) => (float y)", "y = Resize<mode=\"cubic\">(x, , s)", s=np.array([1, 1, 2, 1.5], F),
    ),
    "einsum": net(
        17, "(float[2, 3, 4, 5] a, float[2, 4, 5, 6] b) => (float y, float z, float w, float u)",
        'y = Einsum<equation="bijk,bjkl->bil">(a, b) z = Einsum<equation="...jk->...kj">(a) '
        'w = Einsum<equation="bijk,bjkl->lbi">(a, b) u = Einsum<equation="bijk->bj">(a)',
    ),
    "gridsample": net(
        20, "(float[N, 3, 6, 7] x, float[N, 4, 5, 2] g) => (float y)",
        'a = GridSample<mode="linear">(x, g) b = GridSample<mode="linear", padding_mode="border", align_corners=1>(x, g) '
        'c = GridSample<mode="nearest">(x, g) d = Add(a, b) y = Add(c, d)',
    ),
    "gridsample16": net(
        16, "(float[2, 3, 6, 7] x, float[2, 4, 5, 2] g) => (float y)", 'y = GridSample<mode="bilinear", align_corners=1>(x, g)', 8,
    ),
    "col2im": net(
        18, "(float[2, 12, 12] x) => (float y)", "y = Col2Im<strides=[2, 1], pads=[0, 1, 0, 0]>(x, size, block)", size=np.array([7, 4]),
        block=np.array([2, 2]),
    ),
    "bool-gather": net(18, "(bool[4, 3] m, float[4, 3] x) => (float y)", "t = Gather(m, i) f = Cast<to=1>(t) g = Gather(x, i) y = Mul(f, g)", i=np.array([2, -1])),
    "double": net(17, "(float[4] x) => (float[4] y)", "d = Cast<to=11>(x) e = Mul(d, k) y = Cast<to=1>(e)", k=np.array(0.1)),
    "detector": detector(),
    "quantised": quantised(),
    "quantised-uint8": quantised("uint8"),
    "quantised-bias": net(
        13, "(float[1, 3, 8, 8] x) => (float y)", "w = DequantizeLinear<axis=0>(wq, sw, zw) b = DequantizeLinear(bq, sb) y = Conv(x, w, b)", 8,
        wq=RNG.integers(0, 255, (4, 3, 3, 3)).astype(np.uint8), sw=np.array([0.01, 0.02, 0.01, 0.03], F), zw=np.array([120, 130, 128, 9], np.uint8),
        bq=np.array([100, -70, 3, 2**20], np.int32), sb=np.array(0.001, F),
    ),
    "double-inside": net(17, "(float[4] x) => (float[4] y)", "d = Cast<to=11>(x) e = Sqrt(d) f = Cast<to=11>(e) y = Cast<to=1>(f)"),
    "folded-weight": _image("t = Transpose<perm=[1, 0, 2, 3]>(w) y = Conv(x, t)", 17, w=(3, 8, 3, 3)),
    "sequence-of-sizes": _image(
        "c = Conv(x, w) s = SplitToSequence<axis=1>(c, sizes) a = SequenceAt(s, one) b = SequenceAt(s, last) d = Relu(b) y = Concat<axis=1>(a, d)",
        w=(8, 3, 1, 1), sizes=np.array([2, 3, 3]), one=np.array(1), last=np.array(-3),
    ),
    "sequence-of-steps": _rows(
        "s = SplitToSequence<axis=-1>(x, three) a = SequenceAt(s, zero) b = SequenceAt(s, two) t = Relu(a) u = Relu(b) y = Concat<axis=-1>(t, u)",
        three=np.array(3), zero=np.array(0), two=np.array(2),
    ),
    "sequence-of-ones": _rows(
        "s = SplitToSequence<axis=1, keepdims=0>(x) a = SequenceAt(s, zero) b = SequenceAt(s, five) y = Sub(a, b)", zero=np.array(0), five=np.array(5),
    ),
    "bound-in-advance": _rows(
        "m = Cast<to=7>(most) e = Reshape(m, one) y = Slice(x, one, e, one)", most=np.array(2**63 - 1), one=np.array([1]),
    ),
    "grid-of-an-open-batch": _image(
        "z = Shape(x) h = Gather(z, two) l = Cast<to=1>(h) r = Range(f0, l, f1) c = Reshape(r, column) y = Add(x, c)", 17,
        two=np.array(2), f0=np.array(0, F), f1=np.array(1, F), column=np.array([16, 1]),
    ),
}
