"""One weight in several places, containers of weights, gates and experts."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.torch_patterns.base import conv, pattern

IMAGE = (2, 3, 8, 8)
ROWS = (4, 10)


@pattern(IMAGE, cut="stem c out")
class ModuleCalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.c, self.out = conv(3, 16), conv(16, 16), conv(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.out(F.relu(self.c(F.relu(self.c(x)))))


@pattern(IMAGE, cut="stem a out")
class SharedWeight(nn.Module):
    """Two modules with one weight, their biases apart."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.out = (
            conv(3, 16),
            conv(16, 16),
            conv(16, 16, padding=2, dilation=2),
            conv(16, 4),
        )
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.out(F.relu(self.a(x) + self.b(x)))


@pattern(ROWS, cut="enc")
class TiedAutoencoder(nn.Module):
    """The decoder is the transpose of the encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.bias = nn.Linear(10, 16), nn.Parameter(torch.randn(10))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.sigmoid(self.enc(x)), self.enc.weight.t(), self.bias)


@pattern(ROWS, cut="weights.0 biases.0 weights.1 scales.first")
class ParameterLists(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        sizes = [10, 16, 12, 3]
        self.weights = nn.ParameterList(torch.randn(o, i) * 0.3 for i, o in itertools.pairwise(sizes))
        self.biases = nn.ParameterList(torch.randn(o) for o in sizes[1:])
        self.scales = nn.ParameterDict({"first": torch.rand(16) + 0.5})

    def forward(self, x: Tensor) -> Tensor:
        for i, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = F.linear(x, w, b)
            if i == 0:
                x = x * self.scales["first"]
            if i < 2:
                x = F.relu(x)
        return x


@pattern(ROWS, cut="parts.first layers.0 parts.last")
class Containers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"first": nn.Linear(10, 16), "act": nn.ReLU(), "last": nn.Linear(16, 3)})
        self.layers = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.parts["first"](x)
        for layer in self.layers[::-1]:
            x = x + self.parts["act"](layer(x))
        return self.parts["last"](x)


@pattern(ROWS, cut="fc token out")
class BareParameterAdded(nn.Module):
    """A learnt vector, a learnt scale, and a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(10, 16), nn.Linear(16, 3)
        self.token, self.scale = nn.Parameter(torch.randn(16)), nn.Parameter(torch.rand(1, 16) + 0.5)
        self.temperature = nn.Parameter(torch.tensor(1.7))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu((self.fc(x) + self.token) * self.scale)) / self.temperature.exp()


@pattern(ROWS, cut="fc1 up gate down")
class GatedUnits(nn.Module):
    """GLU, then SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.up, self.gate = nn.Linear(10, 32), nn.Linear(16, 20), nn.Linear(16, 20)
        self.down = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.fc1(x), dim=-1)
        return self.down(F.silu(self.gate(x)) * self.up(x))


@pattern(ROWS, cut="experts.0.0 experts.2.2")
class DenseMixtureOfExperts(nn.Module):
    """All experts run; a gate weighs them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.first, self.last = nn.Linear(12, 3), nn.Linear(10, 12), nn.Linear(12, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 12)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        w = self.gate(x).softmax(-1)
        return self.last(sum(w[:, i : i + 1] * expert(x) for i, expert in enumerate(self.experts)))


@pattern(ROWS, cut="w1 w2")
class ExpertsInOneTensor(nn.Module):
    """Weights [experts, in, out], batched; each row goes to a fixed expert."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.randn(2, 10, 16) * 0.3), nn.Parameter(torch.randn(2, 16, 3) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(-1, 2, 10).transpose(0, 1)
        return torch.bmm(F.relu(torch.bmm(x, self.w1)), self.w2).transpose(0, 1).reshape(-1, 3)


@pattern(ROWS, cut="coefficients.0 scale.0")
class Splines(nn.Module):
    """Kolmogorov-Arnold: hat functions on a fixed grid, coefficients [out, in, grid]."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("grid", torch.linspace(-2, 2, 6))
        self.coefficients = nn.ParameterList([torch.randn(14, 10, 6) * 0.2, torch.randn(3, 14, 6) * 0.2])
        self.scale = nn.ParameterList([torch.randn(14, 10) * 0.3, torch.randn(3, 14) * 0.3])

    def forward(self, x: Tensor) -> Tensor:
        for c, s in zip(self.coefficients, self.scale, strict=True):
            basis = F.relu(1 - (x.unsqueeze(-1) - self.grid).abs() * 1.25)
            x = torch.einsum("big,oig->bo", basis, c) + F.linear(F.silu(x), s)
        return x


@pattern(ROWS, (4, 6), cut="b")
class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.b, self.out = nn.Bilinear(10, 6, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.out(F.relu(self.b(x, y)))


@pattern(ROWS, cut="a.linear0 b")
class WithPrelu(nn.Module):
    """A slope for every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential()
        self.a.add_module("linear0", nn.Linear(10, 16))
        self.a.add_module("slope", nn.PReLU(16))
        self.b, self.out = nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.softplus(self.b(self.a(x))))
