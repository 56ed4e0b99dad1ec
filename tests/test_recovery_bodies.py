"""Recovery and data statistics of layers inside If, Loop and Scan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper

import graphprune as gp
from graphprune.backends.ort import Runner
from graphprune.ops.observe import Visible, hidden, walk
from tests.patterns import PATTERNS
from tests.patterns.build import BOOL, F32, I64, Net

RNG = np.random.default_rng(0)


def mixed(name: str, net: Net, outputs: int, inputs: int, kernel: int) -> str:
    """A kernel half of whose outputs are sums of the others, and its bias: nothing need be lost when they go."""
    half = outputs // 2
    base = RNG.normal(size=(half, inputs, kernel, kernel)) / inputs**0.5
    sums = 0.1 * np.einsum("ab,bikl->aikl", RNG.normal(size=(outputs - half, half)), base)
    return net.f(np.concatenate([base, sums]), name)


def pair(net: Net, x: str, name: str, outputs: int, width: int) -> str:
    """Two convolutions with a redundant map between them and nothing that bends it."""
    y = net.Conv(x, mixed(f"{name}1.w", net, 12, width, 3), net.f(np.zeros(12), f"{name}1.b"), pads=[1] * 4)
    w = net.f(RNG.normal(size=(outputs, 12, 3, 3)) / 12, f"{name}2.w")
    return net.Conv(y, w, net.f(RNG.normal(size=outputs), f"{name}2.b"), pads=[1] * 4)  # type: ignore[no-any-return]


def in_branches() -> ModelProto:
    g = Net()
    x = g.x(1, 3, 8, 8)
    flag = g.Greater(g.ReduceMean(x, keepdims=0), g.f(0.0))
    branches = []
    for n in ("then", "else"):
        s = g.body()
        s.y(pair(s, x, n, 5, 3), dtype=F32, shape=[1, 5, 8, 8])
        branches.append(s.graph(n))
    g.out(g.Relu(g.If(flag, then_branch=branches[0], else_branch=branches[1])), dtype=F32, shape=[1, 5, 8, 8])
    return g.model()


def in_loop() -> ModelProto:
    g = Net()
    x = g.x(1, 4, 8, 8)
    s = g.body()
    s.inputs.append(helper.make_tensor_value_info("i", I64, []))
    s.inputs.append(helper.make_tensor_value_info("go", BOOL, []))
    h = s.x(1, 4, 8, 8, name="h_in")
    s.y(s.Identity("go"), dtype=BOOL, shape=[])
    s.y(s.Tanh(pair(s, h, "loop", 4, 4)), dtype=F32, shape=[1, 4, 8, 8])
    g.out(g.Loop(g.c(3), g.c(True, bool), x, body=s.graph("body")), dtype=F32, shape=[1, 4, 8, 8])
    return g.model()


def in_scan() -> ModelProto:
    g = Net()
    x = g.x(5, 1, 4, 6, 6)
    s = g.body()
    h = s.x(1, 4, 6, 6, name="h_in")
    step = s.x(1, 4, 6, 6, name="step")
    y = s.Tanh(s.Add(h, pair(s, step, "scan", 4, 4)))
    s.y(y, dtype=F32, shape=[1, 4, 6, 6])
    s.y(s.Identity(y), dtype=F32, shape=[1, 4, 6, 6])
    state = g.f(np.zeros((1, 4, 6, 6)))
    last, every = g.op("Scan", state, x, n=2, num_scan_inputs=1, body=s.graph("body"), scan_output_axes=[1])
    g.out(g.Add(g.ReduceMean(every, axes=[1], keepdims=0), last), dtype=F32, shape=[1, 4, 6, 6])
    return g.model(opset=17)


BODIES: dict[str, Callable[[], ModelProto]] = {"If": in_branches, "Loop": in_loop, "Scan": in_scan}


@pytest.mark.parametrize("name", BODIES)
def test_layers_of_bodies_come_back_whole(name: str, tmp_path: Path) -> None:
    source = BODIES[name]()
    result = gp.prune(source, passes=["l1", "recover"], rate=0.4, scope="group", samples=40)
    recovery = result.plan.recovery
    assert recovery["used"] and not recovery["left"]
    assert recovery["fidelity"]["before"]["divergence"] > 1e-3
    # What comes out of a loop goes in again: there the fit closes in, a round at a time.
    share = 0.1 if name == "Loop" else 0.01
    assert recovery["fidelity"]["after"]["divergence"] < share * recovery["fidelity"]["before"]["divergence"]
    fitted = [layer for layer in recovery["layers"] if layer["kept"]]
    assert len(fitted) >= (2 if name == "If" else 1)
    result.save(tmp_path / "out.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"), full_check=True)
    report = gp.verify(source, tmp_path / "out.onnx")
    assert report["passed"] and report["recovered"]


@pytest.mark.parametrize("name", BODIES)
def test_scores_and_budgets_see_into_bodies(name: str) -> None:
    """obs knows what every layer inside reads: the sums of others go before what they are sums of."""
    result = gp.prune(BODIES[name](), passes=["obs"], budget="macs=0.6", allocate="dp", samples=40)
    state = result.state
    names = {str(c.node.inputs[1].name) for c in state.statistics.consumers if c.node.inputs[1] is not None}
    assert names == ({"then2.w", "else2.w"} if name == "If" else {f"{name.lower()}2.w"})
    assert state.dead is not None
    for weight, entry in result.plan.tensors.items():
        if weight.endswith("1.w"):
            removed = set(range(12)) - set(entry["kept"]["0"])
            assert removed and removed <= set(range(6, 12)), weight


def test_a_branch_that_no_sample_takes_is_left_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", 1 + RNG.normal(size=(20, 3, 8, 8)).astype(np.float32))
    for criterion in ("l1", "obs"):
        result = gp.prune(in_branches(), passes=[criterion, "recover"], rate=0.4, scope="group", data=tmp_path / "x.npy")
        kept = {layer["layer"] for layer in result.plan.recovery["layers"] if layer["kept"]}
        assert len(kept) == 1
        assert "else2.w" not in result.plan.recovery["tensors"]
        assert "then2.w" in result.plan.recovery["tensors"]


def test_what_is_shown_is_what_the_body_computes() -> None:
    """A loop of y := 2y + 1 shown from inside, beside the numbers worked by hand."""
    g = Net()
    x = g.x(2, 1)
    s = g.body()
    s.inputs.append(helper.make_tensor_value_info("i", I64, []))
    s.inputs.append(helper.make_tensor_value_info("go", BOOL, []))
    h = s.x(2, 1, name="h_in")
    doubled = s.op("MatMul", h, s.f([[2.0]]), out="doubled")
    s.y(s.Identity("go"), dtype=BOOL, shape=[])
    s.y(s.Add(doubled, s.f(1.0)), dtype=F32, shape=[2, 1])
    g.out(g.Loop(g.c(3), g.c(True, bool), x, body=s.graph("body")), dtype=F32, shape=[2, 1])
    state = gp.inspect(g.model())
    node, path = next((n, p) for n, p in walk(state.model.graph) if n.op_type == "MatMul")
    assert node.inputs[0] is not None and not hidden(path)
    places = [(node.inputs[0], path), (node.outputs[0], path), (state.model.graph.inputs[0], path)]
    visible = Visible(state.model, places, state.need_facts())
    before = {graph: len(graph.outputs) for graph in state.model.graphs()}
    found = Runner(visible.model, outputs=visible.outputs()).run({"x": np.array([[1.0], [0.0]], np.float32)})
    inputs, outputs, captured = (np.concatenate(visible.instances(place, found)).reshape(-1).tolist() for place in places)
    assert inputs == [1, 0, 3, 1, 7, 3]
    assert outputs == [2, 0, 6, 2, 14, 6]
    assert captured == [1, 0, 1, 0, 1, 0]
    assert before == {graph: len(graph.outputs) for graph in state.model.graphs()}


def test_every_pattern_with_bodies_can_be_looked_into() -> None:
    seen = 0
    for pattern in PATTERNS.values():
        state = gp.inspect(pattern.build())
        places = [(v, path) for node, path in walk(state.model.graph) for v in node.outputs if path and not hidden(path)]
        if places:
            visible = Visible(state.model, places, state.need_facts())
            assert Runner.supported(visible.model) == (True, "")
            seen += 1
    assert seen >= 10
