"""The masked original in plain torch: a module with its removed slices made zero for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from graphprune.backends.inplace.tensors import Entries, Sliced, computed_parts, named_tensors


@contextlib.contextmanager
def masked(module: torch.nn.Module, entries: Entries, buffers: bool = True) -> Iterator[set[str]]:
    """Zero, inside, what a plan removes; everything is exactly as it was afterwards.

    A weight that torch's own weight norm or a parametrization computes is zeroed itself, and taken as it was computed:
    its norm is part of the trained weight.

    Parameters
    ----------
    buffers
        Zero those too. (What divides may not be zero.)

    Yields
    ------
    set of str
        Names of the tensors that a weight was computed from, and that were left as they are.
    """
    sliced, plain, parts = Sliced(), [], set[str]()
    tensors = named_tensors(module) if buffers else dict(module.named_parameters(remove_duplicate=False))
    try:
        for one, name, keys, entry in computed_parts(module, entries):
            parts.update(keys)
            weight = zeroed(getattr(one, name).detach(), entry)
            plain.append(_plain(one, name, weight))
        done: set[int] = set()
        for name, entry in entries.items():
            tensor = tensors.get(name)
            if tensor is None or id(tensor) in done or name in parts or not tensor.is_floating_point():
                continue
            done.add(id(tensor))
            sliced.put(name, tensor, zeroed(tensor.data, entry))
        yield parts
    finally:
        sliced.restore()
        for one, kind, attributes, hooks in reversed(plain):
            one.__class__ = kind
            vars(one).clear()
            vars(one).update(attributes)
            one._forward_pre_hooks.clear()
            one._forward_pre_hooks.update(hooks)


def zeroed(tensor: torch.Tensor, entry: Any) -> torch.Tensor:
    """A copy with zeros at the removed indices."""
    out = tensor.clone()
    for axis, kept in entry["kept"].items():
        gone = np.setdiff1d(np.arange(tensor.shape[int(axis)]), np.asarray(kept, np.int64))
        out.index_fill_(int(axis), torch.as_tensor(gone, dtype=torch.int64, device=tensor.device), 0)
    return out


def _plain(one: torch.nn.Module, name: str, weight: torch.Tensor) -> tuple[torch.nn.Module, type, dict[str, Any], dict[Any, Any]]:
    """Let a module hold a weight that it computed before; what to put back."""
    before = one, type(one), dict(vars(one)), dict(one._forward_pre_hooks)
    if f"{name}_v" in one._parameters:
        for key in [k for k, hook in one._forward_pre_hooks.items() if getattr(hook, "name", None) == name]:
            del one._forward_pre_hooks[key]
    else:
        one.__class__ = type(one).__mro__[1]  # without the property that a parametrization put there
    vars(one)[name] = weight
    return before
