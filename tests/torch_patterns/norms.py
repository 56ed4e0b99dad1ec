"""Normalisations: which widths they let go exactly, which not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.torch_patterns.base import conv, head, pattern

IMAGE = (2, 3, 8, 8)


class Normed(nn.Module):
    """A norm between two convolutions."""

    def __init__(self, norm: nn.Module, width: int = 16) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.h = conv(3, width), norm, conv(width, 12), head(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(F.relu(self.b(F.relu(self.norm(self.a(x))))))


def normed(name: str, make: type[nn.Module], *args: int, cut: str = "a norm b", **options: bool) -> None:
    pattern(IMAGE, cut=cut, name=name)(lambda: Normed(make(*args, **options)))


normed("BatchNorm", nn.BatchNorm2d, 16)
normed("BatchNormNotAffine", nn.BatchNorm2d, 16, affine=False, cut="b")
normed("InstanceNorm", nn.InstanceNorm2d, 16, affine=True)
normed("InstanceNormPlain", nn.InstanceNorm2d, 16, cut="a b")
normed("InstanceNormStatistics", nn.InstanceNorm2d, 16, affine=True, track_running_stats=True)
normed("GroupNorm", nn.GroupNorm, 4, 16)
normed("GroupNormOneChannelEach", nn.GroupNorm, 16, 16)
normed("GroupNormOfAll", nn.GroupNorm, 1, 16)
normed("LocalResponse", nn.LocalResponseNorm, 5, cut="b")


class LayerNormChannelsFirst(nn.Module):
    """ConvNeXt's: statistics over axis 1, written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


pattern(IMAGE, cut="a b", name="ChannelsFirst")(lambda: Normed(LayerNormChannelsFirst(16)))


class RootMeanSquare(nn.Module):
    """Llama's, written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        x = x.to(torch.float32)
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)).to(dtype)


class Rows(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.out = nn.Linear(10, 16), norm, nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.b(self.norm(self.a(x)))))


pattern((3, 10), cut="a b out", name="LayerNorm")(lambda: Rows(nn.LayerNorm(16)))
pattern((3, 10), cut="a b out", name="LayerNormPlain")(lambda: Rows(nn.LayerNorm(16, elementwise_affine=False)))
pattern((3, 10), cut="a b out", name="RmsNorm")(lambda: Rows(nn.RMSNorm(16)))
pattern((3, 10), cut="a b out", name="RmsNormWritten")(lambda: Rows(RootMeanSquare(16)))
pattern((3, 10), cut="a norm b out", name="BatchNorm1d")(lambda: Rows(nn.BatchNorm1d(16)))


@pattern(IMAGE, cut="a b")
class LayerNormOverPicture(nn.Module):
    """Statistics over channels and pixels, a weight for each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.h = conv(3, 16), nn.LayerNorm((16, 8, 8)), conv(16, 12), head(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(F.relu(self.b(self.norm(self.a(x)))))


@pattern((3, 10), cut="b")
class UnitLength(nn.Module):
    """L2-normalised features against L2-normalised class weights."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.w = nn.Linear(10, 20), nn.Linear(20, 16), nn.Parameter(torch.randn(5, 16))
        self.mask_w: Tensor | float = 1.0  # for the judge: the length of w is part of the trained weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(F.relu(self.a(x)))
        return F.linear(F.normalize(x, dim=-1), F.normalize(self.w, dim=-1) * self.mask_w) * 4


@pattern(IMAGE, cut="a b")
class StyleModulation(nn.Module):
    """Instance norm without a scale; mean and scale come from another branch (AdaIN)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.style, self.b = conv(3, 16), nn.Linear(3, 32), conv(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.instance_norm(self.a(x))
        scale, shift = self.style(x.mean((2, 3)))[:, :, None, None].chunk(2, 1)
        return self.b(F.relu(y * (1 + scale) + shift))
