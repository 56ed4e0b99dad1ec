"""Where the benchmark keeps its files, and what a file is worth; no torch needed."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

CACHE = Path(__file__).resolve().parents[1] / ".cache" / "recovery"

#: Trained networks that come with the repository.
SHIPPED = Path(__file__).resolve().parent / "weights"

#: ``NAME.bn.onnx`` and ``NAME.folded.onnx``.
FORMS = ("bn", "folded")

#: Number of unlabelled training images for recovery.
CALIBRATION = 512


def read(path: Path) -> dict[str, Any]:
    """A JSON file of entries by name; empty where there is none."""
    return json.loads(path.read_text()) if path.is_file() else {}


def note(path: Path, name: str, entry: dict[str, Any]) -> None:
    """Put ``entry`` under ``name`` into the JSON file ``path``: whole even if the run is stopped, by several runs in turn."""
    part = path.with_suffix(".part")
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        entries = read(path) | {name: entry}
        part.write_text(json.dumps(entries, indent=1) + "\n")
        part.replace(path)
    finally:
        os.close(folder)


def logits(model: str | Path | bytes, images: NDArray[np.float32], threads: int = 1, batch: int = 500) -> NDArray[np.float32]:
    """What ONNX Runtime gives for ``images``, float32[n, classes], ``batch`` at a time."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    source = model if isinstance(model, bytes) else str(model)
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    parts = [session.run(None, {name: images[i : i + batch]})[0] for i in range(0, len(images), batch)]
    return np.concatenate(parts)


def accuracy(
    model: str | Path | bytes, images: NDArray[np.float32], labels: NDArray[np.int64], threads: int = 1, batch: int = 500
) -> float:
    """Top-1 accuracy of an ONNX file in ONNX Runtime, in [0, 1]."""
    return float((logits(model, images, threads, batch).argmax(1) == labels).mean())
