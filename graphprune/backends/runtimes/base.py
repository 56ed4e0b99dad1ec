"""What a runtime must give to be timed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Feed = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class LayerTime:
    """One step of a runtime's own plan.

    Attributes
    ----------
    name
        The source model's node that it does, or the last of those it does; the runtime's own name where none is known.
    op
        Op type as the runtime calls it: ``Conv``, ``ReorderInput``, ``FullyConnected``.
    ms
        Milliseconds of one run: the median of several.
    least
        Milliseconds of the fastest run: what the step costs when nothing else disturbs the machine.
    layout
        Whether it only changes how a tensor lies in memory.
    """

    name: str
    op: str
    ms: float
    least: float
    layout: bool = False


class Engine(Protocol):
    """A loaded model."""

    def run(self, feed: Feed) -> None:
        """One inference, its outputs thrown away."""

    def close(self) -> None:
        """Give back what it holds."""


class Runtime(Protocol):
    """One runtime on one kind of device."""

    name: str

    @property
    def version(self) -> str:
        """Its version, as its maker writes it."""

    @property
    def device(self) -> str:
        """What it runs on: ``cpu``, ``gpu``."""

    def load(self, model: bytes | Path, threads: int) -> Engine:
        """Make a model ready to run on so many threads, at the runtime's own best optimisation level.

        Raises
        ------
        ModelError
            The runtime refuses it; the message names the node where the runtime does.
        """

    def profile(
        self, model: bytes | Path, feed: Feed, threads: int, runs: int, *, named: bool = True
    ) -> list[LayerTime]:
        """Times of single steps, in the order in which they run.

        Parameters
        ----------
        named
            Whether steps are called as the source's nodes, which may take longer to find out.

        Raises
        ------
        ModelError
            As in :meth:`load`.
        """
