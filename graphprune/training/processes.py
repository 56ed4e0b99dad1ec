"""Runs in several processes, as launchers start them; no torch needed to ask."""

from __future__ import annotations

import os


def is_main() -> bool:
    """Whether this process writes: the only one, or the first of those that a launcher started."""
    return os.environ.get("RANK", "0") == "0"
