"""Rates, budgets, floors, alignment, what is kept: from small networks with known widths."""

from __future__ import annotations

import numpy as np
import pytest

import graphprune as gp
from graphprune.errors import UsageError
from tests.nets import folded_residual, two_convs


def widths(plan: gp.Plan) -> dict[str, int]:
    return {name: len(entry["kept"]["0"]) for name, entry in plan.tensors.items() if "0" in entry["kept"]}


def test_group_rate_halves_every_axis() -> None:
    plan = gp.prune(two_convs(8, 6), passes="l1", rate=0.5, scope="group").plan
    assert widths(plan) == {"w1": 4, "b1": 4, "w2": 3}
    assert len(plan.tensors["w2"]["kept"]["1"]) == 4
    assert len(plan.tensors["w3"]["kept"]["1"]) == 3


def test_l1_removes_the_smallest_filters() -> None:
    model = two_convs(8, 6)
    w1 = np.frombuffer(model.graph.initializer[0].raw_data, np.float32).reshape(8, 3, 3, 3).copy()
    w1[[1, 4]] *= 1e-3
    model.graph.initializer[0].raw_data = w1.tobytes()
    w2 = np.frombuffer(model.graph.initializer[2].raw_data, np.float32).reshape(6, 8, 3, 3).copy()
    w2[:, [1, 4]] *= 1e-3
    model.graph.initializer[2].raw_data = w2.tobytes()
    plan = gp.prune(model, passes="l1", rate=0.25, scope="group").plan
    assert plan.tensors["w1"]["kept"]["0"] == [0, 2, 3, 5, 6, 7]


def test_global_rate_counts_indices() -> None:
    result = gp.prune(two_convs(64, 48), passes="l1", rate=0.5, floor=0.1)
    coupling = result.state.coupling
    assert coupling is not None and result.state.dead is not None
    removed = coupling.weight[result.state.dead].sum() / coupling.weight.sum()
    assert abs(removed - 0.5) < 0.02


def test_floor_is_kept() -> None:
    plan = gp.prune(two_convs(20, 20), passes="l1", rate=0.9, floor=0.3).plan
    assert all(group["kept"] >= 6 for group in plan.groups)


@pytest.mark.parametrize("measure", ["macs", "params", "bytes"])
@pytest.mark.parametrize("scope", ["global", "group"])
@pytest.mark.parametrize("share", [0.7, 0.4])
def test_budget_is_met(measure: str, scope: str, share: float) -> None:
    plan = gp.prune(two_convs(160, 140), passes="l1", budget=f"{measure}={share}", scope=scope).plan
    assert abs(plan.after[measure] / plan.before[measure] - share) <= 0.01 * share


def test_budget_that_cannot_be_met_is_said() -> None:
    result = gp.prune(two_convs(8, 6), passes="l1", budget="macs=0.01", floor=0.5)
    assert any("nearest possible" in note for note in result.state.notes)


def test_align() -> None:
    plan = gp.prune(two_convs(40, 24), passes="l1", rate=0.4, scope="group", align=8).plan
    assert widths(plan) == {"w1": 24, "b1": 24, "w2": 16}


def test_keep_leaves_a_group_whole() -> None:
    plan = gp.prune(two_convs(), passes="l1", rate=0.5, scope="group", keep=["w1"]).plan
    assert "w1" not in plan.tensors and "w2" in plan.tensors
    with pytest.raises(UsageError, match="matches no tensor"):
        gp.prune(two_convs(), passes="l1", rate=0.5, keep=["nothing*"])


def test_residual_is_one_group() -> None:
    plan = gp.prune(folded_residual(), passes="l1", rate=0.5, scope="group").plan
    kept = plan.tensors["w1"]["kept"]["0"]
    assert plan.tensors["w2"]["kept"] == {"0": kept, "1": kept} and plan.tensors["w3"]["kept"]["1"] == kept


def test_costs_are_counted_by_hand() -> None:
    plan = gp.prune(two_convs(8, 6), passes="l1", rate=0.5, scope="group").plan
    assert plan.before == {"macs": 64 * 27 * 8 + 64 * 72 * 6 + 30, "params": 216 + 8 + 432 + 30 + 5, "bytes": 691 * 4}
    assert plan.after["macs"] == 64 * 27 * 4 + 64 * 36 * 3 + 15


def test_same_seed_same_plan_other_seed_other_plan() -> None:
    plans = [gp.prune(two_convs(32, 32), passes="random", rate=0.5, seed=seed).plan.tensors for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]
