"""Boxes read from what detectors put out, and how well two sets agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphprune.detection.reading import reader
from graphprune.fidelity import compare_outputs

RNG = np.random.default_rng(0)
#: Three boxes of a picture of 64 x 64 as corners, with labels and scores.
CORNERS = np.array([[4, 4, 20, 24], [30, 8, 60, 30], [10, 40, 40, 60]], np.float32)
LABELS = np.array([2, 0, 2])
SCORES = np.array([0.9, 0.8, 0.6], np.float32)


def centred(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)


def split(boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
    """Boxes, labels, scores apart, as Faster R-CNN's exports end."""
    return {"dets": boxes.astype(np.float32), "ids": labels.astype(np.int64), "conf": scores.astype(np.float32)}


def queries(boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
    """DETR: logits of 3 classes and the background, boxes as centre and size in 0..1, most queries idle."""
    logits = np.zeros((1, 20, 4), np.float32)
    logits[..., 3] = 5
    places = np.tile(np.array([0.5, 0.5, 0.1, 0.1], np.float32), (1, 20, 1))
    for n, (box, label, score) in enumerate(zip(boxes, labels, scores, strict=True)):
        logits[0, 3 * n] = np.log((1 - score) / 3)
        logits[0, 3 * n, label] = np.log(score)
        places[0, 3 * n] = centred(box[None] / 64)[0]
    return {"logits": logits, "pred_boxes": places}


def rows6(boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
    """YOLOv10: a fixed number of rows, most of them empty."""
    out = np.zeros((1, 30, 6), np.float32)
    out[0, : len(boxes)] = np.concatenate([boxes, scores[:, None], labels[:, None]], axis=1)
    return {"output0": out}


def rows7(boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
    """YOLOv7 with suppression inside: picture, box, class, score."""
    picture = np.arange(len(boxes))[:, None] % 2
    return {"output": np.concatenate([picture, boxes, labels[:, None], scores[:, None]], axis=1).astype(np.float32)}


def raw(boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, objectness: bool) -> dict[str, np.ndarray]:
    """A head before suppression: 100 anchors, three of them and a neighbour each on a box."""
    first = 5 if objectness else 4
    out = np.full((1, 100, first + 3), 1e-4, np.float32)
    out[0, :, :4] = [32, 32, 8, 8]
    if objectness:
        out[0, :, first:] = np.linspace(0.1, 0.2, 300).reshape(100, 3)
    for n, (box, label, score) in enumerate(zip(boxes, labels, scores, strict=True)):
        for k in range(2):
            out[0, 10 * n + k, :4] = centred(box[None])[0] + k
            out[0, 10 * n + k, first:] = 0.01
            out[0, 10 * n + k, first + label] = 1.0 if objectness else score - 0.05 * k
            if objectness:
                out[0, 10 * n + k, 4] = score - 0.05 * k
    return {"out": out if objectness else out.transpose(0, 2, 1)}


def heat(boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
    """A text detector's map of probabilities."""
    out = np.full((1, 1, 64, 64), 0.02, np.float32)
    for (left, top, right, bottom), score in zip(boxes.astype(int), scores, strict=True):
        out[0, 0, top:bottom, left:right] = score
    return {"sigmoid_0.tmp_0": out}


KINDS: dict[str, Any] = {
    "split": split,
    "queries": queries,
    "rows6": rows6,
    "rows7": rows7,
    "raw": lambda *a: raw(*a, False),
    "objectness": lambda *a: raw(*a, True),
    "heat": heat,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_are_found_without_configuration(kind: str) -> None:
    make = KINDS[kind]
    outputs = make(CORNERS, LABELS, SCORES)
    how = reader([outputs])
    assert how is not None
    found = [one for one in how.read(outputs) if len(one)]
    corners = np.concatenate([one.corners for one in found])
    labels = np.concatenate([one.labels for one in found])
    order = np.lexsort(corners.T)
    scale = 64 if kind == "queries" else 1
    assert np.allclose(corners[order] * scale, CORNERS[np.lexsort(CORNERS.T)], atol=1e-3)
    if kind != "heat":
        assert labels[order].tolist() == LABELS[np.lexsort(CORNERS.T)].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_agreement_by_hand(kind: str) -> None:
    """One of three boxes is moved away and one is lost: one pair, 2 * 1 / (3 + 2)."""
    make = KINDS[kind]
    source = make(CORNERS, LABELS, SCORES)
    moved = CORNERS[:2] + np.array([[0], [20]], np.float32) * np.array([[0, 1, 0, 1]], np.float32)
    report = compare_outputs([source], [make(moved, LABELS[:2], SCORES[:2])])
    assert report["boxes"]["f1"] == pytest.approx(0.4)
    assert (report["boxes"]["source"], report["boxes"]["other"]) == (3, 2)
    assert report["divergence"] > 0
    same = compare_outputs([source], [make(CORNERS, LABELS, SCORES)])
    assert same["boxes"]["f1"] == 1 and same["divergence"] == 0


def test_another_class_is_another_box() -> None:
    report = compare_outputs([split(CORNERS, LABELS, SCORES)], [split(CORNERS, np.array([2, 1, 2]), SCORES)])
    assert report["boxes"]["f1"] == pytest.approx(2 / 3)


def test_numbers_of_boxes_that_differ_still_count() -> None:
    """What suppression leaves has as many rows as there are boxes: no element-wise comparison, and yet a divergence."""
    report = compare_outputs([split(CORNERS, LABELS, SCORES)], [split(CORNERS[:2], LABELS[:2], SCORES[:2])])
    assert report["outputs"] == {}
    assert report["boxes"]["f1"] == pytest.approx(0.8)
    assert report["divergence"] == pytest.approx(0.2)
    nothing = compare_outputs([split(CORNERS, LABELS, SCORES)], [split(CORNERS[:0], LABELS[:0], SCORES[:0])])
    assert nothing["boxes"]["f1"] == 0


@pytest.mark.parametrize(
    "output",
    [RNG.normal(size=(4, 10)), RNG.normal(size=(2, 8, 16, 16)), RNG.normal(size=(1, 12, 4)), RNG.normal(size=(3, 7)),
     RNG.random((2, 40, 6)), RNG.normal(size=(1, 128, 768)), np.zeros((0, 6))],
    ids=str,
)  # fmt: skip
def test_other_outputs_are_no_boxes(output: np.ndarray) -> None:
    assert reader([{"y": output.astype(np.float32)}]) is None
    assert "boxes" not in compare_outputs([{"y": output}], [{"y": output}])


def test_outputs_of_integers_by_hand() -> None:
    a, b = {"ids": np.array([[1, 2, 3, 4]])}, {"ids": np.array([[1, 2, 9, 4]])}
    report = compare_outputs([a], [b])
    assert report["outputs"]["ids"] == {"equal": 0.75}
    assert report["divergence"] == 0.25
