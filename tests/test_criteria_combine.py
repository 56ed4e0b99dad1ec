"""Several criteria in one run, by hand; and criteria that need what is not there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

import graphprune as gp
from graphprune import combine, gradients, pipeline
from graphprune.cli import cli
from graphprune.errors import UsageError
from graphprune.options import Options
from graphprune.passes.base import Needs, Score, Scored, Scores, State
from graphprune.passes.select import Select
from graphprune.weights import fill_missing, weight_norms
from tests.nets import two_convs, with_weights


def chain(*widths: int) -> Any:
    """1 x 1 convolutions behind each other, one group of units between any two, two indices a unit."""
    names = [f"w{i}" for i in range(len(widths) + 1)]
    sizes = [3, *widths, 2]
    lines = "\n".join(f"{'y' if n == names[-1] else 'a' + n} = Conv({'x' if i == 0 else 'a' + names[i - 1]}, {n})" for i, n in enumerate(names))
    return with_weights(
        f"""<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 3, 2, 2] x) => (float[N, 2, 2, 2] y) {{ {lines} }}""",
        **{n: (sizes[i + 1], sizes[i], 1, 1) for i, n in enumerate(names)},
    )  # fmt: skip


def decide(scores: dict[str, list[list[float]]], how: str | None, *, normalized: bool = True, **options: Any) -> tuple[list[list[int]], State]:
    """Which units of each group die, and the state, when criteria give these scores, a list a group."""
    state = gp.inspect(chain(*map(len, next(iter(scores.values())))))
    state.options = Options(passes=tuple(scores), combine=how, **{"floor": 0.0, **options})
    coupling = state.need_coupling()
    for name, groups in scores.items():
        values = np.zeros(coupling.n_units)
        for group, given in zip(coupling.groups, groups, strict=True):
            values[group.units] = given
        state.scores.append(Scored(name, values, "", normalized))
    Select().run(state)
    dead = state.dead
    assert dead is not None
    return [np.flatnonzero(dead[group.units]).tolist() for group in coupling.groups], state


# Twelve units in three groups. In order: p takes all of A before B and C; q takes C 3, C 2, B 3, C 1, ...
P = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
Q = [[9, 10, 11, 12], [8, 7, 6, 3], [5, 4, 2, 1]]


def test_parallel_takes_the_mask_that_keeps_fewer_in_every_group() -> None:
    # A quarter each, 3 of 12: p would take A 0 1 2, q would take C 3 2 and B 3. Each group keeps fewer by one of them.
    dead, state = decide({"p": P, "q": Q}, "parallel{bisect=false}", rate=0.25)
    assert dead == [[0, 1, 2], [3], [2, 3]]
    assert any("p 1, q 2" in note for note in state.notes)


def test_parallel_meets_a_rate_by_bisection() -> None:
    # The thresholds that take 3 each take 6 of 12 together.
    dead, _ = decide({"p": P, "q": Q}, "parallel", rate=0.5)
    assert dead == [[0, 1, 2], [3], [2, 3]]


def test_parallel_empty_mask_yields() -> None:
    # A third each, 4 of 12: p leaves nothing of A, where q takes none: q's mask stands, and A loses nothing.
    dead, _ = decide({"p": P, "q": Q}, "parallel{bisect=false}", rate=0.34)
    assert dead[0] == [] and dead[2] == [1, 2, 3]


def test_parallel_both_empty_leaves_the_floor() -> None:
    low = [[1, 2, 3, 4], [5, 6, 7, 8]]
    dead, _ = decide({"p": low, "q": low}, "parallel{bisect=false}", rate=0.5)
    assert dead == [[0, 1, 2], []]


@pytest.mark.parametrize(("names", "winner"), [(("p", "q"), [2, 3]), (("bn-scale", "q"), [0, 1]), (("p", "bn-scale"), [2, 3])])
def test_parallel_tie(names: tuple[str, str], winner: list[int]) -> None:
    """Both take two of the first group: bn-scale decides, else the criterion given last."""
    first, second = [[1, 2, 11, 12], [13, 14, 15, 16]], [[11, 12, 1, 2], [13, 14, 15, 16]]
    dead, _ = decide(dict(zip(names, (first, second), strict=True)), "parallel{bisect=false}", rate=0.25)
    assert dead == [winner, []]


def test_parallel_of_three() -> None:
    third = [[9, 10, 11, 12], [1, 2, 3, 8], [5, 6, 7, 4]]
    dead, _ = decide({"p": P, "q": Q, "r": third}, "parallel{bisect=false}", rate=0.25)
    assert dead == [[0, 1, 2], [0, 1, 2], [2, 3]]


def test_parallel_with_alignment_and_floor() -> None:
    dead, _ = decide({"p": P, "q": Q}, "parallel{bisect=false}", rate=0.25, floor=0.5)
    assert dead == [[0, 1], [3], [2, 3]]
    dead, _ = decide({"p": P, "q": Q}, "parallel{bisect=false}", rate=0.25, align=2)
    assert dead == [[0, 1], [], [2, 3]]


@pytest.mark.parametrize("how", ["parallel", "intersection", "rank-mean", "weighted{l1=1,random=2}"])
def test_budget_is_met(how: str) -> None:
    result = gp.prune(two_convs(120, 100), passes=["l1", "random"], combine=how, budget="macs=0.5")
    assert result.plan.after["macs"] / result.plan.before["macs"] == pytest.approx(0.5, abs=0.01)
    assert result.plan.verify["passed"] and result.plan.options["combine"] == how


def test_parallel_in_steps() -> None:
    """Each step finds its own thresholds; the rate holds in the end."""
    result = gp.prune(two_convs(60, 50), passes=["l1", "random"], combine="parallel", rate=0.5, steps=2)
    coupling, dead = result.state.coupling, result.state.dead
    assert coupling is not None and dead is not None and result.plan.verify["passed"]
    assert coupling.weight[dead].sum() / coupling.weight.sum() == pytest.approx(0.5, abs=0.03)


def test_intersection_takes_what_both_would() -> None:
    # Places of a 0..3: 1 2 3 4 and 4 1 2 3: the largest are 4 2 3 4.
    dead, _ = decide({"p": [[1, 2, 3, 4]], "q": [[40, 10, 20, 30]]}, "intersection", rate=0.5)
    assert dead == [[1, 2]]


def test_rank_mean_is_blind_to_scale() -> None:
    # Places 1 2 3 4 and 4 3 1.5 1.5 (equal scores share theirs): sums 5 5 4.5 5.5.
    dead, _ = decide({"p": [[1, 2, 3, 1e9]], "q": [[8, 7, 0, 0]]}, "rank-mean", rate=0.25)
    assert dead == [[2]]


@pytest.mark.parametrize(
    ("how", "dead"),
    [
        (None, [0]),  # 4.5 5 5.5 5
        ("weighted", [0]),
        ("weighted{p=0,q=1}", [3]),
        ("weighted{q=2}", [3]),
        ("weighted{p=1,q=3}", [3]),  # 24+... : 6.25 6 5.75 4.5
        ("weighted{weights=[3,1]}", [0]),
    ],
)
def test_weighted(how: str | None, dead: list[int]) -> None:
    found, _ = decide({"p": [[1, 3, 5, 6]], "q": [[8, 7, 6, 4]]}, how, rate=0.25)
    assert found == [dead]


def test_scores_that_are_not_normalised_are_divided_by_the_group_mean() -> None:
    # Means 10 and 1: relative scores .1 .3 1.6 2, and .4 .8 1.2 1.6.
    dead, _ = decide({"p": [[1, 3, 16, 20], [0.4, 0.8, 1.2, 1.6]]}, None, normalized=False, rate=0.4)
    assert dead == [[0, 1], [0]]


@pytest.mark.parametrize(
    ("passes", "options", "message"),
    [
        (["l1"], {"combine": "parallel"}, "combines several criteria: only 'l1' is given"),
        (["l1"], {"combine": "weighted"}, "only 'l1' is given"),
        (["l1", "l2"], {"combine": "paralel"}, "did you mean 'parallel'"),
        (["l1", "l2"], {"combine": "parallel{rate=1}"}, "--combine parallel has no option 'rate'"),
        (["l1", "l2"], {"combine": "parallel{"}, "never closed"),
        (["l1", "l2"], {"combine": "parallel", "scope": "group"}, "not with --scope group"),
        (["l1", "l2"], {"combine": "parallel", "budget": "macs=0.5", "allocate": "dp"}, "not with --allocate dp"),
        (["l1", "l2"], {"combine": "parallel", "rates": {"w1": 0.5}}, "not with rates of single groups"),
        (["l1", "l2"], {"combine": "parallel{bisect=false}", "steps": 2}, "not with --steps"),
        (["l1", "l2"], {"combine": "parallel{bisect=false}", "budget": "macs=0.5"}, "not with --budget"),
        (["l1", "l2"], {"combine": "weighted{l3=1}"}, "no criterion 'l3' in this run; did you mean"),
        (["l1", "l2"], {"combine": "weighted{l1=0,l2=0}"}, "not all 0"),
        (["l1", "l2"], {"combine": "weighted{l1=-1,l2=2}"}, "0 or more"),
        (["l1", "l2"], {"combine": "weighted{l1=much}"}, "a weight is a number, not 'much'"),
        (["l1", "l2"], {"combine": "weighted{weights=[1,2,3]}"}, "3 weights for 2 criteria"),
        (["random{seed=1}", "random{seed=2}"], {"combine": "weighted{random=1}"}, "given twice"),
    ],
)
def test_bad_combinations_are_told(passes: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        gp.prune(two_convs(), passes=passes, **options)


def test_one_pass_twice_with_other_options() -> None:
    passes = ["random{seed=1}", "random{seed=2}"]
    one, two = (gp.prune(two_convs(32, 32), passes=p, rate=0.5).plan.tensors for p in passes)
    both = [gp.prune(two_convs(32, 32), passes=passes, rate=0.5, combine=f"weighted{{weights={w}}}").plan.tensors for w in ("[1,0]", "[0,1]")]
    assert both == [one, two]


def test_places_of_equal_scores() -> None:
    assert (combine._places(np.array([3.0, 1, 3, 2])) * 4).tolist() == [3.5, 1, 3.5, 2]


# -- falling back, and gradients ---------------------------------------------------------------------------------------


def test_fill_missing_by_hand() -> None:
    state = gp.inspect(chain(3, 3))
    coupling, norms = state.need_coupling(), weight_norms(gp.inspect(chain(3, 3)), 1)
    a, b = (group.units for group in coupling.groups)
    scores = np.zeros(6)
    scores[a] = [4, 8, 0]
    missing = np.zeros(6, bool)
    missing[[a[2], *b]] = True
    found = fill_missing(state, "any", scores.copy(), missing, "are not there")
    # The one of A stands at the mean of its group; those of B around the median of all, in proportion to their norms.
    assert found[a].tolist() == [4, 8, 6]
    assert found[b] == pytest.approx(6 * norms[b] / norms[b].mean())
    assert state.notes == ["any: 4 of 6 units are not there: scored by l1 instead"]
    found = fill_missing(state, "any", scores.copy(), missing, "are not there", ranged=True)
    assert found[a].tolist() == [4, 8, 0.5]
    assert sorted(found[b])[0] == 0 and sorted(found[b])[2] == 1
    assert len(state.notes) == 1


def test_nothing_missing_says_nothing() -> None:
    state = gp.inspect(chain(3))
    assert fill_missing(state, "any", np.ones(3), np.zeros(3, bool), "").tolist() == [1, 1, 1] and not state.notes


@dataclass(frozen=True)
class Wanting(Score):
    """A criterion that looks at gradients."""

    name: ClassVar[str] = "wanting"
    needs: ClassVar[Needs] = "gradients"

    def score(self, state: State) -> Scores:
        raise AssertionError("it must not get so far")


def test_gradients_are_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    class Registry:
        def load(self, name: str) -> type[Any]:
            return {"wanting": Wanting}[name]

    monkeypatch.setattr(pipeline, "discover", Registry)
    monkeypatch.setattr(gradients.importlib.util, "find_spec", lambda name: None)
    message = r"needs torch, which is not installed: 'pip install graphprune\[torch\]'"
    with pytest.raises(UsageError, match=f"pass 'wanting' looks at gradients, and {message}"):
        gp.prune(two_convs(), passes="wanting")


# -- as a user types it ------------------------------------------------------------------------------------------------


def test_command_line(tmp_path: Path) -> None:
    onnx.save(two_convs(16, 12), tmp_path / "m.onnx")

    def call(*args: str) -> Result:
        return CliRunner().invoke(cli, ["run", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "o.onnx"), *args], prog_name="graphprune")

    done = call("--pass", "l1", "--pass", "fpgm", "--combine", "parallel", "--rate", "0.4")
    assert done.exit_code == 0, done.output
    plan = json.loads((tmp_path / "o.plan.json").read_text())
    assert plan["options"]["combine"] == "parallel" and list(plan["scores"]) == ["l1", "fpgm"]
    assert any("that each criterion decides" in note for note in plan["notes"])
    wrong = call("--pass", "l1", "--combine", "parallel")
    assert wrong.exit_code == 2 and "add another --pass" in wrong.output
