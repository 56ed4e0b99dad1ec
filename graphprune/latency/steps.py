"""Times of single layers at a few widths, measured in the runtime and kept on disk."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphprune import cache, timing
from graphprune.backends.runtimes import Runtime
from graphprune.latency.layers import Micro

Array = NDArray[np.float64]
#: Raised when what is measured, or how, changes: times on disk are of one kind only.
KIND = 2
#: Widths of each dimension, as shares of the source's, by how many dimensions change.
SHARES = {1: (0.1, 0.25, 0.4, 0.55, 0.7, 0.85), 2: (0.1, 0.35, 0.65), 3: (0.2, 0.6)}
#: Milliseconds that a point is measured for about, and bounds of its runs.
_SPENT, _FEWEST, _MOST = 20.0, 3, 30
#: Steps of a staircase that are looked for, and how much of the time widths on a step may waste.
STEPS, WASTE = (1, 2, 4, 8, 16, 32), 0.03


@dataclass(frozen=True)
class Table:
    """A layer's times on a grid of widths.

    Attributes
    ----------
    grid
        For each dimension the sizes measured, ascending; the last is the source's.
    ms
        float64[len(grid[0]), ...].
    """

    grid: tuple[tuple[int, ...], ...]
    ms: Array

    @property
    def full(self) -> float:
        """Time at the source's widths."""
        return float(self.ms[(-1,) * self.ms.ndim])


class Bench:
    """Times layers in one runtime on this machine; each point once, ever.

    Parameters
    ----------
    runtime, threads
        Where, and on how many threads.
    """

    def __init__(self, runtime: Runtime, threads: int) -> None:
        self._runtime = runtime
        self._threads = threads
        self._place = f"{KIND} {runtime.name} {runtime.version} {runtime.device} {timing.machine()} {threads}"
        #: Points measured now, and those that were on disk.
        self.measured = self.known = 0

    def table(self, micro: Micro, step: int) -> Table:
        """A layer's times on its grid.

        Raises
        ------
        GraphPruneError
            The runtime refuses it.
        """
        dims = micro.layer.dims
        grid = tuple(grid_of(full, SHARES[len(dims)], step) for full, _ in dims)
        times = self.points(micro, list(itertools.product(*grid)))
        return Table(grid, calmed(np.asarray(times).reshape([len(sizes) for sizes in grid])))

    def points(self, micro: Micro, wanted: Sequence[tuple[int, ...]]) -> list[float]:
        """Milliseconds at some widths, one entry a dimension each."""
        name = hashlib.sha256(json.dumps([self._place, micro.signature()]).encode()).hexdigest()[:32]
        kept = cache.load("layers", name)
        times: dict[str, float] = dict(kept["ms"]) if isinstance(kept, dict) and isinstance(kept.get("ms"), dict) else {}
        missing = [sizes for sizes in dict.fromkeys(wanted) if "x".join(map(str, sizes)) not in times]
        self.known += len(set(wanted)) - len(missing)
        for sizes in missing:
            times["x".join(map(str, sizes))] = self._time(micro, sizes)
            self.measured += 1
        if missing:
            cache.store("layers", name, {"where": self._place, "op": micro.layer.node.op_type, "ms": times})
        return [times["x".join(map(str, sizes))] for sizes in wanted]

    def _time(self, micro: Micro, sizes: tuple[int, ...]) -> float:
        """The fastest of some runs: what the layer costs when nothing disturbs it. Changes of layout are left out."""
        model, feed = micro.build(sizes)
        first = self._sum(model, feed, _FEWEST)
        runs = int(np.clip(_SPENT / max(first, 1e-3), 0, _MOST)) - _FEWEST
        return min(first, self._sum(model, feed, runs)) if runs > 0 else first

    def _sum(self, model: bytes, feed: dict[str, NDArray[np.float64]], runs: int) -> float:
        layers = self._runtime.profile(model, feed, self._threads, runs, named=False)
        return sum(layer.least for layer in layers if not layer.layout)


def calmed(ms: Array) -> Array:
    """Times in which no narrower layer takes longer than a wider one: what disturbs a measurement only ever lengthens it."""
    for axis in range(ms.ndim):
        ms = np.flip(np.minimum.accumulate(np.flip(ms, axis), axis=axis), axis)
    return ms


def grid_of(full: int, shares: Sequence[float], step: int) -> tuple[int, ...]:
    """Sizes to measure a width of ``full`` at: multiples of the step, and the source's own."""
    if full <= 2 * step:
        step = 1
    return tuple(sorted({min(full, -(-max(round(full * share), 1) // step) * step) for share in shares} | {full}))


def find_step(time: Callable[[Sequence[int]], Sequence[float]], full: int) -> int:
    """The smallest step whose multiples waste next to nothing.

    Parameters
    ----------
    time
        Milliseconds at some widths.
    full
        Largest width that may be asked.

    Returns
    -------
    int
        1 where every width costs what it computes, or where ``full`` is too small to tell.
    """
    largest = STEPS[-1]
    if full < 2 * largest:
        return 1
    # Where layers are narrow a step shows most.
    widths = np.arange(largest, 2 * largest + 1)
    # A multiple of the largest step is as good as any width near it: between two of them lies the curve to be met.
    times = np.log(np.maximum(np.asarray(time(widths.tolist()), np.float64), 1e-12))
    curve = np.interp(np.log(widths), np.log(widths[[0, -1]]), times[[0, -1]])
    excess = np.exp(times - curve) - 1
    for step in STEPS[:-1]:
        if excess[::step].mean() <= WASTE and excess[::step].max() <= 3 * WASTE:
            return step
    return largest


def interpolate(table: Table, sizes: Array, step: int) -> float:
    """Milliseconds at widths between those measured: rounded up to the step, then linear in each."""
    value = table.ms
    for grid, size in zip(reversed(table.grid), sizes[::-1], strict=True):
        full = grid[-1]
        if full > 2 * step:
            size = min(full, -(-size // step) * step)
        axis = np.asarray(grid, np.float64)
        if len(axis) == 1:
            value = value[..., 0]
            continue
        at = int(np.clip(np.searchsorted(axis, size) - 1, 0, len(axis) - 2))
        share = float(np.clip((size - axis[at]) / (axis[at + 1] - axis[at]), -0.5, 1.0))
        value = value[..., at] * (1 - share) + value[..., at + 1] * share
    return max(float(value), 0.0)
