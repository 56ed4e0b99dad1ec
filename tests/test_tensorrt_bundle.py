"""Bundles: what is in them, that they work with nothing but trtexec and Python 3.6, and what is refused."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner

from graphprune.backends.tensorrt import UnsupportedError, build
from graphprune.backends.tensorrt.bundle import check_folder, profile_of
from graphprune.backends.tensorrt.calibration_cache import cache_text, read_cache, scales, version_number
from graphprune.backends.tensorrt.device import check as device_check
from graphprune.backends.tensorrt.entropy_limit import Histogram
from graphprune.cli import cli
from graphprune.devices import resolve
from graphprune.devices.tables import flags
from graphprune.errors import OutputError, UsageError
from graphprune.frontends.onnx import load
from tests.tensorrt_nets import NETS, detector, net, quantised, transformer


@pytest.fixture
def bundle(tmp_path: Path, digits: Path, calibration: Path) -> Path:
    """The digits classifier for a TX2."""
    built = build(digits, resolve("tx2", jetpack="4.6.1"), tmp_path / "digits.tx2", data=calibration, shapes={"image": (1, 1, 8, 8)})
    assert built.engine.startswith("no engine was built: engines are built on the device")
    return built.folder


def run(folder: Path, *arguments: str, **environment: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """run.sh with the fake trtexec on the path, which has the options of the bundle's version."""
    tools = folder.parent / "tools"
    tools.mkdir(exist_ok=True)
    shutil.copy(Path(__file__).with_name("fake_trtexec.py"), tools / "trtexec")
    (tools / "trtexec").chmod(0o755)
    (tools / "python3").unlink(missing_ok=True)
    (tools / "python3").symlink_to(sys.executable)
    trt = tuple(int(n) for n in json.loads((folder / "bundle.json").read_text())["target"]["tensorrt"].split("."))
    there = [f.flag for f in flags().values() if trt >= f.since and (f.before is None or trt < f.before)]
    env = {"PATH": f"{tools}:/usr/bin:/bin", "FAKE_FLAGS": ",".join(there), **environment}
    done = subprocess.run(["sh", str(folder / "run.sh"), *arguments], env=env, capture_output=True, text=True, timeout=120, check=False)
    result = folder / "result.json"
    return done, json.loads(result.read_text()) if result.exists() else {}


def test_the_bundle_runs_on_a_device(bundle: Path) -> None:
    done, result = run(bundle)
    assert done.returncode == 0, done.stdout + done.stderr
    assert result["passed"] and result["schema"] == 1 and result["build"]["ok"]
    assert result["times"]["count"] == 100 and result["times"]["compute_ms"]["median"] == pytest.approx(1.995)
    assert result["profile"] == [{"name": "conv nan inf", "averageMs": 0.1, "percentage": 100.0}]
    assert result["outputs"] == [{"name": "logits", "ok": True, "max_abs": 0.0, "max_rel": 0.0, "cosine": pytest.approx(1.0)}]
    assert "501.3 a second" in done.stdout
    again, other = run(bundle)
    assert again.returncode == 0 and "build" not in other and "building" not in again.stdout
    rebuilt, other = run(bundle, "--rebuild", "--build-only")
    assert rebuilt.returncode == 0 and "build" in other and "times" not in other


def test_a_device_that_computes_something_else_fails(bundle: Path) -> None:
    done, result = run(bundle, FAKE_OFFSET="5")
    assert done.returncode == 1 and not result["passed"] and "FAIL logits" in done.stdout
    assert result["outputs"][0]["max_rel"] > 0.02
    done, result = run(bundle, FAKE_OFFSET="nan")
    assert done.returncode == 1 and "not finite" in result["outputs"][0]["problem"]


@pytest.mark.parametrize(("fail", "word"), [("saveEngine", "not built"), ("exportTimes", "problem: time"), ("exportOutput", "problem: outputs")])
def test_what_fails_on_the_device_is_told(bundle: Path, fail: str, word: str) -> None:
    done, result = run(bundle, FAKE_FAIL=fail)
    assert done.returncode == 1 and word in done.stdout and "Assertion failed" in done.stdout and not result["passed"]


def test_a_damaged_copy_is_refused(bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"half a mod")
    done, result = run(bundle)
    assert done.returncode == 1 and "copy the folder again" in done.stderr and not result


def test_no_trtexec(bundle: Path) -> None:
    done = subprocess.run([sys.executable, str(bundle / "check.py")], env={"PATH": "/nowhere"}, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "trtexec was not found" in done.stderr


def test_build_sh_is_the_command(bundle: Path) -> None:
    text = (bundle / "build.sh").read_text()
    for argument in json.loads((bundle / "bundle.json").read_text())["commands"]["build"]:
        assert argument in text
    assert os.access(bundle / "build.sh", os.X_OK) and os.access(bundle / "run.sh", os.X_OK)
    assert subprocess.run(["sh", "-n", str(bundle / "build.sh")], check=False).returncode == 0


def test_the_device_script_is_python_3_6_and_needs_nothing() -> None:
    text = Path(device_check.__file__).read_text()
    tree = ast.parse(text, feature_version=(3, 6))
    modules = {name.split(".")[0] for node in ast.walk(tree) for name in (
        [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) else [])}
    assert modules <= {"argparse", "array", "hashlib", "json", "math", "os", "pathlib", "platform", "re", "shutil", "struct",
                       "subprocess", "sys", "time", "typing"}  # fmt: skip
    newer = re.findall(r"capture_output|missing_ok|removeprefix|:=|text=True|math\.prod|dict\[|list\[", text)
    assert not newer


def test_references_are_what_the_model_gives(bundle: Path) -> None:
    described = json.loads((bundle / "bundle.json").read_text())
    entry = described["inputs"][0]
    image = np.frombuffer((bundle / entry["file"]).read_bytes(), np.float32).reshape(entry["shape"])
    session = ort.InferenceSession(bundle / "model.onnx")
    (expected,) = session.run(None, {"image": image})
    stored = np.frombuffer((bundle / described["outputs"][0]["file"]).read_bytes(), np.float32)
    np.testing.assert_allclose(stored, expected.reshape(-1), rtol=1e-5)
    assert onnx.load(bundle / "model.onnx").opset_import[0].version == 13


def test_int64_and_bool_are_stored_as_the_engine_takes_them(tmp_path: Path) -> None:
    for name, dtype in (("agx-xavier", "int32"), ("agx-orin", "int64")):
        build(NETS["indices"], resolve(name), tmp_path / name)
        described = json.loads((tmp_path / name / "bundle.json").read_text())
        assert described["inputs"][0]["dtype"] == dtype
        size = (tmp_path / name / described["inputs"][0]["file"]).stat().st_size
        assert size == 10 * np.dtype(dtype).itemsize


def test_calibration_cache(tmp_path: Path, digits: Path, calibration: Path) -> None:
    folder = build(digits, resolve("agx-xavier", precision="int8", jetpack="5.1.2"), tmp_path / "b", data=calibration).folder
    header, found = read_cache((folder / "calibration.cache").read_text())
    assert header == "TRT-8502-EntropyCalibration2"
    assert (folder / "calibration.cache").read_text().splitlines()[1].startswith("image: 3")
    described = json.loads((folder / "bundle.json").read_text())
    assert "--calib=calibration.cache" in described["commands"]["build"] and "--int8" in described["commands"]["build"]
    computed = {v.name for n in load(folder / "model.onnx").model.graph for v in n.outputs}
    assert set(found) <= computed | {"image"} and len(found) > 10
    data = np.load(calibration)["image"]
    assert 0.3 * abs(data).max() < 127 * found["image"] <= 1.01 * abs(data).max()
    done, result = run(folder)
    assert done.returncode == 0 and result["passed"]


def test_cache_format() -> None:
    text = cache_text({"a": 0.5, "b: c": 1.0}, (8, 2, 1))
    assert text == "TRT-8201-EntropyCalibration2\na: 3f000000\nb: c: 3f800000\n"
    assert read_cache(text)[1] == {"a": 0.5, "b: c": 1.0}
    assert [version_number(v) for v in ((8, 0, 1), (8, 6, 2), (10, 3, 0), (10, 16, 2))] == [8001, 8602, 100300, 101602]
    assert struct.unpack(">f", bytes.fromhex("3f000000")) == (0.5,)


def test_limits_by_entropy() -> None:
    rng = np.random.default_rng(5)
    normal = rng.standard_normal(200_000).astype(np.float32)
    whole, parts, relu, tailed, zero = (Histogram() for _ in range(5))
    whole.add(normal)
    for part in np.split(normal, 10):
        parts.add(part)
    relu.add(np.concatenate([normal.clip(0), np.zeros(10**6, np.float32)]))
    tailed.add(np.append(normal, np.float32(1000)))
    zero.add(np.zeros(9, np.float32))
    assert 3 < whole.limit() <= abs(normal).max() and parts.limit() == pytest.approx(whole.limit(), rel=0.2)
    assert relu.limit() == pytest.approx(whole.limit(), rel=0.2)  # zeros say nothing
    assert tailed.limit() < 200 and zero.limit() == 0  # one value far out is clipped
    few = Histogram()
    few.add(np.array([[0.5, -2.0]], np.float32))
    assert few.limit() == 2


def test_scales_stand_for_the_range() -> None:
    model = load(net(13, "(float[1, 4, 8, 8] x) => (float y)", "y = Mul(x, k)", k=np.array(3, np.float32))).model
    feeds = [{"x": np.random.default_rng(i).uniform(-1, 1, (1, 4, 8, 8)).astype(np.float32)} for i in range(4)]
    found = scales(model, feeds)
    assert 127 * found["x"] == pytest.approx(1, rel=0.05) and found["y"] == pytest.approx(3 * found["x"], rel=0.05)


def test_dynamic_axes_have_a_profile(tmp_path: Path) -> None:
    folder = build(transformer(), resolve("tx2"), tmp_path / "b", shapes={"x": (1, 32, 16)}, max_shapes={"x": (4, 64, 16)}).folder
    described = json.loads((folder / "bundle.json").read_text())
    assert {"--minShapes=x:1x32x16", "--optShapes=x:1x32x16", "--maxShapes=x:4x64x16"} <= set(described["commands"]["build"])
    assert "--shapes=x:1x32x16" in described["commands"]["time"] and described["inputs"][0]["shape"] == [1, 32, 16]
    done, _ = run(folder)
    assert done.returncode == 0
    feed = {"x": np.zeros((2, 8, 16), np.float32)}
    with pytest.raises(UsageError, match="do not grow"):
        profile_of(load(transformer()).model, feed, {"x": (3, 8, 16)}, {})
    with pytest.raises(UsageError, match="no dynamic input"):
        profile_of(load(transformer()).model, feed, {}, {"z": (3, 8, 16)})


def test_plugin_outputs_are_not_compared_on_the_device(tmp_path: Path) -> None:
    built = build(detector(), resolve("tx2"), tmp_path / "b")
    folder = built.folder
    assert any("num_detections, detection_boxes" in note and "in place of selected" in note for note in built.notes)
    described = json.loads((folder / "bundle.json").read_text())
    assert [o["name"] for o in described["outputs"]] == ["feature"]
    assert described["unchecked"] == ["num_detections", "detection_boxes", "detection_scores", "detection_classes"]
    done, result = run(folder)
    assert done.returncode == 0 and [row["name"] for row in result["outputs"]] == ["feature"]


def test_quantised_models(tmp_path: Path) -> None:
    described = json.loads((build(quantised(), resolve("agx-orin"), tmp_path / "a").folder / "bundle.json").read_text())
    assert "--int8" in described["commands"]["build"] and not (tmp_path / "a" / "calibration.cache").exists()
    with pytest.raises(UsageError, match=r"is quantised.*no INT8"):
        build(quantised(), resolve("tx2"), tmp_path / "b")
    with pytest.raises(UsageError, match="which the DLA does not take"):
        build(quantised(), resolve("orin-nx", precision="int8", dla=0), tmp_path / "c")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def test_what_is_not_supported_writes_nothing(tmp_path: Path) -> None:
    proto = net(17, "(float[4] x) => (int64[1, N] y)", "y = NonZero(x)")
    with pytest.raises(UnsupportedError, match=r"NonZero .* comes with TensorRT 8\.5; cut the graph before it"):
        build(proto, resolve("tx2"), tmp_path / "b")
    huge = net(13, "(float[1, 3, 4000, 4000] x) => (float y)", "y = Conv<pads=[1, 1, 1, 1]>(x, w)", w=(64, 3, 3, 3))
    with pytest.raises(UnsupportedError, match="GB while building"):
        build(huge, resolve("nano"), tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_folders_are_replaced_whole_or_left(tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (bundle / "bundle.json").read_text()
    monkeypatch.setattr("graphprune.backends.tensorrt.bundle.readme", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build(NETS["conv-bn-mish"], resolve("tx2"), bundle)
    assert (bundle / "bundle.json").read_text() == before and [p.name for p in bundle.parent.iterdir() if p.name.startswith(".")] == []
    monkeypatch.undo()
    build(NETS["conv-bn-mish"], resolve("tx2"), bundle)
    assert json.loads((bundle / "bundle.json").read_text())["inputs"][0]["name"] == "x"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep")
    with pytest.raises(OutputError, match="is no bundle"):
        check_folder(tmp_path / "mine")
    with pytest.raises(OutputError, match="does not exist"):
        check_folder(tmp_path / "no" / "where")


def test_command_line(tmp_path: Path, digits: Path) -> None:
    runner = CliRunner()
    found = runner.invoke(cli, ["build", str(digits), "--target", "jetson-tx2", "--check-only", "--json"])
    verdicts = json.loads(found.output)["verdicts"]
    assert found.exit_code == 0 and {v["status"] for v in verdicts} == {"ok", "lowered"}
    found = runner.invoke(cli, ["build", str(digits), "--target", "jetson-tx2", "-o", str(tmp_path / "b"), "--json"])
    assert found.exit_code == 0 and json.loads(found.output)["proof"]["max_rel_error"] < 1e-4
    found = runner.invoke(cli, ["build", str(digits), "--target", "tx2", "--check-only", "--all"])
    assert found.exit_code == 0 and "0 unsupported" in found.output
    onnx.save(net(17, "(float[4] x) => (int64[1, N] y)", "y = NonZero(x)"), tmp_path / "n.onnx")
    found = runner.invoke(cli, ["build", str(tmp_path / "n.onnx"), "--target", "tx2", "--check-only"])
    assert found.exit_code == 2 and "1 unsupported" in found.output
    found = runner.invoke(cli, ["build", str(digits), "--target", "tx2", "--precision", "int8", "-o", str(tmp_path / "c")])
    assert found.exit_code == 2 and "slower than FP16" in found.output and not (tmp_path / "c").exists()
    found = runner.invoke(cli, ["devices"], env={"COLUMNS": "200"})
    assert found.exit_code == 0 and "orin-nano" in found.output and "10.3.0" not in found.output.split("thor")[1]
    found = runner.invoke(cli, ["devices", "tx2", "--json"])
    assert json.loads(found.output)["devices"][0]["source"]


STUBS = Path(__file__).with_name("tensorrt_stubs")


@pytest.fixture(scope="module")
def mypy_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What mypy knows of the standard library, once for all versions."""
    return tmp_path_factory.mktemp("mypy")


def type_errors(version: str, *modules: str, cache: Path) -> list[str]:
    """What mypy, strict, says of modules of the backend with one version's signatures."""
    mypy = pytest.importorskip("mypy.api")
    root = Path(__file__).resolve().parent.parent
    files = [str(root / "graphprune" / "backends" / "tensorrt" / f"{name}.py") for name in modules]
    config = ["--config-file", str(root / "pyproject.toml"), "--cache-dir", str(cache), "--follow-imports=skip"]
    out, told, code = mypy.run([*config, *files, str(STUBS / version / "tensorrt.pyi")])
    assert code in (0, 1), told + out
    return [line for line in out.splitlines() if ": error:" in line]


@pytest.mark.parametrize("version", sorted(path.name for path in STUBS.iterdir()))
def test_calls_of_tensorrt_fit_the_signatures_of_a_version(version: str, mypy_cache: Path) -> None:
    modules = ["engine"] if version.startswith("11") else ["engine", "precision"]
    assert not type_errors(version, *modules, cache=mypy_cache)


def test_what_tensorrt_11_dropped_is_seen_by_that_check(mypy_cache: Path) -> None:
    found = "\n".join(type_errors("11.4.0", "precision", cache=mypy_cache))
    assert all(name in found for name in ("FP16", "INT8", "int8_calibrator", "IInt8EntropyCalibrator2"))


def test_static_fixes_sizes_and_computes_more(tmp_path: Path) -> None:
    source = NETS["shape-arithmetic"]
    shapes = {"x": (2, 3, 8, 6)}
    folder = build(source, resolve("tx2"), tmp_path / "s", shapes=shapes, static=True).folder
    model = load(folder / "model.onnx").model
    assert {n.op_type for n in model.graph} == {"Reshape"} and list(model.graph.inputs[0].shape or ()) == [2, 3, 8, 6]
    assert not [a for a in json.loads((folder / "bundle.json").read_text())["commands"]["build"] if "Shapes" in a]
    moving = net(18, "(float[N, 3, H, 8] x) => (float y)", 'y = Pad<mode="reflect">(x, p)', p=np.array([0, 0, 1, 0, 0, 0, 0, 2]))
    with pytest.raises(UnsupportedError, match="--static fixes dynamic sizes"):
        build(moving, resolve("tx2", jetpack="4.6"), tmp_path / "p")
    build(moving, resolve("tx2", jetpack="4.6"), tmp_path / "p", static=True)
    with pytest.raises(UsageError, match="one size only"):
        build(NETS["conv-bn-mish"], resolve("orin-nx", dla=0), tmp_path / "d", shapes={"x": (1, 3, 16, 16)}, max_shapes={"x": (4, 3, 16, 16)})


def test_norms_taken_apart_are_warned_of_in_fp16(tmp_path: Path) -> None:
    notes = {}
    for name, options in (("fp16", {}), ("fp32", {"precision": "fp32"})):
        notes[name] = build(transformer(), resolve("tx2", **options), tmp_path / name, shapes={"x": (1, 8, 16)}).notes
    notes["native"] = build(transformer(), resolve("agx-orin"), tmp_path / "n", shapes={"x": (1, 8, 16)}).notes
    assert [any("2 normalisations" in note for note in found) for found in notes.values()] == [True, False, False]
    assert "squares overflow" in (tmp_path / "fp16" / "README.md").read_text()
