"""Cut modules on disk, without pickle: weights in a ``.safetensors`` file, what was cut and mended in the plan beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graphprune.backends.inplace.attention import adapt, give_back
from graphprune.backends.inplace.cutting import mend
from graphprune.backends.inplace.graph import graph_module
from graphprune.backends.inplace.holders import put_back, slots
from graphprune.backends.inplace.sizes import KeptScale
from graphprune.backends.inplace.solve import Call
from graphprune.backends.inplace.tensors import Sliced, named_tensors
from graphprune.backends.onnx import Transaction
from graphprune.errors import ModelError, UsageError
from graphprune.frontends.torch import load_module
from graphprune.frontends.torch_inputs import call_of
from graphprune.plan import Plan, plan_path
from graphprune.replay import replay

#: Key of the metadata of a weights file: name -> the name under which the same tensor stands in the file.
TIED = "graphprune.tied"


def stage(module: nn.Module, path: Path, transaction: Transaction) -> None:
    """Write a module's ``state_dict`` as part of a transaction; tied tensors once."""
    from safetensors.torch import save

    first: dict[Any, str] = {}
    tied: dict[str, str] = {}
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in module.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            continue
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)
        if tensor.data_ptr() and place in first:
            tied[name] = first[place]
            continue
        first[place] = name
        tensors[name] = tensor.detach().cpu().contiguous().clone() if _shares(tensor) else tensor.detach().cpu().contiguous()
    transaction.write(path, save(tensors, metadata={TIED: json.dumps(tied), "format": "pt"}))


def _shares(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a part of a larger memory."""
    return bool(tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size())


def load(path: str | os.PathLike[str], module: nn.Module, example_inputs: Any = None) -> nn.Module:
    """Make a fresh source module what a saved one was: cut by its plan, attributes mended, weights loaded.

    Parameters, results and errors are those of :func:`graphprune.load`, which calls it.
    """
    path = Path(path)
    plan = Plan.load(plan_path(path))
    kind = plan.attributes.get("kind") if isinstance(plan.attributes, Mapping) else None
    if kind not in ("module", "graph"):
        raise UsageError(
            f"{plan_path(path)} does not tell of a torch module: gp.load is for what result.save('out.safetensors') wrote"
        )
    tensors = _read(path)
    if kind == "graph":
        return _load_graph(plan, tensors, module, example_inputs, path)
    sliced = Sliced()
    adapted: list[Any] = []
    undo: list[Any] = []
    try:
        known = set(named_tensors(module))
        absent = [name for name in plan.tensors if name not in known]
        if absent:
            raise UsageError(
                f"{type(module).__name__} has no tensor '{absent[0]}', which the plan cuts: give the module that was "
                f"pruned ({plan.attributes.get('class')}), as it was before"
            )
        adapted.extend(adapt(module, plan.tensors))
        sliced.cut(module, plan.tensors)
        undo.extend(mend(module, _changes(module, plan)))
        for name, tensor in named_tensors(module).items():
            new = tensors.get(name)
            # Indices into an axis that was cut: fewer of them, and other ones.
            if new is not None and new.shape != tensor.shape and not (new.is_floating_point() or name in plan.tensors):
                sliced.put(name, tensor, new.to(dtype=tensor.dtype, device=tensor.device))
        _add_parameters(module, tensors, sliced)
        _fill(module, tensors, path)
    except BaseException:
        put_back(undo)
        give_back(adapted)
        sliced.restore()
        raise
    return module


def _changes(module: nn.Module, plan: Plan) -> dict[tuple[str, tuple[Any, ...]], int]:
    """The attributes to mend, each of which must be there with the value that it had."""
    found = {(slot.module, tuple(map(str, slot.path))): slot for slot in slots(module)}
    out: dict[tuple[str, tuple[Any, ...]], int] = {}
    for entry in plan.attributes.get("mended", ()):
        try:
            key = (str(entry["module"]), tuple(map(str, entry["path"])))
            before, after = int(entry["before"]), int(entry["after"])
            scale = entry.get("scale")
        except (TypeError, KeyError, ValueError) as error:
            raise UsageError(f"the plan's list of mended attributes is damaged ({error!r}): save the module again") from error
        slot = found.get(key)
        name = ".".join((*([key[0]] if key[0] else ()), *key[1]))
        if slot is None:
            raise UsageError(f"{type(module).__name__} has no attribute '{name}', which the plan mends: is it the same class?")
        if slot.value not in (before, after):
            raise UsageError(f"attribute '{name}' is {slot.value}, in the module that was pruned it was {before}")
        out[slot.module, slot.path] = after if scale is None else KeptScale(after, int(scale))
    return out


def _read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a weights file, tied ones under all their names."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            tied = json.loads((file.metadata() or {}).get(TIED, "{}"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror or error}): result.save('out.safetensors') writes it") from error
    except (SafetensorError, ValueError) as error:
        raise ModelError(f"{path} is no safetensors file, or is damaged: {error}") from error
    return {**tensors, **{name: tensors[source] for name, source in tied.items() if source in tensors}}


def _add_parameters(module: nn.Module, tensors: Mapping[str, torch.Tensor], sliced: Sliced) -> None:
    """Make room for parameters that a recovery added where the source has None."""
    for prefix, one in module.named_modules():
        for name, held in one._parameters.items():
            new = tensors.get(f"{prefix}.{name}" if prefix else name)
            if held is None and new is not None:
                like = next((p for p in one.parameters(recurse=False)), new)
                sliced.add(one, name, nn.Parameter(torch.empty_like(new, dtype=like.dtype, device=like.device)))


def _fill(module: nn.Module, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Give a module of the right shapes its weights; all or none."""
    own = module.state_dict(keep_vars=True)
    own = {name: tensor for name, tensor in own.items() if isinstance(tensor, torch.Tensor)}
    missing, more = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    if missing or more:
        what = f"lacks '{missing[0]}'" if missing else f"holds '{more[0]}', which the module has not"
        raise UsageError(f"{path} {what}: it belongs to another module")
    for name, tensor in own.items():
        if tensor.shape != tensors[name].shape:
            raise UsageError(
                f"{path}: tensor '{name}' has shape {list(tensors[name].shape)}, the cut module {list(tensor.shape)}: weights "
                "and plan do not belong together"
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def _load_graph(
    plan: Plan, tensors: Mapping[str, torch.Tensor], module: nn.Module, example_inputs: Any, path: Path
) -> nn.Module:  # fmt: skip
    """A saved graph, made anew from the source module."""
    if example_inputs is None:
        raise UsageError(
            f"{path} holds a graph, as the module's own code did not allow the cut ({plan.attributes.get('reason')}): give "
            "gp.load(path, module, example_inputs) the example inputs of the run, so that the graph can be made again"
        )
    args, kwargs = call_of(module, example_inputs)
    loaded = load_module(module, (args, kwargs), dynamic_batch=bool(plan.attributes.get("open")))
    state = replay(loaded, plan)
    assert state.cut is not None
    result = Call(module, lambda: (args, kwargs)).run()
    graph = graph_module(state.cut, module, args, kwargs, result, str(plan.attributes.get("reason")))
    _fill(graph, tensors, path)
    return graph
