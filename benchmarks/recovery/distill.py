"""What distillation adds to least squares: five networks cut to a share of their MACs, then taught by their sources.

    python -m benchmarks.recovery.distill                                  # every network at 0.35 of its MACs, 10 minutes each
    python -m benchmarks.recovery.distill --nets resnet20 --minutes 5 --images 60000
    python -m benchmarks.recovery.distill --table

Cut by ``obs`` with ``--allocate dp`` on 512 unlabelled training images, ``recover``, then ``distill`` on ``--images`` unlabelled
training images. Accuracy is top-1 on the 10,000 test images in ONNX Runtime. Figures go to ``.cache/recovery/distill.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

import graphprune as gp
from benchmarks.recovery.data import load, normalise
from benchmarks.recovery.files import CACHE, CALIBRATION, FORMS, accuracy, note, read
from benchmarks.recovery.run import NETS
from graphprune.passes.distill import Distill
from graphprune.spec import instantiate, parse_pass_spec

RESULTS = CACHE / "distill.json"


def images(count: int) -> Path:
    """The first ``count`` training images without labels, float32[n, 1, 28, 28] as the networks take them."""
    path = CACHE / f"train_{count}.npy"
    if not path.is_file():
        part = path.with_suffix(".part.npy")
        np.save(part, normalise(load()[0].images[:count]))
        part.replace(path)
    return path


def measure(net: str, form: str, options: argparse.Namespace) -> dict[str, Any]:
    """Cut, recover, teach; accuracy of the source and after each."""
    with np.load(CACHE / "test.npz") as stored:
        pictures, labels = stored["input"], stored["labels"]
    source = CACHE / f"{net}.{form}.onnx"
    more = f",{options.options}" if options.options else ""
    given = {"budget": f"macs={options.budget:g}", "allocate": "dp", "data": images(options.images), "samples": CALIBRATION}
    length = f"steps={options.steps}" if options.steps else f"minutes={options.minutes:g}"
    started = time.perf_counter()
    result = gp.prune(source, passes=["obs", "recover"], **given)
    cut = time.perf_counter() - started
    recovered = accuracy(result.proto().SerializeToString(), pictures, labels)
    # The pass that --pass distill{...} adds behind these two; run by itself, so that the model can be judged in between.
    spec = parse_pass_spec(f"distill{{{length}{more}}}")
    instantiate(Distill, spec.options).run(result.state)
    record = result.plan.recovery["distill"]
    return {
        "source": accuracy(source, pictures, labels), "recovered": recovered,
        "distilled": accuracy(result.proto().SerializeToString(), pictures, labels),
        "macs": result.plan.after["macs"] / result.plan.before["macs"], "images": record["samples"], "steps": record["steps"],
        "epochs": record["epochs"], "seconds": record["seconds"],
        "cpu_seconds": record["cpu_seconds"], "cut_seconds": cut, "used": record["used"], "length": length + more,
        "scores": record["scores"],
    }  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """Markdown, a line a run."""
    lines = ["| network | file | MACs | source, % | recovered, % | distilled, % | points below source | images | steps | CPU minutes |",
             "| --- | --- |" + " ---: |" * 8]  # fmt: skip
    for key, one in sorted(found.items()):
        net, form, *_ = key.split("/")
        source, recovered, distilled = (100 * one[name] for name in ("source", "recovered", "distilled"))
        lines.append(
            f"| {net} | {form} | {one['macs']:.3f} | {source:.2f} | {recovered:.2f} | {distilled:.2f} | {source - distilled:.2f} "
            f"| {one['images']:,} | {one['steps']:,} | {one.get('cpu_seconds', one['seconds']) / 60:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=NETS)
    parser.add_argument("--forms", nargs="+", default=("bn",), choices=FORMS)
    parser.add_argument("--budget", type=float, default=0.35)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--steps", type=int, help="instead of minutes")
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--options", default="", help="further options of distill, as in lr=0.001,norms=train")
    parser.add_argument("--table", action="store_true", help="only print what was measured")
    options = parser.parse_args()
    for net in () if options.table else options.nets:
        for form in options.forms:
            entry = measure(net, form, options)
            key = f"{net}/{form}/{options.budget:g}/{options.images}/{entry['length']}"
            note(RESULTS, key, entry)
            print(key, json.dumps(entry), flush=True)
    print(table(read(RESULTS)))


if __name__ == "__main__":
    main()
