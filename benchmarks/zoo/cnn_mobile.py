"""Small classifiers: depthwise convolutions, channel shuffles, squeeze-excite, mixers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo.layers import Act, ConvBN, Head, Residual, SqueezeExcite
from benchmarks.zoo.registry import Built, entry, picture


def even8(x: float) -> int:
    """Nearest multiple of 8, never more than a tenth below."""
    y = max(8, int(x + 4) // 8 * 8)
    return y + 8 if y < 0.9 * x else y


@entry("mobilenet_v1", "cnn", torchscript=True)
def mobilenet_v1() -> Built:
    layers: list[nn.Module] = [ConvBN(3, 32, 3, 2, act=nn.ReLU6)]
    c = 32
    for width, s in [
        (64, 1),
        (128, 2),
        (128, 1),
        (256, 2),
        (256, 1),
        (512, 2),
        *[(512, 1)] * 3,
        (1024, 2),
        (1024, 1),
    ]:
        layers += [ConvBN(c, c, 3, s, g=c, act=nn.ReLU6), ConvBN(c, width, act=nn.ReLU6)]
        c = width
    return picture(nn.Sequential(*layers, Head(c, 1001)), 128)


def inverted(
    cin: int, cout: int, k: int, s: int, mid: int, *, act: Act, squeeze: nn.Module | None = None
) -> nn.Module:
    """Expand, depthwise, (squeeze-excite,) project; residual where shapes allow."""
    parts: list[nn.Module] = [] if mid == cin else [ConvBN(cin, mid, act=act)]
    parts.append(ConvBN(mid, mid, k, s, g=mid, act=act))
    if squeeze is not None:
        parts.append(squeeze)
    body = nn.Sequential(*parts, ConvBN(mid, cout, act=None))
    return Residual(body) if s == 1 and cin == cout else body


@entry("mobilenet_v2", "cnn", torchscript=True, keep_norm=True)
def mobilenet_v2() -> Built:
    layers: list[nn.Module] = [ConvBN(3, 32, 3, 2, act=nn.ReLU6)]
    c = 32
    table = [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]
    for t, width, n, s in table:
        for i in range(n):
            layers.append(inverted(c, width, 3, s if i == 0 else 1, t * c, act=nn.ReLU6))
            c = width
    return picture(nn.Sequential(*layers, ConvBN(c, 1280, act=nn.ReLU6), Head(1280)))


@entry("mobilenet_v3", "cnn", torchscript=True, keep_norm=True)
def mobilenet_v3() -> Built:
    layers: list[nn.Module] = [ConvBN(3, 16, 3, 2, act=nn.Hardswish)]
    c = 16
    table = [  # kernel, expanded, out, squeeze-excite, activation, stride
        (3, 16, 16, True, nn.ReLU, 2), (3, 72, 24, False, nn.ReLU, 2), (3, 88, 24, False, nn.ReLU, 1),
        (5, 96, 40, True, nn.Hardswish, 2), (5, 240, 40, True, nn.Hardswish, 1),
        (5, 120, 48, True, nn.Hardswish, 1),
        (5, 288, 96, True, nn.Hardswish, 2), (5, 576, 96, True, nn.Hardswish, 1),
    ]  # fmt: skip
    for k, mid, out, gated, act, s in table:
        squeeze = SqueezeExcite(mid, even8(mid / 4), gate=nn.Hardsigmoid) if gated else None
        layers.append(inverted(c, out, k, s, mid, act=act, squeeze=squeeze))
        c = out
    head = nn.Sequential(
        ConvBN(c, 576, act=nn.Hardswish), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(576, 1024),
        nn.Hardswish(),
        nn.Linear(1024, 100),
    )  # fmt: skip
    return picture(nn.Sequential(*layers, head), 160)


@entry("efficientnet_b0", "cnn")
def efficientnet_b0() -> Built:
    layers: list[nn.Module] = [ConvBN(3, 32, 3, 2, act=nn.SiLU)]
    c = 32
    table = [
        (1, 3, 16, 1, 1), (6, 3, 24, 2, 2), (6, 5, 40, 2, 2), (6, 3, 80, 3, 2), (6, 5, 112, 3, 1),
        (6, 5, 192, 4, 2),
        (6, 3, 320, 1, 1),
    ]  # fmt: skip
    for t, k, width, n, s in table:
        for i in range(n):
            squeeze = SqueezeExcite(t * c, max(1, c // 4), nn.SiLU)
            layers.append(inverted(c, width, k, s if i == 0 else 1, t * c, act=nn.SiLU, squeeze=squeeze))
            c = width
    return picture(nn.Sequential(*layers, ConvBN(c, 1280, act=nn.SiLU), Head(1280)))


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave channel groups: view, transpose, view."""
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)


class ShuffleUnit(nn.Module):
    """ShuffleNetV2 unit: half passes through (stride 1) or both halves are reduced (stride 2)."""

    def __init__(self, cin: int, cout: int, s: int) -> None:
        super().__init__()
        self.s = s
        half = cout // 2
        first = cin if s > 1 else half
        self.main = nn.Sequential(
            ConvBN(first, half), ConvBN(half, half, 3, s, g=half, act=None), ConvBN(half, half)
        )
        self.side = (
            nn.Sequential(ConvBN(cin, cin, 3, s, g=cin, act=None), ConvBN(cin, half)) if s > 1 else None
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.side is not None:
            return shuffle(torch.cat([self.side(x), self.main(x)], 1), 2)
        a, b = x.chunk(2, 1)
        return shuffle(torch.cat([a, self.main(b)], 1), 2)


@entry("shufflenet_v2", "cnn", torchscript=True)
def shufflenet_v2() -> Built:
    layers: list[nn.Module] = [ConvBN(3, 24, 3, 2), nn.MaxPool2d(3, 2, 1)]
    c = 24
    for width, n in [(116, 4), (232, 8), (464, 4)]:
        for i in range(n):
            layers.append(ShuffleUnit(c, width, 2 if i == 0 else 1))
            c = width
    return picture(nn.Sequential(*layers, ConvBN(c, 1024), Head(1024)))


class GroupedShuffle(nn.Module):
    """ShuffleNetV1 unit: grouped 1x1, shuffle, depthwise, grouped 1x1; pooled concat at stride 2."""

    def __init__(self, cin: int, cout: int, s: int, groups: int, first_groups: int) -> None:
        super().__init__()
        self.s, self.groups = s, groups
        out = cout - cin if s > 1 else cout
        mid = cout // 4
        self.enter = ConvBN(cin, mid, g=first_groups)
        self.depth = ConvBN(mid, mid, 3, s, g=mid, act=None)
        self.leave = ConvBN(mid, out, g=groups, act=None)

    def forward(self, x: Tensor) -> Tensor:
        y = self.leave(self.depth(shuffle(self.enter(x), self.groups)))
        if self.s > 1:
            return F.relu(torch.cat([F.avg_pool2d(x, 3, 2, 1), y], 1))
        return F.relu(x + y)


@entry("shufflenet_v1", "cnn", torchscript=True)
def shufflenet_v1() -> Built:
    layers: list[nn.Module] = [ConvBN(3, 24, 3, 2), nn.MaxPool2d(3, 2, 1)]
    c = 24
    for stage, (width, n) in enumerate([(240, 3), (480, 4), (960, 2)]):
        for i in range(n):
            layers.append(GroupedShuffle(c, width, 2 if i == 0 else 1, 3, 1 if stage == 0 and i == 0 else 3))
            c = width
    return picture(nn.Sequential(*layers, Head(c, 100)), 128)


class Ghost(nn.Module):
    """Half of the maps by convolution, the others by a cheap depthwise one; surplus is sliced off."""

    def __init__(self, cin: int, cout: int, act: Act | None) -> None:
        super().__init__()
        self.cout = cout
        first = (cout + 1) // 2
        self.primary = ConvBN(cin, first, act=act)
        self.cheap = ConvBN(first, first, 3, g=first, act=act)

    def forward(self, x: Tensor) -> Tensor:
        y = self.primary(x)
        return torch.cat([y, self.cheap(y)], 1)[:, : self.cout]


def ghost_block(cin: int, mid: int, cout: int, k: int, s: int, *, gated: bool) -> nn.Module:
    parts: list[nn.Module] = [Ghost(cin, mid, nn.ReLU)]
    if s > 1:
        parts.append(ConvBN(mid, mid, k, s, g=mid, act=None))
    if gated:
        parts.append(SqueezeExcite(mid, even8(mid / 4), gate=nn.Hardsigmoid))
    parts.append(Ghost(mid, cout, None))
    if s == 1 and cin == cout:
        return Residual(nn.Sequential(*parts))
    side = nn.Sequential(ConvBN(cin, cin, k, s, g=cin, act=None), ConvBN(cin, cout, act=None))
    return Residual(nn.Sequential(*parts), side)


@entry("ghostnet", "cnn", torchscript=True)
def ghostnet() -> Built:
    net = nn.Sequential(
        ConvBN(3, 16, 3, 2), ghost_block(16, 16, 16, 3, 1, gated=False),
        ghost_block(16, 48, 24, 3, 2, gated=False),
        ghost_block(24, 72, 24, 3, 1, gated=False), ghost_block(24, 72, 41, 5, 2, gated=True),
        ghost_block(41, 121, 41, 3, 1, gated=True),
        ghost_block(41, 240, 80, 3, 2, gated=False), ghost_block(80, 200, 80, 3, 1, gated=True),
        ConvBN(80, 480), Head(480, 100),
    )  # fmt: skip
    return picture(net, 128)


@entry("convmixer", "cnn", torchscript=True)
def convmixer() -> Built:
    width = 192
    layers: list[nn.Module] = [nn.Conv2d(3, width, 7, 7), nn.GELU(), nn.BatchNorm2d(width)]
    for _ in range(5):
        mix = nn.Sequential(
            nn.Conv2d(width, width, 9, groups=width, padding="same"), nn.GELU(), nn.BatchNorm2d(width)
        )
        layers += [Residual(mix), nn.Conv2d(width, width, 1), nn.GELU(), nn.BatchNorm2d(width)]
    return picture(nn.Sequential(*layers, Head(width, 100)), 112)


class MixerBlock(nn.Module):
    """Token mixing over a transposed view, then channel mixing."""

    def __init__(self, tokens: int, c: int, token_mid: int, mid: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(c), nn.LayerNorm(c)
        self.token = nn.Sequential(nn.Linear(tokens, token_mid), nn.GELU(), nn.Linear(token_mid, tokens))
        self.channel = nn.Sequential(nn.Linear(c, mid), nn.GELU(), nn.Linear(mid, c))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel(self.norm2(x))


class Mixer(nn.Module):
    """MLP-Mixer over patches of 16 pixels."""

    def __init__(self, c: int = 176, size: int = 112, depth: int = 4) -> None:
        super().__init__()
        tokens = (size // 16) ** 2
        self.embed = nn.Conv2d(3, c, 16, 16)
        self.blocks = nn.Sequential(*[MixerBlock(tokens, c, 92, 440) for _ in range(depth)])
        self.norm = nn.LayerNorm(c)
        self.head = nn.Linear(c, 100)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.embed(x).flatten(2).transpose(1, 2))
        return self.head(self.norm(x).mean(1))


@entry("mlp_mixer", "cnn", torchscript=True)
def mlp_mixer() -> Built:
    return picture(Mixer(), 112)
