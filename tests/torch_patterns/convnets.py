"""Convolutional networks: blocks that third-party architectures are made of."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.torch_patterns.base import cbr, conv, head, pattern

IMAGE = (2, 3, 16, 16)


@pattern(IMAGE, cut="f.0 f.3 f.6 h.2")
class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Sequential(*cbr(3, 16), *cbr(16, 24, stride=2), conv(24, 32), nn.ReLU())
        self.h = head(32)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(self.f(x))


@pattern(IMAGE, cut="c1 c2 c3 fc1 fc2")
class VggFlatten(nn.Module):
    """Channels flattened with their pixels into the classifier; dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2, self.c3 = conv(3, 12), conv(12, 16), conv(16, 20)
        self.pool, self.drop = nn.MaxPool2d(2), nn.Dropout(0.5)
        self.fc1, self.fc2 = nn.Linear(20 * 4 * 4, 30), nn.Linear(30, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.c1(x)))
        x = self.pool(F.relu(self.c2(x)))
        x = torch.flatten(F.relu(self.c3(x)), 1)
        return self.fc2(self.drop(F.relu(self.fc1(x))))


class Basic(nn.Module):
    def __init__(self, i: int, o: int, stride: int = 1) -> None:
        super().__init__()
        self.a, self.b = cbr(i, o, stride=stride), nn.Sequential(conv(o, o, bias=False), nn.BatchNorm2d(o))
        self.down = None
        if stride > 1 or i != o:
            self.down = nn.Sequential(conv(i, o, 1, stride=stride, bias=False), nn.BatchNorm2d(o))

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.down is None else self.down(x)
        return F.relu(self.b(self.a(x)) + skip)


@pattern(IMAGE, cut="stem.0 layers.0.a.0 layers.1.a.0 layers.1.down.0 layers.2.b.0 h.2")
class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = cbr(3, 16)
        self.layers = nn.Sequential(Basic(16, 16), Basic(16, 24, 2), Basic(24, 24))
        self.h = head(24)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(self.layers(self.stem(x)))


@pattern(IMAGE, cut="stem.0 a.0 b.0 c.0")
class Bottleneck(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = cbr(3, 32), cbr(32, 8, 1), cbr(8, 8)
        self.c, self.h = nn.Sequential(conv(8, 32, 1), nn.BatchNorm2d(32)), head(32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.h(F.relu(x + self.c(self.b(self.a(x)))))


@pattern(IMAGE, cut="a b")
class ResidualFromRawInput(nn.Module):
    """The trunk begins with the raw input: only the inner width may go."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = conv(3, 16), conv(16, 3), conv(3, 12), conv(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.b(F.relu(self.a(x)))
        return self.d(F.relu(self.c(x)))


@pattern(IMAGE, cut="stem layers.0 layers.3 h.2")
class DenseBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.norms = nn.ModuleList(nn.BatchNorm2d(16 + 8 * i) for i in range(4))
        self.layers = nn.ModuleList(conv(16 + 8 * i, 8) for i in range(4))
        self.h = head(48)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, layer in zip(self.norms, self.layers, strict=True):
            features.append(layer(F.relu(norm(torch.cat(features, 1)))))
        return self.h(torch.cat(features, 1))


@pattern(IMAGE, cut="stem.0 a.0 b.0.0 b.1.0 c.0.0 c.2.0 d.1.0 h.2")
class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = cbr(3, 16), cbr(16, 8, 1)
        self.b = nn.Sequential(cbr(16, 6, 1), cbr(6, 10))
        self.c = nn.Sequential(cbr(16, 6, 1), cbr(6, 8, (1, 3), padding=(0, 1)), cbr(8, 8, (3, 1), padding=(1, 0)))
        self.d = nn.Sequential(nn.MaxPool2d(3, 1, 1), cbr(16, 8, 1))
        self.h = head(34)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.h(torch.cat([self.a(x), self.b(x), self.c(x), self.d(x)], dim=1))


@pattern(IMAGE, cut="stem squeeze one three h.2")
class Fire(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.squeeze, self.one, self.three = conv(3, 16), conv(16, 4, 1), conv(4, 12, 1), conv(4, 12)
        self.h = head(24)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.squeeze(F.relu(self.stem(x))))
        return self.h(torch.cat([F.relu(self.one(y)), F.relu(self.three(y))], 1))


@pattern(IMAGE, cut="stem primary.0 cheap.0 last")
class Ghost(nn.Module):
    """Half of the channels by a convolution, half by a cheap depthwise one, cut to size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.primary, self.cheap = conv(3, 16), cbr(16, 10, 1), cbr(10, 10, groups=10)
        self.last = conv(20, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.primary(self.stem(x))
        return self.last(torch.cat([a, self.cheap(a)], dim=1)[:, :20, :, :])


@pattern(IMAGE, cut="stem last")
class Res2Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.convs, self.last = conv(3, 24), nn.ModuleList(conv(6, 6) for _ in range(3)), conv(24, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        spx = torch.split(F.relu(self.stem(x)), 6, 1)
        outs, y = [], None
        for i, c in enumerate(self.convs):
            y = spx[i] if y is None else y + spx[i]
            y = F.relu(c(y))
            outs.append(y)
        return self.last(torch.cat([*outs, spx[3]], 1))


@pattern(IMAGE, cut="stem a b squeeze last")
class SelectiveKernel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv(3, 16), conv(16, 16), conv(16, 16, padding=2, dilation=2)
        self.squeeze, self.excite, self.last = nn.Linear(16, 8), nn.Linear(8, 32), conv(16, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        both = torch.stack([self.a(x), self.b(x)], dim=1)
        s = F.relu(self.squeeze(both.sum(1).mean((2, 3))))
        w = self.excite(s).view(-1, 2, 16).softmax(dim=1)[..., None, None]
        return self.last((both * w).sum(1))


class Excite(nn.Module):
    def __init__(self, c: int, r: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(c, r), nn.ReLU(), nn.Linear(r, c), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        y = F.adaptive_avg_pool2d(x, 1).view(b, c)
        return x * self.fc(y).view(b, c, 1, 1).expand_as(x)


@pattern(IMAGE, cut="stem.0 se.fc.0 se.fc.2 last")
class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.se, self.last = cbr(3, 16), Excite(16, 8), conv(16, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.se(self.stem(x)))


@pattern(IMAGE, cut="stem")
class Cbam(nn.Module):
    """Channel gate from mean and maximum; spatial gate from statistics over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = conv(3, 16), nn.Sequential(conv(16, 8, 1), nn.ReLU(), conv(8, 16, 1))
        self.spatial, self.last = conv(2, 1, 7), conv(16, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x * torch.sigmoid(self.fc(F.adaptive_avg_pool2d(x, 1)) + self.fc(F.adaptive_max_pool2d(x, 1)))
        s = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return self.last(x * torch.sigmoid(self.spatial(s)))


@pattern(IMAGE, cut="a")
class EfficientChannelAttention(nn.Module):
    """A 1-d convolution runs along the channels of the pooled map: that width stays."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.stem, self.eca, self.last = conv(3, 12), conv(12, 16), nn.Conv1d(1, 1, 3, padding=1), conv(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(F.relu(self.a(x)))
        y = self.eca(x.mean((2, 3)).unsqueeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return self.last(x * torch.sigmoid(y))


@pattern(IMAGE, cut="stem.0 blocks.0.0 blocks.3.0 h.2")
class Mobile(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = cbr(3, 16)
        self.blocks = nn.Sequential(
            cbr(16, 32, 1), cbr(32, 32, groups=32, stride=2), cbr(32, 24, 1), cbr(24, 24, groups=24)
        )
        self.h = head(24)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(self.blocks(self.stem(x)))


@pattern(IMAGE, cut="stem dw last")
class DepthwiseMultiplierTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.dw, self.last = conv(3, 12), conv(12, 24, groups=12), conv(24, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.dw(F.relu(self.stem(x)))))


@pattern(IMAGE, cut="stem g last")
class GroupedConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.g, self.last = conv(3, 16), conv(16, 24, groups=4), conv(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.g(F.relu(self.stem(x)))))


@pattern(IMAGE, cut="stem g2 g4 last")
class TwoGroupCountsOnOneResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.g2, self.g4, self.last = (
            conv(3, 16),
            conv(16, 16, groups=2),
            conv(16, 16, groups=4),
            conv(16, 6),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.g2(x)
        return self.last(F.relu(x + self.g4(x)))
