"""The drone example: pictures that follow from their number, boxes that fit, a shipped detector that finds drones, one command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from click.testing import CliRunner

from graphprune.cli import cli

pytest.importorskip("PIL")

from examples.drone import data

MODEL = Path(__file__).resolve().parents[1] / "examples" / "drone" / "drone.onnx"


def test_pictures_follow_from_split_and_number() -> None:
    one, again, other = data.scene("test", 7), data.scene("test", 7), data.scene("val", 7)
    assert np.array_equal(one.picture, again.picture) and np.array_equal(one.boxes, again.boxes)
    assert not np.array_equal(one.picture, other.picture)
    assert one.picture.shape == (*data.SIZE, 3) and one.picture.dtype == np.uint8
    counts = [len(data.scene("test", n).boxes) for n in range(40)]
    assert min(counts) == 0 and max(counts) >= 3


def test_boxes_fit_what_was_drawn() -> None:
    """On a black canvas all that is not black is the drone: nothing solid lies outside its box, and each side touches something."""
    rng = np.random.default_rng(1)
    seen = 0
    for number in range(40):
        pose = data.Pose(rng.uniform(10, 60), rng.uniform(0, 3), rng.uniform(0.15, 0.6), rng.normal(0, 0.2), 245.0, 0.0)
        canvas = np.zeros((*data.SIZE, 3), np.float32)
        box = data._put(canvas, data._drone(np.random.default_rng(number), pose), rng.uniform(0, 1, 2))
        if box is None:
            continue
        seen += 1
        left, top, right, bottom = map(int, box)
        bright = canvas.max(axis=2)
        outside = bright.copy()
        outside[top:bottom, left:right] = 0
        assert outside.max() < 0.2 * 255
        inside = bright[top:bottom, left:right]
        assert min(inside[0].max(), inside[-1].max(), inside[:, 0].max(), inside[:, -1].max()) > 0.1 * 255
    assert seen > 25


def test_a_clip_moves() -> None:
    frames = list(data.clip(3))
    assert all(frame.shape == (*data.SIZE, 3) for frame in frames)
    assert np.abs(frames[0].astype(int) - frames[2]).max() > 0


def test_the_shipped_detector_finds_drones(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    from graphprune.detection.evaluating import Judge

    judge = Judge(f"coco:{data.write_coco(tmp_path, 'test', 60)}")
    judge.learn(MODEL)
    assert "pixels / 255" in judge.words and "classes by name" in judge.words
    assert judge(MODEL)["map50"] > 0.7


def test_it_takes_any_batch_and_is_cut_as_documented(tmp_path: Path) -> None:
    found = ort.InferenceSession(str(MODEL)).run(None, {"image": np.zeros((3, 3, *data.SIZE), np.float32)})
    assert found[0].shape == (3, 5, 700)
    done = CliRunner().invoke(cli, ["run", str(MODEL), "-o", str(tmp_path / "small.onnx"), "--rate", "0.5", "--scope", "group", "--json"])
    assert done.exit_code == 0, done.output
    summary = json.loads(done.output)
    assert summary["after"]["macs"] < 0.32 * summary["before"]["macs"] and summary["verify"]["passed"]
    assert ort.InferenceSession(str(tmp_path / "small.onnx")).run(None, {"image": np.zeros((2, 3, *data.SIZE), np.float32)})[0].shape == (2, 5, 700)
