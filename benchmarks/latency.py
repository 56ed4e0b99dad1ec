"""Latency budgets, and cuts of the same MACs by others, timed in turns.

    python -m benchmarks.latency budgets [NAME ...] [--runtime openvino]    # --budget latency=0.5x on each
    python -m benchmarks.latency peers [--json out.json]                    # ResNet-50: half of the MACs, four ways

Models come from the zoo (`python -m benchmarks.zoo build`); `ppocr_det` is rapidocr_onnxruntime's text detector at 640 x 640, `vit_b` a ViT-B/16
that is built here. One thread; times are the processor's own for this process, so that other programs do not count.
`peers` needs onnxsim and torch-pruning.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

import graphprune as gp
from graphprune.backends.onnx import to_bytes
from graphprune.costs import CostModel

CACHE = Path(__file__).resolve().parent / ".cache"
NAMES = ("resnet50", "mobilenet_v2", "yolo_c2f", "vit_b", "ppocr_det")
SHAPES = {"ppocr_det": {"x": (1, 3, 640, 640)}}


def source(name: str) -> Path:
    """The file of a model, built where it is built here."""
    if name == "ppocr_det":
        import rapidocr_onnxruntime

        return Path(rapidocr_onnxruntime.__file__).parent / "models" / "ch_PP-OCRv4_det_infer.onnx"
    path = CACHE / "latency" / "vit_b.onnx" if name == "vit_b" else CACHE / "zoo" / f"{name}.onnx"
    if name == "vit_b" and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _vit_b(path)
    if not path.exists():
        raise SystemExit(f"{path} is missing: python -m benchmarks.zoo build {name}")
    return path


def _vit_b(path: Path) -> None:
    """ViT-B/16 of transformers at its default sizes, weights drawn."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(num_labels=1000, attn_implementation="eager")
    module = ViTForImageClassification(config).eval()
    torch.onnx.export(module, (torch.zeros(1, 3, 224, 224),), path, input_names=["image"], dynamo=True, external_data=False)


def budgets(names: list[str], runtime: str) -> list[dict[str, Any]]:
    """`--budget latency=0.5x` without data: what was asked, what was measured, what it cost."""
    rows = []
    for name in names:
        start = time.perf_counter()
        result = gp.prune(source(name), budget="latency=0.5x", threads=1, runtime=runtime, shapes=SHAPES.get(name))
        seconds = time.perf_counter() - start
        found = gp.bench(source(name), to_bytes(result.ir), runtime=runtime, threads=1, clock="cpu", runs=60, seconds=60.0,
                         shapes=SHAPES.get(name), seed=1)  # fmt: skip
        cut = found.rows[1]
        plan = result.plan
        rows.append({
            "model": name, "runtime": found.runtime, "source_ms": found.rows[0].median, "cut_ms": cut.median, "share": cut.ratio,
            "interval": cut.ratio_interval, "macs": plan.after["macs"] / plan.before["macs"],
            "params": plan.after["params"] / plan.before["params"], "seconds": seconds,
            "notes": [note for note in plan.notes if "latency" in note],
        })  # fmt: skip
        row = rows[-1]
        low, high = row["interval"]
        print(f"| {name} | {row['source_ms']:.2f} | {row['cut_ms']:.2f} | {row['share']:.3f} ({low:.3f} to {high:.3f}) | "
              f"{row['macs']:.1%} | {row['params']:.1%} | {seconds:.0f} |", flush=True)  # fmt: skip
    return rows


def _macs(model: onnx.ModelProto) -> int:
    state = gp.inspect(model)
    return CostModel(state.model, state.need_coupling(), state.need_facts()).price().macs


def _half(cut: Callable[[float], onnx.ModelProto], target: float) -> onnx.ModelProto:
    """The uniform rate at which a peer's result has ``target`` MACs, by bisection."""
    low, high, best = 0.1, 0.8, None
    for _ in range(7):
        rate = (low + high) / 2
        model = cut(rate)
        macs = _macs(model)
        if best is None or abs(macs - target) < abs(best[0] - target):
            best = (macs, model)
        low, high = (rate, high) if macs > target else (low, rate)
    assert best is not None
    return best[1]


def _onnxsim(path: Path) -> Callable[[float], onnx.ModelProto]:
    import onnxsim

    simple = onnxsim.simplify(onnx.load(path))[0]

    def cut(rate: float) -> onnx.ModelProto:
        model = onnxsim.apply_structured_pruning(simple, sparsity=rate)
        del model.graph.value_info[:]
        return model

    return cut


def _torch_pruning(_: Path) -> Callable[[float], onnx.ModelProto]:
    import torch
    import torch_pruning as tp

    import benchmarks.zoo  # noqa: F401
    from benchmarks.zoo import registry

    def cut(rate: float) -> onnx.ModelProto:
        built = registry.ENTRIES["resnet50"].build()
        module = built.module.eval()
        head = [m for m in module.modules() if isinstance(m, torch.nn.Linear)][-1:]
        tp.pruner.BasePruner(module, built.inputs, importance=tp.importance.MagnitudeImportance(p=1), pruning_ratio=rate,
                             global_pruning=False, ignored_layers=head).step()  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "m.onnx"
            torch.onnx.export(module, tuple(built.inputs), out, input_names=["image"], dynamo=True, external_data=False)
            return onnx.load(out)

    return cut


def peers() -> list[dict[str, Any]]:
    """ResNet-50 at half of its MACs, each way; ``latency`` is asked for the time at which half of the MACs are left."""
    path = source("resnet50")
    target = 0.5 * _macs(onnx.load(path))
    models: dict[str, Any] = {"source": path}
    for name, make in (("onnxsim, uniform", _onnxsim), ("Torch-Pruning, uniform", _torch_pruning)):
        try:
            models[name] = _half(make(path), target).SerializeToString()
        except Exception as error:  # a peer's failure is a row of the table, not the end of it
            print(f"{name}: {type(error).__name__}: {error}"[:300], file=sys.stderr)
    settings: dict[str, dict[str, Any]] = {
        "graphprune, uniform": {"budget": "macs=0.5", "allocate": "uniform"},
        "graphprune, macs=0.5": {"budget": "macs=0.5"},
        "graphprune, macs=0.5 --align auto": {"budget": "macs=0.5", "align": "auto"},
        "graphprune, latency=0.52x": {"budget": "latency=0.52x"},
    }
    for name, options in settings.items():
        models[name] = to_bytes(gp.prune(path, threads=1, **options).ir)
    found = gp.bench(*models.values(), threads=1, clock="cpu", runs=60, seconds=200.0)
    base = _macs(onnx.load(path))
    rows = []
    for name, row in zip(models, found.rows, strict=True):
        model = models[name]
        kept = _macs(onnx.load(model) if isinstance(model, Path) else onnx.load_from_string(model)) / base
        low, high = row.ratio_interval or (1.0, 1.0)
        ratio = row.ratio or 1.0
        won = (1 - ratio) / (1 - kept) if kept < 1 else 0.0
        rows.append({"way": name, "ms": row.median, "share": ratio, "interval": [low, high], "macs": kept, "won": won})
        print(f"| {name} | {kept:.1%} | {row.median:.2f} | {ratio:.3f} ({low:.3f} to {high:.3f}) | {1 / ratio:.2f}x | {won:.2f} |",
              flush=True)  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("what", choices=["budgets", "peers"])
    parser.add_argument("names", nargs="*", default=list(NAMES))
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = budgets(args.names, args.runtime) if args.what == "budgets" else peers()
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
