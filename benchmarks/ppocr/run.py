"""PP-OCR cut at several budgets: every criterion, allocation and recovery side by side.

    python -m benchmarks.ppocr.run                                     # the recogniser's grid; hours on two cores
    python -m benchmarks.ppocr.run --models rec --budgets 0.8 0.7 --criteria l1 obs --recoveries none bn ls
    python -m benchmarks.ppocr.run --table > docs/ppocr.md             # what is there so far, nothing is run

A cell is one model, budget, criterion, allocation and recovery; its figures are kept in benchmarks/.cache/ppocr/cells/ as JSON,
so that a run that was stopped goes on, and a cell that failed is tried again. ``--again`` measures cells that are there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import resource
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import graphprune as gp
from benchmarks.ppocr.files import CACHE, model_path
from benchmarks.ppocr.lines import calibration
from benchmarks.ppocr.tasks import TASKS, Task

CELLS = CACHE / "cells"
#: Unlabelled lines that distillation learns from; cut and least squares see ``--samples`` of them.
LESSON_LINES = 4096
MODELS = tuple(TASKS)
RECOVERIES = ("none", "bias", "bn", "ls", "distill")
ALLOCATIONS = ("uniform", "global", "isomorphic", "dp")


@dataclass(frozen=True, order=True)
class Cell:
    """What one measurement is of; ``budget`` is the share of MACs to keep, 1 for the source itself."""

    model: str
    budget: float
    criterion: str = ""
    allocation: str = ""
    recovery: str = "none"
    samples: int = 0
    seed: int = 0
    quick: bool = False
    lesson: str = ""

    @property
    def path(self) -> Path:
        """Where its figures are kept."""
        words = [self.model, f"{self.budget:g}", self.criterion, self.allocation, self.recovery, f"n{self.samples}",
                 f"s{self.seed}", "quick" if self.quick else "", self.lesson]  # fmt: skip
        return CELLS / (re.sub(r"[^\w.=-]+", "_", "-".join(filter(None, words))) + ".json")

    def load(self) -> dict[str, Any] | None:
        """Its figures, None where they are not there or of a run that failed."""
        if not self.path.exists():
            return None
        row: dict[str, Any] = json.loads(self.path.read_text())
        return None if "failed" in row else row


def judge(task: Task, cell: Cell, path: str) -> dict[str, float]:
    """Figures of an ONNX file."""
    return (task.quick if cell.quick else task.judge)(path)


def measure(cell: Cell) -> dict[str, Any]:
    """Cut, recover, prove and judge one cell; what goes wrong is a figure too, under ``failed``."""
    task = TASKS[cell.model]
    start = time.perf_counter()
    if cell.budget == 1:
        return {**asdict(cell), "figures": judge(task, cell, str(model_path(cell.model))), "macs": 1.0}
    passes = [cell.criterion] if cell.recovery == "none" else [cell.criterion, f"recover{{mode={cell.recovery}}}"]
    if cell.recovery == "distill":
        passes = [cell.criterion, "recover", f"distill{{{cell.lesson}}}"]
    out = CACHE / "models" / f"{cell.path.stem}.onnx"
    try:
        result = gp.prune(
            model_path(cell.model), passes=passes, budget=f"macs={cell.budget:g}",
            data=calibration(LESSON_LINES) if cell.recovery == "distill" else task.data(), samples=cell.samples,
            allocate=cell.allocation, scope="group" if cell.allocation == "uniform" else "global", seed=cell.seed,
        )  # fmt: skip
        cut = time.perf_counter() - start
        out.parent.mkdir(parents=True, exist_ok=True)
        result.save(out)
        figures = judge(task, cell, str(out))
    except gp.GraphPruneError as error:
        return {**asdict(cell), "failed": f"{type(error).__name__}: {error}"}
    finally:
        # The plan stays: it tells the widths, and the weights follow from the command.
        out.unlink(missing_ok=True)
    plan = result.plan
    return {
        **asdict(cell), "figures": figures, "macs": plan.after["macs"] / plan.before["macs"],
        "params": plan.after["params"] / plan.before["params"], "error": plan.verify["max_rel_error"],
        "distill": plan.recovery.get("distill"), "exact_units": plan.verify["exact_units"], "inexact_units": plan.verify["inexact_units"],
        "seconds": cut, "judge_seconds": time.perf_counter() - start - cut,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }  # fmt: skip


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Markdown: a section per model, sorted by budget (falling), then criterion, allocation and recovery.

    Parameters
    ----------
    rows
        As :func:`measure` gives them. Those that failed are listed below their table.
    """
    rows = list(rows)
    parts = []
    for model in [name for name in MODELS if any(row["model"] == name for row in rows)]:
        task = TASKS[model]
        mine = [row for row in rows if row["model"] == model]
        good = sorted((row for row in mine if "failed" not in row), key=_order)
        lines = [
            f"### {task.title}", "",
            f"| MACs asked | kept | criterion | allocation | recovery | {' | '.join(task.figures)} | proof error | seconds |",
            "|" + " ---: |" * 2 + " --- |" * 3 + " ---: |" * (len(task.figures) + 2),
        ]  # fmt: skip
        for row in good:
            figures = " | ".join(f"{row['figures'][name]:.3f}" for name in task.figures)
            quick = " (part)" if row["quick"] else ""
            if row["budget"] == 1:
                lines.append(f"| source{quick} | 1 | | | | {figures} | | |")
                continue
            lines.append(
                f"| {row['budget']:g}{quick} | {row['macs']:.3f} | {row['criterion']} | {row['allocation']} | {row['recovery']} "
                f"| {figures} | {row['error']:.0e} | {row['seconds']:.0f} |"
            )
        for row in mine:
            if "failed" in row:
                what = f"{row['criterion']}, {row['allocation']}, {row['recovery']} at {row['budget']:g}"
                lines += ["", f"Failed: {what}: {row['failed']}"]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _order(row: dict[str, Any]) -> tuple[Any, ...]:
    recovery = RECOVERIES.index(row["recovery"]) if row["recovery"] in RECOVERIES else len(RECOVERIES)
    return row["quick"], -row["budget"], row["criterion"], row["allocation"], recovery, row["samples"], row["seed"]


def grid(args: argparse.Namespace) -> list[Cell]:
    """The cells asked for: each model's source first, then the larger budgets."""
    cells = [Cell(model, 1.0, quick=args.quick) for model in args.models]
    for budget, model, criterion, allocation, recovery in itertools.product(
        sorted(args.budgets, reverse=True), args.models, args.criteria, args.allocations, args.recoveries
    ):
        lesson = args.lesson if recovery == "distill" else ""
        cells.append(Cell(model, budget, criterion, allocation, recovery, args.samples, args.seed, args.quick, lesson))
    return cells


def share(text: str) -> float:
    """A budget from the command line: a share of the MACs, in (0, 1)."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share between 0 and 1")
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["rec"])
    parser.add_argument("--budgets", nargs="+", type=share, default=[0.9, 0.8, 0.7], help="shares of the MACs to keep")
    parser.add_argument("--criteria", nargs="+", default=["l1", "obs"], help="scoring passes, with options if wanted")
    parser.add_argument("--allocations", nargs="+", choices=ALLOCATIONS, default=["uniform", "global", "dp"])
    parser.add_argument("--recoveries", nargs="+", choices=RECOVERIES, default=["none", "bn", "ls"])
    parser.add_argument("--samples", type=int, default=512, help="calibration samples, as many as there are at most (512)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lesson", default="minutes=15,holdout=0.03,batch=16", help="options of distill (the recogniser alone)")
    parser.add_argument("--quick", action="store_true", help="judge the recogniser on 100 lines")
    parser.add_argument("--again", action="store_true", help="measure cells that are there")
    parser.add_argument("--table", action="store_true", help="print the table of all cells that are there, and stop")
    args = parser.parse_args()
    if not args.table:
        CELLS.mkdir(parents=True, exist_ok=True)
        for cell in grid(args):
            row = None if args.again else cell.load()
            if row is None:
                row = measure(cell)
                cell.path.write_text(json.dumps(row, indent=1))
            print(cell, row.get("failed", row.get("figures")), file=sys.stderr, flush=True)
    print(table(json.loads(path.read_text()) for path in sorted(CELLS.glob("*.json"))))


if __name__ == "__main__":
    main()
