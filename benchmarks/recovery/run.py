"""Accuracy of graphprune's cuts: network x batch norm x budget x allocation x criterion x recovery.

    python -m benchmarks.recovery.run                          # every cell that is not there yet
    python -m benchmarks.recovery.run --nets resnet20 --recoveries none bn
    python -m benchmarks.recovery.run --list                   # what would be run

A cell is one call of ``gp.prune`` (cut, proof, recovery on 512 unlabelled training images) and the top-1 accuracy of
the result on the test split in ONNX Runtime. Cells go to ``.cache/recovery/results.json`` one by one, so that a run that
was stopped goes on where it was; ``--force`` measures anew. Tables and plots: ``python -m benchmarks.recovery.report``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import graphprune as gp
from benchmarks.recovery.files import CACHE, CALIBRATION, FORMS, accuracy, note, read

BUDGETS = (0.65, 0.5, 0.35)
NETS = ("resnet20", "resnet56", "densenet22", "vgg16_slim", "mobilenetv2")
CRITERIA = ("l1", "l2", "bn-scale", "entropy", "obs", "random")
#: How the budget is shared among layers.
ALLOCATIONS = ("dp", "global", "uniform", "isomorphic")
#: The pass that each recovery adds behind the criterion.
RECOVERIES = {"none": "", "bias": "recover{mode=bias}", "bn": "recover{mode=bn}", "ls": "recover{mode=ls}"}
SEEDS = (0, 1, 2)
RESULTS = CACHE / "results.json"


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes
    ----------
    net, form
        Which file: ``NET.FORM.onnx``.
    budget
        Share of the MACs to keep.
    criterion
        A scoring pass, with its options if any.
    recovery
        A key of :data:`RECOVERIES`.
    allocate
        One of :data:`ALLOCATIONS`.
    seed
        For criteria that draw; 0 for the others.
    """

    net: str
    form: str
    budget: float
    criterion: str
    recovery: str
    allocate: str
    seed: int = 0

    @property
    def key(self) -> str:
        parts = [self.net, self.form, f"{self.budget:g}", self.criterion, self.recovery, self.allocate]
        return "/".join(parts + ([f"seed{self.seed}"] if self.seed else []))

    @property
    def path(self) -> Path:
        return CACHE / f"{self.net}.{self.form}.onnx"


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    """All cells that are asked for, a network at a time."""
    for net in options.nets:
        for form in options.forms:
            for budget in options.budgets:
                for criterion in options.criteria:
                    for recovery in options.recoveries:
                        for allocate in options.allocate:
                            for seed in SEEDS if criterion.startswith("random") else (0,):
                                yield Cell(net, form, budget, criterion, recovery, allocate, seed)


def measure(cell: Cell, test: dict[str, Any], threads: int) -> dict[str, Any]:
    """Cut, recover, and count the right answers; where graphprune refuses, its message."""
    passes = [cell.criterion, *filter(None, [RECOVERIES[cell.recovery]])]
    started = time.perf_counter()
    try:
        result = gp.prune(
            cell.path, passes=passes, budget=f"macs={cell.budget:g}", allocate=cell.allocate, seed=cell.seed,
            data=CACHE / f"train_{CALIBRATION}.npz", samples=CALIBRATION,
        )  # fmt: skip
    except gp.GraphPruneError as error:
        return {"refused": f"{type(error).__name__}: {error}"[:300]}
    seconds = time.perf_counter() - started
    plan = result.plan
    return {
        "accuracy": accuracy(result.proto().SerializeToString(), test["images"], test["labels"], threads),
        "macs": plan.after["macs"] / plan.before["macs"], "params": plan.after["params"] / plan.before["params"],
        "error": plan.verify["max_rel_error"], "seconds": round(seconds, 2),
    }  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=NETS)
    parser.add_argument("--forms", nargs="+", default=FORMS, choices=FORMS)
    parser.add_argument("--budgets", nargs="+", type=float, default=BUDGETS)
    parser.add_argument("--criteria", nargs="+", default=CRITERIA, help="scoring passes, with their options if any")
    parser.add_argument("--recoveries", nargs="+", default=("none", "bn", "ls"), choices=list(RECOVERIES))
    parser.add_argument("--allocate", nargs="+", default=("dp", "uniform"), choices=ALLOCATIONS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--force", action="store_true", help="measure cells anew that are there")
    parser.add_argument("--list", action="store_true", help="only say what would be run")
    options = parser.parse_args()
    found = read(RESULTS)
    wanted = [cell for cell in cells(options) if options.force or cell.key not in found]
    missing = sorted({str(cell.path) for cell in wanted if not cell.path.is_file()})
    if missing:
        print(f"left out, not exported yet (python -m benchmarks.recovery.train, then .export): {', '.join(missing)}")
    wanted = [cell for cell in wanted if cell.path.is_file()]
    if options.list or not wanted:
        print("\n".join(cell.key for cell in wanted) or "nothing to do")
        return
    with np.load(CACHE / "test.npz") as stored:
        test = {"images": stored["input"], "labels": stored["labels"]}
    for source, path in sorted({(f"{cell.net}/{cell.form}", cell.path) for cell in wanted}):
        if options.force or source not in found:
            note(RESULTS, source, {"accuracy": accuracy(path, test["images"], test["labels"], options.threads)})
    for number, cell in enumerate(wanted, 1):
        entry = measure(cell, test, options.threads)
        note(RESULTS, cell.key, entry)
        print(f"[{number}/{len(wanted)}] {cell.key} {json.dumps(entry)}", flush=True)


if __name__ == "__main__":
    main()
