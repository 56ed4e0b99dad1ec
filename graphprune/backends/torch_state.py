"""Where a model's weights live in the torch module: names, what is trained, what is only kept."""

from __future__ import annotations

import keyword
import re
from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from torch import fx, nn

from graphprune.backends.torch_ops.dtypes import FLOATS, is_writable, tensor_of
from graphprune.coupler import fixed_axes
from graphprune.frontends.onnx import plan_name
from graphprune.ops.trained import weight_use
from graphprune.plan import TRAINED

_KIND = "pkg.torch.export.graph_signature.InputSpec.kind"
_MASK = 1e4
"""From this magnitude on, a number that is added stands for minus infinity: a mask, which is not trained."""


def is_trained(value: ir.Value) -> bool:
    """Tell whether an initializer is a weight that training may change.

    A model that torch exported says so itself. Else its users decide: what is convolved, multiplied, looked up,
    or scales and shifts more than one number is a weight; sizes, bounds, masks and running statistics are none.
    """
    const = value.const_value
    if const is None or const.dtype not in FLOATS or const.size == 0:
        return False
    if TRAINED in value.meta:
        return bool(value.meta[TRAINED])
    kind = value.metadata_props.get(_KIND)
    if kind in ("PARAMETER", "BUFFER"):
        return kind == "PARAMETER"
    use = weight_use(value)
    if use == "weight":
        return not fixed_axes(value)[0]
    return use == "table" and const.size > 1 and not _is_mask(const.numpy()) and not _is_written(const.numpy())


def _is_written(array: npt.NDArray[Any]) -> bool:
    """Whether a table holds different halves and wholes alone, as cells, anchors and strides are: no training ends so."""
    doubled = array.astype(np.float64).reshape(-1) * 2
    return len(doubled) > 0 and bool(np.isfinite(doubled).all() and (doubled == np.round(doubled)).all() and np.ptp(doubled) > 0)


def _is_mask(array: npt.NDArray[Any]) -> bool:
    numbers = array.astype(np.float32) if array.dtype.itemsize < 4 else array
    return not bool(np.isfinite(numbers).all()) or float(np.abs(numbers).max(initial=0)) >= _MASK


class State:
    """The parameters and buffers of a module under construction.

    Attributes
    ----------
    names : dict
        Source name of an initializer -> its attribute path in the module.
    """

    def __init__(self, root: nn.Module, *, copy: bool, trainable: Collection[str] | None) -> None:
        self.root = root
        self.copy = copy
        self.trainable = None if trainable is None else frozenset(trainable)
        self.names: dict[str, str] = {}
        self.tensors: set[str] = set()
        self._heads: set[str] = set()
        self._paths: dict[ir.Value, str] = {}
        self._by_tensor: dict[int, str] = {}
        self._trained: dict[ir.Value, bool] = {}

    def trained(self, value: ir.Value) -> bool:
        """Whether an initializer becomes a parameter."""
        if value not in self._trained:
            const = value.const_value
            if self.trainable is None:
                found = is_trained(value)
            else:
                found = plan_name(value) in self.trainable and const is not None and const.dtype in FLOATS
            self._trained[value] = found
        return self._trained[value]

    def attribute(self, value: ir.Value) -> str:
        """Return the path of an initializer in the module, which gets it when it is first asked for."""
        if value in self._paths:
            return self._paths[value]
        name = plan_name(value)
        path = self._by_tensor.get(id(value.const_value))
        if path is None:
            trained = self.trained(value)
            path = self.free(name)
            tensor = tensor_of(value, copy=self.copy)
            # What is mapped from a file cannot be written: an optimiser must leave it alone.
            writable = self.copy or is_writable(value)
            place(self.root, path, nn.Parameter(tensor, requires_grad=writable) if trained else tensor)
            self.tensors.add(path)
            self._by_tensor[id(value.const_value)] = path
        self._paths[value] = path
        self.names[name] = path
        return path

    def free(self, name: str) -> str:
        """Return a legal attribute path like ``name`` that nothing stands at yet."""
        parts = [re.sub(r"\W", "_", part) for part in name.split(".") if part] or ["value"]
        parts = [part + "_" if keyword.iskeyword(part) else part for part in parts]
        if len(parts) == 1 and parts[0][0].isdigit():
            parts[0] = f"value_{parts[0]}"
        if _taken(parts[0]) or parts[0] in ("forward",):
            parts[0] += "_"
        path, count = ".".join(parts), 1
        while not self._legal(path):
            path = "_".join(parts) + (f"_{count}" if count > 1 else "")
            count += 1
        return path

    def _legal(self, path: str) -> bool:
        """Whether nothing stands at the path, and no tensor stands where a module would have to."""
        at: Any = self.root
        for part in path.split("."):
            if not isinstance(at, nn.Module):
                return False
            if not hasattr(at, part):
                return True
            at = getattr(at, part)
        return False


def _taken(name: str) -> bool:
    return hasattr(fx.GraphModule, name) or name in ("training", "meta", "graph") or name.startswith("__")


def place(root: nn.Module, path: str, tensor: Any) -> None:
    """Put a parameter or a buffer at a dotted path, making the modules on the way."""
    *parents, last = path.split(".")
    at = root
    for part in parents:
        if part not in at._modules:
            at.add_module(part, nn.Module())
        child = at._modules[part]
        assert child is not None
        at = child
    if isinstance(tensor, nn.Parameter):
        at.register_parameter(last, tensor)
    else:
        at.register_buffer(last, tensor)
