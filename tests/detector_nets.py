"""A detector whose answer is known: it finds the red, the green and the blue rectangle of a picture; and pictures for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from onnx import ModelProto, helper
from PIL import Image

from tests.patterns.build import F32, I64, Net

COLOURS = ("red", "green", "blue")
#: Anchors of a head, most of which find nothing.
ANCHORS = 64


def colour_detector(
    height: int = 64,
    width: int = 64,
    *,
    form: str = "raw",
    mean: tuple[float, ...] = (0.0, 0.0, 0.0),
    std: tuple[float, ...] = (1.0, 1.0, 1.0),
    bgr: bool = False,
    batch: int | str = 1,
    first: int = 0,
    metadata: dict[str, str] | None = None,
) -> ModelProto:
    """A network of 12 channels, half of them idle, in front of a search for coloured rectangles.

    Parameters
    ----------
    form
        What comes out: ``raw`` (YOLOv8's [n, 4 + 3, anchors], centre and size in pixels), ``rows`` (corners, score, class in
        [n, anchors, 6]), ``shares`` (top, left, bottom, right as shares in one output, scores and classes in others).
    mean, std, bgr
        How the picture must be fed: normalised pixels of 0..1.
    first
        Number of the class red.
    """
    g = Net()
    x = g.x(batch, 3, height, width)
    spread = np.zeros((12, 3, 1, 1), np.float32)
    for n in range(12):
        spread[n, n % 3] = 1.0 if n < 6 else 1e-3
    back = np.zeros((3, 12, 1, 1), np.float32)
    for n in range(6):
        back[n % 3, n] = 0.6 if n < 3 else 0.4  # halves alone would be taken for a pattern, not a weight
    y = g.Conv(x, g.f(spread, "spread.w"))
    y = g.Conv(y, g.f(back, "back.w"))
    y = g.Add(g.Mul(y, g.f(np.reshape(std, (1, 3, 1, 1)))), g.f(np.reshape(mean, (1, 3, 1, 1))))
    planes = list(g.Split(y, g.c([1, 1, 1]), axis=1, n=3))
    planes = planes[::-1] if bgr else planes
    found = []
    for n in range(3):
        others = g.Max(*(p for i, p in enumerate(planes) if i != n))
        mask = g.Cast(g.Greater(g.Sub(planes[n], others), g.f(0.4)), to=F32)
        ends = []
        for axis in (3, 2):
            line = g.ReduceMax(mask, axes=[5 - axis], keepdims=1)
            low = g.Cast(g.ArgMax(line, axis=axis, keepdims=1), to=F32)
            high = g.Cast(g.ArgMax(line, axis=axis, keepdims=1, select_last_index=1), to=F32)
            ends.append((low, g.Add(high, g.f(1))))
        # A picture is brighter than 1 only where it was fed otherwise than it should be.
        bright = g.ReduceMax(planes[n], axes=[2, 3], keepdims=1)
        score = g.Mul(g.ReduceMax(mask, axes=[2, 3], keepdims=1), g.Sub(g.f(0.9), g.Min(g.Abs(g.Sub(bright, g.f(1))), g.f(0.9))))
        found.append((*(e[0] for e in ends), *(e[1] for e in ends), score))
    corners = [g.reshape(g.Concat(*(one[k] for one in found), axis=1), -1, 1, 3) for k in range(5)]
    left, top, right, bottom, score = corners
    if form == "raw":
        half = g.f(0.5)
        box = [g.Mul(g.Add(left, right), half), g.Mul(g.Add(top, bottom), half), g.Sub(right, left), g.Sub(bottom, top)]
        scores = g.Mul(g.Expand(score, g.c([1, 3, 3])), g.f(np.eye(3)[None]))
        idle = np.tile(np.array([32, 32, 8, 8, 1e-4, 1e-4, 1e-4])[None, :, None], (1, 1, ANCHORS - 3))
        head = g.Concat(*box, scores, axis=1)
        blank = g.Expand(g.f(idle), g.Concat(g.slice(g.Shape(head), 0, 1, axis=0), g.c([7, ANCHORS - 3]), axis=0))
        g.out(g.Concat(head, blank, axis=2), "output0", dtype=F32, shape=[batch, 7, ANCHORS])
    elif form == "rows":
        names = g.Expand(g.f(np.arange(first, first + 3).reshape(1, 1, 3)), g.Shape(score))
        g.out(g.t(g.Concat(left, top, right, bottom, score, names, axis=1), 0, 2, 1), "output0", dtype=F32, shape=[batch, 3, 6])
    else:
        sides = [g.Div(side, g.f(size)) for side, size in ((top, height), (left, width), (bottom, height), (right, width))]
        g.out(g.t(g.Concat(*sides, axis=1), 0, 2, 1), "boxes", dtype=F32, shape=[batch, 3, 4])
        g.out(g.Squeeze(score, g.c([1])), "scores", dtype=F32, shape=[batch, 3])
        names = g.Expand(g.c(np.arange(first, first + 3)[None]), g.Shape("scores"))
        g.out(names, "classes", dtype=I64, shape=[batch, 3])
    model = g.model(opset=13)
    if metadata:
        helper.set_model_props(model, metadata)
    return model


def rectangles(n: int, height: int, width: int, seed: int = 0) -> list[tuple[np.ndarray, list[tuple[int, tuple[int, int, int, int]]]]]:
    """Pictures uint8[height, width, 3] with one rectangle of two or three colours each, and (colour, corners) of those."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        picture = rng.integers(0, 20, (height, width, 1)).repeat(3, axis=2).astype(np.uint8)
        objects = []
        third = width // 3
        for column, colour in enumerate(rng.permutation(3)[: rng.integers(2, 4)]):
            left = column * third + int(rng.integers(2, third // 3))
            right = (column + 1) * third - int(rng.integers(2, third // 3))
            top, bottom = int(rng.integers(2, height // 3)), int(rng.integers(height // 2, height - 2))
            picture[top:bottom, left:right] = 0
            picture[top:bottom, left:right, colour] = 255
            objects.append((int(colour), (left, top, right, bottom)))
        out.append((picture, objects))
    return out


def coco_folder(
    root: Path, n: int = 6, size: tuple[int, int] = (60, 90), *, images: str = "images", file: str = "annotations/instances_val.json",
    ids: tuple[int, ...] = (1, 2, 3), seed: int = 0,
) -> Path:  # fmt: skip
    """Pictures and COCO's annotations of them, in the layout asked for; returns the annotation file."""
    data: dict[str, list[dict[str, object]]] = {
        "images": [], "annotations": [], "categories": [{"id": i, "name": name} for i, name in zip(ids, COLOURS, strict=True)],
    }  # fmt: skip
    (root / images).mkdir(parents=True, exist_ok=True)
    for k, (picture, objects) in enumerate(rectangles(n, *size, seed=seed)):
        Image.fromarray(picture).save(root / images / f"{k:03}.png")
        data["images"].append({"id": 100 + k, "file_name": f"{k:03}.png", "height": size[0], "width": size[1]})
        for colour, (left, top, right, bottom) in objects:
            w, h = right - left, bottom - top
            data["annotations"].append({"id": len(data["annotations"]) + 1, "image_id": 100 + k, "category_id": ids[colour],
                                        "bbox": [left, top, w, h], "area": w * h, "iscrowd": 0})  # fmt: skip
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(data))
    return root / file


_OBJECT = (
    "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


def voc_folder(root: Path, n: int = 6, size: tuple[int, int] = (60, 90), *, difficult: str = "", lists: bool = True) -> Path:
    """The same as VOC has them: pixels counted from 1, the last one inside; objects of a colour may be difficult."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for k, (picture, objects) in enumerate(rectangles(n, *size)):
        Image.fromarray(picture).save(root / "JPEGImages" / f"{k:03}.png")
        words = "".join(
            _OBJECT.format(COLOURS[c], int(COLOURS[c] == difficult), left + 1, top + 1, right, bottom)
            for c, (left, top, right, bottom) in objects
        )
        text = f"<annotation><filename>{k:03}.png</filename>{words}</annotation>"
        (root / "Annotations" / f"{k:03}.xml").write_text(text)
    if lists:
        (root / "ImageSets/Main/val.txt").write_text("".join(f"{k:03}\n" for k in range(n)))
        (root / "ImageSets/Main/red_val.txt").write_text("".join(f"{k:03} 1\n" for k in range(n)))
    return root
