"""ArcFace's recogniser: an improved ResNet with PReLU, one embedding a face (Deng et al., arXiv 1801.07698).

Parameters are called as in insightface (``layer1.0.bn1.weight``), so that its published state dicts load.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from examples.detectors.initialise import ready

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}


class Block(nn.Module):
    """Norm, convolution, norm, PReLU, convolution, norm, and the shortcut: nothing behind the sum."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(cin), nn.Conv2d(cin, cout, 3, 1, 1, bias=False)
        self.bn2, self.prelu = nn.BatchNorm2d(cout), nn.PReLU(cout)
        self.conv2, self.bn3 = nn.Conv2d(cout, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout)
        self.downsample = None
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        return y + (x if self.downsample is None else self.downsample(x))


class ArcFace(nn.Module):
    """Aligned faces float[batch, 3, 112, 112] in [-1, 1]; gives embeddings float[batch, features].

    Parameters
    ----------
    depths
        Blocks of the four stages.
    side
        Height and width of the pictures, a multiple of 16.
    """

    def __init__(
        self, depths: Sequence[int] = DEPTHS[50], width: int = 64, features: int = 512, side: int = 112
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1, self.prelu = nn.BatchNorm2d(width), nn.PReLU(width)
        w = width
        for number, depth in enumerate(depths, 1):
            out = width * 2 ** (number - 1)
            blocks = [Block(w if i == 0 else out, out, 2 if i == 0 else 1) for i in range(depth)]
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
            w = out
        self.bn2 = nn.BatchNorm2d(w)
        self.fc = nn.Linear(w * (side // 16) ** 2, features)
        self.features = nn.BatchNorm1d(features)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.features(self.fc(torch.flatten(self.bn2(x), 1)))


def model(size: int = 112, depth: int = 50) -> tuple[nn.Module, Tensor]:
    """The network with random weights, and an example input."""
    return ready(lambda: ArcFace(DEPTHS[depth], side=size), (1, 3, size, size))
