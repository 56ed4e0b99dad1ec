"""The registry of torch patterns, and small tools to write one in a few lines."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

Make = Callable[[], Any]


@dataclass(frozen=True)
class TorchPattern:
    """One module with example inputs, and what must become of it.

    Attributes
    ----------
    build : makes the source: a module, a GraphModule, or (with ``program``) an ExportedProgram.
    inputs, kwargs : shapes of normal noise, functions that make a value, or plain values.
    cut : names of tensors, or of modules, that a rate of one half must make smaller (in the default mode).
    batch : the batch is the first axis of every tensor input, and may have another size.
    refusal : text of the refusal that is expected, where nothing may be cut.
    inexact : every unit passes through a normalisation or the like: ``exact=True`` may refuse with "nothing is prunable".
    copies : the module can be copied by ``copy.deepcopy``.
    """

    name: str
    build: Callable[[], Any]
    inputs: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    cut: tuple[str, ...] = ()
    batch: bool = True
    refusal: str | None = None
    inexact: bool = False
    tolerance: float = 1e-4
    dynamic: bool = False
    copies: bool = True

    def make(self) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        """The source with lifelike weights in evaluation mode, and its example inputs; the same at every call."""
        torch.manual_seed(zlib.crc32(self.name.encode()))
        module = self.build()
        if isinstance(module, nn.Module):
            liven(module)
            module.eval()
        args = tuple(_made(value) for value in self.inputs)
        return module, args, {key: _made(value) for key, value in self.kwargs.items()}


PATTERNS: dict[str, TorchPattern] = {}


def pattern(*inputs: Any, cut: str = "", name: str | None = None, **options: Any) -> Callable[[Any], Any]:
    """Register the decorated class or function, called without arguments."""

    def register(build: Any) -> Any:
        key = name or build.__name__
        if key in PATTERNS:
            raise ValueError(f"torch pattern {key!r} is registered twice")
        PATTERNS[key] = TorchPattern(key, build, inputs, cut=tuple(cut.split()), **options)
        return build

    return register


def _made(value: Any) -> Any:
    if isinstance(value, tuple) and value and all(type(n) is int for n in value):
        return torch.randn(value)
    return value() if callable(value) else value


def ids(vocabulary: int, *shape: int) -> Make:
    """Token ids."""
    return lambda: torch.randint(0, vocabulary, shape)


@torch.no_grad()
def liven(module: nn.Module) -> None:
    """Nothing is exactly 0 or 1, no two channels alike: normalisations as training would leave them."""
    for child in module.modules():
        for name, parameter in child.named_parameters(recurse=False):
            if not parameter.is_floating_point():
                continue
            if parameter.ndim == 1 and bool((parameter == parameter[0]).all()):
                noise = torch.rand_like(parameter) - 0.5
                parameter.mul_(1 + 0.8 * noise) if name == "weight" and parameter[0] else parameter.add_(noise)
        for name, buffer in child.named_buffers(recurse=False):
            if name == "running_mean":
                buffer.add_(torch.randn_like(buffer) * 0.2)
            elif name == "running_var":
                buffer.mul_(torch.rand_like(buffer) + 0.5)


def conv(i: int, o: int, k: int | tuple[int, int] = 3, **options: Any) -> nn.Conv2d:
    """A convolution that keeps the size of the picture."""
    return nn.Conv2d(i, o, k, **{"padding": k // 2 if isinstance(k, int) else 0, **options})


def cbr(i: int, o: int, k: int | tuple[int, int] = 3, **options: Any) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(conv(i, o, k, bias=False, **options), nn.BatchNorm2d(o), nn.ReLU())


def head(i: int, o: int = 5) -> nn.Sequential:
    """Global pooling and a classifier."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(i, o))
