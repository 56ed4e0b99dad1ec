"""Attention, in the spellings that exporters and authors use.  No normalisation: every cut here is exact."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto

from tests.patterns.build import BOOL, I64, Net, pattern

D, H, K = 16, 4, 6  # model width, heads, lanes per head
SEQ = {"T": (5, 8)}
FAMILIES = {"families": True, "dims": SEQ}
QKVO = "q.w:1 q.b:0 k.w:1 v.w:1 o.w:0"
HALF = {"q.w:1": 12, "o.w:0": 12}


def _heads(g: Net, x: str, h: int = H, k: int = K) -> str:
    return g.t(g.reshape(x, 0, -1, h, k), 0, 2, 1, 3)


def _sdpa(g: Net, q: str, k: str, v: str, scale: float = K**-0.5, mask: str | None = None) -> str:
    s = g.Mul(g.MatMul(q, g.t(k, 0, 1, 3, 2)), g.f(scale))
    if mask:
        s = g.Add(s, mask)
    return g.MatMul(g.Softmax(s, axis=-1), v)


def _merge(g: Net, x: str, width: int = H * K) -> str:
    return g.reshape(g.t(x, 0, 2, 1, 3), 0, -1, width)


def _qkv(g: Net, x: str, context: str | None = None, d: int = D) -> list[str]:
    return [g.linear(x if n == "q" else context or x, n, d, H * K) for n in "qkv"]


def _finish(g: Net, y: str, width: int = H * K, **kw: int) -> ModelProto:
    g.out(g.linear(y, "o", width, 10))
    return g.model(**kw)


@pattern(QKVO, frozen="q.w:0 o.w:1", widths=HALF, **FAMILIES)
def mha_separate_projections() -> ModelProto:
    g = Net()
    x = g.x("N", "T", D)
    return _finish(g, _merge(g, _sdpa(g, *(_heads(g, p) for p in _qkv(g, x)))))


@pattern("qkv.w:1 qkv.b:0 o.w:0", widths={"qkv.w:1": 36, "o.w:0": 12}, **FAMILIES)
def mha_fused_split() -> ModelProto:
    g = Net()
    y = g.linear(g.x("N", "T", D), "qkv", D, 3 * H * K)
    q, k, v = (_heads(g, p) for p in g.split(y, H * K, H * K, H * K, axis=2))
    return _finish(g, _merge(g, _sdpa(g, q, k, v)))


@pattern("qkv.w:1 qkv.b:0 o.w:0", widths={"qkv.w:1": 36, "o.w:0": 12}, **FAMILIES)
def mha_fused_five_dims() -> ModelProto:
    """timm: Reshape to [B, T, 3, H, K], permute, three Gathers."""
    g = Net()
    y = g.linear(g.x("N", "T", D), "qkv", D, 3 * H * K)
    y = g.t(g.reshape(y, 0, -1, 3, H, K), 2, 0, 3, 1, 4)
    q, k, v = (g.Gather(y, g.c(i), axis=0) for i in range(3))
    return _finish(g, _merge(g, _sdpa(g, q, k, v)))


@pattern("qkv.w:1 o.w:0", **FAMILIES)
def mha_fused_per_head_chunks() -> ModelProto:
    """GPT-NeoX and BLOOM: [B, T, H, 3K], split into thirds within each head."""
    g = Net()
    y = g.linear(g.x("N", "T", D), "qkv", D, 3 * H * K)
    y = g.t(g.reshape(y, 0, -1, H, 3 * K), 0, 2, 1, 3)
    q, k, v = g.split(y, K, K, K, axis=3)
    return _finish(g, _merge(g, _sdpa(g, q, k, v)))


@pattern("wq:1 wk:1 wv:1 wo:0", families=True, dims=SEQ, widths={"wq:1": 2, "wo:0": 2})
def mha_einsum_per_head() -> ModelProto:
    g = Net()
    x = g.x("N", "T", D)
    q, k, v = (g.Einsum(x, g.w(f"w{n}", D, H, K, scale=0.25), equation="btd,dhk->bhtk") for n in "qkv")
    s = g.Softmax(g.Mul(g.Einsum(q, k, equation="bhtk,bhsk->bhts"), g.f(K**-0.5)), axis=-1)
    y = g.Einsum(s, v, equation="bhts,bhsk->bthk")
    g.out(g.Einsum(y, g.w("wo", H, K, 10, scale=0.25), equation="bthk,hkd->btd"))
    return g.model()


@pattern("q.w:1 k.w:1 v.w:1 o.w:0", widths={"q.w:1": 12, "k.w:1": 6}, **FAMILIES)
def gqa_expand_reshape() -> ModelProto:
    """Two key-value heads for four query heads: a kv head leaves with both of its query heads."""
    g = Net()
    x = g.x("N", "T", D)
    q = _heads(g, g.linear(x, "q", D, H * K))
    kv = []
    for n in "kv":
        y = _heads(g, g.linear(x, n, D, 2 * K), 2)
        shape = g.Shape(y)
        batch, time = g.Gather(shape, g.c([0])), g.Gather(shape, g.c([2]))
        y = g.Expand(g.Unsqueeze(y, g.c([2])), g.Concat(batch, g.c([2, 2]), time, g.c([K]), axis=0))
        kv.append(g.Reshape(y, g.Concat(batch, g.c([H]), time, g.c([K]), axis=0)))
    return _finish(g, _merge(g, _sdpa(g, q, *kv)))


@pattern("q.w:1 k.w:1 v.w:1 o.w:0", **FAMILIES)
def gqa_by_grouped_queries() -> ModelProto:
    """Queries viewed as [B, kv heads, group, T, K] against broadcast keys."""
    g = Net()
    x = g.x("N", "T", D)
    q = g.t(g.reshape(g.linear(x, "q", D, H * K), 0, -1, 2, 2, K), 0, 2, 3, 1, 4)
    k, v = (g.t(g.reshape(g.linear(x, n, D, 2 * K), 0, -1, 2, 1, K), 0, 2, 3, 1, 4) for n in "kv")
    s = g.Softmax(g.Mul(g.MatMul(q, g.t(k, 0, 1, 2, 4, 3)), g.f(K**-0.5)), axis=-1)
    y = g.t(g.MatMul(s, v), 0, 3, 1, 2, 4)
    return _finish(g, g.reshape(y, 0, -1, H * K))


@pattern("q.w:1 o.w:0", **FAMILIES)
def mqa_one_kv_head() -> ModelProto:
    g = Net()
    x = g.x("N", "T", D)
    q = _heads(g, g.linear(x, "q", D, H * K))
    k, v = (g.Unsqueeze(g.linear(x, n, D, K), g.c([1])) for n in "kv")
    return _finish(g, _merge(g, _sdpa(g, q, k, v)))


@pattern(QKVO + " bias:0", families=True, widths={"bias:0": 2, **HALF})
def relative_position_bias() -> ModelProto:
    g = Net()
    x = g.x("N", 5, D)
    q, k, v = (_heads(g, p) for p in _qkv(g, x))
    return _finish(g, _merge(g, _sdpa(g, q, k, v, mask=g.w("bias", H, 5, 5, scale=0.5))))


@pattern(QKVO + " table:1", families=True)
def relative_position_table() -> ModelProto:
    """Swin's table [buckets, H], gathered by a constant index, reshaped and permuted."""
    g = Net()
    x = g.x("N", 5, D)
    index = (np.arange(5)[:, None] - np.arange(5)[None] + 4).reshape(-1)
    b = g.Gather(g.w("table", 9, H, scale=0.5), g.c(index), axis=0)
    b = g.Unsqueeze(g.t(g.reshape(b, 5, 5, H), 2, 0, 1), g.c([0]))
    q, k, v = (_heads(g, p) for p in _qkv(g, x))
    return _finish(g, _merge(g, _sdpa(g, q, k, v, mask=b)))


def _cos_sin(g: Net, shape: tuple[int, ...]) -> tuple[str, str]:
    angle = np.arange(5)[:, None] / 100 ** (np.arange(K // 2)[None] / (K // 2))
    angle = np.concatenate([angle, angle], 1).reshape(shape)
    return g.f(np.cos(angle), "cos"), g.f(np.sin(angle), "sin")


@pattern(QKVO, families=True, widths=HALF)
def rope_rotate_half() -> ModelProto:
    g = Net()
    x = g.x("N", 5, D)
    cos, sin = _cos_sin(g, (1, 1, 5, K))
    q, k, v = (_heads(g, p) for p in _qkv(g, x))

    def rope(y: str) -> str:
        turned = g.Concat(g.Neg(g.slice(y, K // 2, 99, 3)), g.slice(y, 0, K // 2, 3), axis=-1)
        return g.Add(g.Mul(y, cos), g.Mul(turned, sin))

    return _finish(g, _merge(g, _sdpa(g, rope(q), rope(k), v)))


@pattern(QKVO, families=True, widths=HALF)
def rope_interleaved() -> ModelProto:
    """Pairs of neighbouring lanes rotate: strided slices, Unsqueeze, Concat, Reshape."""
    g = Net()
    x = g.x("N", 5, D)
    angle = (np.arange(5)[:, None] / 100 ** (np.arange(K // 2)[None] / (K // 2))).reshape(1, 1, 5, K // 2)
    cos, sin = g.f(np.cos(angle), "cos"), g.f(np.sin(angle), "sin")
    q, k, v = (_heads(g, p) for p in _qkv(g, x))

    def rope(y: str) -> str:
        a, b = g.slice(y, 0, 99, 3, 2), g.slice(y, 1, 99, 3, 2)
        a, b = g.Sub(g.Mul(a, cos), g.Mul(b, sin)), g.Add(g.Mul(a, sin), g.Mul(b, cos))
        both = g.Concat(g.Unsqueeze(a, g.c([4])), g.Unsqueeze(b, g.c([4])), axis=4)
        return g.reshape(both, 0, H, 5, K)

    return _finish(g, _merge(g, _sdpa(g, rope(q), rope(k), v)))


@pattern("q.w:1 k.w:1 v.w:1 o.w:0", dims={"T": (5, 8), "S": (3, 7)}, families=True)
def cross_attention_kdim() -> ModelProto:
    """Keys and values come from a context of another width; q and k lanes (4) differ from v lanes (6)."""
    g = Net()
    x, c = g.x("N", "T", D), g.x("N", "S", 9, name="context")
    q = _heads(g, g.linear(x, "q", D, H * 4), H, 4)
    k = _heads(g, g.linear(c, "k", 9, H * 4), H, 4)
    v = _heads(g, g.linear(c, "v", 9, H * K))
    return _finish(g, _merge(g, _sdpa(g, q, k, v, 0.5)))


@pattern("q.w:1 k.w:1 v.w:1 o.w:0", **FAMILIES)
def linear_attention() -> ModelProto:
    """(phi(q) (phi(k)' v)) / (phi(q) sum phi(k)) with phi = elu + 1: heads are exact."""
    g = Net()
    x = g.x("N", "T", D)
    q, k, v = (_heads(g, p) for p in _qkv(g, x))
    q, k = (g.Add(g.Elu(p), g.f(1)) for p in (q, k))
    top = g.MatMul(q, g.MatMul(g.t(k, 0, 1, 3, 2), v))
    norm = g.MatMul(q, g.Unsqueeze(g.ReduceSum(k, g.c([2]), keepdims=0), g.c([3])))
    return _finish(g, _merge(g, g.Div(top, norm)))


@pattern("in_w:0 in_b:0 out_w:1", families=True, dims={"T": (5, 5)})
def torch_multihead_attention() -> ModelProto:
    """nn.MultiheadAttention: sequence first, one in_proj matrix [3D, D] transposed, batch folded with heads."""
    g = Net()
    x = g.x(5, "N", D)
    y = g.Add(g.MatMul(x, g.t(g.w("in_w", 3 * H * K, D), 1, 0)), g.w("in_b", 3 * H * K))
    y = g.Squeeze(g.t(g.Unsqueeze(g.reshape(y, 5, -1, 3, H * K), g.c([0])), 3, 1, 2, 0, 4), g.c([3]))
    parts = [g.Gather(y, g.c(i), axis=0) for i in range(3)]
    q, k, v = (g.t(g.Reshape(p, g.c([5, -1, K])), 1, 0, 2) for p in parts)
    s = g.Softmax(g.MatMul(g.Mul(q, g.f(K**-0.5)), g.t(k, 0, 2, 1)), axis=-1)
    y = g.t(g.MatMul(s, v), 1, 0, 2)
    y = g.Reshape(y, g.c([-1, H * K]))
    y = g.Gemm(y, g.w("out_w", 10, H * K), g.w("out_b", 10), transB=1)
    g.out(g.reshape(y, 5, -1, 10))
    return g.model()


@pattern(QKVO, widths=HALF, **FAMILIES)
def scale_computed_from_shape() -> ModelProto:
    """torch's exported scaled_dot_product_attention: sqrt of the head width read off at run time."""
    g = Net()
    x = g.x("N", "T", D)
    q, k, v = (_heads(g, p) for p in _qkv(g, x))
    width = g.Slice(g.Shape(q), g.c([-1]), g.c([2**62]))
    scale = g.Sqrt(g.Div(g.f([1]), g.Sqrt(g.Cast(width, to=1))))
    s = g.MatMul(g.Mul(q, scale), g.Mul(g.t(k, 0, 1, 3, 2), scale))
    return _finish(g, _merge(g, g.MatMul(g.Softmax(s, axis=-1), v)))


@pattern(QKVO, widths=HALF, **FAMILIES)
def scale_computed_from_shape_of_the_type_of_its_data() -> ModelProto:
    """The same where the type is that of the query; lanes are cut, and the scale is not."""
    g = Net()
    x = g.x("N", "T", D)
    q, k, v = (_heads(g, p) for p in _qkv(g, x))
    width = g.CastLike(g.Gather(g.Shape(q), g.c(-1), axis=0), q)
    s = g.Div(g.MatMul(q, g.t(k, 0, 1, 3, 2)), g.Sqrt(width))
    return _finish(g, _merge(g, g.MatMul(g.Softmax(s, axis=-1), v)))


@pattern(QKVO, widths=HALF, **FAMILIES)
def padding_mask_from_input() -> ModelProto:
    g = Net()
    x, m = g.x("N", "T", D), g.x("N", "T", name="mask", dtype=I64)
    m = g.Unsqueeze(g.Cast(m, to=1), g.c([1, 2]))
    m = g.Mul(g.Sub(g.f(1), m), g.f(-1e4))
    q, k, v = (_heads(g, p) for p in _qkv(g, x))
    return _finish(g, _merge(g, _sdpa(g, q, k, v, mask=m)))


@pattern(QKVO, **FAMILIES)
def causal_mask_built_at_run_time() -> ModelProto:
    """Range, Less and Where on the run-time length."""
    g = Net()
    x = g.x("N", "T", D)
    time = g.Gather(g.Shape(x), g.c(1))
    r = g.Range(g.c(0), time, g.c(1))
    keep = g.LessOrEqual(g.Unsqueeze(r, g.c([0])), g.Unsqueeze(r, g.c([1])))
    q, k, v = (_heads(g, p) for p in _qkv(g, x))
    s = g.Where(keep, g.Mul(g.MatMul(q, g.t(k, 0, 1, 3, 2)), g.f(0.4)), g.f(-1e9))
    return _finish(g, _merge(g, g.MatMul(g.Softmax(s, axis=-1), v)))


@pattern(QKVO, widths=HALF, **FAMILIES)
def attention_op_4d() -> ModelProto:
    """The opset-23 operator on [B, H, T, K]: its default scale depends on K."""
    g = Net()
    q, k, v = (_heads(g, p) for p in _qkv(g, g.x("N", "T", D)))
    return _finish(g, _merge(g, g.Attention(q, k, v)), opset=23, ir=11)


@pattern(QKVO, widths=HALF, **FAMILIES)
def attention_op_3d_causal() -> ModelProto:
    """The opset-23 operator on [B, T, H K] with head counts as attributes."""
    g = Net()
    q, k, v = _qkv(g, g.x("N", "T", D))
    y = g.Attention(q, k, v, q_num_heads=H, kv_num_heads=H, is_causal=1)
    return _finish(g, y, opset=23, ir=11)


@pattern("q.w:1 k.w:1 v.w:1 o.w:0", **FAMILIES)
def attention_op_gqa() -> ModelProto:
    g = Net()
    x = g.x("N", "T", D)
    q, k, v = g.linear(x, "q", D, H * K), g.linear(x, "k", D, 2 * K), g.linear(x, "v", D, 2 * 8)
    y = g.Attention(q, k, v, q_num_heads=H, kv_num_heads=2, scale=0.3)
    return _finish(g, y, H * 8, opset=23, ir=11)


@pattern(nothing=True, dims={"T": (4, 6), "P": (3, 5)})
def kv_cache_as_inputs_and_outputs() -> ModelProto:
    """Past and present keys cross the graph's border: heads and lanes of k and v are frozen, q and o with them."""
    g = Net()
    x = g.x("N", "T", D)
    pk, pv = g.x("N", H, "P", K, name="past_k"), g.x("N", H, "P", K, name="past_v")
    q, k, v = (_heads(g, p) for p in _qkv(g, x))
    k, v = g.Concat(pk, k, axis=2), g.Concat(pv, v, axis=2)
    y = _finish_inner(g, q, k, v)
    g.out(k, "present_k")
    g.out(v, "present_v")
    g.out(y)
    return g.model()


def _finish_inner(g: Net, q: str, k: str, v: str) -> str:
    return g.linear(_merge(g, _sdpa(g, q, k, v)), "o", H * K, 10)


@pattern("q.w:1 k.w:1 v.w:1 o.w:0 dn.w:1 up.w:0", families=True, dims=SEQ)
def query_key_norm() -> ModelProto:
    """RMSNorm over the lanes of q and k: heads stay exact, lanes do not."""
    g = Net()
    x = g.linear(g.Relu(g.linear(g.x("N", "T", D), "dn", D, 14)), "up", 14, 18)
    q, k, v = (_heads(g, p) for p in _qkv(g, x, d=18))
    q, k = (
        g.LayerNormalization(p, g.w(f"{n}n.s", K, shift=1), g.w(f"{n}n.h", K), axis=-1) for n, p in (("q", q), ("k", k))
    )
    return _finish(g, _merge(g, _sdpa(g, q, k, v)))


@pattern("q.w:1 k.w:1 v.w:1 o.w:0 dn.w:1 up.w:0", families=True)
def talking_heads() -> ModelProto:
    """A linear map across heads before the softmax couples nothing but sums: heads before and after are apart."""
    g = Net()
    x = g.linear(g.Relu(g.linear(g.x("N", 5, D), "dn", D, 14)), "up", 14, 18)
    q, k, v = (_heads(g, p) for p in _qkv(g, x, d=18))
    s = g.Mul(g.MatMul(q, g.t(k, 0, 1, 3, 2)), g.f(K**-0.5))
    s = g.t(g.MatMul(g.t(s, 0, 2, 3, 1), g.w("mix", H, H)), 0, 3, 1, 2)
    return _finish(g, _merge(g, g.MatMul(g.Softmax(s, axis=-1), v)))


@pattern("q.w:0 k.w:0 v.w:0 o.w:1")
def non_local_block() -> ModelProto:
    """1x1 convolutions, [N, C, HW] attention, residual from a prunable trunk."""
    g = Net()
    x = g.cbr(g.x("N", 3, 5, 5), "a", 12, 3)
    q, k, v = (g.reshape(g.conv(x, n, c, 12, 1), 0, c, -1) for n, c in (("q", 6), ("k", 6), ("v", 8)))
    s = g.Softmax(g.MatMul(g.t(q, 0, 2, 1), k), axis=-1)
    y = g.reshape(g.MatMul(v, g.t(s, 0, 2, 1)), 0, 8, 5, 5)
    g.head(g.Add(x, g.conv(y, "o", 12, 8, 1)), 12)
    return g.model()


@pattern("qkv.w:0 o.w:1 a.w:0", families=True, inexact=True)
def channel_attention_transposed() -> ModelProto:
    """XCiT and Restormer: softmax over channels within each head, L2-normalised over tokens."""
    g = Net()
    x = g.cbr(g.x("N", 3, 4, 4), "a", 12, 3)
    y = g.reshape(g.conv(x, "qkv", 3 * H * K, 12, 1), 0, 3, H, K, 16)
    q, k, v = (g.Squeeze(p, g.c([1])) for p in g.split(y, 1, 1, 1))
    q, k = (g.Div(p, g.Add(g.ReduceL2(p, g.c([-1])), g.f(1e-6))) for p in (q, k))
    s = g.Mul(g.MatMul(q, g.t(k, 0, 1, 3, 2)), g.w("temperature", H, 1, 1, shift=2))
    y = g.reshape(g.MatMul(g.Softmax(s, axis=-1), v), 0, H * K, 4, 4)
    g.head(g.conv(y, "o", 10, H * K, 1), 10)
    return g.model()


@pattern("q.w:1 k.w:1 v.w:1 o.w:0", **FAMILIES)
def learned_queries() -> ModelProto:
    """Perceiver: a constant array of queries attends to the input."""
    g = Net()
    x = g.x("N", "T", D)
    batch = g.Gather(g.Shape(x), g.c([0]))
    lat = g.Expand(g.w("latents", 1, 7, 14), g.Concat(batch, g.c([1, 1]), axis=0))
    q = _heads(g, g.linear(lat, "q", 14, H * K))
    k, v = (_heads(g, g.linear(x, n, D, H * K)) for n in "kv")
    return _finish(g, _merge(g, _sdpa(g, q, k, v)))


@pattern("q.w:1 k.w:1 v.w:1 o.w:0", families=True)
def window_attention_shifted() -> ModelProto:
    """Swin: roll by slices, window partition by Reshape and Transpose, mask, attention, reverse."""
    g = Net()
    x = g.x("N", 4, 4, D)
    x = g.Concat(g.slice(x, 1, 99, 1), g.slice(x, 0, 1, 1), axis=1)
    x = g.Concat(g.slice(x, 1, 99, 2), g.slice(x, 0, 1, 2), axis=2)
    w = g.reshape(g.t(g.reshape(x, -1, 2, 2, 2, 2, D), 0, 1, 3, 2, 4, 5), -1, 4, D)
    y = g.linear(w, "q", D, H * K), g.linear(w, "k", D, H * K), g.linear(w, "v", D, H * K)
    q, k, v = (g.t(g.reshape(p, -1, 4, H, K), 0, 2, 1, 3) for p in y)
    s = g.Mul(g.MatMul(q, g.t(k, 0, 1, 3, 2)), g.f(K**-0.5))
    mask = g.f(np.where(np.arange(64).reshape(4, 1, 4, 4) % 5 == 1, -100.0, 0), "window_mask")
    s = g.reshape(g.Add(g.reshape(s, -1, 4, H, 4, 4), mask), -1, H, 4, 4)
    y = g.reshape(g.t(g.MatMul(g.Softmax(s, axis=-1), v), 0, 2, 1, 3), -1, 4, H * K)
    y = g.linear(y, "o", H * K, 10)
    y = g.reshape(g.t(g.reshape(y, -1, 2, 2, 2, 2, 10), 0, 1, 3, 2, 4, 5), -1, 4, 4, 10)
    g.out(g.Concat(g.slice(y, 3, 4, 1), g.slice(y, 0, 3, 1), axis=1))
    return g.model()


@pattern("q.w:1 k.w:1 v.w:1 o.w:0", **FAMILIES)
def alibi_and_bool_mask() -> ModelProto:
    """Per-head slopes as a constant [H, 1, 1] times run-time distances; boolean mask input."""
    g = Net()
    x, m = g.x("N", "T", D), g.x("N", "T", name="keep", dtype=BOOL)
    r = g.Cast(g.Range(g.c(0), g.Gather(g.Shape(x), g.c(1)), g.c(1)), to=1)
    dist = g.Abs(g.Sub(g.Unsqueeze(r, g.c([0])), g.Unsqueeze(r, g.c([1]))))
    bias = g.Mul(g.f(-(2.0 ** -np.arange(1, H + 1)).reshape(H, 1, 1), "slopes"), dist)
    q, k, v = (_heads(g, p) for p in _qkv(g, x))
    s = g.Add(g.Mul(g.MatMul(q, g.t(k, 0, 1, 3, 2)), g.f(K**-0.5)), bias)
    s = g.Where(g.Unsqueeze(m, g.c([1, 2])), s, g.f(-1e4))
    return _finish(g, _merge(g, g.MatMul(g.Softmax(s, axis=-1), v)))


@pattern("q.w:1 k.w:1 v.w:1 o.w:0", widths=HALF, **FAMILIES)
def transpose_of_key_by_einsum_dots() -> ModelProto:
    """Einsum with an ellipsis and with a repeated contraction over two axes at once."""
    g = Net()
    q, k, v = (_heads(g, p) for p in _qkv(g, g.x("N", "T", D)))
    s = g.Softmax(g.Einsum(q, k, equation="...tk,...sk->...ts"), axis=-1)
    y = g.Einsum(s, v, equation="nhts, nhsk -> nthk")
    w = g.reshape(g.w("o.w", H * K, 10), H, K, 10)
    g.out(g.Einsum(y, w, equation="nthk,hko->nto"))
    return g.model()
