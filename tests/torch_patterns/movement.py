"""Splitting, slicing, viewing, indexing, concatenating: where channels move."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.torch_patterns.base import conv, pattern

IMAGE = (2, 3, 8, 8)


class AB(nn.Module):
    """Two convolutions with something between."""

    wide, narrow = 16, 16

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = conv(3, self.wide), conv(self.narrow, 12), conv(12, 4, 1)

    def between(self, y: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.b(self.between(self.a(x), x))))


@pattern(IMAGE, cut="a b out c d")
class UnevenSplit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.out = conv(3, 26), conv(4, 8), conv(8, 8), conv(14, 8), conv(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        p, q, r = torch.split(F.relu(self.a(x)), [4, 8, 14], dim=1)
        return self.out(torch.cat([self.b(p), self.c(q), self.d(r)], 1))


@pattern(IMAGE, cut="a b out")
class ViewWithConstants(AB):
    def between(self, y: Tensor, x: Tensor) -> Tensor:
        y = y.view(-1, 16, 64)
        return torch.tanh(y).view(-1, 16, 8, 8)


@pattern(IMAGE, cut="a fc out")
class ViewIntoLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc, self.out = conv(3, 10, stride=2), nn.Linear(160, 20), nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.fc(F.relu(self.a(x)).view(x.size(0), 160))))


@pattern(IMAGE, cut="a b out")
class SplitWithConstants(AB):
    def between(self, y: Tensor, x: Tensor) -> Tensor:
        p, q = torch.split(y, 8, dim=1)
        return torch.cat([torch.relu(p), torch.sigmoid(q)], 1)


@pattern(IMAGE, cut="a b out")
class SliceWithConstants(AB):
    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return torch.cat([y[:, :4].relu(), y[:, 4:10].sigmoid(), y[:, 10:]], 1)


@pattern(IMAGE, cut="a b out")
class StridedSlice(AB):
    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return torch.cat([y[:, ::2], y[:, 1::2] * 2], 1)


@pattern(IMAGE, cut="b out")
class SliceThatDropsChannels(AB):
    wide, narrow = 20, 9

    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return y[:, 1:19:2]


@pattern(IMAGE, cut="a b out")
class FlippedChannels(AB):
    """Negative steps: ``flip``, and an index that counts down."""

    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return y.flip(1)[:, torch.arange(15, -1, -1)] * y[..., -8:, -8:]


@pattern(IMAGE, cut="a b out")
class IndexPermutation(AB):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.randperm(16))

    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return y[:, self.order]


@pattern(IMAGE, cut="a b out")
class IndexSelectNotSaved(AB):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.randperm(16), persistent=False)

    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return torch.index_select(F.relu(y), 1, self.order)


@pattern(IMAGE, cut="a b out")
class BufferScale(AB):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.rand(1, 16, 1, 1) + 0.5)
        self.register_buffer("shift", torch.randn(16, 1, 1))

    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return F.relu(y * self.scale + self.shift)


@pattern(IMAGE, cut="a b out")
class BufferDivides(AB):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.randn(16) * 0.1)
        self.register_buffer("std", torch.rand(16) + 0.5)

    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return (y - self.mean[None, :, None, None]) / self.std.view(1, -1, 1, 1)


@pattern(IMAGE, cut="a b out")
class Repeat(AB):
    narrow = 32

    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return F.relu(y).repeat(1, 2, 1, 1)


@pattern(IMAGE, cut="a b out")
class RepeatInterleave(AB):
    narrow = 32

    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return F.relu(y).repeat_interleave(2, dim=1)


@pattern(IMAGE, cut="a b out")
class SliceAssignment(AB):
    def between(self, y: Tensor, x: Tensor) -> Tensor:
        y = y.clone()
        y[:, :4] = torch.relu(y[:, :4])
        y[:, 4:8] += 1.0
        return y


@pattern(IMAGE, cut="b out")
class ChannelPadding(AB):
    """The option-A shortcut of ResNet: fewer channels, padded with zeros."""

    wide, narrow = 12, 20

    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return F.pad(F.relu(y), (0, 0, 0, 0, 4, 4))


@pattern(IMAGE, cut="a b c out")
class PaddedShortcut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.out = conv(3, 8), conv(8, 12, stride=2), conv(12, 16), conv(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        y = self.c(F.relu(self.b(x)))
        return self.out(F.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))))


@pattern(IMAGE, cut="a b out")
class ConcatRawInput(AB):
    narrow = 19

    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return torch.cat([x, F.relu(y)], dim=1)


@pattern(IMAGE, cut="a b out")
class ConcatSameTwice(AB):
    narrow = 32

    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return torch.cat([y, y], 1)


@pattern(IMAGE, cut="a b out")
class ConcatWithItsNegative(AB):
    """CReLU."""

    narrow = 32

    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return F.relu(torch.cat([y, -y], dim=-3))


@pattern(IMAGE, cut="a b out")
class FlattenThenConcat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = conv(3, 8, stride=2), conv(3, 6, stride=4), nn.Linear(8 * 16 + 6 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([F.relu(self.a(x)).flatten(1), F.relu(self.b(x)).flatten(1)], 1))
