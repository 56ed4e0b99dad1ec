"""The oracle itself, on cuts made by hand: right ones pass, each kind of wrong one is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from tests import oracle
from tests.patterns import PATTERNS

KEPT = [0, 2, 3]


def hand_cut(source: ModelProto, slices: dict[str, dict[int, list[int]]]) -> ModelProto:
    """Slice initializers by hand; enough for networks that store no sizes in nodes."""
    cut = oracle.load(source)
    for tensor in cut.graph.initializer:
        if tensor.name in slices:
            value = numpy_helper.to_array(tensor)
            for axis, kept in slices[tensor.name].items():
                value = np.take(value, kept, axis)
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), tensor.name))
    return cut


def hand_plan(
    source: ModelProto, slices: dict[str, dict[int, list[int]]], frozen: list[tuple[str, int]]
) -> dict[str, Any]:
    values = oracle.all_constants(source)
    members = [[name, axis] for name, axes in slices.items() for axis in axes]
    units = max(values[n][0].shape[a] for n, a in members)
    return {
        "schema": 1, "graphprune": "0", "source": {}, "options": {}, "before": {}, "after": {},
        "tensors": {
            name: {"shape": list(values[name][0].shape), "kept": {str(a): k for a, k in axes.items()}}
            for name, axes in slices.items()
        },
        "groups": [{"id": 0, "kind": "channel", "units": units, "kept": 3, "exact": True, "members": members}],
        "frozen": [
            {"tensor": n, "axis": a, "size": values[n][0].shape[a], "node": "x", "reason": "graph border"} for n, a in frozen
        ],
        "verify": {"max_rel_error": 0, "exact_units": 3, "inexact_units": 0, "passed": True},
    }  # fmt: skip


def glu_case(gate_kept: list[int] | None = None, drop: str = "") -> tuple[ModelProto, ModelProto, dict[str, Any]]:
    """Batch-norm MLP fc(7, 10) -> h(10, 12) -> a(12, 4), hidden width cut to three of ten."""
    source = PATTERNS["batch_norm_1d_after_gemm"].build()
    slices = {"fc.w": {1: KEPT}, "fc.b": {0: KEPT}, "h.w": {0: gate_kept or KEPT}}
    slices |= {f"n1.{p}": {0: KEPT} for p in "shmv"}
    slices.pop(drop, None)
    frozen = [("fc.w", 0), ("h.w", 1), ("h.b", 0), ("n.s", 0), ("n.h", 0), ("a.w", 0), ("a.w", 1), ("a.b", 0)]
    cut = hand_cut(source, slices)
    for tensor in cut.graph.initializer:  # the one stored size of this network
        if tensor.data_type == 7 and list(numpy_helper.to_array(tensor)) == [-1, 10]:
            tensor.CopyFrom(numpy_helper.from_array(np.array([-1, 3]), tensor.name))
    return source, cut, hand_plan(source, slices, frozen)


def test_right_cut_passes() -> None:
    report = oracle.check(*glu_case())
    assert not report.problems
    assert report.replayed == 7
    assert report.effect > 1e-3  # masking must change the outputs, else the comparison proves nothing


def test_consumer_sliced_at_wrong_indices_is_seen() -> None:
    source, _, plan = glu_case()
    _, wrong, _ = glu_case(gate_kept=[0, 2, 4])
    problems = oracle.check(source, wrong, plan).problems
    assert any("replay: 'h.w'" in p for p in problems)
    assert any("off by" in p for p in problems)


def test_scrambled_producer_and_plan_are_seen() -> None:
    """The plan says the same wrong thing as the file: only the comparison of outputs can tell."""
    source, cut, plan = glu_case(gate_kept=[0, 2, 4])
    problems = oracle.check(source, cut, plan).problems
    assert problems
    assert all("off by" in p for p in problems)


def test_silent_miss_is_seen() -> None:
    source, cut, plan = glu_case()
    plan["frozen"] = [f for f in plan["frozen"] if f["tensor"] != "a.w"]
    assert sum("silent miss: 'a.w'" in p for p in oracle.check(source, cut, plan).problems) == 2


@pytest.mark.parametrize("field", ["node", "reason"])
def test_frozen_without_explanation_is_seen(field: str) -> None:
    source, cut, plan = glu_case()
    plan["frozen"][0][field] = ""
    assert any("without node or reason" in p for p in oracle.check(source, cut, plan).problems)


def test_changed_weight_is_seen() -> None:
    source, cut, plan = glu_case()
    tensor = next(t for t in cut.graph.initializer if t.name == "a.w")
    value = numpy_helper.to_array(tensor).copy()
    value[0, 0] += 1e-3
    tensor.CopyFrom(numpy_helper.from_array(value, "a.w"))
    assert any("'a.w' changed without standing in the plan" in p for p in oracle.check(source, cut, plan).problems)


def test_changed_dynamic_axis_is_seen() -> None:
    source, cut, plan = glu_case()
    cut.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    assert any("shape ['N', 7] became [2, 7]" in p for p in oracle.check(source, cut, plan).problems)


def test_wrong_rate_is_seen() -> None:
    source, cut, plan = glu_case()
    assert any("keeps 3 of 10" in p for p in oracle.check(source, cut, plan, rate=0.5).problems)
    assert not oracle.check(source, cut, plan, rate=0.7).problems


def test_emptied_axis_is_seen() -> None:
    source, cut, plan = glu_case()
    plan["tensors"]["fc.b"]["kept"]["0"] = []
    assert any("axis 0 emptied" in p for p in oracle.check(source, cut, plan).problems)


def test_masks_follow_constants_through_movement() -> None:
    """Cutting an LSTM weight that the graph rebuilds from torch's gate order masks the same hidden unit everywhere."""
    source = PATTERNS["lstm_weights_rebuilt_from_torch_gates"].build()
    consts = oracle.Constants(source)
    dead = np.zeros((32, 7), bool)
    dead[[3, 11, 19, 27]] = True  # unit 3 of each torch gate i f g o
    reached = consts.spread({"Wi": dead})
    name = next(s.name for s in consts.slots if s.node.op_type == "LSTM" and s.index == 1)
    assert np.flatnonzero(reached[name][0].all(axis=1)).tolist() == [3, 11, 19, 27]
    assert consts.channel_axes("Wi") == [0, 1]


def test_masks_do_not_disturb_weight_norm() -> None:
    """Masking happens after the norm is taken: no 0/0, and ``v`` is accounted for on both channel axes."""
    source = PATTERNS["weight_norm"].build()
    consts = oracle.Constants(source)
    assert consts.channel_axes("v") == [0, 1]
    assert consts.channel_axes("gain") == [0]
    assert consts.channel_axes("a.w") == [0, 1]


def test_zero_of_quantised_weight_is_its_zero_point() -> None:
    source = PATTERNS["matmul_integer_dynamic"].build()
    plan = {"tensors": {"b": {"shape": [12, 10], "kept": {"1": list(range(9))}}}}
    masked = oracle.masked_original(source, plan)
    column = next(numpy_helper.to_array(t) for t in masked.graph.initializer if t.name.startswith("__oracle_masked"))[
        :, 9
    ]
    zero = oracle.all_constants(source)["b.zero"][0][9]
    assert zero != 0
    assert (column == zero).all()


def test_rel_error_is_relative_to_the_outputs_own_maximum() -> None:
    a = np.array([100.0, 1.0])
    assert oracle.rel_error(a, np.array([100.0, 2.0])) == pytest.approx(0.01)
    assert oracle.rel_error(a, np.array([100.0, np.nan])) == np.inf
    assert oracle.rel_error(np.array([np.inf, 2.0]), np.array([np.inf, 2.0])) == 0
    assert oracle.rel_error(np.zeros(3), np.full(3, 1e-3)) == pytest.approx(1e-3)
    assert oracle.rel_error(np.array([7]), np.array([6])) == pytest.approx(1 / 7)
