"""Transposed, dilated, one- and three-dimensional convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.torch_patterns.base import conv, pattern

IMAGE = (2, 3, 16, 16)


@pattern(IMAGE, cut="a up last")
class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.up, self.bn = conv(3, 16, stride=2), nn.ConvTranspose2d(16, 12, 4, 2, 1), nn.BatchNorm2d(12)
        self.last = conv(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.leaky_relu(self.bn(self.up(self.a(x))), 0.1))


@pattern(IMAGE, cut="a up last")
class GroupedTransposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.up, self.last = conv(3, 16), nn.ConvTranspose2d(16, 12, 2, 2, groups=4), conv(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.up(F.relu(self.a(x)))))


@pattern(IMAGE, cut="a b c last")
class DilatedStrided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 16, dilation=2, padding=2), conv(16, 16, 5, stride=2)
        self.c, self.last = nn.Conv2d(16, 12, 3, padding="same", padding_mode="reflect"), conv(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.silu(self.c(F.gelu(self.b(F.elu(self.a(x)))))))


@pattern((2, 3, 6, 10, 10), cut="a b up h.2")
class Volumes(nn.Module):
    """Conv3d, BatchNorm3d, ConvTranspose3d, pooling in three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.b = nn.Conv3d(3, 12, 3, padding=1), nn.BatchNorm3d(12), nn.Conv3d(12, 16, 3, 2, 1)
        self.up = nn.ConvTranspose3d(16, 8, 2, 2)
        self.h = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool3d(F.relu(self.n(self.a(x))), (1, 2, 2))
        return self.h(F.relu(self.up(F.relu(self.b(x)))))


@pattern((2, 4, 20), cut="a b c up out")
class Signals(nn.Module):
    """Conv1d with dilation, BatchNorm1d, ConvTranspose1d, a gated activation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = nn.Conv1d(4, 12, 5, padding=2), nn.BatchNorm1d(12)
        self.b, self.c = nn.Conv1d(12, 16, 3, padding=2, dilation=2), nn.Conv1d(12, 16, 3, padding=2, dilation=2)
        self.up, self.out = nn.ConvTranspose1d(16, 8, 4, 2, 1), nn.Conv1d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.n(self.a(x)))
        return self.out(self.up(torch.tanh(self.b(x)) * torch.sigmoid(self.c(x))))


@pattern((2, 8), cut="net.0 net.3 deep out")
class Generator(nn.Module):
    """A latent vector, a linear layer seen as a map, transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Linear(8, 24 * 4 * 4)
        self.net = nn.Sequential(
            nn.ConvTranspose2d(24, 16, 4, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.ConvTranspose2d(16, 8, 4, 2, 1)
        )
        self.out = conv(8, 3)

    def forward(self, z: Tensor) -> Tensor:
        x = F.relu(self.deep(z)).view(-1, 24, 4, 4)
        return torch.tanh(self.out(F.relu(self.net(x))))
