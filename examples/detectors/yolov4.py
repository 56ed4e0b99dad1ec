"""YOLOv4: CSPDarknet-53 with Mish, SPP, PAN, three heads (Bochkovskiy et al., arXiv 2004.10934; layers as in yolov4.cfg).

``yolov4.weights`` loads: 64,429,405 numbers for 80 classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.detectors.darknet import Conv, Residual, alternating, decode, output
from examples.detectors.initialise import ready, temper

#: Stride -> anchors in pixels, and how far centres may lie beyond their cell.
ANCHORS = {
    8: (((12, 16), (19, 36), (40, 28)), 1.2),
    16: (((36, 75), (76, 55), (72, 146)), 1.1),
    32: (((142, 110), (192, 243), (459, 401)), 1.05),
}


class Stage(nn.Module):
    """Halves the size; one part of the channels passes by the residual blocks and meets them again at the end."""

    def __init__(self, cin: int, cout: int, depth: int, part: int, inner: int) -> None:
        super().__init__()
        self.down = Conv(cin, cout, 3, 2, nn.Mish)
        self.past, self.into = Conv(cout, part, act=nn.Mish), Conv(cout, part, act=nn.Mish)
        self.blocks = nn.Sequential(*[Residual(part, inner, nn.Mish) for _ in range(depth)])
        self.out = Conv(part, part, act=nn.Mish)
        self.join = Conv(2 * part, cout, act=nn.Mish)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return self.join(torch.cat((self.out(self.blocks(self.into(x))), self.past(x)), 1))


class Pyramid(nn.Module):
    """SPP: what it sees in windows of 13, 9, 5 and 1 side by side."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before = alternating(2 * width, width, 3)
        self.pools = nn.ModuleList([nn.MaxPool2d(k, 1, k // 2) for k in (13, 9, 5)])
        self.after = alternating(4 * width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        return self.after(torch.cat([*(pool(x) for pool in self.pools), x], 1))


class Up(nn.Module):
    """The deeper map, twice as large, beside the backbone's."""

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.up, self.side = Conv(2 * width, width), Conv(side, width)
        self.set = alternating(2 * width, width, 5)

    def forward(self, x: Tensor, side: Tensor) -> Tensor:
        return self.set(torch.cat((self.side(side), F.interpolate(self.up(x), scale_factor=2.0)), 1))


class Down(nn.Module):
    """The shallower map, half as large, beside the one of the way up."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.set = Conv(width // 2, width, 3, 2), alternating(2 * width, width, 5)

    def forward(self, x: Tensor, side: Tensor) -> Tensor:
        return self.set(torch.cat((self.down(x), side), 1))


class YOLOv4(nn.Module):
    """Pictures float[batch, 3, h, w] in [0, 1], h and w multiples of 32.

    Gives float[batch, boxes, 5 + classes]: centre x, y, width, height in pixels, objectness, classes. With ``raw`` the
    three maps that this is decoded from, float[batch, 3 * (5 + classes), h / s, w / s] for strides s of 8, 16 and 32.

    Parameters
    ----------
    width
        Channels of the first convolution.
    depths
        Residual blocks of the five stages.
    """

    def __init__(
        self, classes: int = 80, width: int = 32, depths: Sequence[int] = (1, 2, 8, 8, 4), *, raw: bool = False
    ) -> None:
        super().__init__()
        self.raw = raw
        self.stem = Conv(3, width, 3, act=nn.Mish)
        self.stages = nn.ModuleList()
        w = width
        for number, depth in enumerate(depths):
            part, inner = (2 * w, w) if number == 0 else (w, w)
            self.stages.append(Stage(w, 2 * w, depth, part, inner))
            w *= 2
        w //= 2
        # In the order of yolov4.cfg, which is that of the weights.
        self.spp = Pyramid(w)
        self.up4, self.up3 = Up(w // 2, w), Up(w // 4, w // 2)
        self.head3 = output(w // 4, classes)
        self.down4, self.head4 = Down(w // 2), output(w // 2, classes)
        self.down5, self.head5 = Down(w), output(w, classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        five = self.spp(maps[-1])
        four = self.up4(five, maps[-2])
        three = self.up3(four, maps[-3])
        four = self.down4(three, four)
        five = self.down5(four, five)
        raw = self.head3(three), self.head4(four), self.head5(five)
        if self.raw:
            return raw
        return torch.cat([decode(y, a, s, c) for y, (s, (a, c)) in zip(raw, ANCHORS.items(), strict=True)], 1)


def model(size: int = 416, *, raw: bool = False, classes: int = 80) -> tuple[nn.Module, Tensor]:
    """The network with random weights, and an example input."""
    net, example = ready(lambda: YOLOv4(classes, raw=raw), (1, 3, size, size))
    # A hundred random layers make much of a difference of rounding; heads that begin small, as in training, keep it small.
    temper(net, example, {f"head{level}.1": 0.05 for level in (3, 4, 5)})
    return net, example
