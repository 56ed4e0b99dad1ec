"""The drone detector end to end: cut by every method, recovered, taught by its source, in INT8, and packed for a TX2.

    python -m examples.drone                        # everything, into build/drone; goes on where it was stopped
    python -m examples.drone --methods obs --steps 500

Every stage is one ``graphprune`` command, which is printed. ``build/drone/index.html`` shows the table and annotated pictures.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import onnxruntime as ort
from PIL import Image, ImageDraw

from examples.drone.data import scene, write_coco
from graphprune.detection.boxes import Boxes
from graphprune.detection.reading import Reader, reader

ROOT = Path(__file__).resolve().parents[2]
MODEL = Path(__file__).with_name("drone.onnx")
#: The methods of the thesis, and the best of ours: passes and options, all to the same amount.
METHODS: dict[str, list[str]] = {
    "entropy": ["--pass", "entropy"],
    "parallel": ["--pass", "entropy", "--pass", "bn-scale", "--combine", "parallel"],
    "similarity": ["--pass", "similarity"],
    "obs": ["--pass", "obs"],
}
STAGES = ("cut", "recovered", "distilled", "INT8")
PICTURES, CALIBRATION, FITTED = 400, 1536, 256
COLUMNS = ("method", "stage", "mAP50", "mAP", "MACs", "parameters", "ms", "FPS", "faster")


def graphprune(arguments: Sequence[str]) -> dict[str, Any]:
    """Run one command, show it, and give its JSON."""
    print("$ graphprune", shlex.join(arguments), flush=True)
    command = [sys.executable, "-m", "graphprune", *arguments, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr.strip() or f"it ended with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


class Example:
    """One run of the example: where its files lie, and what was measured so far."""

    def __init__(self, out: Path, amount: Sequence[str], steps: int) -> None:
        self.out, self.amount, self.steps = out / re.sub(r"[^\w.]+", "", "".join(amount)), list(amount), steps
        self.data = out
        self.out.mkdir(parents=True, exist_ok=True)
        self.path = self.out / f"results.{steps}.json"
        self.results = self._read()

    def _read(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}
        return found

    def note(self, key: str, found: Any) -> None:
        """Keep a result; written at once."""
        self.results = {**self._read(), key: found}
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.results, indent=1))
        part.replace(self.path)

    def pictures(self) -> None:
        """Draw what is judged on and what is learnt from."""
        if not (self.data / "test" / "annotations" / "instances.json").exists():
            write_coco(self.data / "test", "test", PICTURES)
        folder = self.data / "calibration"
        folder.mkdir(exist_ok=True)
        for number in range(CALIBRATION):
            path = folder / f"{number:05}.png"
            if not path.exists():
                Image.fromarray(scene("calibration", number).picture).save(path)

    def file(self, method: str, stage: str) -> Path:
        """Where a stage's model is written."""
        return self.out / f"{method}.{stage.lower()}.onnx"

    def run(self, method: str, stage: str) -> None:
        """One stage of one method, unless it is there."""
        key = f"{method}/{stage}"
        if key in self.results and self.file(method, stage).exists():
            return
        passes = list(METHODS[method])
        if stage != "cut":
            passes += ["--pass", "recover"]
        if stage in ("distilled", "INT8"):
            # The checkpoint hands what was learnt on to the stage behind.
            options = f"steps={self.steps},batch=16,lr=0.002,patience=100,checkpoint={self.out / (method + '.checkpoint')}"
            passes += ["--pass", f"distill{{{options}}}"]
        if stage == "INT8":
            passes += ["--pass", "quantize"]
        target = self.file(method, stage)
        found = graphprune([
            "run", str(MODEL), "-o", str(target), *passes, *self.amount, "--data", str(self.data / "calibration"),
            "--samples", str(FITTED), "--mean", "0,0,0", "--std", "1,1,1", "--eval", f"coco:{self.data / 'test'}",
            "--report", str(target.with_suffix(".html")),
        ])  # fmt: skip
        for name, when in (("source", "before"), (key, "after")):
            kept = {cost: found[when][cost] for cost in ("macs", "params")}
            self.note(name, {**self.results.get(name, {}), "evaluation": found["evaluation"][when], **kept})

    def time(self, methods: Sequence[str]) -> None:
        """All models in turns on one thread."""
        # What is recovered has the sizes of what is cut.
        keys = [key for m in methods for stage in STAGES if stage != "recovered" and (key := f"{m}/{stage}") in self.results]
        files = [self.file(*key.split("/")) for key in keys]
        found = graphprune(["bench", str(MODEL), *map(str, files), "--threads", "1", "--clock", "cpu", "--runs", "60"])
        for key, row in zip(["source", *keys], found["models"], strict=True):
            self.note(key, {**self.results[key], "ms": row["median_ms"], "share": row.get("ratio") or 1.0})

    def build(self, method: str) -> None:
        """The bundle for a TX2."""
        target = self.out / "tx2"
        if not target.exists():
            graphprune(["build", str(self.file(method, "distilled")), "--target", "jetson-tx2", "-o", str(target), "--data",
                        str(self.data / "calibration"), "--mean", "0,0,0", "--std", "1,1,1"])  # fmt: skip
        print(f"for the device: {target}")

    def rows(self, methods: Sequence[str]) -> list[tuple[str, ...]]:
        """The table, as text."""
        source = self.results["source"]
        entries = [("", "source", source)]
        entries += [(m, stage, entry) for m in methods for stage in STAGES if (entry := self.results.get(f"{m}/{stage}"))]
        return [self._row(method, stage, entry, source) for method, stage, entry in entries]

    @staticmethod
    def _row(method: str, stage: str, entry: dict[str, Any], source: dict[str, Any]) -> tuple[str, ...]:
        scores = entry["evaluation"]
        times = (f"{entry['ms']:.2f}", f"{1000 / entry['ms']:.0f}", f"{1 / entry['share']:.2f}x") if "ms" in entry else ("", "", "")
        return (method, stage, f"{scores['map50']:.3f}", f"{scores['map']:.3f}", f"{entry['macs'] / source['macs']:.1%}",
                f"{entry['params'] / source['params']:.1%}", *times)  # fmt: skip


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table to paste."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "| --- | --- |" + " ---: |" * (len(COLUMNS) - 2)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def found_by(path: Path, how: Reader | None, pictures: Sequence[np.ndarray]) -> tuple[Reader, list[Boxes]]:
    """Boxes that a file finds, and how they were read."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = np.stack(pictures).transpose(0, 3, 1, 2).astype(np.float32) / 255
    outputs = {out.name: array for out, array in zip(session.get_outputs(), session.run(None, {"image": feed}), strict=True)}
    how = reader([outputs]) if how is None else how
    assert how is not None
    return how, how.read(outputs)


def annotated(files: Sequence[tuple[str, Path]], numbers: Sequence[int]) -> list[tuple[str, list[str]]]:
    """Test pictures with the boxes of every file, as data addresses; green is what was drawn, orange what was found."""
    scenes = [scene("test", number) for number in numbers]
    how, out = None, []
    for name, path in files:
        how, found = found_by(path, how, [one.picture for one in scenes])
        row = []
        for one, boxes in zip(scenes, found, strict=True):
            image = Image.fromarray(one.picture).resize((448, 320), Image.Resampling.BICUBIC)
            draw = ImageDraw.Draw(image)
            for box in one.boxes.tolist():
                draw.rectangle([2 * v for v in box], outline=(60, 200, 90))
            for corners, score in zip(boxes.corners.tolist(), boxes.scores.tolist(), strict=True):
                draw.rectangle([2 * v for v in corners], outline=(255, 140, 0), width=2)
                draw.text((2 * corners[0] + 3, max(2 * corners[1] - 12, 0)), f"{score:.2f}", fill=(255, 140, 0))
            held = io.BytesIO()
            image.save(held, "JPEG", quality=85)
            row.append("data:image/jpeg;base64," + base64.b64encode(held.getvalue()).decode())
        out.append((name, row))
    return out


def page(rows: Sequence[Sequence[str]], pictures: Sequence[tuple[str, list[str]]], reports: Sequence[tuple[str, str]]) -> str:
    """The page that shows it all."""
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    shown = []
    for name, addresses in pictures:
        images = "".join(f'<img src="{address}" alt="picture">' for address in addresses)
        shown.append(f"<h3>{html.escape(name)}</h3><div class=row>{images}</div>")
    links = " · ".join(f'<a href="{html.escape(file)}">{html.escape(name)}</a>' for name, file in reports)
    template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    return template.substitute(table=f"<tr>{head}</tr>{body}", pictures="".join(shown), reports=links)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(os.path.relpath(ROOT / "build" / "drone")))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--macs", type=float, default=0.3, help="share of the multiply-accumulates to keep")
    parser.add_argument("--rate", type=float, help="share of the prunable channels to remove, instead")
    parser.add_argument("--steps", type=int, default=2000, help="of distillation")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="the last stage")
    parser.add_argument("--best", choices=METHODS, default="obs", help="the method that goes on to INT8 and the device")
    options = parser.parse_args()
    # Widths that the runtime is fast at: without them half of the time that the MACs promise is lost.
    amount = ["--budget", f"macs={options.macs:g}", "--align", "auto", "--threads", "1"]
    if options.rate is not None:
        amount = ["--rate", f"{options.rate:g}"]
    example = Example(options.out.resolve(), amount, options.steps)
    example.pictures()
    best = options.best if options.best in options.methods else options.methods[0]
    for method in options.methods:
        for stage in STAGES[: STAGES.index(options.until) + 1]:
            if stage != "INT8" or method == best:
                example.run(method, stage)
    if options.until != STAGES[-1]:
        print(markdown(example.rows(options.methods)))
        return
    example.time(options.methods)
    example.build(best)
    rows = example.rows(options.methods)
    print(markdown(rows))
    files = [("source", MODEL), *((f"{best}, {stage}", example.file(best, stage)) for stage in STAGES)]
    reports = [(f"{m}, {s}", example.file(m, s).with_suffix(".html").name) for m in options.methods for s in STAGES
               if example.file(m, s).with_suffix(".html").exists()]  # fmt: skip
    part = example.out / "index.html.part"
    part.write_text(page(rows, annotated(files, range(4, 12)), reports), encoding="utf-8")
    part.replace(example.out / "index.html")
    print(f"written: {example.out / 'index.html'}")


if __name__ == "__main__":
    main()
