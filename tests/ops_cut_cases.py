"""Tiny models around recurrent, attention, quantised and fused ops, with the widths a cut must leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from tests.patterns.build import F32, I32, I64, Net

D, H, K = 16, 4, 6
STEP = 2e-2  # quantised values may round differently by one step of 1/255
Widths = Mapping[str, int]


@dataclass(frozen=True)
class Case:
    """A model, and the widths it must have per grain: ``"tensor:axis" -> indices left``."""

    build: Callable[[], ModelProto]
    coarse: Widths
    fine: Widths | None = None
    tolerance: float = 1e-5
    exact: bool = True  # whether --exact cuts the same

    def __str__(self) -> str:
        return self.build.__name__


CASES: list[Case] = []


def case(
    coarse: Widths, fine: Widths | None = None, **kw: float
) -> Callable[[Callable[[], ModelProto]], Callable[[], ModelProto]]:
    def register(build: Callable[[], ModelProto]) -> Callable[[], ModelProto]:
        CASES.append(Case(build, coarse, fine, **kw))  # type: ignore[arg-type]
        return build

    return register


def done(g: Net, x: str, width: int, shape: tuple[int | str, ...] = ("N", 5), **kw: int) -> ModelProto:
    g.out(g.linear(x, "o", width, 3), dtype=F32, shape=[*shape, 3])
    return g.model(**kw)


# -- recurrent -------------------------------------------------------------------------------------------
def cell(g: Net, op: str, gates: int, x: str, *extra: str | None, n: int = 2, d: int = 1, **kw: object) -> tuple[str, ...]:
    w, r, b = g.w("W", d, gates * 8, 7, scale=0.4), g.w("R", d, gates * 8, 8, scale=0.4), g.w("B", d, 2 * gates * 8)
    outs: tuple[str, ...] = g.op(op, x, w, r, b, *extra, n=n, hidden_size=8, **kw)
    return outs


@case({"W:1": 16, "R:1": 16, "R:2": 4, "B:1": 32, "o.w:0": 4})
def lstm() -> ModelProto:
    g = Net()
    y, _, _ = cell(g, "LSTM", 4, g.x(5, "N", 7), n=3)
    return done(g, g.Squeeze(y, g.c([1])), 8, (5, "N"))


@case({"W:1": 16, "R:2": 4, "h0:2": 4, "c0:2": 4, "P:1": 12})
def lstm_states_and_peepholes() -> ModelProto:
    """Initial states that are not zero are masked and cut like weights."""
    g = Net()
    lens, h, c = g.x(2, name="lens", dtype=I32), g.w("h0", 1, 2, 8), g.w("c0", 1, 2, 8)
    _, y, _ = cell(g, "LSTM", 4, g.x(5, 2, 7), lens, h, c, g.w("P", 1, 24, scale=0.3), n=3)
    return done(g, g.Squeeze(y, g.c([0])), 8, (2,))


@case({"W:1": 12, "R:1": 12, "R:2": 4, "B:1": 24, "o.w:0": 8})
def gru_both_directions() -> ModelProto:
    """One hidden_size for both directions, whose results stand side by side."""
    g = Net()
    y, _ = cell(g, "GRU", 3, g.x(5, "N", 7), d=2, direction="bidirectional", linear_before_reset=1)
    return done(g, g.reshape(g.t(y, 0, 2, 1, 3), 0, -1, 16), 16, (5, "N"))


@case({"W:1": 4, "R:2": 4, "o.w:0": 4})
def rnn_sigmoid() -> ModelProto:
    """A dead unit rests at one half, but nobody reads it: its column of R and its row behind are gone."""
    g = Net()
    y, _ = cell(g, "RNN", 1, g.x(5, "N", 7), activations=["Sigmoid"])
    return done(g, g.Squeeze(y, g.c([1])), 8, (5, "N"))


# -- attention -------------------------------------------------------------------------------------------
HEADS = {"q.w:1": 12, "k.w:1": 12, "v.w:1": 12, "o.w:0": 12}


def qkv(g: Net, x: str, q: int = H * K, k: int = H * K, v: int = H * K) -> list[str]:
    return [g.linear(x, name, D, width) for name, width in zip("qkv", (q, k, v), strict=True)]


@case(HEADS, HEADS)
def attention_3d() -> ModelProto:
    g = Net()
    y = g.Attention(*qkv(g, g.x("N", 5, D)), q_num_heads=H, kv_num_heads=H, is_causal=1)
    return done(g, y, H * K, opset=23, ir=11)


@case(HEADS | {"mask:1": 2}, HEADS | {"mask:1": None})  # type: ignore[dict-item]
def attention_4d_with_mask_per_head() -> ModelProto:
    g = Net()
    q, k, v = (g.t(g.reshape(p, 0, -1, H, K), 0, 2, 1, 3) for p in qkv(g, g.x("N", 5, D)))
    y = g.Attention(q, k, v, g.w("mask", 1, H, 5, 5, scale=0.5))
    return done(g, g.reshape(g.t(y, 0, 2, 1, 3), 0, -1, H * K), H * K, opset=23, ir=11)


@case({"q.w:1": 12, "k.w:1": 6, "v.w:1": 8, "o.w:0": 16}, {"q.w:1": 12, "k.w:1": 6, "v.w:1": 8, "o.w:0": 16})
def attention_grouped_queries() -> ModelProto:
    """Four query heads on two key heads; values of another width."""
    g = Net()
    q, k, v = qkv(g, g.x("N", 5, D), H * K, 2 * K, 2 * 8)
    return done(g, g.Attention(q, k, v, q_num_heads=H, kv_num_heads=2), H * 8, opset=23, ir=11)


@case({"q.w:1": 16, "k.w:1": 16}, {"cos:2": 2, "sin:2": 2, "q.w:1": 16, "k.w:1": 16})
def rotary_3d() -> ModelProto:
    """Lanes go in pairs, with their columns of cosines and sines."""
    g = Net()
    q, k, v = qkv(g, g.x(2, 5, D), 32, 32, 32)
    c, s = g.w("cos", 2, 5, 4), g.w("sin", 2, 5, 4)
    q, k = (g.RotaryEmbedding(p, c, s, num_heads=H) for p in (q, k))
    return done(g, g.Attention(q, k, v, q_num_heads=H, kv_num_heads=H), 32, (2, 5), opset=23, ir=11)


@case({"q.w:1": 16, "k.w:1": 16}, {"cos:1": 2, "sin:1": 2, "q.w:1": 16, "k.w:1": 16})
def rotary_interleaved_of_runtime() -> ModelProto:
    """com.microsoft, [b, heads, s, lanes]: neighbouring lanes are a pair; heads are told by the cosines."""
    g = Net()
    ids, c, s = g.c([0]), g.w("cos", 8, 4), g.w("sin", 8, 4)
    q, k, v = (g.t(g.reshape(p, 0, -1, H, 8), 0, 2, 1, 3) for p in qkv(g, g.x("N", 5, D), 32, 32, 32))
    q, k = (g.ms("RotaryEmbedding", p, ids, c, s, interleaved=1) for p in (q, k))
    y = g.Attention(q, k, v, scale=0.3)
    return done(g, g.reshape(g.t(y, 0, 2, 1, 3), 0, -1, 32), 32, opset=23, ir=11)


@case({"w:1": 36, "b:0": 36, "o.w:0": 12}, {"w:1": 36, "b:0": 36, "o.w:0": 12})
def packed_attention() -> ModelProto:
    g = Net()
    y = g.ms("Attention", g.x("N", 5, D), g.w("w", D, 3 * H * K, scale=0.25), g.w("b", 3 * H * K), num_heads=H)
    return done(g, y, H * K)


@case({"h.w:1": 8, "w:0": 8, "w:1": 28, "o.w:0": 12}, {"w:1": 28, "o.w:0": 12})
def packed_attention_uneven() -> ModelProto:
    """Values wider than keys, a bias a head, and an input that is cut as well."""
    g = Net()
    x = g.Relu(g.linear(g.x("N", 5, 7), "h", 7, D))
    q, v = H * 4, H * K
    y = g.ms("Attention", x, g.w("w", D, 2 * q + v, scale=0.25), g.w("b", 2 * q + v), None, None,
             g.w("rel", 1, H, 5, 5), num_heads=H, qkv_hidden_sizes=[q, q, v])  # fmt: skip
    return done(g, y, v)


@case(HEADS | {"bias:0": 36}, HEADS | {"bias:0": 36})
def multi_head_attention() -> ModelProto:
    g = Net()
    q, k, v = qkv(g, g.x("N", 5, D))
    return done(g, g.ms("MultiHeadAttention", q, k, v, g.w("bias", 3 * H * K), num_heads=H), H * K)


@case({"q.w:1": 16, "k.w:1": 8, "v.w:1": 8, "o.w:0": 16})
def group_query_attention() -> ModelProto:
    g = Net()
    last, total = g.c([4, 4], np.int32), g.c(5, np.int32)
    q, k, v = qkv(g, g.x(2, 5, D), 32, 16, 16)
    y, _, _ = g.ms("GroupQueryAttention", q, k, v, None, None, last, total, num_heads=4, kv_num_heads=2, n=3)
    return done(g, y, 32, (2, 5))


@case({"e.w:1": 8, "gamma:0": 8, "bias:0": 8, "o.w:0": 8}, exact=False)
def skip_layer_norm() -> ModelProto:
    g = Net()
    x = g.x("N", 5, 7)
    a, b = g.linear(x, "e", 7, D), g.linear(x, "f", 7, D)
    n, _, _, total = g.ms("SkipLayerNormalization", a, b, g.w("gamma", D, shift=1), g.w("beta", D), g.w("bias", D),
                          out=["n", "", "", "total"])  # fmt: skip
    n = g.ms("SkipSimplifiedLayerNormalization", n, total, g.w("delta", D, shift=1))
    return done(g, n, D)


@case({"word:1": 8, "place:1": 8, "gamma:0": 8, "o.w:0": 8}, exact=False)
def embed_layer_norm() -> ModelProto:
    g = Net()
    ids = g.x("N", 5, name="ids", dtype=I32)
    x, _ = g.ms("EmbedLayerNormalization", ids, None, g.w("word", 30, D, scale=1), g.w("place", 20, D, scale=1), None,
                g.w("gamma", D, shift=1), g.w("beta", D), n=2)  # fmt: skip
    return done(g, x, D)


# -- quantised -------------------------------------------------------------------------------------------
def _scales(g: Net, name: str, *shape: int) -> str:
    return g.positive(name, *shape, low=0.004, high=0.01)


@case({"a:0": 6, "a.scale:0": 6, "a.zero:0": 6, "b:1": 6})
def weights_per_channel() -> ModelProto:
    g = Net()
    w = g.DequantizeLinear(g.q("a", 12, 3, 3, 3), _scales(g, "a.scale", 12), g.q("a.zero", 12, low=-9, high=9), axis=0)
    x = g.Relu(g.Conv(g.x("N", 3, 6, 6), w))
    x = g.Conv(x, g.DequantizeLinear(g.q("b", 4, 12, 1, 1), g.f(0.01), g.c(3, np.int8)))
    g.out(x)
    return g.model()


@case({"a:1": 5, "a.scale:1": 5, "o.w:0": 5})
def weights_in_blocks() -> ModelProto:
    """The blocked axis stays, the other one goes with its scales."""
    g = Net()
    x = g.Relu(g.linear(g.x("N", 7), "f", 7, 16))
    w = g.DequantizeLinear(g.q("a", 16, 10), _scales(g, "a.scale", 4, 10), axis=0, block_size=4)
    return done(g, g.Relu(g.MatMul(x, w)), 10, ("N",), opset=21, ir=10)


@case({"f.w:0": 6, "s:0": 6, "z:0": 6, "o.w:1": 6}, tolerance=STEP)
def activations_per_channel() -> ModelProto:
    g = Net()
    x = g.Relu(g.conv(g.x("N", 3, 6, 6), "f", 12, 3))
    s, z = g.positive("s", 12, low=0.01, high=0.03), g.q("z", 12, low=0, high=20, dtype=np.uint8)
    x = g.ms("DequantizeLinear", g.ms("QuantizeLinear", x, s, z, axis=1), s, z, axis=1)
    g.out(g.conv(x, "o", 4, 12), dtype=F32, shape=["N", 4, 6, 6])
    return g.model()


@case({"table:1": 6, "o.w:0": 6})
def quantised_table() -> ModelProto:
    """A removed column of a table read before it is dequantised holds its zero point, not 0."""
    g = Net()
    x = g.Gather(g.q("table", 30, 12, low=0, high=255, dtype=np.uint8), g.x("N", 5, name="ids", dtype=I64))
    return done(g, g.DequantizeLinear(x, g.f(0.01), g.c(128, np.uint8)), 12)


@case({"a:0": 6, "a.scale:0": 6, "a.zero:0": 6, "a.bias:0": 6, "b:1": 6}, tolerance=STEP)
def qlinear_conv() -> ModelProto:
    g = Net()
    s, z = g.f(0.03), g.c(100, np.uint8)
    x = g.QuantizeLinear(g.x("N", 3, 6, 6), s, z)
    zeros = g.c(np.zeros(12), np.int8, "a.zero")
    x = g.QLinearConv(x, s, z, g.q("a", 12, 3, 3, 3), _scales(g, "a.scale", 12), zeros, s, z,
                      g.q("a.bias", 12, low=-900, high=900, dtype=np.int32))  # fmt: skip
    x = g.QLinearConv(x, s, z, g.q("b", 4, 12, 1, 1), g.f(0.01), g.c(0, np.int8), s, z)
    g.out(g.DequantizeLinear(x, s, z))
    return g.model()


@case({"a:1": 6, "a.scale:0": 6, "a.zero:0": 6, "b:0": 6}, tolerance=STEP)
def qlinear_matmul() -> ModelProto:
    g = Net()
    s, z = g.f(0.03), g.c(128, np.uint8)
    x = g.QuantizeLinear(g.x("N", 7), s, z)
    zeros = g.q("a.zero", 12, low=-5, high=5)
    x = g.QLinearMatMul(x, s, z, g.q("a", 7, 12), _scales(g, "a.scale", 12), zeros, s, z)
    x = g.QLinearMatMul(x, s, z, g.q("b", 12, 4), g.f(0.01), g.c(3, np.int8), s, z)
    g.out(g.DequantizeLinear(x, s, z))
    return g.model()


@case({"a:0": 6, "b:1": 6}, tolerance=STEP)
def conv_integer() -> ModelProto:
    g = Net()
    x = g.x("N", 3, 6, 6)
    for name, i, o in (("a", 3, 12), ("b", 12, 4)):
        q, s, z = g.DynamicQuantizeLinear(x, n=3)
        y = g.ConvInteger(q, g.q(name, o, i, 3, 3, dtype=np.uint8, low=60, high=200), z, g.c(128, np.uint8))
        x = g.Relu(g.Mul(g.Cast(y, to=F32), g.Mul(s, g.f(0.004))))
    g.out(x)
    return g.model()


@case({"a:1": 6, "a.zero:0": 6, "b:0": 6}, tolerance=STEP)
def matmul_integer() -> ModelProto:
    g = Net()
    x = g.x("N", 5, 7)
    for name, i, o in (("a", 7, 12), ("b", 12, 4)):
        q, s, z = g.DynamicQuantizeLinear(x, n=3)
        zero = g.q("a.zero", 12, low=-4, high=4) if name == "a" else g.c(2, np.int8)
        x = g.Relu(g.Mul(g.Cast(g.MatMulInteger(q, g.q(name, i, o), z, zero), to=F32), g.Mul(s, g.f(0.008))))
    g.out(x)
    return g.model()


@case({"a:1": 6, "a.scale:0": 6, "a.bias:0": 6, "b:0": 6}, tolerance=STEP)
def dynamic_quantize_matmul() -> ModelProto:
    g = Net()
    x = g.ms("DynamicQuantizeMatMul", g.x("N", 5, 7), g.q("a", 7, 12), _scales(g, "a.scale", 12), None, g.w("a.bias", 12))
    x = g.ms("DynamicQuantizeMatMul", g.Relu(x), g.q("b", 12, 10), g.f(0.008), g.c(1, np.int8))
    return done(g, g.Relu(x), 10)


@case({"a:1": 6, "a.scale:0": 6, "a.bias:0": 6, "o.w:0": 6}, tolerance=STEP)
def matmul_integer_to_float() -> ModelProto:
    g = Net()
    q, s, z = g.DynamicQuantizeLinear(g.x("N", 5, 7), n=3)
    scale = _scales(g, "a.scale", 12)
    x = g.ms("MatMulIntegerToFloat", q, g.q("a", 7, 12), s, scale, z, g.c(2, np.int8), g.w("a.bias", 12))
    return done(g, g.Relu(x), 12)


@case({"w:1": 36, "b:0": 36, "s:0": 36, "o.w:0": 12}, {"w:1": 36, "o.w:0": 12})
def quantised_attention() -> ModelProto:
    g = Net()
    q, s, z = g.DynamicQuantizeLinear(g.x("N", 5, D), n=3)
    # Weights lie around their zero points, so that the softmax is not saturated and shows what removed lanes hold.
    scales = g.positive("s", 3 * H * K, low=0.002, high=0.004)
    y = g.ms("QAttention", q, g.q("w", D, 3 * H * K, low=-10, high=110), g.w("b", 3 * H * K), s, scales, None, z,
             g.q("zero", 3 * H * K, low=40, high=60), num_heads=H)  # fmt: skip
    return done(g, y, H * K)


@case({"a:0": 6, "c:0": 4, "c:1": 6, "d:0": 10, "shift:1": 6}, tolerance=STEP)
def qlinear_chain() -> ModelProto:
    """Sum with a constant, product, activation, global pool, concatenation and Gemm, all on uint8."""
    g = Net()
    s, z = g.f(0.03), g.c(100, np.uint8)
    x = g.QuantizeLinear(g.x("N", 3, 6, 6), s, z)

    def conv(x: str, name: str, o: int, i: int) -> str:
        w = g.q(name, o, i, 3, 3)
        y: str = g.QLinearConv(x, s, z, w, g.f(0.006), g.c(0, np.int8), s, z, pads=[1] * 4)
        return y

    shift = g.q("shift", 1, 12, 1, 1, low=90, high=120, dtype=np.uint8)
    x = g.ms("QLinearAdd", conv(x, "a", 12, 3), s, z, shift, s, z, s, z)
    x = g.ms("QLinearMul", x, s, z, g.ms("QLinearLeakyRelu", x, s, z, s, z, alpha=0.1), s, z, s, z)
    x = g.ms("QLinearConcat", s, z, x, s, z, conv(x, "c", 8, 12), s, z, axis=1)
    x = g.Flatten(g.ms("QLinearGlobalAveragePool", x, s, z, s, z, channels_last=0))
    x = g.ms("QGemm", x, s, z, g.q("d", 20, 4), g.f(0.01), g.c(0, np.int8), None, s, z)
    g.out(g.DequantizeLinear(x, s, z), dtype=F32, shape=["N", 4])
    return g.model()


@case({"a:0": 6, "a.scale:0": 6, "a.zero:0": 6, "a.bias:0": 6, "o.w:0": 6}, tolerance=STEP)
def qgemm_transposed() -> ModelProto:
    """Weights [out, in] with zero points a row, a result that is not quantised again, and a sigmoid beside."""
    g = Net()
    s, z = g.f(0.03), g.c(128, np.uint8)
    x = g.QuantizeLinear(g.x("N", 7), s, z)
    x = g.ms("QLinearSigmoid", x, s, z, g.f(1 / 256), g.c(0, np.uint8))
    bias = g.q("a.bias", 12, low=-900, high=900, dtype=np.int32)
    x = g.ms("QGemm", x, g.f(1 / 256), g.c(0, np.uint8), g.q("a", 12, 7), _scales(g, "a.scale", 12),
             g.q("a.zero", 12, low=-5, high=5), bias, transB=1)  # fmt: skip
    return done(g, x, 12, ("N",))


@case({"packed:0": 6, "scales:0": 12, "bias:0": 6, "o.w:0": 6})
def matmul_nbits() -> ModelProto:
    """Columns go, the packed axis stays."""
    g = Net()
    rng = np.random.default_rng(0)
    x = g.Relu(g.linear(g.x("N", 7), "f", 7, 32))
    packed = g.c(rng.integers(0, 255, (12, 2, 8)), np.uint8, "packed")
    x = g.ms("MatMulNBits", x, packed, g.positive("scales", 24, low=0.01, high=0.02), None, None, g.w("bias", 12),
             K=32, N=12, bits=4, block_size=16)  # fmt: skip
    return done(g, g.Relu(x), 12, ("N",))


# -- fused -----------------------------------------------------------------------------------------------
@case({"a:0": 6, "a.bias:0": 6, "b:0": 5, "b:1": 6, "c:0": 6, "c:1": 5})
def fused_conv() -> ModelProto:
    """With an activation, and with the residual sum as a fourth input."""
    g = Net()
    x = g.ms("FusedConv", g.x("N", 3, 6, 6), g.w("a", 12, 3, 3, 3), g.w("a.bias", 12), activation="Relu", pads=[1] * 4)
    y = g.ms("FusedConv", x, g.w("b", 10, 12, 3, 3), activation="LeakyRelu", activation_params=[0.1], pads=[1] * 4)
    x = g.ms("FusedConv", y, g.w("c", 12, 10, 3, 3), g.w("c.bias", 12), x, activation="Relu", pads=[1] * 4)
    g.head(x, 12, dtype=F32, shape=["N", 5])
    return g.model()


@case({"a.w:1": 6, "b.w:1": 6})
def distances() -> ModelProto:
    g = Net()
    a = g.Relu(g.linear(g.x("N", 7), "a", 7, 12))
    b = g.Relu(g.linear(g.x(6, 5, name="z"), "b", 5, 12))
    g.out(g.ms("CDist", a, b, metric="sqeuclidean"), dtype=F32, shape=["N", 6])
    return g.model()
