"""Accuracy of a recogniser, text detector or direction classifier: functions for ``graphprune run --eval``.

    graphprune run ch_PP-OCRv4_rec_infer.onnx --pass l1 --budget macs=0.8 --eval benchmarks.ppocr.evaluate:lines
    python -m benchmarks.ppocr.evaluate lines MODEL.onnx ...
"""

from __future__ import annotations

import os
import sys
from functools import lru_cache

import numpy as np
import onnxruntime as ort

from benchmarks.ppocr import decode
from benchmarks.ppocr.boxes import Boxes, db_boxes, f1
from benchmarks.ppocr.directions import test_directions
from benchmarks.ppocr.files import model_path
from benchmarks.ppocr.lines import Lines, test_lines
from benchmarks.ppocr.pages import Pages, test_pages, to_input


def session(model: str) -> ort.InferenceSession:
    """An ONNX Runtime session; ``PPOCR_THREADS`` in the environment limits its threads."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = int(os.environ.get("PPOCR_THREADS", "0"))
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def read(model: str, lines: Lines, batch: int = 16) -> list[str]:
    """What a recogniser reads, a string per line."""
    run = session(model)
    characters = decode.alphabet(model)
    found = [""] * len(lines.texts)
    for indices, feed in lines.batches(batch):
        scores = run.run(None, {run.get_inputs()[0].name: feed})[0]
        for i, text in zip(indices, decode.ctc_greedy(scores, characters), strict=True):
            found[i] = text
    return found


def lines(model: str) -> dict[str, float]:
    """Shares of the 500 test lines and of their characters that a recogniser reads right.

    Parameters
    ----------
    model
        Path of an ONNX file: ``x`` float32[batch, 3, 48, width] -> probabilities float32[batch, steps, 6625].

    Returns
    -------
    dict
        ``lines right`` and ``characters right``, 0..1.
    """
    test = test_lines()
    return decode.rightness(read(model, test), test.texts)


def lines_quick(model: str) -> dict[str, float]:
    """As :func:`lines`, on the first 100 test lines of at most 256 pixels."""
    test = test_lines()
    short = [i for i, picture in enumerate(test.pictures) if picture.shape[1] <= 256][:100]
    test = Lines([test.pictures[i] for i in short], [test.texts[i] for i in short])
    return decode.rightness(read(model, test), test.texts)


def find_boxes(model: str, pages: Pages) -> list[Boxes]:
    """Boxes that a text detector finds, float64[n, 4] per scene."""
    run = session(model)
    name = run.get_inputs()[0].name
    return [db_boxes(run.run(None, {name: to_input(picture)[None]})[0][0, 0]) for picture in pages.pictures]


@lru_cache(maxsize=1)
def source_boxes() -> list[Boxes]:
    """What the uncut detector finds on the test scenes: computed once in a process, the same for every model."""
    return find_boxes(str(model_path("det")), test_pages())


def boxes(model: str) -> dict[str, float]:
    """F1 of the boxes that a text detector finds on the 24 test scenes, matched at IoU 0.5 or more.

    Parameters
    ----------
    model
        Path of an ONNX file: ``x`` float32[batch, 3, height, width] -> probabilities float32[batch, 1, height, width].

    Returns
    -------
    dict
        ``F1 to source``: against the boxes of the uncut detector; ``F1 to truth``: against the rendered lines. 0..1.
    """
    found = find_boxes(model, test_pages())
    return {"F1 to source": f1(found, source_boxes()), "F1 to truth": f1(found, test_pages().boxes)}


def directions(model: str) -> dict[str, float]:
    """Share of 500 lines, half of them upside down, of which a classifier tells the direction.

    Parameters
    ----------
    model
        Path of an ONNX file: ``x`` float32[batch, 3, 48, 192] -> probabilities float32[batch, 2] of 0 and 180 degrees.
    """
    feed, which = test_directions()
    run = session(model)
    name = run.get_inputs()[0].name
    told = [run.run(None, {name: feed[i : i + 50]})[0].argmax(axis=1) for i in range(0, len(feed), 50)]
    return {"directions right": float((np.concatenate(told) == which).mean())}


if __name__ == "__main__":
    for path in sys.argv[2:]:
        print(path, globals()[sys.argv[1]](path), flush=True)
