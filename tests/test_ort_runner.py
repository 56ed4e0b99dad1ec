"""The ONNX Runtime runner: the same numbers as one plain session, whatever the pieces, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from tests.runner_nets import Feeds, bodies, close, draw, make, plain, resnet

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


@pytest.mark.parametrize("make_model", [resnet, lambda: bodies()[0]])
def test_the_model_is_left_as_it_was(make_model: Callable[[], onnx.ModelProto]) -> None:
    model = ir.from_proto(make_model())
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    feeds: Feeds = {"x": draw(1, 3, 6, 6)} if len(model.graph.inputs) == 1 else {"x": draw(3, 100), "c": np.array(True)}
    Runner(model, max_weight_bytes=0).run(feeds)
    Runner.supported(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
