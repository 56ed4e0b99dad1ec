"""Every small network for every TensorRT of the tables: lowered, legal, and equal to its source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import graphprune as gp
from graphprune.backends.onnx import to_proto
from graphprune.backends.tensorrt import Lowered, build, check, lower, prove
from graphprune.backends.tensorrt.lowering import IR_VERSIONS
from graphprune.backends.tensorrt.proof import Source, samples
from graphprune.devices import Target, operator, resolve
from graphprune.errors import VerificationError
from graphprune.frontends.onnx import load
from tests.tensorrt_nets import NETS, detector, net, quantised

#: One target for each TensorRT that a JetPack brings, and the two without one.
TARGETS: dict[str, dict[str, Any]] = {
    "8.0": {"name": "agx-xavier", "jetpack": "4.6"}, "8.2": {"name": "agx-xavier", "jetpack": "4.6.1"},
    "8.4": {"name": "agx-xavier", "jetpack": "5.0.2"}, "8.5": {"name": "agx-xavier", "jetpack": "5.1.2"},
    "8.6": {"name": "agx-orin", "jetpack": "6.0"}, "10.3": {"name": "agx-orin", "jetpack": "6.2"},
    "10.13": {"name": "thor", "jetpack": "7.0"}, "10.16": {"name": "orin-nx", "jetpack": "7.2"},
    "x86": {"name": "x86-gpu", "tensorrt": "8.6.1"}, "rtx": {"name": "rtx"},
}  # fmt: skip


def target(key: str, **more: Any) -> Target:
    return resolve(**{**TARGETS[key], **more})


def lowered_and_proved(proto: onnx.ModelProto, key: str) -> Lowered:
    source = load(proto).model
    # TensorRT-RTX has no kernel for what it parses of a detection tail.
    raw = key == "rtx" and any(node.op_type == "NonMaxSuppression" for node in proto.graph.node)
    lowered = lower(source, target(key), raw_heads=raw)
    bad = [v for v in lowered.verdicts if v.status == "unsupported"]
    assert not bad, bad
    proof = prove(Source(source, list(samples(source, n=2, shapes={}))), lowered)
    assert proof["compared"]
    return lowered


@pytest.mark.parametrize("key", TARGETS)
@pytest.mark.parametrize("name", NETS)
def test_every_network_for_every_version(name: str, key: str) -> None:
    aim = target(key)
    lowered = lowered_and_proved(NETS[name], key)
    model = lowered.model
    assert model.graph.opset_imports[""] <= aim.opset
    assert model.ir_version == dict(IR_VERSIONS).get(model.graph.opset_imports[""], model.ir_version)
    for node in model.graph.all_nodes():
        if not node.domain:
            assert operator(node.op_type, aim.tensorrt) is not None, node.op_type
            onnx.defs.get_schema(node.op_type, model.graph.opset_imports[""], "")
    assert [v.name for v in model.graph.inputs] == [v.name for v in NETS[name].graph.input]


def ops(lowered: Lowered) -> set[str]:
    return {node.op_type for node in lowered.model.graph.all_nodes()}


def test_what_stands_for_what() -> None:
    assert {"Tanh", "Softplus"} <= ops(lowered_and_proved(NETS["conv-bn-mish"], "8.2"))
    assert "Mish" in ops(lowered_and_proved(NETS["conv-bn-mish"], "10.3"))
    assert not {"LayerNormalization", "Gelu"} & ops(lowered_and_proved(NETS["transformer"], "8.2"))
    assert "LayerNormalization" in ops(lowered_and_proved(NETS["transformer"], "8.6"))
    conv = next(n for n in lowered_and_proved(NETS["conv1d"], "8.2").model.graph if n.op_type == "Conv")
    assert conv.inputs[1] is not None and conv.inputs[1].const_value is not None and len(conv.inputs[1].shape or ()) == 4
    conv = next(n for n in lowered_and_proved(NETS["conv1d"], "8.5").model.graph if n.op_type == "Conv")
    assert conv.inputs[1] is not None and len(conv.inputs[1].shape or ()) == 3
    assert "MatMul" in ops(lowered_and_proved(NETS["resize-cubic"], "8.2"))
    assert "Einsum" not in ops(lowered_and_proved(NETS["einsum"], "8.0"))


def test_dynamic_axes_stay_dynamic() -> None:
    lowered = lowered_and_proved(NETS["transformer"], "8.2")
    shape = lowered.model.graph.inputs[0].shape
    assert shape is not None and not shape.is_static()
    source = load(NETS["transformer"]).model
    for sizes in ((1, 5, 16), (3, 9, 16)):
        feed = {"x": np.random.default_rng(1).standard_normal(sizes).astype(np.float32)}
        assert prove(Source(source, [feed]), lowered)["max_rel_error"] < 1e-4


def test_int64_is_brought_into_range() -> None:
    lowered = lowered_and_proved(NETS["indices"], "8.2")
    for value in lowered.model.graph.initializers.values():
        assert value.const_value is not None
        array = value.const_value.numpy()
        if array.dtype == np.int64 and array.size:
            assert abs(array).max() < 2**31
    kept = [v.const_value.numpy() for v in lower(load(NETS["indices"]).model, target("10.3")).model.graph.initializers.values()]  # type: ignore[union-attr]
    assert any(a.dtype == np.int64 and a.size and a.max() > 2**31 for a in kept)


def test_a_number_that_int32_cannot_hold_is_unsupported() -> None:
    proto = net(13, "(int64[3] x) => (int64[3] y)", "y = Mul(x, k)", k=np.array(2**40)
    )
    found = [v for v in check(load(proto).model, target("8.2")) if v.status == "unsupported"]
    assert [v.op for v in found] == ["Mul"] and "int32" in found[0].reason


def test_nms_becomes_the_plugin_and_its_inputs_are_proved() -> None:
    lowered = lowered_and_proved(detector(), "8.2")
    plugin = next(n for n in lowered.model.graph if n.op_type == "EfficientNMS_TRT")
    assert plugin.domain == "TRT" and plugin.attributes["max_output_boxes"].value == 15
    assert plugin.attributes["iou_threshold"].value == pytest.approx(0.5) and plugin.attributes["box_coding"].value == 0
    assert plugin.attributes["score_threshold"].value == pytest.approx(0.3) and "class_agnostic" not in plugin.attributes
    names = [v.name for v in lowered.model.graph.outputs]
    assert names == ["feature", "num_detections", "detection_boxes", "detection_scores", "detection_classes"]
    assert lowered.heads == ("boxes", "scores")
    scores = plugin.inputs[1]
    assert scores is not None and list(lowered.context.facts.shape(scores) or ()) == [1, 16, 3]  # type: ignore[union-attr]
    source = load(detector()).model
    assert set(prove(Source(source, list(samples(source, n=1, shapes={}))), lowered)["compared"]) == {"feature", "boxes", "scores"}


def test_nms_is_native_from_8_5_and_raw_heads_cut_it() -> None:
    assert "NonMaxSuppression" in ops(lowered_and_proved(detector(), "8.5"))
    source = load(detector()).model
    for key in ("8.2", "10.3"):
        cut = lower(source, target(key), raw_heads=True)
        assert [v.name for v in cut.model.graph.outputs] == ["feature", "boxes", "scores"]
        assert prove(Source(source, list(samples(source, n=1, shapes={}))), cut)["max_rel_error"] < 1e-4


def test_uint8_becomes_int8() -> None:
    lowered = lowered_and_proved(quantised("uint8"), "8.2")
    zero = next(n for n in lowered.model.graph if n.op_type == "QuantizeLinear").inputs[2]
    assert zero is not None and zero.const_value is not None and zero.const_value.dtype == ir.DataType.INT8


def test_the_proof_sees_a_wrong_lowering() -> None:
    source = load(NETS["conv-bn-mish"]).model
    lowered = lower(source, target("8.2"))
    node = next(n for n in lowered.model.graph if n.op_type == "Tanh")
    node.op_type = "Sigmoid"
    with pytest.raises(VerificationError, match=r"differs from its source.*first at"):
        prove(Source(source, list(samples(source, n=1, shapes={}))), lowered)


def test_what_no_version_takes_is_named_with_advice() -> None:
    proto = net(17, "(float[4] x) => (int64[1, N] y)", "y = NonZero(x)"
    )
    found = [v for v in check(load(proto).model, target("8.2")) if v.status == "unsupported"]
    assert [v.op for v in found] == ["NonZero"] and "8.5" in found[0].reason and found[0].advice
    assert not [v for v in check(load(proto).model, target("8.5")) if v.status == "unsupported"]


def test_one_verdict_a_node_and_one_for_the_model() -> None:
    model = load(NETS["transformer"]).model
    verdicts = check(model, target("8.2"))
    nodes = [n for n in model.graph.all_nodes() if n.op_type != "Constant"]
    assert len(verdicts) == len(nodes) + 1 and verdicts[-1].node == "(model)"
    assert {v.op for v in verdicts if v.status == "lowered"} >= {"LayerNormalization", "Gelu", "Split"}


def test_alignment_and_dla_are_told() -> None:
    proto = net(13, "(float[1, 3, 16, 16] x) => (float y)", "c = Conv(x, w) r = Relu(c) m = Softplus(r) y = Conv(m, v)", w=(63, 3, 3, 3), v=(64, 63, 1, 1),
    )  # fmt: skip
    verdicts = check(load(proto).model, resolve("orin-nx", precision="fp16", dla=0))
    by_op = {v.op: v for v in verdicts}
    assert "63 channels: padded to 64" in verdicts[0].note and verdicts[0].where == "DLA"
    assert by_op["Softplus"].where == "GPU" and "no Softplus" in by_op["Softplus"].note
    assert "3 of 4 nodes on the DLA" in verdicts[-1].note


def test_an_old_opset_is_raised() -> None:
    proto = net(8, "(float[1, 4] x) => (float y)", "y = Relu(x)", 3
    )
    source = load(proto).model
    lowered = lower(source, target("10.3"))
    assert lowered.model.graph.opset_imports[""] == 13
    assert prove(Source(source, list(samples(source, n=1, shapes={}))), lowered)["max_rel_error"] == 0


def test_the_source_is_not_changed() -> None:
    for name in ("transformer", "detector", "indices", "double"):
        model = load(NETS[name]).model
        before = to_proto(model).SerializeToString(deterministic=True)
        lower(model, target("8.2"))
        assert to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("key", ["8.2", "10.3"])
def test_a_cut_model_is_lowered(key: str, digits: Path) -> None:
    cut = gp.prune(digits, passes=["l1"], rate=0.5, scope="group").model
    lowered = lower(cut, target(key))
    assert not [v for v in lowered.verdicts if v.status == "unsupported"]
    assert prove(Source(cut, list(samples(cut, n=2, shapes={}))), lowered)["max_rel_error"] < 1e-4


def test_bodies_are_lowered_too() -> None:
    proto = net(
        18, "(float[2, 4] x, bool c) => (float y)",
        "y = If(c) <then_branch = yes () => (float[2, 4] a) { a = Mish(x) }, else_branch = no () => (float[2, 4] b) { b = HardSwish(x) }>",
    )  # fmt: skip
    source = load(proto).model
    lowered = lower(source, target("8.2"))
    assert not {"Mish", "HardSwish"} & ops(lowered)
    for chosen in (True, False):
        feed = {"x": np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32), "c": np.array(chosen)}
        assert prove(Source(source, [feed]), lowered)["max_rel_error"] < 1e-4


def test_functions_and_large_weights(tmp_path: Path) -> None:
    """Weights beside the file stay beside it, and the device's script checks both files."""
    proto = net(18, "(float[1, 4000] x) => (float y)", "h = MatMul(x, w) y = Mish(h)", w=(4000, 7000))
    onnx.save(proto, tmp_path / "big.onnx", save_as_external_data=True, location="big.bin")
    built = build(tmp_path / "big.onnx", resolve("tx2"), tmp_path / "b")
    described = json.loads((built.folder / "bundle.json").read_text())
    assert [entry["file"] for entry in described["model"]["data"]] == ["model.onnx.data"]
    onnx.checker.check_model(str(built.folder / "model.onnx"))


def test_types_that_no_version_casts_to_are_named() -> None:
    proto = net(17, "(float[4] x) => (float[4] y)", "u = Cast<to=2>(x) y = Cast<to=1>(u)")
    found = [v for v in check(load(proto).model, target("8.2")) if v.status == "unsupported"]
    assert [v.op for v in found] == ["Cast", "Cast"] and "UINT8" in found[0].reason
    assert not [v for v in check(load(proto).model, target("8.6")) if v.status == "unsupported"]


def test_what_is_gone_is_said() -> None:
    proto = net(
        17, "(float[1, 3, 8, 8] x) => (float y)", "a = Transpose<perm=[1, 0, 2, 3]>(w) b = Mul(a, s) y = Conv(x, b)",
        w=(3, 512, 3, 3), s=np.array(2, np.float32),
    )  # fmt: skip
    found = {v.op: v for v in check(load(proto).model, target("8.2"))}
    assert found["Mul"].reason == "computed in advance" and found["Transpose"].status == "lowered"
    assert "nothing reads it" in found["Transpose"].reason and found["Conv"].status == "ok"


def test_tails_that_tensorrt_rtx_cannot_build_are_refused_with_what_to_do() -> None:
    verdicts = lower(load(detector()).model, target("rtx")).verdicts
    (bad,) = (v for v in verdicts if v.status == "unsupported")
    assert bad.op == "NonMaxSuppression" and "--raw-heads" in bad.reason
    assert all(v.status != "unsupported" for v in lower(load(detector()).model, target("rtx"), raw_heads=True).verdicts)
