"""Break model files by seed and count what happens.

    python benchmarks/fuzz.py --count 5000 --stage load
    python benchmarks/fuzz.py --count 5000 --stage run --pass l1

Every mutant is a real file (``--corpus``, by default what the onnx package and this repository ship, and a
few small networks built here) with one to three faults: flipped or missing bytes, or a change of one field of
the message that keeps the rest valid. It is loaded and written (``load``), or cut and saved (``run``), in a
worker process under a limit of time and memory. Allowed ends: it works, or one `GraphPruneError`. A traceback,
a hang, a crash, a memory blow-up, a changed source or a file left behind is a failure, and is printed with its
seed; ``--only SEED --keep FOLDER`` writes that mutant.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from fuzz_corpus import DATA_NAME, cheap, choose, corpus
from fuzz_mutations import mutate

OK, CLEAN = "ok", "clean error"
MAX_ADDRESS_SPACE = 12 << 30
MAX_RESIDENT = 1_500_000_000
"""Bytes a worker may add to its peak resident memory during one mutant."""

Seeds = list[tuple[str, bytes, bytes | None]]


def starting_files(options: argparse.Namespace) -> Seeds:
    """The files to start from."""
    seeds = corpus(options.corpus)
    return seeds if options.stage == "load" or options.corpus else cheap(seeds)


def write_mutant(seeds: Seeds, seed: int, folder: Path, stage: str) -> Path:
    """Write mutant number ``seed`` and its external data to ``folder``; return the model file."""
    rng = random.Random(seed)
    _, model, data = choose(seeds, rng)
    path = folder / "mutant.onnx"
    path.write_bytes(mutate(model, rng, gentle=stage == "run"))
    if data is not None and rng.random() > 0.05:
        cut = rng.randrange(len(data)) if rng.random() < 0.1 else len(data)
        (folder / DATA_NAME).write_bytes(data[:cut])
    return path


def attempt(path: Path, stage: str, pass_name: str) -> None:
    """Do what is tested: raise what it raises."""
    if stage == "load":
        from graphprune.backends.onnx import save
        from graphprune.frontends.onnx import check_finite, load

        loaded = load(path)
        check_finite(loaded.model)
        save(loaded.model, path.parent / "out" / "out.onnx")
    else:
        import graphprune

        result = graphprune.prune(path, passes=[pass_name], rate=0.5)
        result.save(path.parent / "out" / "out.onnx")


def judge(seeds: Seeds, seed: int, stage: str, pass_name: str) -> dict[str, object]:
    """Make a mutant, try it, say how it ended."""
    from graphprune.errors import GraphPruneError

    with tempfile.TemporaryDirectory(prefix="fuzz") as name:
        folder = Path(name)
        path = write_mutant(seeds, seed, folder, stage)
        (folder / "out").mkdir()
        before = {file: file.read_bytes() for file in folder.iterdir() if file.is_file()}
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        status, text, where = OK, "", ""
        try:
            attempt(path, stage, pass_name)
        except GraphPruneError as error:
            status, text = CLEAN, str(error).replace(str(folder), "")
            if "\n" in text.strip() and stage == "load":
                status = "message of several lines"
        except MemoryError:
            status, text = "memory", "MemoryError"
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            own = [frame for frame in frames if "graphprune" in frame.filename] or list(frames)
            where = f"{Path(own[-1].filename).name}:{own[-1].lineno} {own[-1].name}"
            status, text = "traceback", f"{type(error).__name__}: {str(error)[:300]}"
        seconds = time.perf_counter() - start
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024
        if grown > MAX_RESIDENT:
            status, text = "memory", f"{grown / 1e9:.1f} GB more resident memory; {status}: {text}"
        left = [file for file in (folder / "out").iterdir() if status != OK or file.name.startswith(".")]
        if status == CLEAN and left:
            status, text = "file left behind", left[0].name
        if any(not file.exists() or file.read_bytes() != old for file, old in before.items()):
            status = "source changed"
    return {"seed": seed, "status": status, "text": text, "where": where, "seconds": seconds}


def work(options: argparse.Namespace) -> None:
    """Worker: read seeds from stdin, write verdicts to stdout."""
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESS_SPACE, MAX_ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Verdicts have a descriptor of their own: libraries may write what they like to stdout.
    verdicts = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    seeds = starting_files(options)
    for line in sys.stdin:
        verdict = judge(seeds, int(line), options.stage, options.pass_name)
        print(json.dumps(verdict), file=verdicts, flush=True)


@dataclass
class Tally:
    """Counts, and for failures where they happened and the first seeds."""

    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    messages: collections.Counter[str] = field(default_factory=collections.Counter)
    failures: dict[tuple[str, str, str], list[int]] = field(default_factory=dict)
    slowest: tuple[float, int] = (0.0, 0)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, seed: int, status: str, text: str, where: str, seconds: float) -> None:
        with self.lock:
            self.counts[status] += 1
            self.slowest = max(self.slowest, (seconds, seed))
            if status == CLEAN:
                self.messages[text[:100]] += 1
            elif status != OK:
                kind = (status, where, text[:60] if not where else text.split(":", maxsplit=1)[0])
                first = kind not in self.failures
                self.failures.setdefault(kind, []).append(seed)
                if first:
                    print(f"seed {seed}: {status}: {where} {text}", flush=True)


def drive(seeds: list[int], tally: Tally, command: list[str], limit: float) -> None:
    """Feed seeds to a worker process one at a time; replace it when it dies or takes too long."""
    worker: subprocess.Popen[str] | None = None
    while True:
        with tally.lock:
            if not seeds:
                break
            seed = seeds.pop()
        if worker is None:
            worker = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                bufsize=1,
            )
        assert worker.stdin is not None
        assert worker.stdout is not None
        late = threading.Event()

        def stop(process: subprocess.Popen[str] = worker, late: threading.Event = late) -> None:
            late.set()
            process.kill()

        watchdog = threading.Timer(limit, stop)
        watchdog.start()
        try:
            worker.stdin.write(f"{seed}\n")
            worker.stdin.flush()
            line = worker.stdout.readline()
        except OSError:
            line = ""
        watchdog.cancel()
        if line:
            verdict = json.loads(line)
            tally.add(seed, verdict["status"], verdict["text"], verdict["where"], verdict["seconds"])
            continue
        code = worker.wait()
        worker = None
        if late.is_set():
            tally.add(seed, "hang", f"over {limit:.0f} s", "", limit)
        else:
            tally.add(seed, "crash", f"the process ended with {code}", "", 0.0)
    if worker is not None and worker.stdin is not None:
        worker.stdin.close()
        worker.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--start", type=int, default=0, help="first seed")
    parser.add_argument("--stage", choices=("load", "run"), default="load")
    parser.add_argument("--pass", dest="pass_name", default="l1", help="scoring pass of the run stage")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=0, help="seconds per mutant (10 load, 120 run)")
    parser.add_argument("--corpus", type=Path, action="append", default=[], help="file or folder, repeatable")
    parser.add_argument("--only", type=int, help="run this one seed here, with its traceback")
    parser.add_argument("--keep", type=Path, help="with --only: folder to write the mutant to")
    parser.add_argument("--messages", action="store_true", help="list the clean errors by frequency")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return 0
    if options.only is not None:
        folder = options.keep or Path(tempfile.mkdtemp(prefix="fuzz"))
        (folder / "out").mkdir(parents=True, exist_ok=True)
        attempt(
            write_mutant(starting_files(options), options.only, folder, options.stage), options.stage, options.pass_name
        )
        return 0
    command = [sys.executable, __file__, "--worker", "--stage", options.stage, "--pass", options.pass_name]
    for path in options.corpus:
        command += ["--corpus", str(path)]
    limit = options.limit or (10.0 if options.stage == "load" else 120.0)
    tally = Tally()
    seeds = list(range(options.start, options.start + options.count))[::-1]
    start = time.perf_counter()
    threads = [threading.Thread(target=drive, args=(seeds, tally, command, limit)) for _ in range(options.jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - start
    print(f"\n{options.count} mutants, stage {options.stage}, {elapsed:.0f} s, {options.count / elapsed:.0f} a second")
    for status, count in tally.counts.most_common():
        print(f"{count:8} {status}")
    print(f"slowest: {tally.slowest[0]:.1f} s (seed {tally.slowest[1]})")
    for (status, where, text), failed in sorted(tally.failures.items(), key=lambda item: -len(item[1])):
        print(f"{len(failed):6} x {status} {where} {text} (seeds {', '.join(map(str, sorted(failed)[:5]))})")
    if options.messages:
        for text, count in tally.messages.most_common(80):
            print(f"{count:6} {text}")
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
