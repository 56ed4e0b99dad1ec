"""The reference detectors of examples/detectors cut by the thesis's three methods, judged, and lowered for two Jetsons.

    python -m benchmarks.detectors [NAME ...] [--rates 0.3 0.5 0.7] [--methods entropy parallel similarity] [--again]
    python -m benchmarks.detectors --table

Each detector with random weights is exported with an open batch to benchmarks/.cache/detectors, cut, and proved by the program.
Then ``tests/oracle.py``, which imports nothing of graphprune, judges the cut at batches of 1 and 3; the cut model is run at a batch
of 3 and must give what it gives for each picture alone; and it is lowered for a TX2 and an Orin, proved again, and built by
TensorRT-RTX. Results go to ``.cache/detectors.json`` one by one: a run that was stopped goes on. Seconds are of CPU time.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

import graphprune as gp
from benchmarks.tensorrt import Row, Sweep, parse_target
from examples.detectors import MODELS
from examples.detectors.__main__ import export
from graphprune.backends import onnx as writer
from graphprune.backends import tensorrt_rtx
from graphprune.backends.tensorrt import Source, lower, prove
from graphprune.backends.tensorrt.proof import samples
from graphprune.devices import Target
from tests.oracle import check

CACHE = Path(__file__).with_name(".cache")
FILES, RESULTS = CACHE / "detectors", CACHE / "detectors.json"
#: Options of the factories: sizes at which a proof on two cores takes seconds.
SIZES: dict[str, dict[str, int]] = {
    "yolov3": {"size": 320}, "yolov4": {"size": 320}, "yolov8": {"size": 320}, "faster_rcnn": {"size": 320, "proposals": 300},
    "retinaface": {"size": 320}, "arcface": {"size": 112},
}  # fmt: skip
#: ``parallel`` decides itself how much each group loses, so that it has no scope.
METHODS: dict[str, dict[str, Any]] = {
    "entropy": {"passes": ["entropy"], "scope": "group"},
    "parallel": {"passes": ["entropy", "bn-scale"], "combine": "parallel"},
    "similarity": {"passes": ["similarity"], "scope": "group"},
}
TARGETS = ("tx2", "agx-orin")


def file_of(name: str) -> Path:
    """The detector as ONNX, written where it is not there yet."""
    path = FILES / f"{name}.onnx"
    if not path.is_file():
        FILES.mkdir(parents=True, exist_ok=True)
        module, example = importlib.import_module(f"examples.detectors.{name}").model(**SIZES[name])
        export(module, example, path)
    return path


def relative(want: np.ndarray, got: np.ndarray) -> float:
    """Largest difference, as a share of the largest wanted number."""
    return float(np.abs(want - got).max() / max(float(np.abs(want).max()), 1e-30))


def batched(path: Path) -> dict[str, Any]:
    """A batch of 3 against its pictures one by one, and the sizes of the open axes as they are declared."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    pictures = np.random.default_rng(0).random((3, *given.shape[1:]), np.float32)
    together = session.run(None, {given.name: pictures})
    alone = [session.run(None, {given.name: picture[None]}) for picture in pictures]
    error = max(relative(whole, np.concatenate(parts)) for whole, parts in zip(together, zip(*alone, strict=True), strict=True))
    ends = [*session.get_inputs(), *session.get_outputs()]
    return {"batch": error, "open": all(not isinstance(end.shape[0], int) for end in ends)}


def judge(name: str, method: str, rate: float) -> Row:
    """One cut, and what is said of it."""
    path, row = file_of(name), Row()
    started = [time.process_time(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime]
    options = METHODS[method]
    try:
        # --exact: DFL's bins are weights like others, and what a softmax runs over is never exact.
        result = gp.prune(path, rate=rate, exact=True, threads=1, **options)
    except gp.GraphPruneError as problem:
        return {"refused": str(problem)[:300]}
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        cut = Path(folder) / "cut.onnx"
        result.save(cut)
        plan = result.plan.to_json()
        row |= {key: result.plan.after[key] / result.plan.before[key] for key in ("macs", "params")}
        row["groups"] = [sum(group["kept"] < group["units"] for group in plan["groups"]), len(plan["groups"])]
        row["error"] = result.plan.verify["max_rel_error"]
        inputs = onnx.load(path, load_external_data=False).graph.input
        report = check(
            path, cut, plan, rate=rate if "scope" in options else None, exact=True, dims={"batch": (1, 3)},
            ranges={value.name: (0.0, 1.0) for value in inputs},
        )  # fmt: skip
        row["oracle"] = {"error": report.max_error, "effect": report.effect, "problems": report.problems[:5]}
        row |= batched(cut)
        targets = {text: parse_target(text) for text in TARGETS}
        # What TensorRT-RTX lacks (a second stage: RoiAlign, NonMaxSuppression) it builds up to the raw heads.
        whole = all(v.status != "unsupported" for v in lower(result.model, parse_target("rtx")).verdicts)
        row["targets"] = Sweep(name, result.model, targets, {}, rtx=whole).rows()
        if not whole:
            row["raw"] = [raw_heads(result.model, target, Path(folder)) for target in targets.values()]
    row["seconds"] = round(time.process_time() - started[0], 1)
    row["seconds_rtx"] = round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - started[1], 1)
    return row


def raw_heads(model: ir.Model, target: Target, folder: Path) -> Row:
    """A model lowered up to the boxes and scores that suppression begins with."""
    feeds = list(samples(model, n=1, shapes={}))
    lowered = lower(model, target, raw_heads=True)
    unsupported = sorted({f"{v.op}: {v.reason}" for v in lowered.verdicts if v.status == "unsupported"})
    if unsupported:
        return {"unsupported": unsupported}
    path = writer.save(lowered.model, folder / "raw.onnx")[0]
    shapes = {name: array.shape for name, array in feeds[0].items()}
    return {"error": prove(Source(model, feeds), lowered)["max_rel_error"], "rtx": tensorrt_rtx.check(path, shapes=shapes).to_json()}


def problems_of(row: Row) -> list[str]:
    """What is not as it should be."""
    if "refused" in row:
        return [row["refused"]]
    found = [*row["oracle"]["problems"]]
    found += [] if row["open"] and row["batch"] < 1e-4 else [f"batch: {row['batch']:.1e}, open: {row['open']}"]
    for target in row.get("raw", []):
        found += [f"raw heads: {reason}" for reason in target.get("unsupported", [])]
        found += [] if target.get("rtx", {"ok": True})["ok"] else [f"raw heads: TensorRT-RTX: {target['rtx']['errors'][:1]}"]
    for target in row["targets"]:
        found += [f"{target['target']}: {reason}" for reason in target.get("unsupported", [])]
        found += [f"{target['target']}: {target['failed']}"] if "failed" in target else []
        if not target.get("rtx", {"ok": True})["ok"]:
            found.append(f"{target['target']}: TensorRT-RTX: {'; '.join(target['rtx']['errors'])[:200]}")
    return found


def table(results: dict[str, Row]) -> str:
    """One line a detector and method."""
    lines = [
        "| detector | method | MACs kept at " + " / ".join(f"{r:g}" for r in (0.3, 0.5, 0.7)) + " | largest error | oracle's | batch of 3 | "
        "TX2 | Orin | TensorRT-RTX builds |", "| --- | --- | --- | ---: | ---: | ---: | --- | --- | --- |",
    ]  # fmt: skip
    for name in MODELS:
        for method in METHODS:
            rows = [results[key] for rate in (0.3, 0.5, 0.7) if (key := f"{name}/{method}/{rate:g}") in results]
            done = [row for row in rows if "refused" not in row]
            if not done:
                continue
            lowered = []
            for place in range(len(TARGETS)):
                said = [row["targets"][place] for row in done]
                good = [row for row in said if "error" in row and not row["unsupported"]]
                lowered.append(f"{len(good)} of {len(said)}")
            agreed = [row["oracle"]["error"] for row in done if not row["oracle"]["problems"]]
            oracle = f"{max(agreed, default=0.0):.0e}" + (f" ({len(agreed)} of {len(done)})" if len(agreed) < len(done) else "")
            built = [target["rtx"]["ok"] for row in done for target in [*row["targets"], *row.get("raw", [])] if "rtx" in target]
            raw = " (raw heads)" if any("raw" in row for row in done) else ""
            lines.append(
                f"| {name} | {method} | {' / '.join(format(row['macs'], '.3f') for row in done)} | "
                f"{max(row['error'] for row in done):.0e} | {oracle} | "
                f"{max(row['batch'] for row in done):.0e} | {lowered[0]} | {lowered[1]} | {sum(built)} of {len(built)}{raw} |"
            )
    counts: dict[str, list[str]] = {}
    for key, row in results.items():
        for problem in problems_of(row):
            counts.setdefault(problem, []).append(key)
    lines += ["", *(f"- {problem} ({len(keys)}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})" for problem, keys in counts.items())]
    seconds = sum(row.get("seconds", 0) + row.get("seconds_rtx", 0) for row in results.values())
    return "\n".join([*lines, "", f"{len(results)} cuts, {seconds / 60:.0f} minutes of CPU time"])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*MODELS, []])
    parser.add_argument("--rates", nargs="+", type=float, default=[0.3, 0.5, 0.7])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--again", action="store_true", help="do anew what had problems")
    parser.add_argument("--table", action="store_true", help="only the table, of the results that are there")
    options = parser.parse_args()
    results: dict[str, Row] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for name in [] if options.table else options.names or MODELS:
        for rate in options.rates:
            for method in options.methods:
                key = f"{name}/{method}/{rate:g}"
                if key in results and not (options.again and problems_of(results[key])):
                    continue
                results[key] = row = judge(name, method, rate)
                part = RESULTS.with_suffix(".part")
                part.write_text(json.dumps(results, indent=1) + "\n")
                part.replace(RESULTS)
                told = f"{row['macs']:.3f} {row['error']:.0e} {row['seconds']:.0f}+{row['seconds_rtx']:.0f} s" if "macs" in row else ""
                print(key, told, *problems_of(row), sep="\n    " if problems_of(row) else " ", flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
