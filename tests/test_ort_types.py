"""The ONNX Runtime runner: element types that lack kernels, quantised weights, sequences and strings, bodies of control flow."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphprune.backends.ort import Runner
from graphprune.errors import ModelError
from tests.runner_nets import bodies, close, draw, make, plain

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


