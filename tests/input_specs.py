"""Inputs of models for the tests of calibration data."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from graphprune.data import InputSpec, Samples
from graphprune.inputs import Array

F32 = np.dtype(np.float32)
I64 = np.dtype(np.int64)
EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "digits"


def spec(name: str, dtype: object, *shape: int | str | None) -> InputSpec:
    return InputSpec(name, np.dtype(dtype), shape)  # type: ignore[call-overload]


def only(samples: Samples) -> list[Array]:
    """The arrays of a model with one input."""
    return [next(iter(feed.values())) for feed in samples]


IMAGE = spec("x", F32, "batch", 3, 32, 32)
