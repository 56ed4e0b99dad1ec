"""Criteria side by side, sensitivities, and what is kept of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

import graphprune as gp
from graphprune.cli import cli
from graphprune.compare import compare, rank_correlation
from graphprune.errors import UsageError
from graphprune.executor import Processes
from graphprune.sensitivity import sensitivity

DIGITS = Path(__file__).parent.parent / "examples" / "digits"
MODEL, DATA = DIGITS / "digits.onnx", DIGITS / "digits_calibration.npz"
CALLS: list[str] = []


def weights(path: str) -> float:
    """An evaluation: the sum of a file's bytes, which tells models apart."""
    CALLS.append(path)
    return float(np.frombuffer(Path(path).read_bytes(), np.uint8).sum())


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHPRUNE_CACHE", str(tmp_path / "cache"))


def test_rows_are_what_single_runs_give() -> None:
    found = compare(
        MODEL, ["l1", "random"], budgets=["macs=0.5"], data=str(DATA), samples=64, evaluate="tests.test_compare:weights",
        allocate="uniform", latency=False,
    )  # fmt: skip
    assert [(row["criterion"], row["seeds"]) for row in found.rows] == [("l1", 1), ("random", 3)]
    single = gp.prune(MODEL, passes=["l1", "recover"], budget="macs=0.5", data=DATA, samples=64, allocate="uniform",
                      eval="tests.test_compare:weights")  # fmt: skip
    row = found.rows[0]
    assert row["evaluation"]["after"] == single.state.evaluation["after"]
    assert found.source["evaluation"] == single.state.evaluation["before"]
    plain = gp.prune(MODEL, passes=["l1"], budget="macs=0.5", data=DATA, samples=64, allocate="uniform",
                     eval="tests.test_compare:weights")  # fmt: skip
    assert row["evaluation"]["before"] == plain.state.evaluation["after"]
    assert row["macs"] == single.plan.after["macs"] / single.plan.before["macs"]
    assert row["fidelity"]["after"]["divergence"] == single.plan.fidelity["divergence"]
    settings: dict[str, Any] = {"budget": "macs=0.5", "data": DATA, "samples": 64, "allocate": "uniform"}
    seeds = [gp.prune(MODEL, passes=["random", "recover"], seed=n, eval="tests.test_compare:weights", **settings) for n in range(3)]
    draws = [one.state.evaluation["after"] for one in seeds]
    assert found.rows[1]["evaluation"]["after"] == pytest.approx(np.mean(draws))
    assert found.rows[1]["spread"] == [min(draws), max(draws)]


def test_both_signs_and_each_budget() -> None:
    found = compare(MODEL, ["entropy", "l1"], budgets=["macs=0.6", "params=0.5"], recover="none", latency=False, samples=4)
    names = ["entropy", "entropy{keep=high}", "l1"]
    assert [(row["criterion"], row["budget"]) for row in found.rows] == [(n, b) for b in ("macs=0.6", "params=0.5") for n in names]
    assert found.correlation["entropy"]["entropy{keep=high}"] < -0.5
    assert found.correlation["l1"]["l1"] == pytest.approx(1.0)


def test_a_repeated_run_computes_what_is_new_only() -> None:
    settings: dict[str, Any] = {"budgets": ["macs=0.5"], "recover": "none", "latency": False, "samples": 4}
    first = compare(MODEL, ["l1", "l2"], **settings)
    again = compare(MODEL, ["l1", "l2"], **settings)
    more = compare(MODEL, ["l2", "bn-scale", "l1"], **settings)
    assert (first.fresh, again.fresh, more.fresh) == (2, 0, 1)
    assert again.rows == first.rows
    assert more.rows[2] == first.rows[0]
    assert compare(MODEL, ["l1"], **{**settings, "budgets": ["macs=0.4"]}).fresh == 1
    assert compare(MODEL, ["l1"], **settings, seed=1).fresh == 1


def test_processes_give_what_one_process_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"budgets": ["macs=0.5"], "latency": False, "samples": 8}
    here = compare(MODEL, ["l1", "obs"], **settings)
    monkeypatch.setenv("GRAPHPRUNE_CACHE", str(tmp_path / "other"))
    there = compare(MODEL, ["l1", "obs"], executor=Processes(2), **settings)
    assert there.fresh == 2
    for a, b in zip(here.rows, there.rows, strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}


def test_latency_is_measured_in_turns_with_the_source() -> None:
    found = compare(MODEL, ["l1"], budgets=["macs=0.3"], recover="none", samples=4)
    assert found.rows[0]["latency"] > 0 and found.source["latency"] > 0
    again = compare(MODEL, ["l1"], budgets=["macs=0.3"], recover="none", samples=4)
    assert again.rows[0]["latency"] == found.rows[0]["latency"] and again.fresh == 0


def test_rank_correlation_by_hand() -> None:
    a = {"0": [1.0, 2.0, 3.0], "1": [1.0, 2.0, 3.0, 4.0], "2": [5.0, 1.0]}
    b = {"0": [30.0, 20.0, 10.0], "1": [1.0, 2.0, 4.0, 3.0], "2": [1.0, 5.0]}
    # -1 with weight 3; 1 - 6 * 2 / (4 * 15) = 0.8 with weight 4; two units say nothing.
    assert rank_correlation(a, b) == pytest.approx((3 * -1 + 4 * 0.8) / 7)
    assert rank_correlation({"0": [1, 1, 2]}, {"0": [3, 3, 4]}) == pytest.approx(1.0)
    assert rank_correlation({"0": [1, 1, 1]}, {"0": [1, 2, 3]}) == 0


def test_what_fails_is_a_row_with_its_message(tmp_path: Path) -> None:
    found = compare(MODEL, ["l1"], budgets=["macs=0.5"], data=str(tmp_path / "none.npy"), latency=False)
    assert "does not exist" in found.rows[0]["failed"]
    for passes, message in ((["recover"], "no criterion"), (["l3"], "did you mean"), ([], "nothing to compare")):
        with pytest.raises(UsageError, match=message):
            compare(MODEL, passes)
    with pytest.raises(UsageError, match="does not exist"):
        compare("none.onnx", ["l1"])
    with pytest.raises(UsageError, match="budget"):
        compare(MODEL, ["l1"], budgets=["speed=2"])


def test_sensitivity_is_what_a_cut_of_one_group_gives() -> None:
    found = sensitivity(MODEL, "l2", levels=(0.25, 0.5), data=str(DATA), samples=12)
    assert found.fresh == len(found.curves) > 3
    curve = found.curves[1]
    name = f"{curve.tensor}:0"
    groups = [g for g in gp.prune(MODEL, passes=["l2"], rate=0.5, scope="group").plan.groups if g["id"] == curve.id]
    others = {f"{t}:{a}": 0.0 for t, a in groups[0]["members"]}
    assert name in others or curve.tensor
    result = gp.prune(MODEL, passes=["l2"], rates={f"{t}:{a}": 0.5 for t, a in groups[0]["members"][:1]}, data=str(DATA), samples=12)
    assert [g["kept"] for g in result.plan.groups if g["id"] == curve.id] == [curve.units - curve.removed[1]]
    if all(g["kept"] == g["units"] for g in result.plan.groups if g["id"] != curve.id):
        assert result.plan.fidelity["divergence"] == pytest.approx(curve.error[1], rel=1e-4)
        assert result.plan.after["macs"] / result.plan.before["macs"] == pytest.approx(curve.macs[1])
    assert all(a <= b * 1.5 + 1e-9 for c in found.curves for a, b in zip(c.macs[1:], c.macs, strict=False))


def test_sensitivities_are_known_the_second_time() -> None:
    first = sensitivity(MODEL, levels=(0.5,), samples=4)
    again = sensitivity(MODEL, levels=(0.5,), samples=4, executor=Processes(2))
    assert again.fresh == 0 and again.curves == first.curves
    assert sensitivity(MODEL, levels=(0.4,), samples=4).fresh == first.fresh
    for wrong in ((), (0.0,), (1.0,)):
        with pytest.raises(UsageError, match="levels"):
            sensitivity(MODEL, levels=wrong)
    with pytest.raises(UsageError, match="no criterion"):
        sensitivity(MODEL, "recover")


def test_commands(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run = CliRunner().invoke
    shared = ["--samples", "4", "--executor", "here"]
    picture = tmp_path / "c.svg"
    found = run(cli, ["compare", str(MODEL), "--pass", "l1", "--pass", "random", "--budget", "macs=0.5", "--seeds", "2",
                      "--data", str(DATA), "--plot", str(picture), *shared])  # fmt: skip
    assert found.exit_code == 0, found.output
    assert "random x2" in found.output and "rank correlation" in found.output and "3 cuts computed" in found.output
    assert picture.read_text().lstrip().startswith("<?xml")
    machine = run(cli, ["compare", str(MODEL), "--pass", "l1", "--budget", "macs=0.5", "--data", str(DATA), "--json", *shared])
    assert {row["criterion"] for row in json.loads(machine.output)["rows"]} == {"l1"}
    curves = run(cli, ["sensitivity", str(MODEL), "--levels", "0.5", "--plot", str(tmp_path / "s.png"), *shared])
    assert curves.exit_code == 0 and "6 groups" in curves.output, curves.output
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    wrong = run(cli, ["sensitivity", str(MODEL), "--plot", str(tmp_path / "s.gif"), "--levels", "0.5", *shared])
    assert wrong.exit_code == 2 and ".svg" in wrong.output


def test_external_data_are_part_of_what_results_are_kept_by(tmp_path: Path) -> None:
    """The same small file beside other weights is another model."""
    model = onnx.load(MODEL)
    path = tmp_path / "m.onnx"
    for scale in (1.0, 0.5):
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        weight = next(t for t in changed.graph.initializer if len(t.dims) == 4)
        weight.CopyFrom(numpy_helper.from_array(scale * numpy_helper.to_array(weight), weight.name))
        onnx.save(changed, path, save_as_external_data=True, location="m.data", size_threshold=64)
        assert sensitivity(path, levels=(0.5,), samples=2).fresh > 0
        assert sensitivity(path, levels=(0.5,), samples=2).fresh == 0
        (tmp_path / "m.data").unlink()
