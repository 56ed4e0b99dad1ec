"""Slicing the tensors of a module where they lie, and putting them back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn.utils import parametrize

from graphprune.errors import UsageError

#: Tensor name -> ``{"shape": [...], "kept": {"axis": [indices]}}``, as in a plan.
Entries = Mapping[str, Mapping[str, Any]]
#: Integers by their bytes.
_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def named_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters, buffers and plain tensor attributes of a module, under every name they have."""
    found: dict[str, torch.Tensor] = {}
    for prefix, one in module.named_modules(remove_duplicate=False):
        dot = f"{prefix}." if prefix else ""
        for held in (one._parameters, one._buffers):
            found.update({dot + name: tensor for name, tensor in held.items() if tensor is not None})
        plain = {name: value for name, value in vars(one).items() if isinstance(value, torch.Tensor)}
        found.update({dot + name: tensor for name, tensor in plain.items() if tensor.grad_fn is None})
    return found


def owners(module: torch.nn.Module) -> dict[str, list[str]]:
    """Tensor name -> names of the modules that hold this very tensor themselves."""
    tensors = named_tensors(module)
    by_id: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        by_id.setdefault(id(tensor), []).append(name.rpartition(".")[0])
    return {name: by_id[id(tensor)] for name, tensor in tensors.items()}


@dataclass
class Sliced:
    """What was changed about a module's tensors, so that it can be put back exactly.

    ``tensor.data`` is exchanged: the Parameter objects stay, and with them hooks, ties and optimizers' references.
    """

    _before: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]] = field(default_factory=list)
    _states: list[tuple[dict[Any, Any], Any, Any]] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    _added: list[tuple[torch.nn.Module, str]] = field(default_factory=list)

    def add(self, module: torch.nn.Module, name: str, parameter: torch.nn.Parameter) -> None:
        """Give a module a parameter where it has None."""
        self._added.append((module, name))
        module._parameters[name] = parameter

    def cut(self, module: torch.nn.Module, entries: Entries, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Slice everything that a plan names; gradients and optimizer state with it.

        Raises
        ------
        UsageError
            A tensor has another shape than the plan says.
        """
        tensors = named_tensors(module)
        done: set[int] = set()
        shared: dict[tuple[Any, ...], torch.Tensor] = {}
        for name, entry in entries.items():
            tensor = tensors.get(name)
            if tensor is None or id(tensor) in done or not entry["kept"]:
                continue
            done.add(id(tensor))
            if list(tensor.shape) != list(entry["shape"]):
                raise UsageError(
                    f"tensor '{name}' has shape {list(tensor.shape)}, the plan says {list(entry['shape'])}: it is "
                    "another module's plan, or this one was cut already"
                )
            takes = [(int(axis), np.asarray(kept, np.int64)) for axis, kept in entry["kept"].items()]
            # Two Parameters in the same memory stay in the same memory.
            place = (tensor.data_ptr(), tensor.stride(), tensor.dtype, tensor.device, repr(entry["kept"]))
            if place not in shared or not tensor.data_ptr():
                shared[place] = taken(tensor.data, takes)
            self._slice_state(name, tensor, takes, optimizer)
            self.put(name, tensor, shared[place], takes)

    def put(
        self, name: str, tensor: torch.Tensor, data: torch.Tensor, takes: Sequence[tuple[int, Any]] | None = None
    ) -> None:
        """Give a tensor other contents; its gradient is sliced, or dropped where ``takes`` is not given."""
        grad = tensor.grad if tensor.is_leaf else None
        self._before.append((tensor, tensor.data, grad))
        if grad is not None:
            tensor.grad = None
        tensor.data = data
        if grad is not None and takes is not None:
            tensor.grad = taken(grad, takes)
        if tensor.requires_grad and tensor.is_leaf and _accumulator_is_stale(tensor):
            self.stale.append(name)

    def _slice_state(
        self, name: str, tensor: torch.Tensor, takes: Sequence[tuple[int, Any]], optimizer: torch.optim.Optimizer | None
    ) -> None:
        state = None if optimizer is None else optimizer.state.get(tensor)
        for key, held in list((state or {}).items()):
            assert state is not None
            if not isinstance(held, torch.Tensor) or held.ndim == 0 or held.numel() == 1:
                continue
            if held.shape == tensor.shape:
                new: torch.Tensor = taken(held, takes)
            else:
                axes = _axes_of(tuple(held.shape), tuple(tensor.shape))
                if axes is None:
                    raise UsageError(
                        f"the optimizer keeps '{key}' of shape {list(held.shape)} for parameter '{name}' of shape "
                        f"{list(tensor.shape)}: it cannot be cut alike; make a new optimizer after the cut"
                    )
                new = taken(held, [(axes.index(axis), kept) for axis, kept in takes if axis in axes])
            self._states.append((state, key, held))
            state[key] = new

    def restore(self) -> None:
        """Put every tensor, gradient and optimizer state back."""
        for state, key, held in reversed(self._states):
            state[key] = held
        for tensor, data, grad in reversed(self._before):
            if tensor.is_leaf:
                tensor.grad = None
            tensor.data = data
            if grad is not None:
                tensor.grad = grad
        for module, name in self._added:
            module._parameters[name] = None
        self._before.clear()
        self._added.clear()
        self._states.clear()


def taken(tensor: torch.Tensor, takes: Iterable[tuple[int, Any]]) -> torch.Tensor:
    """A copy of the kept indices, in the memory format of the source."""
    dense = tensor.is_contiguous()
    channels_last = not dense and tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    takes = list(takes)
    with torch.no_grad():
        if dense and takes and _is_plain(tensor):
            return _copied(tensor.detach(), takes)
        for axis, kept in takes:
            tensor = tensor.index_select(axis, torch.as_tensor(kept, device=tensor.device))
    return tensor.contiguous(memory_format=torch.channels_last) if channels_last else tensor.contiguous()


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether numpy can read the bits of a tensor."""
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.device.type == "cpu" and tensor.layout == torch.strided
        and tensor.itemsize in _WORDS and not tensor.is_conj() and not tensor.is_neg()
    )  # fmt: skip


def _copied(tensor: torch.Tensor, takes: Sequence[tuple[int, Any]]) -> torch.Tensor:
    """As `taken`, by numpy: several times as fast as index_select along all axes but the first."""
    word = _WORDS[tensor.itemsize]
    array = tensor.view(word).numpy()
    for axis, kept in takes[:-1]:
        array = array.take(kept, axis=axis)
    axis, kept = takes[-1]
    shape = [len(kept) if a == axis else n for a, n in enumerate(array.shape)]
    # In memory of torch's own: what numpy has allocated cannot be resized.
    out = torch.empty(shape, dtype=tensor.dtype)
    np.take(array, kept, axis=axis, out=out.view(word).numpy(), mode="clip")
    return out


def _axes_of(part: tuple[int, ...], whole: tuple[int, ...]) -> list[int] | None:
    """Which axes of a parameter a factored state stands for; None where that is not plain."""
    found = [
        [axis for axis in range(len(whole)) if axis != left] for left in range(len(whole))
        if part in (whole[:left] + whole[left + 1 :], (*whole[:left], 1, *whole[left + 1 :]))
    ]  # fmt: skip
    if len(found) != 1:
        return None
    return found[0] if len(part) < len(whole) else list(range(len(whole)))


def _accumulator_is_stale(tensor: torch.Tensor) -> bool:
    """Whether a graph from before the cut is still alive and holds on to the old shape."""
    with torch.enable_grad():
        function = tensor.view_as(tensor).grad_fn
    accumulator = None if function is None else function.next_functions[0][0]
    metadata: Any = getattr(accumulator, "_input_metadata", None)
    return bool(metadata) and tuple(metadata[0].shape) != tuple(tensor.shape)


def computed_weights(module: torch.nn.Module, entries: Entries) -> list[tuple[torch.nn.Module, str, torch.Tensor]]:
    """What weights that a module computes from several tensors must be after the cut.

    A norm over a whole filter is part of the trained weight: a filter that loses inputs keeps its scale. To be called
    before anything is cut.

    Returns
    -------
    list
        (module, name of the computed weight, its kept slices).
    """
    found = []
    for one, name, _, entry in computed_parts(module, entries):
        with torch.no_grad():
            weight = getattr(one, name).detach()
            takes = [(int(axis), np.asarray(kept, np.int64)) for axis, kept in entry["kept"].items()]
            found.append((one, name, taken(weight, takes)))
    return found


def computed_parts(
    module: torch.nn.Module, entries: Entries
) -> Iterator[tuple[torch.nn.Module, str, list[str], Mapping[str, Any]]]:
    """Computed weights that a plan cuts: module, name, full names of what it is computed from, and the plan's entry."""
    for prefix, one in module.named_modules():
        dot = f"{prefix}." if prefix else ""
        for name, shape, parts in _computed(one):
            keys = [dot + key for key in parts]
            entry = next((e for key in keys if (e := entries.get(key)) and tuple(e["shape"]) == shape), None)
            if entry is not None:
                yield one, name, keys, entry


def _computed(module: torch.nn.Module) -> list[tuple[str, tuple[int, ...], list[str]]]:
    """Computed weights of a module: name, shape, names of the tensors that they are computed from, the likeliest first."""
    if parametrize.is_parametrized(module):
        lists = module.parametrizations
        assert isinstance(lists, torch.nn.ModuleDict)
        found = []
        for name, held in lists.items():
            keys = [f"parametrizations.{name}.{key}" for key, _ in held.named_parameters(recurse=False)]
            found.append((name, tuple(getattr(module, name).shape), keys[::-1]))
        return found
    hooks = [hook for hook in module._forward_pre_hooks.values() if type(hook).__name__ == "WeightNorm"]
    out = []
    for hook in hooks:
        name = str(getattr(hook, "name", ""))
        direction = module._parameters.get(f"{name}_v")
        if direction is not None:
            hook(module, ())
            out.append((name, tuple(direction.shape), [f"{name}_v"]))
    return out


def settle_computed(wanted: Sequence[tuple[torch.nn.Module, str, torch.Tensor]], sliced: Sliced) -> None:
    """Change what computed weights are computed from until they are what they must be.

    Raises
    ------
    UsageError
        A parametrization that cannot be solved for its parameters.
    """
    for module, name, target in wanted:
        if not parametrize.is_parametrized(module, name):
            hook = next(h for h in module._forward_pre_hooks.values() if getattr(h, "name", None) == name)
            gain = module._parameters[f"{name}_g"]
            assert gain is not None
            with torch.no_grad():
                norm = torch.norm_except_dim(target, 2, getattr(hook, "dim", 0))
            sliced.put(f"{name}_g", gain, norm.reshape(gain.shape).to(gain.dtype))
            hook(module, ())
            continue
        with torch.no_grad():
            if torch.allclose(getattr(module, name), target, rtol=1e-5, atol=1e-7):
                continue
            held = getattr(module.parametrizations, name)
            for key, parameter in held.named_parameters(recurse=False):
                sliced.put(key, parameter, parameter.data.clone())
            try:
                setattr(module, name, target)
                fits = torch.allclose(getattr(module, name), target, rtol=1e-4, atol=1e-6)
            except Exception:  # whatever right_inverse raises
                fits = False
        if not fits:
            raise UsageError(
                f"the parametrized weight '{name}' of {type(module).__name__} cannot be written back after the cut: its "
                "parametrization has no right_inverse that allows it"
            )
