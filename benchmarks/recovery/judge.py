"""What ``graphprune compare --eval benchmarks.recovery.judge:top1`` calls: accuracy on the 10,000 test images."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from benchmarks.recovery.files import CACHE, accuracy


@functools.cache
def _test() -> dict[str, Any]:
    with np.load(CACHE / "test.npz") as stored:
        return {"images": stored["input"], "labels": stored["labels"]}


def top1(path: str) -> float:
    """Share of the test images that a model names correctly, on one thread."""
    test = _test()
    return accuracy(path, test["images"], test["labels"], 1)
