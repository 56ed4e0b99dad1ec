"""``graphprune bench``: turns, intervals, profiles, files of a device. Nothing here depends on how long anything takes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import graphprune as gp
from graphprune import timing, trtexec
from graphprune.backends.runtimes import find
from graphprune.cli import cli
from graphprune.errors import ModelError, UsageError
from tests.nets import two_convs as fixed_convs

TIMES = [{"startEnqMs": 1.0, "latencyMs": 5.0 + 0.1 * (i % 3), "computeMs": 4.0, "h2dMs": 0.5, "d2hMs": 0.5} for i in range(20)]
#: As TensorRT 8.2 writes it (no medians), and 8.5.
PROFILE_82 = [{"count": 100}, {"name": "conv1 + relu1", "timeMs": 50.0, "averageMs": 0.5, "percentage": 80.0},
              {"name": "Reformatting CopyNode for Input Tensor 0", "timeMs": 12.5, "averageMs": 0.125, "percentage": 20.0}]  # fmt: skip
PROFILE_85 = [{"count": 10}, {"name": "conv1", "timeMs": 5.0, "averageMs": 0.5, "medianMs": 0.4, "percentage": 100.0}]


def two_convs(*sizes: int) -> onnx.ModelProto:
    """Two convolutions, height and width open."""
    model = fixed_convs(*sizes)
    for axis, name in ((2, "height"), (3, "width")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    return model


class Recorder:
    """An engine that notes when it runs."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def run(self, feed: Any) -> None:
        self.log.append(self.name)

    def close(self) -> None: ...


def test_every_round_runs_every_model_in_an_order_drawn_by_seed() -> None:
    def orders(seed: int) -> list[tuple[str, ...]]:
        log: list[str] = []
        engines = [Recorder(name, log) for name in "abc"]
        times = timing.in_turns(engines, [{}] * 3, runs=20, warm=2, seed=seed)
        assert times.shape == (3, 20)
        return [tuple(log[i : i + 3]) for i in range(0, len(log), 3)]

    first = orders(1)
    assert len(first) == 22 and all(sorted(one) == ["a", "b", "c"] for one in first)
    assert len(set(first)) > 3
    assert orders(1) == first != orders(2)


def test_three_rounds_run_however_little_time_there_is() -> None:
    assert timing.in_turns([Recorder("a", [])], [{}], runs=50, seconds=0.0).shape == (1, 3)


def test_intervals_hold_the_median_and_pairs_cancel_what_hits_both() -> None:
    rng = np.random.default_rng(0)
    base = 10 + rng.gamma(1.0, 5.0, 60)
    low, high = timing.median_interval(base)
    assert low < np.median(base) < high
    assert timing.median_interval(base) == (low, high)
    paired = timing.ratio_interval(0.5 * base, base)
    assert paired == pytest.approx((0.5, 0.5))
    apart = timing.ratio_interval(0.5 * base, base, paired=False)
    assert apart[0] < 0.5 < apart[1]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux alone can say which processors a thread may use")
def test_threads_are_pinned_and_let_go_again() -> None:
    before = os.sched_getaffinity(0)
    with timing.pinned(1) as chosen:
        assert os.sched_getaffinity(0) == set(chosen) and len(chosen) == 1
    assert os.sched_getaffinity(0) == before


def test_models_in_memory_and_in_files_side_by_side(tmp_path: Path, digits: Path) -> None:
    small = tmp_path / "small.onnx"
    onnx.save(two_convs(4, 4), small)
    found = gp.bench(two_convs(), small, threads=1, runs=4, shapes={"x": (1, 3, 16, 8)}, clock="cpu")
    assert [row.name for row in found.rows] == ["model 1", str(small)]
    first, second = found.rows
    assert first.ratio is None and first.inputs == {"x": (1, 3, 16, 8)}
    assert second.ratio == pytest.approx(second.median / first.median)
    assert second.ratio_interval is not None and second.ratio_interval[0] <= second.ratio_interval[1]
    assert found.in_turns and found.threads == 1 and found.clock == "cpu" and found.runtime.startswith("onnxruntime ")


def test_a_dynamic_batch_takes_the_size_asked() -> None:
    assert gp.bench(two_convs(), runs=3, batch=5).rows[0].inputs["x"][:2] == (5, 3)


def test_profiles_name_the_nodes_of_the_source() -> None:
    model = two_convs(32, 32)
    for node in model.graph.node:
        node.name = f"n_{node.op_type}_{node.output[0]}"
    layers = gp.bench(model, runs=3, profile=True, threads=1).rows[0].layers
    known = {node.name for node in model.graph.node}
    assert {"n_Gemm_y", "n_Conv_c"} <= {layer.name for layer in layers} & known
    # The first convolution is fused with its activation: what it writes is what the activation wrote.
    assert {"n_Relu_r", "n_Conv_a"} & {layer.name for layer in layers}
    assert all(layer.ms >= layer.least >= 0 for layer in layers)


def test_openvino_where_it_is_installed() -> None:
    pytest.importorskip("openvino")
    found = gp.bench(two_convs(), runtime="openvino", runs=3, threads=1, profile=True)
    assert found.runtime.startswith("openvino ") and found.rows[0].layers


def test_openvino_where_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UsageError, match=r"pip install 'graphprune\[openvino\]'"):
        find("openvino")


def test_times_of_a_device(tmp_path: Path) -> None:
    source, cut = tmp_path / "source.json", tmp_path / "cut.json"
    source.write_text(json.dumps(TIMES))
    cut.write_text(json.dumps([{**entry, "latencyMs": entry["latencyMs"] / 2} for entry in TIMES[:15]]))
    found = gp.bench(source, cut)
    assert not found.in_turns and found.runtime == "trtexec"
    assert found.rows[0].median == pytest.approx(5.1) and found.rows[1].ratio == pytest.approx(0.5)
    shown = CliRunner().invoke(cli, ["bench", str(source), str(cut)])
    assert shown.exit_code == 0 and "not in turns" in shown.output


def test_the_result_of_a_bundle_stands_for_the_times_beside_it(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    result.write_text(json.dumps({"passed": True, "times": {"count": 20}}))
    with pytest.raises(UsageError, match=r"copy times\.json"):
        gp.bench(result)
    (tmp_path / "times.json").write_text(json.dumps(TIMES))
    result.write_text(json.dumps({"passed": True, "times": {"count": 20}, "profile": PROFILE_85[1:]}))
    row = gp.bench(result).rows[0]
    assert row.name == str(result) and row.median == pytest.approx(5.1) and [one.name for one in row.layers] == ["conv1"]


@pytest.mark.parametrize(("text", "median"), [(PROFILE_82, 0.5), (PROFILE_85, 0.4)])
def test_profiles_of_a_device(tmp_path: Path, text: Any, median: float) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(text))
    layers = trtexec.read(path).layers
    assert layers[0].ms == median and layers[0].name.startswith("conv1") and not layers[0].layout
    assert all(layer.layout for layer in layers[1:])
    shown = CliRunner().invoke(cli, ["bench", str(path), "--plot", str(tmp_path / "p.svg")])
    assert shown.exit_code == 0 and "sum of layers" in shown.output, shown.output
    assert (tmp_path / "p.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[{", "not JSON"),
        ("{}", "neither what 'trtexec --exportTimes'"),
        ("[]", "neither what"),
        ('[{"latencyMs": -1}]', "latencyMs is -1"),
        ('[{"latencyMs": NaN}]', "latencyMs is nan"),
        ('[{"count": 3}, {"name": "a"}]', "lacks name or averageMs"),
        ('[{"count": 3}, {"name": "a", "averageMs": "x"}]', "averageMs is 'x'"),
    ],
)
def test_damaged_files_of_a_device(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=says):
        trtexec.read(path)


def test_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(two_convs(), path)
    options = ["--runs", "3", "--threads", "1", "--shape", "1x3x8x16", "--plot", str(tmp_path / "p.png")]
    done = CliRunner().invoke(cli, ["bench", str(path), str(path), *options, "--json", "--profile"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.output)
    assert said["threads"] == 1 and [m["runs"] for m in said["models"]] == [3, 3]
    assert said["models"][0]["inputs"] == {"x": [1, 3, 8, 16]} and said["models"][0]["layers"]
    assert (tmp_path / "p.png").stat().st_size > 1000
    shown = CliRunner().invoke(cli, ["bench", str(path), *options[:4], "--profile"])
    assert shown.exit_code == 0 and "1 thread" in " ".join(shown.output.split()) and "changes of layout" in shown.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--clock", "cpu", "--threads", "2"], "--clock cpu adds up the time of all threads"),
        (["--seconds", "-1"], "--seconds -1 must be above 0"),
        (["--shape", "y=1x3"], "no model has an input of this name"),
        (["--runtime", "tensorrt"], "has no TensorRT"),
        (["--batch", "3", "--shape", "x=2x3x8x8", "--clock", "no"], "'no' is not one of"),
        (["times.json"], "cannot be compared"),
        (["missing.onnx"], "missing.onnx"),
    ],
)
def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(two_convs(), "net.onnx")
    Path("times.json").write_text(json.dumps(TIMES))
    done = CliRunner().invoke(cli, ["bench", "net.onnx", "--runs", "3", *arguments])
    assert done.exit_code == 2 and says in done.output.replace("\n", " "), done.output


def test_a_fixed_batch_is_not_changed(digits: Path) -> None:
    model = two_convs()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    with pytest.raises(UsageError, match="is fixed at 1"):
        gp.bench(model, batch=2, runs=3)


def test_a_model_that_the_runtime_refuses_is_named() -> None:
    model = two_convs()
    model.graph.node[1].op_type = "Nonsense"
    model.graph.node[1].domain = "nowhere"
    model.opset_import.append(onnx.helper.make_opsetid("nowhere", 1))
    with pytest.raises(ModelError, match="Nonsense"):
        gp.bench(model, runs=3)


def test_advice_where_time_does_not_follow_macs() -> None:
    from graphprune.timing import advice

    before, after = {"macs": 4_000_000_000}, {"macs": 1_000_000_000}
    assert "--align auto" in str(advice(0.4, before, after))
    assert advice(0.3, before, after) is None
    # A small network spends its time between operators.
    assert advice(0.9, {"macs": 1_000_000}, {"macs": 500_000}) is None
