"""Shapes and small values: against ONNX's own operator cases, and what files do that those do not show."""

from __future__ import annotations

import math
import random
import time
import warnings
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphprune.errors import ModelError
from graphprune.facts import OPEN
from graphprune.shapes import Facts, infer, probe_inputs, step
from tests.shape_nets import FLOAT, INT64, by_name, parse, shapes_of

# Against ONNX's operator cases


@pytest.fixture(scope="module")
def cases() -> list[Any]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [c for c in collect_testcases(None) if c.model is not None]


def test_agrees_with_every_operator_case_of_onnx(cases: list[Any]) -> None:
    """No shape, dtype or value that is claimed differs from the expected outputs, known inputs or not."""
    shapes = values = 0
    wrong: list[str] = []
    for case in cases:
        feeds, expected = _data(case)
        for know in (False, True):
            model = ir.from_proto(case.model)
            for node in model.graph.all_nodes():
                for value in node.outputs:
                    value.shape = None  # what the file states must not help
            known = {n: x for n, x in feeds.items() if know and x.dtype.kind in "iufb"}
            facts = infer(model, {n: x.shape for n, x in feeds.items()}, input_values=known)
            for value, array in zip(model.graph.outputs, expected, strict=False):
                if not isinstance(array, np.ndarray):
                    continue
                shape, found = facts.shape(value), facts.known(value)
                shapes += shape is not None
                values += found is not None
                if shape is not None and shape != array.shape:
                    wrong.append(f"{case.name}: shape {shape}, expected {array.shape}")
                if found is not None and not _equal(found, array):
                    wrong.append(f"{case.name}: {found!r}, expected {array!r}")
            if any("Error" not in m and "too small" not in m for _, m in facts.problems):
                wrong.append(f"{case.name}: {facts.problems}")
    assert not wrong, "\n".join(wrong[:20])
    assert shapes > 3000
    assert values > 1200


def _data(case: Any) -> tuple[dict[str, np.ndarray], list[Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inputs, outputs = case.data_sets[0]
    names = [i.name for i in case.model.graph.input]
    return {n: x for n, x in zip(names, inputs, strict=False) if isinstance(x, np.ndarray)}, list(outputs)


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape != b.shape:
        return False
    return np.allclose(a.astype(np.float64), b.astype(np.float64), rtol=1e-3, atol=1e-5, equal_nan=True)


def test_mutated_operator_cases_never_raise(cases: list[Any]) -> None:
    """Wrong ranks, axes, sizes of 2**62, missing inputs, foreign operators: all end in facts, none in an error."""
    rnd = random.Random(0)
    usable = [c for c in cases if c.model.ByteSize() < 20_000]
    done = 0
    for _ in range(1500):
        proto = onnx.ModelProto()
        proto.CopyFrom(rnd.choice(usable).model)
        node = rnd.choice(proto.graph.node)
        for attribute in node.attribute:
            attribute.i = rnd.choice([-(2**63), -5, 0, 3, 2**40])
            attribute.ints[:] = [rnd.choice([-7, 0, 2, 2**62]) for _ in attribute.ints]
        if len(node.input) and rnd.random() < 0.5:
            del node.input[rnd.randrange(len(node.input))]
        if rnd.random() < 0.3:
            node.op_type = rnd.choice(usable).model.graph.node[0].op_type
        for info in proto.graph.input:
            for dim in info.type.tensor_type.shape.dim:
                if rnd.random() < 0.2:
                    dim.dim_value = rnd.choice([-1, 0, 1, 7, 2**40])
        try:
            model = ir.from_proto(proto)
        except Exception:  # the library's own loader refuses; not what is tested
            continue
        infer(model, probe_inputs(model, {}))
        done += 1
    assert done > 1000


# Shape arithmetic


def test_shape_arithmetic_reaches_the_reshape() -> None:
    found = shapes_of(
        """agraph (float["n",8,6,6] x) => (float[] y) {
            s = Shape (x)  zero = Constant <value = int64 {0}> ()
            n = Gather <axis = 0> (s, zero)
            axes = Constant <value_ints = [0]> ()  n1 = Unsqueeze (n, axes)
            rest = Constant <value_ints = [4, -1]> ()
            target = Concat <axis = 0> (n1, rest)
            y = Reshape (x, target)
        }""",
        x=(5, 8, 6, 6),
    )
    assert found["y"] == (5, 4, 72)


def test_values_take_the_dtype_the_model_declares() -> None:
    model = parse(
        """agraph (float[2,3] x) => (int64[] a, float[] b, int64[] c) {
            s = Shape (x)  f = Cast <to = 1> (s)  half = Constant <value = float {2.5}> ()
            b = Mul (f, half)  fl = Floor (b)  a = Cast <to = 7> (fl)
            two = Constant <value = int64 {-2}> ()  c = Div (s, two)
        }"""
    )
    facts, v = infer(model, {"x": (2, 3)}), by_name(model)
    assert facts.known(v["a"]).tolist() == [5, 7]
    assert facts.known(v["a"]).dtype == np.int64
    assert facts.known(v["b"]).dtype == np.float32
    assert facts.known(v["c"]).tolist() == [-1, -1]  # towards zero, not down


def test_what_only_data_decide_stays_unknown_and_says_what_it_can() -> None:
    model = parse("agraph (float[3,4] x) => (int64[] y, float[] z) { y = NonZero (x)  z = Transpose (x) }")
    facts, v = infer(model, {"x": (3, 4)}), by_name(model)
    assert facts.shape(v["y"]) is None
    assert facts.rank(v["y"]) == 2
    assert facts.partial(v["y"]) == (2, None)
    assert facts.known(v["y"]) is None
    assert facts.shape(v["z"]) == (4, 3)


def test_a_known_input_value_decides_shapes() -> None:
    model = parse("agraph (float[2,6] x, int64[2] s) => (float[] y) { y = Reshape (x, s) }")
    y = model.graph.outputs[0]
    assert infer(model, {"x": (2, 6), "s": (2,)}).shape(y) is None
    assert infer(model, {"x": (2, 6), "s": (2,)}, input_values={"s": np.array([3, 4])}).shape(y) == (3, 4)


def test_range_takes_one_element_vectors() -> None:
    found = shapes_of(
        """agraph (float[7] x) => (int64[] y) {
            n = Shape (x)  a = Constant <value_ints = [0]> ()  d = Constant <value_ints = [2]> ()
            y = Range (a, n, d)
        }""",
        x=(7,),
    )
    assert found["y"] == (4,)


@pytest.mark.parametrize(
    "body",
    [
        "y = ConstantOfShape (s)",
        "c = Constant <value = float {1.0}> ()  y = Expand (c, s)",
        "c = Constant <value = float[1,1] {1.0}> ()  y = Tile (c, s)",
        "a = Constant <value = int64 {0}> () b = Constant <value = int64 {1099511627776}> () "
        "d = Constant <value = int64 {1}> () y = Range (a, b, d)",
    ],
)
def test_absurd_sizes_are_not_allocated(body: str) -> None:
    text = "agraph (float[1] x) => (float[] y) { s = Constant <value_ints = [1048576, 1048576]> () " + body + " }"
    model = parse(text)
    facts = infer(model, {"x": (1,)})
    y = model.graph.outputs[0]
    assert math.prod(facts.shape(y) or ()) == 2**40
    assert facts.known(y) is None


# Constants


def test_constants_in_all_their_forms() -> None:
    model = parse(
        """agraph (float[1] x) => (float[] y) <float[2] w = {1.0, 2.0}> {
            a = Constant <value_int = 7> ()  b = Constant <value_floats = [1.5, 2.5]> ()
            c = Constant <value = float[2,1] {3.0, 4.0}> ()  t = Constant <value_string = "text"> ()  y = Add (x, w)
        }"""
    )
    facts, v = infer(model, {"x": (1,)}), by_name(model)
    assert facts.known(v["a"]).tolist() == 7
    assert facts.known(v["a"]).shape == ()
    assert facts.known(v["b"]).tolist() == [1.5, 2.5]
    assert facts.shape(v["c"]) == (2, 1)
    assert facts.constant(v["w"]).tolist() == [1.0, 2.0]
    assert facts.known(v["t"]) is None
    assert facts.shape(v["t"]) == ()
    assert facts.constant(v["x"]) is None


def test_large_constants_only_on_request_and_fresh_after_a_change() -> None:
    w = ir.Value(name="w", const_value=ir.tensor(np.zeros((300, 300), np.float32), name="w"))
    graph = ir.Graph([], [], nodes=[], initializers=[w], opset_imports={"": 18})
    facts = infer(ir.Model(graph, ir_version=8), {})
    assert facts.known(w) is None
    assert facts.constant(w).shape == (300, 300)
    w.const_value = ir.tensor(np.ones((2, 3), np.float32), name="w")
    assert facts.shape(w) == (2, 3)
    assert facts.known(w).sum() == 6


def test_unreadable_data_is_unknown_and_an_error_on_request() -> None:
    tensor = ir.ExternalTensor("no_such_file", 0, 8, FLOAT, shape=ir.Shape((2,)), name="w")
    w = ir.Value(name="w", const_value=tensor)
    graph = ir.Graph([], [], nodes=[], initializers=[w], opset_imports={"": 18})
    facts = infer(ir.Model(graph, ir_version=8), {})
    assert facts.shape(w) == (2,)
    assert facts.known(w) is None
    with pytest.raises(ModelError, match="'w'"):
        facts.constant(w)


# Rewriting


def test_stepping_again_after_a_weight_changed() -> None:
    model = parse(
        """agraph (float[1,3,8,8] x) => (float[] y) {
            h = Conv <pads = [1,1,1,1]> (x, w)  s = Shape <start = 1, end = 2> (h)  y = Relu (h)
        }""",
        w=(16, 3, 3, 3),
    )
    v = by_name(model)
    facts = infer(model, {"x": (1, 3, 8, 8)})
    assert facts.known(v["s"]).tolist() == [16]
    v["w"].const_value = ir.tensor(np.zeros((5, 3, 3, 3), np.float32), name="w")
    facts.forget(v["y"])
    assert facts.shape(v["y"]) is None
    for node in model.graph:
        step(node, facts, model.graph.opset_imports)
    assert facts.shape(v["y"]) == (1, 5, 8, 8)
    assert facts.known(v["s"]).tolist() == [5]


def test_set_shape_drops_a_value_of_another_shape() -> None:
    facts, value = Facts(), ir.Value(name="v")
    facts.set_known(value, np.arange(4))
    assert (facts.shape(value), facts.dtype(value)) == ((4,), INT64)
    facts.set_shape(value, (2,))
    assert facts.known(value) is None
    assert facts.dtype(value) == INT64


# Contradictions


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("c = Constant <value = float[5] {1,2,3,4,5}> () y = Add (x, c)", "Incompatible dim"),
        ("s = Constant <value_ints = [5, -1]> () y = Reshape (x, s)", "Dimension could not be inferred"),
        ("y = MaxPool <kernel_shape = [9, 9]> (x)", "too small"),
        ("w = Constant <value_floats = [1.0]> () w4 = Reshape (w, k) y = Conv (x, w4)", "contracts 3"),
        ("f = Flatten (x) s = Constant <value_ints = [2, 2]> () w = ConstantOfShape (s) y = Gemm (f, w)", "192"),
    ],
)
def test_contradictions_are_collected(body: str, words: str) -> None:
    head = "k = Constant <value_ints = [1, 1, 1, 1]> ()"
    model = parse(f"agraph (float[1,3,8,8] x) => (float[] y) {{ {head} {body} }}")
    facts = infer(model, {"x": (1, 3, 8, 8)})
    assert len(facts.problems) == 1
    node, message = facts.problems[0]
    assert node.outputs[0].name == "y"
    assert words.lower() in message.lower()


# Unknown operators


def test_unknown_operator_falls_back_to_what_is_declared() -> None:
    found = shapes_of(
        """agraph (float["n",4] x) => (float["n",2] y) <float["n",7] a> {
            a = foo.Bar (x)  b = foo.Baz (a)  y = foo.Qux (b)
        }""",
        '"" : 18, "foo" : 1',
        x=(3, 4),
    )
    assert found["a"] == (3, 7)  # the named axis has the probe's size
    assert found["b"] is None
    assert found["y"] == (3, 2)


S3 = "float[2,5,12]"
CONTRIB = [
    ("Gelu", f"{S3} x", "", [(2, 5, 12)]),
    ("SkipLayerNormalization", f"{S3} x, {S3} s, float[12] g", "", [(2, 5, 12), (2, 5, 1), (2, 5, 1), (2, 5, 12)]),
    ("EmbedLayerNormalization", "int32[2,5] i, int32[2,5] s, float[99,8] w, float[9,8] p", "", [(2, 5, 8), (2,)]),
    ("Attention", f"{S3} x, float[12,24] w, float[24] b", "num_heads = 2", [(2, 5, 8), (2, 2, 2, 5, 4)]),
    ("MultiHeadAttention", f"{S3} q, {S3} k, float[2,5,20] v", "num_heads = 4", [(2, 5, 20), (2, 4, None, 3)]),
    ("MultiHeadAttention", "float[2,5,4,3,7] q", "num_heads = 4", [(2, 5, 28)]),
    ("GroupQueryAttention", f"{S3} q, float[2,5,6] k, float[2,5,6] v", "num_heads = 4, kv_num_heads = 2",
     [(2, 5, 12), (2, 2, None, 3)]),
    ("RotaryEmbedding", f"{S3} x, int64[2,5] p, float[9,2] c, float[9,2] s", "", [(2, 5, 12)]),
    ("FusedMatMul", "float[2,5,3] a, float[2,7,3] b", "transB = 1", [(2, 5, 7)]),
    ("FusedConv", "float[1,3,8,8] x, float[6,3,3,3] w", 'activation = "Relu", strides = [2,2]', [(1, 6, 3, 3)]),
    ("NhwcConv", "float[1,8,8,3] x, float[6,3,3,3] w", "pads = [1,1,1,1]", [(1, 8, 8, 6)]),
    ("FusedGemm", "float[5,3] a, float[7,3] b, float[7] c", 'transB = 1, activation = "Relu"', [(5, 7)]),
    ("QLinearAdd", "uint8[4,1] a, float s, uint8 z, uint8[1,6] b, float t, uint8 u, float v, uint8 w", "", [(4, 6)]),
    ("QLinearConcat", "float s, uint8 z, uint8[2,3] a, float t, uint8 u, uint8[2,4] b, float v, uint8 w", "axis = 1",
     [(2, 7)]),
    ("QLinearGlobalAveragePool", "uint8[1,8,8,3] x, float s, uint8 z, float t, uint8 u", "channels_last = 1",
     [(1, 1, 1, 3)]),
    ("QLinearAveragePool", "uint8[1,8,8,3] x, float s, uint8 z, float t, uint8 u",
     "kernel_shape = [2,2], strides = [2,2], channels_last = 1", [(1, 4, 4, 3)]),
    ("QGemm", "uint8[4,3] a, float s, uint8 z, uint8[3,5] b, float t, uint8 u", "", [(4, 5)]),
    ("DynamicQuantizeMatMul", "float[4,3] a, uint8[3,5] b, float t", "", [(4, 5)]),
    ("MatMulNBits", "float[2,4,64] a, uint8[10,2,16] b, float[20] s", "K = 64, N = 10, bits = 4, block_size = 32",
     [(2, 4, 10)]),
    ("BiasSplitGelu", "float[2,5,12] x, float[12] b", "", [(2, 5, 6)]),
    ("GroupNorm", "float[1,4,4,8] x, float[8] g, float[8] b", "groups = 2", [(1, 4, 4, 8)]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "expected"), CONTRIB, ids=[f"{c[0]}-{len(c[1])}" for c in CONTRIB]
)
def test_contrib_operators(op: str, inputs: str, attributes: str, expected: list[Any]) -> None:
    names = ", ".join(part.split()[-1] for part in inputs.split(", "))
    outputs = ", ".join(f"y{i}" for i in range(len(expected)))
    attributes = f"<{attributes}>" if attributes else ""
    model = parse(
        f"agraph ({inputs}) => (float[] y0) {{ {outputs} = com.microsoft.{op} {attributes} ({names}) }}",
        '"" : 18, "com.microsoft" : 1',
    )
    facts = infer(model, {v.name: v.shape.numpy() for v in model.graph.inputs})
    assert [facts.partial(v) for v in model.graph[0].outputs] == expected
    assert not facts.problems


# Size


def chain(count: int) -> ir.Model:
    """Blocks of Conv, Relu, Add, Shape."""
    x = ir.Value(name="x", shape=ir.Shape(["n", 8, 16, 16]), type=ir.TensorType(FLOAT))
    nodes, weights, current = [], [], x
    for i in range(count // 4):
        w = ir.Value(name=f"w{i}", const_value=ir.tensor(np.zeros((8, 8, 1, 1), np.float32), name=f"w{i}"))
        conv = ir.Node("", "Conv", [current, w], name=f"conv{i}")
        relu = ir.Node("", "Relu", conv.outputs)
        add = ir.Node("", "Add", [relu.outputs[0], current])
        nodes += [conv, relu, add, ir.Node("", "Shape", add.outputs)]
        weights.append(w)
        current = add.outputs[0]
    return ir.Model(ir.Graph([x], [current], nodes=nodes, initializers=weights, opset_imports={"": 18}), ir_version=8)


def test_time_is_linear_in_nodes() -> None:
    times = []
    for count in (2_000, 20_000):
        model = chain(count)
        started = time.perf_counter()
        facts = infer(model, {"x": (1, 8, 16, 16)})
        times.append(time.perf_counter() - started)
        assert facts.shape(model.graph.outputs[0]) == (1, 8, 16, 16)
    assert times[1] < 30 * times[0]


def test_initializers_listed_as_inputs_are_constants() -> None:
    text = "agraph (float[1,2] x, float[2,2] w) => (float[] y) <float[2,2] w = {1, 2, 3, 4}> { y = MatMul (x, w) }"
    model = parse(text)
    assert probe_inputs(model, {}) == {"x": (1, 2)}
    assert infer(model, {"x": (1, 2)}).known(by_name(model)["w"]).sum() == 10


def test_sizes_that_are_known_are_picked_out_of_shapes_that_are_not() -> None:
    """Of a picture with an open batch, height and width are constants, whatever moves them about."""
    text = """<ir_version: 8, opset_import: ["": 17]> net (float[batch, 3, 8, 12] x) => (float y) {
        shape = Shape(x)
        two = Constant<value = int64 {2}>() zero = Constant<value = int64[1] {0}>() three = Constant<value = int64[1] {3}>()
        one = Constant<value = int64[1] {1}>() four = Constant<value = int64[1] {4}>()
        height = Gather(shape, two)
        limit = Cast<to = 1>(height)
        start = Constant<value = float {0.0}>() step = Constant<value = float {1.0}>()
        rows = Range(start, limit, step)
        batch = Slice(shape, zero, one)
        joined = Concat<axis = 0>(batch, four)
        last = Slice(joined, one, two1)
        channels = Slice(shape, one, two1)
        chosen = Gather(three, batch)
        y = Identity(x)
    }"""
    text = text.replace("step = Constant", "two1 = Constant<value = int64[1] {2}>() step = Constant")
    model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    facts = infer(model, {})
    values = {v.name: facts.known(v) for node in model.graph for v in node.outputs}
    assert values["height"] == 8 and values["rows"].tolist() == list(range(8)) and values["channels"].tolist() == [3]
    assert values["last"].tolist() == [4]
    assert values["batch"] is None and values["joined"] is None and values["shape"] is None and values["chosen"] is None
    batch = next(v for node in model.graph for v in node.outputs if v.name == "batch")
    assert facts.sizes(batch).tolist() == [OPEN]
