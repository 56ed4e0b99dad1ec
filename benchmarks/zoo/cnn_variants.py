"""Residual classifiers with unusual couplings: attention, padded shortcuts, other norms, mixed ops."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo.cnn_classic import ResNet, basic, shortcut
from benchmarks.zoo.layers import ConvBN, Head, Residual
from benchmarks.zoo.registry import Built, entry, picture

DEPTHS = (1, 2, 1)
WIDTHS = (40, 88, 168)


class Cbam(nn.Module):
    """Channel gate from average and max pools through one shared MLP, then a spatial gate."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Conv2d(c, c // 4, 1, bias=False), nn.ReLU(), nn.Conv2d(c // 4, c, 1, bias=False)
        )
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.mlp(F.adaptive_avg_pool2d(x, 1)) + self.mlp(F.adaptive_max_pool2d(x, 1))
        x = x * gate.sigmoid()
        stats = torch.cat((x.mean(1, keepdim=True), x.max(1, keepdim=True).values), 1)
        return x * self.spatial(stats).sigmoid()


class Eca(nn.Module):
    """A 1-d convolution that slides over the channels."""

    def __init__(self, k: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, k, padding=k // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.adaptive_avg_pool2d(x, 1)
        y = self.conv(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * y.sigmoid()


@entry("resnet_cbam", "cnn", torchscript=True)
def resnet_cbam() -> Built:
    return picture(ResNet(lambda i, o, s: basic(i, o, s, Cbam(o)), WIDTHS, DEPTHS, 40, 100), 96)


@entry("resnet_eca", "cnn", torchscript=True)
def resnet_eca() -> Built:
    return picture(ResNet(lambda i, o, s: basic(i, o, s, Eca()), WIDTHS, DEPTHS, 40, 100), 96)


class PaddedShortcut(nn.Module):
    """Option A of the CIFAR ResNets: strided slice, zeros for the new channels on both sides."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        extra = cout - cin
        self.pads = (0, 0, 0, 0, extra // 2, extra - extra // 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], self.pads)


@entry("resnet20_option_a", "cnn", torchscript=True, keep_norm=True)
def resnet20_option_a() -> Built:
    layers: list[nn.Module] = [ConvBN(3, 16, 3)]
    c = 16
    for width in (16, 32, 64):
        for _ in range(3):
            s = 1 if width == c else 2
            body = nn.Sequential(ConvBN(c, width, 3, s), ConvBN(width, width, 3, act=None))
            layers.append(Residual(body, PaddedShortcut(c, width) if s > 1 else None, nn.ReLU()))
            c = width
    return picture(nn.Sequential(*layers, Head(c, 10)), 32)


@entry("resnet_group_norm", "cnn", torchscript=True)
def resnet_group_norm() -> Built:
    def conv(cin: int, cout: int, k: int, s: int = 1) -> list[nn.Module]:
        return [nn.Conv2d(cin, cout, k, s, k // 2, bias=False), nn.GroupNorm(8, cout)]

    def block(cin: int, cout: int, s: int) -> nn.Module:
        body = nn.Sequential(*conv(cin, cout, 3, s), nn.ReLU(), *conv(cout, cout, 3))
        side = None if s == 1 and cin == cout else nn.Sequential(*conv(cin, cout, 1, s))
        return Residual(body, side, nn.ReLU())

    return picture(ResNet(block, WIDTHS, DEPTHS, 40, 100), 96)


class PreActivation(nn.Module):
    """ResNet v2 block: norm and activation come first, the trunk is never activated."""

    def __init__(self, cin: int, cout: int, s: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(cin), nn.BatchNorm2d(cout)
        self.conv1 = nn.Conv2d(cin, cout, 3, s, 1, bias=False)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.side = nn.Conv2d(cin, cout, 1, s, bias=False) if s > 1 or cin != cout else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(x))
        trunk = x if self.side is None else self.side(y)
        return trunk + self.conv2(F.relu(self.norm2(self.conv1(y))))


@entry("resnet_preact", "cnn", torchscript=True)
def resnet_preact() -> Built:
    return picture(ResNet(PreActivation, WIDTHS, DEPTHS, 40, 100), 96, dynamic="spatial")


class MixedCell(nn.Module):
    """DARTS-like cell: states are sums of different ops on earlier states, the last are concatenated."""

    def __init__(self, before: int, cin: int, c: int, s: int, before_s: int = 1) -> None:
        super().__init__()

        def separable(k: int, stride: int, d: int = 1) -> nn.Module:
            depth = nn.Conv2d(c, c, k, stride, d * (k // 2), d, c, bias=False)
            return nn.Sequential(nn.ReLU(), depth, nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c))

        self.enter0 = nn.Sequential(nn.ReLU(), ConvBN(before, c, 1, before_s, act=None))
        self.enter1 = nn.Sequential(nn.ReLU(), ConvBN(cin, c, act=None))
        skip: nn.Module = nn.Identity() if s == 1 else ConvBN(c, c, 1, s, act=None)
        self.ops = nn.ModuleList([
            separable(3, s), separable(5, s), nn.MaxPool2d(3, s, 1), separable(3, s, 2),
            nn.AvgPool2d(3, s, 1), skip,
        ])  # fmt: skip

    def forward(self, s0: Tensor, s1: Tensor) -> Tensor:
        s0, s1 = self.enter0(s0), self.enter1(s1)
        a = self.ops[0](s0) + self.ops[1](s1)
        b = self.ops[2](s0) + self.ops[3](s1)
        c = self.ops[4](s1) + self.ops[5](s0)
        return torch.cat((a, b, c), 1)


class Nas(nn.Module):
    """Cells that read the two cells before them; one reduction."""

    def __init__(self, c: int = 28) -> None:
        super().__init__()
        self.stem = ConvBN(3, c, 3, 2, act=None)
        self.a = MixedCell(c, c, c, 1)
        self.b = MixedCell(c, 3 * c, 2 * c, 2)
        self.c = MixedCell(3 * c, 6 * c, 2 * c, 1, before_s=2)
        self.head = Head(6 * c, 100)

    def forward(self, x: Tensor) -> Tensor:
        s0 = self.stem(x)
        s1 = self.a(s0, s0)
        s2 = self.b(s0, s1)
        return self.head(self.c(s1, s2))


@entry("nas_cells", "cnn", torchscript=True)
def nas_cells() -> Built:
    return picture(Nas(), 64)


class Selective(nn.Module):
    """Selective kernels: softmax over stacked branches, weighted sum."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList([ConvBN(c, c, 3, g=8), ConvBN(c, c, 3, g=8, d=2)])
        self.fc = nn.Sequential(nn.Linear(c, 24), nn.ReLU())
        self.out = nn.Linear(24, 2 * c)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.stack([branch(x) for branch in self.branches], 1)
        gate = self.out(self.fc(y.sum(1).mean((2, 3)))).view(x.shape[0], 2, -1).softmax(1)
        return (y * gate[..., None, None]).sum(1)


@entry("sknet", "cnn", torchscript=True)
def sknet() -> Built:
    def block(cin: int, cout: int, s: int) -> nn.Module:
        body = nn.Sequential(ConvBN(cin, cout, 3, s), Selective(cout), ConvBN(cout, cout, act=None))
        return Residual(body, shortcut(cin, cout, s), nn.ReLU())

    return picture(ResNet(block, WIDTHS, DEPTHS, 40, 100), 96)


class LargeKernel(nn.Module):
    """Visual attention: depthwise, dilated depthwise and pointwise convolutions make the gate (VAN)."""

    def __init__(self, c: int, mid: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(c), nn.BatchNorm2d(c)
        self.enter, self.leave, self.point = nn.Conv2d(c, c, 1), nn.Conv2d(c, c, 1), nn.Conv2d(c, c, 1)
        self.near = nn.Conv2d(c, c, 5, padding=2, groups=c)
        self.far = nn.Conv2d(c, c, 7, padding=9, dilation=3, groups=c)
        self.up, self.down = nn.Conv2d(c, mid, 1), nn.Conv2d(mid, c, 1)
        self.depth = nn.Conv2d(mid, mid, 3, padding=1, groups=mid)
        self.scale1, self.scale2 = (
            nn.Parameter(torch.rand(c, 1, 1) + 0.3),
            nn.Parameter(torch.rand(c, 1, 1) + 0.3),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.enter(self.norm1(x)))
        x = x + self.scale1 * self.leave(y * self.point(self.far(self.near(y))))
        return x + self.scale2 * self.down(F.gelu(self.depth(self.up(self.norm2(x)))))


@entry("van", "cnn", torchscript=True)
def van() -> Built:
    layers: list[nn.Module] = []
    c = 3
    for width, mid in ((28, 112), (52, 176), (92, 232)):
        layers += [ConvBN(c, width, 3, 2, act=None), LargeKernel(width, mid)]
        c = width
    return picture(nn.Sequential(*layers, Head(c, 49)), 64)
