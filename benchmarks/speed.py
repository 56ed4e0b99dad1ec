"""Time (wall and CPU) and peak memory of whole processes, side by side, interleaved, as ratios; and how analysis grows.

    python benchmarks/speed.py resnet50.onnx [--runs 5]        # beside onnxsim and Torch-Pruning, where installed
    python benchmarks/speed.py --scale                         # 1M and 10M channels, 1k and 10k nodes
    python benchmarks/speed.py --large                         # a 2.5 GB file with external data
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

ONNXSIM = """
import sys, onnx, onnxsim
m = onnxsim.simplify(onnx.load(sys.argv[1]))[0]
m = onnxsim.apply_structured_pruning(m, sparsity=0.5)
m = onnxsim.apply_attention_head_pruning(m, sparsity=0.5)
del m.graph.value_info[:]
onnx.save(m, sys.argv[2])
"""
TORCH_PRUNING = """
import sys, torch, torch_pruning as tp
sys.path.insert(0, sys.argv[3])
import benchmarks.zoo
from benchmarks.zoo import cnn, registry
built = registry.ENTRIES["resnet50"].build()
module, inputs = built.module.eval(), built.inputs
head = [m for m in module.modules() if isinstance(m, torch.nn.Linear)][-1:]
tp.pruner.BasePruner(module, inputs, importance=tp.importance.MagnitudeImportance(p=1), pruning_ratio=0.5,
                     global_pruning=False, ignored_layers=head).step()
torch.save(module.state_dict(), sys.argv[2])
"""


def measure(command: list[str]) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds (user and system) and peak MB of one process."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{command[:4]} ended with status {status}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def side_by_side(path: Path, runs: int) -> None:
    """graphprune's whole run beside the peers' processes."""
    root = str(Path(__file__).resolve().parent.parent)
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "out.onnx")
        commands = {
            "graphprune run --pass l1": [sys.executable, "-m", "graphprune.cli", "run", str(path), "-o", out,
                                         "--rate", "0.5", "--scope", "group"],
            "onnxsim simplify + prune": [sys.executable, "-c", ONNXSIM, str(path), out],
            "Torch-Pruning": [sys.executable, "-c", TORCH_PRUNING, str(path), out, root],
        }  # fmt: skip
        results: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
        for run in range(runs + 1):
            for name, command in commands.items():
                try:
                    figure = measure(command)
                except RuntimeError as error:
                    print(error, file=sys.stderr)
                    continue
                if run:
                    results[name].append(figure)
        ours = results["graphprune run --pass l1"]
        for name, figures in results.items():
            if figures:
                cells = []
                for column in (0, 1):
                    ratios = [theirs[column] / own[column] for theirs, own in zip(figures, ours, strict=False)]
                    cells += [f"{statistics.median(f[column] for f in figures):.2f}", f"{statistics.median(ratios):.2f}"]
                print(f"| {name} | {' | '.join(cells)} | {max(f[2] for f in figures):.0f} |")


def chain(channels: int, width: int, batch: str | int = 1) -> onnx.ModelProto:
    """1x1 convolutions in a row, ``channels`` in all; weights are zero-filled lazily small."""
    n = channels // width
    nodes, weights = [], []
    value = "x"
    for i in range(n):
        before = width if i else 4
        weights.append(helper.make_tensor(f"w{i}", TensorProto.FLOAT16, [width, 1, 1, 1], np.ones(width, np.float16)))
        if not i:
            weights[-1] = helper.make_tensor("w0", TensorProto.FLOAT16, [width, before, 1, 1],
                                             np.ones(width * before, np.float16))  # fmt: skip
        nodes.append(helper.make_node("Conv", [value, f"w{i}"], [f"c{i}"], group=width if i else 1))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        value = f"r{i}"
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["p"]))
    nodes.append(helper.make_node("Conv", ["p", "head"], ["y"]))
    weights.append(helper.make_tensor("head", TensorProto.FLOAT16, [2, width, 1, 1], np.ones(2 * width, np.float16)))
    graph = helper.make_graph(nodes, "chain", [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [batch, 4, 2, 2])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT16, [batch, 2, 1, 1])], weights)  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def dense(channels: int, width: int) -> onnx.ModelProto:
    """Independent branches of two convolutions: every channel is a unit of its own."""
    nodes, weights, outputs = [], [], []
    for i in range(channels // width):
        weights.append(helper.make_tensor(f"a{i}", TensorProto.FLOAT16, [width, 4, 1, 1], np.ones(width * 4, np.float16)))
        weights.append(helper.make_tensor(f"b{i}", TensorProto.FLOAT16, [2, width, 1, 1], np.ones(2 * width, np.float16)))
        nodes.append(helper.make_node("Conv", ["x", f"a{i}"], [f"c{i}"]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        nodes.append(helper.make_node("Conv", [f"r{i}", f"b{i}"], [f"y{i}"]))
        outputs.append(f"y{i}")
    nodes.append(helper.make_node("Sum", outputs, ["y"]))
    graph = helper.make_graph(nodes, "dense", [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1, 4, 2, 2])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT16, [1, 2, 2, 2])], weights)  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def scale() -> None:
    """Seconds of the analysis (canonicalize and couple) as channels and nodes grow."""
    import graphprune as gp

    for name, model in (
        ("1,000,000 channels as 1,000,000 units", dense(1_000_000, 2000)),
        ("10,000,000 channels as 10,000,000 units", dense(10_000_000, 20_000)),
        ("1,000,000 channels in 500 depthwise layers", chain(1_000_000, 2000)),
        ("10,000,000 channels in 500 depthwise layers", chain(10_000_000, 20_000)),
        ("1,000 layers of 64 channels", chain(64_000, 64)),
        ("10,000 layers of 64 channels", chain(640_000, 64)),
    ):
        state = gp.inspect(model)
        seconds = state.seconds["canonicalize"] + state.seconds["couple"]
        print(f"| {name} | {state.coupling.n_units:,} | {len(list(state.model.graph)):,} | {seconds:.2f} |", flush=True)


def large(folder: Path) -> Path:
    """40 layers of 4096 x 4096 float32 in external data, streamed to disk: 2.7 GB."""
    path = folder / "large.onnx"
    rng = np.random.default_rng(0)
    tensors, nodes, value, offset = [], [], "x", 0
    with (folder / "large.data").open("wb") as file:
        for i in range(40):
            array = rng.standard_normal((4096, 4096), dtype=np.float32) / 64
            file.write(array.tobytes())
            tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[4096, 4096],
                                 data_location=TensorProto.EXTERNAL)  # fmt: skip
            for key, text in (("location", "large.data"), ("offset", str(offset)), ("length", str(array.nbytes))):
                tensor.external_data.add(key=key, value=text)
            offset += array.nbytes
            tensors.append(tensor)
            nodes.append(helper.make_node("MatMul", [value, f"w{i}"], [f"m{i}"]))
            nodes.append(helper.make_node("Relu", [f"m{i}"], [f"r{i}"]))
            value = f"r{i}"
    graph = helper.make_graph(nodes, "large", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4096])],
                              [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["N", 4096])], tensors)  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--scale", action="store_true")
    parser.add_argument("--large", action="store_true")
    args = parser.parse_args()
    if args.file:
        side_by_side(args.file, args.runs)
    if args.scale:
        scale()
    if args.large:
        with tempfile.TemporaryDirectory() as folder:
            path = large(Path(folder))
            seconds, _, peak = measure([sys.executable, "-m", "graphprune.cli", "run", str(path), "-o",
                                     str(Path(folder) / "out.onnx"), "--rate", "0.5", "--scope", "group"])  # fmt: skip
            size = sum(p.stat().st_size for p in Path(folder).glob("large*")) / 1e9
            print(f"| {size:.2f} GB of external data, cut and proved | {seconds:.1f} s | {peak:.0f} MB |")


if __name__ == "__main__":
    main()
