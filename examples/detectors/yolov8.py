"""YOLOv8: C2f blocks, SPPF, a decoupled head without anchors whose box sides are distributions (DFL).

Parameters are called as in Ultralytics' published files (``model.0.conv.weight`` to ``model.22.dfl.conv.weight``, 355
tensors), so that their state dicts load. Size n has 3,157,200 parameters for 80 classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.detectors.initialise import ready

#: Size -> depth and width multiples, and the most channels.
SIZES = {"n": (1 / 3, 0.25, 1024), "s": (1 / 3, 0.5, 1024), "m": (2 / 3, 0.75, 768), "l": (1, 1, 512), "x": (1, 1.25, 512)}
STRIDES = (8, 16, 32)
BINS = 16


class Conv(nn.Module):
    """Convolution, batch norm, SiLU."""

    def __init__(self, cin: int, cout: int, k: int = 1, s: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, k, s, k // 2, bias=False)
        self.bn = nn.BatchNorm2d(cout, eps=1e-3, momentum=0.03)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    """Two 3x3 convolutions, with or without a shortcut."""

    def __init__(self, width: int, add: bool) -> None:
        super().__init__()
        self.cv1, self.cv2, self.add = Conv(width, width, 3), Conv(width, width, 3), add

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


class C2f(nn.Module):
    """Split in two; every block goes on from the one before, and all of them are kept."""

    def __init__(self, cin: int, cout: int, depth: int, add: bool = False) -> None:
        super().__init__()
        half = cout // 2
        self.cv1, self.cv2 = Conv(cin, 2 * half), Conv((2 + depth) * half, cout)
        self.m = nn.ModuleList([Bottleneck(half, add) for _ in range(depth)])

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.cv1(x).chunk(2, 1))
        for block in self.m:
            parts.append(block(parts[-1]))
        return self.cv2(torch.cat(parts, 1))


class SPPF(nn.Module):
    """Three max pools in a row, all kept."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(width, width // 2), Conv(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.cv1(x)]
        for _ in range(3):
            parts.append(F.max_pool2d(parts[-1], 5, 1, 2))
        return self.cv2(torch.cat(parts, 1))


class DFL(nn.Module):
    """The expectation of a distribution over ``BINS`` lengths, as a convolution with constant weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(BINS, 1, 1, bias=False).requires_grad_(False)
        self.settle()

    def settle(self) -> None:
        """Put the constants in."""
        self.conv.weight.data.copy_(torch.arange(BINS, dtype=torch.float32).view(1, BINS, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, _, n = x.shape
        return self.conv(x.view(b, 4, BINS, n).transpose(2, 1).softmax(1)).view(b, 4, n)


class Detect(nn.Module):
    """Boxes and classes each by a tower of their own; decoded to pixels."""

    def __init__(self, classes: int, widths: Sequence[int]) -> None:
        super().__init__()
        box, cls = max(16, widths[0] // 4, 4 * BINS), max(widths[0], min(classes, 100))
        self.cv2 = nn.ModuleList(
            [nn.Sequential(Conv(w, box, 3), Conv(box, box, 3), nn.Conv2d(box, 4 * BINS, 1)) for w in widths]
        )
        self.cv3 = nn.ModuleList(
            [nn.Sequential(Conv(w, cls, 3), Conv(cls, cls, 3), nn.Conv2d(cls, classes, 1)) for w in widths]
        )
        self.dfl = DFL()

    def forward(self, maps: Sequence[Tensor], raw: bool) -> Tensor | tuple[Tensor, ...]:
        tables = [torch.cat((box(x), cls(x)), 1) for box, cls, x in zip(self.cv2, self.cv3, maps, strict=True)]
        if raw:
            return tuple(tables)
        sides, scores = torch.cat([table.flatten(2) for table in tables], 2).split(
            [4 * BINS, tables[0].shape[1] - 4 * BINS], 1
        )
        cells, strides = [], []
        for table, stride in zip(tables, STRIDES, strict=True):
            h, w = table.shape[2:]
            y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
            cells.append(torch.stack((x.flatten(), y.flatten())))
            strides.append(torch.full((1, h * w), float(stride)))
        centres, step = torch.cat(cells, 1), torch.cat(strides, 1)
        low, high = self.dfl(sides).chunk(2, 1)
        low, high = centres - low, centres + high
        return torch.cat((torch.cat(((low + high) / 2, high - low), 1) * step, scores.sigmoid()), 1)


class YOLOv8(nn.Module):
    """Pictures float[batch, 3, h, w] in [0, 1], h and w multiples of 32.

    Gives float[batch, 4 + classes, boxes]: centre x, y, width, height in pixels, classes. With ``raw`` the three maps
    that this is decoded from, float[batch, 4 * 16 + classes, h / s, w / s] for strides s of 8, 16 and 32.

    Parameters
    ----------
    size
        n, s, m, l or x; or a depth multiple, a width multiple and the most channels.
    """

    def __init__(self, classes: int = 80, size: str | tuple[float, float, int] = "n", *, raw: bool = False) -> None:
        super().__init__()
        self.raw = raw
        depth, width, most = SIZES[size] if isinstance(size, str) else size

        def c(channels: int) -> int:
            return -(-int(min(channels, most) * width) // 8) * 8

        def n(blocks: int) -> int:
            return max(round(blocks * depth), 1)

        # The places 10, 11, 13, 14, 17 and 20 upsample and join, and hold no weights.
        nothing = nn.Identity
        self.model = nn.ModuleList([
            Conv(3, c(64), 3, 2), Conv(c(64), c(128), 3, 2), C2f(c(128), c(128), n(3), True),
            Conv(c(128), c(256), 3, 2), C2f(c(256), c(256), n(6), True),
            Conv(c(256), c(512), 3, 2), C2f(c(512), c(512), n(6), True),
            Conv(c(512), c(1024), 3, 2), C2f(c(1024), c(1024), n(3), True), SPPF(c(1024)),
            nothing(), nothing(), C2f(c(1024) + c(512), c(512), n(3)),
            nothing(), nothing(), C2f(c(512) + c(256), c(256), n(3)),
            Conv(c(256), c(256), 3, 2), nothing(), C2f(c(256) + c(512), c(512), n(3)),
            Conv(c(512), c(512), 3, 2), nothing(), C2f(c(512) + c(1024), c(1024), n(3)),
            Detect(classes, (c(256), c(512), c(1024))),
        ])  # fmt: skip

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        layers = self.model
        maps = []
        for i in range(10):
            x = layers[i](x)
            if i in (4, 6):
                maps.append(x)
        p3, p4, p5 = *maps, x
        t4 = layers[12](torch.cat((F.interpolate(p5, scale_factor=2.0), p4), 1))
        n3 = layers[15](torch.cat((F.interpolate(t4, scale_factor=2.0), p3), 1))
        n4 = layers[18](torch.cat((layers[16](n3), t4), 1))
        n5 = layers[21](torch.cat((layers[19](n4), p5), 1))
        return layers[22]((n3, n4, n5), self.raw)


def model(size: int = 416, *, raw: bool = False, classes: int = 80) -> tuple[nn.Module, Tensor]:
    """The network of size n with random weights, and an example input."""
    net, example = ready(lambda: YOLOv8(classes, raw=raw), (1, 3, size, size))
    net.model[-1].dfl.settle()
    return net, example
