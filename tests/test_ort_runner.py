"""The ONNX Runtime runner: the same numbers as one plain session, whatever the pieces, in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphprune.backends.ort import NONE, Runner
from graphprune.backends.pieces import cut, needed_nodes
from graphprune.errors import DataError, ModelError, UsageError
from graphprune.facts import constant_tensor

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


# Pieces


@pytest.mark.parametrize("cap", [1 << 30, 200_000, 90_000, 0])
def test_pieces_agree_with_a_plain_session(cap: int) -> None:
    proto, feeds = resnet(), {"x": draw(2, 3, 9, 9)}
    runner = Runner(ir.from_proto(proto), max_weight_bytes=cap)
    close(runner.run(feeds), plain(proto, feeds))
    close(runner.run({"x": draw(1, 3, 5, 5)}), plain(proto, {"x": draw(1, 3, 5, 5)}))
    assert runner.pieces == {1 << 30: 1, 200_000: 3, 90_000: 7, 0: 7}[cap]


def test_no_piece_holds_more_than_the_cap_but_for_a_single_node() -> None:
    model = ir.from_proto(resnet())

    def cost(value: ir.Value) -> int:
        tensor = constant_tensor(value)
        return 0 if tensor is None else int(tensor.nbytes)

    pieces = cut(model.graph, model.graph.outputs, 170_000, cost)
    assert len(pieces) > 2
    assert all(p.cost <= 170_000 and p.cost == sum(map(cost, p.weights)) for p in pieces)
    assert [n for p in pieces for n in p.nodes] == list(model.graph)
    small = cut(model.graph, model.graph.outputs, 1000, cost)
    assert all(sum(any(cost(v) for v in n.inputs) for n in p.nodes) == 1 for p in small)


def test_values_are_freed_after_their_last_use() -> None:
    model = ir.from_proto(resnet())
    pieces = cut(model.graph, model.graph.outputs, 0, lambda v: 1)
    live: set[str] = set()
    for piece in pieces:
        read = {str(v.name) for v in piece.inputs}
        assert read <= live | {"x"}
        live |= {str(v.name) for v in piece.outputs}
        live -= {str(v.name) for v in piece.last}
    assert not live


def test_only_what_is_asked_for_runs() -> None:
    proto = resnet()
    proto.graph.node.add(op_type="Mystery", domain="nowhere", input=["a5"], output=["z"], name="last")
    proto.graph.output.add(name="z")
    model = ir.from_proto(proto)
    found = Runner(model, outputs=["r2", "y", "w1", "x"], max_weight_bytes=90_000).run({"x": draw(1, 3, 6, 6)})
    del proto.graph.node[-1], proto.graph.output[:]
    proto.graph.output.extend(helper.make_tensor_value_info(n, 1, None) for n in ("r2", "y"))
    expected = plain(proto, {"x": draw(1, 3, 6, 6)})
    assert list(found) == ["r2", "y", "w1", "x"]
    close({n: found[n] for n in expected}, expected)
    assert np.array_equal(found["w1"], draw(48, 48, 3, 3, seed=1))
    assert np.array_equal(found["x"], draw(1, 3, 6, 6))


def test_unknown_output_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="'nothing'"):
        Runner(ir.from_proto(resnet()), outputs=["nothing"])


def test_nodes_out_of_order_are_sorted() -> None:
    proto, feeds = resnet(), {"x": draw(1, 3, 6, 6)}
    expected = plain(proto, feeds)
    nodes = list(proto.graph.node)[::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    model = ir.from_proto(proto)
    assert [n.name for n in needed_nodes(model.graph, model.graph.outputs)] != [n.name for n in model.graph]
    close(Runner(model, max_weight_bytes=90_000).run(feeds), expected)


def test_a_cycle_is_an_error() -> None:
    a, b = ir.Node("", "Relu", [None], name="a"), ir.Node("", "Relu", [None], name="b")
    a.replace_input_with(0, b.outputs[0])
    b.replace_input_with(0, a.outputs[0])
    a.outputs[0].name, b.outputs[0].name = "p", "q"
    graph = ir.Graph([], [b.outputs[0]], nodes=[a, b], opset_imports={"": 18})
    with pytest.raises(ModelError, match="cycle"):
        Runner(ir.Model(graph, ir_version=8))


def test_run_many_loads_each_piece_once_for_a_batch() -> None:
    proto = resnet()
    loads: list[str] = []

    def note(value: ir.Value) -> None:
        loads.append(str(value.name))

    samples = [{"x": draw(1, 3, 6, 6, seed=i)} for i in range(9)]
    found: dict[int, Any] = {}
    runner = Runner(ir.from_proto(proto), max_weight_bytes=90_000, replace=note)
    runner.run_many(iter(samples), found.__setitem__)
    assert list(found) == list(range(9))
    assert loads.count("w3") == 2  # for the sample that shows the size, and for the others at once
    for i, sample in enumerate(samples):
        close(found[i], plain(proto, sample))
    loads.clear()
    tight = Runner(ir.from_proto(proto), max_weight_bytes=90_000, max_activation_bytes=1, replace=note)
    tight.run_many(samples[:4], found.__setitem__)
    assert loads.count("w3") == 4


# Weights


@pytest.mark.parametrize("cap", [1 << 30, 90_000])
def test_replaced_weights(cap: int) -> None:
    proto, feeds = resnet(), {"x": draw(1, 3, 6, 6)}

    def masked(value: ir.Value) -> np.ndarray | None:
        tensor = constant_tensor(value)
        if value.name not in ("w2", "b2") or tensor is None:
            return None
        array = tensor.numpy().copy()
        array[::2] = 0
        return array

    model = ir.from_proto(proto)
    found = Runner(model, max_weight_bytes=cap, replace=masked).run(feeds)
    assert not np.array_equal(found["y"], Runner(model, max_weight_bytes=cap).run(feeds)["y"])
    for tensor in proto.graph.initializer:
        if tensor.name in ("w2", "b2"):
            array = numpy_helper.to_array(tensor).copy()
            array[::2] = 0
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    close(found, plain(proto, feeds))


def test_a_replacement_of_another_shape_is_an_error() -> None:
    runner = Runner(ir.from_proto(resnet()), replace=lambda v: np.zeros(3, np.float32) if v.name == "w1" else None)
    with pytest.raises(ModelError, match=r"'w1'.*\[48, 48, 3, 3\].*\[3\]"):
        runner.run({"x": draw(1, 3, 6, 6)})


@pytest.mark.parametrize("cap", [1 << 30, 0])
def test_constant_nodes_are_weights(cap: int) -> None:
    proto, feeds = resnet(), {"x": draw(1, 3, 6, 6)}
    expected = plain(proto, feeds)
    nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in proto.graph.initializer]
    nodes += list(proto.graph.node)
    del proto.graph.initializer[:], proto.graph.node[:]
    proto.graph.node.extend(nodes)
    runner = Runner(ir.from_proto(proto), max_weight_bytes=cap)
    close(runner.run(feeds), expected)
    assert (runner.pieces > 5) == (cap == 0)


def external(folder: Path, proto: onnx.ModelProto, pad: int = 0) -> ir.Model:
    """Save with external data, after ``pad`` bytes that put every tensor at an odd place."""
    path = folder / "model.onnx"
    with (folder / "weights").open("wb") as file:
        file.write(b"\0" * pad)
        for tensor in proto.graph.initializer:
            offset = file.tell()
            file.write(tensor.raw_data)
            entries = {"location": "weights", "offset": str(offset), "length": str(len(tensor.raw_data))}
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())
    return ir.load(path)


@pytest.mark.parametrize("pad", [0, 3])
@pytest.mark.parametrize("cap", [1 << 30, 90_000])
def test_external_weights_aligned_or_not(tmp_path: Path, cap: int, pad: int) -> None:
    proto, feeds = resnet(), {"x": draw(1, 3, 6, 6)}
    expected = plain(proto, feeds)
    runner = Runner(external(tmp_path, proto, pad), max_weight_bytes=cap)
    close(runner.run(feeds), expected)
    close(runner.run(feeds), expected)  # after the pages were dropped


def test_missing_external_data_names_the_tensor(tmp_path: Path) -> None:
    model = external(tmp_path, resnet())
    (tmp_path / "weights").unlink()
    with pytest.raises(ModelError, match=r"'w0?'"):
        Runner(model).run({"x": draw(1, 3, 6, 6)})


# Element types


NARROW: list[tuple[str, Any]] = [
    ("FLOAT16", np.float16), ("BFLOAT16", ml_dtypes.bfloat16), ("DOUBLE", np.float64),
]  # fmt: skip


@pytest.mark.parametrize(("name", "dtype"), NARROW)
@pytest.mark.parametrize("cap", [1 << 30, 0])
@pytest.mark.parametrize("widen", [None, True])
def test_float_types_run_even_without_kernels(name: str, dtype: Any, cap: int, widen: bool | None) -> None:
    kind = getattr(TensorProto, name)
    w, k, v = draw(100, 3, 3, 3).astype(dtype), draw(100, 100, seed=1).astype(dtype), draw(100, seed=2).astype(dtype)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("GlobalMaxPool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "k"], ["m"]),
        helper.make_node("Cast", ["m"], ["g"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["g"], ["h"], to=kind),
        helper.make_node("Add", ["h", "v"], ["y"]),
    ]
    tensors = [ir.serde.serialize_tensor(ir.tensor(a, name=n)) for n, a in (("w", w), ("k", k), ("v", v))]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, [1, 3, 5, 5])],
        [helper.make_tensor_value_info("y", kind, None)],
        tensors,
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))
    x = draw(1, 3, 5, 5).astype(dtype)
    runner = Runner(model, max_weight_bytes=cap, widen=widen)
    found = runner.run({"x": x})["y"]
    wide, f64 = w.astype(np.float64), x.astype(np.float64)
    conv = np.array(
        [[(f64[0, :, i : i + 3, j : j + 3] * f).sum() for i in range(3) for j in range(3)] for f in wide]
    ).max(1)
    expected = conv @ k.astype(np.float64) + v.astype(np.float64)
    assert found.dtype == (np.float32 if runner.widened else dtype)
    # Double convolutions and bfloat16 have no kernels; half has, and is widened on request only.
    assert runner.widened == (name != "FLOAT16" or bool(widen))
    np.testing.assert_allclose(found[0].astype(np.float64), expected, atol=1e-5 if runner.widened else 2e-2)
    assert Runner.supported(model) == (True, "")


def test_without_widening_a_missing_kernel_is_an_error() -> None:
    proto = make("agraph (bfloat16[4] x) => (bfloat16[4] y) { y = Sigmoid (x) }")
    with pytest.raises(ModelError, match=r"no implementation of Sigmoid.*'y'"):
        Runner(ir.from_proto(proto), widen=False).run({"x": np.zeros(4, ml_dtypes.bfloat16)})


def test_bfloat16_passes_through_unchanged_where_it_can() -> None:
    proto = make("agraph (bfloat16[2,3] x) => (bfloat16[] y) { t = Transpose (x)  y = Identity (t) }")
    x = np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16)
    found = Runner(ir.from_proto(proto)).run({"x": x})["y"]
    assert found.dtype == ml_dtypes.bfloat16
    assert np.array_equal(found, x.T)


@pytest.mark.parametrize("cap", [1 << 30, 0])
def test_quantised_weights(cap: int) -> None:
    """8-bit, 4-bit and float8 weights behind DequantizeLinear."""
    rng = np.random.default_rng(0)
    q8 = rng.integers(-128, 128, (200, 200)).astype(np.int8)
    q4 = rng.integers(-8, 8, (200, 30)).astype(ml_dtypes.int4)
    f8 = rng.standard_normal((200, 200)).astype(ml_dtypes.float8_e4m3fn)
    scale = np.float32(0.02)
    nodes, current = [], "x"
    for name in ("f8", "q8", "q4"):
        nodes.append(helper.make_node("DequantizeLinear", [name, "scale"], [f"d{name}"], name=f"dq{name}"))
        nodes.append(helper.make_node("MatMul", [current, f"d{name}"], [f"m{name}"]))
        current = f"m{name}"
    tensors = [ir.serde.serialize_tensor(ir.tensor(a, name=n)) for n, a in (("f8", f8), ("q8", q8), ("q4", q4))]
    tensors.append(numpy_helper.from_array(np.array(scale), "scale"))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["n", 200])],
        [helper.make_tensor_value_info(current, 1, None)],
        tensors,
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    x = draw(2, 200)
    runner = Runner(model, max_weight_bytes=cap)
    expected = x.astype(np.float64)
    for weight in (f8, q8, q4):
        expected = expected @ (weight.astype(np.float64) * float(scale))
    found = runner.run({"x": x})[current]
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert (runner.pieces > 1) == (cap == 0)


@pytest.mark.parametrize("cap", [1 << 30, 0])
def test_sequences_and_strings(cap: int) -> None:
    sequence = make(
        """agraph (float["n",4] x) => (seq(float[]) q, float[] z) {
            a = MatMul (x, w)  b = Relu (a)  q = SequenceConstruct (a, b)  i = Constant <value = int64 {1}> ()
            c = SequenceAt (q, i)  z = MatMul (c, v)
        }""",
        w=draw(4, 2000),
        v=draw(2000, 4),
    )
    found = Runner(ir.from_proto(sequence), max_weight_bytes=cap).run({"x": draw(2, 4)})
    expected = plain(sequence, {"x": draw(2, 4)})
    assert len(found["q"]) == 2
    for a, b in zip(found["q"], expected["q"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["z"], expected["z"], rtol=1e-5, atol=1e-6)
    text = make(
        """agraph (string[2] s, float[2,4] x) => (float[] y, string[] t) {
            y = MatMul (x, w)  t = Identity (s)
        }""",
        w=draw(4, 2000),
    )
    found = Runner(ir.from_proto(text), max_weight_bytes=cap).run({"s": np.array(["a", "bc"]), "x": draw(2, 4)})
    assert found["t"].tolist() == ["a", "bc"]
    assert found["y"].shape == (2, 2000)


# Bodies


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


@pytest.mark.parametrize("cap", [1 << 30, 100_000, 0])
@pytest.mark.parametrize("condition", [True, False])
def test_bodies_capture_from_earlier_pieces(cap: int, condition: bool) -> None:
    proto, feeds = bodies()
    feeds["c"] = np.array(condition)
    runner = Runner(ir.from_proto(proto), max_weight_bytes=cap)
    close(runner.run(feeds), plain(proto, feeds))
    assert runner.pieces == {1 << 30: 1, 100_000: 3, 0: 3}[cap]


def test_weights_inside_bodies_can_be_replaced() -> None:
    proto, feeds = bodies()
    feeds["c"] = np.array(True)

    def zero(value: ir.Value) -> np.ndarray | None:
        return np.zeros((100, 100), np.float32) if value.name == "inner" else None

    for cap in (1 << 30, 0):
        found = Runner(ir.from_proto(proto), outputs=["b"], max_weight_bytes=cap, replace=zero).run(feeds)
        assert not found["b"].any()


def test_scan_in_a_piece_of_its_own() -> None:
    proto = make(
        """agraph (float[2,5,100] x, float[2,100] h) => (float[] y, float[] z) {
            a = MatMul (x, w1)
            y, z = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1],
                body = b (float[2,100] g, float[2,100] e) => (float[2,100] g2, float[2,100] o) {
                    m = MatMul (g, w2)  t = Add (m, e)  g2 = Tanh (t)  o = Identity (t) }> (h, a)
        }""",
        w1=draw(100, 100),
        w2=draw(100, 100, seed=1),
    )
    feeds = {"x": draw(2, 5, 100), "h": draw(2, 100)}
    for cap in (1 << 30, 0):
        close(Runner(ir.from_proto(proto), max_weight_bytes=cap).run(feeds), plain(proto, feeds))


def test_stale_shapes_inside_the_graph_do_not_matter() -> None:
    """A rewritten graph may still carry the sizes from before."""
    proto, feeds = bodies()
    feeds["c"] = np.array(False)
    model = ir.from_proto(proto)
    for node in model.graph.all_nodes():
        for value in node.outputs:
            value.shape = ir.Shape([77, 78])
    close(Runner(model).run(feeds), plain(proto, feeds))


# Errors


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({}, ["'x'", "no data"]),
        ({"x": draw(1, 3, 6, 6), "z": draw(1)}, ["'z'", "x"]),
        ({"x": np.zeros((1, 3, 6, 6))}, ["'x'", "float64", "takes float"]),
    ],
)
def test_feeds_that_do_not_fit(feeds: Feeds, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        Runner(ir.from_proto(resnet())).run(feeds)
    assert all(word in str(caught.value) for word in words)


def failing(kind: str) -> tuple[onnx.ModelProto, list[str]]:
    if kind == "opset":
        proto = resnet()
        proto.opset_import[0].version = 900
        return proto, ["opset 900", "supports up to opset", ort.__version__]
    if kind == "domain":
        proto = make("agraph (float[4] x) => (float[] y) { y = my.domain.Mystery (x) }", '"" : 18, "my.domain" : 1')
        return proto, ["my.domain:Mystery", "custom operator library"]
    if kind == "op":
        return make("agraph (float[4] x) => (float[] y) { y = Mystery (x) }"), ["Mystery", "cannot load"]
    proto = make("agraph (float[4] x, int64[1] s) => (float[] y) { y = Reshape (x, s) }")
    proto.graph.node[0].name = "my/reshape"
    return proto, ["Reshape 'my/reshape'", "{4}", "{3}"]


@pytest.mark.parametrize("kind", ["opset", "domain", "op", "run"])
@pytest.mark.parametrize("cap", [1 << 30, 0])
def test_failures_are_one_clear_message(kind: str, cap: int, capfd: pytest.CaptureFixture[str]) -> None:
    proto, words = failing(kind)
    feeds: Feeds = {"x": draw(1, 3, 6, 6) if kind == "opset" else draw(4)}
    if kind == "run":
        feeds["s"] = np.array([3])
    with pytest.raises(ModelError) as caught:
        Runner(ir.from_proto(proto), max_weight_bytes=cap).run(feeds)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert ".cc:" not in message and ".h:" not in message
    assert capfd.readouterr().err == ""
    ok, why = Runner.supported(ir.from_proto(proto))
    assert ok == (kind == "run")
    assert ok or all(word in why for word in words)


def test_supported_does_not_read_large_weights(tmp_path: Path) -> None:
    model = external(tmp_path, resnet(width=96))
    inline = {
        str(v.name)
        for v in model.graph.initializers.values()
        if v.const_value is not None and v.const_value.nbytes < 999
    }
    (tmp_path / "weights").write_bytes((tmp_path / "weights").read_bytes())
    read: list[str] = []
    for value in model.graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None

        def load(tensor: ir.TensorProtocol = tensor, name: str = str(value.name)) -> ir.TensorProtocol:
            read.append(name)
            return tensor

        value.const_value = ir.LazyTensor(load, dtype=tensor.dtype, shape=ir.Shape(tensor.shape), name=value.name)
    assert Runner.supported(model) == (True, "")
    assert set(read) <= inline | {"w"}
    assert "w3" not in read


def test_newer_ir_version_is_no_obstacle() -> None:
    proto, feeds = resnet(), {"x": draw(1, 3, 6, 6)}
    model = ir.from_proto(proto)
    model.ir_version = 99
    close(Runner(model).run(feeds), plain(proto, feeds))


def test_optimisation_can_be_switched_off() -> None:
    proto, feeds = resnet(), {"x": draw(1, 3, 6, 6)}
    close(Runner(ir.from_proto(proto), level=NONE, threads=1).run(feeds), plain(proto, feeds))


def test_local_functions_run() -> None:
    text = """<ir_version: 8, opset_import: ["" : 18, "local" : 1]>
        agraph (float[4] x) => (float[] y) { y = local.Twice (x) }
        <domain: "local", opset_import: ["" : 18]> Twice (a) => (b) { b = Add (a, a) }"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    assert Runner(model).run({"x": draw(4)})["y"].tolist() == (2 * draw(4)).tolist()


# Memory


def write_large(folder: Path, layers: int, size: int) -> Path:
    """Stream a model of MatMul and Relu layers with external weights to disk; one layer in memory at a time."""
    graph = onnx.GraphProto(name="large")
    graph.input.append(helper.make_tensor_value_info("x", 1, ["n", size]))
    block, current, length = draw(size, size), "x", 4 * size * size
    with (folder / "large.data").open("wb") as file:
        for i in range(layers):
            file.write(np.roll(block, 7 * i, axis=0).tobytes())
            tensor = graph.initializer.add(name=f"w{i}", data_type=1, dims=[size, size], data_location=1)
            for key, value in (("location", "large.data"), ("offset", i * length), ("length", length)):
                tensor.external_data.add(key=key, value=str(value))
            graph.node.append(helper.make_node("MatMul", [current, f"w{i}"], [f"m{i}"], name=f"matmul{i}"))
            graph.node.append(helper.make_node("Relu", [f"m{i}"], [f"r{i}"], name=f"relu{i}"))
            current = f"r{i}"
    graph.output.append(helper.make_tensor_value_info(current, 1, ["n", size]))
    path = folder / "large.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


MEASURE = """
import json, resource, sys
import numpy as np, onnx_ir as ir
from graphprune.backends.ort import Runner
from graphprune.frontends.onnx import load
model = load(sys.argv[1]).model
size, masked = int(sys.argv[2]), sys.argv[3] == "masked"
name = model.graph.outputs[0].name
x = np.full((2, size), 0.01, np.float32)
y = Runner(model, replace=(lambda v: v.const_value.numpy() * 1) if masked else None).run({"x": x})[name]
peak = 0
for line in open("/proc/self/status"):
    if line.startswith("VmHWM"):
        peak = int(line.split()[1]) * 1024
print(json.dumps({"peak": peak, "sum": float(y.sum()), "finite": bool(np.isfinite(y).all())}))
"""


def measure(path: Path, size: int, mode: str, script: str = MEASURE) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", script, str(path), str(size), mode],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@linux
@pytest.mark.slow
def test_a_model_of_2_5_gb_runs_in_1_2_gb(tmp_path: Path) -> None:
    path = write_large(tmp_path, 40, 4096)
    assert (tmp_path / "large.data").stat().st_size > 2.5e9
    as_it_is, replaced = measure(path, 4096, "plain"), measure(path, 4096, "masked")
    assert as_it_is["finite"]
    assert replaced["sum"] == as_it_is["sum"]
    assert as_it_is["peak"] < 1.2e9
    assert replaced["peak"] < 1.2e9


@linux
def test_memory_stays_below_the_weights(tmp_path: Path) -> None:
    """The same in small: 160 MB of weights in pieces of 16 MB add far less than the weights."""
    script = MEASURE.replace("* 1) if masked else None)", "* 1) if masked else None, max_weight_bytes=16 << 20)")
    path = write_large(tmp_path, 40, 1024)
    large = measure(path, 1024, "masked", script)
    grown = large["peak"] - measure(write_large(tmp_path, 1, 1024), 1024, "masked", script)["peak"]
    assert grown < 70e6


@pytest.mark.parametrize("make_model", [resnet, lambda: bodies()[0]])
def test_the_model_is_left_as_it_was(make_model: Callable[[], onnx.ModelProto]) -> None:
    model = ir.from_proto(make_model())
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    feeds: Feeds = {"x": draw(1, 3, 6, 6)} if len(model.graph.inputs) == 1 else {"x": draw(3, 100), "c": np.array(True)}
    Runner(model, max_weight_bytes=0).run(feeds)
    Runner.supported(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
