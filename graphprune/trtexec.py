"""What trtexec writes on a device: ``--exportTimes`` and ``--exportProfile``, read back.

Formats of TensorRT 8.2 to 10: times are a list of entries with ``latencyMs``, ``computeMs``, ``h2dMs``, ``d2hMs``; a profile
is a list of one ``{"count": N}`` and entries with ``name``, ``timeMs``, ``averageMs``, from 8.4 on ``medianMs`` too.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.backends.runtimes.base import LayerTime
from graphprune.errors import UsageError

_REFORMAT = ("Reformatting CopyNode", "reformat")


@dataclass(frozen=True)
class DeviceTimes:
    """One file of a device.

    Attributes
    ----------
    path
        The file.
    latency
        float64[n], milliseconds of one inference with its transfers; None in a profile without times.
    compute
        float64[n], those on the GPU alone.
    layers
        The engine's layers, where the file is a profile.
    """

    path: Path
    latency: NDArray[np.float64] | None = None
    compute: NDArray[np.float64] | None = None
    layers: list[LayerTime] = field(default_factory=list)


def is_device_file(path: str | Path) -> bool:
    """Whether a name is that of a JSON file."""
    return Path(path).suffix.lower() == ".json"


def read(path: str | Path) -> DeviceTimes:
    """Read either kind.

    Raises
    ------
    UsageError
        The file cannot be read, or is neither.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read '{path}': {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"'{path}' is not JSON, or was cut short ({error}): copy it from the device again") from error
    if isinstance(data, Mapping) and ("times" in data or "profile" in data):
        # What the script of a bundle writes holds the layers, and of the times a summary of the file beside it.
        rows = data.get("profile")
        layers = [_layer(path, row) for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
        beside = path.with_name("times.json")
        if not beside.exists():
            if layers:
                return DeviceTimes(path, layers=layers)
            raise UsageError(f"'{path}' is a summary: copy times.json, which lies beside it on the device, as well")
        return replace(read(beside), path=path, layers=layers)
    entries = [entry for entry in data if isinstance(entry, Mapping)] if isinstance(data, list) else []
    if entries and all("latencyMs" in entry for entry in entries):
        return DeviceTimes(path, _numbers(path, entries, "latencyMs"), _numbers(path, entries, "computeMs"))
    if entries and "count" in entries[0] and len(entries) > 1:
        return DeviceTimes(path, layers=[_layer(path, entry) for entry in entries[1:]])
    raise UsageError(
        f"'{path}' is neither what 'trtexec --exportTimes' writes (a list of entries with latencyMs) nor what "
        "'trtexec --exportProfile' writes (a count, then entries with name and averageMs)"
    )


def read_layers(path: str | Path) -> dict[str, list[str]]:
    """Layers of ``--exportLayerInfo`` -> the ONNX nodes that each is made of.

    With ``--profilingVerbosity=detailed`` a layer's ``Metadata`` lists them, ``[ONNX Layer: conv1]``, from TensorRT 8.6 on.

    Raises
    ------
    UsageError
        The file cannot be read, or is no such list.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read '{path}': {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"'{path}' is not JSON, or was cut short ({error}): copy it from the device again") from error
    rows = data.get("Layers") if isinstance(data, Mapping) else None
    if not isinstance(rows, list):
        raise UsageError(f"'{path}' is not what 'trtexec --exportLayerInfo' writes: an object with 'Layers'")
    detailed = [row for row in rows if isinstance(row, Mapping) and isinstance(row.get("Name"), str)]
    return {str(row["Name"]): re.findall(r"\[ONNX Layer: ([^\]]+)\]", str(row.get("Metadata", ""))) for row in detailed}


def _numbers(path: Path, entries: list[Mapping[str, Any]], key: str) -> NDArray[np.float64]:
    return np.asarray([_number(path, entry.get(key, entry["latencyMs"]), key) for entry in entries])


def _number(path: Path, value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise UsageError(f"'{path}': an entry's {key} is {value!r}, which is no time: export it again on the device")
    return float(value)


def _layer(path: Path, entry: Mapping[str, Any]) -> LayerTime:
    if not isinstance(entry.get("name"), str) or "averageMs" not in entry:
        raise UsageError(f"'{path}': an entry of the profile lacks name or averageMs: export it again on the device")
    average = _number(path, entry["averageMs"], "averageMs")
    # TensorRT 8.2 writes averages alone.
    middle = _number(path, entry.get("medianMs", average), "medianMs")
    name = str(entry["name"])
    layout = any(word.lower() in name.lower() for word in _REFORMAT)
    return LayerTime(name, "Reformat" if layout else "", middle, min(middle, average), layout)
