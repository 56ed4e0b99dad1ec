"""Recurrent, attention, quantised and fused ops, each in a tiny model that is cut and proved.

A case names, per grain, the width that tensors must have after half of the units are gone. ONNX Runtime has
no CPU kernel for some of these ops; their cuts are run by ONNX's reference evaluator with the ops written
out in numpy here, and a user's run must refuse them, for want of a proof.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

import graphprune as gp
from graphprune.backends import onnx as writer
from graphprune.errors import ModelError, UsageError
from graphprune.masking import masked_original
from graphprune.options import Options
from graphprune.pipeline import run_state
from graphprune.rules import load_rules
from tests.ops_cut_cases import CASES, STEP, Case, D, H, K, Widths, cell, done, lstm, qkv
from tests.patterns.build import F32, I64, Net


def _check(result: gp.Result, widths: Widths, tolerance: float) -> None:
    tensors = result.plan.tensors
    found = {}
    for place in widths:
        name, _, axis = place.rpartition(":")
        entry = tensors.get(name, {"kept": {}, "shape": ()})
        found[place] = len(entry["kept"].get(axis, ())) or None
    assert found == dict(widths)
    assert result.plan.verify["passed"]
    assert result.plan.verify["max_rel_error"] <= tolerance


@pytest.mark.parametrize("one", CASES, ids=str)
def test_coarse(one: Case) -> None:
    _check(gp.prune(one.build(), rate=0.5, scope="group"), one.coarse, one.tolerance)


@pytest.mark.parametrize("one", [one for one in CASES if one.fine is not None], ids=str)
def test_fine(one: Case) -> None:
    """Lanes go, heads stay, and the softmax scale is that of the source."""
    assert one.fine is not None
    _check(gp.prune(one.build(), rate=0.5, scope="group", grain="fine"), one.fine, one.tolerance)


@pytest.mark.parametrize("one", [one for one in CASES if one.exact], ids=str)
def test_exact_cuts_the_same(one: Case) -> None:
    result = gp.prune(one.build(), rate=0.5, scope="group", exact=True)
    _check(result, one.coarse, one.tolerance)
    assert result.plan.verify["inexact_units"] == 0


@pytest.mark.parametrize("one", [one for one in CASES if not one.exact], ids=str)
def test_normalised_axes_are_inexact(one: Case) -> None:
    assert gp.prune(one.build(), rate=0.5, scope="group").plan.verify["inexact_units"] > 0
    with pytest.raises(UsageError, match="nothing is prunable"):
        gp.prune(one.build(), rate=0.5, scope="group", exact=True)


# -- what must not be taken for zero ---------------------------------------------------------------------
@pytest.mark.parametrize(("activations", "inexact"), [(["Sigmoid"], True), (["Tanh"], False), (["Relu"], False)])
def test_states_that_rest_off_zero_are_inexact(activations: list[str], inexact: bool) -> None:
    """What averages over hidden units sees where a dead one rests."""
    g = Net()
    y, _ = cell(g, "RNN", 1, g.x(5, "N", 7), activations=activations)
    y = g.Squeeze(y, g.c([1]))
    g.out(g.ReduceSum(g.Mul(y, y), g.c([2]), keepdims=0))
    result = gp.prune(g.model(), rate=0.5, scope="group")
    assert len(result.plan.tensors["W"]["kept"]["1"]) == 4
    assert result.plan.verify["max_rel_error"] <= 1e-5
    assert (result.plan.verify["inexact_units"] > 0) == inexact


def _table(g: Net) -> str:
    x = g.Gather(g.q("w", 30, 12, low=0, high=255, dtype=np.uint8), g.x("N", 5, name="ids", dtype=I64))
    y: str = g.DequantizeLinear(x, g.f(0.01), g.c(128, np.uint8))
    return y


def _qgemm(g: Net) -> str:
    s, z = g.f(0.03), g.c(128, np.uint8)
    x = g.ms("QGemm", g.QuantizeLinear(g.x("N", 7), s, z), s, z, g.q("w", 12, 7),
             g.positive("scale", 12, low=0.004, high=0.01), g.q("zero", 12, low=-9, high=9), None, transB=1)  # fmt: skip
    y: str = g.Reshape(x, g.c([-1, 1, 12]))
    return y


def _qlinear_add(g: Net) -> str:
    s, z = g.f(0.03), g.c(128, np.uint8)
    x = g.QLinearMatMul(g.QuantizeLinear(g.x("N", 5, 7), s, z), s, z, g.q("w", 7, 12), g.f(0.01), g.c(3, np.int8), s, z)
    x = g.ms("QLinearAdd", x, s, z, g.q("shift", 12, low=120, high=140, dtype=np.uint8), s, z, s, z)
    y: str = g.DequantizeLinear(x, s, z)
    return y


@pytest.mark.parametrize("build", [_table, _qgemm, _qlinear_add], ids=lambda build: build.__name__)
def test_quantised_zero_is_the_zero_point(build: Callable[[Net], str]) -> None:
    """Products of rows with rows have no weight behind them that would hide what a removed index holds."""
    g = Net()
    x = build(g)
    g.out(g.MatMul(x, g.t(x, 0, 2, 1)), dtype=F32, shape=None)
    result = gp.prune(g.model(), rate=0.5, scope="group", exact=True)
    assert 6 in map(len, result.plan.tensors["w"]["kept"].values())
    assert result.plan.verify["max_rel_error"] <= STEP


def test_states_of_the_graph_freeze_hidden_units() -> None:
    g = Net()
    h = g.x(1, "N", 8, name="h0")
    y, hn = cell(g, "GRU", 3, g.x(5, "N", 7), None, h)
    g.out(hn, "hn")
    done(g, g.Squeeze(y, g.c([1])), 8, (5, "N"))
    with pytest.raises(UsageError, match="nothing is prunable"):
        gp.prune(g.model(), rate=0.5)


def test_cache_of_the_graph_freezes_heads() -> None:
    """Keys come from a cache, so heads stay; so do lanes of keys and of values."""
    g = Net()
    pk, pv = g.x("N", H, 3, K, name="pk"), g.x("N", H, 3, K, name="pv")
    q, k, v = qkv(g, g.x("N", 5, D))
    y, nk, nv = g.Attention(q, k, v, None, pk, pv, q_num_heads=H, kv_num_heads=H, n=3)
    g.out(nk, "nk")
    g.out(nv, "nv")
    model = done(g, y, H * K, opset=23, ir=11)
    with pytest.raises(UsageError, match="nothing is prunable"):
        gp.prune(model, rate=0.5, grain="both")


@pytest.mark.parametrize("explicit", [None, 0.3])
def test_scale_is_pinned_to_the_source(explicit: float | None) -> None:
    """Lanes are halved; the scale stays what it was, given or derived."""
    g = Net()
    kw = {} if explicit is None else {"scale": explicit}
    y = g.Attention(*qkv(g, g.x("N", 5, D)), q_num_heads=H, kv_num_heads=H, **kw)
    result = gp.prune(done(g, y, H * K, opset=23, ir=11), rate=0.5, scope="group", grain="fine")
    node = next(node for node in result.model.graph if node.op_type == "Attention")
    assert node.attributes["scale"].as_float() == pytest.approx(explicit or K**-0.5)
    assert node.attributes["q_num_heads"].as_int() == H


# -- ops without a kernel on a CPU -----------------------------------------------------------------------
class GroupNorm(OpRun):  # type: ignore[misc]
    op_domain = "com.microsoft"

    def _run(self, x, scale, bias, skip=None, add=None, *, activation=None, channels_last=None, epsilon=None, groups=None):  # type: ignore[no-untyped-def] # fmt: skip
        total = x if skip is None else x + skip
        total = total if add is None else total + add
        grouped = total.reshape(*total.shape[:-1], groups, -1)
        over = (*range(1, total.ndim - 1), total.ndim)
        mean, deviation = grouped.mean(over, keepdims=True), grouped.var(over, keepdims=True)
        y = ((grouped - mean) / np.sqrt(deviation + 1e-5)).reshape(total.shape) * scale + bias
        y = y / (1 + np.exp(-y)) if activation else y
        return (y,) if skip is None else (y, total)


class SkipGroupNorm(GroupNorm):
    pass


class BiasAdd(OpRun):  # type: ignore[misc]
    op_domain = "com.microsoft"

    def _run(self, x, bias, skip):  # type: ignore[no-untyped-def]
        return (x + bias + skip,)


class BiasSplitGelu(OpRun):  # type: ignore[misc]
    op_domain = "com.microsoft"

    def _run(self, x, bias):  # type: ignore[no-untyped-def]
        a, b = np.split(x + bias, 2, axis=-1)
        return ((a * b / (1 + np.exp(-1.702 * b))).astype(x.dtype),)


class BiasSoftmax(OpRun):  # type: ignore[misc]
    op_domain = "com.microsoft"

    def _run(self, x, bias, *, axis=None, is_inner_broadcast=None):  # type: ignore[no-untyped-def]
        over = tuple(range(axis, x.ndim))
        e = np.exp(x + bias - (x + bias).max(over, keepdims=True))
        return (e / e.sum(over, keepdims=True),)


def group_norms() -> ModelProto:
    g = Net()
    x = g.t(g.conv(g.x("N", 3, 6, 6), "a", 16, 3), 0, 2, 3, 1)
    x = g.ms("GroupNorm", x, g.w("s", 16, shift=1), g.w("h", 16), groups=4, activation=1, channels_last=1)
    y = g.t(g.conv(g.t(x, 0, 3, 1, 2), "b", 16, 16), 0, 2, 3, 1)
    y, total = g.ms("SkipGroupNorm", x, g.w("t", 16, shift=1), g.w("u", 16), y, g.w("v", 16), groups=4, activation=0,
                    channels_last=1, n=2)  # fmt: skip
    g.out(g.linear(g.Add(y, total), "o", 16, 3), dtype=F32, shape=["N", 6, 6, 3])
    return g.model()


def diffusion_block() -> ModelProto:
    g = Net()
    x = g.x("N", 5, 7)
    h = g.ms("BiasSplitGelu", g.linear(x, "a", 7, 24, bias=False), g.w("a.bias", 24))
    y = g.ms("BiasAdd", g.linear(h, "b", 12, 10, bias=False), g.w("b.bias", 10), g.linear(x, "c", 7, 10, bias=False))
    return done(g, y, 10)


def bias_softmax() -> ModelProto:
    g = Net()
    x = g.linear(g.x("N", 5, 7), "a", 7, 12)
    x = g.ms("BiasSoftmax", x, g.w("m", 1, 1, 12), axis=2, is_inner_broadcast=0)
    return done(g, x, 12)


def lstm_batch_first() -> ModelProto:
    g = Net()
    y, _, _ = cell(g, "LSTM", 4, g.x(2, 5, 7), n=3, layout=1)
    return done(g, g.Squeeze(y, g.c([2])), 8, (2, 5))


UNPROVED: list[tuple[Callable[[], ModelProto], Widths]] = [
    (group_norms, {"a.w:0": 8, "s:0": 8, "b.w:0": 8, "b.w:1": 8, "v:0": 8, "o.w:0": 8}),
    (diffusion_block, {"a.w:1": 12, "a.bias:0": 12, "b.w:0": 6, "b.w:1": 5, "b.bias:0": 5, "c.w:1": 5}),
    (bias_softmax, {"a.w:1": 6, "m:2": 6, "o.w:0": 6}),
    (lstm_batch_first, {"W:1": 16, "R:2": 4, "o.w:0": 4}),
]


@pytest.mark.parametrize(("build", "widths"), UNPROVED, ids=lambda value: getattr(value, "__name__", ""))
def test_without_a_kernel(build: Callable[[], ModelProto], widths: Widths) -> None:
    """The cut equals the masked original where the op is written out; a run refuses, as it cannot prove it."""
    state = run_state(build(), Options(passes=("l1",), rate=0.5, scope="group"), until="rewrite")
    assert state.rewriter is not None and state.cut is not None and state.plan is not None
    assert {place: len(state.plan.tensors[place.rpartition(":")[0]]["kept"][place[-1]]) for place in widths} == widths
    rng = np.random.default_rng(0)
    shape = [dim.dim_value or 2 for dim in build().graph.input[0].type.tensor_type.shape.dim]
    feed = {"x": rng.standard_normal(shape).astype(np.float32)}
    source, masked, cut = (_reference(model, feed) for model in (state.model, masked_original(state.rewriter), state.cut))
    # Said apart from the masked original, which takes a normalising node's numbers from the cut.
    groups = {node.attributes["groups"].as_int() for node in state.cut.graph if "groups" in node.attributes}
    assert groups <= {2}
    np.testing.assert_allclose(cut, masked, rtol=0, atol=1e-5 * np.abs(masked).max())
    # The comparison says something only where masking changes anything.
    assert np.abs(source - masked).max() > 1e-2 * np.abs(source).max()
    with pytest.raises(ModelError, match="nothing can be proved"):
        gp.prune(build(), rate=0.5, scope="group")


def _reference(model: ir.Model, feed: Mapping[str, np.ndarray]) -> np.ndarray:
    ops = [GroupNorm, SkipGroupNorm, BiasAdd, BiasSplitGelu, BiasSoftmax]
    return np.asarray(ReferenceEvaluator(writer.to_proto(model), new_ops=ops).run(None, dict(feed))[0])


# -- ops whose shapes are read off a standard op ----------------------------------------------------------
def test_quantised_average_pool() -> None:
    g = Net()
    s, z = g.f(0.03), g.c(100, np.uint8)
    x = g.QuantizeLinear(g.conv(g.x("N", 3, 6, 6), "a", 12, 3), s, z)
    x = g.ms("QLinearAveragePool", x, s, z, s, z, kernel_shape=[2, 2], strides=[2, 2], channels_last=0)
    g.out(g.conv(g.DequantizeLinear(x, s, z), "o", 4, 12), dtype=F32, shape=["N", 4, 3, 3])
    _check(gp.prune(g.model(), rate=0.5, scope="group"), {"a.w:0": 6, "o.w:1": 6}, STEP)


def test_expanded_axes() -> None:
    g = Net()
    x = g.ms("ExpandDims", g.Relu(g.linear(g.x("N", 7), "a", 7, 12)), g.c(1, np.int32))
    _check(gp.prune(done(g, x, 12, ("N", 1)), rate=0.5, scope="group"), {"a.w:1": 6, "o.w:0": 6}, 1e-5)


# -- frozen by design ------------------------------------------------------------------------------------
def test_frozen_ops_say_why() -> None:
    for name in ("QMoE", "PackedAttention", "SparseAttention", "DecoderMaskedMultiHeadAttention", "NhwcConv"):
        rule = load_rules()["com.microsoft", name]
        assert rule.couple is None
        assert len(rule.reason) > 20


@pytest.mark.parametrize("fusion", [0, 1])
def test_experts_keep_their_number_and_lose_width(fusion: int) -> None:
    """All experts lose the same inner units; a gate goes with what it gates."""
    g = Net()
    x = g.linear(g.Relu(g.linear(g.x("N", 7), "h", 7, 12)), "u", 12, D)
    router, n = g.linear(x, "r", D, 3), 40 if fusion else 20
    kind: dict[str, object] = {"activation_type": "swiglu", "swiglu_fusion": fusion} if fusion else {"activation_type": "relu"}
    x = g.ms("MoE", x, router, g.w("m1", 3, n, D, scale=0.25), g.w("m1b", 3, n), g.w("m2", 3, D, 20, scale=0.2),
             g.w("m2b", 3, D), k=2, **kind)  # fmt: skip
    result = gp.prune(done(g, x, D, ("N",)), rate=0.5, scope="group")
    widths = {"h.w:1": 6, "u.w:1": 8, "r.w:0": 8, "m1:1": n // 2, "m1:2": 8, "m1b:1": n // 2, "m2:1": 8, "m2:2": 10, "o.w:0": 8}
    _check(result, widths, 1e-5)
    assert not any("0" in result.plan.tensors[name]["kept"] for name in ("m1", "m1b", "m2", "m2b"))
    assert any(item["tensor"] == "m1" and "experts" in item["reason"] for item in result.plan.frozen)


def test_the_proof_has_teeth() -> None:
    """A cut with one wrong recurrent weight is not equal: exact equality elsewhere is no accident of the check."""
    from graphprune.calibration import samples_for
    from graphprune.comparing import compare

    result = gp.prune(lstm(), rate=0.5, scope="group")
    weight = result.model.graph.initializers["R"]
    assert weight.const_value is not None
    array = np.array(weight.const_value.numpy())
    array[0, 0, 0] += 1
    weight.const_value = ir.Tensor(array)
    rewriter = result.state.rewriter
    assert rewriter is not None
    worst, _ = compare(masked_original(rewriter), result.model, samples_for(result.state, n=2))
    assert worst > 1e-3


def test_helpers_build_valid_models() -> None:
    """Every model here is one that ONNX's checker takes: no case passes for want of a rule."""
    for one in CASES:
        model = one.build()
        onnx.checker.check_model(model)
        used = {(node.domain, node.op_type) for node in model.graph.node if node.op_type != "Constant"}
        assert used <= set(load_rules())
