"""Checkpoints: one safetensors file that is there as a whole or not at all; numbers that are no tensors stand in its header."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphprune.errors import OutputError, UsageError

_KEY = "graphprune"


def save(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
    """Write a checkpoint in place of the one before; a process that is killed meanwhile leaves that one.

    Raises
    ------
    OutputError
        The folder cannot be written to.
    """
    from safetensors.torch import save as packed

    # Tensors that share memory are written each on its own.
    own = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(packed(own, {_KEY: json.dumps(notes)}))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputError(f"the checkpoint {path} cannot be written: {error.strerror or error}") from error


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and notes of a checkpoint; None where there is none.

    Raises
    ------
    UsageError
        The file is no checkpoint, or damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            notes = json.loads((file.metadata() or {})[_KEY])
            return {name: file.get_tensor(name) for name in file.keys()}, notes  # noqa: SIM118 (no dict)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UsageError(
            f"{path} is no checkpoint of graphprune, or damaged ({error}): remove it, or give another folder"
        ) from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What an optimizer has gathered, as tensors by name and plain numbers."""
    tensors, numbers = {}, {}
    for index, entry in optimizer.state_dict()["state"].items():
        for key, value in entry.items():
            if isinstance(value, Tensor):
                tensors[f"{index}/{key}"] = value
            elif value is not None:
                numbers[f"{index}/{key}"] = value
    return tensors, numbers


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    """Put back what :func:`optimizer_tensors` gave."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **numbers}.items():
        index, _, key = name.partition("/")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
