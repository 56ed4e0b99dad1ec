"""What `fuzz.py` starts from: shipped model files, and small ones with what those rarely have."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MAX_SEED_BYTES = 6_000_000
MAX_ELEMENTS = 3_000_000
DATA_NAME = "weights.bin"
"""External data file of the corpus files that have one."""


def corpus(paths: list[Path]) -> list[tuple[str, bytes, bytes | None]]:
    """Name, model and external data (if any) of every file to start from."""
    found: list[tuple[str, bytes, bytes | None]] = []
    if not paths:
        root = Path(onnx.__file__).parent / "backend" / "test" / "data"
        paths = sorted((root / "simple").rglob("model.onnx")) + sorted((root / "light").glob("*.onnx"))
        here = Path(__file__).resolve().parent.parent
        paths += sorted((here / "examples").rglob("*.onnx"))
        for package in ("onnxruntime", "rapidocr_onnxruntime"):
            spec = importlib.util.find_spec(package)
            if spec is not None and spec.origin is not None:
                paths += sorted(Path(spec.origin).parent.rglob("*.onnx"))
        found += built()
    for path in paths:
        for file in sorted(path.rglob("*.onnx")) if path.is_dir() else [path]:
            if 0 < file.stat().st_size <= MAX_SEED_BYTES:
                found.append((file.name if file.name != "model.onnx" else file.parent.name, file.read_bytes(), None))
    return found


def cheap(seeds: list[tuple[str, bytes, bytes | None]]) -> list[tuple[str, bytes, bytes | None]]:
    """Those that run in a moment: some files state weights of any size by their shape alone."""
    result = []
    for seed in seeds:
        graph = onnx.ModelProto.FromString(seed[1]).graph
        shapes = {tensor.name: tensor for tensor in graph.initializer}
        made = [node.input[0] for node in graph.node if node.op_type == "ConstantOfShape" and node.input[0] in shapes]
        elements = sum(int(np.prod(numpy_helper.to_array(shapes[name]))) for name in made)
        if elements < MAX_ELEMENTS:
            result.append(seed)
    return result


def choose(seeds: list[tuple[str, bytes, bytes | None]], rng: random.Random) -> tuple[str, bytes, bytes | None]:
    """A file to start from; the many files of a few bytes only now and then."""
    large = [seed for seed in seeds if len(seed[1]) > 2000]
    return rng.choice(large if large and rng.random() < 0.75 else seeds)


def built() -> list[tuple[str, bytes, bytes | None]]:
    """Small networks with what shipped files rarely have: external and sparse data, subgraphs, functions."""
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)

    def model(nodes: list[Any], inits: list[Any], opset: int = 17, **more: Any) -> onnx.ModelProto:
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 16, 16])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            inits,
        )
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10, **more)

    def trunk() -> tuple[list[Any], list[Any]]:
        nodes = [
            helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
            helper.make_node("Conv", ["r1", "w2"], ["c2"], name="conv2", pads=[1, 1, 1, 1], group=2),
            helper.make_node("Add", ["c2", "r1"], ["a"], name="add"),
            helper.make_node("GlobalAveragePool", ["a"], ["p"], name="pool"),
            helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        ]
        return nodes, [weight("w1", 32, 3, 3, 3), weight("b1", 32), weight("w2", 32, 16, 3, 3)]

    result: list[tuple[str, bytes, bytes | None]] = []
    nodes, inits = trunk()
    head = [helper.make_node("Gemm", ["f", "w3"], ["y"], name="head", transB=1)]
    plain = model([*nodes, *head], [*inits, weight("w3", 10, 32)])
    result.append(("conv net", plain.SerializeToString(), None))

    outside = onnx.ModelProto()
    outside.CopyFrom(plain)
    data = b""
    for tensor in outside.graph.initializer:
        raw = tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", DATA_NAME), ("offset", str(len(data))), ("length", str(len(raw)))):
            tensor.external_data.add(key=key, value=value)
        data += raw
    result.append(("external data", outside.SerializeToString(), data))

    nodes, inits = trunk()
    branches = {}
    for branch in ("then_branch", "else_branch"):
        branches[branch] = helper.make_graph(
            [helper.make_node("Gemm", ["f", "w"], [f"{branch}_y"], name="gemm", transB=1)],
            branch,
            [],
            [helper.make_tensor_value_info(f"{branch}_y", TensorProto.FLOAT, None)],
            [weight("w", 10, 32)],
        )
    condition = helper.make_node("Constant", [], ["cond"], value=numpy_helper.from_array(np.array(True)))
    choice = helper.make_node("If", ["cond"], ["y"], name="choice", **branches)
    result.append(("if", model([*nodes, condition, choice], inits).SerializeToString(), None))

    nodes, inits = trunk()
    function = helper.make_function(
        "local",
        "Head",
        ["v", "w"],
        ["out"],
        [
            helper.make_node("Constant", [], ["axes"], value_ints=[1]),
            helper.make_node("MatMul", ["v", "w"], ["m"]),
            helper.make_node("ReduceL2", ["m"], ["l"], keepdims=1, axes=[1]),
            helper.make_node("Div", ["m", "l"], ["out"]),
        ],
        [helper.make_opsetid("", 17)],
    )
    call = helper.make_node("Head", ["f", "w3"], ["y"], domain="local")
    result.append(
        (
            "function",
            model([*nodes, call], [*inits, weight("w3", 32, 10)], functions=[function]).SerializeToString(),
            None,
        )
    )

    nodes, inits = trunk()
    sparse = model([*nodes, helper.make_node("MatMul", ["f", "w3"], ["y"])], inits)
    values = numpy_helper.from_array(np.ones(40, np.float32), "w3")
    indices = numpy_helper.from_array(np.arange(0, 320, 8, dtype=np.int64), "w3_indices")
    sparse.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [32, 10]))
    result.append(("sparse", sparse.SerializeToString(), None))
    return result
