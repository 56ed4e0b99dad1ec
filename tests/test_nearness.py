"""Detectors compared cell by cell: what matters counts, what nobody reads does not; fidelity and distillation agree on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphprune as gp
from graphprune.detection.nearness import comparable, distance
from graphprune.detection.reading import reader
from graphprune.fidelity import compare_outputs


def head(seed: int = 0, classes: int = 2, cells: int = 80) -> dict[str, np.ndarray]:
    """A raw head of two pictures: three good boxes each among many of no score."""
    draw = np.random.default_rng(seed)
    boxes = np.concatenate([draw.uniform(0, 200, (2, 2, cells)), draw.uniform(8, 40, (2, 2, cells))], axis=1)
    scores = draw.uniform(0, 0.01, (2, classes, cells))
    scores[:, 0, :3] = 0.8
    return {"y": np.concatenate([boxes, scores], axis=1).astype(np.float32)}


def far(other: dict[str, np.ndarray]) -> float:
    return float(compare_outputs([head()], [other])["boxes"]["distance"])


def test_boxes_that_nobody_believes_in_do_not_count() -> None:
    assert far(head()) == 0
    wild, moved, dull = (head()["y"].copy() for _ in range(3))
    wild[:, :4, 3:] += 500
    moved[:, 0, :3] += 4
    dull[:, 4, :3] = 0.2
    assert far({"y": wild}) == 0
    assert 0 < far({"y": moved}) < 0.5
    assert far({"y": dull}) > 0.5
    # It is what fidelity is summed up by, in the place of a squared error over all cells.
    found = compare_outputs([head()], [{"y": moved}])
    assert found["divergence"] == found["boxes"]["distance"] and found["boxes"]["f1"] == 1


def test_where_nothing_is_found_the_numbers_are_compared() -> None:
    blank = head()["y"].copy()
    blank[:, 4:] *= 0.01
    other = blank.copy()
    other[:, :4] *= 1.1
    found = compare_outputs([{"y": blank}], [{"y": other}])
    assert "distance" not in found["boxes"] and found["divergence"] == found["outputs"]["y"]["rel_mse"] > 0


def test_boxes_and_scores_apart_are_one_thing() -> None:
    table = head()["y"]
    corners = np.concatenate([table[:, :2] - table[:, 2:4] / 2, table[:, :2] + table[:, 2:4] / 2], axis=1).swapaxes(1, 2)
    outputs = {"boxes": corners, "scores": table[:, 4:].swapaxes(1, 2)}
    how = reader([outputs])
    assert how is not None and comparable(how, [outputs])
    other = {"boxes": corners + np.float32(2), "scores": outputs["scores"]}
    found = compare_outputs([outputs], [other])
    assert found["divergence"] == found["boxes"]["distance"] > 0


def test_numpy_and_torch_say_the_same() -> None:
    torch = pytest.importorskip("torch")
    source, other = head(), {"y": head()["y"] * np.float32(0.97)}
    how = reader([source])
    assert how is not None
    a = distance(how, source, other, np)
    b = distance(how, {"y": torch.from_numpy(source["y"])}, {"y": torch.from_numpy(other["y"])}, torch)
    assert float(a[0]) == pytest.approx(float(b[0]), rel=1e-4) and float(a[1]) == pytest.approx(float(b[1]), rel=1e-5)


def detector(path: Path) -> Path:
    """Two convolutions, then a box in pixels and two scores a cell of 8 x 8; scores are high where the picture is bright."""
    draw = np.random.default_rng(3)
    first = draw.standard_normal((24, 3, 3, 3)).astype(np.float32) * np.float32(0.3)
    second = draw.standard_normal((6, 24, 1, 1)).astype(np.float32) * np.float32(0.25)
    constants = {
        "w1": first, "w2": second, "b2": np.array([0, 0, 2, 2, -2, -3], np.float32), "flat": np.array([0, 6, -1]), "parts": np.array([4, 2]),
        "eight": np.array(8, np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1] * 4), helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2", "b2"], ["c"]), helper.make_node("Reshape", ["c", "flat"], ["d"]),
        helper.make_node("Split", ["d", "parts"], ["box", "score"], axis=1), helper.make_node("Exp", ["box"], ["wide"]),
        helper.make_node("Mul", ["wide", "eight"], ["pixels"]), helper.make_node("Sigmoid", ["score"], ["p"]),
        helper.make_node("Concat", ["pixels", "p"], ["y"], axis=1),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 6, 64])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_detector_is_taught_by_what_matters(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).standard_normal((256, 3, 8, 8)).astype(np.float32))
    result = gp.prune(
        detector(tmp_path / "m.onnx"), passes=["l1", "distill{steps=120,batch=32,lr=0.005}"], rate=0.5, data=tmp_path / "d.npz", samples=64
    )
    record = result.plan.recovery["distill"]
    before, after = (record["fidelity"][when] for when in ("before", "after"))
    assert record["used"] and after["boxes"]["distance"] < 0.8 * before["boxes"]["distance"]
    # What judges in torch is what the report judges by in ONNX Runtime.
    assert record["scores"][0][1] == pytest.approx(before["divergence"], rel=1e-3)
    assert min(score for _, score in record["scores"]) == pytest.approx(after["divergence"], rel=1e-3)


def test_what_a_decoder_was_given_is_not_trained() -> None:
    """Cells, anchors and bins are no weights; the convolution before them is one."""
    pytest.importorskip("torch")
    import onnx_ir as ir

    from graphprune.backends.torch_state import is_trained
    from tests.patterns.build import REGISTRY

    model = ir.from_proto(REGISTRY["yolov8_distribution_and_classes"].build())
    trained = {name for name, value in model.graph.initializers.items() if is_trained(value)}
    assert {"stem.w", "b3.w", "c3.w"} <= trained
    assert not {"dfl", "points"} & trained
