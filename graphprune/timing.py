"""Latency of models against each other: in turns, so that what else the machine does hits all alike."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from graphprune.backends.runtimes.base import Engine, Feed
from graphprune.backends.runtimes.onnx_runtime import OnnxRuntime

Array = NDArray[np.float64]
#: Time that passes; or that the processor works for this program, which other programs do not lengthen.
Clock = Literal["wall", "cpu"]

#: Runs of each model that count, and those before that do not.
RUNS, WARM = 15, 3
#: MACs below which a network's time is mostly an operator's overhead; time for MACs above which widths are to blame.
SMALL, SLOW = 100_000_000, 1.25
#: Samples of a bootstrap, and the share of them that an interval holds.
DRAWS, CONFIDENCE = 2000, 0.95


def interleaved(models: Sequence[bytes | Path], feed: Mapping[str, Any], runs: int = RUNS) -> list[float]:
    """Median milliseconds of one run of each model in ONNX Runtime on all cores, turn by turn.

    Parameters
    ----------
    models
        Serialized models or paths, of the same inputs.
    feed
        Input name to array.
    """
    runtime, threads = OnnxRuntime(), cores()
    engines = [runtime.load(model, threads) for model in models]
    times = in_turns(engines, [feed] * len(engines), runs=runs)
    return [float(value) for value in np.median(times, axis=1)]


def advice(time: float, before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """What to do where less time was saved than MACs; None where there is nothing to say.

    Parameters
    ----------
    time
        Share of the source's time.
    before, after
        Costs as in a plan, ``macs`` among them.
    """
    if before.get("macs", 0) < SMALL or time < SLOW * (share := after["macs"] / before["macs"]):
        return None
    return (
        f"{time:.0%} of the time is left for {share:.0%} of the MACs: kernels are fastest at certain multiples of channels. "
        "--align auto keeps widths to them, --budget latency=0.5x chooses widths by measured times"
    )


def in_turns(
    engines: Sequence[Engine], feeds: Sequence[Feed], *, runs: int = RUNS, seconds: float | None = None, seed: int = 0,
    warm: int = WARM, clock: Clock = "wall",
) -> Array:  # fmt: skip
    """Milliseconds of every run, float64[models, rounds].

    Each round runs every model once, in an order drawn anew: what changes while it goes on (clock, heat, other
    programs) hits all models alike, and none always follows the same neighbour.

    Parameters
    ----------
    seconds
        Stop after this time, were ``runs`` not reached; at least three rounds are run.
    warm
        Rounds before those that count.
    clock
        ``cpu`` means what it says for one thread only: the times of several threads are added up.
    """
    now = time.perf_counter if clock == "wall" else time.process_time
    rng = np.random.default_rng(seed)
    rounds: list[Array] = []
    begun = time.perf_counter()
    for turn in range(warm + runs):
        taken = np.zeros(len(engines))
        for n in rng.permutation(len(engines)):
            start = now()
            engines[n].run(feeds[n])
            taken[n] = 1e3 * (now() - start)
        if turn >= warm:
            rounds.append(taken)
        if seconds is not None and len(rounds) >= 3 and time.perf_counter() - begun > seconds:
            break
    return np.stack(rounds, axis=1)


def median_interval(times: Array, seed: int = 0) -> tuple[float, float]:
    """Bounds between which the median lies with 95 % confidence, by bootstrap; ``times`` float64[rounds]."""
    picks = np.random.default_rng(seed).integers(len(times), size=(DRAWS, len(times)))
    return _bounds(np.median(times[picks], axis=1))


def ratio_interval(times: Array, base: Array, seed: int = 0, *, paired: bool = True) -> tuple[float, float]:
    """The same for the ratio of two medians.

    Parameters
    ----------
    times, base
        float64[rounds] each.
    paired
        Whether entry i of both comes from the same round; whole rounds are drawn then, so that what hit both
        cancels.
    """
    rng = np.random.default_rng(seed)
    picks = rng.integers(len(times), size=(DRAWS, len(times)))
    others = picks if paired else rng.integers(len(base), size=(DRAWS, len(base)))
    return _bounds(np.median(times[picks], axis=1) / np.median(base[others], axis=1))


def _bounds(values: Array) -> tuple[float, float]:
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def cores() -> int:
    """Processors that this process may use."""
    return len(_allowed()) or os.cpu_count() or 1


def _allowed() -> list[int]:
    get = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    return sorted(get(0)) if get is not None else []


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[list[int]]:
    """Keep this thread, and threads made meanwhile, on as many processors as there are threads.

    Yields
    ------
    list of int
        The processors; empty where the system cannot say.
    """
    before = _allowed()
    chosen = before[:threads]
    if chosen and len(chosen) < len(before):
        os.sched_setaffinity(0, chosen)
    try:
        yield chosen
    finally:
        if chosen and len(chosen) < len(before):
            os.sched_setaffinity(0, before)


def busy() -> float:
    """Programs that wanted a processor over the last minute, a processor of this machine; 0 where the system cannot say."""
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except (AttributeError, OSError):
        return 0.0


def machine() -> str:
    """The processor's name and how many of them there are: what times on disk hold for."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"
