"""INT8 behind a cut, stage by stage: accuracy, bytes and time of source, cut, recovered and INT8, and of INT8 alone.

    python -m benchmarks.quantisation                          # the five networks of benchmarks/recovery
    python -m benchmarks.quantisation --nets resnet20 rec      # rec: PP-OCRv4's recogniser, on 100 lines
    python -m benchmarks.quantisation --table                  # what was measured so far, as markdown

Every network is cut once to half of its MACs in widths of multiples of 8 (``obs``, shared by dynamic programming, fitted on 512
unlabelled samples; the recogniser to 0.8 by ``l1``, on 96) and quantised for ONNX Runtime. What the recovered cut gives when it is quantised for TensorRT or OpenVINO (judged in ONNX Runtime too),
or made 2:4 sparse, is measured beside. Times are processor time on one thread, in turns, as a share of the source's. Figures go to
``.cache/quantisation.json``, network by network.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import graphprune as gp
from benchmarks.recovery.files import CACHE, note, read
from graphprune.evaluation import Evaluation
from graphprune.stages import ALONE, CUT, INT8, RECOVERED, SOURCE

NETS = ("resnet20", "mobilenetv2", "vgg16_slim", "densenet22", "resnet56")
RESULTS = CACHE.parent / "quantisation.json"
#: Rounds of timing, and images that are run together.
ROUNDS, BATCH = 60, 16
VARIANTS = {
    "INT8 for tensorrt": "quantize{backend=tensorrt,alone=false}",
    "INT8 for openvino": "quantize{backend=openvino,alone=false}",
    "2:4, magnitude, not refitted": "sparsify{criterion=magnitude,refit=false}",
    "2:4, magnitude": "sparsify{criterion=magnitude}",
    "2:4, obs": "sparsify",
}


def measure(net: str) -> dict[str, Any]:
    """All figures of one network."""
    if net == "rec":
        from benchmarks.ppocr.files import model_path
        from benchmarks.ppocr.lines import calibration

        source, data, judge, samples = model_path("rec"), calibration(), "benchmarks.ppocr.evaluate:lines_quick", 96
        shapes: dict[str, tuple[int, ...]] = {"x": (1, 3, 48, 320)}
        cut: dict[str, Any] = {"budget": "macs=0.8", "allocate": "global", "align": 8}
        criterion = "l1"
    else:
        source, data, judge, samples = CACHE / f"{net}.folded.onnx", CACHE / "train_512.npz", "benchmarks.recovery.judge:top1", 512
        shapes, criterion, cut = {}, "obs", {"budget": "macs=0.5", "align": 8}
    settings: dict[str, Any] = {"data": str(data), "samples": samples, "shapes": shapes, "eval": judge}
    result = gp.prune(source, passes=[criterion, "recover", "quantize"], **cut, **settings)
    stages = {stage["stage"]: stage for stage in result.plan.stages}
    found: dict[str, Any] = {"macs": result.plan.after["macs"] / result.plan.before["macs"], "stages": result.plan.stages, "seconds": result.state.seconds, "variants": {}}
    assert result.state.stages is not None
    with tempfile.TemporaryDirectory() as folder:
        from graphprune.backends.onnx import save

        paths = [Path(source)]
        for stage in result.state.stages.entries[1:]:
            paths.append(Path(folder) / f"{stage.name}.onnx")
            save(stage.model, paths[-1])
        timed = [n for n, stage in enumerate(result.state.stages.entries) if stage.name in (SOURCE, RECOVERED, INT8, ALONE)]
        times = gp.bench(*(paths[n] for n in timed), threads=1, clock="cpu", runs=ROUNDS, shapes=shapes, batch=None if shapes else BATCH)
        found["times"] = {result.state.stages.entries[n].name: row.to_json() for n, row in zip(timed, times.rows, strict=True)}
        for row in found["times"].values():
            row.pop("times", None)
        recovered = next(path for path in paths if path.stem == RECOVERED)
        for name, passes in VARIANTS.items() if net != "rec" else ():
            other = gp.prune(recovered, passes=[passes], **{**settings, "eval": None})
            save(other.ir, Path(folder) / "variant.onnx")
            found["variants"][name] = Evaluation(judge)(Path(folder) / "variant.onnx", name)
    assert CUT in stages
    return found


def figure(value: float | dict[str, float] | None) -> str:
    """Accuracy as a table shows it."""
    if isinstance(value, dict):
        value = next(iter(value.values()))
    return "" if value is None else f"{value:.4f}"


def table() -> str:
    """What was measured, as markdown."""
    columns = (SOURCE, CUT, RECOVERED, INT8, ALONE)
    entries = read(RESULTS)
    lines = ["| network | MACs kept | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 2) + "|"]
    for net, entry in entries.items():
        stages = {stage["stage"]: stage for stage in entry["stages"]}
        lines.append(f"| {net} | {entry['macs']:.2f} | " + " | ".join(figure(stages[c]["evaluation"]) if c in stages else "" for c in columns) + " |")
    lines += ["", "| network | bytes: recovered | INT8 | INT8 alone | time: recovered | INT8 | INT8 alone |", "| --- " * 7 + "|"]
    for net, entry in entries.items():
        stages = {stage["stage"]: stage["bytes"] for stage in entry["stages"]}
        own = [c for c in (RECOVERED, INT8, ALONE) if c in stages]
        sizes = [f"{stages[c] / stages[SOURCE]:.2f}" for c in own]
        lines.append(f"| {net} | " + " | ".join([*sizes, *(f"{entry['times'][c]['ratio']:.2f}" for c in own)]) + " |")
    names = list(VARIANTS)
    lines += ["", "| network | recovered | " + " | ".join(names) + " |", "| --- " * (len(names) + 2) + "|"]
    for net, entry in entries.items():
        recovered = next(stage["evaluation"] for stage in entry["stages"] if stage["stage"] == RECOVERED)
        if entry["variants"]:
            lines.append(f"| {net} | {figure(recovered)} | " + " | ".join(figure(entry["variants"][name]) for name in names) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=NETS, choices=(*NETS, "rec"))
    parser.add_argument("--force", action="store_true", help="measure anew what is there")
    parser.add_argument("--table", action="store_true", help="print what is there, measure nothing")
    given = parser.parse_args()
    for net in () if given.table else given.nets:
        if given.force or net not in read(RESULTS):
            note(RESULTS, net, json.loads(json.dumps(measure(net), default=float)))
            print(f"measured: {net}", flush=True)
    print(table())


if __name__ == "__main__":
    main()
