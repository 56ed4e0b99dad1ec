"""Stored inputs and outputs, in the element types and byte order that trtexec reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphprune.devices import Target
from graphprune.facts import Array

#: Allowed difference from ONNX Runtime's float32 on the device, relative to each output's maximum, by precision.
TOLERANCE = {"fp32": 5e-3, "fp16": 2e-2, "int8": 1e-1, "best": 1e-1}


@dataclass(frozen=True)
class Stored:
    """One array in a file of a bundle."""

    name: str
    file: str
    data: bytes
    dtype: str
    shape: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """As ``bundle.json`` has it."""
        return {"name": self.name, "file": self.file, "dtype": self.dtype, "shape": list(self.shape)}


def as_binding(array: Array, target: Target) -> Array:
    """An array as an engine takes it: before TensorRT 10 int64 is int32, and no TensorRT has float64."""
    if array.dtype == np.int64 and target.tensorrt < (10,):
        limits = np.iinfo(np.int32)
        return array.clip(limits.min, limits.max).astype(np.int32)
    if array.dtype == np.float64:
        return array.astype(np.float32)
    return array


def store(arrays: Mapping[str, Array], prefix: str, target: Target) -> list[Stored]:
    """Arrays by name as files ``references/<prefix>_<number>.bin``."""
    found = []
    for number, (name, array) in enumerate(arrays.items()):
        bound = np.ascontiguousarray(as_binding(array, target))
        little = bound.astype(bound.dtype.newbyteorder("<"), copy=False)
        file = f"references/{prefix}_{number}.bin"
        found.append(Stored(name, file, little.tobytes(), bound.dtype.name, tuple(array.shape)))
    return found
