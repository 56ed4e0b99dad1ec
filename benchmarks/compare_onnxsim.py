"""How complete a cut is: graphprune beside onnxsim 0.8.1 on the same files, rate 0.5, every layer.

    python benchmarks/compare_onnxsim.py FILE.onnx ... [--json out.json]

Needs onnxsim==0.8.1 beside graphprune. MACs of both results are counted by the same code (graphprune's), on the
shapes of the source. "ok" for onnxsim means that ONNX Runtime loads the result and that it gives outputs of the
source's shape; what it computes is not compared, since onnxsim states no plan to compare with.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

import graphprune as gp
from graphprune.calibration import samples_for
from graphprune.costs import CostModel


def macs(state: Any) -> int:
    """MACs of an analysed model."""
    return CostModel(state.model, state.coupling, state.facts).price().macs


def by_graphprune(path: Path) -> dict[str, Any]:
    """One cut at rate 0.5 in every group, proved."""
    start = time.perf_counter()
    try:
        result = gp.prune(path, passes="l1", rate=0.5, scope="group")
    except gp.GraphPruneError as error:
        return {"ok": False, "why": str(error)[:200], "seconds": time.perf_counter() - start}
    plan = result.plan
    return {
        "ok": plan.verify["passed"], "kept": plan.after["macs"] / max(plan.before["macs"], 1),
        "error": plan.verify["max_rel_error"], "inexact": plan.verify["inexact_units"],
        "seconds": time.perf_counter() - start,
    }  # fmt: skip


def by_onnxsim(path: Path, source: Any) -> dict[str, Any]:
    """onnxsim's simplify, structured and head pruning at the same rate."""
    import onnxsim

    start = time.perf_counter()
    try:
        model = onnxsim.simplify(onnx.load(path))[0]
        model = onnxsim.apply_structured_pruning(model, sparsity=0.5)
        model = onnxsim.apply_attention_head_pruning(model, sparsity=0.5)
        del model.graph.value_info[:]
        seconds = time.perf_counter() - start
        options = ort.SessionOptions()
        options.log_severity_level = 4
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        feed = next(iter(samples_for(source, n=1)))
        names = {value.name for value in session.get_inputs()}
        outputs = session.run(None, {k: v for k, v in feed.items() if k in names})
        ok = all(np.isfinite(value).all() for value in outputs if value.dtype.kind == "f")
        shapes = {name: tuple(value.shape) for name, value in feed.items()}
        return {"ok": ok, "kept": macs(gp.inspect(model, shapes=shapes)) / max(macs(source), 1), "seconds": seconds}
    except Exception as error:
        return {"ok": False, "why": f"{type(error).__name__}: {error}"[:160], "seconds": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    for path in args.files:
        source = gp.inspect(path)
        row = {"file": path.stem, "graphprune": by_graphprune(path), "onnxsim": by_onnxsim(path, source)}
        rows.append(row)
        print(line(row), flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    for name in ("graphprune", "onnxsim"):
        kept = [row[name]["kept"] for row in rows if row[name]["ok"]]
        uncut = sum(k > 0.999 for k in kept)
        print(f"{name}: {len(kept)} of {len(rows)} ok, {uncut} not cut at all, median MACs kept "
              f"{statistics.median(kept):.3f}", file=sys.stderr)  # fmt: skip


def line(row: dict[str, Any]) -> str:
    """A row of the table in docs/benchmarks.md."""
    ours, theirs = row["graphprune"], row["onnxsim"]
    cells = [row["file"], f"{ours['kept']:.3f}" if ours["ok"] else "failed", f"{ours['error']:.0e}" if ours["ok"] else "",
             f"{theirs['kept']:.3f}" if theirs["ok"] else "breaks", f"{ours['seconds']:.1f}", f"{theirs['seconds']:.1f}"]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
