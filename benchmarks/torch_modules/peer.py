"""Torch-Pruning on the same module, and what can be said of its result without a plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from benchmarks.torch_modules.sources import Make
from tests import torch_oracle

LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
PROBES = 64  # elements looked up to find where one index came from


def heads(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[nn.Module]:
    """The layers that a user would name as heads: whose output is an output, else the last layer."""
    layers = [m for m in module.modules() if isinstance(m, LAYERS)]
    made: dict[int, nn.Module] = {}
    alive: list[Tensor] = []  # an address is only known to be its own while the tensor lives

    def note(layer: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            made[output.data_ptr()] = layer
            alive.append(output)

    hooks = [layer.register_forward_hook(note) for layer in layers]
    with torch.no_grad():
        found = pytree.tree_leaves(module(*args, **kwargs))
    for hook in hooks:
        hook.remove()
    ends = [made[t.data_ptr()] for t in found if isinstance(t, Tensor) and t.data_ptr() in made]
    return ends or layers[-1:]


def cut(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """One step of its pruner, in place: half of the channels of every layer, smallest magnitude first."""
    import torch_pruning as tp

    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    example: Any = kwargs if kwargs and not args else args
    pruner = tp.pruner.BasePruner(
        module, example, importance=tp.importance.MagnitudeImportance(p=1), pruning_ratio=0.5, global_pruning=False,
        ignored_layers=heads(module, args, kwargs),
    )  # fmt: skip
    pruner.step()


def kept_axis(source: Tensor, smaller: Tensor, axis: int, order: Tensor, ranked: Tensor) -> list[int] | None:
    """Where each index of ``axis`` came from: its elements are looked up among the source's, the majority tells."""
    stride = 1
    for size in source.shape[axis + 1 :]:
        stride *= size
    found = []
    for index in range(smaller.shape[axis]):
        values = smaller.select(axis, index).flatten()[:PROBES].contiguous()
        at = torch.searchsorted(ranked, values).clamp(max=ranked.numel() - 1)
        hits = order[at[ranked[at] == values]]
        if not len(hits):
            return None
        found.append(int(((hits // stride) % source.shape[axis]).mode().values))
    return found if len(set(found)) == len(found) else None


def kept_by_values(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> torch_oracle.Kept | str:
    """Kept indices read off by equal values; a text says of which tensor they cannot be read."""
    kept: torch_oracle.Kept = {}
    for name, source in before.items():
        smaller = after.get(name)
        if smaller is None:
            return f"'{name}' is gone"
        if smaller.shape == source.shape:
            if not torch.equal(smaller, source):
                return f"values of '{name}' changed"
            continue
        if smaller.ndim != source.ndim or not source.is_floating_point():
            return f"'{name}' is of another kind"
        ranked, order = source.detach().flatten().sort()
        axes = {}
        for axis in range(source.ndim):
            if smaller.shape[axis] == source.shape[axis]:
                continue
            found = kept_axis(source.detach(), smaller.detach(), axis, order, ranked)
            if found is None:
                return f"'{name}' axis {axis} cannot be read off"
            axes[axis] = found
        picked = source.detach()
        for axis, alive in axes.items():
            picked = picked.index_select(axis, torch.tensor(alive))
        if not torch.equal(picked, smaller.detach()):
            return f"'{name}' is no slice of the source's"
        kept[name] = axes
    return kept


def run(make: Make, tolerance: float = torch_oracle.TOLERANCE) -> dict[str, Any]:
    """Cut and judge; ``verdict`` is one of right, wrong, shape, breaks, crash, no-op, unproved."""
    source, args, kwargs = make()
    module = torch_oracle.as_module(source)
    before = sum(p.numel() for p in module.parameters())
    try:
        want = torch_oracle.outputs(module, args, kwargs)
        cut(module, args, kwargs)
    except Exception as error:
        return {"verdict": "crash", "why": told(error)}
    module.eval()
    params = sum(p.numel() for p in module.parameters()) / before
    try:
        got = torch_oracle.outputs(module, args, kwargs)
    except Exception as error:
        return {"verdict": "breaks", "why": told(error), "params": params}
    if params == 1:
        return {"verdict": "no-op", "why": "nothing was cut", "params": params}
    if [t.shape for t in want] != [t.shape for t in got]:
        return {"verdict": "shape", "why": f"outputs are {[tuple(t.shape) for t in got]}", "params": params}
    kept = kept_by_values(torch_oracle.tensors(torch_oracle.as_module(make()[0])), torch_oracle.tensors(module))
    if isinstance(kept, str):
        return {"verdict": "unproved", "why": kept, "params": params}
    with torch_oracle.slow_paths():
        error = torch_oracle.difference(torch_oracle.masked_outputs(make, kept, lanes=True), got)
    return {"verdict": "right" if error <= tolerance else "wrong", "why": f"{error:.0e}", "params": params}


def told(error: BaseException) -> str:
    """Kind and text of an error in one short line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]
