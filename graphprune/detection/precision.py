"""Mean average precision of found boxes against annotated ones, by COCO's own code (extra ``graphprune[detection]``)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from graphprune.detection.boxes import Boxes
from graphprune.detection.labelled import DataSet, Picture
from graphprune.errors import UsageError


def require() -> None:
    """Say early what is missing.

    Raises
    ------
    UsageError
        pycocotools is not installed.
    """
    try:
        import pycocotools.cocoeval  # noqa: F401
    except ImportError as error:
        raise UsageError("mAP needs pycocotools: pip install 'graphprune[detection]'") from error


def mean_average_precision(data: DataSet, found: Sequence[Boxes], pictures: Sequence[Picture] | None = None) -> dict[str, float]:
    """COCO's mAP; objects that VOC calls difficult count as VOC counts them: not at all.

    Parameters
    ----------
    data
        What is annotated.
    found
        Boxes of each picture, in its pixels; labels are numbers of categories.
    pictures
        Pictures that ``found`` belongs to; all by default.

    Returns
    -------
    dict
        ``map50``: at an overlap of 0.5, ``map``: the mean over 0.5, 0.55, ..., 0.95; both over the classes that are annotated,
        with at most 100 boxes a picture and COCO's 101 levels of recall. 0 to 1.

    Raises
    ------
    UsageError
        pycocotools is not installed.
    """
    require()
    from pycocotools.coco import COCO

    pictures = data.pictures if pictures is None else pictures
    annotations: list[dict[str, Any]] = []
    for n, picture in enumerate(pictures, 1):
        for truth in picture.truths:
            left, top, right, bottom = truth.corners
            annotations.append({
                "id": len(annotations) + 1, "image_id": n, "category_id": truth.category, "area": truth.area,
                "bbox": [left, top, right - left, bottom - top], "iscrowd": int(truth.crowd or truth.difficult),
                "difficult": truth.difficult,
            })  # fmt: skip
    known = [n for n, boxes in enumerate(found) if len(boxes)]
    if not known:
        return {"map50": 0.0, "map": 0.0}
    rows = np.concatenate([_rows(n + 1, found[n]) for n in known])
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        truth = COCO()
        truth.dataset = {
            "info": {}, "images": [{"id": n} for n in range(1, len(pictures) + 1)], "annotations": annotations,
            "categories": [{"id": n, "name": name} for n, name in data.categories.items()],
        }  # fmt: skip
        truth.createIndex()
        evaluation = _evaluation(truth, truth.loadRes(rows))
        evaluation.evaluate()
        evaluation.accumulate()
    # [overlaps, recalls, classes, areas, numbers of boxes]; -1 where a class is not annotated.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    return {"map50": _mean(precision[0]), "map": _mean(precision)}


def _rows(number: int, boxes: Boxes) -> Any:
    """float64[n, 7]: picture, left, top, width, height, score, category."""
    size = boxes.corners[:, 2:] - boxes.corners[:, :2]
    columns = (np.full((len(boxes), 1), number), boxes.corners[:, :2], size, boxes.scores[:, None], boxes.labels[:, None])
    return np.concatenate(columns, axis=1).astype(np.float64)


def _mean(precision: Any) -> float:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else 0.0


def _evaluation(truth: Any, found: Any) -> Any:
    from pycocotools import mask
    from pycocotools.cocoeval import COCOeval

    difficult = {one["id"] for one in truth.dataset["annotations"] if one.get("difficult")}

    class Evaluation(COCOeval):  # type: ignore[misc]
        """COCO's, with VOC's difficult objects: left out as crowds are, but overlapped as objects are."""

        def computeIoU(self, image: int, category: int) -> Any:
            if not difficult:
                return super().computeIoU(image, category)
            truths, boxes = self._gts[image, category], self._dts[image, category]
            if not truths and not boxes:
                return []
            order = np.argsort([-box["score"] for box in boxes], kind="mergesort")[: self.params.maxDets[-1]]
            corners = [boxes[n]["bbox"] for n in order], [one["bbox"] for one in truths]
            return mask.iou(*corners, [int(one["iscrowd"] and one["id"] not in difficult) for one in truths])

    evaluation = Evaluation(truth, found, "bbox")
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
    evaluation.params.maxDets = [100]
    return evaluation
