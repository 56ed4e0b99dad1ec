"""Torch modules as people write them: ways to keep sizes in attributes, and to compute with them. Written for these tests."""

from __future__ import annotations

import math
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


class Attention(nn.Module):
    """Separate projections; heads and widths in attributes."""

    def __init__(self, dim=24, heads=4, scale=None):
        super().__init__()
        self.num_heads, self.head_dim = heads, dim // heads
        self.scale = self.head_dim**-0.5
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, v):
        b, t, _ = v.shape
        q, k, w = (p(v).view(b, t, self.num_heads, self.head_dim).transpose(1, 2) for p in (self.q, self.k, self.v))
        y = torch.softmax(q @ k.transpose(-1, -2) * self.scale, -1) @ w
        return self.o(y.transpose(1, 2).reshape(b, t, self.num_heads * self.head_dim))


@module
def attention_separate():
    return Between(Attention(), 24), x(2, 7, 6)


@module
def attention_fused_five_axes():
    class Fused(nn.Module):
        def __init__(self, dim=24, heads=4):
            super().__init__()
            self.heads, self.head_dim = heads, dim // heads
            self.scale = self.head_dim**-0.5
            self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

        def forward(self, v):
            b, n, _ = v.shape
            q, k, w = self.qkv(v).reshape(b, n, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
            y = F.scaled_dot_product_attention(q, k, w, scale=self.scale)
            return self.proj(y.transpose(1, 2).reshape(b, n, -1))

    return Between(Fused(), 24), x(2, 7, 6)


@module
def attention_fused_chunk():
    class Chunk(nn.Module):
        def __init__(self, dim=24, heads=3):
            super().__init__()
            self.h, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)

        def forward(self, v):
            b, n, _ = v.shape
            q, k, w = (p.view(b, n, self.h, -1).transpose(1, 2) for p in self.qkv(v).chunk(3, -1))
            y = F.scaled_dot_product_attention(q, k, w)
            return self.proj(y.transpose(1, 2).flatten(2))

    return Between(Chunk(), 24), x(2, 7, 6)


@module
def attention_split_by_attribute():
    class Split(nn.Module):
        def __init__(self, dim=20, heads=5):
            super().__init__()
            self.dim, self.heads = dim, heads
            self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

        def forward(self, v):
            b, n, _ = v.shape
            q, k, w = self.qkv(v).split(self.dim, dim=2)
            q, k, w = (p.view(b, n, self.heads, self.dim // self.heads).transpose(1, 2) for p in (q, k, w))
            return self.proj(F.scaled_dot_product_attention(q, k, w).transpose(1, 2).contiguous().view(b, n, self.dim))

    return Between(Split(), 20), x(2, 7, 6)


@module
def attention_grouped_query():
    class Grouped(nn.Module):
        def __init__(self, dim=32, heads=8, shared=2):
            super().__init__()
            self.num_heads, self.num_key_value_heads, self.head_dim = heads, shared, 6
            self.num_key_value_groups = heads // shared
            self.q, self.k, self.v = nn.Linear(dim, heads * 6), nn.Linear(dim, shared * 6), nn.Linear(dim, shared * 6)
            self.o = nn.Linear(heads * 6, dim)

        def forward(self, v):
            b, t, _ = v.shape
            q = self.q(v).view(b, t, self.num_heads, self.head_dim).transpose(1, 2)
            k, w = (p(v).view(b, t, self.num_key_value_heads, self.head_dim).transpose(1, 2) for p in (self.k, self.v))
            k, w = (p[:, :, None].expand(b, p.shape[1], self.num_key_value_groups, t, self.head_dim) for p in (k, w))
            k, w = (p.reshape(b, self.num_heads, t, self.head_dim) for p in (k, w))
            y = torch.softmax(q @ k.mT / math.sqrt(6), -1) @ w
            return self.o(y.transpose(1, 2).reshape(b, t, -1))

    return Between(Grouped(), 32), x(2, 5, 6)


@module
def attention_einsum():
    class Einsum(nn.Module):
        def __init__(self, dim=24, heads=4, lanes=5):
            super().__init__()
            self.wq, self.wk, self.wv = (nn.Parameter(torch.randn(dim, heads, lanes) / 5) for _ in range(3))
            self.wo = nn.Parameter(torch.randn(heads, lanes, dim) / 5)

        def forward(self, v):
            q, k, w = (torch.einsum("btd,dhk->bhtk", v, p) for p in (self.wq, self.wk, self.wv))
            a = torch.softmax(torch.einsum("bhtk,bhsk->bhts", q, k), -1)
            return torch.einsum("bhts,bhsk,hkd->btd", a, w, self.wo)

    return Between(Einsum(), 24), x(2, 5, 6)


@module
def attention_checked_sizes():
    class Checked(Attention):
        def forward(self, v):
            b, t, _ = v.shape
            q, k, w = (p(v).view(b, t, -1, self.head_dim).transpose(1, 2) for p in (self.q, self.k, self.v))
            if q.shape != (b, self.num_heads, t, self.head_dim):
                raise ValueError("wrong shape of queries")
            y = torch.softmax(q @ k.mT * self.scale, -1) @ w
            assert y.size(1) == self.num_heads
            return self.o(y.transpose(1, 2).flatten(2))

    return Between(Checked(), 24), x(2, 5, 6)


@module
def attention_relative_bias():
    class Relative(Attention):
        def __init__(self):
            super().__init__(24, 4)
            self.table = nn.Parameter(torch.randn(2 * 5 - 1, 4))
            self.register_buffer("index", (torch.arange(5)[:, None] - torch.arange(5)[None] + 4))

        def forward(self, v):
            b, t, _ = v.shape
            q, k, w = (p(v).view(b, t, self.num_heads, self.head_dim).transpose(1, 2) for p in (self.q, self.k, self.v))
            bias = self.table[self.index.view(-1)].view(t, t, -1).permute(2, 0, 1)
            y = torch.softmax(q @ k.mT * self.scale + bias, -1) @ w
            return self.o(y.transpose(1, 2).reshape(b, t, -1))

    return Between(Relative(), 24), x(2, 5, 6)


@module
def attention_rotary():
    class Rotary(Attention):
        def __init__(self):
            super().__init__(24, 4)
            self.register_buffer("freq", 1 / 10 ** (torch.arange(0, 6, 2) / 6), persistent=False)

        def forward(self, v):
            b, t, _ = v.shape
            q, k, w = (p(v).view(b, t, self.num_heads, self.head_dim).transpose(1, 2) for p in (self.q, self.k, self.v))
            angle = torch.outer(torch.arange(t), self.freq)
            cos, sin = torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()
            q, k = (p * cos + torch.cat([-p[..., self.head_dim // 2 :], p[..., : self.head_dim // 2]], -1) * sin for p in (q, k))
            y = torch.softmax(q @ k.mT * self.scale, -1) @ w
            return self.o(y.transpose(1, 2).reshape(b, t, -1))

    return Between(Rotary(), 24), x(2, 5, 6)


@module
def one_head_scaled_by_its_width():
    class One(nn.Module):
        def __init__(self, dim=24):
            super().__init__()
            self.dim = dim
            self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))

        def forward(self, v):
            b, t, _ = v.shape
            q, k, w = (p(v).view(b, t, 1, self.dim).transpose(1, 2) for p in (self.q, self.k, self.v))
            y = torch.softmax(q @ k.mT / math.sqrt(self.dim) * self.dim**-0.5, -1) @ w
            return self.o(y.transpose(1, 2).reshape(b, t, self.dim))

    return Between(One(), 24), x(2, 5, 6)


@module
def shared_config():
    class Config:
        def __init__(self):
            self.width, self.heads, self.lanes, self.inner = 24, 4, 6, 40

    class Layer(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.config = config
            self.qkv = nn.Linear(config.width, 3 * config.heads * config.lanes)
            self.o = nn.Linear(config.heads * config.lanes, config.width)
            self.up, self.down = nn.Linear(config.width, config.inner), nn.Linear(config.inner, config.width)

        def forward(self, v):
            b, t, _ = v.shape
            c = self.config
            q, k, w = self.qkv(v).view(b, t, 3, c.heads, c.lanes).permute(2, 0, 3, 1, 4)
            v = v + self.o((torch.softmax(q @ k.mT / 3, -1) @ w).transpose(1, 2).reshape(b, t, c.heads * c.lanes))
            return v + self.down(F.gelu(self.up(v).view(b, t, c.inner)))

    config = Config()
    return nn.Sequential(nn.Linear(6, 24), Layer(config), Layer(config), nn.Linear(24, 3)), x(2, 5, 6)


@module
def torch_attention():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inp, self.attn, self.out = nn.Linear(6, 24), nn.MultiheadAttention(24, 4, batch_first=True), nn.Linear(24, 3)

        def forward(self, v):
            v = self.inp(v)
            return self.out(self.attn(v, v, v, need_weights=False)[0])

    return Net(), x(2, 5, 6)


@module
def torch_cross_attention():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inp, self.out = nn.Linear(6, 24), nn.Linear(24, 3)
            self.attn = nn.MultiheadAttention(24, 4, kdim=8, vdim=10)

        def forward(self, v, k, w):
            y, weights = self.attn(self.inp(v), k, w)
            return self.out(y), weights

    return Net(), (x(5, 2, 6), x(7, 2, 8), x(7, 2, 10))


@module
def torch_encoder():
    layer = nn.TransformerEncoderLayer(24, 4, 48, batch_first=True)
    return nn.Sequential(nn.Linear(6, 24), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(24, 3)), x(2, 5, 6)


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
