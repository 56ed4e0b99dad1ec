"""What is loaded is in normal form, keeps what belongs to the user, and stays in its file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

import graphprune
from graphprune.backends.onnx import to_bytes, to_proto
from graphprune.errors import ModelError
from graphprune.frontends.mapped import MappedTensor
from graphprune.frontends.onnx import SOURCE_FILES, check_finite, load, nonfinite_weights, plan_name, weights_of
from graphprune.frontends.onnx_wire import HERE, Bulk, flesh, skeleton
from tests.model_files import (
    DATA,
    MODELS,
    branches,
    constants,
    externalise,
    functions,
    listed,
    net,
    place,
    run,
    same,
    weight,
    write,
)
from tests.model_files import sparse as sparse_model


def refused(source: onnx.ModelProto | ir.Model) -> str:
    with pytest.raises(ModelError) as caught:
        load(source)
    return str(caught.value)


@pytest.mark.parametrize("name", MODELS)
def test_normal_form(tmp_path: Path, name: str) -> None:
    """No functions, no Constant nodes but those that are outputs, nothing sparse; the same numbers come out."""
    model = MODELS[name]()
    loaded = load(write(model, tmp_path / "m.onnx"))
    proto = to_proto(loaded.model)
    assert not loaded.model.functions
    for graph in loaded.model.graphs():
        assert all(node.op_type != "Constant" or node.outputs[0].is_graph_output() for node in graph)
        assert not any(value.is_initializer() for value in graph.inputs)
    assert loaded.model.ir_version >= 4
    assert dict(loaded.model.opset_imports)[""] == model.opset_import[0].version
    onnx.checker.check_model(proto, full_check=True)
    assert same(run(to_bytes(loaded.model)), run(model.SerializeToString()))


def test_constants_keep_their_names() -> None:
    loaded = load(constants()).model
    assert {"big", "f", "fs", "i", "shape", "word", "words"} == set(loaded.graph.initializers)
    assert [node.outputs[0].name for node in loaded.graph if node.op_type == "Constant"] == ["kept"]
    assert loaded.graph.initializers["f"].const_value.shape.rank() == 0  # type: ignore[union-attr]
    assert loaded.graph.initializers["shape"].dtype == ir.DataType.INT64


def test_function_defaults_and_names() -> None:
    loaded = load(functions()).model
    names = [value.name for graph in loaded.graphs() for node in graph for value in node.outputs]
    names += [name for graph in loaded.graphs() for name in graph.initializers]
    assert len(names) == len(set(names))
    alphas = [
        float(t.numpy()) for graph in loaded.graphs() for t in graph.initializers.tensors() if t.shape.rank() == 0
    ]
    assert sorted(alphas) == [0.25, 0.25, 0.5]
    assert "l" not in loaded.opset_imports


@pytest.mark.parametrize(("version", "node"), [(17, "r = ReduceMean <axes=[1]> (q)"), (15, "r = Relu(q)")])
def test_functions_of_another_opset(version: int, node: str) -> None:
    model = parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 18, "l" : 1]>
        g (float[n,4] x) => (float[n,m] y) {{ y = l.F(x) }}
        <opset_import: ["" : {version}], domain: "l"> F (q) => (r) {{ {node} }}""")
    loaded = load(model).model
    assert [item.op_type for item in loaded.graph] == [node.split()[2].partition("(")[0]]
    out = run(to_bytes(loaded))[0]
    x = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    np.testing.assert_allclose(out, x.mean(1, keepdims=True) if version == 17 else np.maximum(x, 0), rtol=1e-6)


def test_siblings_of_one_name_have_plan_names_of_their_own() -> None:
    loaded = load(branches())
    assert sorted(loaded.names.values()) == ["choice/else_branch/w", "choice/then_branch/w"]
    everything = [plan_name(value) for graph in loaded.model.graphs() for value in graph.initializers.values()]
    assert len(everything) == len(set(everything))
    assert [value.name for value in loaded.names] == ["w", "w"]


def test_initializers_listed_as_inputs() -> None:
    assert [value.name for value in load(listed(net(9, ir_version=3))).model.graph.inputs] == ["x"]
    assert [value.name for value in load(listed(net(17))).model.graph.inputs] == ["x"]
    partly = net()
    partly.graph.input.append(helper.make_tensor_value_info("b3", TensorProto.FLOAT, [10]))
    loaded = load(partly).model
    assert [value.name for value in loaded.graph.inputs] == ["x", "b3"]
    assert loaded.graph.initializers["b3"].const_value is not None


def test_old_file_whose_initializers_are_not_inputs() -> None:
    """Against the letter of IR version 3, but runtimes read it."""
    assert load(net(9, ir_version=3)).model.ir_version == 4


def test_what_belongs_to_the_user_is_kept(tmp_path: Path) -> None:
    model = net()
    model.producer_name, model.doc_string, model.domain, model.model_version = "me", "words", "org.me", 7
    model.metadata_props.add(key="character", value="a\nb\n\u4e2d")
    model.graph.doc_string = "graph words"
    model.graph.node[0].doc_string = "node words"
    model.graph.node[0].metadata_props.add(key="scope", value="layer1")
    model.graph.value_info.append(helper.make_tensor_value_info("c1", TensorProto.FLOAT, ["n", 16, 8, 8]))
    model.graph.input[0].doc_string = "input words"
    out = to_proto(load(write(model, tmp_path / "m.onnx")).model)
    for key in (
        "producer_name",
        "doc_string",
        "domain",
        "model_version",
        "metadata_props",
        "opset_import",
        "ir_version",
    ):
        assert getattr(out, key) == getattr(model, key), key
    assert out.graph == model.graph


def test_negative_sizes_mean_any() -> None:
    model = net()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    shape = load(model).model.graph.inputs[0].shape
    assert shape is not None
    assert not isinstance(shape[0], int)
    assert list(shape)[1:] == [3, 8, 8]


def test_sparse_is_refused_where_it_is_broken() -> None:
    for change, words in (
        (lambda s: s.dims.__setitem__(0, 2**40), "no tensor|over the limit"),
        (lambda s: s.dims.__setitem__(0, 20_000_000), "over the limit"),
        (lambda s: s.dims.__setitem__(0, 3), "outside its shape"),
        (lambda s: setattr(s.indices, "data_type", TensorProto.FLOAT), "indices"),
        (lambda s: s.values.dims.__setitem__(0, 7), "values"),
    ):
        model = sparse_model()
        change(model.graph.sparse_initializer[0])
        message = refused(model)
        assert any(word in message for word in words.split("|")), message


def test_unknown_domain_and_unknown_standard_operator_load() -> None:
    model = net()
    model.opset_import.append(helper.make_opsetid("acme", 1))
    model.graph.node[1].domain, model.graph.node[1].op_type = "acme", "Swoosh"
    assert load(model).model.graph[1].op_type == "Swoosh"


def test_ir_models_are_taken_and_left_alone(tmp_path: Path) -> None:
    source = ir.load(externalise(functions_with_weights(), tmp_path))
    before = ir.to_proto(source).SerializeToString()
    loaded = load(source)
    assert loaded.model is not source
    assert ir.to_proto(source).SerializeToString() == before
    assert isinstance(loaded.model.graph.initializers["w"].const_value, MappedTensor)
    assert [Path(file).name for file in loaded.model.meta[SOURCE_FILES]] == [DATA]
    (tmp_path / DATA).write_bytes(b"short")
    assert "'w'" in refused(ir.load(tmp_path / "m.onnx"))


def functions_with_weights() -> onnx.ModelProto:
    model = parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 18, "l" : 1]>
        g (float[n,40] x) => (float[n,40] y) { y = l.F(x, w) }
        <opset_import: ["" : 18], domain: "l"> F (q, k) => (r) { r = MatMul(q, k) }""")
    model.graph.initializer.append(weight("w", 40, 40))
    return model


# ---------------------------------------------------------------------------------------------------- finite


def test_nan_is_named_with_its_place(tmp_path: Path) -> None:
    for folder, dtype in (("f32", np.float32), ("f16", np.float16), ("f64", np.float64)):
        array = np.zeros((16, 16, 3, 3), dtype)
        array[3, 2, 1, 0] = np.nan
        model = net()
        model.graph.initializer[2].CopyFrom(numpy_helper.from_array(array, "w2"))
        loaded = load(externalise(model, tmp_path / folder)).model
        with pytest.raises(ModelError, match=r"'w2'.*\[3, 2, 1, 0\]"):
            check_finite(weights_of(loaded))
        assert nonfinite_weights(loaded) == ["w2"]


def test_infinities_pass_as_masks_do_and_are_listed() -> None:
    model = net()
    array = numpy_helper.to_array(model.graph.initializer[2]).copy()
    array[0, 0, 0, :2] = np.inf, -np.inf
    model.graph.initializer[2].CopyFrom(numpy_helper.from_array(array, "w2"))
    model.graph.initializer[3].CopyFrom(numpy_helper.from_array(np.full((10, 16), 3e38, np.float32), "w3"))
    loaded = load(model).model
    check_finite(weights_of(loaded))
    assert nonfinite_weights(loaded) == ["w2"]
    assert nonfinite_weights(loaded, limit=0) == []


# ------------------------------------------------------------------------------------------------------ wire


@pytest.mark.parametrize("name", [*MODELS, "external"])
def test_flesh_undoes_skeleton(tmp_path: Path, name: str) -> None:
    """Taking the data out of any message and putting it back gives the same message."""
    if name == "external":
        data = externalise(net(), tmp_path).read_bytes()
    else:
        data = MODELS[name]().SerializeToString()
    bare = onnx.ModelProto.FromString(skeleton(memoryview(data)))
    taken: list[bytes] = []
    stack = list(bare.graph.initializer)
    graphs = [bare.graph, *bare.functions]
    for graph in graphs:
        for node in graph.node:
            for item in node.attribute:
                stack += [item.t] if item.HasField("t") else []
                if item.HasField("g"):
                    graphs.append(item.g)
                    stack += item.g.initializer
    for tensor in stack:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries.get("location") == HERE:
            start, size = int(entries["offset"]), int(entries["length"])
            place(tensor, HERE, len(taken), size)
            taken.append(data[start : start + size])
    pieces = flesh(bare.SerializeToString())
    whole = b"".join(taken[piece.number] if isinstance(piece, Bulk) else bytes(piece) for piece in pieces)
    assert onnx.ModelProto.FromString(whole) == onnx.ModelProto.FromString(data)
    if name in ("net", "constants", "branches"):
        assert taken


@pytest.mark.parametrize("size", [8, 5000])
def test_marker_among_the_data(size: int) -> None:
    """Bytes and names that look like the reference that skeletons use are just bytes and names."""
    model = net()
    raw = (b"\0here" * size)[: size * 4]
    tensor = TensorProto(name="\0here", data_type=TensorProto.FLOAT, dims=[size], raw_data=raw)
    model.graph.initializer.append(tensor)
    written = onnx.ModelProto.FromString(to_bytes(load(model).model))
    assert written.graph.initializer[-1] == tensor


def test_hash_is_that_of_the_file(tmp_path: Path) -> None:
    path = write(net(), tmp_path / "m.onnx")
    assert load(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert load(net()).sha256 is None


def test_empty_tensors(tmp_path: Path) -> None:
    model = net()
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((0, 4), np.float32), "none"))
    source = externalise(model, tmp_path)
    proto = onnx.load(source, load_external_data=False)
    place(proto.graph.initializer[-1], "empty.bin", 0, 0)
    (tmp_path / "empty.bin").write_bytes(b"")
    loaded = load(write(proto, source)).model
    assert loaded.graph.initializers["none"].const_value.numpy().shape == (0, 4)  # type: ignore[union-attr]
    assert list(to_proto(loaded).graph.initializer[-1].dims) == [0, 4]


def test_packed_floats_stay_in_the_file(tmp_path: Path) -> None:
    model = net()
    array = numpy_helper.to_array(model.graph.initializer[2])
    model.graph.initializer[2].ClearField("raw_data")
    model.graph.initializer[2].float_data.extend(array.reshape(-1).tolist())
    loaded = load(write(model, tmp_path / "m.onnx")).model
    tensor = loaded.graph.initializers["w2"].const_value
    assert isinstance(tensor, MappedTensor)
    assert np.array_equal(tensor.numpy(), array)


def test_a_question_mark_names_no_axis() -> None:
    """Paddle writes ``?`` for every size it does not know: such axes need not be of one size."""
    graph = parser.parse_graph("g (float[n, 3, h, w] x) => (float[n, 3, h, w] y) { y = Relu(x) }")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    for value in (model.graph.input[0], model.graph.output[0]):
        for axis in (2, 3):
            value.type.tensor_type.shape.dim[axis].dim_param = "?"
    shape = load(model).model.graph.inputs[0].shape
    assert shape is not None
    sizes = [None if isinstance(d, int) else d.value for d in shape]
    assert sizes == ["n", None, None, None]
    state = graphprune.inspect(model, shapes={"x": (1, 3, 48, 192)})
    assert state.facts is not None and state.facts.shape(state.model.graph.outputs[0]) == (1, 3, 48, 192)
