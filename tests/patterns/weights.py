"""Where weights live and what happens to them before they meet their operator."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, helper, numpy_helper

from tests.patterns.build import BF16, F16, F32, F64, Net, pattern

TWO = "a.w:0 b.w:0,1 fc.w:1"


def _two_convs(g: Net, x: str, **kw: int) -> ModelProto:
    g.head(g.Relu(g.conv(g.cbr(x, "a", 8, 3), "b", 12, 8)), 12, dtype=g.dtype, shape=["N", 5])
    return g.model(**kw)


@pattern(TWO, widths={"a.w:0": 4, "b.w:0": 6})
def constant_nodes() -> ModelProto:
    """Paddle: every weight in a Constant node."""
    g = Net(consts_as_nodes=True)
    return _two_convs(g, g.x("N", 3, 6, 6))


@pattern(TWO)
def initializers_listed_as_inputs() -> ModelProto:
    """IR version 3: every initializer is also a graph input."""
    g = Net()
    x = g.x("N", 3, 6, 6)
    m = _two_convs(g, x, opset=9, ir=3)
    for t in m.graph.initializer:
        m.graph.input.append(helper.make_tensor_value_info(t.name, t.data_type, t.dims))
    return m


@pattern(TWO)
def raw_and_typed_data_fields() -> ModelProto:
    """Weights in float_data rather than raw_data."""
    g = Net()
    m = _two_convs(g, g.x("N", 3, 6, 6))
    for t in m.graph.initializer:
        if t.data_type == F32:
            value = numpy_helper.to_array(t)
            t.CopyFrom(helper.make_tensor(t.name, F32, value.shape, value.ravel().tolist()))
    return m


@pattern(TWO)
def value_info_and_doc_strings() -> ModelProto:
    """Stale shapes of inner values must not survive the cut; metadata must."""
    g = Net()
    g.head(g.Relu(g.conv(g.cbr(g.x("N", 3, 6, 6), "a", 8, 3), "b", 12, 8)), 12)
    m = g.model(value_info=True)
    m.doc_string = "about"
    m.metadata_props.add(key="names", value="{0: 'cat'}")
    return m


@pattern(TWO)
def nameless_nodes() -> ModelProto:
    g = Net()
    m = _two_convs(g, g.x("N", 3, 6, 6))
    for node in m.graph.node:
        node.name = ""
    return m


def _sparse(name: str, dense: np.ndarray, flat: bool) -> object:
    index = np.flatnonzero(dense) if flat else np.argwhere(dense)
    values = numpy_helper.from_array(dense[dense != 0].ravel(), name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(index.astype(np.int64), ""), dense.shape)


def _sparse_weight(*shape: int) -> np.ndarray:
    value = np.random.default_rng(7).standard_normal(shape).astype(np.float32)
    value[np.random.default_rng(8).random(shape) < 0.6] = 0
    return value


@pattern("a.w:1")
def sparse_constant_node() -> ModelProto:
    g = Net()
    x = g.Relu(g.linear(g.x("N", 7), "a", 7, 12))
    g.nodes.append(
        helper.make_node("Constant", [], ["sw"], name="sw", sparse_value=_sparse("", _sparse_weight(12, 9), True))
    )
    x = g.Relu(g.MatMul(x, "sw"))
    g.out(g.linear(x, "o", 9, 3))
    return g.model()


@pattern("a.w:1", checker=False)
def sparse_initializer() -> ModelProto:
    """onnx's own shape inference does not know these, so the full check is off."""
    g = Net()
    x = g.Relu(g.linear(g.x("N", 7), "a", 7, 12))
    g.sparse.append(_sparse("sw", _sparse_weight(12, 9), False))
    x = g.Relu(g.MatMul(x, "sw"))
    g.out(g.linear(x, "o", 9, 3), dtype=F32, shape=["N", 3])
    return g.model()


@pattern(TWO, tolerance=2e-2)
def half_precision() -> ModelProto:
    """fp16 sums of a dozen terms: 2e-2 of the maximum."""
    g = Net(F16)
    return _two_convs(g, g.x("N", 3, 6, 6))


@pattern("a.w:1 b.w:0,1", tolerance=5e-2)
def bfloat16_linear() -> ModelProto:
    """bf16 weights cast to fp32 where they are used; inputs are fp32."""
    g = Net()
    x = g.x("N", 7)
    for n, i, o in (("a", 7, 12), ("b", 12, 10), ("c", 10, 3)):
        w = g.Cast(g.w(f"{n}.w", i, o, scale=i**-0.5, dtype=BF16), to=F32)
        x = g.Tanh(g.MatMul(x, w))
    g.out(x)
    return g.model()


@pattern("a.w:1 b.w:0,1", tolerance=1e-9)
def double_precision() -> ModelProto:
    g = Net(F64)
    x = g.Tanh(g.linear(g.x("N", 7), "a", 7, 12))
    g.out(g.linear(g.Tanh(g.linear(x, "b", 12, 10)), "c", 10, 3))
    return g.model()


@pattern("a.w:1 b.w:0,1", tolerance=2e-2)
def mixed_precision_casts() -> ModelProto:
    """fp32 interface, fp16 inside."""
    g = Net()
    x = g.Cast(g.x("N", 7), to=F16)
    g.dtype = F16
    x = g.Relu(g.linear(x, "a", 7, 12))
    x = g.Relu(g.linear(x, "b", 12, 10))
    x = g.linear(x, "c", 10, 3)
    g.dtype = F32
    g.out(g.Cast(x, to=F32))
    return g.model()


@pattern("a.w:0 b.w:0,1 c.w:1", frozen="a.w:1 c.w:0")
def transposed_weights() -> ModelProto:
    """nn.Linear as Transpose of [out, in] and MatMul."""
    g = Net()
    x = g.x("N", 5, 7)
    for n, i, o in (("a", 7, 12), ("b", 12, 10), ("c", 10, 3)):
        w = g.t(g.w(f"{n}.w", o, i), 1, 0)
        x = g.Add(g.MatMul(x, w), g.w(f"{n}.b", o))
        x = x if n == "c" else g.Relu(x)
    g.out(x)
    return g.model()


@pattern("a.w:1 b.w:0,1", widths={"b.w:0": 6})
def reshaped_and_squeezed_weights() -> ModelProto:
    """1x1 kernels stored as matrices, biases stored as [1, C, 1, 1], and the reverse."""
    g = Net()
    x = g.x("N", 3, 6, 6)
    w = g.Unsqueeze(g.t(g.w("a.w", 3, 12), 1, 0), g.c([2, 3]))
    x = g.Relu(g.Add(g.Conv(x, w), g.w("a.b", 1, 12, 1, 1)))
    w = g.reshape(g.w("b.w", 12, 10), 12, 10)
    x = g.Relu(g.MatMul(g.t(x, 0, 2, 3, 1), w))
    x = g.ReduceMean(x, g.c([1, 2]), keepdims=0)
    g.out(g.MatMul(x, g.Squeeze(g.w("fc", 10, 3, 1, 1, scale=0.3), g.c([2, 3]))))
    return g.model()


@pattern("a.w:0 v:0 gain:0 c.w:0,1")
def weight_norm() -> ModelProto:
    """g * v / ||v|| as arithmetic on constants."""
    g = Net()
    x = g.cbr(g.x("N", 3, 6, 6), "a", 8, 3)
    v = g.w("v", 12, 8, 3, 3)
    norm = g.Sqrt(g.ReduceSum(g.Mul(v, v), g.c([1, 2, 3])))
    w = g.Mul(v, g.Div(g.w("gain", 12, 1, 1, 1, shift=1), norm))
    x = g.Relu(g.Conv(x, w, pads=[1] * 4))
    g.head(g.cbr(x, "c", 10, 12), 10)
    return g.model()


@pattern("a.w:0 b.w:0,1 fc.w:1")
def kernel_from_split_constant() -> ModelProto:
    """Two kernels stored as one constant and split in the graph."""
    g = Net()
    x = g.cbr(g.x("N", 3, 6, 6), "a", 8, 3)
    w1, w2 = g.Split(g.w("b.w", 24, 8, 3, 3), g.c([12, 12]), axis=0, n=2)
    x = g.Add(g.Conv(x, w1, pads=[1] * 4), g.Relu(g.Conv(x, w2, pads=[1] * 4)))
    g.head(x, 12)
    return g.model()


@pattern("a.w:0 b.w:0 ta.w:1 tb.w:1 ba:0", widths={"a.w:0": 6})
def gemm_variants() -> ModelProto:
    """transA on a transposed activation, alpha, beta, C as a matrix row and a scalar, weight as A."""
    g = Net()
    x = g.x("N", 7)
    x = g.Relu(g.Gemm(x, g.w("a.w", 12, 7), g.w("ba", 12), transB=1, alpha=0.5, beta=2.0))
    x = g.Relu(g.Gemm(g.t(x, 1, 0), g.w("ta.w", 12, 10), g.w("bt", 1, 10), transA=1))
    x = g.Relu(g.Gemm(g.w("b.w", 9, 10), x, transB=1))  # [9, N]
    x = g.Relu(g.Gemm(x, g.w("tb.w", 9, 8), g.f(0.25), transA=1))
    g.out(g.Gemm(x, g.w("o.w", 8, 3)))
    return g.model()


@pattern("left:0 m2:0,1")
def matmul_constant_on_the_left() -> ModelProto:
    """W x with features first."""
    g = Net()
    x = g.x("N", 7, 5)
    x = g.Relu(g.Add(g.MatMul(g.w("left", 12, 7), x), g.w("lb", 12, 1)))
    x = g.Relu(g.MatMul(g.w("m2", 10, 12), x))
    g.out(g.MatMul(g.w("o", 3, 10), x))
    return g.model()


@pattern("a.w:1 v:0")
def matmul_with_vectors() -> ModelProto:
    """1-d right-hand side: one score per row."""
    g = Net()
    x = g.Tanh(g.linear(g.x("N", 5, 7), "a", 7, 12))
    s = g.Softmax(g.MatMul(x, g.w("v", 12, scale=0.5)), axis=-1)
    g.out(g.linear(g.ReduceSum(g.Mul(x, g.Unsqueeze(s, g.c([2]))), g.c([1]), keepdims=0), "o", 12, 3))
    return g.model()


@pattern("w1:1 w2:0,1 w3:0")
def einsum_linear_layers() -> ModelProto:
    g = Net()
    x = g.x("N", 5, 7)
    x = g.Relu(g.Einsum(x, g.w("w1", 7, 12), equation="bti,ij->btj"))
    x = g.Relu(g.Einsum(g.w("w2", 12, 10), x, equation="ij,...i->...j"))
    g.out(g.Einsum(x, g.w("w3", 10, 3), equation="btj,jk->bk"))
    return g.model()


@pattern("U:0 V:0 d:0")
def bilinear_and_diagonal_einsum() -> ModelProto:
    """Factorised bilinear form and an elementwise product written as einsum."""
    g = Net()
    x, z = g.x("N", 7), g.x("N", 5, name="z")
    u = g.Einsum(x, g.w("U", 12, 7), equation="bi,ri->br")
    v = g.Einsum(z, g.w("V", 12, 5), equation="bi,ri->br")
    p = g.Einsum(u, v, g.w("d", 12, shift=1), equation="br,br,r->br")
    g.out(g.linear(p, "o", 12, 3))
    return g.model()


@pattern("w:0 b.w:0 c.w:0", frozen="w:1")
def shared_conv_weights_with_transposed_use() -> ModelProto:
    """A tied autoencoder: the encoder's kernel is the decoder's ConvTranspose kernel."""
    g = Net()
    w = g.w("w", 12, 3, 3, 3)
    x = g.Relu(g.Conv(g.x("N", 3, 6, 6), w, g.w("eb", 12), pads=[1] * 4))
    x = g.cbr(x, "b", 10, 12)
    x = g.cbr(x, "c", 12, 10)
    g.out(g.ConvTranspose(x, w, pads=[1] * 4))
    return g.model()


@pattern("w:0,1 fc.w:1", widths={"w:0": 4})
def one_kernel_applied_recurrently() -> ModelProto:
    """The same square convolution three times: input and output channels tie."""
    g = Net()
    x = g.conv(g.x("N", 3, 6, 6), "a", 8, 3)
    w = g.w("w", 8, 8, 3, 3, scale=0.1)
    for _ in range(3):
        x = g.Relu(g.Conv(x, w, pads=[1] * 4))
    g.head(x, 8)
    return g.model()


@pattern("a.w:1 table:1")
def hypernetwork_scale_and_shift() -> ModelProto:
    """FiLM: one layer gives scale and shift halves for another's channels."""
    g = Net()
    x = g.conv(g.x("N", 3, 6, 6), "c", 12, 3)
    z = g.Gather(g.w("table", 9, 8, scale=1), g.x("N", name="label", dtype=7))
    z = g.linear(g.Relu(g.linear(z, "a", 8, 10)), "f", 10, 24)
    s, h = (g.Unsqueeze(v, g.c([2, 3])) for v in g.split(z, 12, 12))
    x = g.Relu(g.Add(g.Mul(x, g.Add(s, g.f(1))), h))
    g.head(g.cbr(x, "b", 10, 12), 10)
    return g.model()


@pattern("a.w:1 b.w:0", widths={"a.w:1": 3})
def tiny_and_odd_widths() -> ModelProto:
    """Widths 6, 1 (stays), 7 (3 or 4 stay) and 2."""
    g = Net()
    x = g.Relu(g.linear(g.x("N", 5), "a", 5, 6))
    x = g.Relu(g.linear(x, "b", 6, 1))
    x = g.Relu(g.linear(x, "c", 1, 7))
    x = g.linear(x, "d", 7, 2)
    g.out(g.linear(g.Tanh(x), "e", 2, 3))
    return g.model()


@pattern(nothing=True)
def nothing_prunable_single_layer() -> ModelProto:
    g = Net()
    g.out(g.linear(g.x("N", 5), "o", 5, 3))
    return g.model()


@pattern(nothing=True)
def no_weights_at_all() -> ModelProto:
    g = Net()
    g.out(g.Relu(g.Add(g.x("N", 5), g.f(1))))
    return g.model()


@pattern("b.w:1 o.w:0", frozen="a.w:1 b.w:0")
def operator_without_a_rule() -> ModelProto:
    """Something runs it, nobody knows it: it freezes what it touches and nothing else."""
    g = Net()
    x = g.linear(g.x("N", 7), "a", 7, 8)
    x = g.op("Scaler", x, domain="ai.onnx.ml", offset=[0.1] * 8, scale=[0.5] * 8)
    known = helper.make_tensor_value_info(x, F32, ["N", 8])
    g.out(g.linear(g.Relu(g.linear(x, "b", 8, 12)), "o", 12, 3), dtype=F32, shape=["N", 3])
    m = g.model()
    m.graph.value_info.append(known)
    return m


def unknown_custom_operator() -> ModelProto:
    """No runtime knows this one, so no cut can be proved: a clear refusal, and `inspect` says what froze."""
    g = Net()
    x = g.cbr(g.x("N", 3, 6, 6), "a", 8, 3)
    x = g.op("Wobble", x, domain="com.example", strength=3)
    g.head(g.Relu(g.conv(x, "b", 12, 8)), 12, dtype=F32, shape=["N", 5])
    m = g.model()
    m.graph.value_info.append(helper.make_tensor_value_info(m.graph.node[3].output[0], F32, ["N", 8, 6, 6]))
    return m
