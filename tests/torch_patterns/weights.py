"""Where weights come from: normalised, computed, shared, tied, bare, summed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm

from tests.torch_patterns.base import conv, head, pattern

IMAGE = (2, 3, 8, 8)
ROWS = (4, 10)


@pattern(IMAGE, cut="a b", copies=False)
class WeightNormOld(nn.Module):
    """The hook of old: ``weight_g`` and ``weight_v``."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = weight_norm(conv(3, 12)), weight_norm(conv(12, 16)), conv(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.b(F.relu(self.a(x)))))


@pattern(IMAGE, cut="a b")
class WeightNormNew(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = parametrizations.weight_norm(conv(3, 12)), parametrizations.weight_norm(conv(12, 16))
        self.out = conv(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.b(F.relu(self.a(x)))))


@pattern(IMAGE)
class SpectralNormNew(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = parametrizations.spectral_norm(conv(3, 12)), conv(12, 16), conv(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.b(F.relu(self.a(x)))))


@pattern(ROWS)
class SpectralNormOld(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = spectral_norm(nn.Linear(10, 16)), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.b(F.relu(self.a(x)))))


class Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).mT


@pattern(ROWS, cut="b out")
class ParametrizedSymmetric(nn.Module):
    """A parametrisation of the user's own on the layer between."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.s, self.b, self.out = nn.Linear(10, 12), nn.Linear(12, 12), nn.Linear(12, 14), nn.Linear(14, 3)
        parametrize.register_parametrization(self.s, "weight", Symmetric())

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.b(self.s(F.relu(self.a(x))))))


class Scaled(nn.Module):
    """A factor for every row."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.rand(rows, 1) + 0.5)

    def forward(self, w: Tensor) -> Tensor:
        return w * self.factor


@pattern(ROWS, cut="a out")
class ParametrizedScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(10, 16), nn.Linear(16, 3)
        parametrize.register_parametrization(self.a, "weight", Scaled(16))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.a(x)))


@pattern(ROWS, cut="w1 b1 w2")
class FunctionalLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.randn(16, 10) * 0.3), nn.Parameter(torch.randn(16))
        self.w2 = nn.Parameter(torch.randn(3, 16) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.relu(F.linear(x, self.w1, self.b1)), self.w2)


@pattern(ROWS, cut="w1 b1 w2")
class BareMatmul(nn.Module):
    """Weights [in, out], ``x @ w``, ``addmm``."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.randn(10, 16) * 0.3), nn.Parameter(torch.randn(16))
        self.w2, self.b2 = nn.Parameter(torch.randn(16, 3) * 0.3), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.b2, F.relu(x @ self.w1 + self.b1), self.w2)


@pattern(IMAGE, cut="w1 w2")
class FunctionalConv(nn.Module):
    """Weights computed on the way: a mask, and a scale by row."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.randn(12, 3, 3, 3) * 0.3), nn.Parameter(torch.randn(4, 12, 3, 3) * 0.2)
        self.scale = nn.Parameter(torch.rand(12, 1, 1, 1) + 0.5)
        self.register_buffer("mask", (torch.rand(3, 3) > 0.2).float())

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.w1 * self.scale * self.mask, padding=1))
        return F.conv2d(x, self.w2.tanh(), padding=1)


class StandardConv(nn.Conv2d):
    """Weight standardisation: every filter loses its mean and its scale."""

    mask_weight: Tensor | float = 1.0  # for the judge: what a filter is divided by is part of the trained weight

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = w - w.mean((1, 2, 3), keepdim=True)
        w = w / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        w = w * self.mask_weight
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


@pattern(IMAGE)
class WeightStandardisation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.b, self.h = StandardConv(3, 16, 3), nn.GroupNorm(4, 16), StandardConv(16, 12, 3), head(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(F.relu(self.b(F.relu(self.n(self.a(x))))))


@pattern(ROWS, cut="base up out")
class LowRankSum(nn.Module):
    """LoRA: a layer and a product of two thin ones."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.down, self.up = nn.Linear(10, 16), nn.Linear(10, 4, bias=False), nn.Linear(4, 16, bias=False)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.base(x) + 2.0 * self.up(self.down(x))))


@pattern(ROWS, cut="weight a b out")
class LowRankMerged(nn.Module):
    """LoRA added to the weight itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 10) * 0.3)
        self.a, self.b, self.out = nn.Parameter(torch.randn(4, 10)), nn.Parameter(torch.randn(16, 4)), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(F.linear(x, self.weight + 0.5 * (self.b @ self.a))))


@pattern(IMAGE, cut="a codes b")
class Codebook(nn.Module):
    """The nearest of several codes, by ``|x|^2 - 2 x.c + |c|^2``: the codes' own lengths are read beside data."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 12), conv(12, 4)
        self.codes = nn.Buffer(torch.randn(9, 12) * 0.3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.a(x).permute(0, 2, 3, 1)
        distances = x.pow(2).sum(-1, keepdim=True) - 2 * x @ self.codes.t() + self.codes.pow(2).sum(-1)
        nearest = distances.argmin(-1)
        return self.b(F.embedding(nearest, self.codes).permute(0, 3, 1, 2)), nearest


@pattern(ROWS, cut="a w")
class CosineHead(nn.Module):
    """Cosines with one vector a class, the lengths divided out at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.w = nn.Linear(10, 16), nn.Parameter(torch.randn(5, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        return x @ self.w.t() / (x.norm(dim=-1, keepdim=True) * self.w.norm(dim=-1) + 1e-6)


@pattern(ROWS, cut="a tokens out")
class MeanOfTokens(nn.Module):
    """A bare parameter averaged over its rows is added to the features."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.tokens, self.out = nn.Linear(10, 16), nn.Parameter(torch.randn(6, 16)), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.a(x) + self.tokens.mean(0)))
