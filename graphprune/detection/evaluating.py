"""``--eval coco:PATH`` and ``--eval voc:PATH``: mean average precision of a detector's file on annotated pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime as ort

from graphprune.calibration import input_specs
from graphprune.detection.feeding import SIDE, feeder
from graphprune.detection.labelled import read_coco, read_voc
from graphprune.detection.precision import mean_average_precision, require
from graphprune.detection.way import EVERYTHING, Asked, Run, Way, evenly, find_way
from graphprune.errors import UsageError
from graphprune.inputs import Feed
from graphprune.spec import instantiate, parse_pass_spec
from graphprune.timing import cores

_TARGET = re.compile(r"(coco|voc):([^{]*)(\{.*\})?", re.DOTALL)
_READERS = {"coco": read_coco, "voc": read_voc}


def is_target(text: str) -> bool:
    """Whether ``--eval`` names annotated pictures rather than a function."""
    return text.partition(":")[0] in _READERS


class Judge:
    """Judges files of one model and of what was made of it on annotated pictures.

    Parameters
    ----------
    target
        ``coco:PATH`` or ``voc:PATH``, with ``{option=value,...}`` of :class:`graphprune.detection.way.Asked` behind it.

    Raises
    ------
    UsageError
        Another target, an option that does not exist, or pycocotools is not there.
    DataError
        PATH holds no such annotations.
    """

    def __init__(self, target: str) -> None:
        match = _TARGET.fullmatch(target.strip())
        if match is None or not match[2].strip():
            raise UsageError(f"--eval '{target}': write coco:PATH or voc:PATH, options behind it as in coco:PATH{{fit=stretch}}")
        require()
        kind, path, options = match[1], match[2].strip(), match[3] or ""
        self.asked = instantiate(Asked, parse_pass_spec(kind + options).options, title=f"--eval {kind}")
        data = _READERS[kind](Path(path).expanduser(), self.asked.split)
        self.data = replace(data, pictures=tuple(evenly(data.pictures, self.asked.samples)))
        self._way: Way | None = None

    @property
    def words(self) -> str:
        """What was judged on and what was assumed, in one line; empty before the source was seen."""
        return "" if self._way is None else f"mAP on {self.data}: {self._way.words}"

    def learn(self, source: Path) -> Way:
        """How the source is fed and understood, looked for once."""
        if self._way is None:
            model = ir.load(source)
            metadata = dict(model.metadata_props)
            plain = feeder(input_specs(model), self.asked.sides or stated_sides(metadata))
            self._way = find_way(session(source), plain, self.data, metadata, self.asked)
        return self._way

    def __call__(self, path: Path) -> dict[str, float]:
        """``map50`` and ``map`` of a file, fed and understood as the source is."""
        assert self._way is not None, "learn() first"
        picking = replace(EVERYTHING, overlap=self.asked.overlap)
        return mean_average_precision(self.data, self._way.found(session(path), self.data.pictures, picking))


def session(path: Path) -> Run:
    """A file in ONNX Runtime as users run it: feed -> output name to array."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = cores()
    options.log_severity_level = 3
    loaded = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in loaded.get_outputs()]

    def run(feed: Feed) -> Mapping[str, Any]:
        return dict(zip(names, loaded.run(names, feed), strict=True))

    return run


def stated_sides(metadata: Mapping[str, str]) -> tuple[int, int]:
    """Height and width that a file says it was made for."""
    sizes = [int(size) for size in re.findall(r"\d+", metadata.get("imgsz", ""))]
    return (sizes[0], sizes[-1]) if sizes and min(sizes) > 0 else (SIDE, SIDE)
