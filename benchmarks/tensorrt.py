"""Every model of the zoo lowered for every TensorRT, proved, and built by TensorRT-RTX: the table of exceptions.

    python -m benchmarks.tensorrt [FILE.onnx ...] [--cut 0.5] [--rtx] [--targets tx2@4.6.1,agx-orin@6.2] [--shard 1/2] [--again]
    python -m benchmarks.tensorrt --table [--cut 0.5]

Without files: those of benchmarks/.cache/zoo (see benchmarks/zoo), smallest first. With --cut R the model is cut by that rate first.
With --rtx, what is lowered for the oldest and the newest TensorRT is parsed and built by TensorRT-RTX, on the CPU. Nothing here
runs on a device.

A result is kept for each file in benchmarks/.cache/tensorrt: a run that was stopped goes on, and one that adds --rtx adds only
that. --again does anew what was an exception. A lowered model that is the same, byte for byte, for two versions is proved and built once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

import graphprune as gp
from graphprune.backends import onnx as writer
from graphprune.backends import tensorrt_rtx
from graphprune.backends.tensorrt import Lowered, Source, lower, prove, verdicts_of
from graphprune.backends.tensorrt.proof import samples
from graphprune.devices import Target, resolve
from graphprune.errors import GraphPruneError
from graphprune.frontends.onnx import load

CACHE = Path(__file__).with_name(".cache")
ZOO, RESULTS = CACHE / "zoo", CACHE / "tensorrt"
#: Every TensorRT that a JetPack brings, and every device that the guide names at its newest JetPack.
TARGETS = (
    "tx2@4.6,tx2@4.6.1,agx-xavier@5.0.2,agx-xavier@5.1.2,agx-orin@6.0,orin-nano@6.2,thor@7.0,orin-nx@7.2,"
    "nano,tx2,xavier-nx,agx-xavier,orin-nano,orin-nx,agx-orin,thor,rtx,x86-gpu"
)
Row = dict[str, Any]


def parse_target(text: str) -> Target:
    """``device@jetpack``."""
    name, _, jetpack = text.partition("@")
    return resolve(name, jetpack=jetpack or None)


def digest_of(model: ir.Model, folder: Path) -> tuple[str, Path]:
    """SHA-256 of a model as it is written, and where it was written."""
    path = writer.save(model, folder / "model.onnx")[0]
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest(), path


def ends_of(targets: dict[str, Target]) -> set[Target]:
    """Those of the oldest and the newest TensorRT."""
    versions = [t.tensorrt for t in targets.values() if not t.rtx]
    return {t for t in targets.values() if not t.rtx and t.tensorrt in (min(versions), max(versions))}


class Sweep:
    """One model over all targets; what is the same is lowered, proved and built once.

    Parameters
    ----------
    known
        Rows of an earlier run by target, which are kept.
    rtx
        Build for the oldest and the newest TensorRT.
    """

    def __init__(self, name: str, model: ir.Model, targets: dict[str, Target], known: dict[str, Row], rtx: bool) -> None:
        self.name, self.model, self.targets, self.known = name, model, targets, known
        self.feeds = list(samples(model, n=1, shapes={}))
        self.source = Source(model, self.feeds)
        self.ends = ends_of(targets) if rtx else set()
        self.proofs: dict[str, Row] = {row["digest"]: row for row in known.values() if "digest" in row}

    def rows(self) -> list[Row]:
        """A row a target, in the order of the targets."""
        found: dict[str, Row] = {}
        groups: dict[tuple[tuple[int, ...], bool], list[str]] = {}
        for name, target in self.targets.items():
            groups.setdefault((target.tensorrt, target.rtx), []).append(name)
        for names in groups.values():
            wants = self.targets[names[0]] in self.ends
            missing = [name for name in names if name not in self.known or (wants and "rtx" not in self.known[name])]
            found.update({name: self.known[name] for name in names if name not in missing})
            if missing:
                found.update(self._version(missing, wants))
        return [found[name] for name in self.targets]

    def _version(self, names: list[str], wants_rtx: bool) -> dict[str, Row]:
        started = time.process_time()
        rows: dict[str, Row] = {
            name: {"model": self.name, "target": name, "tensorrt": ".".join(map(str, self.targets[name].tensorrt))} for name in names
        }
        try:
            lowered = lower(self.model, self.targets[names[0]])
            for name, row in rows.items():
                verdicts = verdicts_of(replace(lowered, target=self.targets[name]), {})
                row["nodes"] = dict(Counter(v.status for v in verdicts))
                row["unsupported"] = sorted({f"{v.op or 'memory'}: {v.reason}" for v in verdicts if v.status == "unsupported"})
            if not all(v.status != "unsupported" for v in lowered.verdicts):
                return rows
            proved = self._proved(lowered, wants_rtx)
            for row in rows.values():
                row.update(proved)
        except GraphPruneError as problem:
            for row in rows.values():
                row["failed"] = f"{type(problem).__name__}: {problem}"
        for row in rows.values():
            row["seconds"] = round(time.process_time() - started, 2)
        return rows

    def _proved(self, lowered: Lowered, wants_rtx: bool) -> Row:
        with tempfile.TemporaryDirectory(prefix="graphprune-", dir=CACHE) as folder:
            digest, path = digest_of(lowered.model, Path(folder))
            known = self.proofs.setdefault(digest, {})
            found = {key: known[key] for key in ("error", "rtx") if key in known}
            if "error" not in found:
                found["error"] = prove(self.source, lowered)["max_rel_error"]
            if wants_rtx and "rtx" not in found:
                shapes = {name: array.shape for name, array in self.feeds[0].items()}
                found["rtx"] = tensorrt_rtx.check(path, shapes=shapes).to_json()
            known.update(found)
        return {"digest": digest, **found}


def results(cut: float | None) -> Path:
    """Where the results of one cut are kept."""
    return RESULTS / (f"cut{cut:g}" if cut else "whole")


def is_exception(row: Row) -> bool:
    """Not lowered and proved, or not built."""
    return "error" not in row or bool(row.get("unsupported")) or not row.get("rtx", {"ok": True})["ok"]


def one(path: Path, targets: dict[str, Target], cut: float | None, rtx: bool, again: bool) -> list[Row]:
    """The rows of a file: what is kept, and what is missing."""
    kept = results(cut) / f"{path.stem}.json"
    stamp = [path.stat().st_size, path.stat().st_mtime]
    before = json.loads(kept.read_text()) if kept.is_file() else {}
    known = {row["target"]: row for row in before.get("rows", [])} if before.get("stamp") == stamp else {}
    if again:
        known = {target: row for target, row in known.items() if not is_exception(row)}
    ends = ends_of(targets) if rtx else set()
    if all(n in known and (t not in ends or "rtx" in known[n] or "error" not in known[n]) for n, t in targets.items()):
        return [known[name] for name in targets]
    started = time.process_time()
    try:
        model = gp.prune(path, passes=["l1"], rate=cut, scope="group").model if cut else load(path).model
        rows = Sweep(path.name, model, targets, known, rtx).rows()
    except GraphPruneError as problem:
        rows = [{"model": path.name, "target": n, "tensorrt": "", "failed": f"source: {problem}"} for n in targets]
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    print(f"{path.name}: {time.process_time() - started:.1f} s of CPU time, children {children:.0f} s so far", flush=True)
    kept.parent.mkdir(parents=True, exist_ok=True)
    part = kept.with_suffix(".part")
    others = [row for target, row in known.items() if target not in targets]
    part.write_text(json.dumps({"stamp": stamp, "rows": rows + others}, indent=1) + "\n")
    part.rename(kept)
    return rows


def summary(rows: list[Row]) -> str:
    """Counts by target, and what stands out, with its reason."""
    lines = ["| TensorRT | target | models | lowered and proved | worst error | TensorRT-RTX builds |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    for name in dict.fromkeys(row["target"] for row in rows):
        own = [row for row in rows if row["target"] == name]
        good = [row for row in own if "error" in row and not row["unsupported"]]
        built = [row for row in own if "rtx" in row]
        said = f"{sum(row['rtx']['ok'] for row in built)} of {len(built)}" if built else ""
        worst = max((row["error"] for row in good), default=0.0)
        lines.append(f"| {own[0]['tensorrt']} | {name} | {len(own)} | {len(good)} | {worst:.1e} | {said} |")
    lines += ["", "| exception | models |", "| --- | --- |"]
    why: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        reasons = list(row.get("unsupported", []))
        reasons += [row["failed"]] if "failed" in row else []
        if "rtx" in row and not row["rtx"]["ok"]:
            reasons.append("TensorRT-RTX: " + "; ".join(row["rtx"]["errors"])[:300])
        for reason in reasons:
            why.setdefault(reason, {}).setdefault(row["model"], []).append(row["target"])
    for reason, models in sorted(why.items()):
        where = [f"{model} ({', '.join(names)})" for model, names in sorted(models.items())]
        lines.append(f"| {reason} | {'; '.join(where)} |")
    return "\n".join(lines)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--targets", default=TARGETS)
    parser.add_argument("--rtx", action="store_true")
    parser.add_argument("--cut", type=float)
    parser.add_argument("--shard", default="1/1", help="number of this part, and of all parts")
    parser.add_argument("--again", action="store_true", help="do exceptions anew")
    parser.add_argument("--table", action="store_true", help="only the tables, of the results that are there")
    options = parser.parse_args()
    targets = {text: parse_target(text) for text in options.targets.split(",")}
    rows: list[Row] = []
    if options.table:
        for file in sorted(results(options.cut).glob("*.json")):
            rows += [row for row in json.loads(file.read_text())["rows"] if row["target"] in targets]
    else:
        files = options.files or sorted(ZOO.glob("*.onnx"), key=lambda file: file.stat().st_size)
        part, parts = map(int, options.shard.split("/"))
        for path in files[part - 1 :: parts]:
            rows += one(path, targets, options.cut, options.rtx, options.again)
    print(summary(rows))


if __name__ == "__main__":
    main()
