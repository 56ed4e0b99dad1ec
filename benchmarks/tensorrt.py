"""Every model of the zoo lowered for every TensorRT, proved, and built by TensorRT-RTX: the table of exceptions.

    python -m benchmarks.tensorrt [FILE.onnx ...] [--targets tx2@4.6.1,agx-orin@6.2] [--rtx] [--cut 0.5] [--json OUT.json]

Without files: those of benchmarks/.cache/zoo (see benchmarks/zoo). With --rtx, what is lowered for the oldest and the newest of
the targets is parsed and built by TensorRT-RTX, on the CPU. With --cut R the model is cut by that rate first. Nothing here runs on a device.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir

import graphprune as gp
from graphprune.backends import onnx as writer
from graphprune.backends import tensorrt_rtx
from graphprune.backends.tensorrt import lower, prove, verdicts_of
from graphprune.backends.tensorrt.proof import samples
from graphprune.devices import Target, resolve
from graphprune.errors import GraphPruneError
from graphprune.frontends.onnx import load

ZOO = Path(__file__).with_name(".cache") / "zoo"
#: One device for each TensorRT that a JetPack brings.
TARGETS = "tx2@4.6,tx2@4.6.1,agx-xavier@5.0.2,agx-xavier@5.1.2,agx-orin@6.0,orin-nano@6.2,thor@7.0,orin-nx@7.2"


def parse_target(text: str) -> Target:
    """``device@jetpack``."""
    name, _, jetpack = text.partition("@")
    return resolve(name, jetpack=jetpack or None)


def one(path: Path, model: ir.Model, targets: dict[str, Target], rtx: bool) -> Iterator[dict[str, Any]]:
    """A row a target."""
    feeds = list(samples(model, n=1, shapes={}))
    ends = {min(targets, key=lambda t: targets[t].tensorrt), max(targets, key=lambda t: targets[t].tensorrt)}
    for name, target in targets.items():
        row: dict[str, Any] = {"model": path.name, "target": name, "tensorrt": ".".join(map(str, target.tensorrt))}
        started = time.monotonic()
        try:
            lowered = lower(model, target)
            verdicts = verdicts_of(lowered, {})
            row["nodes"] = dict(Counter(v.status for v in verdicts))
            row["unsupported"] = sorted({f"{v.op}: {v.reason}" for v in verdicts if v.status == "unsupported"})
            if not row["unsupported"]:
                row["error"] = prove(model, lowered, feeds)["max_rel_error"]
                if rtx and name in ends:
                    row["rtx"] = _built(lowered.model, {n: a.shape for n, a in feeds[0].items()})
        except GraphPruneError as problem:
            row["failed"] = f"{type(problem).__name__}: {problem}"
        row["seconds"] = round(time.monotonic() - started, 2)
        yield row


def _built(model: ir.Model, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
        path = writer.save(model, Path(folder) / "model.onnx")[0]
        return tensorrt_rtx.check(path, shapes=shapes).to_json()


def summary(rows: list[dict[str, Any]]) -> str:
    """Counts by target, and what stands out, with its reason."""
    lines = ["| TensorRT | target | models | lowered and proved | worst error | TensorRT-RTX builds |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    for name in dict.fromkeys(row["target"] for row in rows):
        own = [row for row in rows if row["target"] == name]
        good = [row for row in own if "error" in row]
        built = [row for row in own if "rtx" in row]
        said = f"{sum(row['rtx']['ok'] for row in built)} of {len(built)}" if built else ""
        worst = max((row["error"] for row in good), default=0.0)
        lines.append(f"| {own[0]['tensorrt']} | {name} | {len(own)} | {len(good)} | {worst:.1e} | {said} |")
    lines += ["", "| exception | models |", "| --- | --- |"]
    why: dict[str, set[str]] = {}
    for row in rows:
        label = f"{row['model']} ({row['tensorrt']})"
        for reason in row.get("unsupported", []):
            why.setdefault(reason, set()).add(label)
        if "failed" in row:
            why.setdefault(row["failed"], set()).add(label)
        if "rtx" in row and not row["rtx"]["ok"]:
            why.setdefault("TensorRT-RTX: " + "; ".join(row["rtx"]["errors"])[:200], set()).add(label)
    lines += [f"| {reason} | {', '.join(sorted(models))} |" for reason, models in sorted(why.items())]
    return "\n".join(lines)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--targets", default=TARGETS)
    parser.add_argument("--rtx", action="store_true")
    parser.add_argument("--cut", type=float)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    targets = {text: parse_target(text) for text in options.targets.split(",")}
    rows: list[dict[str, Any]] = []
    for path in options.files or sorted(ZOO.glob("*.onnx"), key=lambda file: file.stat().st_size):
        try:
            model = load(path).model
            if options.cut:
                model = gp.prune(path, passes=["l1"], rate=options.cut, scope="group").model
            found = list(one(path, model, targets, options.rtx))
        except GraphPruneError as problem:
            found = [{"model": path.name, "target": t, "tensorrt": "", "failed": f"source: {problem}"} for t in targets]
        rows += found
        bad = [row["tensorrt"] for row in found if "error" not in row or not row.get("rtx", {"ok": True})["ok"]]
        print(f"{path.name}: {len(found) - len(bad)} of {len(found)} targets" + (f", not {', '.join(bad)}" if bad else ""), flush=True)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")
    print()
    print(summary(rows))


if __name__ == "__main__":
    main()
