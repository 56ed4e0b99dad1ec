"""Attention as people write it in torch: heads and widths in attributes, one projection or several, rotated and biased."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from tests.torch_modules import MODULES, Between, module, x

__all__ = ["MODULES"]


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
