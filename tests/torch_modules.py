"""Torch modules as people write them: ways to keep sizes in attributes, and to compute with them. Written for these tests."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

MODULES: dict[str, Callable[[], tuple[nn.Module, Any]]] = {}
#: Modules whose own code stands against a cut -> the text of the line that does.
FIXED: dict[str, str] = {}


def module(build):
    """Register a builder of (module, example inputs)."""
    MODULES[build.__name__] = build
    return build


def fixed(line):
    """Register a builder whose module has sizes written into its code."""

    def register(build):
        FIXED[build.__name__] = line
        return module(build)

    return register


def x(*shape):
    return torch.randn(*shape)


class Between(nn.Module):
    """Any layer between two linear ones, so that its width may be cut."""

    def __init__(self, layer, width=16, inputs=6):
        super().__init__()
        self.inp, self.layer, self.out = nn.Linear(inputs, width), layer, nn.Linear(width, 5)

    def forward(self, v):
        return self.out(self.layer(self.inp(v)))


class Images(nn.Module):
    """Any layers between two convolutions."""

    def __init__(self, *layers, width=16, after=None):
        super().__init__()
        self.first, self.layers, self.last = nn.Conv2d(3, width, 3, padding=1), nn.Sequential(*layers), nn.Conv2d(after or width, 5, 1)

    def forward(self, v):
        return self.last(self.layers(self.first(v)))


def images(*layers, **kw):
    return Images(*layers, **kw), x(2, 3, 8, 8)


@module
def mlp():
    return nn.Sequential(nn.Linear(6, 32), nn.GELU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 4)), x(3, 6)


@module
def grouped_convolution():
    return images(nn.Conv2d(16, 24, 3, padding=1, groups=4), nn.ReLU(), after=24)


@module
def depthwise():
    return images(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), nn.ReLU6(), nn.Conv2d(16, 12, 1), after=12)


@module
def group_norm():
    return images(nn.GroupNorm(4, 16), nn.SiLU())


@module
def many_groups_norm():
    return images(nn.GroupNorm(16, 16), nn.SiLU())


@module
def transposed_groups():
    return images(nn.ConvTranspose2d(16, 24, 2, stride=2, groups=2), nn.ReLU(), after=24)


@module
def instance_norm():
    return images(nn.InstanceNorm2d(16, affine=True), nn.PReLU(16))


@module
def pixel_shuffle():
    return images(nn.Conv2d(16, 32, 3, padding=1), nn.PixelShuffle(2), after=8)


@module
def conv1d_3d():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv1d(4, 12, 3), nn.Conv3d(1, 8, (3, 1, 1)), nn.Linear(8, 3)

        def forward(self, v):
            v = torch.relu(self.a(v))
            return self.c(self.b(v[:, None, :, :, None].expand(-1, -1, -1, -1, 2)).mean((2, 3, 4)))

    return Net(), x(2, 4, 9)


@module
def channel_shuffle():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.groups = 2
            self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 5, 1)

        def forward(self, v):
            v = torch.relu(self.a(v))
            n, c, h, w = v.shape
            return self.b(v.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w))

    return Net(), x(2, 3, 6, 6)


@module
def channel_split():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.split = [12, 20]
            self.a, self.b, self.c = nn.Conv2d(3, 32, 1), nn.Conv2d(12, 6, 1), nn.Conv2d(20, 6, 1)

        def forward(self, v):
            left, right = torch.split(self.a(v), self.split, dim=1)
            return self.b(left) + self.c(torch.relu(right))

    return Net(), x(2, 3, 6, 6)


@module
def slices_by_attribute():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.half = 12
            self.a, self.b = nn.Linear(6, 24), nn.Linear(12, 3)

        def forward(self, v):
            v = self.a(v)
            return self.b(v[..., : self.half] * torch.sigmoid(v[..., self.half :]))

    return Net(), x(4, 6)


@module
def squeeze_excite():
    class Gate(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.channels = channels
            self.fc1, self.fc2 = nn.Linear(channels, channels // 4), nn.Linear(channels // 4, channels)

        def forward(self, v):
            s = v.mean((2, 3)).view(-1, self.channels)
            return v * torch.sigmoid(self.fc2(torch.relu(self.fc1(s)))).view(-1, self.channels, 1, 1)

    return images(nn.ReLU(), Gate(16))


@module
def learned_scale_per_channel():
    class Scale(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.dim, self.gamma = dim, nn.Parameter(torch.rand(dim) + 0.5)

        def forward(self, v):
            return v * self.gamma.reshape(1, self.dim, 1, 1)

    return images(Scale(16), nn.ReLU())


@module
def lstm():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = nn.LSTM(6, 16, num_layers=2, batch_first=True, bidirectional=True), nn.Linear(32, 3)

        def forward(self, v):
            return self.out(self.rnn(v)[0])

    return Net(), x(2, 7, 6)


@module
def gru_with_state():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = 16
            self.rnn, self.out = nn.GRU(6, 16), nn.Linear(16, 3)

        def forward(self, v):
            state = torch.zeros(1, v.shape[1], self.hidden)
            return self.out(self.rnn(v, state)[0])

    return Net(), x(7, 2, 6)


@module
def embedding_table():
    return nn.Sequential(nn.Embedding(30, 16), nn.LayerNorm(16), nn.Linear(16, 20), nn.Tanh(), nn.Linear(20, 4)), torch.randint(0, 30, (2, 6))


@module
def tied_head():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mid, self.head = nn.Embedding(30, 16), nn.Linear(16, 16), nn.Linear(16, 30, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            return self.head(torch.relu(self.mid(self.embed(ids))))

    return Net(), torch.randint(0, 30, (2, 6))


@module
def permuted_channels():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1)
            self.register_buffer("order", torch.randperm(16))

        def forward(self, v):
            return self.b(torch.relu(self.a(v))[:, self.order])

    return Net(), x(2, 3, 5, 5)


@module
def buffers_of_statistics():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.width = nn.Linear(6, 16), nn.Linear(16, 3), 16
            self.register_buffer("mean", torch.randn(16))
            self.register_buffer("std", torch.rand(16) + 0.5)

        def forward(self, v):
            return self.b(((self.a(v) - self.mean) / self.std).reshape(-1, self.width))

    return Net(), x(4, 6)


@module
def weight_norm():
    inner = nn.utils.parametrizations.weight_norm(nn.Linear(16, 24))
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), inner, nn.ReLU(), nn.Linear(24, 3)), x(4, 6)


@module
def maxout():
    class Maxout(nn.Module):
        def __init__(self):
            super().__init__()
            self.pieces, self.out_features = 2, 12
            self.a, self.b = nn.Linear(6, 24), nn.Linear(12, 3)

        def forward(self, v):
            return self.b(self.a(v).view(*v.shape[:-1], self.out_features, self.pieces).amax(-1))

    return Maxout(), x(4, 6)


@module
def glu():
    return nn.Sequential(nn.Linear(6, 32), nn.GLU(), nn.Linear(16, 3)), x(4, 6)


@module
def dict_of_widths():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.widths = {"a": 16, "b": 10}
            self.a, self.b, self.out = nn.Linear(6, 16), nn.Linear(6, 10), nn.Linear(26, 3)

        def forward(self, v):
            both = torch.cat([self.a(v), torch.relu(self.b(v))], -1)
            left, right = both[:, : self.widths["a"]], both[:, -self.widths["b"] :]
            return self.out(torch.cat([right, left], -1))

    return Net(), x(4, 6)


@module
def repeats_by_attribute():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.times, self.width = 3, 8
            self.a, self.b = nn.Linear(6, 8), nn.Linear(24, 3)

        def forward(self, v):
            return self.b(self.a(v).unsqueeze(1).repeat(1, self.times, 1).reshape(-1, self.times * self.width))

    return Net(), x(4, 6)


@module
def functional_layer_norm():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.shape = (16,)
            self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)
            self.g, self.c = nn.Parameter(torch.rand(16) + 0.5), nn.Parameter(torch.randn(16))

        def forward(self, v):
            return self.b(F.layer_norm(self.a(v), self.shape, self.g, self.c))

    return Net(), x(4, 6)


@module
def zeros_of_width():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.dim = 16
            self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)

        def forward(self, v):
            start = torch.zeros(v.shape[0], 1, self.dim)
            return self.b(torch.cat([start, self.a(v)], 1))

    return Net(), x(2, 5, 6)


@module
def keyword_and_dict():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)

        def forward(self, v, *, gain):
            hidden = torch.tanh(self.a(v)) * gain
            return {"logits": self.b(hidden), "products": hidden @ hidden.mT}

    return Net(), ((x(4, 6),), {"gain": x(4, 1)})


@fixed("v.view(b, t, 4, 6)")
def literal_heads():
    class Literal(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v, self.o = (nn.Linear(24, 24) for _ in range(4))

        def forward(self, v):
            q, k, w = self.heads(self.q(v)), self.heads(self.k(v)), self.heads(self.v(v))
            y = torch.softmax(q @ k.mT, -1) @ w
            return self.o(y.transpose(1, 2).flatten(2))

        def heads(self, v):
            b, t, _ = v.shape
            return v.view(b, t, 4, 6).transpose(1, 2)

    return Between(Literal(), 24), x(2, 5, 6)


@fixed("v[:, :12]")
def literal_slice():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 24), nn.Linear(12, 3)

        def forward(self, v):
            v = self.a(v)
            return self.b(v[:, :12] * torch.sigmoid(v[:, 12:]))

    return Net(), x(4, 6)


@fixed("v.view(b, t, 4, -1)")
def literal_number_of_heads():
    """Runs without any error after the cut, with the wrong heads."""

    class Silent(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v, self.o = (nn.Linear(24, 24) for _ in range(4))

        def forward(self, v):
            q, k, w = self.heads(self.q(v)), self.heads(self.k(v)), self.heads(self.v(v))
            return self.o((torch.softmax(q @ k.mT / 3, -1) @ w).transpose(1, 2).flatten(2))

        def heads(self, v):
            b, t, _ = v.shape
            return v.view(b, t, 4, -1).transpose(1, 2)

    return Between(Silent(), 24), x(2, 5, 6)


@functools.lru_cache(64)
def _remembered(shape, heads):
    return (*shape[:-1], heads, shape[-1] // heads)


@module
def remembered_shapes():
    """Two layers ask one function that remembers its answers (as einops does) for the shape of their heads, and get the same."""

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = 4
            self.qkv, self.o = nn.Linear(24, 72, bias=False), nn.Linear(24, 24)

        def forward(self, v):
            q, k, w = (y.reshape(_remembered(tuple(y.shape), self.heads)).transpose(1, 2) for y in self.qkv(v).chunk(3, -1))
            return self.o((torch.softmax(q @ k.mT / 3, -1) @ w).transpose(1, 2).flatten(2))

    return Between(nn.Sequential(Layer(), Layer()), 24), x(2, 5, 6)
