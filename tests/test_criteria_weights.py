"""Criteria that look at weights alone, against numbers worked by hand and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from graphprune.errors import UsageError
from graphprune.passes.lamp import lamp
from tests.criteria_nets import coupling_of, filters_net, grouped, says_l1, scored, trunk, units_of
from tests.nets import with_weights

# Four filters of two weights. L2: 5, 4, 3, 10, mean 5.5. L1: 7, 4, 3, 14, mean 7.
# Distances: 01: 3, 02: 4, 03: 5, 12: 5, 13: |(6, 4)| = sqrt 52, 23: |(3, 8)| = sqrt 73.
FILTERS = [[3, 4], [0, 4], [3, 0], [6, 8]]
S52, S73 = math.sqrt(52), math.sqrt(73)


def on_filters(spec: str, filters: list[list[float]], **options: float) -> list[float]:
    scores, result = scored(filters_net(filters), spec, **options)
    return scores[units_of(result, "w1", 0)].tolist()


def test_similarity_to_one_target() -> None:
    # A quarter of four: T is the last, the largest. It comes behind the others: largest d, plus 14 / 7.
    wanted = [5 / 5.5, S52 / 5.5, S73 / 5.5, S73 / 5.5 + 2]
    assert on_filters("similarity", FILTERS) == pytest.approx(wanted)


def test_similarity_to_two_targets() -> None:
    # T = {3, 0}. d_1 = min(sqrt 52, 3), d_2 = min(sqrt 73, 4).
    wanted = [4 / 5.5 + 1, 3 / 5.5, 4 / 5.5, 4 / 5.5 + 2]
    assert on_filters("similarity{targets=0.5}", FILTERS, rate=0.25) == pytest.approx(wanted)


def test_targets_are_fewer_than_what_the_rate_keeps() -> None:
    # Half of four is kept, two: so one target, though half were asked for.
    assert on_filters("similarity{targets=0.5}", FILTERS, rate=0.5) == pytest.approx(on_filters("similarity", FILTERS))


def test_similarity_greedy() -> None:
    # Protect 3, its nearest, 0, goes at 5; protect 1, its nearest, 2, goes at 5, after 0.
    scores = on_filters("similarity{variant=greedy}", FILTERS)
    assert scores == pytest.approx([5 / 5.5, 5 / 5.5 + 4 / 7, 5 / 5.5, 5 / 5.5 + 2])
    assert scores[0] < scores[2]


def test_similarity_closest_pair() -> None:
    # 01 at 3: 1 is smaller. Then 02 at 4: 2. Then 03 at 5: 0. The last one stays.
    assert on_filters("similarity{variant=closest}", FILTERS) == pytest.approx([5 / 5.5, 3 / 5.5, 4 / 5.5, 5 / 5.5 + 2])


COPIES = [[1, 0.1], [0, 2], [3, 0], [0, -2], [3, 0], [-4, -4]]


@pytest.mark.parametrize("variant", ["targets", "closest"])
def test_a_copy_goes_first_and_the_other_stays(variant: str) -> None:
    # Two targets: the last, and the first of the copies.
    scores = on_filters(f"similarity{{variant={variant},targets=0.34}}", COPIES, rate=0.2)
    assert scores[4] == pytest.approx(0, abs=1e-9) and scores[4] == min(scores) and scores[2] > 1


def test_greedy_goes_by_turns() -> None:
    # 5 is protected and 3, nearest to it at sqrt 20, goes; 2 is protected and its copy 4 goes; 1 is protected and 0 goes.
    scores = on_filters("similarity{variant=greedy}", COPIES)
    assert np.argsort(scores).tolist() == [3, 4, 0, 1, 2, 5]


def test_closest_pair_against_a_loop() -> None:
    filters = np.random.default_rng(3).standard_normal((12, 5)).round(2)
    mean = np.linalg.norm(filters.astype(np.float32), axis=1).mean()
    alive, order, at = list(range(12)), [], []
    while len(alive) > 1:
        d, i, j = min((np.linalg.norm(filters[i] - filters[j]), i, j) for i in alive for j in alive if i < j)
        gone = i if np.abs(filters[i]).sum() < np.abs(filters[j]).sum() else j
        alive.remove(gone)
        order.append(gone)
        at.append(d / mean)
    scores = np.asarray(on_filters("similarity{variant=closest}", filters.tolist()))
    assert np.argsort(scores).tolist() == [*order, *alive]
    assert scores[order] == pytest.approx(at, rel=1e-5)


def test_fpgm() -> None:
    wanted = [3 + 4 + 5, 3 + 5 + S52, 4 + 5 + S73, 5 + S52 + S73]
    assert on_filters("fpgm", FILTERS) == pytest.approx([w / 5.5 for w in wanted])


def test_fpgm_of_equal_filters_is_zero() -> None:
    assert on_filters("fpgm", [[1, 2]] * 4) == pytest.approx([0] * 4, abs=1e-7)


@pytest.mark.parametrize("spec", ["fpgm", "similarity"])
def test_filters_of_zeros_fall_back(spec: str) -> None:
    # No filter differs from another: the columns of w2 (1, 2, 3 and 4) decide through l1.
    scores, result = scored(filters_net(np.zeros((4, 2)), [[1, 2, 3, 4]]), spec)
    assert says_l1(result, spec) and np.argsort(scores[units_of(result, "w1", 0)]).tolist() == [0, 1, 2, 3]


def test_residual_trunk_averages_squared_distances() -> None:
    scores, result = scored(trunk(), "fpgm")
    weights = {v.name: np.asarray(result.state.parameter(v)) for v in coupling_of(result).constants}
    vectors = []
    for name in ("w1", "w3"):
        flat = weights[name].reshape(4, -1).astype(np.float64)
        vectors.append(flat / np.mean([np.sqrt((f**2).sum()) for f in flat]))
    wanted = [
        sum(np.sqrt(sum(((v[i] - v[j]) ** 2).sum() for v in vectors) / 2) for j in range(4)) for i in range(4)
    ]
    assert scores[units_of(result, "w1", 0)] == pytest.approx(wanted)
    assert (units_of(result, "w1", 0) == units_of(result, "w3", 0)).all()


def test_units_of_several_outputs_have_them_all_as_their_filter() -> None:
    # Pixel shuffle: a unit is 4 outputs of w1.
    model = with_weights(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 3, 4, 4] x) => (float[N, 2, 8, 8] y) {
            a = Conv(x, w1)  s = DepthToSpace<blocksize=2, mode="CRD">(a)  y = Conv(s, w2)
        }""",
        w1=(12, 3, 1, 1), w2=(2, 3, 1, 1),
    )  # fmt: skip
    scores, result = scored(model, "fpgm")
    w1 = np.frombuffer(model.graph.initializer[0].raw_data, np.float32).reshape(3, 12).astype(np.float64)
    w1 /= np.linalg.norm(w1, axis=1).mean()
    wanted = [sum(np.linalg.norm(a - b) for b in w1) for a in w1]
    assert scores[units_of(result, "w2", 1)] == pytest.approx(wanted)


@pytest.mark.parametrize("spec", ["fpgm", "similarity", "lamp"])
def test_grouped_and_depthwise_layers(spec: str) -> None:
    scores, result = scored(grouped(), spec)
    assert np.isfinite(scores).all() and not says_l1(result, spec)


def test_layers_that_are_no_matrix_fall_back() -> None:
    # What an LSTM makes has no filters: only its other end is linear.
    model = with_weights(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[T, N, 3] x) => (float[T, N, 2] y) {
            h, last, cell = LSTM<hidden_size=6>(x, w1, r1)
            one = Constant<value_ints=[1]>()
            s = Squeeze(h, one)
            y = MatMul(s, w2)
        }""",
        w1=(1, 24, 3), r1=(1, 24, 6), w2=(6, 2),
    )  # fmt: skip
    _, result = scored(model, "similarity")
    assert says_l1(result, "similarity")


def test_lamp() -> None:
    # Squares of the filters 25, 16, 9, 100; of the columns of w2 2 each; the mean of both: 13.5, 9, 5.5, 51.
    # Ascending 5.5, 9, 13.5, 51, what is left 79, 73.5, 64.5, 51.
    assert on_filters("lamp", FILTERS) == pytest.approx([13.5 / 64.5, 9 / 73.5, 5.5 / 79, 1])


def test_lamp_of_zeros_and_equal_weights() -> None:
    assert lamp(np.zeros(3)).tolist() == [0, 0, 0]
    assert lamp(np.array([2.0, 2.0, 0.0])).tolist() == [0.5, 1, 0]


def test_options_are_checked() -> None:
    with pytest.raises(UsageError, match="targets=1 is outside"):
        scored(filters_net(FILTERS), "similarity{targets=1}")
    with pytest.raises(UsageError, match=r"targets\|greedy\|closest"):
        scored(filters_net(FILTERS), "similarity{variant=near}")
