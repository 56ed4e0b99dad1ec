"""OpenVINO's IR as an output, and OpenVINO's profiles. Skipped where OpenVINO is not installed, but for what is said then."""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import graphprune as gp
from graphprune.cli import cli
from graphprune.errors import ModelError, OutputError, UsageError, VerificationError
from tests.nets import two_convs, with_weights


def openvino() -> Any:
    return pytest.importorskip("openvino")


def flat(text: str) -> str:
    return " ".join(text.split())


def dynamic() -> onnx.ModelProto:
    """Batch, height and width open; an output behind a saturating function, and one of integers."""
    model = with_weights(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 3, H, W] x) => (float[N, 16, P, Q] y, float[N, 5] s, int64[N] best) {
            a = Conv<pads=[1, 1, 1, 1]>(x, w1)
            n = BatchNormalization(a, scale, shift, mean, var)
            r = Relu(n)
            y = Conv<pads=[1, 1, 1, 1]>(r, w2, b2)
            p = GlobalAveragePool(y)
            f = Flatten(p)
            g = Gemm<transB=1>(f, w3)
            s = Sigmoid(g)
            best = ArgMax<axis=1, keepdims=0>(g)
        }""",
        w1=(24, 3, 3, 3), scale=(24,), shift=(24,), mean=(24,), var=(24,), w2=(16, 24, 3, 3), b2=(16,), w3=(5, 16),
    )  # fmt: skip
    var = next(tensor for tensor in model.graph.initializer if tensor.name == "var")
    var.CopyFrom(onnx.numpy_helper.from_array(np.linspace(0.5, 2, 24, dtype=np.float32), "var"))
    return model


def test_an_ir_gives_what_the_cut_model_gives(tmp_path: Path) -> None:
    core = openvino().Core()
    source = tmp_path / "net.onnx"
    onnx.save(dynamic(), source)
    result = gp.prune(source, rate=0.5)
    files = result.save(tmp_path / "out.xml")
    assert [file.name for file in files] == ["out.xml", "out.bin", "out.plan.json"] and all(file.exists() for file in files)
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]
    proof = json.loads((tmp_path / "out.plan.json").read_text())["verify"]["openvino"]
    assert 0 < proof["max_rel_error"] <= proof["tolerance"] == 1e-4 and not proof["compress_to_fp16"]
    model = core.read_model(str(tmp_path / "out.xml"))
    assert [d.is_dynamic for d in model.input(0).partial_shape] == [True, False, True, True]
    # By OpenVINO and ONNX Runtime alone, at a size that the analysis did not use.
    import onnxruntime as ort

    result.save(tmp_path / "out.onnx")
    feed = {"x": np.random.default_rng(1).standard_normal((2, 3, 13, 9)).astype(np.float32)}
    wanted = ort.InferenceSession(tmp_path / "out.onnx").run(None, feed)
    found = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(feed)
    for n, array in enumerate(wanted):
        assert np.abs(array - found[n]).max() <= 1e-4 * max(np.abs(array).max(), 1)


def test_the_command_line_writes_proves_and_times_it(tmp_path: Path, digits: Path) -> None:
    openvino()
    out = tmp_path / "small.xml"
    done = CliRunner().invoke(cli, ["run", str(digits), "-o", str(out)])
    assert done.exit_code == 0 and "gives what ONNX Runtime gives" in flat(done.output), done.output
    checked = CliRunner().invoke(cli, ["verify", str(digits), str(out), "--json"])
    assert checked.exit_code == 0 and json.loads(checked.output)["max_rel_error"] < 1e-4, checked.output
    timed = CliRunner().invoke(cli, ["bench", str(digits), str(out), "--runtime", "openvino", "--runs", "3", "--json"])
    assert timed.exit_code == 0 and len(json.loads(timed.output)["models"]) == 2, timed.output
    refused = CliRunner().invoke(cli, ["bench", str(out), "--runs", "3"])
    assert refused.exit_code == 2 and "give --runtime openvino" in flat(refused.output)


def test_weights_as_float16_are_half_the_bytes(tmp_path: Path, digits: Path) -> None:
    openvino()
    result = gp.prune(digits, rate=0.3)
    result.save(tmp_path / "full.xml")
    result.save(tmp_path / "half.xml", compress_to_fp16=True)
    assert (tmp_path / "half.bin").stat().st_size < 0.6 * (tmp_path / "full.bin").stat().st_size
    report = gp.verify(digits, tmp_path / "half.xml")
    assert 1e-5 < report["max_rel_error"] <= report["tolerance"] == 2e-2
    with pytest.raises(UsageError, match="compress_to_fp16 is for OpenVINO"):
        result.save(tmp_path / "out.onnx", compress_to_fp16=True)
    done = CliRunner().invoke(cli, ["run", str(digits), "-o", str(tmp_path / "o.onnx"), "--compress-to-fp16"])
    assert done.exit_code == 2 and "give -o OUT.xml" in flat(done.output) and not (tmp_path / "o.onnx").exists()


def test_another_file_under_the_same_name_is_found_out(tmp_path: Path, digits: Path) -> None:
    openvino()
    gp.prune(digits, rate=0.3).save(tmp_path / "a.xml")
    gp.prune(digits, rate=0.6).save(tmp_path / "b.xml")
    with pytest.raises(VerificationError, match="where the plan gives"):
        gp.verify(digits, tmp_path / "b.xml", tmp_path / "a.plan.json")
    from graphprune.backends.openvino import constants

    held = (tmp_path / "a.bin").read_bytes()
    weight = constants(tmp_path / "a.xml")["head.weight"].tobytes()
    assert held.count(weight) == 1
    (tmp_path / "a.bin").write_bytes(held.replace(weight, weight[::-1]))
    with pytest.raises(VerificationError, match="does not hold the source's values"):
        gp.verify(digits, tmp_path / "a.xml")


def test_a_recovered_ir_is_proved_as_its_plan_replays_it(tmp_path: Path, digits: Path, calibration: Path) -> None:
    openvino()
    result = gp.prune(digits, passes=["l1", "recover"], rate=0.3, data=calibration, samples=32)
    result.save(tmp_path / "a.xml")
    assert gp.verify(digits, tmp_path / "a.xml")["recovered"] > 0


def test_what_openvino_computes_otherwise_is_not_written(tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openvino()
    from graphprune.backends.openvino import Compiled

    honest = Compiled.run
    monkeypatch.setattr(Compiled, "run", lambda self, feed: {name: 1.001 * array for name, array in honest(self, feed).items()})
    with pytest.raises(VerificationError, match=r"differs from ONNX Runtime's by 0\.001"):
        gp.prune(digits, rate=0.3).save(tmp_path / "a.xml")
    assert not list(tmp_path.iterdir())


def test_what_openvino_does_not_take_is_named(tmp_path: Path, digits: Path) -> None:
    openvino()
    from graphprune.backends.onnx import Transaction
    from graphprune.backends.openvino import specs, stage
    from graphprune.frontends.onnx import load

    model = load(digits).model
    node = [node for node in model.graph if node.op_type == "Relu"][-1]
    node.op_type, node.domain = "Nonsense", "nowhere"
    model.graph.opset_imports["nowhere"] = 1
    with pytest.raises(ModelError, match=r"does not take the model: it has no nowhere\.Nonsense"), Transaction() as transaction:
        stage(model, tmp_path / "a.xml", transaction, [])
    assert not list(tmp_path.iterdir())
    with pytest.raises(ModelError, match="cannot read"):
        specs(tmp_path / "missing.xml")


def test_nothing_of_the_source_is_overwritten(tmp_path: Path) -> None:
    openvino()
    source, data = tmp_path / "net.onnx", tmp_path / "net.bin"
    onnx.save(two_convs(), source, save_as_external_data=True, location="net.bin", size_threshold=0)
    before = data.read_bytes()
    with pytest.raises(OutputError, match="is the source file"):
        gp.prune(source, rate=0.5).save(tmp_path / "net.xml")
    assert data.read_bytes() == before and not (tmp_path / "net.xml").exists()


def test_without_openvino_one_message_says_how_to_get_it(tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    done = CliRunner().invoke(cli, ["run", str(digits), "-o", str(tmp_path / "o.xml")])
    assert done.exit_code == 2 and "pip install 'graphprune[openvino]'" in flat(done.output), done.output


# -- profiles


def test_steps_that_a_normalisation_is_folded_into_go_by_the_models_nodes() -> None:
    openvino()
    from graphprune.backends.runtimes import find

    model = dynamic()
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    feed = {"x": np.zeros((1, 3, 16, 16), np.float32)}
    names = [step.name for step in find("openvino").profile(model.SerializeToString(), feed, 1, 2)]
    assert {"node_a", "node_n"} & set(names) and "node_y" in names, names


def test_single_runs_are_told_from_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO's profile is the mean of all runs since the model was compiled: a slow first run must not count."""
    openvino()
    from graphprune.backends.runtimes.open_vino import OpenVino

    taken = iter([9000, 100, 120, 5000, 110] * 2)  # microseconds of each run, by compilation

    class Request:
        def __init__(self) -> None:
            self.runs: list[int] = []

        def infer(self, feed: Any) -> None:
            self.runs.append(next(taken))

        @property
        def profiling_info(self) -> list[Any]:
            mean = timedelta(microseconds=sum(self.runs) // len(self.runs))
            return [SimpleNamespace(node_name="conv", node_type="Convolution", real_time=mean),
                    SimpleNamespace(node_name="x", node_type="Parameter", real_time=timedelta())]  # fmt: skip

    compiled = SimpleNamespace(create_infer_request=Request)
    monkeypatch.setattr(OpenVino, "_compile", lambda *args, **options: compiled)
    (step,) = OpenVino().profile(b"", {}, 1, 8, named=False)
    assert step.name == "conv" and step.ms == pytest.approx(0.115, abs=0.005) and step.least == pytest.approx(0.11, abs=0.005)
