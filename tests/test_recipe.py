"""Recipes, rates of single groups, and cuts in several steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import graphprune as gp
from graphprune.cli import cli
from graphprune.errors import UsageError
from graphprune.options import Options
from graphprune.recipe import dumps, load
from tests.patterns import PATTERNS
from tests.patterns.build import Net

DIGITS = Path(__file__).parent.parent / "examples" / "digits" / "digits.onnx"


def run(*arguments: str) -> tuple[int, str]:
    found = CliRunner().invoke(cli, ["run", *arguments])
    return found.exit_code, found.output


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options(passes=("entropy{variant=raw}", "recover"), budget="macs=0.5", seed=3, align=8),
        Options(rate=0.3, shapes={"x": (1, 3, 8, 8)}, keep=("a*", "b"), rates={"conv*": 0.5, "fc.w": 0.0}, steps=4),
        Options(data="pictures", mean=(0.5, 0.25), std=(1.0, 2.0), layout="NHWC", samples=5, exact=True),
    ],
    ids=["defaults", "budget", "rates", "images"],
)
def test_what_is_dumped_is_what_is_read(options: Options, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(dumps(options))
    assert Options(**load(tmp_path / "r.yaml")) == options


def test_a_run_is_repeated_by_its_recipe_and_by_its_plan(tmp_path: Path) -> None:
    first, again, plan = (tmp_path / f"{name}.onnx" for name in ("first", "again", "plan"))
    settings = ["--pass", "l2", "--rate", "0.3", "--scope", "group", "--seed", "5"]
    assert run(str(DIGITS), *settings, "-o", str(first))[0] == 0
    code, _ = run(str(DIGITS), *settings, "--dump-recipe", str(tmp_path / "r.yaml"))
    assert code == 0 and not (tmp_path / "digits.pruned.onnx").exists()
    assert run(str(DIGITS), "--recipe", str(tmp_path / "r.yaml"), "-o", str(again))[0] == 0
    assert run(str(DIGITS), "--recipe", str(tmp_path / "first.plan.json"), "-o", str(plan))[0] == 0
    assert first.read_bytes() == again.read_bytes() == plan.read_bytes()
    options = json.loads((tmp_path / "plan.plan.json").read_text())["options"]
    assert options["passes"] == ["l2"] and options["seed"] == 5


def test_the_command_line_wins_over_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("passes: [l2]\nrate: 0.3\nscope: group\n")
    code, text = run(str(DIGITS), "--recipe", str(tmp_path / "r.yaml"), "--budget", "macs=0.6", "--dump-recipe", "-")
    assert code == 0
    assert "budget: macs=0.6" in text and "rate" not in text and "- l2" in text and "scope: group" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("passes: [l1]\nratte: 0.5\n", "no option; did you mean 'rate'?"),
        ("rate: much\n", "option 'rate' is float|none, not much"),
        ("rates: {a: b}\n", "option 'rates' is text to float, by key"),
        ("- l1\n", "must hold keys and values"),
        ("passes: [l1\n", "is no YAML"),
        ("recipe: 9\n", "schema 9"),
        ("rate: 1.5\n", "outside (0, 1)"),
    ],
)
def test_damaged_recipes_are_told(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(text)
    code, shown = run(str(DIGITS), "--recipe", str(tmp_path / "r.yaml"), "-o", str(tmp_path / "out.onnx"))
    assert code == 2 and message in " ".join(shown.split()), shown
    assert not (tmp_path / "out.onnx").exists()
    code, shown = run(str(DIGITS), "--recipe", str(tmp_path / "none.yaml"))
    assert code == 2 and "cannot be read" in shown


def test_rates_of_single_groups() -> None:
    source = PATTERNS["concat_crossed_by_groups"].build()
    plain = gp.prune(source, rate=0.5, scope="group").plan
    first = plain.groups[-1]
    name = "{}:{}".format(*first["members"][0])
    plan = gp.prune(source, rates={name: 0.25}).plan
    for group in plan.groups:
        if group["id"] == first["id"]:
            assert group["units"] == 10 and group["kept"] in (7, 8)
        else:
            assert group["kept"] == group["units"]
    both = gp.prune(source, rates={name: 0.0}, rate=0.5).plan
    assert next(g for g in both.groups if g["id"] == first["id"])["kept"] == first["units"]
    assert any(g["kept"] < g["units"] for g in both.groups)
    with pytest.raises(UsageError, match="matches no tensor"):
        gp.prune(source, rates={"nothing.*": 0.5})
    with pytest.raises(UsageError, match="outside"):
        gp.prune(source, rates={name: 1.0})
    with pytest.raises(UsageError, match="without --budget"):
        gp.prune(source, rates={name: 0.5}, budget="macs=0.5")


@pytest.mark.parametrize("settings", [{"rate": 0.5, "scope": "group"}, {"rate": 0.5}, {"budget": "macs=0.5"}], ids=str)
@pytest.mark.parametrize("name", ["concat_crossed_by_groups", "two_group_counts_one_residual", "mha_fused_split"])
def test_steps_arrive_where_one_step_does(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    source = PATTERNS[name].build()
    one = gp.prune(source, passes=["l1"], **settings)
    many = gp.prune(source, passes=["l1", "recover"], steps=3, samples=16, **settings)
    share, other = (r.plan.after["macs"] / r.plan.before["macs"] for r in (one, many))
    assert many.plan.verify["passed"]
    if "budget" in settings or "scope" in settings:
        assert other == pytest.approx(share, abs=0.1)
    if settings.get("scope") == "group":
        for a, b in zip(one.plan.groups, many.plan.groups, strict=True):
            assert abs(a["kept"] - b["kept"]) <= 1
    many.save(tmp_path / "out.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"))
    assert gp.verify(source, tmp_path / "out.onnx")["passed"]
    assert any("in 3 steps" in note for note in many.plan.notes)


def test_the_floor_is_of_the_source_not_of_each_step() -> None:
    g = Net()
    g.head(g.cbr(g.cbr(g.x("N", 3, 6, 6), "a", 40, 3), "b", 8, 40), 8)
    plan = gp.prune(g.model(), rate=0.95, scope="group", steps=4).plan
    widest = max(plan.groups, key=lambda group: int(group["units"]))
    assert widest["kept"] == 4


def test_steps_score_what_is_left(tmp_path: Path) -> None:
    """Two copies of a channel: one step drops both or none by a data-driven score, two steps drop one."""
    g = Net()
    x = g.x("N", 3, 6, 6)
    rng = np.random.default_rng(0)
    base = rng.normal(size=(4, 3, 1, 1))
    y = g.Conv(x, g.f(np.concatenate([base, base]), "a.w"), g.f(np.zeros(8), "a.b"))
    y = g.Conv(y, g.f(rng.normal(size=(5, 8, 1, 1)), "b.w"), g.f(np.zeros(5), "b.b"))
    g.y(y)
    np.save(tmp_path / "x.npy", rng.normal(size=(64, 3, 6, 6)).astype(np.float32))
    result = gp.prune(g.model(), passes=["obs", "recover"], rate=0.5, scope="group", steps=4, data=tmp_path / "x.npy", samples=64)
    kept = np.asarray(result.plan.tensors["a.w"]["kept"]["0"])
    assert len(set(kept % 4)) >= 3  # the input has three channels: three of the four filters span all
    assert result.plan.fidelity["divergence"] < 1e-3
