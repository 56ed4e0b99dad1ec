"""Recurrent networks, tables, heads of text and speech."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.torch_patterns.base import conv, ids, pattern

SERIES = (2, 7, 6)


def recurrent(name: str, kind: str, outputs: int, cut: str, refusal: str | None = None, **options: Any) -> None:
    """A recurrent layer between a linear layer and a classifier of its last step."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pre = nn.Linear(6, 10)
            self.rnn = getattr(nn, kind)(10, 12, **options)
            self.out = nn.Linear(outputs, 4)

        def forward(self, x: Tensor) -> Tensor:
            y, _ = self.rnn(torch.relu(self.pre(x)))
            return self.out(y)

    pattern(SERIES, cut=cut, name=name, batch=bool(options.get("batch_first")), refusal=refusal)(Recurrent)


recurrent("Lstm", "LSTM", 12, "pre rnn.weight_ih_l0 rnn.weight_hh_l0 out")
recurrent("LstmBatchFirst", "LSTM", 12, "pre rnn.weight_ih_l0 rnn.weight_hh_l0 out", batch_first=True)
recurrent("LstmBidirectional", "LSTM", 24, "rnn.weight_ih_l0_reverse out", batch_first=True, bidirectional=True)
recurrent("LstmStacked", "LSTM", 12, "pre rnn.weight_hh_l0 rnn.weight_ih_l1 out", num_layers=2, batch_first=True)
recurrent("LstmStackedBidirectional", "LSTM", 24, "rnn.weight_ih_l1_reverse out", num_layers=2, bidirectional=True)
# Its translation to ONNX is no valid LSTM: the axis is frozen, nothing is left.
recurrent("LstmProjected", "LSTM", 8, "pre rnn.weight_ih_l0 rnn.weight_hr_l0 out", batch_first=True, proj_size=8)
recurrent("LstmProjectedBidirectional", "LSTM", 12, "rnn.weight_hr_l1_reverse out", num_layers=2, bidirectional=True, proj_size=6)
recurrent("LstmNoBias", "LSTM", 12, "rnn.weight_ih_l0 out", batch_first=True, bias=False)
recurrent("Gru", "GRU", 12, "pre rnn.weight_ih_l0 out", batch_first=True)
recurrent("GruBidirectional", "GRU", 24, "pre rnn.weight_ih_l0 out", num_layers=2, bidirectional=True)
recurrent("RnnTanh", "RNN", 12, "pre rnn.weight_ih_l0 out", batch_first=True)


@pattern(SERIES, (1, 2, 12), (1, 2, 12), cut="pre", batch=False)
class LstmWithStates(nn.Module):
    """States come in and go out: the hidden width is the caller's."""

    def __init__(self) -> None:
        super().__init__()
        self.pre, self.rnn, self.out = nn.Linear(6, 10), nn.LSTM(10, 12, batch_first=True), nn.Linear(12, 4)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, states = self.rnn(self.pre(x), (h, c))
        return self.out(y), states


@pattern(SERIES, cut="rnn out")
class GruFinalStates(nn.Module):
    """The states of both directions, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.GRU(6, 12, batch_first=True, bidirectional=True), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        _, h = self.rnn(x)
        return self.out(torch.cat([h[0], h[1]], dim=-1))


@pattern(SERIES, cut="cell out")
class CellLoop(nn.Module):
    """A cell unrolled by the module's own loop, from a state of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.GRUCell(6, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 12)
        for step in range(x.shape[1]):
            h = self.cell(x[:, step], h)
        return self.out(h)


@pattern(SERIES, lambda: torch.tensor([7, 4]), cut="rnn out", batch=False)
class PackedSequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.LSTM(6, 12, batch_first=True), nn.Linear(12, 4)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=True)
        y, _ = self.rnn(packed)
        return self.out(nn.utils.rnn.pad_packed_sequence(y, batch_first=True)[0])


@pattern((2, 1, 8, 20), cut="a b rnn out")
class CtcRecogniser(nn.Module):
    """CRNN: height into channels, a bidirectional LSTM over the width, log-probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(1, 12), conv(12, 16)
        self.rnn, self.out = nn.LSTM(64, 10, bidirectional=True), nn.Linear(20, 11)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.b(F.relu(self.a(x)))), (2, 2))
        y, _ = self.rnn(x.permute(3, 0, 1, 2).flatten(2))
        return self.out(y).log_softmax(-1)


@pattern(ids(40, 2, 9), cut="table fc out")
class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc, self.out = nn.Embedding(40, 16, padding_idx=0), nn.Linear(16, 20), nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.fc(self.table(x))).mean(1))


@pattern(ids(40, 2, 9), cut="table fc")
class TableTiedToHead(nn.Module):
    """The embedding's weight is the head's: a tied parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc = nn.Embedding(40, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 40, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.fc(self.table(x))))


@pattern(ids(40, 2, 9), cut="table fc")
class TableUsedAsHead(nn.Module):
    """``F.linear(x, embedding.weight)``."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc = nn.Embedding(40, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.fc(self.table(x))), self.table.weight)


@pattern(ids(40, 2, 9), cut="bag fc")
class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.fc, self.out = nn.EmbeddingBag(40, 16, mode="mean"), nn.Linear(16, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.fc(self.bag(x))))


@pattern(ids(40, 11), lambda: torch.tensor([0, 4, 4, 9]), cut="bag fc", batch=False)
class BagsOfOwnLengths(nn.Module):
    """One of them empty; a row that counts for nothing."""

    mode = "sum"

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(40, 16, mode=self.mode, padding_idx=3)
        self.fc, self.out = nn.Linear(16, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor, starts: Tensor) -> Tensor:
        return self.out(F.relu(self.fc(self.bag(x, starts))))


@pattern(ids(40, 11), lambda: torch.tensor([0, 4, 4, 9]), cut="bag fc", batch=False)
class BagsMaximum(BagsOfOwnLengths):
    mode = "max"


@pattern(ids(40, 2, 9), ids(3, 2, 9), cut="word kind fc")
class SummedTables(nn.Module):
    """Word, kind and position, the last a parameter sliced to the length."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.kind, self.fc, self.out = (
            nn.Embedding(40, 16),
            nn.Embedding(3, 16),
            nn.Linear(16, 12),
            nn.Linear(12, 4),
        )
        self.position = nn.Parameter(torch.randn(1, 32, 16))

    def forward(self, x: Tensor, kind: Tensor) -> Tensor:
        y = self.word(x) + self.kind(kind) + self.position[:, : x.shape[1]]
        return self.out(F.relu(self.fc(y)))


@pattern(ids(40, 2, 12), cut="table convs.0 convs.2 out")
class TextConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(40, 16), nn.Linear(24, 4)
        self.convs = nn.ModuleList(nn.Conv1d(16, 8, k) for k in (2, 3, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.table(x).transpose(1, 2)
        return self.out(torch.cat([F.relu(c(y)).max(dim=-1)[0] for c in self.convs], 1))


@pattern((2, 4, 16), cut="a.0 b.0 down out")
class CausalConv(nn.Module):
    """A temporal block: padding on both sides, the future chopped off."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv1d(4, 12, 3, padding=4, dilation=2))
        self.b = nn.Sequential(nn.Conv1d(12, 12, 3, padding=4, dilation=2))
        self.down, self.out = nn.Conv1d(4, 12, 1), nn.Conv1d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x)[:, :, :-4])
        y = F.relu(self.b(y)[:, :, :-4].contiguous())
        return self.out(F.relu(y + self.down(x)))


@pattern((2, 10), cut="layers.0 gates.0 first")
class Highway(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(10, 16), nn.Linear(16, 3)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.gates = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer, gate in zip(self.layers, self.gates, strict=True):
            t = gate(x).sigmoid()
            x = t * F.relu(layer(x)) + (1 - t) * x
        return self.out(x)


@pattern((2, 5, 8), cut="w1 w2")
class GraphConv(nn.Module):
    """A constant adjacency mixes nodes; the features between are prunable."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Linear(8, 16), nn.Linear(16, 4)
        self.register_buffer("adjacency", torch.rand(5, 5).softmax(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(self.adjacency @ F.relu(self.w1(self.adjacency @ x)))


@pattern(SERIES, (1, 2, 8), (1, 2, 12), cut="pre rnn.weight_ih_l0", batch=False, inexact=True)
class LstmProjectedWithStates(nn.Module):
    """States come in and go out: hidden units are the caller's cells, projected ones the caller's too."""

    def __init__(self) -> None:
        super().__init__()
        self.pre, self.out = nn.Linear(6, 10), nn.Linear(8, 4)
        self.rnn = nn.LSTM(10, 12, batch_first=True, proj_size=8)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (h, c) = self.rnn(torch.relu(self.pre(x)), (h, c))
        return self.out(y), h, c
