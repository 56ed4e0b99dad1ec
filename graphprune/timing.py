"""Latency of models against each other: in turns, so that what else the machine does hits all alike."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

#: Runs of each model that count, and those before that do not.
RUNS, WARM = 15, 3


def interleaved(models: Sequence[bytes | Path], feed: Mapping[str, Any], runs: int = RUNS) -> list[float]:
    """Median milliseconds of one run of each model in ONNX Runtime as it comes, turn by turn.

    Parameters
    ----------
    models
        Serialized models or paths, of the same inputs.
    feed
        Input name to array.
    """
    sessions = []
    for model in models:
        settings = ort.SessionOptions()
        settings.log_severity_level = 4
        source = model if isinstance(model, bytes) else str(model)
        sessions.append(ort.InferenceSession(source, settings, providers=["CPUExecutionProvider"]))
    times: list[list[float]] = [[] for _ in models]
    for turn in range(WARM + runs):
        for session, taken in zip(sessions, times, strict=True):
            start = time.perf_counter()
            session.run(None, dict(feed))
            if turn >= WARM:
                taken.append(1e3 * (time.perf_counter() - start))
    return [float(np.median(taken)) for taken in times]
