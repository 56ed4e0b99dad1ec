"""Loading: what is wrong ends in one message that names it, what is right comes out in normal form."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from graphprune.backends.onnx import to_bytes, to_proto
from graphprune.errors import ModelError
from graphprune.frontends.mapped import MappedTensor
from graphprune.frontends.onnx import SOURCE_FILES, check_finite, load, weights_of
from tests.model_files import (
    DATA,
    branches,
    externalise,
    functions,
    net,
    place,
    run,
    same,
    weight,
    write,
)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))


def refused(source: object) -> str:
    with pytest.raises(ModelError) as caught:
        load(source)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


# ------------------------------------------------------------------------------------ files that are not models


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"hello, I am a text file, not a model at all", "not an ONNX model"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"PK\x03\x04rest of an archive", "torch.onnx.export"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"\x18\x00\x00\x00ORTM" + bytes(40), "ONNX Runtime's own format"),
        (bytes(1000), "not an ONNX model"),
        (random.Random(0).randbytes(5000), "not an ONNX model"),
    ],
)
def test_not_a_model(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    message = refused(path)
    assert words in message
    assert str(path) in message


def test_no_file(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "none.onnx")
    assert "is a folder" in refused(tmp_path)
    assert "not a regular file" in refused("/dev/null")
    assert "cannot be read" in refused("a\0b.onnx")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    data = net().SerializeToString()
    path = tmp_path / "m.onnx"
    for size in range(1, len(data), max(1, len(data) // 150)):
        path.write_bytes(data[:size])
        refused(path)


# ------------------------------------------------------------------------------------------------- structure


def rewired(node: int, index: int, name: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[node].input[index] = name

    return change


def appended(*nodes: onnx.NodeProto) -> Callable[[onnx.ModelProto], None]:
    return lambda model: model.graph.node.extend(nodes)


def change_tensor(index: int, **fields: object) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[index]
        for key, value in fields.items():
            if key == "dims":
                del tensor.dims[:]
                tensor.dims.extend(value)  # type: ignore[arg-type]
            else:
                setattr(tensor, key, value)

    return change


def dimension(value: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        for dim in model.graph.input[0].type.tensor_type.shape.dim:
            dim.dim_value = value

    return change


def cleared(name: str, where: str = "graph") -> Callable[[onnx.ModelProto], None]:
    return lambda model: (getattr(model, where) if where else model).ClearField(name)


def opset(version: int) -> Callable[[onnx.ModelProto], None]:
    return lambda model: setattr(model.opset_import[0], "version", version)


def attribute(node: int, **values: object) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        target = model.graph.node[node]
        kept = [item for item in target.attribute if item.name not in values]
        del target.attribute[:]
        target.attribute.extend([*kept, *(helper.make_attribute(key, value) for key, value in values.items())])

    return change


BROKEN: dict[str, tuple[Callable[[onnx.ModelProto], object], list[str]]] = {
    "cycle": (rewired(1, 0, "a"), ["cycle", "Relu 'relu1'", "Add 'add'"]),
    "self-loop": (rewired(3, 1, "a"), ["cycle", "Add 'add' -> Add 'add'"]),
    "missing producer": (rewired(2, 0, "ghost"), ["'ghost'", "Conv 'conv2'"]),
    "produced twice": (appended(helper.make_node("Relu", ["a"], ["r1"], name="again")), ["'r1'", "relu1", "again"]),
    "produces an input": (appended(helper.make_node("Relu", ["a"], ["x"], name="over")), ["'x'", "Relu 'over'"]),
    "produces a weight": (appended(helper.make_node("Relu", ["a"], ["w2"], name="over")), ["'w2'", "Relu 'over'"]),
    "same initializer twice": (lambda m: m.graph.initializer.append(weight("w1", 2)), ["two initializers", "'w1'"]),
    "same input twice": (lambda m: m.graph.input.append(m.graph.input[0]), ["two graph inputs", "'x'"]),
    "input without name": (lambda m: setattr(m.graph.input[0], "name", ""), ["graph input", "no name"]),
    "input without type": (lambda m: m.graph.input[0].ClearField("type"), ["input 'x'", "no type"]),
    "no outputs": (cleared("output"), ["no outputs"]),
    "output from nowhere": (lambda m: setattr(m.graph.output[0], "name", "z"), ["graph output 'z'"]),
    "no nodes": (cleared("node"), ["no nodes"]),
    "no graph": (cleared("graph", ""), ["no graph"]),
    "no opset": (cleared("opset_import", ""), ["no opset"]),
    "no ir version": (cleared("ir_version", ""), ["IR version"]),
    "ir version of the future": (lambda m: setattr(m, "ir_version", 999), ["IR version 999", "upgrade onnx"]),
    "opset of the future": (opset(999), ["opset 999", "upgrade onnx"]),
    "opset 0": (opset(0), ["opset 0"]),
    "opset negative": (opset(-5), ["opset -5"]),
    "opset too old": (opset(6), ["opset 6", "version_converter"]),
    "two opsets": (lambda m: m.opset_import.append(helper.make_opsetid("", 11)), ["17", "11"]),
    "too many inputs": (lambda m: m.graph.node[1].input.append("x"), ["Relu 'relu1'", "2 inputs"]),
    "too few inputs": (lambda m: m.graph.node[3].input.pop(), ["Add 'add'", "1 inputs", "wants 2"]),
    "too many outputs": (lambda m: m.graph.node[3].output.append("q"), ["Add 'add'", "2 outputs"]),
    "no operator": (lambda m: setattr(m.graph.node[3], "op_type", ""), ["'add'", "no operator type"]),
    "attribute type": (attribute(0, group=1.5), ["Conv 'conv1'", "'group'", "FLOAT", "INT"]),
    "attribute unknown": (attribute(0, colour=1), ["Conv 'conv1'", "colour"]),
    "attribute twice": (
        lambda m: m.graph.node[0].attribute.append(m.graph.node[0].attribute[0]),
        ["Conv 'conv1'", "'pads' twice"],
    ),
    "reference outside functions": (
        lambda m: setattr(m.graph.node[0].attribute[0], "ref_attr_name", "alpha"),
        ["Conv 'conv1'", "'pads'", "'alpha'"],
    ),
    "negative size": (change_tensor(2, dims=[16, -16, 3, 3]), ["'w2'", "negative"]),
    "absurd size": (change_tensor(2, dims=[2**40, 2**40]), ["'w2'", "1099511627776"]),
    "size beyond data": (change_tensor(2, dims=[2**20, 2**20]), ["'w2'", "9216 bytes"]),
    "size below data": (change_tensor(2, dims=[16, 16, 3]), ["'w2'", "[16, 16, 3]"]),
    "small tensor cut": (change_tensor(1, raw_data=b"123"), ["'b1'", "3 bytes", "64"]),
    "unknown data type": (change_tensor(2, data_type=77), ["'w2'", "77"]),
    "data type of another width": (change_tensor(2, data_type=11), ["'w2'", "DOUBLE"]),
    "strings as raw data": (change_tensor(2, data_type=8), ["'w2'", "strings"]),
    "absurd input": (dimension(2**40), ["input 'x'", "no tensor can have so many elements"]),
    "huge input": (dimension(2000), ["input 'x'", "no memory holds that", "dynamic axis"]),
    "no standard opset": (lambda m: setattr(m.opset_import[0], "domain", "other"), ["standard"]),
    "name that is no text": (lambda m: setattr(m.graph.node[0], "name", "NAME"), ["UTF-8"]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_structure_is_named(tmp_path: Path, case: str) -> None:
    change, words = BROKEN[case]
    model = net()
    change(model)
    path = write(model, tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes().replace(b"NAME", b"\xff\xfe\xfd\xfc"))
    before = path.read_bytes()
    message = refused(path)
    for word in words:
        assert word in message
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_attribute_without_type_is_read_by_its_value(tmp_path: Path) -> None:
    model = net()
    model.graph.node[0].attribute[0].type = onnx.AttributeProto.UNDEFINED
    pads = load(write(model, tmp_path / "m.onnx")).model.graph[0].attributes["pads"]
    assert list(pads.value) == [1, 1, 1, 1]


def test_nesting_deeper_than_the_format_allows(tmp_path: Path) -> None:
    from fuzz_mutations import _field

    for depth in (30, 60, 5000):
        inner = b""
        for _ in range(depth):
            attr = b"\x0a\x01g" + _field(6, inner) + b"\xa0\x01\x05"
            inner = _field(1, b"\x22\x02If" + _field(5, attr))
        path = tmp_path / "m.onnx"
        path.write_bytes(net().SerializeToString() + _field(7, inner))
        refused(path)


def test_unsorted_nodes_are_sorted(tmp_path: Path) -> None:
    model = net()
    expected = run(model.SerializeToString())
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node][::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    loaded = load(write(model, tmp_path / "m.onnx")).model
    assert [node.name for node in loaded.graph] == ["conv1", "relu1", "conv2", "add", "pool", "flatten", "head"]
    assert same(run(to_bytes(loaded)), expected)


def test_unsorted_through_a_subgraph(tmp_path: Path) -> None:
    """The If reads ``late`` only inside its branches; the node that makes it stands behind."""
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[2] x, bool c) => (float[2] y) {
          y = If (c) <then_branch = a () => (float[2] p) { p = Neg(late) }, else_branch = b () => (float[2] q) { q = Abs(late) }>
          late = Exp(x)
        }""")
    loaded = load(write(model, tmp_path / "m.onnx")).model
    assert [node.op_type for node in loaded.graph] == ["Exp", "If"]


def test_a_subgraph_may_not_read_its_own_node() -> None:
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[2] x, bool c) => (float[2] y) {
          y = If (c) <then_branch = a () => (float[2] p) { p = Neg(y) }, else_branch = b () => (float[2] q) { q = Abs(x) }>
        }""")
    assert "cycle" in refused(model)


def test_names_of_an_outer_graph_are_not_produced_again() -> None:
    model = branches()
    model.graph.node[0].attribute[0].g.node[0].output[0] = "x"
    model.graph.node[0].attribute[0].g.output[0].name = "x"
    message = refused(model)
    assert "'x'" in message
    assert "MatMul 'mm'" in message


def test_functions_that_call_themselves() -> None:
    model = functions()
    model.functions[1].node[0].CopyFrom(helper.make_node("F", ["q"], ["r"], domain="l"))
    message = refused(model)
    assert "l::F" in message or "l::G" in message
    assert "calls itself" in message


def test_messages_stay_short_and_printable(tmp_path: Path) -> None:
    model = net()
    model.graph.node[2].input[0] = "line\nbreak" * 2000
    message = refused(write(model, tmp_path / "m.onnx"))
    assert len(message) < 2000
    assert "line\\nbreak" in message


# --------------------------------------------------------------------------------------------- external data

ELSEWHERE: dict[str, tuple[tuple[object, object, object], list[str]]] = {
    "parent": (("../w.bin", 0, 9216), ["'../w.bin'", "outside the model's folder"]),
    "parent, hidden": (("a/../../w.bin", 0, 9216), ["outside the model's folder"]),
    "absolute": (("/etc/passwd", 0, 9216), ["'/etc/passwd'", "outside"]),
    "other system's path": (("..\\w.bin", 0, 9216), ["outside"]),
    "missing": (("nowhere.bin", 0, 9216), ["'nowhere.bin'", "is not in"]),
    "folder": ((".", 0, 9216), ["is not in"]),
    "no name": ((None, 0, 9216), ["names no file"]),
    "link out": (("out.bin", 0, 9216), ["'out.bin'", "link that leads outside"]),
    "link that ends nowhere": (("dead.bin", 0, 9216), ["'dead.bin'"]),
    "offset behind the end": ((DATA, 10**9, 9216), [DATA, "1000000000"]),
    "offset negative": ((DATA, -4, 9216), [DATA, "-4"]),
    "offset no number": ((DATA, "abc", 9216), ["not a number"]),
    "length behind the end": ((DATA, 9000, 9216), [DATA, "bytes"]),
    "length too short": ((DATA, 0, 9212), ["9212 bytes", "9216"]),
    "length too long": ((DATA, 0, 9220), ["9220 bytes", "9216"]),
    "length negative": ((DATA, 0, -1), [DATA]),
    "no length, not enough left": ((DATA, 9000, None), ["9216"]),
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_external_data_is_checked_at_load(tmp_path: Path, case: str) -> None:
    where, words = ELSEWHERE[case]
    model = net()
    folder = tmp_path / "model"
    externalise(model, folder)
    (tmp_path / "w.bin").write_bytes(bytes(9216))
    (folder / "out.bin").symlink_to(tmp_path / "w.bin")
    (folder / "dead.bin").symlink_to(folder / "gone")
    place(model.graph.initializer[2], *where)  # type: ignore[arg-type]
    message = refused(write(model, folder / "m.onnx"))
    assert "'w2'" in message
    for word in words:
        assert word in message


def test_external_data_is_mapped_and_written_back(tmp_path: Path) -> None:
    expected = run(net().SerializeToString())
    loaded = load(externalise(net(), tmp_path))
    tensor = loaded.model.graph.initializers["w2"].const_value
    assert isinstance(tensor, MappedTensor)
    assert not tensor.numpy().flags.writeable
    held = tensor.numpy()
    tensor.release()
    assert np.array_equal(held, numpy_helper.to_array(weight("w2", 16, 16, 3, 3)))
    assert same(run(to_bytes(loaded.model)), expected)
    assert loaded.bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert {Path(file).name for file in loaded.model.meta[SOURCE_FILES]} == {"m.onnx", DATA}


def test_data_cut_short(tmp_path: Path) -> None:
    path = externalise(net(), tmp_path)
    data = (tmp_path / DATA).read_bytes()
    (tmp_path / DATA).write_bytes(data[:-1])
    message = refused(path)
    assert DATA in message
    assert "truncated" in message or "bytes" in message


def test_links_of_a_download_cache(tmp_path: Path) -> None:
    """A cache keeps both files in one folder under other names, and links to them from another."""
    externalise(net(), tmp_path / "blobs")
    cache = tmp_path / "snapshots"
    cache.mkdir()
    for name in ("m.onnx", DATA):
        (tmp_path / "blobs" / name).rename(tmp_path / "blobs" / f"0123{name}")
        (cache / name).symlink_to(tmp_path / "blobs" / f"0123{name}")
    loaded = load(cache / "m.onnx").model
    assert same(run(to_bytes(loaded)), run(net().SerializeToString()))


def test_open_files_do_not_grow_with_tensors(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("open files are counted in /proc, which only Linux has")
    model = net()
    model.graph.initializer.extend(weight(f"more{i}", 8, 8) for i in range(300))
    loaded = load(externalise(model, tmp_path))
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    arrays = [tensor.numpy() for tensor in loaded.model.graph.initializers.tensors()]
    assert len(arrays) == 305
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # noqa: PTH208


@pytest.mark.parametrize(
    "kind", ["INT4", "UINT4", "FLOAT4E2M1", "INT2", "FLOAT8E4M3FN", "BFLOAT16", "FLOAT16", "BOOL", "DOUBLE"]
)
def test_data_types_in_every_place(tmp_path: Path, kind: str) -> None:
    """The same numbers inline, external and as a list, small and large; odd counts, so that packing matters."""
    for count in (7, 20_001):
        values = np.arange(count) % 2
        tensor = helper.make_tensor("w", getattr(TensorProto, kind), [count], values.tolist())
        cast = helper.make_node("Cast", ["w"], ["y"], to=TensorProto.FLOAT)
        graph = helper.make_graph(
            [cast], "g", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [count])], [tensor]
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)])
        raw = ir.serde.deserialize_tensor(tensor).tobytes()
        forms = {"list": model.SerializeToString()}
        inline = model.graph.initializer[0]
        for name in ("int32_data", "double_data", "raw_data"):
            inline.ClearField(name)
        inline.raw_data = raw
        forms["raw"] = model.SerializeToString()
        external = externalise(model, tmp_path).read_bytes()
        forms["external"] = external
        for form, data in forms.items():
            path = tmp_path / f"{form}.onnx"
            path.write_bytes(data)
            loaded = load(path).model
            value = loaded.graph.initializers["w"].const_value
            assert value is not None
            assert np.array_equal(value.numpy().astype(np.float32), values.astype(np.float32))
            assert to_proto(loaded).graph.initializer[0].raw_data in (raw, b"")
            assert load(to_proto(loaded)).model.graph.initializers["w"].const_value.tobytes() == raw  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------------------ fuzz


def test_some_mutants_end_cleanly(tmp_path: Path) -> None:
    """What ``benchmarks/fuzz.py`` does by the thousand, by the hundred."""
    from fuzz_corpus import built
    from fuzz_mutations import mutate

    seeds = built()
    ended = 0
    for seed in range(300):
        rng = random.Random(seed)
        _, model, data = rng.choice(seeds)
        if data is not None:
            (tmp_path / DATA).write_bytes(data)
        path = tmp_path / "m.onnx"
        path.write_bytes(mutate(model, rng))
        try:
            check_finite(weights_of(load(path).model))
        except ModelError as error:
            ended += 1
            assert "\n" not in str(error)
    assert 100 < ended < 300
