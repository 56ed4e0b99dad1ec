"""Distillation: it helps, it is never worse, it goes on after a kill as if nothing had happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import graphprune as gp
from graphprune.errors import UsageError
from tests.nets import with_weights
from tests.training_nets import classifier, digits, killed, started

torch = pytest.importorskip("torch")
pytest.importorskip("graphprune.backends.torch")

ROOT = Path(__file__).resolve().parents[1]


def run(model: Any, options: str, data: Path, passes: tuple[str, ...] = ("l1",), **more: Any) -> gp.Result:
    given = {"rate": 0.4, "data": data, "samples": 64, **more}
    return gp.prune(model, passes=[*passes, f"distill{{{options}}}"], **given)


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


@pytest.mark.parametrize("softmax", [False, True])
def test_it_brings_the_outputs_nearer(tmp_path: Path, softmax: bool) -> None:
    data = digits(tmp_path / "d.npz")
    model = classifier(softmax=softmax)
    onnx.save(model, tmp_path / "m.onnx")
    result = run(tmp_path / "m.onnx", "steps=150,batch=32,lr=0.003", data, passes=("l1", "recover"))
    record = result.plan.recovery["distill"]
    fidelity = record["fidelity"]
    assert record["used"] and fidelity["after"]["divergence"] < 0.8 * fidelity["before"]["divergence"]
    assert record["samples"] == 360 and record["held_out"] == 40 and record["steps"] == 150
    # What judges in torch is what the report judges by in ONNX Runtime.
    assert record["scores"][0][1] == pytest.approx(fidelity["before"]["divergence"], rel=1e-3)
    assert min(score for _, score in record["scores"]) == pytest.approx(fidelity["after"]["divergence"], rel=1e-3)
    assert result.plan.fidelity["divergence"] == fidelity["after"]["divergence"]
    # It stands on what least squares left, and the plan still proves the cut.
    assert result.plan.recovery["mode"] == "ls"
    result.save(tmp_path / "o.onnx", tmp_path / "o.html")
    assert gp.verify(tmp_path / "m.onnx", tmp_path / "o.onnx")["recovered"] >= 5
    assert "Distillation" in (tmp_path / "o.html").read_text()


def test_values_and_features(tmp_path: Path) -> None:
    model = with_weights(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 1, 8, 8] x) => (float[N, 1, 8, 8] y, int64[K] z) {
            a = Conv<pads=[1, 1, 1, 1]>(x, w1)  r = Relu(a)
            c = Conv<pads=[1, 1, 1, 1]>(r, w2)  q = Relu(c)  y = Conv(q, w3)  z = Shape(y)
        }""",
        w1=(12, 1, 3, 3), w2=(16, 12, 3, 3), w3=(1, 16, 1, 1),
    )  # fmt: skip
    data = digits(tmp_path / "d.npz")
    result = run(model, "steps=80,batch=32,lr=0.02", data)
    record = result.plan.recovery["distill"]
    assert record["features"] == ["r", "q"]
    assert record["fidelity"]["after"]["outputs"]["y"]["rel_mse"] < 0.5 * record["fidelity"]["before"]["outputs"]["y"]["rel_mse"]
    assert run(model, "steps=10,batch=32,features=0", data).plan.recovery["distill"]["features"] == []


def test_a_distribution_at_every_position(tmp_path: Path) -> None:
    """As a recogniser of text gives: [samples, steps, classes] behind a Softmax."""
    model = with_weights(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 1, 8, 8] x) => (float[N, 8, 10] y) {
            a = Conv<pads=[1, 1, 1, 1]>(x, w1)  r = Relu(a)
            c = Conv(r, w2)  s = Squeeze(c, axis)  t = Transpose<perm=[0, 2, 1]>(s)
            z = MatMul(t, w3)  y = Softmax<axis=-1>(z)
        }""",
        w1=(12, 1, 3, 3), w2=(16, 12, 8, 1), w3=np.random.default_rng(3).standard_normal((16, 10)).astype(np.float32) * np.float32(0.03), axis=np.array([2]),
    )  # fmt: skip
    record = run(model, "steps=60,batch=32,lr=0.01", digits(tmp_path / "d.npz")).plan.recovery["distill"]
    before, after = (record["fidelity"][when]["outputs"]["y"]["kl"] for when in ("before", "after"))
    assert record["scores"][0][1] == pytest.approx(before, rel=1e-3) and after < 0.8 * before


def test_never_worse_than_before(tmp_path: Path) -> None:
    data = digits(tmp_path / "d.npz")
    plain = gp.prune(classifier(), passes=["l1"], rate=0.4, data=data, samples=64)
    # A rate at which every step makes it worse; the clip lets it.
    result = run(classifier(), "steps=20,lr=1e6,warmup=0,ema=0", data)
    assert not result.plan.recovery["distill"]["used"] and not result.plan.recovery["tensors"]
    assert any("distill: the outputs on held-out samples came no nearer" in note for note in result.state.notes)
    before, after = weights(plain.proto()), weights(result.proto())
    assert before.keys() == after.keys() and all((before[name] == after[name]).all() for name in before)


@pytest.mark.parametrize("norms", ["eval", "train"])
def test_batch_norm_statistics(tmp_path: Path, norms: str) -> None:
    result = run(classifier(norm=True), f"steps=60,batch=32,norms={norms}", digits(tmp_path / "d.npz"))
    plain = gp.prune(classifier(norm=True), passes=["l1"], rate=0.4)
    same = np.array_equal(weights(result.proto())["mean"], weights(plain.proto())["mean"])
    assert result.plan.recovery["distill"]["used"] and same == (norms == "eval")


@pytest.mark.parametrize("augment", ["noise", "mix"])
def test_augmented(tmp_path: Path, augment: str) -> None:
    result = run(classifier(), f"steps=60,batch=32,augment={augment}", digits(tmp_path / "d.npz"))
    assert result.plan.recovery["distill"]["used"]


def test_stored_and_computed_teachers_are_the_same(tmp_path: Path) -> None:
    data = digits(tmp_path / "d.npz")
    stored, computed = (run(classifier(), f"steps=20,batch=32,memory={m}", data) for m in (1, 0))
    for a, b in zip(weights(stored.proto()).values(), weights(computed.proto()).values(), strict=True):
        assert np.allclose(a, b, atol=1e-4)


def test_fixed_batch_and_one_sample(tmp_path: Path) -> None:
    model = classifier()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 4
    record = run(model, "epochs=2,batch=32", digits(tmp_path / "d.npz")).plan.recovery["distill"]
    assert record["steps"] == 2 * (360 // 4)
    assert run(classifier(), "steps=3", digits(tmp_path / "one.npz", n=1), samples=1).plan.verify["passed"]


def test_a_time_budget_becomes_steps(tmp_path: Path) -> None:
    record = run(classifier(), "minutes=0.05,batch=32", digits(tmp_path / "d.npz")).plan.recovery["distill"]
    assert record["planned"] > 1 and record["steps"] <= record["planned"]


def test_in_steps_it_runs_once(tmp_path: Path) -> None:
    seen: list[str] = []
    run(classifier(), "steps=5", digits(tmp_path / "d.npz"), steps=2, progress=lambda what, _share: seen.append(what))
    assert "distill" in seen and not any(what.startswith("step ") and "distill" in what for what in seen)


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = digits(tmp_path / "d.npz")
    for options, message in (("steps=5,minutes=1", "give one of minutes, epochs and steps, not steps and minutes"), ("steps=-1", "above 0"),
                             ("steps=5,lr=0", "lr and clip"), ("steps=5,holdout=2", "holdout lies in"), ("steps=5,temperature=0", "temperature")):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            run(classifier(), options, data)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "distill.safetensors").write_bytes(b"what is this")
    with pytest.raises(UsageError, match="is no checkpoint of graphprune, or damaged"):
        run(classifier(), f"steps=5,checkpoint={tmp_path / 'c'}", data)
    run(classifier(), f"steps=5,checkpoint={tmp_path / 'd'}", data)
    with pytest.raises(UsageError, match=r"is of another run \(cut differs\)"):
        run(classifier(), f"steps=5,checkpoint={tmp_path / 'd'}", data, rate=0.3)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pass 'distill' trains, and needs torch, which is not installed"):
        run(classifier(), "steps=5", data)


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    """SIGKILL in the middle, started again: bit for bit what an unbroken run gives; dropout, augmentation and averages included."""
    onnx.save(classifier(norm=True), tmp_path / "m.onnx")
    data = digits(tmp_path / "d.npz")

    def arguments(out: str, folder: str, every: float) -> list[str]:
        options = f"steps=400,batch=16,norms=train,augment=mix,every={every},checkpoint={tmp_path / folder}"
        return ["run", str(tmp_path / "m.onnx"), "-o", str(tmp_path / out), "--pass", "l1", "--pass", f"distill{{{options}}}",
                "--rate", "0.4", "--data", str(data), "--samples", "64"]  # fmt: skip

    started(arguments("whole.onnx", "whole", 60), ROOT)
    reached = killed(arguments("broken.onnx", "broken", 0), tmp_path / "broken" / "distill.safetensors", ROOT, 150)
    assert 150 <= reached < 400 and not (tmp_path / "broken.onnx").exists()
    started(arguments("broken.onnx", "broken", 0), ROOT)
    assert (tmp_path / "broken.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()
    records = [json.loads((tmp_path / f"{name}.plan.json").read_text())["recovery"]["distill"] for name in ("whole", "broken")]
    assert records[0]["scores"] == records[1]["scores"] and records[1]["resumed_at"] >= reached
    # A third start finds the run finished.
    started(arguments("again.onnx", "broken", 0), ROOT)
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()


def test_a_checkpoint_of_minutes_keeps_its_number_of_steps(tmp_path: Path) -> None:
    data = digits(tmp_path / "d.npz")
    first = run(classifier(), f"minutes=0.03,checkpoint={tmp_path / 'c'}", data).plan.recovery["distill"]
    second = run(classifier(), f"minutes=0.03,checkpoint={tmp_path / 'c'}", data).plan.recovery["distill"]
    assert second["planned"] == first["planned"] and second["resumed_at"] == first["steps"] and second["scores"] == first["scores"]


def test_it_goes_through_accelerate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import Accelerator

    counts = {"prepare": 0, "backward": 0}
    for name in counts:
        plain = getattr(Accelerator, name)

        def counted(self: Any, *args: Any, _name: str = name, _plain: Any = plain, **given: Any) -> Any:
            counts[_name] += 1
            return _plain(self, *args, **given)

        monkeypatch.setattr(Accelerator, name, counted)
    run(classifier(), "steps=7", digits(tmp_path / "d.npz"))
    assert counts == {"prepare": 1, "backward": 7}


def test_a_torch_module_gets_the_weights(tmp_path: Path) -> None:
    from torch import nn

    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10)
    ).eval()
    x = torch.randn(2, 1, 8, 8)
    data = digits(tmp_path / "d.npz")
    arrays = np.load(data)["x"]
    result = gp.prune(module, x, passes=["l1", "distill{steps=60,norms=train}"], rate=0.4, data=save(tmp_path / "x.npy", arrays), samples=64)
    assert result.plan.recovery["distill"]["used"] and result.module is module and module[0].out_channels < 12
    found = gp_run(result, arrays[:2])
    assert np.allclose(module.eval()(torch.from_numpy(arrays[:2])).detach().numpy(), found, atol=1e-5)


def save(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def gp_run(result: gp.Result, x: np.ndarray) -> np.ndarray:
    """Outputs of the cut ONNX model."""
    import onnxruntime as ort

    session = ort.InferenceSession(result.proto().SerializeToString())
    return session.run(None, {session.get_inputs()[0].name: x})[0]


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """Two processes on gloo share batches and judging; the first one writes."""
    onnx.save(classifier(), tmp_path / "m.onnx")
    data = digits(tmp_path / "d.npz")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "graphprune", "run", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "o.onnx"), "--pass", "l1",
         "--pass", f"distill{{epochs=4,batch=16,checkpoint={tmp_path / 'c'}}}", "--rate", "0.4", "--data", str(data), "--samples", "64", "--json"],
        cwd=ROOT, capture_output=True, text=True, timeout=400, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "o.plan.json").read_text())["recovery"]["distill"]
    assert record["processes"] == 2 and record["used"] and done.stdout.count('"files"') == 1
    assert record["steps"] == 4 * (360 // 16 // 2)
    assert gp.verify(tmp_path / "m.onnx", tmp_path / "o.onnx")["passed"]
