"""Variants of recurrent, attention and quantised ops, and every op that works index by index, cut and proved."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import ModelProto

import graphprune as gp
from tests.ops_cut_cases import STEP, D, H, K, Widths, done, qkv
from tests.patterns.build import BOOL, F32, I32, I64, Net


def _cut(model: ModelProto, widths: Widths, tolerance: float = 1e-5, **options: object) -> gp.Result:
    result = gp.prune(model, rate=0.5, scope="group", **options)
    found = {}
    for place in widths:
        name, _, axis = place.rpartition(":")
        found[place] = len(result.plan.tensors.get(name, {"kept": {}})["kept"].get(axis, ()))
    assert found == dict(widths)
    assert result.plan.verify["max_rel_error"] <= tolerance
    return result


# -- recurrent -------------------------------------------------------------------------------------------
def test_dynamically_quantised_lstm() -> None:
    """Weights in int8, transposed; their zero points differ by direction."""
    g = Net()
    x = g.Relu(g.linear(g.x(5, "N", 7), "h", 7, 6))
    y = g.ms("DynamicQuantizeLSTM", x, g.q("W", 2, 6, 32, dtype=np.uint8, low=60, high=200),
             g.q("R", 2, 8, 32, dtype=np.uint8, low=60, high=200), g.w("B", 2, 64), None, None, None, None,
             g.f([0.005, 0.004]), g.c([128, 120], np.uint8), g.f([0.004, 0.005]), g.c([125, 128], np.uint8),
             hidden_size=8, direction="bidirectional")  # fmt: skip
    model = done(g, g.reshape(g.t(y, 0, 2, 1, 3), 0, -1, 16), 16, (5, "N"))
    result = _cut(model, {"W:2": 16, "R:1": 4, "R:2": 16, "B:1": 32, "o.w:0": 8}, STEP)
    assert next(n for n in result.model.graph if "LSTM" in n.op_type).attributes["hidden_size"].as_int() == 4


@pytest.mark.parametrize(("op", "gates", "states"), [("LSTM", 4, 2), ("GRU", 3, 1), ("RNN", 1, 1)])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_states_from_a_layer(op: str, gates: int, states: int, direction: str) -> None:
    """An encoder's last states start a decoder: the hidden units of both are the same ones."""
    g = Net()
    d = 2 if direction == "bidirectional" else 1
    x = g.x(5, "N", 7)

    def layer(name: str, *initial: str | None) -> tuple[str, ...]:
        w = [g.w(f"{name}{p}", d, *shape, scale=0.4) for p, shape in
             (("W", (gates * 8, 7)), ("R", (gates * 8, 8)), ("B", (2 * gates * 8,)))]  # fmt: skip
        outs: tuple[str, ...] = g.op(op, x, *w, None, *initial, n=1 + states, hidden_size=8, direction=direction)
        return outs

    _, *last = layer("e")
    y = layer("d", *last)[0]
    model = done(g, g.reshape(g.t(y, 0, 2, 1, 3), 0, -1, d * 8), d * 8, (5, "N"))
    result = _cut(model, {"eW:1": gates * 4, "dW:1": gates * 4, "eR:2": 4, "dR:2": 4, "o.w:0": 4 * d}, exact=True)
    kept = [result.plan.tensors[name]["kept"]["2"] for name in ("eR", "dR")]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("length", [[5, 3], [0, 5]])
def test_lengths_and_learned_states(length: list[int]) -> None:
    """A sequence of length zero hands out zeros or the state it started with: both are masked."""
    g = Net()
    h, c = g.w("h0", 1, 2, 8), g.w("c0", 1, 2, 8)
    w = [g.w("W", 1, 32, 7, scale=0.4), g.w("R", 1, 32, 8, scale=0.4), g.w("B", 1, 64)]
    _, y, z = g.op("LSTM", g.x(5, 2, 7), *w, g.c(length, np.int32), h, c, n=3, hidden_size=8)
    y = g.ReduceL1(g.Concat(y, z, axis=0), g.c([2]), keepdims=0)  # exact only where dead units rest at zero
    g.out(y, dtype=F32, shape=[2, 2])
    _cut(g.model(), {"W:1": 16, "h0:2": 4, "c0:2": 4}, exact=True)


# -- attention -------------------------------------------------------------------------------------------
HALF = {"q.w:1": 12, "k.w:1": 12, "v.w:1": 12, "o.w:0": 12}


@pytest.mark.parametrize("grain", ["coarse", "fine"])
def test_attention_behind_a_constant_cache(grain: str) -> None:
    """Past keys and values are weights here (a learned prefix), cut with the heads and lanes they belong to."""
    g = Net()
    past = [g.w(name, 1, H, 3, K) for name in ("pk", "pv")]
    y, keys, values = g.op("Attention", *qkv(g, g.x(1, 5, D)), None, *past, n=3, q_num_heads=H, kv_num_heads=H)
    # The kernel wants both handed out; a sum of them sees whether dead heads and lanes are zero.
    y = g.Add(y, g.ReduceSum(g.Add(keys, values), g.c([1, 2, 3]), keepdims=0))
    prefix = {"pk:1": 2, "pv:1": 2} if grain == "coarse" else {"pk:3": 3, "pv:3": 3}
    _cut(done(g, y, H * K, (1, 5), opset=23, ir=11), HALF | prefix, grain=grain)


@pytest.mark.parametrize("grain", ["coarse", "fine", "both"])
@pytest.mark.parametrize("interleaved", [0, 1])
def test_lanes_that_do_not_rotate(grain: str, interleaved: int) -> None:
    """The first four of eight lanes turn; the others are cut one by one."""
    g = Net()
    angle = np.arange(5)[:, None] / 100 ** (np.arange(2)[None] / 2)
    cos, sin = g.f(np.cos(angle), "cos"), g.f(np.sin(angle), "sin")
    place = g.c(np.arange(5)[None].repeat(2, 0))
    q, k, v = qkv(g, g.x(2, 5, D), H * 8, H * 8, H * 8)
    q, k = (
        g.RotaryEmbedding(p, cos, sin, place, num_heads=H, rotary_embedding_dim=4, interleaved=interleaved)
        for p in (q, k)
    )
    y = g.Attention(q, k, v, q_num_heads=H, kv_num_heads=H)
    widths = {"coarse": {"q.w:1": 16, "cos:1": 0}, "fine": {"q.w:1": 16, "cos:1": 1}, "both": {}}[grain]
    result = _cut(done(g, y, H * 8, (2, 5), opset=23, ir=11), widths, grain=grain)
    nodes = [node for node in result.model.graph if node.op_type == "RotaryEmbedding"]
    assert {node.attributes["rotary_embedding_dim"].as_int() for node in nodes} == {4 if grain == "coarse" else 2}


def _grouped(lanes: int, rotary: bool, interleaved: int, packed: bool) -> ModelProto:
    g = Net()
    widths = (H * lanes, 2 * lanes, 2 * lanes)
    x = g.x(1, 5, D)
    if packed:
        values: list[str | None] = [g.linear(x, "q", D, sum(widths)), None, None]
    else:
        values = [*qkv(g, x, *widths)]
    extra = []
    if rotary:
        angle = np.arange(8)[:, None] / 100 ** (np.arange(lanes // 2)[None] / (lanes // 2))
        extra = [g.f(np.cos(angle), "cos"), g.f(np.sin(angle), "sin")]
    y = g.ms("GroupQueryAttention", *values, None, None, g.c([4], np.int32), g.c(5, np.int32), *extra, num_heads=H,
             kv_num_heads=2, do_rotary=int(rotary), rotary_interleaved=interleaved, out=["y1", "", ""])  # fmt: skip
    return done(g, y[0], H * lanes, (1, 5))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("rotary", "interleaved"), [(False, 0), (True, 0), (True, 1)])
def test_lanes_of_grouped_queries_go_in_blocks(rotary: bool, interleaved: int, packed: bool) -> None:
    """32 lanes: four blocks of 8, or two of 16 where the lanes rotate; the kernel takes nothing in between."""
    q = 8 * 32 // 2 if packed else 64
    result = _cut(_grouped(32, rotary, interleaved, packed), {"q.w:1": q, "o.w:0": 64}, grain="fine")
    node = next(node for node in result.model.graph if node.op_type == "GroupQueryAttention")
    assert node.attributes["scale"].as_float() == pytest.approx(32**-0.5)
    assert node.attributes["num_heads"].as_int() == H
    if rotary:
        assert len(result.plan.tensors["cos"]["kept"]["1"]) == 8


@pytest.mark.parametrize("packed", [False, True])
def test_heads_of_grouped_queries(packed: bool) -> None:
    result = _cut(_grouped(16, True, 0, packed), {"q.w:1": 64 if packed else 32, "o.w:0": 32})
    node = next(node for node in result.model.graph if node.op_type == "GroupQueryAttention")
    assert [node.attributes[name].as_int() for name in ("num_heads", "kv_num_heads")] == [2, 1]
    assert "scale" not in node.attributes


def test_projected_keys_of_another_sequence() -> None:
    """MultiHeadAttention takes keys and values as [b, heads, s, lanes] from a cross attention's cache."""
    g = Net()
    q = g.linear(g.x("N", 5, D), "q", D, H * K)
    k, v = (g.t(g.reshape(g.linear("c", n, 9, H * K), 0, 0, H, K), 0, 2, 1, 3) for n in "kv")
    g.x("N", 4, 9, name="c")
    _cut(done(g, g.ms("MultiHeadAttention", q, k, v, num_heads=H), H * K), HALF)


def test_packed_queries_keys_and_values() -> None:
    """No CPU kernel takes [b, s, heads, 3, lanes], so no cut of it is proved, and none is written."""
    g = Net()
    x = g.reshape(g.linear(g.x("N", 5, D), "p", D, H * 3 * K), 0, 0, H, 3, K)
    model = done(g, g.ms("MultiHeadAttention", x, num_heads=H), H * K)
    with pytest.raises(gp.GraphPruneError, match="nothing can be proved"):
        gp.prune(model, rate=0.5, scope="group")


@pytest.mark.parametrize("bias", [False, True])
def test_skip_rms_norm(bias: bool) -> None:
    g = Net()
    x = g.linear(g.x("N", 5, D), "a", D, 12)
    skip = g.Relu(g.linear(x, "b", 12, 12))
    extra = [g.w("s.b", 12)] if bias else []
    y, _, _, total = g.op("SkipSimplifiedLayerNormalization", x, skip, g.w("s.g", 12, shift=1), *extra, n=4,
                          domain="com.microsoft", epsilon=1e-5)  # fmt: skip
    result = _cut(done(g, g.Add(y, total), 12), {"a.w:1": 6, "b.w:0": 6, "b.w:1": 6, "s.g:0": 6, "o.w:0": 6})
    assert result.plan.verify["inexact_units"] == 6


def test_rms_norm_of_onnx_runtime() -> None:
    """It stands in the default domain, which does not know it."""
    g = Net()
    x = g.linear(g.x("N", 5, D), "a", D, 12)
    y = g.op("SimplifiedLayerNormalization", x, g.w("s.g", 12, shift=1), epsilon=1e-5, axis=-1)
    assert _cut(done(g, y, 12), {"a.w:1": 6, "s.g:0": 6, "o.w:0": 6}).plan.verify["inexact_units"] == 6


# -- quantised -------------------------------------------------------------------------------------------
def test_weights_in_blocks_lose_whole_blocks() -> None:
    """Blocks of 4 along the contracted axis: the layer in front loses its channels four at a time."""
    g = Net()
    x = g.Relu(g.linear(g.x("N", 7), "f", 7, 16))
    w = g.DequantizeLinear(
        g.q("a", 16, 10), g.positive("a.scale", 4, 10, low=0.004, high=0.01), g.q("a.zero", 4, 10, low=-9, high=9),
        axis=0, block_size=4,
    )  # fmt: skip
    x = g.Relu(g.MatMul(x, w))
    model = done(g, x, 10, ("N",), opset=21, ir=10)
    result = _cut(
        model, {"f.w:1": 8, "a:0": 8, "a:1": 5, "a.scale:0": 2, "a.scale:1": 5, "a.zero:0": 2, "o.w:0": 5}, exact=True
    )
    kept = result.plan.tensors["a"]["kept"]["0"]
    assert kept == [4 * (kept[0] // 4) + i for i in range(4)] + [4 * (kept[4] // 4) + i for i in range(4)]


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("zero_points", [None, "packed", "float"])
def test_matmul_of_few_bits(zero_points: str | None, flat: bool) -> None:
    """Columns one by one; contracted blocks of 16 whole, unless their zero points share bytes."""
    g = Net()
    x = g.Relu(g.linear(g.x("N", 7), "f", 7, 64))
    extra = []
    if zero_points == "packed":
        extra = [g.q("zero", *((24,) if flat else (12, 2)), low=0, high=255, dtype=np.uint8)]
    elif zero_points == "float":
        extra = [g.positive("zero", *((48,) if flat else (12, 4)), low=6, high=9)]
    scale = g.positive("a.scale", *((48,) if flat else (12, 4)), low=0.01, high=0.03)
    packed = g.q("a", 12, 4, 8, low=0, high=255, dtype=np.uint8)
    x = g.ms("MatMulNBits", x, packed, scale, *extra, K=64, N=12, bits=4, block_size=16)
    # In one axis, columns and blocks are two families: the finer one is left alone unless asked for.
    blocks = 0 if zero_points == "packed" or flat else 2
    widths = {"a:0": 6, "a:1": blocks, "a.scale:0": 24 if flat else 6, "f.w:1": 16 * blocks, "o.w:0": 6}
    result = _cut(done(g, g.Relu(x), 12, ("N",)), widths, 1e-4, exact=True)
    node = next(node for node in result.model.graph if node.op_type == "MatMulNBits")
    assert [node.attributes[name].as_int() for name in ("N", "K")] == [6, 16 * blocks or 64]


def test_range_of_values_that_are_not_zero() -> None:
    """A dead channel behind a Sigmoid is one half: it moves the range, so the cut is inexact."""
    g = Net()
    x = g.Sigmoid(g.linear(g.x("N", 7), "f", 7, 12))
    q, s, z = g.DynamicQuantizeLinear(x, n=3)
    y = g.Mul(g.Cast(g.MatMulInteger(q, g.q("a", 12, 10), z, g.c(3, np.int8)), to=F32), g.Mul(s, g.f(0.01)))
    result = _cut(done(g, g.Relu(y), 10, ("N",)), {"f.w:1": 6, "a:0": 6, "a:1": 5}, STEP)
    assert result.plan.verify["inexact_units"] == 6
    fused = Net()
    x = fused.Sigmoid(fused.linear(fused.x("N", 7), "f", 7, 12))
    y = fused.ms("DynamicQuantizeMatMul", x, fused.q("a", 12, 10), fused.f(0.01), fused.c(3, np.int8))
    result = _cut(done(fused, fused.Relu(y), 10, ("N",)), {"f.w:1": 6, "a:0": 6, "a:1": 5}, STEP)
    assert result.plan.verify["inexact_units"] == 6


def test_softmax_of_quantised_values() -> None:
    g = Net()
    s, z, t, u = g.f(0.05), g.c(100, np.uint8), g.f(1 / 256), g.c(0, np.uint8)
    x = g.QuantizeLinear(g.linear(g.x("N", 7), "a", 7, 12), s, z)
    x = g.ms("QLinearSoftmax", x, s, z, t, u, axis=1, opset=13)
    result = _cut(done(g, g.DequantizeLinear(x, t, u), 12, ("N",)), {"a.w:1": 6, "o.w:0": 6}, STEP)
    assert result.plan.verify["inexact_units"] == 6


def test_choice_between_quantised_values() -> None:
    g = Net()
    s, z, t, u = g.f(0.05), g.c(100, np.uint8), g.f(0.04), g.c(90, np.uint8)
    x = g.x("N", 7)
    a, b = (g.QuantizeLinear(g.linear(x, name, 7, 12), s, z) for name in "ab")
    y = g.ms("QLinearWhere", g.Greater(g.linear(x, "m", 7, 12), g.f(0)), a, s, z, b, s, z, t, u)
    widths = {"a.w:1": 6, "b.w:1": 6, "m.w:1": 6, "o.w:0": 6}
    _cut(done(g, g.DequantizeLinear(y, t, u), 12, ("N",)), widths, STEP)


@pytest.mark.parametrize("per", ["tensor", "lane"])
def test_quantised_table(per: str) -> None:
    """An embedding table in uint8 is looked up first and dequantised after: its zero is the zero point."""
    g = Net()
    ids = g.x("N", 5, name="ids", dtype=I64)
    x = g.Gather(g.q("table", 30, 12, low=60, high=200, dtype=np.uint8), ids, axis=0)
    n = (12,) if per == "lane" else ()
    scale = g.positive("s", *n, low=0.01, high=0.02)
    zero = g.q("z", *n, low=100, high=150, dtype=np.uint8)
    x = g.DequantizeLinear(x, scale, zero, **({"axis": 2} if n else {}))
    # The sum sees whether a dead lane is zero.
    y = g.Add(g.linear(x, "b", 12, 10), g.ReduceSum(x, g.c([2])))
    widths = {"table:1": 6, "b.w:0": 6} | ({"s:0": 6, "z:0": 6} if n else {})
    _cut(done(g, y, 10), widths, exact=True)


@pytest.mark.parametrize(
    "op", ["QLinearConv", "QLinearMatMul", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QGemm"]
)
def test_scores_are_those_of_the_values(op: str) -> None:
    """Stored integers say little: a column far off 0 may be all zero points, and its scale may be small."""
    g = Net()
    rng = np.random.default_rng(0)
    zero = np.array([200, 40, 128, 128, 200, 40], np.uint8)
    size = np.array([1, 1, 40, 40, 30, 30])  # what the integers are away from their zero point
    scale = np.array([1, 1, 1, 0.01, 1, 0.01], np.float32) * 0.01
    values = (zero + size * rng.choice([-1, 1], (7, 6))).clip(0, 255).astype(np.uint8)
    s, z, t = g.f(0.03), g.c(100, np.uint8), g.c(scale, np.float32, "s")
    x = g.x("N", 7)
    if op == "QLinearConv":
        # One zero point serves all channels of uint8 weights there.
        values = (100 + size * rng.choice([-1, 1], (7, 6))).astype(np.uint8)
        x = g.QuantizeLinear(g.Unsqueeze(x, g.c([2, 3])), s, z)
        w = g.c(values.T[:, :, None, None], np.uint8, "w")
        y = g.Squeeze(g.DequantizeLinear(g.QLinearConv(x, s, z, w, t, z, s, z), s, z), g.c([2, 3]))
    elif op == "DynamicQuantizeMatMul":
        y = g.ms(op, x, g.c(values, np.uint8, "w"), t, g.c(zero, np.uint8, "z"))
    elif op == "MatMulIntegerToFloat":
        q, a, b = g.DynamicQuantizeLinear(x, n=3)
        y = g.ms(op, q, g.c(values, np.uint8, "w"), a, t, b, g.c(zero, np.uint8, "z"))
    else:
        stored = values.T if op == "QGemm" else values
        operands = (g.QuantizeLinear(x, s, z), s, z, g.c(stored, np.uint8, "w"), t, g.c(zero, np.uint8, "z"))
        product = g.ms(op, *operands, None, s, z, transB=1) if op == "QGemm" else g.QLinearMatMul(*operands, s, z)
        y = g.DequantizeLinear(product, s, z)
    g.out(g.MatMul(g.Relu(y), g.c(np.ones((6, 3)), np.float32, "o")), dtype=F32, shape=["N", 3])
    result = gp.prune(g.model(), rate=2 / 3, scope="group")
    axis = "0" if op in ("QLinearConv", "QGemm") else "1"
    assert result.plan.tensors["w"]["kept"][axis] == [2, 4]
    assert result.plan.verify["passed"]


# -- index by index --------------------------------------------------------------------------------------
UNARY = [
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Celu", "Cos", "Cosh", "Elu", "Erf", "Exp", "Floor",
    "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "Mish", "Neg", "Reciprocal", "Relu", "Round",
    "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh",
    "ThresholdedRelu", "Clip", "IsInf", "IsNaN", "Dropout", "com.microsoft::Gelu", "com.microsoft::FastGelu",
    "com.microsoft::QuickGelu",
]  # fmt: skip
#: Ops of an argument that must be put into their domain, away from zero.
SHIFTED = {"Acosh": 2.5, "Log": 2.5, "Reciprocal": 2.5, "Acos": 0.0, "Asin": 0.0, "Atanh": 0.0, "Sqrt": 2.5}


def _sandwich(middle: Callable[[Net, str], str]) -> ModelProto:
    """A convolution, what is tested, a convolution: a dead channel must not be seen behind it."""
    g = Net()
    x = middle(g, g.conv(g.x("N", 3, 6, 6), "a", 12, 3))
    x = g.Conv(x, g.w("b.w", 4, 12, 1, 1), g.w("b.b", 4))
    g.out(x, dtype=F32, shape=["N", 4, 6, 6])
    return g.model(opset=24, ir=11)


@pytest.mark.parametrize("name", UNARY)
def test_unary(name: str) -> None:
    domain, _, base = name.rpartition("::")

    def middle(g: Net, x: str) -> str:
        if base in SHIFTED:
            x = g.Mul(g.Tanh(x), g.f(0.9))
            x = g.Add(x, g.f(SHIFTED[base])) if SHIFTED[base] else x
        kw: dict[str, object] = {"n": 2} if base == "Dropout" else {}
        extra = [g.f(-0.5), g.f(0.7)] if base == "Clip" else []
        y = g.op(base, x, *extra, domain=domain, **kw)
        y = y[0] if isinstance(y, tuple) else y
        return g.Cast(y, to=F32) if base.startswith("Is") else y

    _cut(_sandwich(middle), {"a.w:0": 6, "a.b:0": 6, "b.w:1": 6}, exact=True)


@pytest.mark.parametrize("name", ["Add", "Sub", "Mul", "Div", "Max", "Min", "Mean", "Sum", "PRelu", "Mod", "Pow"])
@pytest.mark.parametrize("constant", [False, True])
def test_binary(name: str, constant: bool) -> None:
    def middle(g: Net, x: str) -> str:
        other = g.w("k", 12, 1, 1, shift=2.0) if constant else g.Abs(g.conv("x", "c", 12, 3))
        if name in ("Div", "Mod", "Pow") and not constant:
            other = g.Add(other, g.f(1))
        x = g.Add(g.Abs(x), g.f(0.1)) if name == "Pow" else x
        kw = {"fmod": 1} if name == "Mod" else {}
        return g.op(name, x, other, **kw)

    widths = {"a.w:0": 6, "b.w:1": 6} | ({"k:0": 6} if constant else {"c.w:0": 6})
    _cut(_sandwich(middle), widths, exact=True)


@pytest.mark.parametrize(
    "name", ["And", "Or", "Xor", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Where"]
)
def test_comparisons_and_logic(name: str) -> None:
    def middle(g: Net, x: str) -> str:
        other = g.conv("x", "c", 12, 3)
        p, q = g.Greater(x, g.f(0.1)), g.Less(other, g.f(0.2))
        if name == "Where":
            return g.Where(p, x, other)
        if name == "Not":
            return g.Cast(g.Or(g.Not(p), q), to=F32)
        pair = (p, q) if name in ("And", "Or", "Xor") else (g.Round(x), g.Round(other))
        return g.Cast(g.op(name, *pair), to=F32)

    _cut(_sandwich(middle), {"a.w:0": 6, "c.w:0": 6, "b.w:1": 6}, exact=True)


@pytest.mark.parametrize("name", ["BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot", "BitShift"])
def test_bits(name: str) -> None:
    def middle(g: Net, x: str) -> str:
        kind = 12 if name == "BitShift" else I32  # 12: uint32
        p, q = (g.Cast(g.Mul(g.Abs(v), g.f(3)), to=kind) for v in (x, g.conv("x", "c", 12, 3)))
        if name == "BitwiseNot":
            return g.Cast(g.Add(g.BitwiseNot(p), q), to=F32)
        kw = {"direction": "LEFT"} if name == "BitShift" else {}
        return g.Cast(g.op(name, p, q, **kw), to=F32)

    _cut(_sandwich(middle), {"a.w:0": 6, "c.w:0": 6, "b.w:1": 6}, exact=True)


REDUCTIONS = {
    "ReduceSum": True, "ReduceL1": True, "ReduceL2": True, "ReduceSumSquare": True, "ReduceMean": False,
    "ReduceMax": False, "ReduceMin": False, "ReduceLogSumExp": False, "ReduceLogSum": False, "ReduceProd": False,
}  # fmt: skip


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_over_channels(name: str) -> None:
    """Sums of zeros are exact; means, extremes, exponentials and products see that indices are missing."""

    def middle(g: Net, x: str) -> str:
        x = g.Abs(x) if name == "ReduceLogSum" else x
        return g.Mul(g.Relu(x), g.Tanh(g.op(name, x, g.c([1]))))

    result = _cut(_sandwich(middle), {"a.w:0": 6, "b.w:1": 6})
    assert (result.plan.verify["inexact_units"] == 0) == REDUCTIONS[name]


@pytest.mark.parametrize("name", ["Softmax", "LogSoftmax", "Hardmax"])
def test_normalised_over_channels(name: str) -> None:
    result = _cut(_sandwich(lambda g, x: g.op(name, x, axis=1)), {"a.w:0": 6, "b.w:1": 6})
    assert result.plan.verify["inexact_units"] == 6


def test_boolean_inputs_are_nobodys_channels() -> None:
    """A mask that comes from outside meets the channels and freezes them."""

    def middle(g: Net, x: str) -> str:
        return g.Where(g.x(12, 1, 1, name="mask", dtype=BOOL), x, g.f(0))

    with pytest.raises(gp.GraphPruneError, match="nothing is prunable"):
        gp.prune(_sandwich(middle), rate=0.5, scope="group")
