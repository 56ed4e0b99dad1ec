"""A small anchor-free YOLO: residual backbone, one way down, two decoupled heads at strides 8 and 16."""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: Width of the stem; the stages have 2, 4 and 8 times as many channels.
WIDTH = 16
STRIDES = (8, 16)


class Conv(nn.Sequential):
    """Convolution, batch norm, ReLU."""

    def __init__(self, c: int, out: int, k: int = 3, stride: int = 1) -> None:
        super().__init__(nn.Conv2d(c, out, k, stride, k // 2, bias=False), nn.BatchNorm2d(out), nn.ReLU())


class Residual(nn.Module):
    """Two convolutions beside a way past them."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.first, self.second = Conv(c, c), Conv(c, c)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


class Head(nn.Module):
    """Distances of a cell's centre to the four sides in strides (as logarithms), and one score (as a logit)."""

    def __init__(self, c: int, mid: int) -> None:
        super().__init__()
        self.box = nn.Sequential(Conv(c, mid), nn.Conv2d(mid, 4, 1))
        self.score = nn.Sequential(Conv(c, mid), nn.Conv2d(mid, 1, 1))
        nn.init.constant_(self.score[-1].bias, -4.6)  # type: ignore[arg-type,union-attr]  # one cell in a hundred, at first

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.box(x), self.score(x)], 1)


class TinyYolo(nn.Module):
    """Pictures float32[b, 3, h, w], 0 to 1, sides multiples of 16, to boxes.

    Output
    ------
    float32[b, 5, n]
        Centre x, centre y, width, height in pixels and a score of 0 to 1 for every cell of both levels, as exports of
        Ultralytics' models lay it out.
    """

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        w = width
        self.stem = nn.Sequential(Conv(3, w, 3, 2), Conv(w, 2 * w, 3, 2), Residual(2 * w))
        self.near = nn.Sequential(Conv(2 * w, 4 * w, 3, 2), Residual(4 * w), Residual(4 * w))
        self.far = nn.Sequential(Conv(4 * w, 8 * w, 3, 2), Residual(8 * w))
        self.reduce = Conv(8 * w, 4 * w, 1)
        self.grow = nn.Upsample(scale_factor=2.0, mode="nearest")
        self.mix = Conv(8 * w, 4 * w)
        self.heads = nn.ModuleList([Head(4 * w, 3 * w), Head(8 * w, 3 * w)])

    def raw(self, image: Tensor) -> list[Tensor]:
        """What the heads give, float32[b, 5, h / stride, w / stride] each."""
        near = self.near(self.stem(image))
        far = self.far(near)
        near = self.mix(torch.cat([near, self.grow(self.reduce(far))], 1))
        return [head(x) for head, x in zip(self.heads, (near, far), strict=True)]

    def forward(self, image: Tensor) -> Tensor:
        out = []
        for raw, stride in zip(self.raw(image), STRIDES, strict=True):
            h, w = image.shape[2] // stride, image.shape[3] // stride
            box, score = decode(raw, centres(h, w, stride, raw.device), stride)
            out.append(torch.cat([(box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2], score.sigmoid()], 1))
        return torch.cat(out, 2)


def centres(h: int, w: int, stride: int, device: torch.device | None = None) -> Tensor:
    """Centres of a level's cells in pixels, float32[2, h * w]: x, y."""
    y, x = torch.meshgrid(torch.arange(h, device=device) + 0.5, torch.arange(w, device=device) + 0.5, indexing="ij")
    return torch.stack([x.reshape(-1), y.reshape(-1)]) * stride


def decode(raw: Tensor, at: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Corners in pixels, float32[b, 4, n], and logits, float32[b, 1, n], of one level."""
    flat = raw.flatten(2)
    sides = flat[:, :4].clamp(max=5).exp() * stride
    return torch.cat([at - sides[:, :2], at + sides[:, 2:]], 1), flat[:, 4:]


def model() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The trained network, for ``graphprune run examples.drone.net:model``, and an input."""
    from examples.drone.data import SIZE
    from examples.drone.train import WEIGHTS, load

    return load(WEIGHTS), (torch.rand(1, 3, *SIZE),)
