"""Inputs and outputs of every shape, sizes from Python, hooks, checkpoints, graphs as sources."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import checkpoint

from tests.torch_patterns.base import cbr, conv, pattern

ROWS = (4, 10)


class Two(nn.Module):
    """A hidden width that every form of this file lets go."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(10, 16), nn.Linear(16, 3)

    def hidden(self, x: Tensor) -> Tensor:
        return F.relu(self.a(x))

    def forward(self, x: Tensor) -> Any:
        return self.b(self.hidden(x))


def _rows() -> Tensor:
    return torch.randn(ROWS)


@pattern(lambda: {"x": _rows(), "scale": torch.rand(4, 1)}, cut="a b")
class DictIn(Two):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return super().forward(batch["x"]) * batch["scale"]


@pattern(lambda: (_rows(), [_rows(), _rows()]), cut="a b")
class NestedTuplesIn(Two):
    def forward(self, batch: tuple[Tensor, list[Tensor]]) -> Tensor:
        return super().forward(batch[0] + batch[1][0] * batch[1][1])


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


@pattern(lambda: Pair(_rows(), _rows()), cut="a b")
class NamedTupleInAndOut(Two):
    def forward(self, pair: Pair) -> Pair:
        return Pair(super().forward(pair.left), super().forward(pair.right))


@dataclasses.dataclass
class Found:
    logits: Tensor
    features: Tensor | None = None


torch.export.register_dataclass(Found)


@pattern(ROWS, cut="a b")
class DataclassOut(Two):
    def forward(self, x: Tensor) -> Found:
        return Found(logits=super().forward(x))


@pattern(lambda: Found(_rows()), cut="a b")
class DataclassIn(Two):
    def forward(self, found: Found) -> Tensor:
        return super().forward(found.logits)


@pattern(ROWS, cut="a b")
class DictOut(Two):
    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"logits": super().forward(x), "more": (x.sum(1), None)}


@pattern(ROWS, cut="b")
class HiddenIsOutputToo(Two):
    """The features are an output: only what lies behind or before them may go."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.hidden(x)
        return self.b(y), y


@pattern(kwargs={"x": ROWS, "mask": lambda: torch.rand(4, 1) > 0.3}, cut="a b")
class KeywordsOnly(Two):
    def forward(self, *, x: Tensor, mask: Tensor, scale: float = 2.0) -> Tensor:
        return super().forward(x) * mask * scale


@pattern(ROWS, kwargs={"bias": lambda: torch.randn(4, 3)}, cut="a b")
class PositionAndKeyword(Two):
    def forward(self, x: Tensor, other: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        y = super().forward(x if other is None else x + other)
        return y if bias is None else y + bias


@pattern(ROWS, True, cut="a b")
class FlagIn(Two):
    """A Python value that decides the path."""

    def forward(self, x: Tensor, twice: bool) -> Tensor:
        y = super().forward(x)
        return y * 2 if twice else y


@pattern((2, 4, 10), cut="a b")
class SizesFromShape(Two):
    """Python integers from ``x.shape`` in views and factors."""

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        y = self.hidden(x.reshape(b * t, c))
        y = y.view(b, t, y.shape[-1]) / y.shape[1] ** 0.5
        return self.b(y.sum(1) / t)


@pattern((2, 3, 12, 12), cut="c b", dynamic=True)
class DynamicSizes(nn.Module):
    """Batch, height and width are open."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.b = cbr(3, 16), conv(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.c(F.max_pool2d(x, 2))
        return self.b(F.interpolate(y, size=x.shape[2:], mode="nearest"))


@pattern(ROWS, cut="a b", inexact=True)
class DetachedBranch(Two):
    def forward(self, x: Tensor) -> Tensor:
        y = self.hidden(x)
        with torch.no_grad():
            scale = y.detach().abs().mean().clamp(min=0.1)
        return self.b(y * y.sigmoid().detach()) + 0 * scale


@pattern(ROWS, cut="a b")
class AllWithoutGradient(Two):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@pattern(ROWS, cut="a b")
class Dropouts(Two):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.dropout(self.drop(self.hidden(x)), 0.2, self.training))


@pattern(ROWS, cut="a b")
class Checkpointed(Two):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(checkpoint.checkpoint(self.hidden, x, use_reentrant=False))


@pattern(ROWS, cut="a b")
class HookScales(Two):
    """A forward hook of the user's changes what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.a.register_forward_hook(lambda module, args, output: output * 1.5)
        self.b.register_forward_pre_hook(lambda module, args: (args[0] + 0.25,))


@pattern(ROWS, cut="a b")
class CountsItsCalls(Two):
    """A buffer is changed in every forward."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return super().forward(x)


@pattern(ROWS, batch=False)
class RunningMeanOfFeatures(Two):
    """A buffer as wide as the features follows them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        y = self.hidden(x)
        if self.training:
            self.centre.mul_(0.9).add_(0.1 * y.detach().mean(0))
        return self.b(y - self.centre)


@pattern(ROWS, cut="a b")
class AutocastWithin(Two):
    """Half precision inside, single precision out."""

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.hidden(x).to(torch.float16).to(torch.float32))


@pattern(lambda: torch.randn(ROWS, dtype=torch.float64), cut="a b", name="DoublePrecision")
def double_precision() -> nn.Module:
    return Two().double()


@pattern(ROWS, cut="a b", name="FrozenParameters")
def frozen_parameters() -> nn.Module:
    module = Two()
    module.a.requires_grad_(False)
    return module
