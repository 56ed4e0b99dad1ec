"""Model files with everything a file can have, and the means to compare two of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper, parser

DATA = "weights.bin"


def weight(name: str, *shape: int, seed: int = 0) -> TensorProto:
    """float32[shape], normal."""
    rng = np.random.default_rng([seed, *name.encode()])
    return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)


def net(opset: int = 17, ir_version: int = 8) -> onnx.ModelProto:
    """x float[n,3,8,8] -> y float[n,10]: Conv, Relu, Conv, residual Add, pool, Gemm."""
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
            helper.make_node("Conv", ["r1", "w2"], ["c2"], name="conv2", pads=[1, 1, 1, 1]),
            helper.make_node("Add", ["c2", "r1"], ["a"], name="add"),
            helper.make_node("GlobalAveragePool", ["a"], ["p"], name="pool"),
            helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
            helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], name="head", transB=1),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        [
            weight("w1", 16, 3, 3, 3),
            weight("b1", 16),
            weight("w2", 16, 16, 3, 3),
            weight("w3", 10, 16),
            weight("b3", 10),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def constants() -> onnx.ModelProto:
    """Every way to write a constant, one of them a graph output; large, so that data is read from the file."""
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["big"], value=weight("any", 40, 40)),
            helper.make_node("Constant", [], ["f"], value_float=1.5),
            helper.make_node("Constant", [], ["fs"], value_floats=[0.5] * 40),
            helper.make_node("Constant", [], ["i"], value_int=2),
            helper.make_node("Constant", [], ["shape"], value_ints=[-1, 8, 5]),
            helper.make_node("Constant", [], ["kept"], value_float=3.0),
            helper.make_node("Constant", [], ["word"], value_string="a\0b"),
            helper.make_node("Constant", [], ["words"], value_strings=["a", ""]),
            helper.make_node("MatMul", ["x", "big"], ["m"]),
            helper.make_node("Mul", ["m", "f"], ["mf"]),
            helper.make_node("Add", ["mf", "fs"], ["s"]),
            helper.make_node("Cast", ["i"], ["two"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["s", "two"], ["s2"]),
            helper.make_node("Reshape", ["s2", "shape"], ["y"]),
            helper.make_node("Identity", ["word"], ["word_out"]),
            helper.make_node("Identity", ["words"], ["words_out"]),
        ],
        "constants",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 40])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8, 5]),
            helper.make_tensor_value_info("kept", TensorProto.FLOAT, []),
            helper.make_tensor_value_info("word_out", TensorProto.STRING, []),
            helper.make_tensor_value_info("words_out", TensorProto.STRING, [2]),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def branches() -> onnx.ModelProto:
    """If whose branches hold constants of the same name and read outer values; Loop around a matmul."""
    arms = {}
    for index, arm in enumerate(("then_branch", "else_branch")):
        arms[arm] = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], [f"{arm}_y"], name="mm")],
            arm,
            [],
            [helper.make_tensor_value_info(f"{arm}_y", TensorProto.FLOAT, ["n", 40])],
            [weight("w", 40, 40, seed=index)],
        )
    body = helper.make_graph(
        [
            helper.make_node("Constant", [], ["half"], value_float=0.5),
            helper.make_node("Mul", ["state", "half"], ["next"]),
            helper.make_node("Identity", ["go"], ["go_on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("count", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, ["n", 40]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, ["n", 40]),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("If", ["cond"], ["chosen"], name="choice", **arms),
            helper.make_node("Loop", ["trips", "", "chosen"], ["y"], name="loop", body=body),
        ],
        "branches",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 40]),
            helper.make_tensor_value_info("cond", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 40])],
        [numpy_helper.from_array(np.array(3), "trips")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def functions() -> onnx.ModelProto:
    """A local function that calls another, with a default attribute, called three times, once inside an If."""
    return parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 18, "l" : 1]>
        agraph (float[n,4] x, bool c) => (float[n,4] y) <float[4] k = {1.0,2.0,3.0,4.0}>
        {
          a = l.F <alpha = 0.5> (x)
          [call2] b = l.F (a)
          y = If (c) <then_branch = g1 () => (float[n,4] z) { k__1 = Identity(b) z = l.F(k__1) },
                      else_branch = g2 () => (float[n,4] w) { w = Add(b, k) }>
        }
        <opset_import: ["" : 18, "l" : 1], domain: "l">
        F <alpha: float = 0.25> (q) => (r) {
          k = Constant <value_float: float = @alpha> ()
          t = Mul(q, k)
          ax = Constant <value_ints = [1]> ()
          s = ReduceMean <keepdims=1> (t, ax)
          u = l.G (t)
          r = Sub(u, s)
        }
        <opset_import: ["" : 18], domain: "l">
        G (q) => (r) { r = Relu(q) }
    """)


def sparse() -> onnx.ModelProto:
    """A sparse initializer (flat indices) and a sparse Constant (coordinates), which ONNX Runtime reads."""
    values = numpy_helper.from_array(np.arange(1, 41, dtype=np.float32), "w")
    flat = numpy_helper.from_array(np.arange(0, 320, 8, dtype=np.int64), "w_indices")
    some = numpy_helper.from_array(np.array([2.0, 3.0], np.float32), "c")
    places = numpy_helper.from_array(np.array([[0, 1], [3, 9]], np.int64), "c_indices")
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["c"], sparse_value=helper.make_sparse_tensor(some, places, [4, 10])),
            helper.make_node("MatMul", ["x", "w"], ["m"]),
            helper.make_node("Add", ["m", "c"], ["y"]),
        ],
        "sparse",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 10])],
    )
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, flat, [32, 10]))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "net": net,
    "constants": constants,
    "branches": branches,
    "functions": functions,
    "sparse": sparse,
    **{f"opset {opset}": lambda opset=opset: net(opset) for opset in (7, 9, 11, 13, 18, 21, 23)},
    "ir 3": lambda: listed(net(9, ir_version=3)),
}


def listed(model: onnx.ModelProto) -> onnx.ModelProto:
    """All initializers listed as inputs, as files of IR version 3 must."""
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return model


def externalise(model: onnx.ModelProto, folder: Path) -> Path:
    """Write ``model`` with all weights in an external file; return the model's path."""
    data = b""
    for tensor in model.graph.initializer:
        raw = tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        place(tensor, DATA, len(data), len(raw))
        data += raw
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DATA).write_bytes(data)
    return write(model, folder / "m.onnx")


def place(tensor: TensorProto, location: str | None, offset: object, length: object) -> None:
    """Set where the external data of ``tensor`` is said to lie."""
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))


def write(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def run(model: Path | bytes, seed: int = 0) -> list[np.ndarray]:
    """Outputs of ONNX Runtime, unoptimised, on inputs drawn from ``seed``."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(str(model) if isinstance(model, Path) else model, options)
    rng = np.random.default_rng(seed)
    feeds: dict[str, Any] = {}
    for value in session.get_inputs():
        shape = [size if isinstance(size, int) else 2 for size in value.shape]
        kind = np.bool_ if "bool" in value.type else np.float32
        feeds[value.name] = rng.standard_normal(shape).astype(kind)
    return [np.asarray(output) for output in session.run(None, feeds)]


def same(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    """Bitwise."""
    return len(first) == len(second) and all(
        a.dtype == b.dtype
        and a.shape == b.shape
        and (a.tolist() == b.tolist() if a.dtype == object else a.tobytes() == b.tobytes())
        for a, b in zip(first, second, strict=True)
    )
