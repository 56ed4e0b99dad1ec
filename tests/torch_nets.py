"""Small torch modules, one for each way in which a module keeps weights or takes inputs; written for these tests."""

from __future__ import annotations

import dataclasses
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

NETS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {}


def net(build):
    """Register a builder of (module, example inputs)."""
    NETS[build.__name__] = build
    return build


def image(*shape):
    return torch.randn(*(shape or (2, 3, 8, 8)))


@net
def conv_bn():
    body = nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 10, 3), nn.BatchNorm2d(10), nn.ReLU())
    settle(body)
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 5)), image()


def settle(module):
    """Statistics and scales that are not those of a fresh module."""
    for one in module.modules():
        if isinstance(one, nn.BatchNorm2d):
            nn.init.uniform_(one.weight, 0.5, 1.5)
            nn.init.normal_(one.bias)
            one.running_mean.normal_()
            one.running_var.uniform_(0.5, 2)


@net
def residual():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 8, 1)
            self.out = nn.Linear(8, 4)

        def forward(self, x):
            x = torch.relu(self.stem(x))
            x = x + self.b(torch.relu(self.a(x)))
            return self.out(x.mean((2, 3)))

    return Net(), image()


@net
def bare_parameters():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(16, 6))
            self.scale = nn.Parameter(torch.rand(16) + 0.5)
            self.blocks = nn.ParameterList([nn.Parameter(torch.randn(16, 16)), nn.Parameter(torch.randn(16, 3))])

        def forward(self, x):
            y = torch.tanh(F.linear(x, self.w)) * self.scale
            return torch.tanh(y @ self.blocks[0]) @ self.blocks[1]

    return Net(), torch.randn(4, 6)


@net
def tied_layers():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inp, self.a, self.b, self.out = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 3)
            self.b.weight = self.a.weight

        def forward(self, x):
            x = torch.relu(self.inp(x))
            return self.out(torch.relu(self.b(torch.relu(self.a(x)))))

    return Net(), torch.randn(4, 6)


@net
def tied_module():
    shared = nn.Linear(12, 12)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(12, 3)), torch.randn(4, 6)


@net
def tied_embedding():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mid, self.head = nn.Embedding(20, 12), nn.Linear(12, 12), nn.Linear(12, 20, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            return self.head(torch.tanh(self.mid(self.embed(ids))))

    return Net(), torch.randint(0, 20, (2, 7))


@net
def buffers():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.position, self.out = nn.Embedding(20, 12), nn.Embedding(9, 12), nn.Linear(12, 4)
            self.register_buffer("position_ids", torch.arange(9)[None])
            self.register_buffer("shift", torch.randn(12))
            self.register_buffer("factor", torch.rand(12), persistent=False)
            self.table = torch.randn(7, 1)

        def forward(self, ids):
            x = self.embed(ids) + self.position(self.position_ids[:, : ids.shape[1]])
            x = (x - self.shift) * self.factor + self.table.sum()
            return self.out(torch.relu(x) + torch.tensor(0.5))

    return Net(), torch.randint(0, 20, (2, 7))


@net
def weight_norm_old():
    body = [nn.utils.weight_norm(nn.Linear(6, 16)), nn.ReLU(), nn.utils.weight_norm(nn.Linear(16, 12)), nn.ReLU(), nn.Linear(12, 3)]
    return nn.Sequential(*body), torch.randn(4, 6)


@net
def weight_norm_new():
    norm = parametrizations.weight_norm
    return nn.Sequential(norm(nn.Conv1d(3, 16, 3)), nn.ReLU(), norm(nn.Conv1d(16, 12, 3)), nn.ReLU(), nn.Conv1d(12, 2, 1)), torch.randn(2, 3, 12)


@net
def own_parametrization():
    class Positive(nn.Module):
        def forward(self, x):
            return x.abs() + 0.0

    first = nn.Linear(6, 16)
    parametrize.register_parametrization(first, "weight", Positive())
    return nn.Sequential(first, nn.ReLU(), nn.Linear(16, 3)), torch.randn(4, 6)


@net
def attention():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inp, self.qkv, self.proj, self.out = nn.Linear(5, 16), nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 3)

        def forward(self, x):
            x = self.inp(x)
            b, t, c = x.shape
            q, k, v = (part.view(b, t, 4, 4).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
            y = F.scaled_dot_product_attention(q, k, v)
            return self.out(self.proj(y.transpose(1, 2).reshape(b, t, c)))

    return Net(), torch.randn(2, 6, 5)


@net
def many_inputs():
    Pair = namedtuple("Pair", "left right")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.out = nn.Linear(6, 10), nn.Linear(4, 10), nn.Linear(10, 3)

        def forward(self, pair, *, extra, flag=False, mode="add", mask=None):
            x = self.a(pair.left) + self.b(pair.right)
            if flag and mode == "add":
                x = x + extra["more"][0]
            if mask is not None:
                x = x * mask
            y = self.out(torch.relu(x))
            return {"logits": y, "hidden": [None, y.sum(1)], "count": 3}

    return Net(), ((Pair(torch.randn(4, 6), torch.randn(4, 4)),), {"extra": {"more": [torch.randn(4, 1)]}, "flag": True})


@net
def dataclass_inputs():
    @dataclasses.dataclass
    class Batch:
        x: torch.Tensor
        scale: torch.Tensor
        name: str = "batch"

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.out = nn.Linear(6, 16), nn.Linear(16, 3)

        def forward(self, batch):
            return Batch(self.out(torch.relu(self.a(batch.x)) * batch.scale), batch.x, "out")

    return Net(), (Batch(torch.randn(4, 6), torch.rand(4, 1)),)


@net
def keyword_tensors():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.out = nn.Linear(6, 16), nn.Linear(16, 3)

        def forward(self, x, *rest, shift=None, **others):
            x = x + sum(rest) + (0 if shift is None else shift)
            return self.out(torch.relu(self.a(x + others.get("more", 0)))), x

    return Net(), ((torch.randn(4, 6), torch.randn(4, 6)), {"shift": torch.randn(6)})


@net
def keeps_tensors():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.out, self.seen, self.last = nn.Linear(6, 16), nn.Linear(16, 3), [], None

        def forward(self, x):
            h = torch.relu(self.a(x))
            self.seen.append(h)
            return self.out(h)

    return Net(), torch.randn(4, 6)


@net
def opaque_state():
    class Cache:
        def __init__(self, keys):
            self.keys = keys

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.out = nn.Linear(6, 16), nn.Linear(16, 3)

        def forward(self, x):
            h = torch.relu(self.a(x))
            return {"logits": self.out(h), "cache": Cache([h])}

    return Net(), torch.randn(4, 6)


@net
def orthogonal():
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), parametrizations.orthogonal(nn.Linear(12, 12)), nn.ReLU(), nn.Linear(12, 3)), torch.randn(4, 6)
