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


def interleaved(models: Sequence[bytes | Path], options: Mapping[str, Any], runs: int = RUNS) -> list[float]:
    """Median milliseconds of one run of each model in ONNX Runtime as it comes, one sample, turn by turn.

    Parameters
    ----------
    models
        Serialized models or paths, of the same inputs.
    options
        ``shapes`` for axes that the models leave open.
    """
    from graphprune.calibration import samples_for
    from graphprune.pipeline import inspect

    path = next((model for model in models if isinstance(model, Path)), None)
    state = inspect(path if path is not None else models[0], shapes=options.get("shapes") or {})
    feed = dict(next(iter(samples_for(state, n=1))))
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
            session.run(None, feed)
            if turn >= WARM:
                taken.append(1e3 * (time.perf_counter() - start))
    return [float(np.median(taken)) for taken in times]
