"""Transformer blocks with normalised trunks, embeddings, experts and ties."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto

from tests.patterns.build import F32, I64, Net, pattern

D, H, K = 16, 4, 6
SEQ = {"T": (5, 8)}


def _attend(
    g: Net, x: str, name: str, d: int = D, kv: str | None = None, mask: str | None = None, k_heads: int = H
) -> str:
    def proj(src: str, n: str, heads: int) -> str:
        return g.t(g.reshape(g.linear(src, f"{name}{n}", d, heads * K), 0, -1, heads, K), 0, 2, 1, 3)

    q, k, v = proj(x, "q", H), proj(kv or x, "k", k_heads), proj(kv or x, "v", k_heads)
    s = g.Mul(g.MatMul(q, g.t(k, 0, 1, 3, 2)), g.f(K**-0.5))
    s = g.Softmax(g.Add(s, mask) if mask else s, axis=-1)
    y = g.reshape(g.t(g.MatMul(s, v), 0, 2, 1, 3), 0, -1, H * K)
    return g.linear(y, f"{name}o", H * K, d)


def _mlp(g: Net, x: str, name: str, d: int = D, hidden: int = 22) -> str:
    return g.linear(g.Gelu(g.linear(x, f"{name}1", d, hidden)), f"{name}2", hidden, d)


@pattern("aq.w:1 ao.w:0 m1.w:1 m2.w:0", inexact_cut="patch.w:0 pos:2 cls:2 aq.w:0 ao.w:1 m2.w:1 n1.s:0", families=True)
def vit() -> ModelProto:
    """Patches, class token expanded over the batch, position embedding, pre-norm blocks."""
    g = Net()
    x = g.Conv(g.x("N", 3, 8, 8), g.w("patch.w", D, 3, 4, 4), g.w("patch.b", D), strides=[4, 4])
    x = g.t(g.reshape(x, 0, D, 4), 0, 2, 1)
    cls = g.Expand(g.w("cls", 1, 1, D), g.Concat(g.Gather(g.Shape(x), g.c([0])), g.c([1, 1]), axis=0))
    x = g.Add(g.Concat(cls, x, axis=1), g.w("pos", 1, 5, D))
    x = g.Add(x, _attend(g, g.ln(x, "n1", D), "a"))
    x = g.Add(x, _mlp(g, g.ln(x, "n2", D), "m"))
    g.out(g.gemm(g.Gather(g.ln(x, "n3", D), g.c(0), axis=1), "fc", D, 5))
    return g.model(opset=20)


@pattern(
    "aq.w:1 ao.w:0 m1.w:1 m2.w:0",
    inexact_cut="word:1 posn:1 kind:1 aq.w:0 pool.w:0",
    frozen="fc.w:0",
    families=True,
    dims=SEQ,
)
def bert() -> ModelProto:
    """Three embeddings, post-norm, attention mask from an input, pooler on the first token."""
    g = Net()
    ids, kinds, mask = (g.x("N", "T", name=n, dtype=I64) for n in ("ids", "kinds", "mask"))
    time = g.Gather(g.Shape(ids), g.c(1))
    pos = g.Gather(g.w("posn", 20, D, scale=1), g.Range(g.c(0), time, g.c(1)))
    x = g.Add(g.Gather(g.w("word", 30, D, scale=1), ids), g.Gather(g.w("kind", 2, D, scale=1), kinds))
    x = g.ln(g.Add(x, pos), "n0", D)
    m = g.Mul(g.Sub(g.f(1), g.Unsqueeze(g.Cast(mask, to=F32), g.c([1, 2]))), g.f(-1e4))
    x = g.ln(g.Add(x, _attend(g, x, "a", mask=m)), "n1", D)
    x = g.ln(g.Add(x, _mlp(g, x, "m")), "n2", D)
    p = g.Tanh(g.linear(g.Gather(x, g.c(0), axis=1), "pool", D, 12))
    g.out(g.gemm(p, "fc", 12, 3))
    return g.model(opset=20)


@pattern("up.w:1 gate.w:1 down.w:0 aq.w:1 ak.w:1 ao.w:0", inexact_cut="emb:1 aq.w:0 down.w:1", families=True, dims=SEQ)
def llama_like() -> ModelProto:
    """Decomposed RMSNorm, SwiGLU, grouped-query attention, causal mask, tied output (the table transposed)."""
    g = Net()
    ids = g.x("N", "T", name="ids", dtype=I64)
    table = g.w("emb", 30, D, scale=1)
    x = g.Gather(table, ids)
    time = g.Gather(g.Shape(ids), g.c([1]))
    one = g.Expand(g.f(-1e4), g.Concat(time, time, axis=0))
    mask = g.Trilu(one, g.c(1), upper=1)

    def rms(y: str, n: str) -> str:
        v = g.ReduceMean(g.Pow(y, g.f(2)), g.c([-1]))
        return g.Mul(g.w(n, D, scale=0.2, shift=1), g.Div(y, g.Sqrt(g.Add(v, g.f(1e-6)))))

    y = rms(x, "n1")

    def proj(n: str, heads: int) -> str:
        return g.t(g.reshape(g.linear(y, n, D, heads * K, bias=False), 0, -1, heads, K), 0, 2, 1, 3)

    q, k, v = proj("aq", H), proj("ak", 2), proj("av", 2)
    shape = g.Concat(g.Gather(g.Shape(ids), g.c([0])), g.c([2, 2]), time, g.c([K]), axis=0)
    back = g.c([0, H, -1, K])
    k, v = (g.Reshape(g.Expand(g.Unsqueeze(p, g.c([2])), shape), back) for p in (k, v))
    s = g.Softmax(g.Add(g.Mul(g.MatMul(q, g.t(k, 0, 1, 3, 2)), g.f(K**-0.5)), mask), axis=-1)
    y = g.reshape(g.t(g.MatMul(s, v), 0, 2, 1, 3), 0, -1, H * K)
    x = g.Add(x, g.linear(y, "ao", H * K, D, bias=False))
    y = rms(x, "n2")
    u = g.linear(y, "gate", D, 22, bias=False)
    y = g.Mul(g.Mul(u, g.Sigmoid(u)), g.linear(y, "up", D, 22, bias=False))
    x = g.Add(x, g.linear(y, "down", 22, D, bias=False))
    g.out(g.MatMul(rms(x, "n3"), g.t(table, 1, 0)), "logits")
    return g.model()


@pattern("c_attn:1 c_proj:0 fc1:1 fc2:0", inexact_cut="wte:1 c_attn:0 c_proj:1", families=True, dims=SEQ)
def gpt2() -> ModelProto:
    """Conv1D as Reshape, Gemm, Reshape with run-time shapes; causal Where from a constant buffer."""
    g = Net()
    ids = g.x("N", "T", name="ids", dtype=I64)
    shape = g.Shape(ids)
    time = g.Gather(shape, g.c([1]))
    wte = g.w("wte", 30, D, scale=1)
    pos = g.Gather(g.w("wpe", 16, D, scale=1), g.Range(g.c(0), g.Squeeze(time, g.c([0])), g.c(1)))
    x = g.Add(g.Gather(wte, ids), pos)

    def conv1d(y: str, n: str, i: int, o: int) -> str:
        flat = g.Reshape(y, g.c([-1, i]))
        flat = g.Gemm(flat, g.w(n, i, o, scale=i**-0.5), g.w(f"{n}b", o))
        return g.Reshape(flat, g.Concat(shape, g.c([o]), axis=0))

    y = conv1d(g.ln(x, "n1", D), "c_attn", D, 3 * H * K)
    q, k, v = (
        g.t(g.Reshape(p, g.Concat(shape, g.c([H, K]), axis=0)), 0, 2, 1, 3)
        for p in g.split(y, H * K, H * K, H * K, axis=2)
    )
    tri = g.c(np.tril(np.ones((1, 1, 16, 16))), bool, "causal")
    tri = g.Slice(tri, g.c([0, 0]), g.Concat(time, time, axis=0), g.c([2, 3]))
    s = g.Where(tri, g.Div(g.MatMul(q, g.t(k, 0, 1, 3, 2)), g.f(K**0.5)), g.f(-1e4))
    y = g.t(g.MatMul(g.Softmax(s, axis=-1), v), 0, 2, 1, 3)
    y = g.Reshape(y, g.Concat(shape, g.c([H * K]), axis=0))
    x = g.Add(x, conv1d(y, "c_proj", H * K, D))
    y = conv1d(g.Gelu(conv1d(g.ln(x, "n2", D), "fc1", D, 22), approximate="tanh"), "fc2", 22, D)
    x = g.ln(g.Add(x, y), "n3", D)
    g.out(g.MatMul(x, g.t(wte, 1, 0)), "logits")
    return g.model(opset=20)


@pattern(
    "eaq.w:1 eao.w:0 daq.w:1 dcq.w:1 dck.w:1 dm1.w:1 dm2.w:0",
    inexact_cut="emb:1 dcq.w:0",
    families=True,
    dims={"T": (5, 8), "S": (3, 6)},
)
def encoder_decoder_shared_embedding() -> ModelProto:
    g = Net()
    src, tgt = g.x("N", "S", name="src", dtype=I64), g.x("N", "T", name="tgt", dtype=I64)
    table = g.w("emb", 30, D, scale=1)
    e, d = g.Gather(table, src), g.Gather(table, tgt)
    e = g.ln(g.Add(e, _attend(g, g.ln(e, "en", D), "ea")), "eo", D)
    d = g.Add(d, _attend(g, g.ln(d, "dn", D), "da"))
    d = g.Add(d, _attend(g, g.ln(d, "dc", D), "dc", kv=e))
    d = g.Add(d, _mlp(g, g.ln(d, "dm", D), "dm"))
    g.out(g.linear(g.ln(d, "do", D), "lm", D, 30, bias=False), "logits")
    return g.model(opset=20)


@pattern("emb:1 h.w:0,1", dims=SEQ)
def tied_embedding_exact() -> ModelProto:
    """Table gathered, and used transposed for the logits; nothing normalises in between."""
    g = Net()
    table = g.w("emb", 30, 12, scale=1)
    x = g.Gather(table, g.x("N", "T", name="ids", dtype=I64))
    x = g.Tanh(g.linear(g.Relu(g.linear(x, "h", 12, 14)), "u", 14, 12))
    g.out(g.MatMul(x, g.t(table, 1, 0)), "logits")
    return g.model()


@pattern("e0a.w:1 e0b.w:0 e1a.w:1 e2b.w:0", frozen="router.w:1")
def mixture_of_experts_dense_routing() -> ModelProto:
    """All experts run; a softmax router weighs their outputs."""
    g = Net()
    x = g.x("N", "T", D)
    r = g.Softmax(g.linear(x, "router", D, 3), axis=-1)
    outs = []
    for i in range(3):
        y = g.linear(g.Relu(g.linear(x, f"e{i}a", D, 10 + 2 * i)), f"e{i}b", 10 + 2 * i, 8)
        outs.append(g.Mul(y, g.slice(r, i, i + 1, 2)))
    g.out(g.linear(g.Sum(*outs), "o", 8, 4))
    return g.model()


@pattern("w1:2 w2:1 b1:2", dims=SEQ, widths={"w1:2": 10}, inexact=True)
def batched_expert_weights() -> ModelProto:
    """Expert weights stacked in three dimensions and used by one MatMul; experts share a softmax, so they are inexact."""
    g = Net()
    x = g.Unsqueeze(g.x("N", "T", D), g.c([1]))
    y = g.Relu(g.Add(g.MatMul(x, g.w("w1", 3, D, 20, scale=0.25)), g.w("b1", 3, 1, 20)))
    y = g.MatMul(y, g.w("w2", 3, 20, 8, scale=0.25))
    r = g.t(g.Softmax(g.linear(g.Squeeze(x, g.c([1])), "router", D, 3), axis=-1), 0, 2, 1)
    y = g.ReduceSum(g.Mul(y, g.Unsqueeze(r, g.c([3]))), g.c([1]), keepdims=0)
    g.out(g.linear(y, "o", 8, 4))
    return g.model()


@pattern("w1:2 w2:1")
def top_k_experts_by_gather() -> ModelProto:
    """Weights gathered by the router's choice: the expert axis is data-dependent, the hidden axis is not."""
    g = Net()
    x = g.x("N", D)
    top, index = g.TopK(g.linear(x, "router", D, 4), g.c([2]), axis=-1, n=2)
    w1, w2 = g.Gather(g.w("w1", 4, D, 20, scale=0.25), index), g.Gather(g.w("w2", 4, 20, 8, scale=0.25), index)
    y = g.Relu(g.MatMul(g.Unsqueeze(x, g.c([1, 2])), w1))
    y = g.Squeeze(g.MatMul(y, w2), g.c([2]))
    y = g.ReduceSum(g.Mul(y, g.Unsqueeze(g.Softmax(top, axis=-1), g.c([2]))), g.c([1]), keepdims=0)
    g.out(g.linear(y, "o", 8, 4))
    return g.model()


@pattern("A:1 h.w:1", dims=SEQ)
def lora_beside_linear() -> ModelProto:
    """x W + (x A) B: the rank is prunable and so is the output width, with W and B together."""
    g = Net()
    x = g.x("N", "T", D)
    low = g.MatMul(g.MatMul(x, g.w("A", D, 4, scale=0.25)), g.w("B", 4, 12, scale=0.5))
    x = g.Relu(g.Add(g.linear(x, "h", D, 12), g.Mul(low, g.f(0.5))))
    g.out(g.linear(x, "o", 12, 3))
    return g.model()


@pattern("iw:0 tw.w:1", inexact=True, dims=SEQ)
def clip_two_towers() -> ModelProto:
    """Image and text embeddings L2-normalised and compared: the shared width is tied across towers."""
    g = Net()
    i = g.Relu(g.Conv(g.x("N", 3, 6, 6, name="image"), g.w("iw", 10, 3, 3, 3)))
    i = g.linear(g.Flatten(g.GlobalAveragePool(i)), "ip", 10, 12, bias=False)
    t = g.Gather(g.w("emb", 20, 8, scale=1), g.x("M", "T", name="ids", dtype=I64))
    t = g.Relu(g.linear(t, "tw", 8, 14))
    t = g.linear(g.ReduceMean(t, g.c([1]), keepdims=0), "tp", 14, 12, bias=False)
    i, t = (g.Div(v, g.ReduceL2(v, g.c([-1]))) for v in (i, t))
    g.out(g.Mul(g.MatMul(i, g.t(t, 1, 0)), g.f(14.0)))
    return g.model()


@pattern("in.w:1 dtp:0 outp:0", dims={"T": (6, 6)})
def gated_conv_mixer() -> ModelProto:
    """Mamba-like: one projection split into value and gate, causal depthwise Conv1d, SiLU, product."""
    g = Net()
    y = g.linear(g.x("N", 6, D), "in", D, 40, bias=False)
    u, z = g.split(y, 20, 20, axis=2)
    u = g.Conv(g.t(u, 0, 2, 1), g.w("dtp", 20, 1, 4), g.w("dtb", 20), group=20, pads=[3, 0])
    u = g.t(u, 0, 2, 1)
    u = g.Mul(u, g.Sigmoid(u))
    y = g.Mul(u, g.Mul(z, g.Sigmoid(z)))
    g.out(g.MatMul(y, g.w("outp", 20, 5)))
    return g.model()


@pattern("pw.w:1 h.w:1")
def pool_tokens_and_broadcast() -> ModelProto:
    """PoolFormer-like token mixing by AveragePool in NCHW, gate by a vector."""
    g = Net()
    x = g.t(g.linear(g.x("N", 16, 6), "pw", 6, 12), 0, 2, 1)
    m = g.reshape(x, 0, 12, 4, 4)
    m = g.Sub(g.AveragePool(m, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=0), m)
    x = g.Add(x, g.reshape(m, 0, 12, 16))
    x = g.Gelu(g.linear(g.t(x, 0, 2, 1), "h", 12, 14))
    g.out(g.linear(g.ReduceMean(x, g.c([1]), keepdims=0), "o", 14, 3))
    return g.model(opset=20)
