"""Recovery: the linear forms, the solver, what elimination says, and whole networks brought back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import ModelProto, TensorProto, helper

import graphprune as gp
from graphprune.backends.ort import Runner
from graphprune.backends.stepper import Shelf, Stepper
from graphprune.elimination import Part, eliminate, losses, pivoted
from graphprune.fidelity import compare_outputs
from graphprune.layers import picks, read
from graphprune.lstsq import Rows
from graphprune.ops.linear_form import linear_form
from tests.patterns import PATTERNS
from tests.patterns.build import Net

RNG = np.random.default_rng(0)

CONVOLUTIONS: list[tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ("Conv", (2, 4, 9, 8), (6, 4, 3, 3), {"pads": [1, 1, 1, 1]}),
    ("Conv", (2, 4, 9, 8), (6, 4, 3, 2), {"strides": [2, 1], "pads": [1, 0, 2, 1]}),
    ("Conv", (1, 4, 9, 9), (6, 2, 3, 3), {"group": 2, "dilations": [2, 2]}),
    ("Conv", (2, 6, 7, 7), (6, 1, 3, 3), {"group": 6, "pads": [1] * 4}),
    ("Conv", (2, 6, 7, 7), (12, 1, 3, 3), {"group": 6, "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", (2, 3, 8, 7), (5, 3, 4, 4), {"auto_pad": "SAME_LOWER"}),
    ("Conv", (2, 3, 8), (5, 3, 3), {"auto_pad": "VALID"}),
    ("Conv", (1, 2, 5, 6, 4), (3, 2, 3, 3, 3), {"pads": [1] * 6}),
    ("ConvTranspose", (2, 4, 5, 6), (4, 3, 3, 3), {}),
    ("ConvTranspose", (2, 4, 5, 6), (4, 3, 4, 3), {"strides": [2, 3], "pads": [1, 0, 1, 2], "output_padding": [1, 0]}),
    ("ConvTranspose", (2, 4, 5, 5), (4, 3, 3, 3), {"group": 2, "strides": [2, 2], "dilations": [2, 1]}),
    ("ConvTranspose", (2, 4, 5, 5), (4, 3, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ("ConvTranspose", (1, 2, 6), (2, 3, 4), {"strides": [3], "output_shape": [18]}),
]
PRODUCTS: list[tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ("Gemm", (7, 5), (5, 4), {}),
    ("Gemm", (7, 5), (4, 5), {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("MatMul", (2, 3, 5), (5, 4), {}),
    ("MatMul", (5,), (5, 4), {}),
    ("MatMul", (4, 5), (2, 5, 3), {"left": 1}),
]


def _node(op: str, x: tuple[int, ...], w: tuple[int, ...], attributes: dict[str, Any]) -> tuple[ModelProto, np.ndarray, int]:
    """One node with a random weight (and a bias where the op has one), its input, and the number of outputs."""
    attributes = dict(attributes)
    left = attributes.pop("left", 0)
    if left:
        x, w = w, x
    out = {"Conv": w[0], "ConvTranspose": w[1] * attributes.get("group", 1)}.get(op, 0)
    if op == "Gemm":
        out = w[0] if attributes.get("transB") else w[1]
    names = ["w", "x"] if left else ["x", "w"]
    tensors = [helper.make_tensor("w", TensorProto.FLOAT, w, RNG.normal(size=w).ravel())]
    if out:
        names.append("b")
        tensors.append(helper.make_tensor("b", TensorProto.FLOAT, [out], RNG.normal(size=out)))
    node = helper.make_node(op, names, ["y"], name="n", **attributes)
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
                              [helper.make_empty_tensor_value_info("y")], tensors)  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model, RNG.normal(size=x).astype(np.float32), out


@pytest.mark.parametrize(("op", "x", "w", "attributes"), [*CONVOLUTIONS, *PRODUCTS])
def test_linear_form_is_what_the_runtime_computes(op: str, x: Any, w: Any, attributes: dict[str, Any]) -> None:
    proto, data, out = _node(op, x, w, attributes)
    model = ir.from_proto(proto)
    y = Runner(model).run({"x": data})["y"]
    node = model.graph[0]
    form = linear_form(node)
    assert form is not None
    weight = model.graph.initializers["w"].const_value.numpy()  # type: ignore[union-attr]
    matrix = form.matrix(weight)
    assert np.allclose(form.array(matrix, weight.shape), weight, atol=1e-6)
    axis = form.out_axis(y.ndim)
    where = picks(y.shape, axis, 40, np.random.default_rng(1))
    rows = form.patches(data, where, weight.shape)
    found = np.einsum("rgd,god->rgo", rows, matrix).reshape(len(rows), -1)
    if out:
        found += model.graph.initializers["b"].const_value.numpy() * form.bias_gain()  # type: ignore[union-attr]
    assert np.allclose(found, read(y, where, axis, [None] * y.ndim), atol=1e-4)


@pytest.mark.parametrize("intercept", [True, False])
def test_few_rows_give_what_many_formulas_give(intercept: bool) -> None:
    """Primal and dual solutions agree, and with a tiny ridge both reproduce data that fit exactly."""
    u = RNG.normal(size=(40, 2, 9)) + 1
    true = RNG.normal(size=(2, 3, 9))
    e = np.einsum("rgd,god->rgo", u, true) + (0.7 if intercept else 0)
    primal, dual = Rows(9, 1000), Rows(9, 5)
    for rows in (primal, dual):
        rows.add(u[:25], e[:25])
        rows.add(u[25:], e[25:])
    assert dual.dual and not primal.dual
    for ridge in (1e-6, 1e-2):
        (a, c), (b, d) = primal.solve(ridge, intercept), dual.solve(ridge, intercept)
        assert np.allclose(a, b, atol=1e-3)
        assert np.allclose(c, d, atol=1e-3)
    weight, shift = primal.solve(1e-7, intercept)
    assert np.allclose(weight, true, atol=1e-2)
    assert not intercept or np.allclose(shift, 0.7, atol=5e-2)


def test_loss_of_removed_inputs_by_hand() -> None:
    """Covariance [[2, 1], [1, 2]], weight (3, 1): without input 0 its share that input 1 predicts stays."""
    covariance = np.array([[2.0, 1.0], [1.0, 2.0]])
    weight = np.array([[3.0, 1.0]])
    energy = float((weight @ covariance @ weight.T)[0, 0])
    assert energy == 26.0
    part = Part(np.linalg.inv(covariance), weight, np.array([[0], [1]]), energy)
    # Removing input 0 leaves 9 * (2 - 1 * 1 / 2) = 13.5; removing both leaves everything.
    assert losses(part, np.array([0, 1])).tolist() == pytest.approx([0, 13.5 / 26, 1])
    # Input 1 is cheaper: 1 * (2 - 1/2) = 1.5, and what is left is the rest of the 26.
    order, costs = eliminate([part], 2)
    assert order.tolist() == [1, 0]
    assert costs.tolist() == pytest.approx([1.5 / 26, 24.5 / 26])


def test_losses_equal_regression() -> None:
    """The loss of a tail, from one Cholesky factor, is what least squares on the other inputs leaves."""
    u = RNG.normal(size=(4000, 6)) @ RNG.normal(size=(6, 6))
    u -= u.mean(0)
    weight = RNG.normal(size=(4, 6))
    y = u @ weight.T
    covariance = u.T @ u / len(u)
    part = Part(np.linalg.inv(covariance), weight, np.array([[0, 1], [2, 3], [4, 5]]), float(y.var(0).sum()))
    order = np.array([1, 0, 2])
    found = losses(part, order)
    for step, kept in enumerate(([0, 1, 4, 5], [4, 5]), start=1):
        fit = np.linalg.lstsq(u[:, kept], y, rcond=None)[0]
        assert found[step] == pytest.approx(np.square(y - u[:, kept] @ fit).mean(0).sum() / part.energy, rel=1e-6)
    greedy, costs = eliminate([part], 3)
    assert np.cumsum(costs)[:2] == pytest.approx(losses(part, greedy)[1:3], rel=1e-6)


def test_values_beyond_the_cap_come_back() -> None:
    shelf = Shelf(100)
    arrays = {i: RNG.normal(size=(5, i)).astype(np.float32) for i in range(6)}
    for key, array in arrays.items():
        shelf.put(key, array)
    shelf.drop(3)
    shelf.put(9, arrays[3])
    for key in (0, 1, 2, 4, 5):
        assert np.array_equal(shelf.get(key), arrays[key])
    assert np.array_equal(shelf.get(9), arrays[3])
    shelf.close()


@pytest.mark.parametrize("cap", [1 << 30, 1000])
def test_steps_compute_what_the_whole_computes(cap: int) -> None:
    model = ir.from_proto(PATTERNS["concat_crossed_by_groups"].build())
    feeds = [{"x": RNG.normal(size=(2, 3, 6, 6)).astype(np.float32)} for _ in range(3)]
    stepper = Stepper(model, feeds, cap)
    for position in (2, 3, 5, len(stepper.nodes)):
        stepper.advance(position)
    runner = Runner(model)
    for i, feed in enumerate(feeds):
        for name, array in runner.run(feed).items():
            value = next(v for v in model.graph.outputs if v.name == name)
            assert np.allclose(stepper.value(i, value), array, atol=1e-5)
    stepper.close()


def redundant(norm: bool) -> ModelProto:
    """Half of the middle channels are sums of the others: nothing need be lost when they go."""
    g = Net()
    x = g.x("N", 3, 8, 8)
    base = RNG.normal(size=(6, 3, 3, 3))
    mixed = np.einsum("ab,bikl->aikl", RNG.normal(size=(6, 6)) * 0.1, base)
    w = np.concatenate([base, mixed])
    y = g.Conv(x, g.f(w, "a.w"), g.f(RNG.normal(size=12), "a.b"), pads=[1] * 4)
    y = g.Conv(y, g.f(RNG.normal(size=(5, 12, 3, 3)), "b.w"), pads=[1] * 4)
    if norm:
        y = g.bn(y, "bn", 5)
    g.head(g.Relu(y), 5)
    return g.model()


@pytest.mark.parametrize("norm", [False, True])
def test_what_the_rest_can_express_comes_back_whole(norm: bool, tmp_path: Path) -> None:
    source = redundant(norm)
    result = gp.prune(source, passes=["l1", "recover"], rate=0.4, scope="group", samples=40, keep=["fc.w"])
    fidelity = result.plan.recovery["fidelity"]
    assert fidelity["before"]["divergence"] > 1e-3
    assert result.plan.recovery["used"]
    layer = next(layer for layer in result.plan.recovery["layers"] if layer["before"] > 1e-3)
    assert layer["after"] < 0.01 * layer["before"]
    result.save(tmp_path / "out.onnx")
    report = gp.verify(source, tmp_path / "out.onnx")
    assert report["passed"] and report["recovered"]


@pytest.mark.parametrize("mode", ["ls", "bn", "bias"])
def test_modes(mode: str, tmp_path: Path) -> None:
    source = PATTERNS["concat_crossed_by_groups"].build()
    result = gp.prune(source, passes=["l1", f"recover{{mode={mode}}}"], rate=0.3, scope="group", samples=24)
    recovery = result.plan.recovery
    assert recovery["mode"] == mode and recovery["layers"]
    if recovery["used"]:
        assert recovery["fidelity"]["after"]["divergence"] < recovery["fidelity"]["before"]["divergence"]
    result.save(tmp_path / "out.onnx")
    assert gp.verify(source, tmp_path / "out.onnx")["passed"]
    assert json.loads((tmp_path / "out.plan.json").read_text())["recovery"]["mode"] == mode


RECOVERED = [name for n, (name, pattern) in enumerate(PATTERNS.items()) if not pattern.nothing and n % 4 == 0]


@pytest.mark.parametrize("name", RECOVERED)
def test_every_kind_of_network_can_be_recovered(name: str, tmp_path: Path) -> None:
    """Recovery never fails, is never worse on held-out samples, and leaves the proof of the cut intact."""
    source = PATTERNS[name].build()
    result = gp.prune(source, passes=["l1", "recover"], rate=0.5, scope="group", samples=10)
    fidelity = result.plan.recovery["fidelity"]
    assert fidelity["after"]["divergence"] <= fidelity["before"]["divergence"]
    result.save(tmp_path / "out.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"))
    assert gp.verify(source, tmp_path / "out.onnx")["passed"]


def test_shared_weights_are_fitted_together(tmp_path: Path) -> None:
    g = Net()
    x = g.x("N", 3, 8, 8)
    w = g.w("shared.w", 6, 6, 3, 3)
    y = g.Relu(g.conv(x, "a", 6, 3, 3))
    y = g.Relu(g.Conv(y, w, pads=[1] * 4))
    y = g.Relu(g.Conv(y, w, pads=[1] * 4))
    g.head(g.cbr(y, "b", 8, 6), 8)
    source = g.model()
    result = gp.prune(source, passes=["l1", "recover"], rate=0.34, scope="group", samples=48)
    assert result.plan.recovery["used"]
    assert "shared.w" in result.plan.recovery["tensors"]
    names = [layer["layer"] for layer in result.plan.recovery["layers"]]
    assert len(names) == len(set(names))
    result.save(tmp_path / "out.onnx")
    assert gp.verify(source, tmp_path / "out.onnx")["passed"]


def test_scores_of_obs_prefer_what_the_others_express(tmp_path: Path) -> None:
    """The channels that are sums of others go first, whatever their size."""
    g = Net()
    x = g.x("N", 4, 8, 8)
    base = np.linalg.qr(RNG.normal(size=(4, 4)))[0].reshape(4, 4, 1, 1)
    copies = 5 * np.einsum("ab,bikl->aikl", np.eye(4)[[1, 0, 3, 2]] + 0.5 * np.eye(4), base)
    y = g.Conv(x, g.f(np.concatenate([base, copies]), "a.w"), g.f(np.zeros(8), "a.b"))
    y = g.Conv(y, g.f(RNG.normal(size=(6, 8, 1, 1)), "b.w"))
    g.head(g.Relu(y), 6)
    np.save(tmp_path / "x.npy", RNG.normal(size=(40, 4, 8, 8)).astype(np.float32))
    result = gp.prune(g.model(), passes=["obs"], rate=0.5, scope="group", keep=["fc.w"], data=tmp_path / "x.npy")
    scored = result.state.scores[0].values
    group = next(group for group in result.state.coupling.groups if len(group.units) == 8)  # type: ignore[union-attr]
    ordered = np.sort(scored[group.units])
    # Four of eight dimensions are all there is: the first four to go cost nothing, the fifth does.
    assert ordered[3] < 1e-2 * ordered[4]


def test_pivoted_cholesky_by_hand() -> None:
    """Variances 4, 1, 3; the third is half explained by the first: 3 - 2 * 2 / 4 = 2 is still the next."""
    gram = np.array([[4.0, 0.0, 2.0], [0.0, 1.0, 0.0], [2.0, 0.0, 3.0]])
    order, left = pivoted(gram)
    assert order.tolist() == [0, 2, 1]
    assert left.tolist() == pytest.approx([4, 2, 1])
    # A copy of what is kept is worth nothing, whatever its size.
    order, left = pivoted(np.array([[1.0, 3.0, 0.0], [3.0, 9.0, 0.0], [0.0, 0.0, 0.5]]))
    assert order.tolist() == [1, 2, 0]
    assert left.tolist() == pytest.approx([9, 0.5, 0])


def test_gram_keeps_what_the_others_do_not_express(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", RNG.normal(size=(40, 3, 8, 8)).astype(np.float32))
    source = redundant(False)
    result = gp.prune(source, passes=["gram"], rate=0.5, scope="group", keep=["fc.w"], data=tmp_path / "x.npy", samples=40)
    assert result.plan.scores["gram"]["unit"] == "share of the group's variance"
    kept = result.plan.tensors["a.w"]["kept"]["0"]
    # Six of twelve channels carry everything; the small sums of others are not among those kept.
    assert sorted(kept) == list(range(6))


def test_budget_by_dynamic_programming(tmp_path: Path) -> None:
    source = redundant(True)
    data = tmp_path / "x.npy"
    np.save(data, RNG.normal(size=(48, 3, 8, 8)).astype(np.float32))
    result = gp.prune(source, passes=["l1", "recover"], budget="macs=0.7", data=data, samples=48)
    kept = result.plan.after["macs"] / result.plan.before["macs"]
    assert kept < 0.75
    assert any("allocation by" in note for note in result.state.notes)


def test_fidelity_by_hand() -> None:
    a = [{"y": np.array([[2.0, 0.0], [0.0, 2.0]], np.float32)}]
    b = [{"y": np.array([[2.0, 0.0], [2.0, 0.0]], np.float32)}]
    same, other = compare_outputs(a, a), compare_outputs(a, b)
    assert same["outputs"]["y"] == {"rel_mse": 0.0, "top1": 1.0, "kl": 0.0}
    p = 1 / (1 + np.exp(-2.0))
    # Half of the rows are turned round: sum p ln(p/q) = (2p - 1) * 2 nats there.
    assert other["outputs"]["y"]["kl"] == pytest.approx((2 * p - 1) * 2 / 2)
    assert other["outputs"]["y"]["top1"] == 0.5
    # Squared error 8 over a variance of 4 (values 2, 0, 0, 2 about 1).
    assert other["outputs"]["y"]["rel_mse"] == pytest.approx(2.0)
