"""Detectors: YOLO-like backbones, necks and heads with decoding, BiFPN."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo.cnn_mobile import inverted
from benchmarks.zoo.layers import ConvBN, Residual
from benchmarks.zoo.registry import Built, entry, picture

CLASSES = 23


def leaky() -> nn.Module:
    return nn.LeakyReLU(0.1)


class Conv(ConvBN):
    """`ConvBN` with SiLU."""

    def __init__(self, cin: int, cout: int, k: int = 1, s: int = 1, g: int = 1) -> None:
        super().__init__(cin, cout, k, s, g=g, act=nn.SiLU)


def pinch(c: int, mid: int, add: bool, k1: int = 1) -> nn.Module:
    body = nn.Sequential(Conv(c, mid, k1), Conv(mid, c, 3))
    return Residual(body) if add else body


class C3(nn.Module):
    """Cross-stage partial block with three convolutions."""

    def __init__(self, cin: int, cout: int, n: int, add: bool = True) -> None:
        super().__init__()
        mid = cout // 2
        self.one, self.two, self.three = Conv(cin, mid), Conv(cin, mid), Conv(2 * mid, cout)
        self.blocks = nn.Sequential(*[pinch(mid, mid, add) for _ in range(n)])

    def forward(self, x: Tensor) -> Tensor:
        return self.three(torch.cat([self.blocks(self.one(x)), self.two(x)], 1))


class C2f(nn.Module):
    """One convolution, split in two, every block's output kept for the concat."""

    def __init__(self, cin: int, cout: int, n: int, add: bool = True) -> None:
        super().__init__()
        self.mid = cout // 2
        self.one = Conv(cin, 2 * self.mid)
        self.two = Conv((2 + n) * self.mid, cout)
        self.blocks = nn.ModuleList([pinch(self.mid, self.mid, add, 3) for _ in range(n)])

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.one(x).split((self.mid, self.mid), 1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        return self.two(torch.cat(parts, 1))


class SPPF(nn.Module):
    """Three max pools in a row, all kept."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.one, self.two = Conv(c, c // 2), Conv(2 * c, c)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        a = self.pool(x)
        b = self.pool(a)
        return self.two(torch.cat([x, a, b, self.pool(b)], 1))


class Focus(nn.Module):
    """Space to depth by four strided slices."""

    def __init__(self, cin: int, cout: int, k: int = 3) -> None:
        super().__init__()
        self.conv = Conv(4 * cin, cout, k)

    def forward(self, x: Tensor) -> Tensor:
        quarters = [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]]
        return self.conv(torch.cat(quarters, 1))


class PanNeck(nn.Module):
    """Backbone of four stages, top-down and bottom-up paths; returns maps at strides 8, 16, 32."""

    def __init__(self, block, w: int, stem: nn.Module) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.stem = stem
        self.p2 = nn.Sequential(Conv(w, 2 * w, 3, 2), block(2 * w, 2 * w, 1))
        self.p3 = nn.Sequential(Conv(2 * w, 4 * w, 3, 2), block(4 * w, 4 * w, 2))
        self.p4 = nn.Sequential(Conv(4 * w, 8 * w, 3, 2), block(8 * w, 8 * w, 2))
        self.p5 = nn.Sequential(Conv(8 * w, 16 * w, 3, 2), block(16 * w, 16 * w, 1), SPPF(16 * w))
        self.lat5, self.lat4 = Conv(16 * w, 8 * w), Conv(8 * w, 4 * w)
        self.up4, self.up3 = block(16 * w, 8 * w, 1, False), block(8 * w, 4 * w, 1, False)
        self.down3, self.down4 = Conv(4 * w, 4 * w, 3, 2), Conv(8 * w, 8 * w, 3, 2)
        self.out4, self.out5 = block(8 * w, 8 * w, 1, False), block(16 * w, 16 * w, 1, False)

    def forward(self, x: Tensor) -> list[Tensor]:
        p3 = self.p3(self.p2(self.stem(x)))
        p4 = self.p4(p3)
        t5 = self.lat5(self.p5(p4))
        t4 = self.lat4(self.up4(torch.cat([F.interpolate(t5, scale_factor=2.0), p4], 1)))
        n3 = self.up3(torch.cat([F.interpolate(t4, scale_factor=2.0), p3], 1))
        n4 = self.out4(torch.cat([self.down3(n3), t4], 1))
        n5 = self.out5(torch.cat([self.down4(n4), t5], 1))
        return [n3, n4, n5]


def cells(h: int, w: int) -> Tensor:
    """Cell coordinates, ``[1, 1, h, w, 2]`` as x, y."""
    y, x = torch.meshgrid(torch.arange(h).float(), torch.arange(w).float(), indexing="ij")
    return torch.stack((x, y), 2)[None, None]


class AnchorHead(nn.Module):
    """Three anchors a cell: view, permute, sigmoid, box decoding, one concatenated table."""

    def __init__(self, widths: tuple[int, ...], strides: tuple[int, ...] = (8, 16, 32)) -> None:
        super().__init__()
        self.strides, self.outs = strides, CLASSES + 5
        self.convs = nn.ModuleList([nn.Conv2d(w, 3 * self.outs, 1) for w in widths])
        sizes = torch.arange(1, len(strides) * 3 * 2 + 1).float().view(len(strides), 1, 3, 1, 1, 2) * 7
        self.register_buffer("anchors", sizes)

    def forward(self, maps: list[Tensor]) -> Tensor:
        tables = []
        for i, (conv, x) in enumerate(zip(self.convs, maps, strict=True)):
            b, _, h, w = x.shape
            y = conv(x).view(b, 3, self.outs, h, w).permute(0, 1, 3, 4, 2).contiguous().sigmoid()
            xy, wh, rest = y.split((2, 2, self.outs - 4), 4)
            xy = (xy * 2 - 0.5 + cells(h, w)) * self.strides[i]
            wh = (wh * 2) ** 2 * self.anchors[i]
            tables.append(torch.cat((xy, wh, rest), 4).view(b, 3 * h * w, self.outs))
        return torch.cat(tables, 1)


class DflHead(nn.Module):
    """Decoupled head; each box side is an expectation over 16 bins: softmax, then a fixed convolution."""

    bins = 16

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        box, cls = max(16, widths[0] // 4, 4 * self.bins), max(widths[0], min(CLASSES, 100))
        out = 4 * self.bins
        self.box = nn.ModuleList(
            [nn.Sequential(Conv(w, box, 3), Conv(box, box, 3), nn.Conv2d(box, out, 1)) for w in widths]
        )
        self.cls = nn.ModuleList(
            [nn.Sequential(Conv(w, cls, 3), Conv(cls, cls, 3), nn.Conv2d(cls, CLASSES, 1)) for w in widths]
        )
        self.register_buffer("weights", torch.arange(self.bins).float().view(1, self.bins, 1, 1))

    def forward(self, maps: list[Tensor]) -> Tensor:
        flat, points, steps = [], [], []
        for i, x in enumerate(maps):
            y = torch.cat((self.box[i](x), self.cls[i](x)), 1)
            b, c, h, w = y.shape
            flat.append(y.view(b, c, h * w))
            points.append(cells(h, w).view(1, h * w, 2).transpose(1, 2) + 0.5)
            steps.append(torch.full((1, 1, h * w), 8.0 * 2**i))
        table, point, step = torch.cat(flat, 2), torch.cat(points, 2), torch.cat(steps, 2)
        box, cls = table.split((4 * self.bins, CLASSES), 1)
        b, _, n = box.shape
        sides = F.conv2d(box.view(b, 4, self.bins, n).transpose(2, 1).softmax(1), self.weights).view(b, 4, n)
        low, high = sides.chunk(2, 1)
        low, high = point - low, point + high
        return torch.cat((torch.cat(((low + high) / 2, high - low), 1) * step, cls.sigmoid()), 1)


@entry("yolo_c3", "detector", torchscript=True)
def yolo_c3() -> Built:
    w = 32
    return picture(nn.Sequential(PanNeck(C3, w, Conv(3, w, 3, 2)), AnchorHead((4 * w, 8 * w, 16 * w))), 224)


@entry("yolo_focus", "detector", torchscript=True)
def yolo_focus() -> Built:
    w = 16
    return picture(nn.Sequential(PanNeck(C3, w, Focus(3, w)), AnchorHead((4 * w, 8 * w, 16 * w))), 160)


@entry("yolo_c2f", "detector", torchscript=True, keep_norm=True)
def yolo_c2f() -> Built:
    w = 32
    return picture(nn.Sequential(PanNeck(C2f, w, Conv(3, w, 3, 2)), DflHead((4 * w, 8 * w, 16 * w))), 224)


class DarkNet(nn.Module):
    """Residual stages of 1x1 and 3x3; returns the last three maps."""

    def __init__(self, w: int, depths: tuple[int, ...] = (1, 1, 2, 2, 1)) -> None:
        super().__init__()
        self.stem = ConvBN(3, w, 3, act=leaky)
        stages = []
        for depth in depths:
            blocks = [
                Residual(nn.Sequential(ConvBN(2 * w, w, act=leaky), ConvBN(w, 2 * w, 3, act=leaky)))
                for _ in range(depth)
            ]
            stages.append(nn.Sequential(ConvBN(w, 2 * w, 3, 2, act=leaky), *blocks))
            w *= 2
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[-3:]


class Yolo3(nn.Module):
    """Darknet backbone, top-down neck of conv pairs, raw maps out."""

    def __init__(self, w: int = 12) -> None:
        super().__init__()
        self.net = DarkNet(w)
        c = 32 * w

        def pairs(cin: int, mid: int) -> nn.Sequential:
            return nn.Sequential(
                ConvBN(cin, mid, act=leaky),
                ConvBN(mid, 2 * mid, 3, act=leaky),
                ConvBN(2 * mid, mid, act=leaky),
            )

        mids = (c // 2, c // 4, c // 8)
        self.sets = nn.ModuleList(
            [pairs(c, mids[0]), pairs(c // 2 + mids[1], mids[1]), pairs(c // 4 + mids[2], mids[2])]
        )
        self.lat = nn.ModuleList([ConvBN(mids[0], mids[1], act=leaky), ConvBN(mids[1], mids[2], act=leaky)])
        out = 3 * (CLASSES + 5)
        self.heads = nn.ModuleList(
            [nn.Sequential(ConvBN(m, 2 * m, 3, act=leaky), nn.Conv2d(2 * m, out, 1)) for m in mids]
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        p3, p4, p5 = self.net(x)
        outs = []
        y = self.sets[0](p5)
        for i, p in enumerate((p4, p3)):
            outs.append(self.heads[i](y))
            up = F.interpolate(self.lat[i](y), scale_factor=2.0, mode="nearest")
            y = self.sets[i + 1](torch.cat((up, p), 1))
        outs.append(self.heads[2](y))
        return tuple(outs)


@entry("yolo_v3", "detector", torchscript=True, keep_norm=True)
def yolo_v3() -> Built:
    return picture(Yolo3(), 160, dynamic="spatial")


class DecoupledHead(nn.Module):
    """A stem, a class tower and a box tower a level; sigmoid scores, flat table."""

    def __init__(self, widths: tuple[int, ...], mid: int) -> None:
        super().__init__()
        self.stems = nn.ModuleList([Conv(w, mid) for w in widths])
        self.cls = nn.ModuleList([nn.Sequential(Conv(mid, mid, 3), Conv(mid, mid, 3)) for _ in widths])
        self.reg = nn.ModuleList([nn.Sequential(Conv(mid, mid, 3), Conv(mid, mid, 3)) for _ in widths])
        self.cls_out = nn.ModuleList([nn.Conv2d(mid, CLASSES, 1) for _ in widths])
        self.box_out = nn.ModuleList([nn.Conv2d(mid, 4, 1) for _ in widths])
        self.obj_out = nn.ModuleList([nn.Conv2d(mid, 1, 1) for _ in widths])

    def forward(self, maps: list[Tensor]) -> Tensor:
        tables = []
        for i, x in enumerate(maps):
            x = self.stems[i](x)
            c, r = self.cls[i](x), self.reg[i](x)
            y = torch.cat((self.box_out[i](r), self.obj_out[i](r).sigmoid(), self.cls_out[i](c).sigmoid()), 1)
            tables.append(y.flatten(2))
        return torch.cat(tables, 2).permute(0, 2, 1)


@entry("yolo_x", "detector", torchscript=True)
def yolo_x() -> Built:
    w = 16
    return picture(nn.Sequential(PanNeck(C3, w, Focus(3, w)), DecoupledHead((4 * w, 8 * w, 16 * w), 72)), 160)


class Csp(nn.Module):
    """Partial split: the first half of a channel slice bypasses the blocks (CSP, YOLOv4-tiny)."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.half = c // 2
        self.enter = ConvBN(c, c, 3, act=leaky)
        self.a, self.b = ConvBN(c // 2, c // 2, 3, act=leaky), ConvBN(c // 2, c // 2, 3, act=leaky)
        self.join = ConvBN(c, c, act=leaky)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        a = self.a(x[:, self.half :])
        y = self.join(torch.cat((self.b(a), a), 1))
        return self.pool(torch.cat((x, y), 1))


@entry("csp_tiny", "detector", torchscript=True)
def csp_tiny() -> Built:
    net = nn.Sequential(
        ConvBN(3, 32, 3, 2, act=leaky), ConvBN(32, 64, 3, 2, act=leaky), Csp(64), Csp(128), Csp(256),
        ConvBN(512, 144, 3, act=leaky), nn.Conv2d(144, 3 * (CLASSES + 5), 1),
    )  # fmt: skip
    return picture(net, 160, dynamic="spatial")


class Separable(nn.Sequential):
    """Depthwise 3x3, pointwise, norm, swish."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__(
            nn.Conv2d(cin, cin, 3, padding=1, groups=cin, bias=False), nn.Conv2d(cin, cout, 1),
            nn.BatchNorm2d(cout), nn.SiLU(),
        )  # fmt: skip


class BiFpn(nn.Module):
    """One layer over five maps; inputs of a node are summed with learned, normalised positive weights."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.up = nn.ModuleList([Separable(c, c) for _ in range(4)])
        self.down = nn.ModuleList([Separable(c, c) for _ in range(4)])
        self.up_mix = nn.Parameter(torch.rand(4, 2) + 0.2)
        self.down_mix = nn.Parameter(torch.rand(4, 3) + 0.2)

    @staticmethod
    def fuse(weights: Tensor, maps: list[Tensor]) -> Tensor:
        w = F.relu(weights)
        w = w / (w.sum() + 1e-4)
        total = w[0] * maps[0]
        for i in range(1, len(maps)):
            total = total + w[i] * maps[i]
        return total

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        tops = [maps[4]]
        for i in (3, 2, 1, 0):
            larger = F.interpolate(tops[0], scale_factor=2.0)
            tops.insert(0, self.up[i](self.fuse(self.up_mix[i], [maps[i], larger])))
        outs = [tops[0]]
        for i in range(4):
            terms = [maps[i + 1], F.max_pool2d(outs[-1], 2, 2)]
            if i < 3:
                terms.append(tops[i + 1])
            outs.append(self.down[i](self.fuse(self.down_mix[i][: len(terms)], terms)))
        return outs


class EffDet(nn.Module):
    """Small inverted-residual backbone, two BiFPN layers, shared box and class towers."""

    def __init__(self, c: int = 56) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvBN(3, 24, 3, 2, act=nn.SiLU), inverted(24, 32, 3, 2, 96, act=nn.SiLU))
        self.c3, self.c4 = inverted(32, 48, 5, 2, 128, act=nn.SiLU), inverted(48, 88, 3, 2, 192, act=nn.SiLU)
        self.c5 = inverted(88, 152, 5, 2, 352, act=nn.SiLU)
        self.lat = nn.ModuleList([ConvBN(i, c, act=None) for i in (48, 88, 152)])
        self.p6, self.pool = ConvBN(152, c, act=None), nn.MaxPool2d(3, 2, 1)
        self.layers = nn.ModuleList([BiFpn(c), BiFpn(c)])
        self.cls = nn.Sequential(Separable(c, c), Separable(c, c), nn.Conv2d(c, 9 * CLASSES, 1))
        self.box = nn.Sequential(Separable(c, c), Separable(c, c), nn.Conv2d(c, 36, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        c3 = self.c3(self.stem(x))
        c4 = self.c4(c3)
        c5 = self.c5(c4)
        p6 = self.pool(self.p6(c5))
        maps = [m(x) for m, x in zip(self.lat, (c3, c4, c5), strict=True)] + [p6, self.pool(p6)]
        for layer in self.layers:
            maps = layer(maps)
        b = x.shape[0]
        cls = torch.cat([self.cls(m).permute(0, 2, 3, 1).reshape(b, -1, CLASSES) for m in maps], 1)
        box = torch.cat([self.box(m).permute(0, 2, 3, 1).reshape(b, -1, 4) for m in maps], 1)
        return cls.sigmoid(), box


@entry("bifpn", "detector", torchscript=True)
def bifpn() -> Built:
    return picture(EffDet(), 256)
