"""Latency of devices that are not here: the roofline of their tables, and profiles that correct it. Nothing is timed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import graphprune as gp
from graphprune import trtexec
from graphprune.cli import cli
from graphprune.devices import devices, named
from graphprune.devices.tables import peak_of, reached
from graphprune.errors import UsageError
from graphprune.latency import calibration
from graphprune.latency.calibrate import calibrate
from graphprune.latency.roofline import Roofline
from tests.nets import with_weights
from tests.test_latency import three_convs

TX2 = named("tx2")


def flat(text: str) -> str:
    return " ".join(text.split())


def notes(result: gp.Result) -> str:
    return flat(" ".join(result.plan.notes))


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRAPHPRUNE_CACHE", str(tmp_path / "cache"))


def widths_of(result: gp.Result) -> dict[str, int]:
    return {name: group["kept"] for group in result.plan.groups for name, axis in group["members"] if axis == 0}


# -- tables


def test_peaks_are_of_devices_that_there_are_and_agree_with_what_is_printed() -> None:
    for name, device in devices().items():
        peak = peak_of(name)
        assert (peak is None) == (device.bandwidth_gbs is None), name
        if peak is not None:
            assert (peak.int8_tops is not None) == device.int8, name
            assert peak.fp32_tops < peak.fp16_tops, name
            tensor_cores = 0.2 < reached(device.sm)[0] < 0.3
            assert tensor_cores == (device.sm >= 70), name
    tx2 = peak_of("tx2")
    assert tx2 is not None and tx2.fp16_tops == 1.33


# -- kernels


def test_what_is_fused_and_what_moves() -> None:
    model = with_weights(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[1, 4, 6, 6] x) => (float[1, 12, 6, 6] y, float[1, 5] z) {
            a = Conv<pads=[1, 1, 1, 1]>(x, w1)
            g = Sigmoid(a)
            s = Mul(a, g)
            c = Conv<pads=[1, 1, 1, 1]>(s, w2)
            r = Add(c, s)
            y = Concat<axis=1>(r, x)
            p = GlobalAveragePool(y)
            f = Flatten(p)
            z = Gemm(f, w3)
        }""",
        w1=(8, 4, 3, 3), w2=(8, 8, 3, 3), w3=(12, 5),
    )  # fmt: skip
    roofline = Roofline(gp.inspect(model), TX2, {})
    assert [[node.op_type for node in kernel.nodes] for kernel in roofline.kernels] == [
        ["Conv", "Sigmoid", "Mul"], ["Conv", "Add"], ["Concat"], ["GlobalAveragePool"], ["Gemm"],
    ]  # fmt: skip
    # By hand, bytes of half precision: what enters and leaves a kernel, once.
    share, launch = reached(62)
    area = 36
    moved = [4 * area + 8 * 4 * 9 + 8 * area, 8 * area + 8 * 8 * 9 + 8 * area, (8 + 4 + 12) * area, 12 * area + 12, 12 + 12 * 5 + 5]
    macs = [8 * 4 * 9 * area, 8 * 8 * 9 * area, 0, 0, 60]
    wanted = [max(2e-9 * m / 1.33, 2e-6 * b / 59.7) / share + 1e-3 * launch for m, b in zip(macs, moved, strict=True)]
    assert roofline.full == pytest.approx(wanted, rel=1e-6)


def test_widths_count_as_the_multiples_that_the_device_computes() -> None:
    state = gp.inspect(three_convs(64))
    orders = {group.id: group.units for group in state.coupling.groups}
    first = next(group.id for group in state.coupling.groups if any(v.name == "w1" and a == 0 for v, a in group.members))
    orin = Roofline(state, named("orin-nano"), orders)
    assert orin.step == 8 and Roofline(state, named("orin-nano:int8"), orders).step == 32
    assert (orin.times({first: 7}) == orin.times({})).all()
    assert orin.times({first: 8}).sum() < orin.times({}).sum()
    assert Roofline(state, named("orin-nano:int8"), orders).full.sum() < orin.full.sum() < Roofline(state, named("nano"), orders).full.sum()


# -- budgets


def compute_bound() -> onnx.ModelProto:
    """Large enough that launches are a small part."""
    model = three_convs(256)
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = 64
    return model


@pytest.mark.parametrize(("device", "multiple"), [("tx2", 2), ("orin-nano", 8)])
def test_a_share_of_the_estimate_is_met_without_any_profile(device: str, multiple: int) -> None:
    result = gp.prune(compute_bound(), budget="latency=0.5x", device=device)
    estimate = result.state.estimate
    assert estimate["after"] / estimate["before"] == pytest.approx(0.5, rel=0.1)
    assert all(group["kept"] % multiple == 0 for group in result.plan.groups)
    assert "estimated, not measured: roofline of Jetson" in notes(result) and "time the result on the device" in notes(result)
    assert not result.state.latency and "latency_ms" not in result.plan.after, "estimates are no measurements"


def test_milliseconds_are_an_estimate_too_and_every_output_says_so(tmp_path: Path) -> None:
    source, out, page = tmp_path / "net.onnx", tmp_path / "o.onnx", tmp_path / "r.html"
    onnx.save(compute_bound(), source)
    whole = gp.prune(source, budget="latency=0.9x", device="tx2").state.estimate["before"]
    call = ["run", str(source), "-o", str(out), "--device", "tx2", "--report", str(page), "--budget"]
    done = CliRunner().invoke(cli, [*call, f"latency={0.6 * whole:.4f}ms"])
    assert done.exit_code == 0, done.output
    assert "latency, ms (estimate)" in flat(done.output) and "latency is estimated, not measured" in flat(done.output)
    assert "latency on Jetson TX2, FP16, ms (an estimate, not measured)" in page.read_text()
    plan = json.loads((tmp_path / "o.plan.json").read_text())
    assert plan["options"]["device"] == "tx2" and any("estimated at 0.6" in note or "estimated at 0.5" in note for note in plan["notes"])
    refused = CliRunner().invoke(cli, [*call, f"latency={2 * whole:.4f}ms"])
    assert refused.exit_code == 2 and "is as fast already; nothing to cut" in flat(refused.output)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"device": "x86-gpu", "budget": "latency=0.5x"}, "give --latency-from a profile"),
        ({"device": "tx2:int8", "budget": "latency=0.5x"}, "slower than FP16"),
        ({"device": "tx3", "budget": "latency=0.5x"}, "no such device"),
        ({"device": "tx2"}, "says what --align auto or a latency budget takes"),
    ],
)
def test_devices_that_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        gp.prune(three_convs(), **options)


# -- calibration


def profile(path: Path, **ms: float) -> Path:
    """What trtexec says of ``three_convs``: names of fused nodes are joined, one layer only changes the layout."""
    rows = [{"name": name.replace("__", " + "), "averageMs": value} for name, value in ms.items()]
    path.write_text(json.dumps([{"count": 9}, *rows, {"name": "Reformatting CopyNode for Input Tensor 0", "averageMs": 0.2}]))
    return path


def test_what_the_device_took_is_kept_and_used(tmp_path: Path) -> None:
    source = tmp_path / "net.onnx"
    onnx.save(three_convs(), source)
    before = gp.prune(source, budget="latency=0.6x", device="tx2")
    path = profile(tmp_path / "p.json", node_a__node_r=8.0, node_c__node_s=1.0, node_d=0.8)
    done = CliRunner().invoke(cli, ["calibrate", str(source), "--from", str(path), "--device", "tx2"])
    assert done.exit_code == 0 and "3 of 5 kernels by name, 100% of 10 ms" in flat(done.output), done.output
    after = gp.prune(source, budget="latency=0.6x", device="tx2")
    assert "as profiled there, the rest scaled by" in notes(after) and "as profiled" not in notes(before)
    # 9.8 ms and the change of layout, and little for the two that the profile does not name.
    assert after.state.estimate["before"] == pytest.approx(10.0, rel=0.5) and after.state.estimate["before"] > 10.0
    assert widths_of(after)["w1"] < widths_of(before)["w1"], "most of the time goes where the profile says"
    other = gp.prune(source, budget="latency=0.6x", device="nano")
    assert "as profiled" not in notes(other), "another device is not spoken of"


def test_kernels_are_known_again_by_op_and_shape_in_another_file(tmp_path: Path) -> None:
    found = calibrate(three_convs(), profile(tmp_path / "p.json", node_a=1.0, node_c=3.0, node_d=2.0), "tx2")
    assert (found.matched, found.told) == (3, 1.0) and Path(found.file).exists()
    renamed = three_convs()
    for n, node in enumerate(renamed.graph.node):
        node.name = f"other_{n}"
    known = calibration.load(TX2)
    assert known is not None and known.scale == pytest.approx(found.scale)
    roofline = Roofline(gp.inspect(renamed), TX2, {})
    assert [name in known.ms for name in roofline.signatures()] == [True, True, True, False, False]
    times = [known.ms[name] for name in roofline.signatures()[:3]]
    assert np.asarray(times) == pytest.approx(np.asarray([1.0, 3.0, 2.0]) * 6.2 / 6.0)


def test_layer_information_names_what_the_layers_do_not(tmp_path: Path) -> None:
    path = profile(tmp_path / "p.json", __myl_Conv_1=1.0, __myl_Conv_2=3.0)
    rows = json.loads(path.read_text())
    names = [row["name"] for row in rows[1:3]]
    with pytest.raises(UsageError, match="only 0% of its time goes by names"):
        calibrate(three_convs(), path, "tx2")
    layers = tmp_path / "layers.json"
    layers.write_text(json.dumps({"Layers": [
        {"Name": names[0], "Metadata": "[ONNX Layer: node_a]\x1e[ONNX Layer: node_r]"}, {"Name": names[1], "Metadata": "[ONNX Layer: node_c]"},
    ]}))  # fmt: skip
    assert calibrate(three_convs(), path, "tx2", layers=layers).matched == 2
    layers.write_text("[]")
    with pytest.raises(UsageError, match="is not what 'trtexec --exportLayerInfo' writes"):
        calibrate(three_convs(), path, "tx2", layers=layers)


def test_the_result_of_a_bundle_holds_a_profile(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"passed": True, "times": {"count": 3}, "profile": [{"name": "node_c + node_s", "averageMs": 2.0}]}))
    assert [layer.name for layer in trtexec.read(path).layers] == ["node_c + node_s"]
    assert calibrate(three_convs(), path, "orin-nano").matched == 1
