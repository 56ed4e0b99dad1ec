"""Rendered lines, upright and upside down, in the input format of PP-OCR's direction classifier (3 x 48 x 192)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.ppocr.files import CACHE
from benchmarks.ppocr.lines import Image8, make_lines, test_lines, to_input

WIDTH = 192
TEST_SEED, CALIBRATION_SEED = 20_003, 10_003


def turned(pictures: list[Image8], seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Input float32[n, 3, 48, 192] with about half of the lines turned by 180 degrees, and which, int64[n] of 0 and 1."""
    which = np.random.default_rng(seed).integers(0, 2, len(pictures))
    return to_input([p[::-1, ::-1] if t else p for p, t in zip(pictures, which, strict=True)], WIDTH), which


def test_directions() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The test lines of the recogniser, half of them turned."""
    return turned(test_lines().pictures, TEST_SEED)


def calibration(n: int = 512, seed: int = CALIBRATION_SEED) -> Path:
    """Path of the calibration lines, an ``.npy`` float32[n, 3, 48, 192] for ``graphprune run --data``; no labels."""
    path = CACHE / f"directions_calibration_{n}_{seed}.npy"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        np.save(path, turned(make_lines(n, seed).pictures, seed)[0])
    return path
