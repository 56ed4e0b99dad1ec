"""From the text detector's probability map to boxes (DB post-processing), and how well two sets of boxes agree.

Boxes are upright, float64[n, 4] as left, top, right, bottom in pixels (right and bottom exclusive). The rendered text is
nearly level, so that rotated rectangles would add OpenCV, pyclipper and shapely but nothing that is measured here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

Boxes = NDArray[np.float64]


def db_boxes(
    probability: NDArray[Any], threshold: float = 0.3, box_threshold: float = 0.5, unclip: float = 1.6, smallest: float = 3
) -> Boxes:
    """Boxes of text in a probability map, with the settings of rapidocr's config.

    Connected regions (8 neighbours) above ``threshold``, dilated by a pixel to the right and below; those whose mean probability inside the
    box is below ``box_threshold`` or whose shorter side is below ``smallest`` are dropped. A detector trained with
    differentiable binarisation marks a shrunk text region: each box grows by area * ``unclip`` / perimeter on every side.

    Parameters
    ----------
    probability
        float[height, width], 0..1.
    """
    height, width = probability.shape
    mask = ndimage.binary_dilation(probability > threshold, np.ones((2, 2)), origin=-1)
    regions, _ = ndimage.label(mask, np.ones((3, 3)))
    found = []
    for rows, columns in ndimage.find_objects(regions):
        h, w = rows.stop - rows.start, columns.stop - columns.start
        if min(h, w) < smallest or probability[rows, columns].mean() < box_threshold:
            continue
        grow = h * w * unclip / (2 * (h + w))
        if min(h, w) + 2 * grow >= smallest + 2:
            found.append([max(columns.start - grow, 0), max(rows.start - grow, 0),
                          min(columns.stop + grow, width), min(rows.stop + grow, height)])  # fmt: skip
    return np.array(found, np.float64).reshape(-1, 4)


def iou(a: Boxes, b: Boxes) -> NDArray[np.float64]:
    """Intersection over union float64[n, m] of every box of ``a`` with every box of ``b``."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = np.prod(np.maximum(high - low, 0), axis=2)
    area_a, area_b = (np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (a, b))
    return common / np.maximum(area_a[:, None] + area_b[None, :] - common, 1e-12)


def matched(a: Boxes, b: Boxes, least: float = 0.5) -> int:
    """The largest number of pairs, each box in one at most, whose IoU is ``least`` or more."""
    fits = iou(a, b) >= least
    return int(fits[linear_sum_assignment(fits, maximize=True)].sum())


def f1(found: list[Boxes], truth: list[Boxes], least: float = 0.5) -> float:
    """F1 of the boxes found on several pictures: 2 * matches / (found + true); 1 where there are none of both."""
    pairs = sum(matched(a, b, least) for a, b in zip(found, truth, strict=True))
    total = sum(map(len, found)) + sum(map(len, truth))
    return 2 * pairs / total if total else 1.0
