"""How `fuzz.py` breaks a model file: faults chosen by a seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from fuzz_corpus import DATA_NAME
from onnx import TensorProto, helper, numpy_helper

Mutation = Callable[[onnx.ModelProto, random.Random], None]
MUTATIONS: list[Mutation] = []

SIZES = [0, 1, 2, 3, 7, -1, -2, 255, 65537, 2**31 - 1, 2**31, 2**40, 2**62, -(2**63), 2**63 - 1]
NAMES = ["", " ", "x", "\u00e9\u4e2d", "a/b", "..", "n" * 3000, "x\ty", "Conv", "0"]
LOCATIONS = [
    "../secret",
    "/etc/passwd",
    "",
    "missing.bin",
    ".",
    "a/../../b",
    "\x00here",
    DATA_NAME,
    "C:\\w.bin",
]


def mutation(function: Mutation) -> Mutation:
    MUTATIONS.append(function)
    return function


def mutate(data: bytes, rng: random.Random, gentle: bool = False) -> bytes:
    """Apply one to three faults; ``gentle``: mostly one, in a field, so that more mutants get past the checks."""
    if rng.random() < (0.02 if gentle else 0.3):
        return break_bytes(data, rng)
    model = onnx.ModelProto()
    model.ParseFromString(data)
    faults = [fault for fault in MUTATIONS if not gentle or fault not in LOUD or rng.random() < 0.1]
    for _ in range(rng.choice((1, 1, 1, 1, 2) if gentle else (1, 1, 2, 3))):
        for _ in range(10):
            before = model.SerializeToString()
            try:
                rng.choice(faults)(model, rng)
                broken = model.SerializeToString()
            except (IndexError, ValueError, TypeError, AttributeError):
                # Nothing of the kind in this model, or a value the message cannot hold: try another.
                model.ParseFromString(before)
                continue
            if broken != before:
                break
    data = model.SerializeToString()
    return break_bytes(data, rng) if not gentle and rng.random() < 0.05 else data


def break_bytes(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    match rng.randrange(7):
        case 0:
            return bytes(out[: rng.randrange(len(out))])
        case 1:
            for _ in range(rng.choice((1, 2, 8, 64))):
                out[rng.randrange(len(out))] = rng.randrange(256)
        case 2:
            # The structure of a file is at its ends and between its weights.
            for _ in range(rng.choice((1, 4, 16))):
                out[rng.randrange(min(400, len(out)))] ^= 1 << rng.randrange(8)
        case 3:
            start = rng.randrange(len(out))
            del out[start : start + rng.randrange(1, 200)]
        case 4:
            start = rng.randrange(len(out))
            out[start:start] = rng.randbytes(rng.randrange(1, 50))
        case 5:
            # Graphs within graphs, deeper than parsers go; a second graph field is merged with the first.
            inner = b""
            for _ in range(rng.choice((20, 40, 200, 5000))):
                attribute = b"\x0a\x01g" + _field(6, inner) + b"\xa0\x01\x05"
                inner = _field(1, b"\x22\x02If" + _field(5, attribute))
            out += _field(7, inner)
        case _:
            tail = min(3000, len(out))
            for _ in range(rng.choice((1, 4, 16))):
                out[-rng.randrange(1, tail + 1)] = rng.randrange(256)
    return bytes(out)


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited field of a protobuf message."""
    size = bytearray()
    length = len(payload)
    while length > 0x7F:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    size.append(length)
    return bytes([number << 3 | 2]) + bytes(size) + payload


def graphs(model: onnx.ModelProto) -> list[Any]:
    result: list[Any] = [model.graph, *model.functions]
    for graph in result:
        for node in graph.node:
            result += [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]
    return result


def some_graph(model: onnx.ModelProto, rng: random.Random) -> Any:
    return model.graph if rng.random() < 0.7 else rng.choice(graphs(model))


def some_node(model: onnx.ModelProto, rng: random.Random) -> Any:
    return rng.choice(some_graph(model, rng).node)


def some_tensor(model: onnx.ModelProto, rng: random.Random) -> Any:
    tensors = [*model.graph.initializer]
    for graph in graphs(model):
        for node in graph.node:
            tensors += [attribute.t for attribute in node.attribute if attribute.HasField("t")]
    for sparse in model.graph.sparse_initializer:
        tensors += [sparse.values, sparse.indices]
    return rng.choice(tensors)


def some_name(model: onnx.ModelProto, rng: random.Random) -> str:
    names = [name for node in model.graph.node for name in (*node.input, *node.output)]
    return rng.choice([*NAMES, *names] if rng.random() < 0.3 else names)


@mutation
def tensor_dims(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = some_tensor(model, rng)
    match rng.randrange(4):
        case 0:
            tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(SIZES)
        case 1:
            tensor.dims.append(rng.choice(SIZES))
        case 2:
            del tensor.dims[-1]
        case _:
            dims = list(tensor.dims)
            rng.shuffle(dims)
            del tensor.dims[:]
            tensor.dims.extend(dims)


@mutation
def tensor_reshaped(model: onnx.ModelProto, rng: random.Random) -> None:
    """Dims that fit the data but not the graph."""
    tensor = some_tensor(model, rng)
    count = int(np.prod(list(tensor.dims)))
    factor = rng.choice([k for k in range(1, 65) if count % k == 0])
    del tensor.dims[:]
    tensor.dims.extend([factor, count // factor])


@mutation
def tensor_type(model: onnx.ModelProto, rng: random.Random) -> None:
    some_tensor(model, rng).data_type = rng.choice([*range(29), 99, -1])


@mutation
def tensor_same_width(model: onnx.ModelProto, rng: random.Random) -> None:
    """Another data type of the same width: the data fits, the graph may not."""
    tensor = some_tensor(model, rng)
    same = {1: [6, 12], 7: [11, 13], 10: [16, 4, 5], 6: [1, 12], 2: [3, 9, 17], 3: [2, 9, 20]}
    tensor.data_type = rng.choice(same.get(tensor.data_type, [1]))


@mutation
def tensor_data(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = some_tensor(model, rng)
    raw = tensor.raw_data
    tensor.raw_data = rng.choice([raw[: rng.randrange(len(raw) + 1)], raw + b"\0\0\0\0", b"", rng.randbytes(len(raw))])


@mutation
def tensor_not_finite(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = rng.choice([t for t in model.graph.initializer if t.data_type == 1 and t.raw_data])
    array = np.frombuffer(tensor.raw_data, np.float32).copy()
    array[rng.randrange(array.size)] = rng.choice([np.nan, np.inf, -np.inf, 3e38])
    tensor.raw_data = array.tobytes()


@mutation
def tensor_small_integers(model: onnx.ModelProto, rng: random.Random) -> None:
    """Shapes, axes, indices and sizes that constants hold."""
    tensors = [t for t in model.graph.initializer if t.data_type == 7 and 8 <= len(t.raw_data) <= 256]
    for node in model.graph.node:
        tensors += [a.t for a in node.attribute if a.t.data_type == 7 and 8 <= len(a.t.raw_data) <= 256]
    tensor = rng.choice(tensors)
    array = np.frombuffer(tensor.raw_data, np.int64).copy()
    array[rng.randrange(array.size)] = rng.choice(SIZES)
    tensor.raw_data = array.tobytes()


@mutation
def tensor_external(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = some_tensor(model, rng)
    tensor.data_location = TensorProto.EXTERNAL
    if rng.random() < 0.5:
        tensor.ClearField("raw_data")
    if rng.random() < 0.8:
        del tensor.external_data[:]
    for key, values in (("location", LOCATIONS), ("offset", SIZES), ("length", SIZES)):
        if rng.random() < 0.8:
            tensor.external_data.add(key=key, value=str(rng.choice(values)))
    if rng.random() < 0.1:
        tensor.external_data.add(key=rng.choice(["offset", "length", "other"]), value="abc")


@mutation
def rename(model: onnx.ModelProto, rng: random.Random) -> None:
    graph = some_graph(model, rng)
    kind = rng.randrange(5)
    if kind == 0:
        rng.choice(graph.initializer).name = some_name(model, rng)
    elif kind == 1:
        rng.choice(graph.input).name = some_name(model, rng)
    elif kind == 2:
        rng.choice(graph.output).name = some_name(model, rng)
    elif kind == 3:
        node = rng.choice(graph.node)
        node.output[rng.randrange(len(node.output))] = some_name(model, rng)
    else:
        rng.choice(graph.node).name = rng.choice(NAMES)


@mutation
def rewire(model: onnx.ModelProto, rng: random.Random) -> None:
    """An input becomes any other value: wrong shapes, cycles, values of other scopes."""
    node = some_node(model, rng)
    match rng.randrange(4):
        case 0:
            node.input.append(some_name(model, rng))
        case 1:
            del node.input[rng.randrange(len(node.input))]
        case 2:
            node.input[0] = rng.choice(node.output)
        case _:
            node.input[rng.randrange(len(node.input))] = some_name(model, rng)


@mutation
def node_outputs(model: onnx.ModelProto, rng: random.Random) -> None:
    node = some_node(model, rng)
    if rng.random() < 0.5:
        node.output.append(rng.choice(["extra", some_name(model, rng)]))
    else:
        del node.output[rng.randrange(len(node.output))]


@mutation
def node_type(model: onnx.ModelProto, rng: random.Random) -> None:
    node = some_node(model, rng)
    if rng.random() < 0.2:
        node.domain = rng.choice(["", "ai.onnx", "com.microsoft", "custom", "ai.onnx.ml", "local"])
    else:
        node.op_type = rng.choice([schema.name for schema in onnx.defs.get_all_schemas()] + ["", "NoSuchOp"])


@mutation
def node_list(model: onnx.ModelProto, rng: random.Random) -> None:
    graph = some_graph(model, rng)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    match rng.randrange(4):
        case 0:
            nodes.insert(rng.randrange(len(nodes) + 1), rng.choice(nodes))
        case 1:
            del nodes[rng.randrange(len(nodes))]
        case 2:
            rng.shuffle(nodes)
        case _:
            nodes = nodes[: rng.randrange(len(nodes))]
    del graph.node[:]
    graph.node.extend(nodes)


@mutation
def attribute_value(model: onnx.ModelProto, rng: random.Random) -> None:
    attribute = rng.choice(
        rng.choice([node for graph in graphs(model) for node in graph.node if node.attribute]).attribute
    )
    if attribute.ints and rng.random() < 0.9:
        match rng.randrange(3):
            case 0:
                attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(SIZES)
            case 1:
                attribute.ints.append(rng.choice(SIZES))
            case _:
                del attribute.ints[-1]
    elif attribute.type == onnx.AttributeProto.INT:
        attribute.i = rng.choice(SIZES)
    elif attribute.type == onnx.AttributeProto.FLOAT:
        attribute.f = rng.choice([0.0, -1.0, float("nan"), float("inf"), 1e38])
    else:
        attribute.s = rng.choice([b"", b"SAME_UPPER", b"linear", b"\xff\xfe", b"nchw->nhwc", b"x" * 5000])


@mutation
def attribute_form(model: onnx.ModelProto, rng: random.Random) -> None:
    node = rng.choice([node for graph in graphs(model) for node in graph.node if node.attribute])
    attribute = rng.choice(node.attribute)
    match rng.randrange(6):
        case 0:
            attribute.type = rng.randrange(15)
        case 1:
            attribute.name = rng.choice(["", "axis", "pads", "value", "to", "group", "body"])
        case 2:
            node.attribute.append(attribute)
        case 3:
            node.attribute.remove(attribute)
        case 4:
            attribute.ref_attr_name = rng.choice(["alpha", "axis"])
        case _:
            node.attribute.append(helper.make_attribute("extra", rng.choice([1, 1.5, "s", [1, 2], [0.5]])))


@mutation
def interface(model: onnx.ModelProto, rng: random.Random) -> None:
    graph = some_graph(model, rng)
    values = rng.choice([graph.input, graph.output])
    match rng.randrange(3):
        case 0:
            del values[rng.randrange(len(values))]
        case 1:
            values.append(rng.choice(values))
        case _:
            values.append(helper.make_tensor_value_info(some_name(model, rng), TensorProto.FLOAT, [1]))


@mutation
def declared_type(model: onnx.ModelProto, rng: random.Random) -> None:
    graph = some_graph(model, rng)
    value = rng.choice([*graph.input, *graph.output, *graph.value_info])
    tensor = value.type.tensor_type
    match rng.randrange(5):
        case 0:
            tensor.elem_type = rng.randrange(29)
        case 1:
            rng.choice(tensor.shape.dim).dim_value = rng.choice(SIZES)
        case 2:
            tensor.shape.dim.add().dim_value = rng.choice(SIZES)
        case 3:
            value.ClearField("type")
        case _:
            rng.choice(tensor.shape.dim).dim_param = rng.choice(NAMES)


@mutation
def versions(model: onnx.ModelProto, rng: random.Random) -> None:
    match rng.randrange(5):
        case 0:
            rng.choice(model.opset_import).version = rng.choice([0, 1, 6, 7, 9, 11, 13, 18, 22, 24, 28, 999, -1, 2**62])
        case 1:
            model.ir_version = rng.choice([0, 1, 2, 3, 4, 9, 13, 14, 999, -1])
        case 2:
            del model.opset_import[:]
        case 3:
            model.opset_import.append(rng.choice(model.opset_import))
            model.opset_import[-1].version += 1
        case _:
            rng.choice(model.opset_import).domain = rng.choice(["", "ai.onnx", "custom"])


@mutation
def nested(model: onnx.ModelProto, rng: random.Random) -> None:
    """The graph's last node goes into the branches of an If, many levels deep."""
    name = some_name(model, rng)
    body = helper.make_graph(
        [helper.make_node("Identity", [name], ["deep0"])],
        "deep",
        [],
        [helper.make_tensor_value_info("deep0", TensorProto.FLOAT, None)],
    )
    for level in range(1, rng.choice((2, 5, 20, 28))):
        other = helper.make_graph(
            [helper.make_node("Identity", [name], [f"else{level}"])],
            "else",
            [],
            [helper.make_tensor_value_info(f"else{level}", TensorProto.FLOAT, None)],
        )
        node = helper.make_node("If", ["deep_cond"], [f"deep{level}"], then_branch=body, else_branch=other)
        body = helper.make_graph(
            [node], "deep", [], [helper.make_tensor_value_info(f"deep{level}", TensorProto.FLOAT, None)]
        )
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "deep_cond"))
    model.graph.node.extend(body.node)


@mutation
def recursion(model: onnx.ModelProto, rng: random.Random) -> None:
    function = rng.choice(model.functions)
    node = rng.choice(function.node)
    node.domain, node.op_type = function.domain, function.name


LOUD: set[Mutation] = {
    tensor_dims,
    tensor_type,
    tensor_data,
    tensor_external,
    rename,
    node_list,
    versions,
    interface,
    recursion,
}
"""Faults that the checks at load nearly always find."""
