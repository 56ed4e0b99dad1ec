"""Networks over sequences, volumes and point sets."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo.layers import ConvBN
from benchmarks.zoo.registry import Built, entry, picture


class Crnn(nn.Module):
    """Text recogniser: convolutions squeeze the height, a two-layer bidirectional RNN reads the columns."""

    def __init__(self, rnn: type[nn.RNNBase], hidden: int, classes: int = 97) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            ConvBN(1, 32, 3), nn.MaxPool2d(2), ConvBN(32, 56, 3), nn.MaxPool2d(2), ConvBN(56, 104, 3),
            nn.MaxPool2d((2, 1), (2, 1)), ConvBN(104, 136, 3), nn.MaxPool2d((4, 1), (4, 1)),
        )  # fmt: skip
        self.rnn = rnn(136, hidden, num_layers=2, bidirectional=True)
        self.fc = nn.Linear(2 * hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).squeeze(2).permute(2, 0, 1)
        return F.log_softmax(self.fc(self.rnn(x)[0]), 2)


@entry("crnn_lstm", "cnn", torchscript=True)
def crnn_lstm() -> Built:
    return picture(Crnn(nn.LSTM, 72), (32, 100), channels=1)


@entry("crnn_gru", "cnn", torchscript=True)
def crnn_gru() -> Built:
    return picture(Crnn(nn.GRU, 60), (32, 100), channels=1)


class ConvLstm(nn.Module):
    """Unrolled convolutional LSTM over frames ``[b, t, c, h, w]``; gates are chunks of one convolution."""

    def __init__(self, c: int = 3, hidden: int = 24) -> None:
        super().__init__()
        self.hidden = hidden
        self.enter = ConvBN(c, 20, 3, 2)
        self.gates = nn.Conv2d(20 + hidden, 4 * hidden, 3, padding=1)
        self.head = nn.Conv2d(hidden, 5, 1)

    def forward(self, frames: Tensor) -> Tensor:
        b, t = frames.shape[:2]
        x = self.enter(frames.flatten(0, 1))
        x = x.view(b, t, *x.shape[1:])
        h = torch.zeros_like(x[:, 0, :1]).expand(-1, self.hidden, -1, -1)
        c = h
        for i in range(t):
            gate, keep, new, out = self.gates(torch.cat((x[:, i], h), 1)).chunk(4, 1)
            c = keep.sigmoid() * c + gate.sigmoid() * new.tanh()
            h = out.sigmoid() * c.tanh()
        return self.head(h)


@entry("conv_lstm", "cnn", torchscript=True)
def conv_lstm() -> Built:
    return Built(ConvLstm(), (torch.randn(1, 4, 3, 32, 32),), ["frames"], {"frames": {0: "batch"}})


class ConformerBlock(nn.Module):
    """Half-step feed-forward, attention, convolution with GLU, half-step feed-forward."""

    def __init__(self, c: int, heads: int, mid: int) -> None:
        super().__init__()
        self.heads, self.c = heads, c

        def feed() -> nn.Sequential:
            return nn.Sequential(nn.LayerNorm(c), nn.Linear(c, mid), nn.SiLU(), nn.Linear(mid, c))

        self.feed1, self.feed2 = feed(), feed()
        self.norm_a, self.norm_c, self.norm = nn.LayerNorm(c), nn.LayerNorm(c), nn.LayerNorm(c)
        self.qkv, self.out = nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.wide, self.narrow = nn.Conv1d(c, 2 * c, 1), nn.Conv1d(c, c, 1)
        self.depth, self.bn = nn.Conv1d(c, c, 15, padding=7, groups=c), nn.BatchNorm1d(c)

    def attend(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, self.c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        a = (q @ k.transpose(-1, -2) * (self.c // self.heads) ** -0.5).softmax(-1)
        return self.out((a @ v).transpose(1, 2).reshape(b, t, self.c))

    def convolve(self, x: Tensor) -> Tensor:
        x = F.glu(self.wide(x.transpose(1, 2)), 1)
        return self.narrow(F.silu(self.bn(self.depth(x)))).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.5 * self.feed1(x)
        x = x + self.attend(self.norm_a(x))
        x = x + self.convolve(self.norm_c(x))
        return self.norm(x + 0.5 * self.feed2(x))


class Conformer(nn.Module):
    """2-d convolutional subsampling, then conformer blocks over ``[b, frames, bins]``."""

    def __init__(self, c: int = 120, bins: int = 80) -> None:
        super().__init__()
        self.sub = nn.Sequential(nn.Conv2d(1, 28, 3, 2, 1), nn.ReLU(), nn.Conv2d(28, 28, 3, 2, 1), nn.ReLU())
        self.enter = nn.Linear(28 * bins // 4, c)
        self.blocks = nn.Sequential(*[ConformerBlock(c, 5, 344) for _ in range(2)])
        self.head = nn.Linear(c, 63)

    def forward(self, x: Tensor) -> Tensor:
        y = self.sub(x.unsqueeze(1))
        b, c, t, f = y.shape
        return self.head(self.blocks(self.enter(y.permute(0, 2, 1, 3).reshape(b, t, c * f))))


@entry("conformer", "speech", torchscript=True)
def conformer() -> Built:
    return Built(Conformer(), (torch.randn(1, 96, 80),), ["features"], {"features": {0: "batch"}})


class Causal(nn.Module):
    """Two dilated causal convolutions, trimmed at the end, with a residual."""

    def __init__(self, cin: int, cout: int, d: int, k: int = 3) -> None:
        super().__init__()
        self.trim = (k - 1) * d
        self.one = nn.utils.parametrizations.weight_norm(
            nn.Conv1d(cin, cout, k, padding=self.trim, dilation=d)
        )
        self.two = nn.Conv1d(cout, cout, k, padding=self.trim, dilation=d)
        self.side = nn.Conv1d(cin, cout, 1) if cin != cout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.one(x)[:, :, : -self.trim])
        y = F.relu(self.two(y)[:, :, : -self.trim])
        return F.relu(y + self.side(x))


@entry("tcn", "cnn", torchscript=True)
def tcn() -> Built:
    widths = (18, 40, 40, 56)
    layers = [Causal(a, b, 2**i) for i, (a, b) in enumerate(itertools.pairwise(widths))]
    net = nn.Sequential(*layers, nn.Conv1d(56, 11, 1))
    return Built(net, (torch.randn(1, 18, 64),), ["signal"], {"signal": {0: "batch", 2: "time"}})


class Volume(nn.Module):
    """3-d residual network with factorised (2+1)-d convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(3, 20, 3, (1, 2, 2), 1, bias=False), nn.BatchNorm3d(20), nn.ReLU()
        )
        self.space = nn.Conv3d(20, 52, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.norm1, self.norm2 = nn.BatchNorm3d(52), nn.BatchNorm3d(20)
        self.time = nn.Conv3d(52, 20, (3, 1, 1), padding=(1, 0, 0), bias=False)
        self.down = nn.Sequential(nn.Conv3d(20, 44, 3, 2, 1), nn.BatchNorm3d(44), nn.ReLU(), nn.AvgPool3d(2))
        self.fc = nn.Linear(44, 27)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.norm2(self.time(F.relu(self.norm1(self.space(x))))))
        return self.fc(self.down(x).mean((2, 3, 4)))


@entry("conv3d", "cnn", torchscript=True)
def conv3d() -> Built:
    return Built(Volume(), (torch.randn(1, 3, 8, 48, 48),), ["clip"], {"clip": {0: "batch"}})


class PointNet(nn.Module):
    """Shared MLPs over points, a predicted 3x3 transform, max pool, global feature joined to each point."""

    def __init__(self) -> None:
        super().__init__()

        def mlp(*widths: int) -> nn.Sequential:
            parts: list[nn.Module] = []
            for a, b in itertools.pairwise(widths):
                parts += [nn.Conv1d(a, b, 1), nn.BatchNorm1d(b), nn.ReLU()]
            return nn.Sequential(*parts)

        self.align, self.align_fc = mlp(3, 32, 72), nn.Linear(72, 9)
        self.local, self.wide = mlp(3, 56), mlp(56, 104, 232)
        self.seg = nn.Sequential(mlp(56 + 232, 120), nn.Conv1d(120, 13, 1))
        self.cls = nn.Sequential(nn.Linear(232, 88), nn.BatchNorm1d(88), nn.ReLU(), nn.Linear(88, 40))

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        x = points.transpose(1, 2)
        turn = self.align_fc(self.align(x).max(2).values).view(-1, 3, 3) + torch.eye(3)
        local = self.local((points @ turn).transpose(1, 2))
        peak = self.wide(local).max(2, keepdim=True).values
        joined = torch.cat((local, peak.expand(-1, -1, local.shape[2])), 1)
        return self.cls(peak.squeeze(2)), self.seg(joined)


@entry("pointnet", "cnn", torchscript=True)
def pointnet() -> Built:
    return Built(PointNet(), (torch.randn(1, 128, 3),), ["points"], {"points": {0: "batch"}})


class TextCnn(nn.Module):
    """Embedding, parallel 1-d convolutions with max over time."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(301, 44)
        self.convs = nn.ModuleList([nn.Conv1d(44, w, k) for w, k in ((36, 2), (28, 3), (20, 5))])
        self.fc = nn.Linear(84, 9)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids).transpose(1, 2)
        return self.fc(torch.cat([F.relu(conv(x)).amax(2) for conv in self.convs], 1))


@entry("text_cnn", "text", torchscript=True)
def text_cnn() -> Built:
    return Built(TextCnn(), (torch.randint(0, 301, (1, 30)),), ["ids"], {"ids": {0: "batch", 1: "length"}})


class Tagger(nn.Module):
    """Embedding, one-direction GRU and a bidirectional LSTM, batch first."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(211, 36)
        self.gru = nn.GRU(36, 52, batch_first=True)
        self.lstm = nn.LSTM(52, 40, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(80, 17)

    def forward(self, ids: Tensor) -> Tensor:
        x, _ = self.gru(self.embed(ids))
        x, _ = self.lstm(x)
        return self.fc(x)


@entry("rnn_tagger", "text", torchscript=True)
def rnn_tagger() -> Built:
    return Built(Tagger(), (torch.randint(0, 211, (1, 19)),), ["ids"], {"ids": {0: "batch", 1: "length"}})
