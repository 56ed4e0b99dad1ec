"""How near one detector's outputs are to another's, cell by cell: smooth, where matched boxes only count.

A raw head says something of every cell, and of most of them nothing that matters: where no score is high, the box is
arbitrary. A squared error over all of it is an error of such boxes. Here scores are compared as probabilities, and boxes as
far as the source believes in them. The same lines serve numpy and torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graphprune.detection.reading import Reader, features_last, in_unit

#: Probabilities are taken for this far from 0 and 1 at least: float32 holds no finer ones near 1.
LEAST = 1e-6
#: Score below which a box is nobody's.
FAINT = 0.05


def comparable(how: Reader | None, source: Sequence[Mapping[str, Any]]) -> bool:
    """Whether outputs hold a box and probabilities for every cell.

    Parameters
    ----------
    source
        Outputs that ``how`` was found on.
    """
    if how is None or how.kind not in ("raw", "split"):
        return False
    if how.kind == "raw":
        return True
    shapes = {np.asarray(outputs[how.names[0]]).shape for outputs in source}
    return len({shape[1:] for shape in shapes}) == 1 and all(in_unit(np.asarray(outputs[how.names[1]])) for outputs in source)


def cells(how: Reader, outputs: Mapping[str, Any]) -> tuple[Any, Any]:
    """Boxes [..., 4] as the model writes them, and probabilities [..., classes]; arrays or tensors."""
    if how.kind == "raw":
        table = features_last(outputs[how.names[0]])
        return table[..., :4], table[..., 5:] * table[..., 4:5] if how.objectness else table[..., 4:]
    boxes, scores = outputs[how.names[0]], outputs[how.names[1]]
    return boxes, scores if scores.ndim == boxes.ndim else scores[..., None]


def distance(how: Reader, source: Mapping[str, Any], other: Mapping[str, Any], xp: Any) -> tuple[Any, Any]:
    """Error of one model's cells, and what the source believes in: their ratio, over all feeds, is the measure.

    The error adds Kullback and Leibler's divergence of every probability (nats) and, weighted by the source's best score where
    that is at least 0.05, the mean distance of a box's four numbers in units of the box's size.

    Parameters
    ----------
    source, other
        Arrays or tensors of floats by output name, of the same shapes.
    xp
        ``numpy`` or ``torch``.

    Returns
    -------
    tuple of scalars
        Error and weight, both sums.
    """
    (boxes, scores), (others, guesses) = cells(how, source), cells(how, other)
    p, q = xp.clip(scores, LEAST, 1 - LEAST), xp.clip(guesses, LEAST, 1 - LEAST)
    nats = p * (xp.log(p) - xp.log(q)) + (1 - p) * (xp.log(1 - p) - xp.log(1 - q))
    best = xp.amax(scores, -1)
    size = boxes[..., 2:] if how.centred else boxes[..., 2:] - boxes[..., :2]
    # Sizes of half a thousandth of what spans all boxes are none: coordinates are pixels in one model, shares in another.
    size = xp.clip(xp.abs(size).sum(-1) / 2, 5e-4 * float(xp.abs(boxes).max()) + 1e-12, None)
    weight = best * (best >= FAINT)
    off = xp.abs(others - boxes).sum(-1) / (4 * size)
    return nats.sum() + (weight * off).sum(), weight.sum()
