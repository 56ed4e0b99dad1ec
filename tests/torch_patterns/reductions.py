"""Sums, maxima, softmax, masks, patches: what happens along the channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.torch_patterns.base import conv, head, pattern
from tests.torch_patterns.movement import AB

IMAGE = (2, 3, 8, 8)


@pattern(IMAGE, cut="a b out")
class StackThenSum(AB):
    def __init__(self) -> None:
        super().__init__()
        self.c = conv(3, 16)

    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return torch.stack([y, self.c(x), y * 2], dim=0).sum(0)


@pattern(IMAGE, cut="b out")
class Maxout(AB):
    """The largest of two neighbouring channels."""

    narrow = 8

    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return y.view(y.shape[0], 8, 2, *y.shape[2:]).amax(2)


@pattern(IMAGE, cut="a")
class MaxOverChannels(AB):
    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return y * y.max(dim=1, keepdim=True).values.sigmoid()


@pattern(IMAGE, cut="b out")
class CumulativeSum(AB):
    """Along the width, not along the channels."""

    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return y.cumsum(-1) * 0.1


@pattern(IMAGE, cut="b out")
class CumulativeSumOfChannels(AB):
    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return y.cumsum(1) * 0.1


@pattern(IMAGE, cut="a b out")
class WhereMask(AB):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.rand(16, 1, 1) > 0.3)

    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return torch.where(self.mask, y, torch.zeros((), dtype=y.dtype)).masked_fill(y < -1, -0.5)


@pattern(IMAGE, cut="b out")
class SoftmaxOverChannels(AB):
    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return y.softmax(dim=1)


@pattern(IMAGE, cut="a h.2")
class LogSoftmaxHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.h = conv(3, 16), head(16)

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(self.h(F.relu(self.a(x))), dim=-1)


@pattern(IMAGE, cut="a h.2")
class TopkHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.h = conv(3, 16), head(16, 9)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values, indices = self.h(F.relu(self.a(x))).topk(3, dim=1)
        return values, indices


@pattern(IMAGE, cut="a b out")
class ChannelsLast(nn.Module):
    """Permuted, worked on by linear layers, permuted back."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.out = conv(3, 16), nn.Linear(16, 24), nn.Linear(24, 16), conv(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        z = self.c(F.gelu(self.b(y.permute(0, 2, 3, 1))))
        return self.out(y + z.permute(0, 3, 1, 2))


@pattern(IMAGE, cut="a out")
class Unfolded(nn.Module):
    """im2col by hand, then a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = conv(3, 8), nn.Linear(8 * 9, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.unfold(F.relu(self.a(x)), 3).transpose(1, 2))


@pattern(IMAGE, cut="a b out")
class RolledAndPadded(AB):
    def between(self, y: Tensor, x: Tensor) -> Tensor:
        y = torch.roll(y, shifts=(1, -2), dims=(2, 3))
        return F.pad(y, (1, 1, 1, 1), mode="reflect")[:, :, 1:-1, 1:-1]


@pattern(IMAGE, cut="a b out")
class Unbound(AB):
    """Channels in two rows, taken apart by ``unbind`` and exchanged."""

    def between(self, y: Tensor, x: Tensor) -> Tensor:
        p, q = y.unflatten(1, (2, 8)).unbind(1)
        return torch.cat([q, p], 1)
