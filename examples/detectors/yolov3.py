"""YOLOv3: Darknet-53, a top-down neck, three heads (Redmon and Farhadi, arXiv 1804.02767; layers as in yolov3.cfg).

``yolov3.weights`` loads: 62,001,757 numbers for 80 classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.detectors.darknet import Conv, Residual, alternating, decode, output
from examples.detectors.initialise import ready

#: Stride -> anchors, in pixels.
ANCHORS = {
    32: ((116, 90), (156, 198), (373, 326)),
    16: ((30, 61), (62, 45), (59, 119)),
    8: ((10, 13), (16, 30), (33, 23)),
}


class YOLOv3(nn.Module):
    """Pictures float[batch, 3, h, w] in [0, 1], h and w multiples of 32.

    Gives float[batch, boxes, 5 + classes]: centre x, y, width, height in pixels, objectness, classes. With ``raw`` the
    three maps that this is decoded from, float[batch, 3 * (5 + classes), h / s, w / s] for strides s of 32, 16 and 8.

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
        self.stem = Conv(3, width, 3)
        self.stages = nn.ModuleList()
        w = width
        for depth in depths:
            blocks = [Residual(2 * w, w) for _ in range(depth)]
            self.stages.append(nn.Sequential(Conv(w, 2 * w, 3, 2), *blocks))
            w *= 2
        w //= 2
        # In the order of yolov3.cfg, which is that of the weights.
        self.set5, self.head5 = alternating(2 * w, w, 5), output(w, classes)
        self.up4 = Conv(w, w // 2)
        self.set4, self.head4 = alternating(w + w // 2, w // 2, 5), output(w // 2, classes)
        self.up3 = Conv(w // 2, w // 4)
        self.set3, self.head3 = alternating(w // 2 + w // 4, w // 4, 5), output(w // 4, classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        five = self.set5(maps[-1])
        four = self.set4(torch.cat((F.interpolate(self.up4(five), scale_factor=2.0), maps[-2]), 1))
        three = self.set3(torch.cat((F.interpolate(self.up3(four), scale_factor=2.0), maps[-3]), 1))
        raw = self.head5(five), self.head4(four), self.head3(three)
        if self.raw:
            return raw
        return torch.cat([decode(y, a, s) for y, (s, a) in zip(raw, ANCHORS.items(), strict=True)], 1)


def model(size: int = 416, *, raw: bool = False, classes: int = 80) -> tuple[nn.Module, Tensor]:
    """The network with random weights, and an example input."""
    return ready(lambda: YOLOv3(classes, raw=raw), (1, 3, size, size))
