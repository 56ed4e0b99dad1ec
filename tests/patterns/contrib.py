"""com.microsoft operators that ONNX Runtime runs on a CPU; onnx.checker lets unknown domains pass."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto

from tests.patterns.build import F32, I8, I32, I64, U8, Net, pattern

D, H, K = 16, 4, 6
SEQ = {"T": (5, 8)}
STEP = 2e-2


def _done(g: Net, x: str, width: int, *shape: int | str) -> ModelProto:
    g.out(g.linear(x, "o", width, 3), dtype=F32, shape=[*(shape or ("N", "T")), 3])
    return g.model()


@pattern("w:1 b:0 o.w:0", families=True, dims=SEQ, widths={"w:1": 36, "o.w:0": 12})
def ms_attention() -> ModelProto:
    g = Net()
    y = g.ms("Attention", g.x("N", "T", D), g.w("w", D, 3 * H * K, scale=0.25), g.w("b", 3 * H * K), num_heads=H)
    return _done(g, y, H * K)


@pattern("w:1 o.w:0 h.w:1", dims=SEQ, families=True)
def ms_attention_uneven_sizes_and_mask() -> ModelProto:
    """qkv_hidden_sizes with wider values, a raw mask from an input, explicit scale, a prunable input width."""
    g = Net()
    x = g.Relu(g.linear(g.x("N", "T", 7), "h", 7, D))
    m = g.x("N", "T", name="mask", dtype=I32)
    q, v = H * 4, H * K
    y = g.ms(
        "Attention", x, g.w("w", D, 2 * q + v, scale=0.25), g.w("b", 2 * q + v), m,
        num_heads=H, qkv_hidden_sizes=[q, q, v], scale=0.4,
    )  # fmt: skip
    return _done(g, y, v)


@pattern("q.w:1 k.w:1 v.w:1 o.w:0", families=True, dims=SEQ, widths={"q.w:1": 12, "o.w:0": 12})
def ms_multi_head_attention() -> ModelProto:
    g = Net()
    x = g.x("N", "T", D)
    q, k, v = (g.linear(x, n, D, H * K, bias=False) for n in "qkv")
    return _done(g, g.ms("MultiHeadAttention", q, k, v, g.w("bias", 3 * H * K), num_heads=H), H * K)


@pattern("q.w:1 k.w:1 v.w:1 o.w:0", families=True, dims={"T": (4, 6)})
def ms_group_query_attention() -> ModelProto:
    """Two key-value heads for four query heads, no past, internal rotary off; lengths as inputs of the graph."""
    g = Net()
    x = g.x("N", "T", D)
    q = g.linear(x, "q", D, 32, bias=False)
    k, v = (g.linear(x, n, D, 16, bias=False) for n in "kv")
    shape = g.Shape(x)
    batch, time = g.Gather(shape, g.c([0])), g.Gather(shape, g.c(1))
    total = g.Cast(time, to=I32)
    last = g.Expand(g.Sub(total, g.c(1, np.int32)), batch)
    y, _, _ = g.ms("GroupQueryAttention", q, k, v, None, None, last, total, num_heads=4, kv_num_heads=2, n=3)
    return _done(g, y, 32)


@pattern("q.w:1 k.w:1 v.w:1 o.w:0", families=True)
def ms_rotary_embedding() -> ModelProto:
    """Rotation of [N, H, T, K] by cached cosines whose width is half of K."""
    g = Net()
    x = g.x("N", 5, D)
    angle = np.arange(8)[:, None] / 100 ** (np.arange(K // 2)[None] / (K // 2))
    cos, sin = g.f(np.cos(angle), "cos"), g.f(np.sin(angle), "sin")
    q, k, v = (g.t(g.reshape(g.linear(x, n, D, H * K), 0, -1, H, K), 0, 2, 1, 3) for n in "qkv")
    q, k = (g.ms("RotaryEmbedding", p, g.c([0]), cos, sin) for p in (q, k))
    s = g.Softmax(g.Mul(g.MatMul(q, g.t(k, 0, 1, 3, 2)), g.f(K**-0.5)), axis=-1)
    y = g.reshape(g.t(g.MatMul(s, v), 0, 2, 1, 3), 0, -1, H * K)
    return _done(g, y, H * K, "N", 5)


@pattern("m1.w:1 m2.w:0", inexact_cut="e.w:1 sg:0 m1.w:0", dims=SEQ)
def ms_skip_layer_norm() -> ModelProto:
    """Residual, bias and LayerNormalization in one, with the sum as a fourth output; fused GELUs."""
    g = Net()
    x = g.linear(g.x("N", "T", 7), "e", 7, D)
    y = g.linear(x, "s", D, D, bias=False)
    n, _, _, total = g.ms(
        "SkipLayerNormalization", x, y, g.w("sg", D, shift=1), g.w("sb", D), g.w("bias", D), out=["n", "", "", "total"]
    )
    h = g.ms("BiasGelu", g.linear(n, "m1", D, 22, bias=False), g.w("m1.b", 22))
    h = g.linear(h, "m2", 22, D)
    z = g.ms("SkipSimplifiedLayerNormalization", total, h, g.w("tg", D, shift=1))
    return _done(g, g.ms("FastGelu", z, g.w("fb", D)), D)


@pattern("m1.w:1 m2.w:0", dims=SEQ, inexact=True)
def ms_embed_layer_norm() -> ModelProto:
    g = Net()
    ids, seg = g.x("N", "T", name="ids", dtype=I32), g.x("N", "T", name="seg", dtype=I32)
    x, _ = g.ms(
        "EmbedLayerNormalization", ids, seg, g.w("word", 30, D, scale=1), g.w("posn", 20, D, scale=1),
        g.w("kind", 2, D, scale=1), g.w("sg", D, shift=1), g.w("sb", D), n=2,
    )  # fmt: skip
    h = g.ms("QuickGelu", g.linear(x, "m1", D, 22))
    return _done(g, g.linear(h, "m2", 22, 10), 10)


@pattern("a:0 b:0,1 c:0", widths={"a:0": 6})
def ms_fused_conv() -> ModelProto:
    """Convolution with activation, and with the residual sum as a fourth input."""
    g = Net()
    x = g.x("N", 3, 6, 6)
    x = g.ms("FusedConv", x, g.w("a", 12, 3, 3, 3), g.w("ab", 12), activation="Relu", pads=[1] * 4)
    y = g.ms("FusedConv", x, g.w("b", 10, 12, 3, 3), activation="LeakyRelu", activation_params=[0.1], pads=[1] * 4)
    x = g.ms("FusedConv", y, g.w("c", 12, 10, 3, 3), g.w("cb", 12), x, activation="Relu", pads=[1] * 4)
    g.head(x, 12, dtype=F32, shape=["N", 5])
    return g.model()


@pattern("a:0 b:1 c:0", dims=SEQ)
def ms_fused_matmul_and_gemm() -> ModelProto:
    """FusedMatMul with transB, alpha, and transBatch unused; FusedGemm with an activation."""
    g = Net()
    x = g.ms("FusedMatMul", g.x("N", 7), g.w("a", 12, 7), transB=1, alpha=0.7)
    x = g.ms("Gelu", g.ms("FusedMatMul", x, g.w("b", 12, 10)))
    x = g.ms("FusedGemm", x, g.w("c", 14, 10), g.w("cb", 14), transB=1, activation="Relu")
    g.out(g.linear(x, "o", 14, 3), dtype=F32, shape=["N", 3])
    return g.model()


@pattern("a:1 b:0", dims=SEQ, tolerance=STEP)
def ms_dynamic_quantize_matmul() -> ModelProto:
    """int8 weights, per column scales, float activations; one step of 1/255 may round differently."""
    g = Net()
    x = g.x("N", "T", 7)
    x = g.ms(
        "DynamicQuantizeMatMul", x, g.q("a", 7, 12), g.positive("as", 12, low=0.004, high=0.01), None, g.w("ab", 12)
    )
    x = g.ms("DynamicQuantizeMatMul", g.Relu(x), g.q("b", 12, 10), g.f(0.008), g.c(1, np.int8))
    return _done(g, g.Relu(x), 10)


@pattern("a:1 o.w:0", dims=SEQ, tolerance=STEP)
def ms_matmul_integer_to_float() -> ModelProto:
    g = Net()
    q, s, z = g.DynamicQuantizeLinear(g.x("N", "T", 7), n=3)
    x = g.ms("MatMulIntegerToFloat", q, g.q("a", 7, 12), s, g.f(0.01), z, g.c(0, np.int8), g.w("ab", 12))
    return _done(g, g.Relu(x), 12)


@pattern("w:1 o.w:0", families=True, dims=SEQ, tolerance=STEP)
def ms_qattention() -> ModelProto:
    g = Net()
    q, s, z = g.DynamicQuantizeLinear(g.x("N", "T", D), n=3)
    y = g.ms(
        "QAttention", q, g.q("w", D, 3 * H * K, low=-40, high=40), g.w("b", 3 * H * K), s, g.f(0.01), None, z,
        g.c(0, np.int8), num_heads=H,
    )  # fmt: skip
    return _done(g, y, H * K)


@pattern("a:0 b:0,1", tolerance=STEP)
def ms_qlinear_chain() -> ModelProto:
    """QLinearConv, QLinearLeakyRelu, QLinearAdd, QLinearConcat, QLinearGlobalAveragePool, QGemm: all uint8."""
    g = Net()
    s, z = g.f(0.03), g.c(100, np.uint8)
    x = g.QuantizeLinear(g.x("N", 3, 6, 6), s, z)

    def conv(x: str, n: str, o: int, i: int) -> str:
        return g.QLinearConv(x, s, z, g.q(n, o, i, 3, 3), g.f(0.006), g.c(0, np.int8), s, z, pads=[1] * 4)

    x = conv(x, "a", 12, 3)
    y = g.ms("QLinearLeakyRelu", conv(x, "b", 12, 12), s, z, s, z, alpha=0.1)
    t = g.ms("QLinearAdd", x, s, z, y, s, z, s, z)
    y = conv(t, "c", 8, 12)
    x = g.ms("QLinearConcat", s, z, t, s, z, y, s, z, axis=1)
    x = g.Flatten(g.ms("QLinearGlobalAveragePool", x, s, z, s, z, channels_last=0))
    x = g.ms("QGemm", x, s, z, g.q("d", 20, 4), g.f(0.01), g.c(0, np.int8), None, s, z)
    g.out(x, dtype=U8, shape=["N", 4])
    return g.model()


@pattern("a.w:0", dims={"N": (2, 3)})
def ms_matmul_nbits() -> ModelProto:
    """4-bit packed weights: the contracted axis is packed in blocks and stays; the net before it shrinks."""
    g = Net()
    rng = np.random.default_rng(0)
    x = g.cbr(g.x("N", 3, 6, 6), "a", 10, 3)
    x = g.Flatten(g.GlobalAveragePool(g.Relu(g.conv(x, "b", 32, 10))))
    packed = g.c(rng.integers(0, 255, (12, 2, 8)), np.uint8, "packed")
    x = g.ms("MatMulNBits", x, packed, g.positive("scales", 24, low=0.01, high=0.02), K=32, N=12, bits=4, block_size=16)
    g.out(g.linear(g.Relu(x), "o", 12, 3), dtype=F32, shape=["N", 3])
    return g.model()


@pattern("h.w:1", dims={"N": (2, 3)})
def ms_mixture_of_experts() -> ModelProto:
    """Stacked expert weights inside one operator."""
    g = Net()
    x = g.linear(g.Relu(g.linear(g.x("N", 7), "h", 7, 12)), "u", 12, D)
    r = g.linear(x, "router", D, 3)
    x = g.ms(
        "MoE", x, r, g.w("fc1", 3, 20, D, scale=0.25), g.w("fc1b", 3, 20), g.w("fc2", 3, D, 20, scale=0.2),
        g.w("fc2b", 3, D), k=2, activation_type="relu",
    )  # fmt: skip
    g.out(g.linear(x, "o", D, 3), dtype=F32, shape=["N", 3])
    return g.model()


@pattern("a.w:0 b.w:0", dims={"N": (2, 3)})
def ms_odds_and_ends() -> ModelProto:
    """CDist between prunable feature widths, UnfoldTensor, Inverse."""
    g = Net()
    x = g.Relu(g.gemm(g.x("N", 7), "a", 7, 10))
    y = g.Relu(g.gemm(g.x("M", 5, name="z"), "b", 5, 10))
    g.out(g.ms("CDist", x, y, metric="sqeuclidean"), dtype=F32, shape=["N", "M"])
    return g.model()


@pattern("a.w:0", dims={"N": (2, 3)}, tolerance=STEP)
def ms_int8_output_of_fused() -> ModelProto:
    """int8 graph output after a prunable trunk."""
    g = Net()
    x = g.cbr(g.x("N", 3, 6, 6), "a", 10, 3)
    x = g.ms("QuickGelu", g.conv(x, "o", 4, 10), alpha=1.5)
    g.out(g.QuantizeLinear(x, g.f(0.05), g.c(0, np.int8)), dtype=I8, shape=["N", 4, 6, 6])
    return g.model()


@pattern("q.w:1 o.w:0 emb:1", dims=SEQ, families=True)
def ms_attention_with_positions() -> ModelProto:
    """MultiHeadAttention with an additive bias [1, H, T, T] computed from a per-head table."""
    g = Net()
    ids = g.x("N", 5, name="ids", dtype=I64)
    x = g.Gather(g.w("emb", 20, D, scale=1), ids)
    q, k, v = (g.linear(x, n, D, H * K) for n in "qkv")
    index = (np.arange(5)[:, None] - np.arange(5)[None] + 4).astype(np.int64)
    b = g.Unsqueeze(g.t(g.Gather(g.w("table", 9, H, scale=0.5), g.c(index), axis=0), 2, 0, 1), g.c([0]))
    y = g.ms("MultiHeadAttention", q, k, v, None, None, b, num_heads=H)
    return _done(g, y, H * K, "N", 5)
