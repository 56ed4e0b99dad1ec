"""What detectors put out, read as boxes by its structure alone.

No configuration says which output holds what, so the arrays themselves are asked: four columns that span boxes beside
scores between 0 and 1, rows of six or seven as suppression leaves them, raw heads, and maps of probabilities whose
connected regions are boxes. What does not look like any of these is no detector's output, and nothing is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.detection.boxes import CONFIDENT, Boxes, Picking, suppressed

Array = NDArray[Any]
Outputs = Mapping[str, Array]

#: Share of the candidates for which one class is best, from which it is no class but the background.
BACKGROUND = 0.5


@dataclass(frozen=True)
class Reader:
    """How the outputs of one model hold boxes; found on the source's outputs, used on those of both models.

    Attributes
    ----------
    kind
        ``split`` (boxes, scores and perhaps labels apart), ``rows``, ``raw`` or ``map``.
    names
        Outputs read: boxes, scores and labels, or the one that holds all.
    columns
        For ``rows``: which columns hold the picture (-1: none), the box, the score and the label.
    centred
        Boxes are centre and size rather than two corners.
    background
        Class that stands for nothing, -1 if none does.
    objectness
        For ``raw``: the fifth column scales all scores.
    """

    kind: str
    names: tuple[str, ...]
    columns: tuple[int, int, int, int] = (-1, 0, 4, 5)
    centred: bool = False
    background: int = -1
    objectness: bool = False

    def __str__(self) -> str:
        names = ", ".join(f"'{name}'" for name in self.names)
        return f"boxes in {names}"

    def read(self, outputs: Outputs, how: Picking = CONFIDENT) -> list[Boxes]:
        """The boxes of every picture of one feed."""
        if self.kind == "map":
            return [_regions(map_, how) for map_ in np.asarray(outputs[self.names[0]], np.float64)[:, 0]]
        if self.kind == "rows":
            return self._rows(np.asarray(outputs[self.names[0]], np.float64), how)
        if self.kind == "raw":
            array = features_last(np.asarray(outputs[self.names[0]], np.float64))
            first = 5 if self.objectness else 4
            scores = array[..., first:] * (array[..., 4:5] if self.objectness else 1.0)
            return [self._best(b, s, None, how, suppress=True) for b, s in zip(array[..., :4], scores, strict=True)]
        boxes, scores = (np.asarray(outputs[name], np.float64) for name in self.names[:2])
        labels = np.asarray(outputs[self.names[2]], np.int64) if len(self.names) > 2 else None
        if boxes.ndim == 2:
            boxes, scores, labels = boxes[None], scores[None], None if labels is None else labels[None]
        if scores.ndim == 3:
            scores = _probabilities(scores)
        each = [None] * len(boxes) if labels is None else labels
        return [self._best(b, s, n, how) for b, s, n in zip(boxes, scores, each, strict=True)]

    def _rows(self, array: Array, how: Picking) -> list[Boxes]:
        picture, box, score, label = self.columns
        array = array.reshape(-1, *array.shape[-2:])
        if picture >= 0:
            flat = array.reshape(-1, array.shape[-1])
            return [self._best(r[:, box : box + 4], r[:, score], r[:, label], how)
                    for n in range(int(flat[:, picture].max(initial=-1)) + 1) for r in [flat[flat[:, picture] == n]]]  # fmt: skip
        return [self._best(rows[:, box : box + 4], rows[:, score], rows[:, label], how) for rows in array]

    def _best(self, boxes: Array, scores: Array, labels: Array | None, how: Picking, suppress: bool = False) -> Boxes:
        """Confident boxes, best first; ``scores``: [n], or [n, classes] without labels."""
        if scores.ndim == 2 and labels is None and how.every_class:
            place, labels = np.nonzero(scores >= how.score)
            boxes, scores = boxes[place], scores[place, labels]
        elif scores.ndim == 2:
            if labels is None:
                labels = scores.argmax(1)
            scores = scores.max(1)
        labels = np.zeros(len(scores), np.int64) if labels is None else labels.astype(np.int64)
        chosen = np.flatnonzero((scores >= how.score) & (labels != self.background) & np.isfinite(boxes).all(1))
        chosen = chosen[np.argsort(-scores[chosen], kind="stable")][: (8 if suppress else 1) * how.most]
        corners = boxes[chosen]
        if self.centred:
            corners = np.concatenate([corners[:, :2] - corners[:, 2:] / 2, corners[:, :2] + corners[:, 2:] / 2], axis=1)
        found = Boxes(corners, labels[chosen], scores[chosen])
        return suppressed(found, how) if suppress else found


def reader(source: Sequence[Outputs]) -> Reader | None:
    """How a model's outputs hold boxes, None where they do not seem to.

    Parameters
    ----------
    source
        Outputs of the source on several feeds.
    """
    if not source:
        return None
    arrays = {name: [np.asarray(outputs[name]) for outputs in source] for name in source[0]}
    arrays = {name: many for name, many in arrays.items() if all(a.dtype.kind in "fiu" for a in many)}
    floats = {name: many for name, many in arrays.items() if many[0].dtype.kind == "f"}
    for name, many in floats.items():
        if many[0].ndim in (2, 3) and many[0].shape[-1] == 4:
            found = _split(name, many, arrays)
            if found is not None:
                return found
    for name, many in floats.items():
        found = _as_rows(name, many) or _as_raw(name, many) or _as_map(name, many)
        if found is not None:
            return found
    return None


def in_unit(array: Array) -> bool:
    """Whether numbers may be probabilities."""
    return bool(array.size == 0 or (np.isfinite(array).all() and array.min() >= -1e-6 and array.max() <= 1 + 1e-6))


def _whole(array: Array) -> bool:
    return bool(np.isfinite(array).all() and (array == np.round(array)).all())


def _joined(many: Sequence[Array], width: int) -> Array:
    return np.concatenate([a.reshape(-1, width) for a in many])


def _is_centred(boxes: Array) -> bool | None:
    """Whether boxes are centre and size; None where they are no boxes."""
    if not len(boxes) or not np.isfinite(boxes).all():
        return None
    if ((boxes[:, 2] >= boxes[:, 0]) & (boxes[:, 3] >= boxes[:, 1])).mean() > 0.99:
        return False
    return True if (boxes[:, 2:] >= 0).mean() > 0.99 else None


def _probabilities(scores: Array) -> Array:
    if in_unit(scores):
        return scores
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(scores / scores.sum(-1, keepdims=True))


def _split(name: str, boxes: Sequence[Array], arrays: Mapping[str, Sequence[Array]]) -> Reader | None:
    """Boxes in an output of their own: scores, or one score a class, and perhaps labels in others."""
    lead = [b.shape[:-1] for b in boxes]
    beside = {other: many for other, many in arrays.items() if other != name}
    one_each = {other: many for other, many in beside.items() if [a.shape for a in many] == lead}
    labels = next((other for other, many in one_each.items() if many[0].dtype.kind != "f"), None)
    scores = next((other for other, many in one_each.items() if many[0].dtype.kind == "f" and all(map(in_unit, many))), None)
    background = -1
    if scores is None:
        classes = {other: many for other, many in beside.items() if many[0].dtype.kind == "f" and many[0].ndim > len(lead[0])}
        scores = next((other for other, many in classes.items() if [a.shape[:-1] for a in many] == lead), None)
        if scores is None:
            return None
        if not all(map(in_unit, classes[scores])):
            share = np.bincount(_joined(classes[scores], classes[scores][0].shape[-1]).argmax(1), minlength=1)
            background = int(share.argmax()) if share.max() > BACKGROUND * share.sum() else -1
    centred = _is_centred(_joined(boxes, 4))
    if centred is None:
        return None
    return Reader("split", (name, scores) if labels is None else (name, scores, labels), centred=centred, background=background)


def _as_rows(name: str, many: Sequence[Array]) -> Reader | None:
    """Rows as suppression leaves them: six or seven numbers a box."""
    width = many[0].shape[-1] if many[0].ndim >= 2 else 0
    if width not in (6, 7):
        return None
    rows = _joined(many, width)
    if not len(rows):
        return None
    layouts = [(-1, 0, 4, 5)] if width == 6 else [(0, 1, 6, 5), (0, 3, 2, 1)]
    for picture, box, score, label in layouts:
        fits = _whole(rows[:, label]) and in_unit(rows[:, score]) and not _whole(rows[:, score])
        if picture >= 0:
            fits = fits and _whole(rows[:, picture]) and rows[:, picture].min() >= -1
        if fits and _is_centred(rows[:, box : box + 4]) is False:
            return Reader("rows", (name,), (picture, box, score, label))
    return None


def features_last(array: Any) -> Any:
    """``[pictures, anchors, features]``, an array or a tensor: there are more anchors than features."""
    return array if array.shape[1] >= array.shape[2] else array.swapaxes(1, 2)


def _as_raw(name: str, many: Sequence[Array]) -> Reader | None:
    """One row an anchor: a box, then scores."""
    if many[0].ndim != 3 or min(many[0].shape[1:]) < 5 or max(many[0].shape[1:]) < 64:
        return None
    rows = np.concatenate([features_last(a).reshape(-1, min(a.shape[1:])) for a in many])
    if not in_unit(rows[:, 4:]) or in_unit(rows[:, :4]):
        return None
    centred = _is_centred(rows[:, :4])
    if centred is None:
        return None
    # One class more and an objectness look alike: it is one where it lies above what the classes say together.
    several = rows.shape[1] > 5
    objectness = several and bool((rows[:, 4] < rows[:, 5:].max(1) - 1e-3).mean() > 0.9)
    return Reader("raw", (name,), centred=centred, objectness=objectness)


def _as_map(name: str, many: Sequence[Array]) -> Reader | None:
    first = many[0]
    if first.ndim != 4 or first.shape[1] != 1 or min(first.shape[2:]) < 16 or not all(map(in_unit, many)):
        return None
    return Reader("map", (name,))


def _regions(probability: Array, how: Picking) -> Boxes:
    """Connected regions of a map that are more likely than not, as boxes."""
    from scipy import ndimage

    regions, _ = ndimage.label(probability > 0.5, np.ones((3, 3)))
    places = ndimage.find_objects(regions)
    corners = [[c.start, r.start, c.stop, r.stop] for r, c in places if min(r.stop - r.start, c.stop - c.start) > 1]
    scores = [float(probability[place].mean()) for place in places if min(s.stop - s.start for s in place) > 1]
    order = np.argsort(-np.asarray(scores), kind="stable")[: how.most] if scores else np.zeros(0, np.int64)
    return Boxes(np.asarray(corners, np.float64).reshape(-1, 4)[order], np.zeros(len(order), np.int64), np.asarray(scores)[order])
