"""Gradient criteria: numbers worked out by hand, torch autograd written out, labels, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from PIL import Image

import graphprune as gp
from graphprune.cli import cli
from graphprune.errors import DataError
from graphprune.passes.base import State
from tests.criteria_nets import units_of
from tests.nets import folded_residual, two_convs, with_weights

torch = pytest.importorskip("torch")
pytest.importorskip("graphprune.backends.torch")

Array = np.ndarray


def run(model: onnx.ModelProto, spec: str, tmp: Path, **arrays: Array) -> gp.Result:
    np.savez(tmp / "data.npz", **arrays)
    return gp.prune(model, passes=spec, data=tmp / "data.npz", rate=0.3, floor=0.0)


def dense(w1: Array, w2: Array) -> onnx.ModelProto:
    """x -> x w1 -> Relu -> (.) w2: two inputs, three hidden units, two classes."""
    return with_weights(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 2] x) => (float[N, 2] y) { h = MatMul(x, w1)  r = Relu(h)  y = MatMul(r, w2) }""",
        w1=np.asarray(w1, np.float32), w2=np.asarray(w2, np.float32),
    )  # fmt: skip


W1 = np.array([[1, 0, 1], [1, 1, 2]], np.float32)
W2 = np.array([[1, 0], [0, 1], [0.5, 0.5]], np.float32)


def test_by_hand_with_labels(tmp_path: Path) -> None:
    # h = x w1 = (2, 1, 3), r = h, y = (2 + 1.5, 1 + 1.5) = (3.5, 2.5); label 1.
    # p = softmax(y) = (s, 1 - s) with s = 1 / (1 + e^-1) = 0.7310586; dL/dy = (s, -s).
    # dL/dr = w2 dL/dy = (s, -s, 0). A unit's gate is r dL/dr = (2 s, -s, 0), from the slice of w1 as well as from that of w2.
    s = 1 / (1 + np.exp(-1))
    arrays = {"x": np.array([[1, 1]], np.float32), "labels": np.array([1])}
    result = run(dense(W1, W2), "taylor{labels=true}", tmp_path, **arrays)
    units = units_of(result, "h", 1)
    assert result.state.scores[0].values[units] == pytest.approx([2 * s, s, 0], abs=1e-6)
    result = run(dense(W1, W2), "group-taylor{labels=true}", tmp_path, **arrays)
    assert result.state.scores[0].values[units] == pytest.approx([4 * s, 2 * s, 0], abs=1e-6)
    # (w g)^2: w1 column 0 has two weights of 1 with g = s each; w2 row 0 is (1, 0) with g = (2 s, -2 s): half of s^2 (2 + 4).
    # w1 column 1: one weight of 1, g = -s; w2 row 1: (0, 1), g = (s, -s): half of s^2 (1 + 1).
    # w1 column 2: g = 0; w2 row 2: (0.5, 0.5), g = (3 s, -3 s): half of 2 (1.5 s)^2.
    result = run(dense(W1, W2), "fisher{labels=true}", tmp_path, **arrays)
    assert result.state.scores[0].values[units] == pytest.approx([3 * s**2, s**2, 2.25 * s**2], abs=1e-6)
    # abs of each weight: w1: (2 s, s, 0), w2: (2 s, s, 3 s); mean of both.
    result = run(dense(W1, W2), "taylor{labels=true,per=weight}", tmp_path, **arrays)
    assert result.state.scores[0].values[units] == pytest.approx([2 * s, s, 1.5 * s], abs=1e-6)


def test_samples_do_not_cancel(tmp_path: Path) -> None:
    # Labels 0 and 1 of the same input: gradients (s - 1, 1 - s) and (s, -s). Their mean would be smaller than either.
    s = 1 / (1 + np.exp(-1))
    arrays = {"x": np.array([[1, 1], [1, 1]], np.float32), "labels": np.array([0, 1])}
    result = run(dense(W1, W2), "taylor{labels=true}", tmp_path, **arrays)
    assert result.state.scores[0].values[units_of(result, "h", 1)] == pytest.approx([1, 0.5, 0], abs=1e-6)
    result = run(dense(W1, W2), "fisher{labels=true}", tmp_path, **arrays)
    mean = (s**2 + (1 - s) ** 2) / 2
    assert result.state.scores[0].values[units_of(result, "h", 1)] == pytest.approx([3 * mean, mean, 2.25 * mean], abs=1e-6)


def test_without_labels_it_is_the_true_fisher(tmp_path: Path) -> None:
    # Over the model's own distribution, E[g g'] of the logits is diag(p) - p p': here s (1 - s) in place of s^2 above.
    s = 1 / (1 + np.exp(-1))
    np.savez(tmp_path / "d.npz", x=np.ones((4000, 2), np.float32))
    result = gp.prune(dense(W1, W2), passes="fisher", data=tmp_path / "d.npz", rate=0.3, floor=0.0, samples=4000)
    found = result.state.scores[0].values[units_of(result, "h", 1)] / (s * (1 - s))
    assert found == pytest.approx([3, 1, 2.25], rel=0.06)
    again = gp.prune(dense(W1, W2), passes="fisher", data=tmp_path / "d.npz", rate=0.3, floor=0.0, samples=50)
    same = gp.prune(dense(W1, W2), passes="fisher", data=tmp_path / "d.npz", rate=0.3, floor=0.0, samples=50)
    other = gp.prune(dense(W1, W2), passes="fisher", data=tmp_path / "d.npz", rate=0.3, floor=0.0, samples=50, seed=1)
    assert (again.state.scores[0].values == same.state.scores[0].values).all()
    assert (again.state.scores[0].values != other.state.scores[0].values).any()


def regression(scale: float) -> onnx.ModelProto:
    """Two filters; the output is a map, no classes."""
    return with_weights(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 1, 2, 2] x) => (float[N, 1, 2, 2] y) { a = Conv(x, w1)  y = Conv(a, w2) }""",
        w1=np.array([1, 2], np.float32).reshape(2, 1, 1, 1), w2=np.array([3, -1], np.float32).reshape(1, 2, 1, 1) * np.float32(scale),
    )  # fmt: skip


def test_values_are_judged_by_noise_as_wide_as_they_are_spread(tmp_path: Path) -> None:
    # y = 3 x - 2 x = x; the units add 3 x and -2 x. The loss is -sum(noise y) / (spread sqrt(4)), noise standard normal.
    # E[(sum noise u x)^2] = u^2 sum x^2, so E[(w g)^2] = u^2 sum x^2 / (4 spread^2), the same for w1 and w2: fisher is that sum.
    x = np.array([1, -1, 1, -1], np.float32).reshape(1, 1, 2, 2)  # sum of squares 4, spread 1
    np.savez(tmp_path / "d.npz", x=np.repeat(x, 2000, 0))
    found = []
    for scale in (1.0, 100.0):
        result = gp.prune(regression(scale), passes="fisher", data=tmp_path / "d.npz", rate=0.3, floor=0.0, samples=2000)
        found.append(result.state.scores[0].values[units_of(result, "a", 1)])
    assert found[0] == pytest.approx([9, 4], rel=0.12)
    assert found[1] == pytest.approx(found[0], rel=1e-4)  # an output in other units tells the same


def normed(seed: int = 0) -> tuple[onnx.ModelProto, dict[str, Array]]:
    rng = np.random.default_rng(seed)
    draw = {
        "w1": rng.standard_normal((4, 2, 3, 3)), "gamma": rng.uniform(0.5, 2, 4), "beta": rng.standard_normal(4),
        "mean": rng.standard_normal(4), "var": rng.uniform(0.5, 2, 4), "w2": rng.standard_normal((3, 4)), "b2": rng.standard_normal(3),
    }  # fmt: skip
    arrays = {name: array.astype(np.float32) for name, array in draw.items()}
    model = with_weights(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 2, 5, 5] x) => (float[N, 3] y) {
            a = Conv(x, w1)  n = BatchNormalization(a, gamma, beta, mean, var)  r = Relu(n)
            p = GlobalAveragePool(r)  f = Flatten(p)  y = Gemm<transB=1>(f, w2, b2)
        }""",
        **arrays,
    )  # fmt: skip
    return model, arrays


def test_against_autograd_written_out(tmp_path: Path) -> None:
    from torch.nn import functional as F

    model, arrays = normed()
    rng = np.random.default_rng(1)
    x, labels = rng.standard_normal((6, 2, 5, 5)).astype(np.float32), rng.integers(0, 3, 6)
    leaves = {n: torch.tensor(arrays[n], requires_grad=n not in ("mean", "var")) for n in arrays}
    slices, gates, whole, obd = np.zeros(4), np.zeros(4), np.zeros(4), np.zeros(4)
    for one, label in zip(x, labels, strict=True):
        a = F.conv2d(torch.tensor(one[None]), leaves["w1"])
        n = F.batch_norm(a, leaves["mean"], leaves["var"], leaves["gamma"], leaves["beta"], eps=1e-5)
        y = n.relu().mean((2, 3)) @ leaves["w2"].T + leaves["b2"]
        names = ["w1", "gamma", "beta", "w2"]
        grads = torch.autograd.grad(F.cross_entropy(y, torch.tensor([label])), [leaves[name] for name in names])
        p = {name: (leaves[name] * g).detach().numpy() for name, g in zip(names, grads, strict=True)}
        first, last = p["w1"].sum((1, 2, 3)), p["w2"].sum(0)
        slices += (abs(first) + abs(last)) / 2 / 6
        gates += np.square(p["gamma"] + p["beta"]) / 6
        whole += abs(first + last + p["gamma"] + p["beta"]) / 6
        obd += 0.5 * (np.square(p["w1"]).sum((1, 2, 3)) + np.square(p["w2"]).sum(0) + p["gamma"] ** 2 + p["beta"] ** 2) / 6
    wanted = {"taylor": slices, "taylor{at=gates}": gates, "group-taylor": whole, "fisher": obd}
    for spec, values in wanted.items():
        text = spec[:-1] + ",labels=true}" if "{" in spec else spec + "{labels=true}"
        result = run(model, text, tmp_path, x=x, labels=labels)
        found = result.state.scores[0].values[units_of(result, "a", 1)]
        assert found == pytest.approx(values, rel=2e-4, abs=1e-7), spec


def test_folded_gates_are_those_of_the_weights(tmp_path: Path) -> None:
    x, labels = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32), np.array([0, 1, 2, 3])
    result = run(two_convs(), "taylor{at=gates,labels=true}", tmp_path, x=x, labels=labels)
    assert (result.state.scores[0].values > 0).all() and not any("scored by l1" in note for note in result.state.notes)


def test_what_cannot_be_trained_falls_back(tmp_path: Path) -> None:
    model = two_convs()
    quantised = with_weights(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 3, 8, 8] x) => (float[N, 5] y) {
            w = DequantizeLinear(q, s)
            a = Conv<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(x, w)  r = Relu(a)
            v = DequantizeLinear(q2, s)
            c = Conv<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(r, v)  p = GlobalAveragePool(c)  y = Flatten(p)
        }""",
        q=np.random.default_rng(0).integers(-99, 99, (8, 3, 3, 3)).astype(np.int8), s=np.float32(0.01),
        q2=np.random.default_rng(1).integers(-99, 99, (5, 8, 3, 3)).astype(np.int8),
    )  # fmt: skip
    result = gp.prune(quantised, passes="group-taylor", rate=0.4)
    assert any("cannot be trained" in n or "no weights that can be trained" in n for n in result.state.notes)
    assert not any("no weights" in n for n in gp.prune(model, passes="group-taylor", rate=0.4).state.notes)


@pytest.mark.parametrize("combine", ["weighted", "rank-mean", "parallel"])
def test_combined_and_compared(tmp_path: Path, combine: str) -> None:
    result = gp.prune(folded_residual(), passes=["fisher", "l1"], combine=combine, rate=0.4)
    assert result.plan.verify["passed"] and list(result.plan.scores) == ["fisher", "l1"]


def test_command_line(tmp_path: Path) -> None:
    onnx.save(two_convs(16, 12), tmp_path / "m.onnx")
    done = CliRunner().invoke(cli, ["compare", str(tmp_path / "m.onnx"), "--pass", "taylor", "--pass", "fisher+l1", "--rate", "0.4",
                                    "--recover", "none", "--no-latency", "--executor", "here", "--json"], prog_name="graphprune")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "taylor" in json.dumps(json.loads(done.stdout[done.stdout.index("{"):]))


# -- labels ------------------------------------------------------------------------------------------------------------


def pictures(root: Path, names: dict[str, int]) -> Path:
    rng = np.random.default_rng(0)
    for name, count in names.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(root / name / f"{i}.png")
    return root


def labels_in(state: State) -> list[int]:
    from graphprune.labels import class_counts, labels_of

    found = labels_of(state.samples, class_counts(state.model))
    assert found is not None
    return found.tolist()


def test_labels_of_folders(tmp_path: Path) -> None:
    from graphprune.options import Options
    from graphprune.pipeline import load_any, run_state

    def state(folder: Path, samples: int = 100) -> State:
        options = Options(data=str(folder), samples=samples)
        return run_state(load_any(two_convs()), options, until="couple")

    names = dict(zip("edcba", (1, 2, 1, 1, 2), strict=True))
    assert labels_in(state(pictures(tmp_path / "a", names))) == [0, 0, 1, 2, 3, 3, 4]
    few = labels_in(state(tmp_path / "a", 2))
    assert len(few) == 2 and max(few) > 1  # numbered among all folders, not among those of the chosen images
    assert labels_in(state(pictures(tmp_path / "n", {"4": 1, "10": 1, "2": 2}))) == [10, 2, 2, 4]
    with pytest.raises(DataError, match=r"2 classes \(cat, dog\), the model gives 5: name every folder by the number"):
        labels_in(state(pictures(tmp_path / "c", {"cat": 1, "dog": 1})))
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a" / "loose.png")
    with pytest.raises(DataError, match="1 of 8 samples have no label"):
        labels_in(state(tmp_path / "a"))


def test_labels_that_are_missing_or_do_not_fit(tmp_path: Path) -> None:
    x = np.zeros((4, 2), np.float32)
    with pytest.raises(DataError, match="is asked for labels, and the data have none"):
        run(dense(W1, W2), "taylor{labels=true}", tmp_path, x=x)
    with pytest.raises(DataError, match=r"labels of shape \[1\], up to 7, fit no output \(shapes \[1, 2\]\)"):
        run(dense(W1, W2), "taylor{labels=true}", tmp_path, x=x, labels=np.array([7, 7, 7, 7]))
    with pytest.raises(DataError, match="labels are whole numbers, one row for each of the 4 samples"):
        run(dense(W1, W2), "taylor{labels=true}", tmp_path, x=x, labels=np.array([1, 2]))
    with pytest.raises(DataError, match="labels are whole numbers"):
        run(dense(W1, W2), "taylor", tmp_path, x=x, labels=np.array([0.5] * 4))
