"""Proofs of models that choose between nearly equal numbers: rounding may decide, mistakes may not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphprune as gp
from graphprune.comparing import compare_runs

ALLOWED = 1e-4


def ranked(noise: float = 0.0, table_error: float = 0.0, second: bool = False) -> ir.Model:
    """The three best of ten scores, two of which are equal but for ``noise``, and what a table holds for them.

    ``second``: what was looked up is ranked once more.
    """
    scores = np.linspace(0, 1, 10, dtype=np.float32)
    scores[7] = scores[8]
    jitter = np.zeros(10, np.float32)
    jitter[7] = noise
    table = np.arange(10, dtype=np.float32) ** 2 + np.float32(table_error) * (np.arange(10) == 8)
    table[[7, 8]] = table[8], table[7]
    constants = {"scores": scores, "jitter": jitter, "table": table.astype(np.float32), "k": np.array([3]), "one": np.array([1])}
    nodes = [
        helper.make_node("Add", ["scores", "x"], ["sum"]), helper.make_node("Add", ["sum", "jitter"], ["ranked"]),
        helper.make_node("TopK", ["ranked", "k"], ["best", "index"]), helper.make_node("Gather", ["table", "index"], ["found"]),
    ]  # fmt: skip
    out = ["best", "found"]
    if second:
        nodes += [helper.make_node("ArgMin", ["found"], ["least"], axis=0),
                  helper.make_node("Gather", ["best", "least"], ["last"])]  # fmt: skip
        out = ["last"]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in out],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


FEEDS = [{"x": np.array([0.25], np.float32)}]


@pytest.mark.parametrize("second", [False, True])
def test_choice_between_equals_is_taken_over(second: bool) -> None:
    plain, other = ranked(-3e-7, second=second), ranked(3e-7, second=second)
    found = compare_runs(plain, other, FEEDS, ALLOWED)
    assert found.worst <= ALLOWED
    if not second:
        assert compare_runs(plain, other, FEEDS).worst > 0.1
        assert found.undecided == 1 and found.decided[0].startswith("TopK")
    assert [v.name for v in other.graph.inputs] == ["x"]  # neither model is changed


@pytest.mark.parametrize("wrong", [{"noise": 1e-2}, {"noise": 3e-7, "table_error": 5.0}])
def test_mistakes_before_and_behind_a_choice_are_found(wrong: dict[str, float]) -> None:
    found = compare_runs(ranked(-3e-7), ranked(**wrong), FEEDS, ALLOWED)
    assert found.worst > ALLOWED and not found.decided


def detector(size: int = 64, kept: int = 3000) -> onnx.ModelProto:
    """One score and one box a cell; the best cells come out. Thousands of scores lie closer together than rounding."""
    draw = np.random.default_rng(6)

    def weight(*shape: int) -> np.ndarray:
        return (draw.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    constants = {
        "w1": weight(64, 3, 3, 3), "w2": weight(200, 64, 3, 3), "wb": weight(4, 200, 1, 1), "ws": weight(1, 200, 1, 1), "k": np.array([kept]),
        "boxes_to": np.array([0, 4, -1]), "scores_to": np.array([0, -1]), "last": np.array([2]), "wide": np.array([1, kept, 4]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1] * 4), helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], pads=[1] * 4), helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "wb"], ["e"]), helper.make_node("Conv", ["d", "ws"], ["f"]),
        helper.make_node("Reshape", ["e", "boxes_to"], ["g"]), helper.make_node("Transpose", ["g"], ["all"], perm=[0, 2, 1]),
        helper.make_node("Reshape", ["f", "scores_to"], ["h"]), helper.make_node("Sigmoid", ["h"], ["s"]),
        helper.make_node("TopK", ["s", "k"], ["scores", "index"], axis=1), helper.make_node("Unsqueeze", ["index", "last"], ["i"]),
        helper.make_node("Expand", ["i", "wide"], ["j"]), helper.make_node("GatherElements", ["all", "j"], ["boxes"], axis=1),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, size, size])],
        [helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, kept, 4]),
         helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, kept])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_detector_with_its_choice_inside_is_cut_and_proved(tmp_path: Path) -> None:
    onnx.save(detector(), tmp_path / "detector.onnx")
    result = gp.prune(tmp_path / "detector.onnx", rate=0.5, scope="group")
    assert result.plan.verify["passed"] and result.plan.verify["max_rel_error"] < 1e-5
    assert result.plan.verify["decided"]["nodes"] == ["TopK 'TopK -> scores'"]
    assert any("rounding decides" in note for note in result.plan.notes)
    result.save(tmp_path / "cut.onnx")
    assert gp.verify(tmp_path / "detector.onnx", tmp_path / "cut.onnx")["passed"]
