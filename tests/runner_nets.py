"""Networks for the tests of the ONNX Runtime runner, and what a plain session makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

Feeds = dict[str, np.ndarray]


def make(text: str, opset: str = '"" : 18', **weights: np.ndarray) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(f"<ir_version: 8, opset_import: [{opset}]>\n{text}")
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in weights.items())
    return proto


def plain(proto: onnx.ModelProto, feeds: Feeds) -> dict[str, Any]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) / 8).astype(np.float32)


def resnet(blocks: int = 6, width: int = 48) -> onnx.ModelProto:
    """A residual network: values live across several pieces, every convolution above the size written inline."""
    nodes, weights, current = [], {"w": draw(width, 3, 3, 3)}, "s"
    nodes.append(helper.make_node("Conv", ["x", "w"], ["s"], pads=[1] * 4, name="stem"))
    for i in range(blocks):
        weights |= {f"w{i}": draw(width, width, 3, 3, seed=i), f"b{i}": draw(width, seed=i)}
        nodes.append(helper.make_node("Conv", [current, f"w{i}", f"b{i}"], [f"c{i}"], pads=[1] * 4, name=f"conv{i}"))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"], name=f"relu{i}"))
        # Every other block skips two blocks back, so that what is live changes from piece to piece.
        skip = current if i % 2 else "s"
        nodes.append(helper.make_node("Add", [f"r{i}", skip], [f"a{i}"], name=f"add{i}"))
        current = f"a{i}"
    nodes.append(helper.make_node("GlobalAveragePool", [current], ["y"]))
    graph = helper.make_graph(
        nodes,
        "resnet",
        [helper.make_tensor_value_info("x", 1, ["n", 3, "h", "h2"])],
        [helper.make_tensor_value_info("y", 1, None), helper.make_tensor_value_info("a1", 1, None)],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def bodies() -> tuple[onnx.ModelProto, Feeds]:
    """If and Loop bodies that capture weights and live values, carry weights, and reuse each other's names."""
    big = {n: draw(100, 100, seed=i) for i, n in enumerate(("w1", "w2", "w3"))}
    proto = make(
        """agraph (float["n",100] x, bool c) => (float[] y, float[] s) {
            a = MatMul (x, w1)
            b = If (c) <then_branch = t () => (float[] o) { k = Identity (inner)  o = MatMul (a, k) },
                        else_branch = e () => (float[] o2) { m = MatMul (a, w2)  o2 = Add (m, x) }>
            n = Constant <value = int64 {3}> ()
            go = Constant <value = bool {1}> ()
            y, s = Loop (n, go, b) <body = l (int64 i, bool d, float[] h) => (bool d2, float[] h2, float[] r) {
                d2 = Identity (d)  m = MatMul (h, w3)  h2 = Tanh (m)  r = ReduceMean <keepdims = 0> (h2) }>
        }""",
        **big,
    )
    for node in proto.graph.node:
        for attribute in node.attribute:
            if attribute.name == "then_branch":
                attribute.g.initializer.append(numpy_helper.from_array(draw(100, 100, seed=9), "inner"))
            if attribute.name == "else_branch":
                attribute.g.initializer.append(numpy_helper.from_array(draw(100, 100, seed=8), "inner"))
                attribute.g.node.insert(0, helper.make_node("MatMul", ["a", "inner"], ["unused"]))
    return proto, {"x": draw(3, 100)}
