"""Scores against numbers worked by hand, and their degenerate cases."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import graphprune as gp
from graphprune.passes.entropy import map_entropy
from graphprune.weights import slice_norms
from tests.nets import two_convs, with_weights


def test_slice_norms_by_hand() -> None:
    array = np.array([[1.0, -2.0, 3.0], [0.0, 4.0, -5.0]])
    rows, columns = slice_norms(array, 1)
    assert rows.tolist() == [6.0, 9.0] and columns.tolist() == [1.0, 6.0, 8.0]
    assert slice_norms(array, 2)[0].tolist() == [14.0, 41.0]


def test_entropy_of_flat_and_peaked_maps() -> None:
    # z = (x - mean)^2; a constant map has z = 0 everywhere: p is uniform, H = ln HW, the maximum.
    flat = np.full((1, 1, 2, 2), 3.0)
    assert map_entropy(flat, 1)[0] == pytest.approx(math.log(4))
    # x = (4, 0, 0, 0): mean 1, z = (9, 1, 1, 1); p ~ (e^8, 1, 1, 1) / (e^8 + 3).
    peaked = np.array([4.0, 0.0, 0.0, 0.0]).reshape(1, 1, 2, 2)
    p = np.array([math.exp(8), 1, 1, 1]) / (math.exp(8) + 3)
    assert map_entropy(peaked, 1)[0] == pytest.approx(-(p * np.log(p)).sum())
    # The raw variant: p ~ (e^4, 1, 1, 1).
    p = np.array([math.exp(4), 1, 1, 1]) / (math.exp(4) + 3)
    assert map_entropy(peaked, 1, "raw")[0] == pytest.approx(-(p * np.log(p)).sum())


def test_entropy_sums_over_images_and_survives_large_values() -> None:
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((3, 4, 5, 5)) * 100
    whole = map_entropy(maps, 1)
    assert np.isfinite(whole).all() and (whole >= 0).all() and (whole <= 3 * math.log(25) + 1e-9).all()
    assert whole == pytest.approx(sum(map_entropy(maps[i : i + 1], 1) for i in range(3)))


def test_entropy_of_one_position_is_zero() -> None:
    assert map_entropy(np.ones((2, 3, 1, 1)), 1).tolist() == [0.0, 0.0, 0.0]


def test_entropy_keeps_low(digits: Path, calibration: Path) -> None:
    low = gp.prune(digits, passes="entropy", rate=0.3, scope="group", data=calibration)
    high = gp.prune(digits, passes="entropy{keep=high}", rate=0.3, scope="group", data=calibration)
    a, b = low.state.scores[0].values, high.state.scores[0].values
    measured = ~np.isclose(a, b)
    assert measured.sum() > 100 and np.allclose((a + b)[measured], 1.0)
    group = low.plan.groups[0]
    assert group["kept"] < group["units"] and low.plan.tensors != high.plan.tensors


def test_entropy_falls_back_where_maps_have_one_position() -> None:
    model = with_weights(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 7] x) => (float[N, 3] y) { a = Gemm(x, w1)  r = Relu(a)  y = Gemm(r, w2) }""",
        w1=(7, 10), w2=(10, 3),
    )  # fmt: skip
    result = gp.prune(model, passes="entropy", rate=0.5)
    assert any("scored by l1 instead" in note for note in result.state.notes)
    assert result.plan.verify["passed"]


def test_bn_scale_reads_gamma_and_says_when_it_is_folded(digits: Path) -> None:
    result = gp.prune(digits, passes="bn-scale", rate=0.3, scope="group")
    coupling, state = result.state.coupling, result.state
    assert coupling is not None
    gamma = next(o.value for o in coupling.operands if o.role == "scale")
    array = np.abs(state.parameter(gamma))
    rows = coupling.rows(gamma, 0)[:, 0]
    alone = [i for i, u in enumerate(rows) if u >= 0]
    assert alone and np.isfinite(array[alone]).all()
    folded = gp.prune(two_convs(), passes="bn-scale", rate=0.3)
    assert any("folded away" in note for note in folded.state.notes)


@pytest.mark.parametrize(
    "spec", ["l1", "l2", "bn-scale", "entropy", "entropy{variant=raw,reading=conv}", "random{seed=3}"]
)
def test_every_score_cuts_and_proves(digits: Path, calibration: Path, spec: str) -> None:
    result = gp.prune(digits, passes=spec, rate=0.4, data=calibration)
    assert result.plan.verify["passed"] and result.plan.after["macs"] < result.plan.before["macs"]


def test_two_scores_are_averaged() -> None:
    both = gp.prune(two_convs(32, 32), passes=["l1", "random{seed=1}"], rate=0.5).plan.tensors
    assert both not in (gp.prune(two_convs(32, 32), passes=s, rate=0.5).plan.tensors for s in ("l1", "random{seed=1}"))
