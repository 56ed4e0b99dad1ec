"""Fine-tuning with labels: folders and arrays, a teacher, the plan beside, a kill in the middle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import graphprune as gp
from graphprune.cli import cli
from graphprune.errors import DataError, OutputError, UsageError
from tests.training_nets import classifier, digits, killed, started

torch = pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parents[1]


def call(*args: Any) -> Result:
    return CliRunner().invoke(cli, ["finetune", *map(str, args)], prog_name="graphprune")


def accuracy(model: onnx.ModelProto | Path, data: Path) -> float:
    import onnxruntime as ort

    found = np.load(data)
    session = ort.InferenceSession(model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model))
    return float((session.run(None, {"x": found["x"]})[0].argmax(-1) == found["labels"]).mean())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A trained classifier and its labelled data."""
    folder = tmp_path_factory.mktemp("source")
    data = digits(folder / "d.npz", labels=True, n=1000)
    onnx.save(classifier(norm=True), folder / "raw.onnx")
    found = gp.finetune(folder / "raw.onnx", data, epochs=10, lr=0.02)
    assert found.record["before"] < 0.4 and found.record["after"] > 0.7
    found.save(folder / "m.onnx")
    return folder / "m.onnx", data


def test_it_learns_and_the_source_stays(source: tuple[Path, Path], tmp_path: Path) -> None:
    path, data = source
    assert accuracy(path, data) > 0.7
    model = classifier()
    before = model.SerializeToString()
    found = gp.finetune(model, data, steps=40, lr=0.01)
    assert model.SerializeToString() == before
    assert found.record["used"] and found.record["steps"] == 40 and found.plan is None
    assert found.save(tmp_path / "o.onnx") == [tmp_path / "o.onnx"]
    held = found.record["after"]
    assert held == pytest.approx(max(score for _, score in found.record["scores"]), abs=1e-5)
    assert abs(accuracy(tmp_path / "o.onnx", data) - held) < 0.15


def test_a_cut_model_keeps_its_plan(source: tuple[Path, Path], tmp_path: Path) -> None:
    path, data = source
    gp.prune(path, passes=["l1", "recover"], rate=0.5, data=data, samples=64).save(tmp_path / "cut.onnx")
    done = call(tmp_path / "cut.onnx", "--data", data, "-o", tmp_path / "tuned.onnx", "--epochs", "4", "--lr", "0.005", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["after"] > told["before"] and told["files"] == [str(tmp_path / "tuned.onnx"), str(tmp_path / "tuned.plan.json")]
    assert accuracy(tmp_path / "tuned.onnx", data) > accuracy(tmp_path / "cut.onnx", data)
    report = gp.verify(path, tmp_path / "tuned.onnx")
    assert report["passed"] and report["recovered"] > 0
    plan = json.loads((tmp_path / "tuned.plan.json").read_text())
    assert plan["recovery"]["finetune"]["after"] == told["after"] and plan["recovery"]["layers"]
    # Without the note the proof refuses: the weights are not the source's.
    plan["recovery"]["tensors"] = []
    (tmp_path / "tuned.plan.json").write_text(json.dumps(plan))
    with pytest.raises(gp.GraphPruneError, match="does not hold the source's values"):
        gp.verify(path, tmp_path / "tuned.onnx")


def test_a_teacher_with_and_without_labels(source: tuple[Path, Path], tmp_path: Path) -> None:
    path, data = source
    plain = digits(tmp_path / "plain.npz", n=1000)
    taught = gp.finetune(classifier(1, norm=True), plain, teacher=path, epochs=6, lr=0.01)
    assert taught.record["measure"] == "divergence" and taught.record["after"] < 0.5 * taught.record["before"]
    assert gp.finetune(classifier(1, norm=True), data, teacher=path, epochs=6, lr=0.01).record["after"] > 0.5
    with pytest.raises(DataError, match="has no labels: give a folder with one subfolder of images a class"):
        gp.finetune(classifier(), plain, steps=2)
    other = classifier()
    other.graph.input[0].name = other.graph.node[0].input[0] = "other"
    with pytest.raises(UsageError, match="the teacher takes other and gives 1 outputs, the model takes x"):
        gp.finetune(classifier(), data, teacher=other, steps=2)


def test_a_folder_of_images(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    found = load_digits()
    for i in range(300):
        folder = tmp_path / "images" / str(found.target[i])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((found.images[i] * 15).astype(np.uint8)).save(folder / f"{i}.png")
    onnx.save(classifier(norm=True), tmp_path / "m.onnx")
    done = call(tmp_path / "m.onnx", "--data", tmp_path / "images", "-o", tmp_path / "o.onnx", "--epochs", "10", "--lr", "0.01")
    assert done.exit_code == 0, done.output
    assert "finetuned: accuracy" in done.output and (tmp_path / "o.onnx").exists()
    (tmp_path / "images" / "9").rename(tmp_path / "images" / "nine")
    wrong = call(tmp_path / "m.onnx", "--data", tmp_path / "images", "-o", tmp_path / "p.onnx")
    assert wrong.exit_code == 0  # ten names for ten classes
    for name in "78":
        (tmp_path / "images" / name).rename(tmp_path / name)
    wrong = call(tmp_path / "m.onnx", "--data", tmp_path / "images", "-o", tmp_path / "q.onnx")
    assert wrong.exit_code == 2 and "8 classes" in wrong.output and "name every folder by the number of its class" in wrong.output


def test_what_is_refused(source: tuple[Path, Path], tmp_path: Path) -> None:
    path, data = source
    found = np.load(data)
    np.savez(tmp_path / "high.npz", x=found["x"], labels=found["labels"] + 5)
    with pytest.raises(DataError, match=r"labels of shape \[1000\] in 5..14 fit no output"):
        gp.finetune(path, tmp_path / "high.npz", steps=2)
    with pytest.raises(UsageError, match="a batch of one sample has no statistics"):
        gp.finetune(path, data, steps=2, batch=1)
    with pytest.raises(UsageError, match="finetune\\(\\) got an unexpected keyword argument 'epoch'"):
        gp.finetune(path, data, epoch=2)
    with pytest.raises(OutputError, match="is the source file"):
        gp.finetune(path, data, steps=2).save(path)
    gone = call(path, "--data", tmp_path / "nowhere", "-o", tmp_path / "o.onnx")
    assert gone.exit_code == 2 and "does not exist" in gone.output and not (tmp_path / "o.onnx").exists()


def test_a_killed_run_goes_on_to_the_same_weights(source: tuple[Path, Path], tmp_path: Path) -> None:
    path, data = source

    def arguments(out: str, folder: str, every: float) -> list[str]:
        return ["finetune", str(path), "--data", str(data), "-o", str(tmp_path / out), "--steps", "500", "--augment", "noise",
                "--patience", "99", "--checkpoint", str(tmp_path / folder), "--every", str(every)]  # fmt: skip

    started(arguments("whole.onnx", "whole", 60), ROOT)
    reached = killed(arguments("broken.onnx", "broken", 0), tmp_path / "broken" / "finetune.safetensors", ROOT, 100)
    assert 100 <= reached < 500 and not (tmp_path / "broken.onnx").exists()
    started(arguments("broken.onnx", "broken", 0), ROOT)
    assert (tmp_path / "broken.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()


def test_a_torch_factory(source: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_factory_of_digits.py").write_text(
        "import torch\nfrom torch import nn\n\ndef make():\n    torch.manual_seed(0)\n"
        "    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)).eval()\n"
        "    return net, torch.zeros(2, 1, 8, 8)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = np.load(source[1])
    np.savez(tmp_path / "d.npz", input=found["x"][:200], labels=found["labels"][:200])
    done = call("my_factory_of_digits:make", "--data", tmp_path / "d.npz", "-o", tmp_path / "o.onnx", "--epochs", "6", "--lr", "0.01", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["after"] > 0.7 and not (tmp_path / "o.plan.json").exists()


def test_in_bfloat16(source: tuple[Path, Path]) -> None:
    code = (
        "import sys, graphprune as gp; found = gp.finetune(sys.argv[1], sys.argv[2], steps=20, patience=99, precision='bf16'); "
        "print(found.record['steps'], found.record['after'])\n"
        "try: gp.finetune(sys.argv[1], sys.argv[2], steps=2)\n"
        "except gp.GraphPruneError as error: print(error)"
    )
    # In a process of its own: Accelerate keeps one precision for all of a process.
    done = subprocess.run([sys.executable, "-c", code, *map(str, source)], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("20 ") and float(done.stdout.split()[1]) > 0.7
    assert "Accelerate was set up otherwise in this process" in done.stdout
