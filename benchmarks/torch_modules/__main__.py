"""Command line: ``python -m benchmarks.torch_modules patterns|transformers|speed|report``."""

from __future__ import annotations

import argparse
import fcntl
import json
import multiprocessing
import signal
import sys
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.torch_modules import sources

CACHE = Path(__file__).resolve().parents[1] / ".cache" / "torch_modules"
LIMIT = {"patterns": 60, "transformers": 150}  # seconds of CPU: a busy machine makes no hang
TOOLS = ("graphprune", "torch-pruning")


def work(tool: str, kind: str, name: str, pipe: Connection) -> None:
    """One case in a process of its own."""
    import resource
    import warnings

    import torch

    spent = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
    resource.setrlimit(resource.RLIMIT_CPU, (spent + LIMIT[kind], spent + LIMIT[kind] + 1))
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    make = sources.maker(kind, name)
    try:
        if tool == "graphprune":
            from benchmarks.torch_modules import ours
            from tests.torch_patterns import PATTERNS

            pipe.send(ours.run(make, batch=kind != "patterns" or PATTERNS[name].batch))
        else:
            from benchmarks.torch_modules import peer

            pipe.send(peer.run(make))
    except BaseException:
        pipe.send({"verdict": "crash", "why": "outside: " + traceback.format_exc()[-300:]})


def isolated(tool: str, kind: str, name: str) -> dict[str, Any]:
    """Run a case with a time limit: a hang or a crash of one leaves the others alone."""
    context = multiprocessing.get_context("fork")  # what is imported once serves all
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(tool, kind, name, sender))
    start = time.perf_counter()
    process.start()
    sender.close()
    hang = {"verdict": "hang", "why": f"no end after {LIMIT[kind]} s of CPU time"}
    try:
        found: dict[str, Any] = receiver.recv() if receiver.poll(20 * LIMIT[kind]) else hang
    except EOFError:
        process.join()
        dead = (
            signal.Signals(-process.exitcode).name
            if process.exitcode and process.exitcode < 0
            else str(process.exitcode)
        )
        found = hang if dead == "SIGXCPU" else {"verdict": "crash", "why": f"the process died: {dead}"}
    process.kill()
    process.join()
    return {**found, "total": round(time.perf_counter() - start, 1)}


def read(path: Path) -> dict[str, Any]:
    """The results so far."""
    return dict(json.loads(path.read_text())) if path.exists() else {}


def note(path: Path, name: str, tool: str, found: dict[str, Any]) -> None:
    """Keep a result; several sweeps may write to one file."""
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        table = read(path)
        table.setdefault(name, {})[tool] = found
        part = path.with_suffix(".part")
        part.write_text(json.dumps(table, indent=1))
        part.replace(path)


def warm_up(kind: str) -> None:
    """What the first export of a process has to load, loaded before the forks."""
    import onnxruntime  # noqa: F401
    import torch
    import torch_pruning  # noqa: F401

    import graphprune as gp  # noqa: F401
    from graphprune.frontends.torch import load_module

    torch.set_num_threads(1)
    load_module(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    if kind == "transformers":
        import transformers

        config = transformers.LlamaConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=9
        )
        load_module(
            transformers.LlamaForCausalLM(config),
            {"input_ids": torch.zeros(1, 3, dtype=torch.int64), "use_cache": False},
        )


def sweep(kind: str, names: list[str], tools: list[str], force: bool, shard: tuple[int, int]) -> None:
    """Run cases that have no result yet, and keep the results."""
    everything = sources.patterns() if kind == "patterns" else sources.transformers_models()
    unknown = [name for name in names if name not in everything]
    if unknown:
        sys.exit(f"unknown: {', '.join(unknown)}")
    warm_up(kind)
    path = CACHE / f"{kind}.json"
    CACHE.mkdir(parents=True, exist_ok=True)
    part, parts = shard
    for name in (names or everything)[part::parts]:
        for tool in tools:
            if not force and tool in read(path).get(name, {}):
                continue
            found = isolated(tool, kind, name)
            note(path, name, tool, found)
            why = found.get("why") or "; ".join(
                f"{m}: {found[m]['why']}" for m in ("half", "exact") if found.get(m, {}).get("why")
            )
            print(f"{name:28} {tool:14} {found['verdict']:8} {found['total']:6.1f} s  {why[:300]}", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.torch_modules", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for kind in LIMIT:
        one = commands.add_parser(kind)
        one.add_argument("names", nargs="*")
        one.add_argument("--tool", choices=TOOLS, action="append")
        one.add_argument("--shard", default="0/1", help="of so many parts the n-th, counted from 0: 0/2")
        one.add_argument("--force", action="store_true", help="also what has a result")
    speed = commands.add_parser("speed", help="wall time and peak memory of whole processes")
    speed.add_argument("models", nargs="*")
    commands.add_parser("report", help="the tables of docs/benchmarks.md")
    options = parser.parse_args()
    if options.command == "speed":
        from benchmarks.torch_modules.speed import side_by_side

        side_by_side(options.models)
    elif options.command == "report":
        from benchmarks.torch_modules.report import tables

        print(tables(CACHE))
    else:
        part, _, parts = options.shard.partition("/")
        shard = (int(part), int(parts))
        sweep(options.command, options.names, options.tool or list(TOOLS), options.force, shard)


if __name__ == "__main__":
    main()
