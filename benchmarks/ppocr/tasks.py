"""The three models: their calibration data, and how they are judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.ppocr import directions, evaluate, lines, pages


@dataclass(frozen=True)
class Task:
    """One model of PP-OCR.

    Attributes
    ----------
    model
        ``rec``, ``det`` or ``cls``.
    title
        For people.
    data
        Makes the calibration data where they are not there yet, and returns their path.
    judge, quick
        Path of an ONNX file -> name to figure, on the whole test set and on a part of it.
    figures
        The names, in the order of the table.
    """

    model: str
    title: str
    data: Callable[[], Path]
    judge: Callable[[str], dict[str, float]]
    quick: Callable[[str], dict[str, float]]
    figures: tuple[str, ...]


TASKS = {
    task.model: task
    for task in (
        Task("rec", "PP-OCRv4 recogniser", lines.calibration, evaluate.lines, evaluate.lines_quick,
             ("lines right", "characters right")),
        Task("det", "PP-OCRv4 text detector", pages.calibration, evaluate.boxes, evaluate.boxes,
             ("F1 to source", "F1 to truth")),
        Task("cls", "direction classifier", directions.calibration, evaluate.directions, evaluate.directions,
             ("directions right",)),
    )
}  # fmt: skip
