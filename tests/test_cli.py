"""The command line as a user types it: outputs, exit codes, one clear message for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.command import call, fails
from tests.nets import two_convs, with_weights


def test_run_writes_model_and_plan(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    result = call("run", model, "-o", out, "--pass", "entropy", "--rate", "0.5")
    assert result.exit_code == 0, result.output
    assert "proved" in result.output and "synthetic" in result.output
    onnx.checker.check_model(str(out), full_check=True)
    plan = json.loads((tmp_path / "out.plan.json").read_text())
    assert plan["schema"] == 1 and plan["verify"]["passed"] and plan["source"]["sha256"]
    assert plan["after"]["macs"] < plan["before"]["macs"]
    assert onnx.load(out).graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"


def test_json_outputs_are_json(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.onnx"
    assert json.loads(call("run", model, "-o", out, "--json").stdout)["verify"]["passed"]
    assert json.loads(call("inspect", model, "--json").stdout)["groups"]
    assert json.loads(call("verify", model, out, "--json").stdout)["passed"]
    names = {entry["name"] for entry in json.loads(call("passes", "--json").stdout)}
    assert {"l1", "l2", "entropy", "bn-scale", "random", "select", "rewrite", "verify"} <= names


def test_inspect_and_why(model: Path) -> None:
    assert "prunable units" in call("inspect", model).output
    assert "graph output 'y'" in call("inspect", model, "--why", "w3:0").output
    assert "prunable" in call("inspect", model, "--why", "w1:0").output
    assert "did you mean" in fails("inspect", model, "--why", "w11")


def test_verify_notices_a_changed_weight(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.onnx"
    assert call("run", model, "-o", out).exit_code == 0
    assert call("verify", model, out).exit_code == 0
    proto = onnx.load(out)
    values = np.frombuffer(proto.graph.initializer[0].raw_data, np.float32).copy()
    values[3] += 1
    proto.graph.initializer[0].raw_data = values.tobytes()
    onnx.save(proto, out)
    assert "does not hold" in fails("verify", model, out, code=3)


def test_verify_notices_another_source(model: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "o.onnx", tmp_path / "other.onnx"
    assert call("run", model, "-o", out).exit_code == 0
    onnx.save(two_convs(16, 14), other)
    assert "sha256" in fails("verify", other, out)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rate", "0"], "outside (0, 1)"),
        (["--rate", "1"], "outside (0, 1)"),
        (["--rate", "x"], "not a valid float"),
        (["--budget", "macs=1.5"], "an amount is a whole number above 1"),
        (["--budget", "flops=0.5"], "or latency=0.5x"),
        (["--rate", "0.5", "--budget", "macs=0.5"], "exclude each other"),
        (["--budget", "macs"], "write macs=0.5"),
        (["--budget", "macs=1e99"], "nothing to cut"),
        (["--pass", "entropyy"], "did you mean 'entropy'"),
        (["--pass", "entropy{bins=64}"], "no option 'bins'"),
        (["--pass", "entropy{"], "entropy{"),
        (["--pass", "l1{p=2}"], "no option"),
        (["--keep", "w*", "--keep", "b*"], "nothing is prunable"),
        (["--data", "/nowhere"], "does not exist"),
        (["--shape", "z=1x3x8x8"], "no input is called"),
        (["--shape", "x=1x4x8x8"], "4"),
        (["--align", "0"], "--align"),
        (["--eval", "nomodule:f"], "cannot be loaded"),
        (["--samples", "0"], "--samples"),
        (["-o", "out.txt"], "ends in .onnx"),
        (["-o", "/nowhere/out.onnx"], "/nowhere"),
    ],
)
def test_bad_options(model: Path, tmp_path: Path, options: list[str], words: str) -> None:
    before = model.read_bytes()
    output = [] if "-o" in options else ["-o", tmp_path / "o.onnx"]
    assert words in fails("run", model, *output, *options)
    assert model.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx"]


def test_output_must_not_be_the_source(model: Path) -> None:
    before = model.read_bytes()
    assert "source" in fails("run", model, "-o", model)
    assert model.read_bytes() == before


def test_bad_files(tmp_path: Path) -> None:
    cases = {
        "empty.onnx": b"",
        "text.onnx": b"hello, this is no model",
        "cut.onnx": two_convs().SerializeToString()[:400],
    }
    for name, data in cases.items():
        path = tmp_path / name
        path.write_bytes(data)
        fails("run", path, "-o", tmp_path / "o.onnx")
    fails("run", tmp_path / "missing.onnx")
    fails("run", tmp_path)
    assert "missing.onnx' does not exist" in fails("verify", tmp_path / "text.onnx", tmp_path / "missing.onnx")
    assert not (tmp_path / "o.onnx").exists()


def test_nan_weights_are_named(tmp_path: Path) -> None:
    proto = two_convs()
    values = np.frombuffer(proto.graph.initializer[2].raw_data, np.float32).copy()
    values[5] = np.nan
    proto.graph.initializer[2].raw_data = values.tobytes()
    onnx.save(proto, tmp_path / "nan.onnx")
    assert "w2" in fails("run", tmp_path / "nan.onnx", "-o", tmp_path / "o.onnx")


def test_nothing_prunable(tmp_path: Path) -> None:
    model = with_weights(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 7] x) => (float[N, 3] y) { y = Gemm(x, w) }""", w=(7, 3),
    )  # fmt: skip
    onnx.save(model, tmp_path / "m.onnx")
    assert "nothing is prunable" in fails("run", tmp_path / "m.onnx", "-o", tmp_path / "o.onnx")


def test_data_of_the_wrong_shape(model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((4, 1, 8, 8), np.float32))
    message = fails("run", model, "-o", tmp_path / "o.onnx", "--pass", "entropy", "--data", tmp_path / "d.npz")
    assert "x" in message and "3" in message


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, graphprune.cli\n"
        "try: graphprune.cli.cli(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'onnx', 'onnxruntime', 'scipy', 'networkx', 'rich', 'torch'} & set(sys.modules)\n"
        "sys.exit(1 if heavy else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_eval_shows_before_and_after(digits: Path, calibration: Path, tmp_path: Path) -> None:
    result = call("run", digits, "-o", tmp_path / "o.onnx", "--rate", "0.2", "--data", calibration, "--json",
                  "--eval", "examples.digits.evaluate:accuracy")  # fmt: skip
    assert result.exit_code == 0, result.output
    evaluation = json.loads(result.stdout)["evaluation"]
    assert evaluation["before"]["accuracy"] > 0.98 and 0 <= evaluation["after"]["accuracy"] <= 1
