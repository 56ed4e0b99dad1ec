"""What a device was measured to take, kernel by kernel, kept on disk: it corrects the roofline of that device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graphprune import cache
from graphprune.devices import Target

#: Raised when kernels, or their times, come to mean something else.
KIND = 1


@dataclass(frozen=True)
class Calibration:
    """Times of one device at one precision.

    Attributes
    ----------
    ms
        Signature of a kernel -> milliseconds as profiled.
    scale
        What the device takes for all of them, as a share of the roofline.
    """

    ms: Mapping[str, float]
    scale: float


def _name(target: Target) -> str:
    return f"{target.device.name}-{target.width_precision}"


def load(target: Target) -> Calibration | None:
    """What is known of a device; None where nothing is."""
    kept = cache.load("calibration", _name(target))
    rows = kept.get("kernels") if isinstance(kept, dict) and kept.get("kind") == KIND else None
    if not isinstance(rows, dict) or not rows:
        return None
    ms = {name: float(row["ms"]) for name, row in rows.items()}
    return Calibration(ms, sum(ms.values()) / sum(float(row["roofline_ms"]) for row in rows.values()))


def store(target: Target, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Add kernels (``op``, ``ms``, ``roofline_ms`` by signature) to what is known of a device; where it lies."""
    kept = cache.load("calibration", _name(target))
    known = kept.get("kernels", {}) if isinstance(kept, dict) and kept.get("kind") == KIND else {}
    cache.store("calibration", _name(target), {"kind": KIND, "device": str(target), "kernels": {**known, **rows}})
    return str(cache.folder() / "calibration" / f"{_name(target)}.json")
