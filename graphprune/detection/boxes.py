"""Boxes of a picture: how far two overlap, suppression, and how well two models' boxes agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

#: Intersection over union from which two boxes are the same.
SAME = 0.5


@dataclass(frozen=True)
class Boxes:
    """The boxes of one picture.

    Attributes
    ----------
    corners
        float64[n, 4]: left, top, right, bottom, in whatever unit the model uses.
    labels
        int64[n].
    scores
        float64[n], 0 to 1.
    """

    corners: Array
    labels: Array
    scores: Array

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, index: Array) -> Boxes:
        """Some of the boxes; ``index`` int64[m] or bool[n]."""
        return Boxes(self.corners[index], self.labels[index], self.scores[index])


EMPTY = Boxes(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0))


@dataclass(frozen=True)
class Picking:
    """Which of the boxes that a model gives are looked at.

    Attributes
    ----------
    score
        Boxes below are left out.
    most
        Boxes of one picture, best first.
    overlap
        Of two boxes of one class that overlap by more (intersection over union) the better one stays, where the model does
        not suppress them itself.
    every_class
        A place counts for each class above ``score``, not for the best one alone.
    """

    score: float = 0.25
    most: int = 300
    overlap: float = SAME
    every_class: bool = False


#: What a user of the model would see.
CONFIDENT = Picking()


def overlap(a: Array, b: Array) -> Array:
    """Intersection over union of corners, float64[n, m]."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = np.maximum(high - low, 0).prod(2)
    area_a, area_b = ((c[:, 2:] - c[:, :2]).prod(1) for c in (a, b))
    return np.asarray(common / np.maximum(area_a[:, None] + area_b[None] - common, 1e-12))


def suppressed(boxes: Boxes, how: Picking) -> Boxes:
    """The best of boxes of one class that overlap; ``boxes`` come best first."""
    gone = np.zeros(len(boxes), np.bool_)
    kept: list[int] = []
    for n in range(len(boxes)):
        if gone[n]:
            continue
        kept.append(n)
        if len(kept) == how.most:
            break
        rest = np.flatnonzero(~gone[n + 1 :] & (boxes.labels[n + 1 :] == boxes.labels[n])) + n + 1
        gone[rest] = overlap(boxes.corners[n : n + 1], boxes.corners[rest])[0] > how.overlap
    return boxes.take(np.asarray(kept, np.int64))


def agreement(source: Sequence[Sequence[Boxes]], other: Sequence[Sequence[Boxes]]) -> dict[str, Any]:
    """F1 of the boxes of two models: twice the pairs of one class and enough overlap, over all boxes.

    Parameters
    ----------
    source, other
        Boxes of every picture, feed by feed; a picture that one has more counts as empty in the other.

    Returns
    -------
    dict
        ``f1`` (1 where neither finds anything), and how many boxes each finds: ``source``, ``other``.
    """
    pairs = total = mine = 0
    for a, b in zip(source, other, strict=True):
        for n in range(max(len(a), len(b))):
            p, q = (boxes[n] if n < len(boxes) else EMPTY for boxes in (a, b))
            pairs += _pairs(p, q)
            mine += len(p)
            total += len(p) + len(q)
    return {"f1": 2 * pairs / total if total else 1.0, "source": mine, "other": total - mine}


def _pairs(a: Boxes, b: Boxes) -> int:
    from scipy.optimize import linear_sum_assignment

    fits = (overlap(a.corners, b.corners) >= SAME) & (a.labels[:, None] == b.labels[None])
    return int(fits[linear_sum_assignment(fits, maximize=True)].sum())
