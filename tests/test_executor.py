"""Where jobs run: the same results everywhere, and nothing lost when a worker dies."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from graphprune.errors import UsageError
from graphprune.executor import Dask, Executor, Here, Processes, WorkerLostError, executor


def square(n: int) -> int:
    return n * n


def dies_once(job: tuple[str, int]) -> int:
    """Kills its own worker the first time that job 3 comes by."""
    folder, n = job
    marker = Path(folder) / "died"
    if n == 3 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.01)
    return n * n


def dies_always(n: int) -> int:
    if n == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return n


def threads(_: int) -> str:
    return os.environ.get("GRAPHPRUNE_THREADS", "")


def raises(n: int) -> int:
    raise ValueError(f"job {n}")


def results(where: Executor, function: Any, jobs: list[Any]) -> list[Any]:
    found = list(where.run(function, jobs))
    assert sorted(n for n, _ in found) == list(range(len(jobs)))
    return [value for _, value in sorted(found)]


@pytest.fixture(scope="module")
def cluster() -> Any:
    distributed = pytest.importorskip("distributed", reason="pip install 'graphprune[dask]'")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        yield cluster


def test_everywhere_the_same(cluster: Any) -> None:
    jobs = list(range(7))
    wanted = [n * n for n in jobs]
    assert results(Here(), square, jobs) == wanted
    assert results(Processes(2), square, jobs) == wanted
    assert results(Dask(cluster.scheduler_address), square, jobs) == wanted


def test_workers_share_the_cores() -> None:
    cores = len(os.sched_getaffinity(0))
    assert results(Processes(cores), threads, [0]) == ["1"]
    assert results(Processes(1), threads, [0]) == [str(cores)]


def test_a_worker_lost_is_replaced_and_nothing_is_lost(tmp_path: Path) -> None:
    jobs = [(str(tmp_path), n) for n in range(8)]
    assert results(Processes(2), dies_once, jobs) == [n * n for n in range(8)]
    assert (tmp_path / "died").exists()


def test_a_worker_lost_on_a_cluster(cluster: Any, tmp_path: Path) -> None:
    jobs = [(str(tmp_path), n) for n in range(8)]
    assert results(Dask(cluster.scheduler_address), dies_once, jobs) == [n * n for n in range(8)]
    assert (tmp_path / "died").exists()


def test_a_job_that_always_kills_its_worker_is_named() -> None:
    found: list[int] = []
    with pytest.raises(WorkerLostError, match="died 3 times at 2"):
        found.extend(value for _, value in Processes(2).run(dies_always, [0, 1, 2, 3]))
    assert 2 not in found


def test_an_error_of_a_job_is_the_callers() -> None:
    with pytest.raises(ValueError, match="job 5"):
        list(Processes(1).run(raises, [5]))


def test_names() -> None:
    assert isinstance(executor("here"), Here)
    assert isinstance(executor("processes:3"), Processes) and executor("processes:3").workers == 3  # type: ignore[attr-defined]
    local, remote = executor("dask:4"), executor("dask:tcp://host:8786")
    assert isinstance(local, Dask) and (local.address, local.workers) == (None, 4)
    assert isinstance(remote, Dask) and remote.address == "tcp://host:8786"
    for wrong in ("ray", "processes:0", "processes:x", "here:2", ""):
        with pytest.raises(UsageError, match="--executor"):
            executor(wrong)
