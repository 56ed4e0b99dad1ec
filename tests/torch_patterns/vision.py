"""Detectors, segmenters, generators: necks, skips, shuffles, sampling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.torch_patterns.base import cbr, conv, head, pattern

IMAGE = (2, 3, 16, 16)


@pattern(IMAGE, cut="stem.0 cv1.0 m.0.0.0 m.1.1.0 cv2.0 out")
class C2f(nn.Module):
    """YOLOv8: chunk in two, append the outputs of a chain, concatenate all."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.cv1, self.cv2 = cbr(3, 16), cbr(16, 24, 1), cbr(48, 16, 1)
        self.m = nn.ModuleList(nn.Sequential(cbr(12, 12), cbr(12, 12)) for _ in range(2))
        self.out = conv(16, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(self.stem(x)).chunk(2, 1))
        y.extend(y[-1] + m(y[-1]) for m in self.m)
        return self.out(self.cv2(torch.cat(y, 1)))


@pattern(IMAGE, cut="stem a.0 b.0 out")
class CspC3(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.m = conv(3, 16), cbr(16, 8, 1), cbr(16, 8, 1), cbr(8, 8)
        self.cat, self.out = cbr(16, 16, 1), conv(16, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        a = self.a(x)
        return self.out(self.cat(torch.cat((a + self.m(a), self.b(x)), 1)))


@pattern(IMAGE, cut="stem b1.0 b3.0 out")
class ShuffleNetUnit(nn.Module):
    """Half of the channels pass by, the other half is worked on; then both are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.b1, self.b3 = conv(3, 24), cbr(12, 12, 1), cbr(12, 12, 1)
        self.b2 = nn.Sequential(conv(12, 12, groups=12), nn.BatchNorm2d(12))
        self.out = conv(24, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, dim=1)
        x = torch.cat((a, self.b3(self.b2(self.b1(b)))), dim=1)
        n, c, h, w = x.size()
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)
        return self.out(x)


@pattern(IMAGE, cut="a b out")
class ChannelShuffleByView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = conv(3, 24), conv(24, 24, groups=2), conv(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = x.view(x.shape[0], 2, 12, 16, 16).permute(0, 2, 1, 3, 4).reshape(x.shape[0], 24, 16, 16)
        return self.out(F.relu(self.b(x)))


@pattern(IMAGE, cut="a b out")
class ChannelShuffleModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.shuffle, self.b, self.out = conv(3, 16), nn.ChannelShuffle(4), conv(16, 16, groups=4), conv(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.b(self.shuffle(self.a(x)))))


@pattern(IMAGE, cut="a b out")
class PixelShuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.up, self.out = conv(3, 16), conv(16, 32), nn.PixelShuffle(2), conv(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.up(self.b(F.relu(self.a(x))))))


@pattern(IMAGE, cut="a out")
class PixelUnshuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.down, self.out = conv(3, 8), nn.PixelUnshuffle(2), conv(32, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.down(self.a(x))))


class Unet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.d1, self.d2, self.mid = cbr(3, 12), cbr(12, 16), cbr(16, 24)
        self.up2, self.up1 = nn.ConvTranspose2d(24, 16, 2, 2), nn.ConvTranspose2d(16, 12, 2, 2)
        self.u2, self.u1, self.out = cbr(32, 16), cbr(24, 12), conv(12, 2, 1)

    def join(self, skip: Tensor, x: Tensor) -> Tensor:
        return torch.cat([skip, x], 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.d1(x)
        b = self.d2(F.max_pool2d(a, 2))
        c = self.mid(F.max_pool2d(b, 2))
        b = self.u2(self.join(b, self.up2(c)))
        return self.out(self.u1(self.join(a, self.up1(b))))


pattern(IMAGE, cut="d1.0 d2.0 mid.0 up2 up1 u2.0 u1.0 out", name="UnetSkip")(Unet)


@pattern((2, 3, 18, 18), cut="d1.0 d2.0 mid.0 up2 u1.0 out")
class UnetCrop(Unet):
    """Odd sizes: the skip is cropped to the size of what comes up."""

    def join(self, skip: Tensor, x: Tensor) -> Tensor:
        return torch.cat([skip[:, :, : x.shape[2], : x.shape[3]], F.pad(x, (0, 0, 0, 0))], 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :, 1:-1, 1:-1]


@pattern((2, 3, 18, 18), cut="d1.0 d2.0 mid.0 up2 u1.0 out")
class UnetResize(Unet):
    def join(self, skip: Tensor, x: Tensor) -> Tensor:
        return torch.cat([skip, F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)], 1)


@pattern(IMAGE, cut="c1.0 c2.0 c3.0 l1 l2 l3 out")
class FeaturePyramid(nn.Module):
    """Lateral convolutions, nearest upsampling, one output convolution for all levels."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2, self.c3 = cbr(3, 8), cbr(8, 12, stride=2), cbr(12, 16, stride=2)
        self.l1, self.l2, self.l3, self.out = conv(8, 10, 1), conv(12, 10, 1), conv(16, 10, 1), conv(10, 4)

    def forward(self, x: Tensor) -> list[Tensor]:
        a = self.c1(x)
        b = self.c2(a)
        c = self.l3(self.c3(b))
        b = self.l2(b) + F.interpolate(c, scale_factor=2.0, mode="nearest")
        a = self.l1(a) + F.interpolate(b, scale_factor=2.0, mode="nearest")
        return [self.out(level) for level in (a, b, c)]


@pattern(IMAGE, cut="a b out")
class Upsampled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = conv(3, 12, stride=2), conv(12, 16), conv(16, 3)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.hardswish(self.b(self.up(self.a(x)))))


@pattern(IMAGE, cut="stem.0 c.0 out")
class SpatialPyramidPooling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.c, self.out = cbr(3, 16), cbr(16, 8, 1), conv(32, 6, 1)
        self.m = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(self.stem(x))
        y1 = self.m(x)
        y2 = self.m(y1)
        return self.out(torch.cat((x, y1, y2, self.m(y2)), 1))


@pattern(IMAGE, cut="f out")
class GridSample(nn.Module):
    """Offsets from a branch move where the features are read."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.offset, self.out = conv(3, 16), nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 2)), conv(16, 4)
        axis = torch.linspace(-1, 1, 16)
        self.register_buffer("grid", torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)[None])

    def forward(self, x: Tensor) -> Tensor:
        grid = self.grid + 0.1 * self.offset(x).permute(0, 2, 3, 1).tanh()
        return self.out(F.grid_sample(F.relu(self.f(x)), grid, align_corners=True))


@pattern(IMAGE, cut="f.0 box.0 cls.0")
class DetectionHead(nn.Module):
    """Boxes as the expectation of a distribution of 8 bins, classes by a sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.f = cbr(3, 16)
        self.box = nn.Sequential(conv(16, 12), nn.ReLU(), conv(12, 32, 1))
        self.cls = nn.Sequential(conv(16, 12), nn.ReLU(), conv(12, 7, 1))
        self.register_buffer("bins", torch.arange(8, dtype=torch.float32))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.f(x)
        box = self.box(x).flatten(2).view(x.shape[0], 4, 8, -1).softmax(2)
        return torch.einsum("bkna,n->bka", box, self.bins), self.cls(x).flatten(2).sigmoid()


@pattern(IMAGE, cut="a.0 b.0 h.2")
class AdaptivePooling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.pool = cbr(3, 12), cbr(12, 16), nn.AdaptiveAvgPool2d((4, 4))
        self.h = nn.Sequential(nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(64, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.h(self.pool(self.b(self.a(x))))


@pattern(IMAGE, cut="stem.0 b1.0 b2.0 h.2")
class SplitAttention(nn.Module):
    """Two branches weighed by a softmax over the branches, per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.b1, self.b2, self.gate, self.h = (
            cbr(3, 12),
            cbr(12, 16),
            cbr(12, 16, 5),
            nn.Linear(12, 2),
            head(16),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        w = self.gate(x.mean((2, 3))).softmax(1)
        return self.h(self.b1(x) * w[:, 0, None, None, None] + self.b2(x) * w[:, 1, None, None, None])


@pattern(IMAGE, (2, 3, 16, 16), cut="net.0 net.3 last")
class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.last = nn.Sequential(*cbr(3, 12), conv(12, 16), nn.ReLU()), nn.Linear(16, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = (self.net(t).mean((2, 3)) for t in (a, b))
        return self.last((a - b).abs())


@pattern((2, 16, 6, 6), cut="q k v o")
class NonLocal(nn.Module):
    """Attention over pixels with 1 x 1 convolutions, beside a residual from the raw input."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = conv(16, 8, 1), conv(16, 8, 1), conv(16, 12, 1), conv(12, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = (layer(x).flatten(2) for layer in (self.q, self.k, self.v))
        s = torch.bmm(q.transpose(1, 2), k).softmax(-1)
        return x + self.o(torch.bmm(v, s.transpose(1, 2)).view(b, -1, h, w))
