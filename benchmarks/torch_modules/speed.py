"""Wall time and peak memory of one cut, each in a process of its own, ours and Torch-Pruning's in turns."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 900
MODELS = ("resnet50", "vit_large", "llama_1b")


def build(name: str) -> tuple[Any, tuple[Any, ...]]:
    """Module and example inputs, weights at random."""
    import torch

    torch.manual_seed(0)
    if name == "resnet50":
        from benchmarks.zoo import cnn  # noqa: F401 (registers)
        from benchmarks.zoo.registry import ENTRIES

        built = ENTRIES["resnet50"].build()
        return built.module.eval(), built.inputs
    import transformers

    if name == "vit_large":
        config = transformers.ViTConfig(
            hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, num_labels=1000
        )
        return transformers.ViTForImageClassification(config).eval(), (torch.randn(1, 3, 224, 224),)
    kv = {"llama_1b": 8, "llama_1b_mha": 32}[name]
    config = transformers.LlamaConfig(
        hidden_size=2048, intermediate_size=7168, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=kv,
        vocab_size=32000, use_cache=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval(), (torch.randint(3, 32000, (1, 16)),)


def child(tool: str, name: str) -> dict[str, Any]:
    """Build, cut, and say what it took; imports and building are not counted in ``seconds``."""
    import torch

    torch.set_num_threads(1)
    module, inputs = build(name)
    before = sum(p.numel() for p in module.parameters())
    cpu = time.process_time()
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if tool == "graphprune":
        import graphprune as gp

        start = time.perf_counter()
        result = gp.prune(module, inputs, rate=0.5, scope="group")
        module = result.module
        found: dict[str, Any] = {
            "error": result.plan.verify["max_rel_error"],
            "form": type(module).__name__,
        }
    else:
        from benchmarks.torch_modules import peer

        start = time.perf_counter()
        peer.cut(module, inputs, {})
        found = {}
    found["seconds"] = time.perf_counter() - start
    found["cpu"] = time.process_time() - cpu
    found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found["built"] = base / 1024
    found["params"] = sum(p.numel() for p in module.parameters()) / before
    with torch.no_grad():
        try:
            module(*inputs)
            found["runs"] = True
        except Exception as error:
            found["runs"] = f"{type(error).__name__}: {error}"[:200]
    return found


def measure(tool: str, name: str) -> dict[str, Any]:
    """One process; ``whole`` is its wall time from start to end."""
    command = [sys.executable, "-m", "benchmarks.torch_modules.speed", tool, name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"no end after {LIMIT} s"}
    whole = time.perf_counter() - start
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1][:300]}
    return {**json.loads(lines[-1]), "whole": whole}


def side_by_side(names: list[str], runs: int = 1) -> None:
    """Both tools in turns; the medians, and graphprune's share of the other's."""
    for name in names or MODELS:
        found: dict[str, list[dict[str, Any]]] = {"graphprune": [], "torch-pruning": []}
        for _ in range(runs):
            for tool, results in found.items():
                results.append(measure(tool, name))
                print(name, tool, json.dumps(results[-1]), flush=True)
        done = {tool: [r for r in results if "failed" not in r] for tool, results in found.items()}
        if all(done.values()):
            ours, theirs = (
                {k: statistics.median(r[k] for r in rs) for k in ("seconds", "cpu", "whole", "peak")}
                for rs in done.values()
            )
            print(f"| {name} | {ours['seconds']:.1f} s | {theirs['seconds']:.1f} s | {ours['seconds'] / theirs['seconds']:.2f} | "
                  f"{ours['peak']:.0f} MB | {theirs['peak']:.0f} MB | {ours['peak'] / theirs['peak']:.2f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(child(*sys.argv[1:3])))
