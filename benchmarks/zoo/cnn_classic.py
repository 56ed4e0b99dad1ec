"""Image classifiers of plain and residual convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo.layers import ConvBN, Head, Parallel, Residual, SqueezeExcite
from benchmarks.zoo.registry import Built, entry, picture

VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


class VGG(nn.Module):
    """Convolutions of 3x3 with max pools, three linear layers over the flattened map."""

    def __init__(self, norm: bool, classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        cin = 3
        for width in VGG16:
            if isinstance(width, str):
                layers.append(nn.MaxPool2d(2))
                continue
            layers.append(nn.Conv2d(cin, width, 3, padding=1))
            if norm:
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU())
            cin = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(512 * 49, 4096),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Linear(4096, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.pool(self.features(x)), 1))


@entry("vgg16", "cnn")
def vgg16() -> Built:
    return picture(VGG(norm=False), 224)


@entry("vgg16_bn", "cnn", torchscript=True, keep_norm=True)
def vgg16_bn() -> Built:
    return picture(VGG(norm=True), 224)


class ResNet(nn.Module):
    """Four stages of blocks; a block is ``make(cin, cout, stride)``."""

    def __init__(self, make, widths, depths, stem: int = 64, classes: int = 1000) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.stem = nn.Sequential(ConvBN(3, stem, 7, 2), nn.MaxPool2d(3, 2, 1))
        blocks: list[nn.Module] = []
        cin = stem
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for i in range(depth):
                blocks.append(make(cin, width, 2 if stage > 0 and i == 0 else 1))
                cin = width
        self.blocks = nn.Sequential(*blocks)
        self.head = Head(cin, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


def shortcut(cin: int, cout: int, s: int) -> nn.Module | None:
    """Projection where the shape changes."""
    return None if cin == cout and s == 1 else ConvBN(cin, cout, 1, s, act=None)


def basic(cin: int, cout: int, s: int, *extra: nn.Module) -> nn.Module:
    body = nn.Sequential(ConvBN(cin, cout, 3, s), ConvBN(cout, cout, 3, act=None), *extra)
    return Residual(body, shortcut(cin, cout, s), nn.ReLU())


def bottleneck(
    cin: int, cout: int, s: int, mid: int | None = None, groups: int = 1, *extra: nn.Module
) -> nn.Module:
    mid = mid or cout // 4
    body = nn.Sequential(
        ConvBN(cin, mid), ConvBN(mid, mid, 3, s, g=groups), *extra, ConvBN(mid, cout, act=None)
    )
    return Residual(body, shortcut(cin, cout, s), nn.ReLU())


WIDE = (256, 512, 1024, 2048)
SLIM = (64, 128, 256, 512)


@entry("resnet18", "cnn", torchscript=True)
def resnet18() -> Built:
    return picture(ResNet(basic, SLIM, (2, 2, 2, 2)))


@entry("resnet50", "cnn", torchscript=True, keep_norm=True)
def resnet50() -> Built:
    return picture(ResNet(bottleneck, WIDE, (3, 4, 6, 3)))


@entry("resnext50", "cnn", torchscript=True)
def resnext50() -> Built:
    return picture(ResNet(lambda i, o, s: bottleneck(i, o, s, o // 2, 32), WIDE, (3, 4, 6, 3)))


def regnet_block(cin: int, cout: int, s: int) -> nn.Module:
    # squeezed width follows the block's input, as in RegNet-Y
    return bottleneck(cin, cout, s, cout, cout // 24, SqueezeExcite(cout, max(8, cin // 4)))


@entry("regnet", "cnn")
def regnet() -> Built:
    return picture(ResNet(regnet_block, (48, 120, 336, 888), (1, 3, 6, 2), stem=32))


class Res2(nn.Module):
    """Hierarchical splits: each slice is convolved after the previous one's result is added."""

    def __init__(self, c: int, scale: int, s: int) -> None:
        super().__init__()
        self.scale, self.s = scale, s
        w = c // scale
        self.convs = nn.ModuleList([ConvBN(w, w, 3, s) for _ in range(scale - 1)])
        self.pool = nn.AvgPool2d(3, s, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.chunk(x, self.scale, 1)
        done: list[Tensor] = []
        for i, conv in enumerate(self.convs):
            y = parts[i] if i == 0 or self.s > 1 else done[-1] + parts[i]
            done.append(conv(y))
        last = parts[-1]
        done.append(self.pool(last) if self.s > 1 else last)
        return torch.cat(done, 1)


def res2_block(cin: int, cout: int, s: int) -> nn.Module:
    mid = cout * 13 // 32  # 26w x 4s
    body = nn.Sequential(ConvBN(cin, mid), Res2(mid, 4, s), ConvBN(mid, cout, act=None))
    return Residual(body, shortcut(cin, cout, s), nn.ReLU())


@entry("res2net", "cnn", torchscript=True)
def res2net() -> Built:
    return picture(ResNet(res2_block, WIDE, (3, 4, 6, 3)))


class DenseLayer(nn.Module):
    """Pre-activation bottleneck whose output is appended to its input."""

    def __init__(self, cin: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(cin), nn.BatchNorm2d(4 * growth)
        self.conv1 = nn.Conv2d(cin, 4 * growth, 1, bias=False)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(F.relu(self.norm2(y)))], 1)


@entry("densenet121", "cnn", torchscript=True)
def densenet121() -> Built:
    growth, c = 32, 64
    layers: list[nn.Module] = [ConvBN(3, c, 7, 2), nn.MaxPool2d(3, 2, 1)]
    for stage, depth in enumerate((6, 12, 24, 16)):
        for _ in range(depth):
            layers.append(DenseLayer(c, growth))
            c += growth
        if stage < 3:
            layers += [nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, c // 2, 1, bias=False), nn.AvgPool2d(2)]
            c //= 2
    return picture(nn.Sequential(*layers, nn.BatchNorm2d(c), nn.ReLU(), Head(c)))


def chain(*spec: tuple) -> nn.Sequential:  # type: ignore[type-arg]
    """``(cin, cout, kernel, stride, padding)`` tuples to a run of `ConvBN`."""
    convs = [
        ConvBN(a[0], a[1], a[2], a[3] if len(a) > 3 else 1, p=a[4] if len(a) > 4 else None) for a in spec
    ]
    return nn.Sequential(*convs)


def pooled(cin: int, cout: int) -> nn.Sequential:
    return nn.Sequential(nn.AvgPool2d(3, 1, 1), ConvBN(cin, cout))


def mix35(c: int, pool: int) -> Parallel:
    return Parallel(
        ConvBN(c, 64),
        chain((c, 48, 1), (48, 64, 5)),
        chain((c, 64, 1), (64, 96, 3), (96, 96, 3)),
        pooled(c, pool),
    )


def mix17(c: int, m: int) -> Parallel:
    row, col = (1, 7), (7, 1)
    return Parallel(
        ConvBN(c, 192),
        chain((c, m, 1), (m, m, row), (m, 192, col)),
        chain((c, m, 1), (m, m, col), (m, m, row), (m, m, col), (m, 192, row)),
        pooled(c, 192),
    )


def mix8(c: int) -> Parallel:
    def fork() -> Parallel:
        return Parallel(ConvBN(384, 384, (1, 3)), ConvBN(384, 384, (3, 1)))

    return Parallel(
        ConvBN(c, 320),
        nn.Sequential(ConvBN(c, 384), fork()),
        nn.Sequential(ConvBN(c, 448), ConvBN(448, 384, 3), fork()),
        pooled(c, 192),
    )


@entry("inception_v3", "cnn")
def inception_v3() -> Built:
    row, col = (1, 7), (7, 1)
    down35 = Parallel(
        ConvBN(288, 384, 3, 2, p=0), chain((288, 64, 1), (64, 96, 3), (96, 96, 3, 2, 0)), nn.MaxPool2d(3, 2)
    )
    down17 = Parallel(
        chain((768, 192, 1), (192, 320, 3, 2, 0)),
        chain((768, 192, 1), (192, 192, row), (192, 192, col), (192, 192, 3, 2, 0)),
        nn.MaxPool2d(3, 2),
    )
    net = nn.Sequential(
        chain((3, 32, 3, 2, 0), (32, 32, 3, 1, 0), (32, 64, 3)),
        nn.MaxPool2d(3, 2),
        chain((64, 80, 1), (80, 192, 3, 1, 0)),
        nn.MaxPool2d(3, 2),
        mix35(192, 32), mix35(256, 64), mix35(288, 64), down35,
        mix17(768, 128), mix17(768, 160), mix17(768, 160), mix17(768, 192), down17,
        mix8(1280), mix8(2048), Head(2048),
    )  # fmt: skip
    return picture(net, 224)


@entry("googlenet", "cnn", torchscript=True)
def googlenet() -> Built:
    def mix(c: int, a: int, b: tuple[int, int], d: tuple[int, int], pool: int) -> Parallel:
        tail = nn.Sequential(nn.MaxPool2d(3, 1, 1), ConvBN(c, pool))
        return Parallel(
            ConvBN(c, a), chain((c, b[0], 1), (b[0], b[1], 3)), chain((c, d[0], 1), (d[0], d[1], 5)), tail
        )

    net = nn.Sequential(
        nn.Conv2d(3, 64, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True), nn.LocalResponseNorm(5),
        ConvBN(64, 64), ConvBN(64, 192, 3), nn.LocalResponseNorm(5), nn.MaxPool2d(3, 2, ceil_mode=True),
        mix(192, 64, (96, 128), (16, 32), 32), mix(256, 128, (128, 192), (32, 96), 64), nn.MaxPool2d(3, 2, 1),
        mix(480, 192, (96, 208), (16, 48), 64), mix(512, 160, (112, 224), (24, 64), 64),
        nn.MaxPool2d(3, 2, 1),
        mix(512, 256, (160, 320), (32, 128), 128), Head(832, 200),
    )  # fmt: skip
    return picture(net, 128)


class Fire(nn.Module):
    """Squeeze to few channels, expand by 1x1 and 3x3 side by side."""

    def __init__(self, cin: int, squeeze: int, wide: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(cin, squeeze, 1)
        self.one, self.three = nn.Conv2d(squeeze, wide, 1), nn.Conv2d(squeeze, wide, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], 1)


@entry("squeezenet", "cnn", torchscript=True)
def squeezenet() -> Built:
    pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    net = nn.Sequential(
        nn.Conv2d(3, 64, 3, 2), nn.ReLU(), pool, Fire(64, 16, 64), Fire(128, 16, 64), pool,
        Fire(128, 32, 128),
        Fire(256, 32, 128), pool, Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256),
        Fire(512, 64, 256),
        nn.Conv2d(512, 100, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    return picture(net, 128)
