"""How often Python looks for garbage while a model is worked on."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

#: Graphs are many small objects that live to the end: look through them seldom.
SELDOM = (50_000, 20, 100)


@contextlib.contextmanager
def seldom() -> Iterator[None]:
    """Look through all objects seldom inside, a twentieth of the time of a run otherwise; as the caller had it afterwards."""
    before = gc.get_threshold()
    if 0 < before[0] < SELDOM[0]:
        gc.set_threshold(*SELDOM)
    try:
        yield
    finally:
        gc.set_threshold(*before)
