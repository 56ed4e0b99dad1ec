"""Where independent jobs run: in processes here, or on a Dask cluster. One seam for everything that can be fanned out.

A job is a plain value, the function a function of a module, the result plain data: so they travel to any worker. Results
come back as they are done. A worker that dies takes nothing with it: what it was doing is done again, and a job that
kills its worker again and again is named in the error.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

from graphprune.errors import GraphPruneError, UsageError

#: Times that a job is tried when its worker dies.
TRIES = 3
#: How many threads a worker's runtime may use, for :func:`graphprune.backends.ort.default_threads`.
THREADS = "GRAPHPRUNE_THREADS"

Function = Callable[[Any], Any]


class WorkerLostError(GraphPruneError):
    """A job whose worker died every time that it was tried."""


class Executor(Protocol):
    """Runs a function on many jobs."""

    def run(self, function: Function, jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Yield ``(index of the job, result)`` as jobs are done, each exactly once."""


class Here:
    """One job after the other, in this process."""

    def run(self, function: Function, jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        for n, job in enumerate(jobs):
            yield n, function(job)


class Processes:
    """Worker processes on this machine, which share its cores.

    Parameters
    ----------
    workers
        By default one for each core, eight at most.
    """

    def __init__(self, workers: int | None = None) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.workers = workers or min(cores, 8)
        self._threads = max(1, cores // self.workers)

    def run(self, function: Function, jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        deaths = [0] * len(jobs)
        left = set(range(len(jobs)))
        while left:
            # What ran when a worker died runs alone, so that the one to blame is known.
            suspects = sorted(n for n in left if deaths[n])
            running: dict[Future[Any], int] = {}
            pool_size = 1 if suspects else self.workers
            with self._pool(pool_size) as pool:
                try:
                    for n, result in _through(pool, function, jobs, suspects or sorted(left), running, pool_size):
                        left.discard(n)
                        deaths[n] = 0
                        yield n, result
                except BrokenProcessPool:
                    for n in running.values():
                        deaths[n] += 1
                        if deaths[n] >= TRIES:
                            raise WorkerLostError(
                                f"the worker process died {TRIES} times at {jobs[n]!r}: out of memory? try fewer workers "
                                "(--executor processes:1) or smaller --samples"
                            ) from None

    def _pool(self, workers: int) -> ProcessPoolExecutor:
        # Forking a process that has runtime threads can hang: workers start afresh.
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(self._threads,))


class Dask:
    """A Dask cluster: ``workers`` processes here, or one that runs elsewhere and sees the same files.

    Parameters
    ----------
    address
        Of the scheduler, such as ``tcp://host:8786``; None starts a cluster here.
    workers
        Processes of a cluster started here.
    """

    def __init__(self, address: str | None = None, workers: int = 2) -> None:
        self.address, self.workers = address, workers

    def run(self, function: Function, jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        try:
            from distributed import Client, LocalCluster, as_completed
        except ImportError as error:
            raise UsageError("--executor dask needs Dask: pip install 'graphprune[dask]'") from error
        from contextlib import ExitStack

        with ExitStack() as stack:
            try:
                if self.address is None:
                    cluster = stack.enter_context(
                        LocalCluster(n_workers=self.workers, threads_per_worker=1, processes=True, dashboard_address=None)
                    )
                    client = stack.enter_context(Client(cluster))
                else:
                    client = stack.enter_context(Client(self.address, timeout=10))
            except OSError as error:
                raise UsageError(f"--executor dask:{self.address}: no scheduler answers there ({error})") from error
            # What a lost worker was doing is done again by Dask itself; an error of a job is ours to raise.
            futures = {client.submit(function, job, pure=False, retries=TRIES - 1): n for n, job in enumerate(jobs)}
            for future in as_completed(list(futures)):
                yield futures[future], future.result()


def _through(
    pool: ProcessPoolExecutor, function: Function, jobs: Sequence[Any], order: Sequence[int],
    running: dict[Future[Any], int], most: int,
) -> Iterator[tuple[int, Any]]:  # fmt: skip
    """Jobs through one pool, ``most`` at a time: what dies with a worker is in ``running`` then."""
    waiting = list(reversed(order))
    while waiting or running:
        while waiting and len(running) < most:
            n = waiting.pop()
            running[pool.submit(function, jobs[n])] = n
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        # Finished results first: a death spoils only what was still running.
        for future in sorted(done, key=lambda f: isinstance(f.exception(), BrokenProcessPool)):
            result = future.result()
            yield running.pop(future), result


def _start(threads: int) -> None:
    """What every worker process does first."""
    os.environ[THREADS] = str(threads)


def executor(spec: str) -> Executor:
    """An executor from its name: ``here``, ``processes[:N]``, ``dask[:N]`` or ``dask:ADDRESS``.

    Raises
    ------
    UsageError
        None of these.
    """
    name, _, rest = spec.partition(":")
    if name == "here" and not rest:
        return Here()
    if name == "processes" and (not rest or (rest.isdigit() and int(rest) > 0)):
        return Processes(int(rest) if rest else None)
    if name == "dask":
        return Dask(workers=int(rest or 2)) if not rest or rest.isdigit() else Dask(rest)
    raise UsageError(f"--executor '{spec}': give here, processes, processes:N, dask:N or dask:ADDRESS (tcp://host:8786)")
