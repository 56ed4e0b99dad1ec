"""The Plan: for every tensor of the source file, the indices that are kept. Schema 1, JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from graphprune.errors import UsageError

SCHEMA = 1
#: Key in ``Value.meta`` of constants that are no tensors of the source file; plans leave them out.
DERIVED = "graphprune.derived"
#: Key in ``Value.meta`` of a torch module's own tensors: whether it is a parameter (a buffer else).
TRAINED = "graphprune.trained"


@dataclass
class Plan:
    """What was decided, and what was found; see ``docs/plan.md`` for every key.

    Attributes
    ----------
    tensors
        Source tensor name -> ``{"shape": [...], "kept": {"axis": [indices]}}``, cut axes only.
    groups, frozen, verify, before, after, options, source
        As in the file.
    """

    source: dict[str, Any]
    options: dict[str, Any]
    before: dict[str, float]
    after: dict[str, float]
    tensors: dict[str, dict[str, Any]] = field(default_factory=dict)
    groups: list[dict[str, Any]] = field(default_factory=list)
    frozen: list[dict[str, Any]] = field(default_factory=list)
    verify: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    scores: dict[str, Any] = field(default_factory=dict)
    recovery: dict[str, Any] = field(default_factory=dict)
    fidelity: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    sparsify: dict[str, Any] = field(default_factory=dict)
    quantize: dict[str, Any] = field(default_factory=dict)
    stages: list[dict[str, Any]] = field(default_factory=list)
    graphprune: str = ""
    schema: int = SCHEMA

    @property
    def unrecovered(self) -> dict[str, Any]:
        """Fidelity before the last recovery, on the samples of ``fidelity``; empty where there was none."""
        last = self.recovery.get("distill") or self.recovery
        found = (last.get("fidelity") or {}).get("before") or {}
        return dict(found)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON data."""
        keys = ("schema", "graphprune", "source", "options", "before", "after", "tensors", "groups", "frozen",
                "verify", "notes", "scores", "recovery", "fidelity", "attributes")  # fmt: skip
        later = ("sparsify", "quantize", "stages")
        return {key: getattr(self, key) for key in (*keys, *(key for key in later if getattr(self, key)))}

    def dumps(self) -> str:
        """The plan as JSON text."""
        return json.dumps(self.to_json(), default=_plain, separators=(",", ":")) + "\n"

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "plan") -> Plan:
        """Read a plan.

        Raises
        ------
        UsageError
            For another schema or missing keys.
        """
        if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, Mapping) else type(data).__name__
            raise UsageError(f"{where} is not a plan of schema {SCHEMA} (found {found!r})")
        required = ("source", "options", "before", "after", "tensors")
        missing = [key for key in required if not isinstance(data.get(key), Mapping)]
        if missing:
            raise UsageError(f"{where} lacks {', '.join(missing)}")
        for name, entry in data["tensors"].items():
            if not _is_entry(entry):
                raise UsageError(
                    f"{where}: the entry of tensor '{name}' is damaged: it must hold its 'shape', a list of sizes, and "
                    "'kept', axis -> list of indices"
                )
        shapes = data["options"].get("shapes", {})
        if not (isinstance(shapes, Mapping) and all(map(_is_indices, shapes.values()))):
            raise UsageError(f"{where}: 'shapes' in its options is damaged: it must be input name -> list of sizes")
        optional = ("groups", "frozen", "verify", "notes", "scores", "recovery", "fidelity", "attributes", "graphprune",
                    "sparsify", "quantize", "stages")  # fmt: skip
        keys = {key: data[key] for key in (*required, *optional) if key in data}
        return cls(**keys)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan file."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(
                f"no plan at {path} ({error.strerror}): 'graphprune run' writes it beside the model"
            ) from error
        except (ValueError, RecursionError) as error:
            raise UsageError(
                f"{path} is no plan, it is not JSON or was cut short ({error}): 'graphprune run' writes it beside "
                "the model"
            ) from error
        return cls.from_json(data, str(path))


def plan_path(model_path: str | os.PathLike[str]) -> Path:
    """Where the plan of ``out.onnx`` lies: ``out.plan.json``."""
    path = Path(model_path)
    return path.with_name((path.stem if path.suffix in (".onnx", ".safetensors", ".xml") else path.name) + ".plan.json")


def _is_indices(value: Any) -> bool:
    """Whether it is a list of whole numbers that arrays can be indexed with."""
    return isinstance(value, list) and all(type(item) is int and abs(item) < 1 << 62 for item in value)


def _is_entry(entry: Any) -> bool:
    """Whether it is one of ``tensors``: a shape, and kept indices of some of its axes."""
    if not (isinstance(entry, Mapping) and _is_indices(entry.get("shape")) and isinstance(entry.get("kept"), Mapping)):
        return False
    axes = {str(axis) for axis in range(len(entry["shape"]))}
    return set(entry["kept"]) <= axes and all(map(_is_indices, entry["kept"].values()))


def _plain(value: Any) -> Any:
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, np.floating):
        return float(value)
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.bool_):
        return bool(value)
    raise TypeError(f"{type(value)} in a plan")
