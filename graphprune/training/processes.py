"""Runs in several processes, as launchers start them; this module itself needs no torch."""

from __future__ import annotations

import os
from typing import Any


def is_main() -> bool:
    """Whether this process writes: the only one, or the first of those that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def on_cpu() -> bool:
    """Whether there is nothing faster. Accelerate wants to be told, or it leaves several processes on CPUs alone."""
    import torch

    return not torch.accelerator.is_available()


def device() -> Any:
    """The device that this process trains on."""
    from accelerate import PartialState

    return PartialState(cpu=on_cpu()).device
