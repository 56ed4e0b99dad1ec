"""Where a cut hurts most: one group at a time loses the same share of its units, and the model is measured.

    python -m benchmarks.ppocr.sensitivity rec --cut 0.3 --criterion l1 [--recover bias] > table.md

The analysis and the scores are made once; each group then costs one rewrite and one evaluation. Rows are kept in
benchmarks/.cache/ppocr/sensitivity/, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from benchmarks.ppocr.files import CACHE, model_path
from benchmarks.ppocr.tasks import TASKS, Task
from graphprune.backends import onnx as writer
from graphprune.costs import CostModel
from graphprune.options import Options
from graphprune.passes.base import State
from graphprune.passes.rewrite import Rewrite
from graphprune.passes.verify import Verify
from graphprune.pipeline import build_passes, load_any


def analysed(task: Task, criterion: str, recover: str | None, samples: int) -> State:
    """A model with its coupling and the scores of one criterion."""
    passes = (criterion, *([f"recover{{mode={recover}}}"] if recover else []))
    state = State(load_any(model_path(task.model)), Options(passes=passes, rate=0.5, data=str(task.data()), samples=samples))
    for one in build_passes(passes):
        if one.name in ("canonicalize", "couple") or one.kind == "score":
            one.run(state)
    state.before = CostModel(state.model, state.need_coupling(), state.need_facts()).price()
    return state


def cut_one(state: State, group: Any, share: float) -> int:
    """Remove the lowest-scored share of one group's units and prove it; returns how many."""
    coupling = state.need_coupling()
    count = min(max(round(share * len(group.units)), 1), len(group.units) - 1)
    order = np.argsort(state.scores[0].values[group.units], kind="stable")
    state.dead = np.zeros(coupling.n_units, np.bool_)
    state.dead[group.units[order[:count]]] = True
    state.after = CostModel(state.model, coupling, state.need_facts()).price(state.dead)
    Rewrite().run(state)
    Verify().run(state)
    return count


def weight_of(group: Any) -> str:
    """The widest tensor of a group, as name[shape] axis."""
    value, axis = max(group.members, key=lambda member: member[0].const_value.size if member[0].const_value else 0)
    shape = value.const_value.shape if value.const_value is not None else ir.Shape([])
    return f"{value.name}{[int(d) for d in shape]} axis {axis}"


def measure(task: Task, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per group, from the cache where it is there."""
    state = analysed(task, args.criterion, args.recover, args.samples)
    folder = CACHE / "sensitivity"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for group in state.need_coupling().groups:
        path = folder / f"{task.model}_{args.criterion}_{args.cut:g}_{args.recover or 'none'}_{group.id}.json"
        if not path.exists():
            count = cut_one(state, group, args.cut)
            assert state.before is not None and state.after is not None and state.cut is not None and state.plan is not None
            error = state.plan.verify["max_rel_error"]
            if args.recover:
                for one in build_passes((args.criterion, f"recover{{mode={args.recover}}}")):
                    if one.kind == "recover":
                        one.run(state)
            with tempfile.TemporaryDirectory() as temporary:
                file = Path(temporary) / "cut.onnx"
                writer.save(state.cut, file)
                figures = task.quick(str(file))
            row = {
                "group": group.id, "kind": group.kind, "units": len(group.units), "cut": count, "widest": weight_of(group),
                "macs": 1 - state.after.macs / state.before.macs, "error": error, **figures,
            }  # fmt: skip
            path.write_text(json.dumps(row))
        rows.append(json.loads(path.read_text()))
        print(table_row(rows[-1]), flush=True)
    return rows


def table_row(row: dict[str, Any]) -> str:
    """A row of the markdown table."""
    figures = [f"{row[key]:.3f}" for key in list(row)[7:]]
    return (
        f"| {row['group']} | {row['kind']} | {row['cut']} of {row['units']} | {row['widest']} | {row['macs']:.2%} | "
        + " | ".join(figures) + " |"
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", choices=sorted(TASKS))
    parser.add_argument("--cut", type=float, default=0.3, help="share of a group's units to remove (0.3)")
    parser.add_argument("--criterion", default="l1", help="scoring pass (l1)")
    parser.add_argument("--recover", choices=("bias", "bn", "ls"), help="recover before measuring")
    parser.add_argument("--samples", type=int, default=64, help="calibration samples (64)")
    args = parser.parse_args()
    task = TASKS[args.model]
    names = list(task.figures)
    print("| group | kind | cut | widest tensor | MACs saved | " + " | ".join(names) + " |")
    print("|" + " --- |" * (5 + len(names)), flush=True)
    measure(task, args)


if __name__ == "__main__":
    main()
