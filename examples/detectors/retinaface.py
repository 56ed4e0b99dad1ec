"""RetinaFace: faces and five landmarks each (Deng et al., arXiv 1905.00641), with a MobileNet of a quarter's width.

Parameters are called as in the public PyTorch version (``body.stage1.0.0.weight``, github.com/biubug6/Pytorch_Retinaface),
so that its state dict loads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.detectors.initialise import ready

#: Anchors a cell: two squares at each of the strides 8, 16 and 32.
ANCHORS = 2


def conv(cin: int, cout: int, k: int = 3, s: int = 1, slope: float | None = 0.1) -> nn.Sequential:
    """Convolution, batch norm and, with a slope, a leaky ReLU."""
    layers: list[nn.Module] = [nn.Conv2d(cin, cout, k, s, k // 2, bias=False), nn.BatchNorm2d(cout)]
    return nn.Sequential(*layers, *([] if slope is None else [nn.LeakyReLU(slope)]))


def separable(cin: int, cout: int, s: int = 1) -> nn.Sequential:
    """A depthwise convolution, then one of 1x1."""
    return nn.Sequential(
        nn.Conv2d(cin, cin, 3, s, 1, groups=cin, bias=False), nn.BatchNorm2d(cin), nn.LeakyReLU(0.1),
        nn.Conv2d(cin, cout, 1, bias=False), nn.BatchNorm2d(cout), nn.LeakyReLU(0.1),
    )  # fmt: skip


class MobileNet(nn.Module):
    """Gives the maps at strides 8, 16 and 32."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(
            conv(3, w, s=2), separable(w, 2 * w), separable(2 * w, 4 * w, 2), separable(4 * w, 4 * w),
            separable(4 * w, 8 * w, 2), separable(8 * w, 8 * w),
        )  # fmt: skip
        self.stage2 = nn.Sequential(separable(8 * w, 16 * w, 2), *[separable(16 * w, 16 * w) for _ in range(5)])
        self.stage3 = nn.Sequential(separable(16 * w, 32 * w, 2), separable(32 * w, 32 * w))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        one = self.stage1(x)
        two = self.stage2(one)
        return one, two, self.stage3(two)


class FPN(nn.Module):
    """The deeper maps, as large as the shallower ones, added to them."""

    def __init__(self, widths: Sequence[int], out: int) -> None:
        super().__init__()
        slope = 0.1 if out <= 64 else 0.0
        self.output1, self.output2, self.output3 = (conv(w, out, 1, slope=slope) for w in widths)
        self.merge1, self.merge2 = conv(out, out, slope=slope), conv(out, out, slope=slope)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        one, two, three = self.output1(maps[0]), self.output2(maps[1]), self.output3(maps[2])
        two = self.merge2(two + F.interpolate(three, size=two.shape[2:]))
        one = self.merge1(one + F.interpolate(two, size=one.shape[2:]))
        return one, two, three


class SSH(nn.Module):
    """What it sees in windows of 3, 5 and 7 side by side."""

    def __init__(self, w: int) -> None:
        super().__init__()
        slope = 0.1 if w <= 64 else 0.0
        self.conv3X3 = conv(w, w // 2, slope=None)
        self.conv5X5_1, self.conv5X5_2 = conv(w, w // 4, slope=slope), conv(w // 4, w // 4, slope=None)
        self.conv7X7_2, self.conv7x7_3 = conv(w // 4, w // 4, slope=slope), conv(w // 4, w // 4, slope=None)

    def forward(self, x: Tensor) -> Tensor:
        five = self.conv5X5_1(x)
        parts = self.conv3X3(x), self.conv5X5_2(five), self.conv7x7_3(self.conv7X7_2(five))
        return F.relu(torch.cat(parts, 1))


class Head(nn.Module):
    """A number of values for each anchor."""

    def __init__(self, width: int, values: int) -> None:
        super().__init__()
        self.values = values
        self.conv1x1 = nn.Conv2d(width, ANCHORS * values, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1x1(x).permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, self.values))


class RetinaFace(nn.Module):
    """Pictures float[batch, 3, h, w], BGR in [0, 255] less (104, 117, 123).

    Gives three tables with a row for each anchor: boxes float[batch, anchors, 4] as offsets, scores
    float[batch, anchors, 2] (no face, face), landmarks float[batch, anchors, 10] as offsets.

    Parameters
    ----------
    width
        Channels of the first convolution.
    out
        Channels of the FPN.
    """

    def __init__(self, width: int = 8, out: int = 64) -> None:
        super().__init__()
        self.body = MobileNet(width)
        self.fpn = FPN((8 * width, 16 * width, 32 * width), out)
        self.ssh1, self.ssh2, self.ssh3 = SSH(out), SSH(out), SSH(out)
        self.ClassHead = nn.ModuleList([Head(out, 2) for _ in range(3)])
        self.BboxHead = nn.ModuleList([Head(out, 4) for _ in range(3)])
        self.LandmarkHead = nn.ModuleList([Head(out, 10) for _ in range(3)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        one, two, three = self.fpn(self.body(x))
        maps = self.ssh1(one), self.ssh2(two), self.ssh3(three)
        boxes, classes, landmarks = (
            torch.cat([head(x) for head, x in zip(heads, maps, strict=True)], 1)
            for heads in (self.BboxHead, self.ClassHead, self.LandmarkHead)
        )
        return boxes, classes.softmax(-1), landmarks


def model(size: int = 320) -> tuple[nn.Module, Tensor]:
    """The network with random weights, and an example input."""
    return ready(RetinaFace, (1, 3, size, size))
