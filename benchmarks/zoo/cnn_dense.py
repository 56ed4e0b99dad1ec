"""Networks with an image-sized output: segmentation, super-resolution, generators."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo.cnn_classic import basic
from benchmarks.zoo.layers import ConvBN, Residual
from benchmarks.zoo.registry import Built, entry, picture


def double(cin: int, cout: int) -> nn.Sequential:
    return nn.Sequential(ConvBN(cin, cout, 3), ConvBN(cout, cout, 3))


class UNet(nn.Module):
    """Encoder and decoder with skip concatenation.

    Parameters
    ----------
    transposed : bool
        Grow by ConvTranspose; otherwise by bilinear resize to the skip's own size and a 1x1 convolution.
    """

    def __init__(self, w: int, depth: int, transposed: bool, classes: int = 21) -> None:
        super().__init__()
        widths = [w * 2**i for i in range(depth + 1)]
        self.enter = double(3, w)
        self.down = nn.ModuleList([double(a, b) for a, b in itertools.pairwise(widths)])
        self.transposed = transposed
        grow: list[nn.Module] = []
        for a, b in zip(widths[1:], widths, strict=False):
            grow.append(nn.ConvTranspose2d(a, b, 2, 2) if transposed else nn.Conv2d(a, b, 1))
        self.grow = nn.ModuleList(grow)
        self.up = nn.ModuleList([double(2 * a, a) for a in widths[:-1]])
        self.head = nn.Conv2d(w, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = [self.enter(x)]
        for down in self.down:
            skips.append(down(F.max_pool2d(skips[-1], 2)))
        x = skips.pop()
        for i in reversed(range(len(self.up))):
            skip = skips.pop()
            if not self.transposed:
                x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
            x = self.up[i](torch.cat((skip, self.grow[i](x)), 1))
        return self.head(x)


@entry("unet", "cnn", torchscript=True)
def unet() -> Built:
    return picture(UNet(64, 4, transposed=True, classes=2), 224)


@entry("unet_resize", "cnn", torchscript=True)
def unet_resize() -> Built:
    return picture(UNet(20, 3, transposed=False), 96, dynamic="spatial")


class Exchange(nn.Module):
    """HRNet module: residual blocks a branch, then every branch receives the sum over all branches."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleList([nn.Sequential(basic(w, w, 1), basic(w, w, 1)) for w in widths])
        self.fuse = nn.ModuleList(
            [nn.ModuleList([self.path(widths, i, j) for j in range(len(widths))]) for i in range(len(widths))]
        )

    @staticmethod
    def path(widths: tuple[int, ...], to: int, source: int) -> nn.Module:
        if source == to:
            return nn.Identity()
        if source > to:
            up = nn.Upsample(scale_factor=2.0 ** (source - to), mode="nearest")
            return nn.Sequential(ConvBN(widths[source], widths[to], act=None), up)
        steps: list[nn.Module] = []
        for _ in range(to - source - 1):
            steps.append(ConvBN(widths[source], widths[source], 3, 2))
        return nn.Sequential(*steps, ConvBN(widths[source], widths[to], 3, 2, act=None))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        fused = []
        for row in self.fuse:
            total = row[0](maps[0])
            for path, x in zip(list(row)[1:], maps[1:], strict=True):
                total = total + path(x)
            fused.append(F.relu(total))
        return fused


class HRNet(nn.Module):
    """Three resolutions in parallel; the head concatenates all of them at the finest."""

    def __init__(self, w: int = 20) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvBN(3, 32, 3, 2), ConvBN(32, 32, 3, 2))
        self.enter = nn.ModuleList([ConvBN(32, w, 3), ConvBN(32, 2 * w, 3, 2)])
        self.two = Exchange((w, 2 * w))
        self.third = ConvBN(2 * w, 4 * w, 3, 2)
        self.three = nn.ModuleList([Exchange((w, 2 * w, 4 * w)) for _ in range(2)])
        self.head = nn.Sequential(ConvBN(7 * w, 7 * w), nn.Conv2d(7 * w, 19, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        maps = self.two([enter(x) for enter in self.enter])
        maps.append(self.third(maps[-1]))
        for module in self.three:
            maps = module(maps)
        size = maps[0].shape[-2:]
        grown = [maps[0]] + [
            F.interpolate(m, size=size, mode="bilinear", align_corners=True) for m in maps[1:]
        ]
        return self.head(torch.cat(grown, 1))


@entry("hrnet", "cnn", torchscript=True)
def hrnet() -> Built:
    return picture(HRNet(), 128)


class Aspp(nn.Module):
    """Dilated branches and a pooled one that is resized back."""

    def __init__(self, cin: int, c: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList([ConvBN(cin, c), *[ConvBN(cin, c, 3, d=d) for d in (2, 4, 6)]])
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvBN(cin, c))
        self.join = ConvBN(5 * c, c)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.interpolate(self.pool(x), size=x.shape[-2:], mode="bilinear", align_corners=False)
        return self.join(torch.cat([conv(x) for conv in self.convs] + [pooled], 1))


class DeepLab(nn.Module):
    """Residual encoder, ASPP, low-level skip, resize to the input."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Sequential(ConvBN(3, 32, 3, 2), basic(32, 48, 2))
        self.high = nn.Sequential(basic(48, 96, 2), basic(96, 160, 2))
        self.aspp = Aspp(160, 72)
        self.side = ConvBN(48, 24)
        self.join = nn.Sequential(ConvBN(96, 80, 3), nn.Dropout(0.1), nn.Conv2d(80, 21, 1))

    def forward(self, x: Tensor) -> Tensor:
        low = self.low(x)
        y = self.aspp(self.high(low))
        y = F.interpolate(y, size=low.shape[-2:], mode="bilinear", align_corners=False)
        y = self.join(torch.cat((y, self.side(low)), 1))
        return F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)


@entry("deeplab", "cnn", torchscript=True)
def deeplab() -> Built:
    return picture(DeepLab(), 128, dynamic="spatial")


@entry("super_resolution", "cnn", torchscript=True)
def super_resolution() -> Built:
    def block() -> nn.Module:
        return Residual(
            nn.Sequential(nn.Conv2d(48, 48, 3, padding=1), nn.PReLU(48), nn.Conv2d(48, 48, 3, padding=1))
        )

    grow: list[nn.Module] = []
    for _ in range(2):
        grow += [nn.Conv2d(48, 48 * 4, 3, padding=1), nn.PixelShuffle(2), nn.PReLU(1)]
    trunk = Residual(nn.Sequential(*[block() for _ in range(4)], nn.Conv2d(48, 48, 3, padding=1)))
    net = nn.Sequential(nn.Conv2d(3, 48, 5, padding=2), trunk, *grow, nn.Conv2d(48, 3, 3, padding=1))
    return picture(net, (40, 48), dynamic="spatial")


@entry("style_generator", "cnn", torchscript=True)
def style_generator() -> Built:
    """Reflection padding, instance norm with scale, transposed convolutions, tanh."""

    def conv(cin: int, cout: int, k: int, s: int = 1) -> list[nn.Module]:
        pad: list[nn.Module] = [nn.ReflectionPad2d(k // 2), nn.Conv2d(cin, cout, k, s)]
        return [*pad, nn.InstanceNorm2d(cout, affine=True)]

    def block() -> nn.Module:
        return Residual(nn.Sequential(*conv(80, 80, 3), nn.ReLU(), *conv(80, 80, 3)))

    net = nn.Sequential(
        *conv(3, 24, 7), nn.ReLU(), *conv(24, 40, 3, 2), nn.ReLU(), *conv(40, 80, 3, 2), nn.ReLU(), block(),
        block(),
        nn.ConvTranspose2d(80, 40, 3, 2, 1, 1), nn.InstanceNorm2d(40, affine=True), nn.ReLU(),
        nn.ConvTranspose2d(40, 24, 3, 2, 1, 1), nn.InstanceNorm2d(24, affine=True), nn.ReLU(),
        nn.ReflectionPad2d(3), nn.Conv2d(24, 3, 7), nn.Tanh(),
    )  # fmt: skip
    return picture(net, 64)


@entry("dcgan", "cnn", torchscript=True)
def dcgan() -> Built:
    """Latent vector to image by transposed convolutions with batch norm."""
    layers: list[nn.Module] = [
        nn.Linear(52, 160 * 16),
        nn.Unflatten(1, (160, 4, 4)),
        nn.BatchNorm2d(160),
        nn.ReLU(),
    ]
    for a, b in ((160, 96), (96, 56), (56, 24)):
        layers += [nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.LeakyReLU(0.2)]
    net = nn.Sequential(*layers, nn.ConvTranspose2d(24, 3, 4, 2, 1), nn.Tanh())
    return Built(net, (torch.randn(3, 52),), ["latent"], {"latent": {0: "batch"}})
