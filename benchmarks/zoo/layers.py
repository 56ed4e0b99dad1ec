"""Blocks that several architectures of the zoo share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Act = Callable[[], nn.Module]
Size = int | tuple[int, int]


def same(k: Size, d: int = 1) -> Size:
    """Padding that keeps the size at stride 1."""
    return tuple(d * (x - 1) // 2 for x in k) if isinstance(k, tuple) else d * (k - 1) // 2  # type: ignore[return-value]


class ConvBN(nn.Sequential):
    """Convolution without bias, batch norm, activation (None: linear)."""

    def __init__(
        self,
        cin: int,
        cout: int,
        k: Size = 1,
        s: int = 1,
        *,
        g: int = 1,
        d: int = 1,
        act: Act | None = nn.ReLU,
        p: Size | None = None,
    ) -> None:
        parts: list[nn.Module] = [
            nn.Conv2d(cin, cout, k, s, same(k, d) if p is None else p, d, g, bias=False),
            nn.BatchNorm2d(cout),
        ]
        if act is not None:
            parts.append(act())
        super().__init__(*parts)


class SqueezeExcite(nn.Module):
    """Global pool, two 1x1 convolutions, gate."""

    def __init__(self, c: int, squeezed: int, act: Act = nn.ReLU, gate: Act = nn.Sigmoid) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(c, squeezed, 1)
        self.act = act()
        self.expand = nn.Conv2d(squeezed, c, 1)
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(self.act(self.reduce(self.pool(x)))))


class Head(nn.Module):
    """Global average pool and a linear classifier."""

    def __init__(self, c: int, classes: int = 1000) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(c, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.pool(x), 1))


class Parallel(nn.Module):
    """Branches on one input, concatenated along channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Residual(nn.Module):
    """``after(body(x) + shortcut(x))``."""

    def __init__(
        self, body: nn.Module, shortcut: nn.Module | None = None, after: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut or nn.Identity()
        self.after = after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.body(x) + self.shortcut(x))
