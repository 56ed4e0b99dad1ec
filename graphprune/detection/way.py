"""Everything that a file does not say of a detector, found out on annotated pictures: how it is fed and how it counts classes."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from graphprune.detection.boxes import EMPTY, Boxes, Picking
from graphprune.detection.feeding import IN_WORDS, PIXELS, Feeder, Fit, Placed, place_back
from graphprune.detection.labelled import DataSet, Picture
from graphprune.detection.precision import mean_average_precision
from graphprune.detection.reading import Reader, reader
from graphprune.errors import DataError
from graphprune.inputs import Feed, is_float

#: Pictures on which a way is looked for.
TRIED = 12
#: What counts for mAP: every box that may be one, and every class of it.
EVERYTHING = Picking(score=0.001, most=300, overlap=0.7, every_class=True)
#: Coordinates of the best boxes up to which they are shares of the input's sides, not pixels.
SHARES = 2.0
#: By how much mAP50 of another way must be higher than that of a more usual one.
BETTER = 0.01
#: Names that VOC and COCO give the same things.
_SAME = {
    "aeroplane": "airplane", "motorbike": "motorcycle", "diningtable": "dining table", "pottedplant": "potted plant",
    "sofa": "couch", "tvmonitor": "tv",
}  # fmt: skip

Run = Callable[[Feed], Mapping[str, Any]]
Numbering = Literal["name", "order", "shifted", "id"]


@dataclass(frozen=True)
class Asked:
    """What a user says of ``--eval coco:PATH{...}`` or ``voc:PATH{...}``; what is left out is found out.

    Parameters
    ----------
    split
        Part of the data set, where PATH holds several.
    samples
        Pictures to judge on, evenly spaced; all by default.
    size
        Side of the input, or [height, width], where the model leaves them open. Default 640.
    fit
        ``letterbox`` (grey around), ``corner`` (grey below or to the right) or ``stretch``.
    pixels
        ``unit`` (0 to 1), ``imagenet`` (its mean and std), ``byte`` (0 to 255), ``sign`` (-1 to 1) or ``caffe`` (means taken off).
    mean, std
        Instead of ``pixels``: per channel in the order of ``channels``, for pixels of 0..1 (or of 0..255, when any is above 2).
    channels
        ``rgb`` or ``bgr``.
    classes
        The model's classes are the data set's categories by ``name`` (of the file's metadata), by ``order``, ``shifted`` (0 is the
        background), or by ``id`` (they are the data set's own numbers).
    overlap
        Of two boxes of a class that overlap by more the better one counts, where the model does not suppress them itself.
    """

    split: str = ""
    samples: int | None = None
    size: int | tuple[int, int] | None = None
    fit: Fit | None = None
    pixels: Literal["unit", "imagenet", "byte", "sign", "caffe"] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channels: Literal["rgb", "bgr"] | None = None
    classes: Numbering | None = None
    overlap: float = EVERYTHING.overlap

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"samples={self.samples} must be 1 or more")
        if self.pixels is not None and (self.mean is not None or self.std is not None):
            raise ValueError("mean and std say what pixels are: give one of both")
        if self.std is not None and min(self.std, default=0) <= 0:
            raise ValueError("std must be above 0")
        if self.size is not None and min(self.sides or (0,)) < 1:
            raise ValueError(f"size={self.size}: give a side, or [height,width]")
        if not 0 < self.overlap <= 1:
            raise ValueError(f"overlap={self.overlap:g} is outside (0, 1]")

    @property
    def sides(self) -> tuple[int, int] | None:
        """Height and width."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


@dataclass(frozen=True)
class Way:
    """How one detector is fed, read and understood; found on the source and used for what is made of it.

    Attributes
    ----------
    feeder, reader
        How pictures go in, and how boxes come out.
    normalised, rows_first
        Of corners: see :func:`graphprune.detection.feeding.place_back`.
    classes
        Label of the model -> number of the data set's category; boxes of other labels do not count.
    words
        What was assumed, in one line.
    """

    feeder: Feeder
    reader: Reader
    normalised: bool
    rows_first: bool
    classes: Mapping[int, int]
    words: str

    def found(self, run: Run, pictures: Sequence[Picture], how: Picking = EVERYTHING) -> list[Boxes]:
        """Boxes of each picture in its own pixels, labelled by the data set's categories."""
        out: list[Boxes] = []
        for feed, placed in _feeds(self.feeder, pictures):
            out.extend(self.understood(self.reader.read(run(feed), how), placed))
        return out

    def understood(self, read: Sequence[Boxes], placed: Sequence[Placed]) -> list[Boxes]:
        """Boxes as read -> in each picture's pixels, by category."""
        out = []
        for boxes, place in itertools.zip_longest(read[: len(placed)], placed, fillvalue=EMPTY):
            assert isinstance(boxes, Boxes) and isinstance(place, Placed)
            boxes = boxes.take(np.isin(boxes.labels, list(self.classes)))
            boxes = place_back(boxes, place, self.feeder.size, normalised=self.normalised, rows_first=self.rows_first)
            labels = np.array([self.classes[int(label)] for label in boxes.labels], np.int64)
            out.append(Boxes(boxes.corners, labels, boxes.scores))
        return out


def find_way(run: Run, plain: Feeder, data: DataSet, metadata: Mapping[str, str], asked: Asked) -> Way:
    """Of the ways in which a detector may be fed and understood, the one that finds most on a few pictures.

    Parameters
    ----------
    run
        The model.
    plain
        Its inputs and their size.
    metadata
        What the file says of itself; files by Ultralytics say how they are fed, and what their classes are called.

    Raises
    ------
    DataError
        Its outputs do not look like boxes.
    """
    seen = [picture for picture in data.pictures if any(not (t.crowd or t.difficult) for t in picture.truths)]
    pictures = evenly(seen or data.pictures, TRIED)
    best: Way | None = None
    reached, tried = -1.0, 0
    for way in first_ways(plain, metadata, asked):
        for understood, score in _understandings(run, way, data, pictures, metadata, asked):
            tried += 1
            if best is None or score > reached + BETTER:
                best, reached = understood, score
    if best is None:
        raise DataError(
            "--eval on pictures: what the model puts out does not look like boxes. Judge it by a function of your own, "
            "--eval MODULE:FUNCTION"
        )
    for fit in () if asked.fit is not None or from_ultralytics(metadata) else ("stretch", "corner"):
        for understood, score in _understandings(run, replace(best.feeder, fit=fit), data, pictures, metadata, asked):
            tried += 1
            if score > reached + BETTER:
                best, reached = understood, score
    judged = f", the best of {tried} ways on {len(pictures)} pictures (mAP50 {reached:.3g} there)" if tried > 1 else ""
    if reached <= 0:
        judged = f"; found nothing of what is annotated in {len(pictures)} pictures in any of {tried} ways: say how it is fed"
    return replace(best, words=best.words + judged)


def evenly(pictures: Sequence[Picture], most: int | None) -> Sequence[Picture]:
    """At most so many, evenly spaced: files in the order of their names may come in runs that are alike."""
    if most is None or len(pictures) <= most:
        return pictures
    return [pictures[n * len(pictures) // most] for n in range(most)]


def _feeds(feeder: Feeder, pictures: Sequence[Picture]) -> Iterator[tuple[Feed, list[Placed]]]:
    for n in range(0, len(pictures), feeder.batch):
        yield feeder.feed([picture.path for picture in pictures[n : n + feeder.batch]])


def from_ultralytics(metadata: Mapping[str, str]) -> bool:
    """Whether a file's metadata are those that Ultralytics writes: such files are all fed alike."""
    return {"stride", "names"} <= set(metadata)


def first_ways(plain: Feeder, metadata: Mapping[str, str], asked: Asked) -> list[Feeder]:
    """Feeders that differ in what is made of pixels, the usual ones first."""
    plain = replace(plain, fit=asked.fit or "letterbox")
    if not is_float(plain.image.dtype):
        given: list[Any] = [((0.0,), (1.0,))]
    elif asked.mean is not None or asked.std is not None:
        mean, std = asked.mean or (0.0,), asked.std or (1.0,)
        scale = 1.0 if max(map(abs, (*mean, *std))) > 2 else 255.0
        given = [(tuple(scale * v for v in mean), tuple(scale * v for v in std))]
    elif asked.pixels is not None:
        given = [PIXELS[asked.pixels]]
    else:
        given = [PIXELS["unit"]] if from_ultralytics(metadata) else list(PIXELS.values())
    channels = plain.image.size(plain.axes.channel) or 3
    fitting = [(mean, std) for mean, std in given if {len(mean), len(std)} <= {1, channels}]
    if not fitting:
        raise DataError(f"a mean or std of {max(map(len, given[0]))} channels was asked for; input {plain.image} has {channels}")
    orders = ("rgb",) if from_ultralytics(metadata) or channels != 3 else ("rgb", "bgr")
    if asked.channels is not None:
        orders = (asked.channels,)
    # Means that were given are in the order of the channels given.
    turned = asked.mean is not None or asked.std is not None
    return [
        replace(plain, mean=mean[::-1] if turned and order == "bgr" else mean, std=std[::-1] if turned and order == "bgr" else std,
                bgr=order == "bgr")
        for order in orders for mean, std in fitting
    ]  # fmt: skip


def _understandings(
    run: Run, feeder: Feeder, data: DataSet, pictures: Sequence[Picture], metadata: Mapping[str, str], asked: Asked
) -> Iterator[tuple[Way, float]]:
    """Ways to understand what comes out for one way to feed, each with its mAP50 on the pictures."""
    outputs, placed = [], []
    for feed, places in _feeds(feeder, pictures):
        outputs.append(run(feed))
        placed.append(places)
    how = reader(outputs)
    if how is None:
        return
    picking = replace(EVERYTHING, overlap=asked.overlap)
    read = [how.read(output, picking) for output in outputs]
    every = [boxes for many in read for boxes in many]
    normalised = in_shares(every)
    labels = sorted({int(label) for boxes in every for label in np.unique(boxes.labels)})
    for (said, classes), rows_first in itertools.product(_numberings(labels, data, metadata, asked.classes), (False, True)):
        words = f"{fed(feeder)}; {how}; classes {said}" + ("; boxes as top, left, bottom, right" if rows_first else "")
        way = Way(feeder, how, normalised, rows_first, classes, words)
        found = [boxes for many, places in zip(read, placed, strict=True) for boxes in way.understood(many, places)]
        yield way, mean_average_precision(data, found, pictures)["map50"]


def in_shares(read: Sequence[Boxes]) -> bool:
    """Whether corners are shares of the input's sides, by the better half of what was found."""
    clear = [boxes.corners[boxes.scores >= 0.5 * boxes.scores.max()] for boxes in read if len(boxes)]
    return bool(clear) and float(np.quantile(np.concatenate(clear), 0.99)) <= SHARES


def fed(feeder: Feeder) -> str:
    """How pictures go in, in words."""
    fits = {"letterbox": "fitted into the middle, grey around", "corner": "fitted to the top left, grey beside",
            "stretch": "stretched"}  # fmt: skip
    pixels = next((IN_WORDS[name] for name, (mean, std) in PIXELS.items() if (mean, std) == (feeder.mean, feeder.std)), None)
    if pixels is None:
        pixels = f"(pixels - {', '.join(f'{v:g}' for v in feeder.mean)}) / {', '.join(f'{v:g}' for v in feeder.std)}"
    height, width = feeder.size
    return f"pictures at {height}x{width} (height x width), {fits[feeder.fit]}, {'BGR' if feeder.bgr else 'RGB'}, {pixels}"


def model_names(metadata: Mapping[str, str]) -> dict[int, str]:
    """What a file calls its classes; empty where it does not."""
    for key in ("names", "classes", "class_names", "labels"):
        try:
            value = ast.literal_eval(metadata.get(key, ""))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(value, (list, tuple)):
            value = dict(enumerate(value))
        if isinstance(value, dict) and value and all(str(number).isdecimal() for number in value):
            return {int(number): str(name) for number, name in value.items()}
    return {}


def _plain(name: str) -> str:
    name = " ".join(name.lower().replace("_", " ").replace("-", " ").split())
    return _SAME.get(name, name)


def _numberings(
    labels: Sequence[int], data: DataSet, metadata: Mapping[str, str], asked: Numbering | None
) -> list[tuple[str, dict[int, int]]]:
    """Ways in which the model's class numbers may stand for the data set's categories, each in words."""
    numbers = list(data.categories)
    known = {_plain(name): number for number, name in data.categories.items()}
    named = {n: known[_plain(name)] for n, name in model_names(metadata).items() if _plain(name) in known}
    ways: dict[str, tuple[str, dict[int, int]]] = {
        "name": (f"by name, {len(named)} of {len(numbers)}", named),
        "order": ("in the data set's order", dict(enumerate(numbers))),
        "shifted": ("in the data set's order, 0 the background", dict(enumerate(numbers, 1))),
        "id": ("by the data set's own numbers", {number: number for number in numbers}),
    }
    if asked is not None:
        if asked == "name" and not named:
            raise DataError(f"classes=name: the file's metadata name none of the data set's classes ({', '.join(known)})")
        return [ways[asked]]
    if named:
        return [ways["name"]]
    del ways["name"]
    # Two that make the same of what the model gives are one.
    distinct: dict[tuple[int | None, ...], tuple[str, dict[int, int]]] = {}
    for said, classes in ways.values():
        distinct.setdefault(tuple(classes.get(label) for label in labels), (said, classes))
    return list(distinct.values())
