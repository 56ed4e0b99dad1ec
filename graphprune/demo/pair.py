"""Two detectors that look at the same pictures: boxes and times of both, in turns."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphprune.backends.runtimes.onnx_runtime import OnnxEngine, OnnxRuntime
from graphprune.calibration import input_specs
from graphprune.demo.pictures import Pictures
from graphprune.detection.boxes import CONFIDENT, Boxes, agreement
from graphprune.detection.evaluating import stated_sides
from graphprune.detection.feeding import Feeder, Placed, feeder, place_back
from graphprune.detection.reading import Reader, reader
from graphprune.detection.way import Asked, Run, fed, first_ways, in_shares, model_names
from graphprune.errors import DataError, GraphPruneError
from graphprune.frontends.onnx import load

if TYPE_CHECKING:
    from PIL import Image

Progress = Callable[[str, float], None]

#: Boxes below this score are not even sent to the page.
FAINT = 0.05
#: Pictures on which it is found out how the source is fed and read.
TRIED = 8
#: Pictures that a cut made on the spot is scored and fitted on, and what is kept of the multiply-accumulates.
FITTED, KEPT = 128, 0.5
#: Longest side of a picture on the page.
SHOWN = 1280
#: Runs of each model before the first that is shown: the first ones allocate.
WARM = 3


@dataclass(frozen=True)
class Eyes:
    """How a detector without annotated pictures is fed and read.

    Attributes
    ----------
    feeder, reader
        How pictures go in, and how boxes come out.
    normalised
        Corners are shares of the input's sides.
    names
        Class to name, as far as the file says.
    words
        What was assumed, in one line.
    """

    feeder: Feeder
    reader: Reader
    normalised: bool
    names: Mapping[int, str]
    words: str

    def found(self, outputs: Mapping[str, Any], placed: Sequence[Placed]) -> Boxes:
        """Boxes of the first picture of a feed, in its own pixels, best first."""
        missing = [name for name in self.reader.names if name not in outputs]
        if missing:
            raise DataError(f"CUT has no output '{missing[0]}', of which MODEL's boxes are read: is it cut from MODEL?")
        boxes = self.reader.read(outputs, replace(CONFIDENT, score=FAINT))
        return place_back(boxes[0], placed[0], self.feeder.size, normalised=self.normalised, rows_first=False)


def look(run: Run, plain: Feeder, metadata: Mapping[str, str], pictures: Sequence[Image.Image], asked: Asked) -> Eyes:
    """How a detector is fed: in the usual way, unless it finds nothing so and something in another.

    Raises
    ------
    DataError
        What it puts out does not look like boxes.
    """
    best: Eyes | None = None
    most, tried = -1.0, 0
    for way in first_ways(plain, metadata, asked):
        feeds = [way.feed([picture]) for picture in pictures]
        outputs = [run(feed) for feed, _ in feeds]
        how = reader(outputs)
        tried += 1
        if how is None:
            continue
        read = [boxes for output in outputs for boxes in how.read(output, CONFIDENT)[:1]]
        found = sum(float(boxes.scores.sum()) for boxes in read)
        if found > most:
            best, most = Eyes(way, how, in_shares(read), model_names(metadata), f"{fed(way)}; {how}"), found
        if found > 0:
            break
    if best is None:
        raise DataError(
            "what MODEL puts out does not look like boxes: the demo shows detectors whose files decode their boxes themselves"
        )
    said = f"; the first of {tried} ways in which it finds anything" if tried > 1 else ""
    if most <= 0:
        said = f"; found nothing in {len(pictures)} pictures in any of {tried} ways: say how it is fed"
    return replace(best, words=best.words + said)


class Pair:
    """A source and its cut before the same pictures.

    Parameters
    ----------
    source, cut
        ``.onnx`` files. Without a cut the source is cut here, to half of its MACs, fitted on the pictures themselves.
    asked
        What the user says of how it is fed.
    threads
        Of one operator.
    folder
        Where a cut made here may be kept.

    Raises
    ------
    DataError
        The files are no detector and its cut.
    ModelError
        The runtime refuses one.
    """

    def __init__(
        self, source: Path, cut: Path | None, pictures: Pictures, *, asked: Asked, threads: int, folder: Path, progress: Progress
    ) -> None:
        self.pictures, self.threads = pictures, threads
        progress("looking at the source", 0.0)
        model = load(source).model
        specs, metadata = input_specs(model), dict(model.metadata_props)
        runtime = OnnxRuntime()
        first = runtime.load(source, threads)
        seen = some(pictures, TRIED)
        self.eyes = look(first.outputs, feeder(specs, asked.sides or stated_sides(metadata)), metadata, seen, asked)
        self.made_here = cut is None
        if cut is None:
            cut = self._cut(source, folder, progress)
        else:
            _check_same(model, load(cut).model)
        self.files = (source, cut)
        self.engines: tuple[OnnxEngine, OnnxEngine] = (first, runtime.load(cut, threads))
        self.costs = tuple(self._costs(path) for path in self.files)
        self._rng = np.random.default_rng(0)
        feed, placed = self.eyes.feeder.feed(seen[:1])
        for engine in self.engines:
            for _ in range(WARM):
                outputs = engine.outputs(feed)
            self.eyes.found(outputs, placed)

    def about(self) -> dict[str, Any]:
        """Everything that stays the same, for the page."""
        models = [
            {"name": path.name, "bytes": path.stat().st_size, **costs} for path, costs in zip(self.files, self.costs, strict=True)
        ]
        return {
            "models": models, "pictures": self.pictures.name, "count": self.pictures.count, "rate": self.pictures.rate,
            "words": self.eyes.words, "threads": self.threads, "runtime": f"ONNX Runtime {OnnxRuntime().version}",
            "names": self.eyes.names, "made_here": self.made_here,
        }  # fmt: skip

    def show(self, number: int, score: float) -> dict[str, Any] | None:
        """One picture as both see it; None behind the last one.

        Returns
        -------
        dict
            ``picture`` (a data address), ``sides`` (of the source and the cut: ``boxes``, rows of left, top, right, bottom as
            shares of the picture, class and score; ``ms`` of the model alone), ``pairs`` (boxes from ``score`` on that both
            find), ``number``, ``count``.
        """
        picture = self.pictures.at(number)
        if picture is None:
            return None
        feed, placed = self.eyes.feeder.feed([picture])
        outputs: dict[int, Any] = {}
        took = [0.0, 0.0]
        # In an order drawn anew: neither always finds what the other left in the caches.
        for side in self._rng.permutation(2).tolist():
            start = time.perf_counter()
            outputs[side] = self.engines[side].outputs(feed)
            took[side] = 1e3 * (time.perf_counter() - start)
        both = [self.eyes.found(outputs[side], placed) for side in (0, 1)]
        clear = [boxes.take(boxes.scores >= score) for boxes in both]
        pairs = round(agreement([clear[:1]], [clear[1:]])["f1"] * sum(map(len, clear)) / 2)
        return {
            "number": number, "count": self.pictures.count, "picture": _address(picture), "pairs": pairs,
            "sides": [{"boxes": _rows(boxes, picture.size), "ms": ms} for boxes, ms in zip(both, took, strict=True)],
        }  # fmt: skip

    def _cut(self, source: Path, folder: Path, progress: Progress) -> Path:
        from graphprune.pipeline import prune

        feeds = [self.eyes.feeder.feed([picture])[0] for picture in some(self.pictures, FITTED)]
        data, target = folder / "pictures.npz", folder / f"{source.stem}.cut.onnx"
        if self.eyes.feeder.axes.batch is None:
            arrays = {name: np.stack([feed[name] for feed in feeds]) for name in feeds[0]}
        else:
            arrays = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
        np.savez(data, allow_pickle=False, **arrays)
        result = prune(
            source, passes=["obs", "recover"], budget=f"macs={KEPT}", data=data, samples=len(feeds), progress=progress,
        )  # fmt: skip
        result.save(target)
        return target

    def _costs(self, path: Path) -> dict[str, int]:
        """MACs and parameters; empty where they cannot be counted, as of operators that are not known here."""
        from graphprune.costs import CostModel
        from graphprune.pipeline import inspect

        image, axes = self.eyes.feeder.image, self.eyes.feeder.axes
        shape = [image.size(axis) or 1 for axis in range(len(image.shape))]
        shape[axes.height], shape[axes.width] = self.eyes.feeder.size
        shape[axes.channel] = image.size(axes.channel) or 3
        try:
            state = inspect(path, shapes={image.name: tuple(shape)})
            costs = CostModel(state.model, state.need_coupling(), state.need_facts()).price()
        except GraphPruneError:
            return {}
        return {"macs": costs.macs, "params": costs.params}


def some(pictures: Pictures, most: int) -> list[Image.Image]:
    """At most so many, evenly spaced where it is known how many there are, else the first ones."""
    count = pictures.count
    wanted = range(most) if count is None or count <= most else [n * count // most for n in range(most)]
    found = [picture for n in wanted if (picture := pictures.at(n)) is not None]
    if not found:
        raise DataError(f"{pictures.name}: there are no pictures in it")
    return found


def _check_same(source: ir.Model, cut: ir.Model) -> None:
    """What both take must be the same."""
    given, needed = ({spec.name: spec for spec in input_specs(model)} for model in (source, cut))
    for name in given.keys() | needed.keys():
        a, b = given.get(name), needed.get(name)
        if a is None or b is None or a.dtype != b.dtype or len(a.shape) != len(b.shape) or any(
            isinstance(p, int) and isinstance(q, int) and p != q for p, q in zip(a.shape, b.shape, strict=True)
        ):  # fmt: skip
            raise DataError(f"CUT takes {b or 'nothing'} where MODEL takes {a or 'nothing'}: is it cut from MODEL?")


def _rows(boxes: Boxes, size: tuple[int, int]) -> list[list[float]]:
    shares = boxes.corners / np.tile(size, 2)
    return [[*map(float, corners), int(label), float(score)]
            for corners, label, score in zip(shares, boxes.labels, boxes.scores, strict=True)]  # fmt: skip


def _address(picture: Image.Image) -> str:
    """A picture within a page, no larger than it is seen."""
    shown = picture.copy()
    shown.thumbnail((SHOWN, SHOWN))
    held = io.BytesIO()
    shown.save(held, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(held.getvalue()).decode()

