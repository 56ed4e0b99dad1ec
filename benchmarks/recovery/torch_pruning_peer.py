"""Torch-Pruning on the same trained networks: ``python -m benchmarks.recovery.torch_pruning_peer resnet20``.

Group magnitude (L1), uniform and global thresholds, searched by bisection for a share of the MACs; then the batch-norm
statistics are re-estimated on the same unlabelled images that graphprune's recovery gets. No fine-tuning. At least a
tenth of each layer is kept, as graphprune does by default. Needs torch-pruning beside torch.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import graphprune as gp
from benchmarks.recovery.data import load
from benchmarks.recovery.export import export
from benchmarks.recovery.files import CACHE, CALIBRATION, note, read
from benchmarks.recovery.nets import NETS
from benchmarks.recovery.train import accuracy, restore
from graphprune.costs import CostModel

BUDGETS = (0.65, 0.5, 0.35)
FLOOR = 0.1


def conv_macs(net: nn.Module, example: torch.Tensor) -> int:
    """MACs of the convolutions and linear layers of one inference, batch 1: what a search can count cheaply."""
    total = 0

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        assert isinstance(module, (nn.Conv2d, nn.Linear))
        total += module.weight[0].numel() * output[0].numel()

    hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    with torch.inference_mode():
        net(example)
    for hook in hooks:
        hook.remove()
    return total


def model_macs(net: nn.Module, example: NDArray[np.float32]) -> int:
    """MACs of the exported network by graphprune's cost model, the same count as for its own cuts."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        export(net, "bn", path, example)
        state = gp.inspect(path)
        return CostModel(state.model, state.need_coupling(), state.need_facts()).price().macs


def cut(net: nn.Module, example: torch.Tensor, ratio: float, whole: bool) -> nn.Module:
    """A copy of ``net`` with ``ratio`` of its channels removed by Torch-Pruning.

    Parameters
    ----------
    ratio
        Share of channels to remove: of each layer, or over all with ``whole``.
    whole
        One threshold for the whole network (``global_pruning``).
    """
    import torch_pruning as tp

    net = copy.deepcopy(net)
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    classifier = [m for m in net.modules() if isinstance(m, nn.Linear)][-1]
    pruner = tp.pruner.BasePruner(
        net, example, importance=tp.importance.GroupMagnitudeImportance(p=1), global_pruning=whole,
        pruning_ratio=ratio, max_pruning_ratio=1 - FLOOR, ignored_layers=[classifier],
    )  # fmt: skip
    pruner.step()
    return net.eval()


def search(make: Callable[[float], nn.Module], count: Callable[[nn.Module], int], target: float, steps: int = 10) -> nn.Module:
    """The smallest cut that still keeps ``target`` MACs, less one per cent.

    Widths are whole numbers, so that a uniform cut comes in steps of up to a tenth of the MACs: rounding up is to
    Torch-Pruning's advantage.
    """
    low, high = 0.0, 1 - FLOOR
    best = make(low)
    for _ in range(steps):
        middle = (low + high) / 2
        candidate = make(middle)
        if count(candidate) >= 0.99 * target:
            low, best = middle, candidate
        else:
            high = middle
    return best


@torch.no_grad()
def reestimate(net: nn.Module, images: torch.Tensor, passes: int = 4, batch: int = 128) -> nn.Module:
    """A copy of ``net`` whose batch-norm statistics are the plain means over shuffled batches of ``images``."""
    net = copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    net.train()
    generator = torch.Generator().manual_seed(0)
    for _ in range(passes):
        for chosen in torch.randperm(len(images), generator=generator).split(batch):
            net(images[chosen])
    return net.eval()


def measure(name: str, budget: float, whole: bool, data: Any, images: torch.Tensor) -> dict[str, float]:
    """One cell: what is kept, and the accuracy without recovery and with batch norm re-estimated."""
    started = time.perf_counter()
    net = restore(name)
    example = images[:2].clone()
    full = conv_macs(net, example)
    pruned = search(lambda ratio: cut(net, example, ratio, whole), lambda n: conv_macs(n, example), budget * full)
    kept = model_macs(pruned, example.numpy()) / model_macs(net, example.numpy())
    seconds = time.perf_counter() - started
    return {
        "macs": kept, "none": accuracy(pruned, data[1]), "bn": accuracy(reestimate(pruned, images), data[1]),
        "seconds": round(seconds, 1),
    }  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", nargs="+", choices=list(NETS))
    parser.add_argument("--data", help="folder with Fashion-MNIST's idx files or CIFAR-10's batches")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    data = load(options.data)
    with np.load(CACHE / f"train_{CALIBRATION}.npz") as stored:
        images = torch.from_numpy(stored["input"])
    path = CACHE / "torch_pruning.json"
    for name in options.net:
        for budget in BUDGETS:
            for whole in (False, True):
                key = f"{name}/{'global' if whole else 'uniform'}/{budget:g}"
                if key in read(path):
                    continue
                found = measure(name, budget, whole, data, images)
                note(path, key, found)
                print(key, found, flush=True)


if __name__ == "__main__":
    main()
