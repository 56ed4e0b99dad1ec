"""Attention and transformers, in torch's own modules and in the spellings of authors."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.torch_patterns.base import ids, pattern

TOKENS = (2, 6, 24)
D, H, K = 24, 4, 6


class Attention(nn.Module):
    """q, k and v by layers of their own; no normalisation, so that every cut is exact."""

    kv = H

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(D, H * K), nn.Linear(D, self.kv * K), nn.Linear(D, self.kv * K)
        self.o = nn.Linear(H * K, 10)

    def heads(self, x: Tensor, n: int) -> Tensor:
        return x.view(x.shape[0], x.shape[1], n, K).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ((q @ k.transpose(-2, -1)) / math.sqrt(K)).softmax(-1) @ v

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(self.q(x), H), self.heads(self.k(x), self.kv), self.heads(self.v(x), self.kv)
        y = self.attend(q, k, v).transpose(1, 2)
        return self.o(y.reshape(x.shape[0], x.shape[1], H * K))


pattern(TOKENS, cut="q k v o", name="SelfAttention")(Attention)


@pattern(TOKENS, cut="q k v o")
class FusedKernelAttention(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@pattern(TOKENS, cut="q k v o")
class GroupedQueryAttention(Attention):
    """Two key-value heads for four query heads, repeated by expand and reshape."""

    kv = 2

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        b, _, t, _ = k.shape
        k, v = (y[:, :, None].expand(b, 2, 2, t, K).reshape(b, H, t, K) for y in (k, v))
        return super().attend(q, k, v)


@pattern(TOKENS, cut="q k v o")
class GroupedQueryByKernel(Attention):
    kv = 2

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


@pattern(TOKENS, cut="q o")
class MultiQueryAttention(Attention):
    kv = 1


@pattern(TOKENS, cut="q k v o")
class RotaryAttention(Attention):
    def __init__(self) -> None:
        super().__init__()
        angle = torch.arange(6)[:, None] / 100 ** (torch.arange(K // 2)[None] / (K // 2))
        self.register_buffer("cos", torch.cat([angle, angle], -1).cos(), persistent=False)
        self.register_buffer("sin", torch.cat([angle, angle], -1).sin(), persistent=False)

    def rotate(self, x: Tensor) -> Tensor:
        a, b = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
        return x * self.cos + torch.cat((-b, a), dim=-1) * self.sin

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().attend(self.rotate(q), self.rotate(k), v)


@pattern(TOKENS, cut="q k v o table")
class RelativePositionBias(Attention):
    """A table of biases, a column a head, gathered by a constant index."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(11, H))
        at = torch.arange(6)
        self.register_buffer("index", at[:, None] - at[None] + 5)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        bias = self.table[self.index.view(-1)].view(6, 6, -1).permute(2, 0, 1)
        return ((q @ k.mT) * K**-0.5 + bias[None]).softmax(-1) @ v


@pattern(TOKENS, cut="qkv o")
class FusedQkvChunk(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(D, 3 * D), nn.Linear(D, 10)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (y.reshape(b, t, H, c // H).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.o(y.transpose(1, 2).reshape(b, t, c))


@pattern(TOKENS, cut="blocks.0.qkv blocks.1.proj blocks.1.fc1 out")
class VisionBlocks(nn.Module):
    """timm's block: qkv reshaped to five axes, pre-norm, layer scale, MLP."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
            self.qkv, self.proj = nn.Linear(D, 3 * D), nn.Linear(D, D)
            self.fc1, self.fc2 = nn.Linear(D, 40), nn.Linear(40, D)
            self.gamma = nn.Parameter(0.1 * torch.ones(D))

        def forward(self, x: Tensor) -> Tensor:
            b, n, c = x.shape
            q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, H, c // H).permute(2, 0, 3, 1, 4)
            y = ((q * (c // H) ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
            x = x + self.gamma * self.proj(y.transpose(1, 2).reshape(b, n, c))
            return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.blocks, self.out = nn.Linear(D, D), nn.Sequential(self.Block(), self.Block()), nn.Linear(D, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.blocks(self.embed(x)).mean(1))


@pattern((2, 3, 16, 16), cut="patch fc1 head")
class PatchesWithToken(nn.Module):
    """Patch embedding, a class token, positions: the trunk goes through a LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16)
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 17, 16))
        self.fc1, self.fc2, self.head = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head((x + self.fc2(F.gelu(self.fc1(self.norm(x)))))[:, 0])


@pattern((2, 8, 8, 16), cut="qkv o")
class ShiftedWindows(nn.Module):
    """Swin: roll, windows of 4 x 4, attention in each, roll back."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(16, 48), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        x = torch.roll(x, shifts=(-2, -2), dims=(1, 2))
        x = x.view(b, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 16, c)
        q, k, v = self.qkv(x).view(-1, 16, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        y = (q @ k.mT * 8**-0.5).softmax(-1) @ v
        y = y.transpose(1, 2).reshape(-1, 4, 4, 16).view(b, h // 4, w // 4, 4, 4, 16)
        y = y.permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, 16)
        return self.o(torch.roll(y, shifts=(2, 2), dims=(1, 2)))


@pattern(TOKENS, cut="pre mha out")
class MultiheadAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pre, self.mha, self.out = nn.Linear(D, D), nn.MultiheadAttention(D, H, batch_first=True), nn.Linear(D, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre(x)
        return self.out(self.mha(x, x, x, need_weights=False)[0])


@pattern((6, 2, 24), (5, 2, 10), (5, 2, 14), cut="mha out", batch=False)
class MultiheadAttentionKdim(nn.Module):
    """Keys and values of widths of their own; sequence first; the weights are returned too."""

    def __init__(self) -> None:
        super().__init__()
        self.mha, self.out = nn.MultiheadAttention(D, H, kdim=10, vdim=14), nn.Linear(D, 5)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        y, weights = self.mha(q, k, v)
        return self.out(y), weights


@pattern(TOKENS, cut="pre enc.layers.0.linear1 enc.layers.1.linear2 out")
class TransformerEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(D, H, 40, batch_first=True)
        self.pre, self.out = nn.Linear(D, D), nn.Linear(D, 5)
        self.enc = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.enc(self.pre(x)))


@pattern((6, 2, 24), (5, 2, 24), cut="dec.layers.0.linear1", batch=False)
class TransformerDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(D, H, 40, norm_first=True, activation="gelu")
        self.dec, self.pre = nn.TransformerDecoder(layer, 2, norm=nn.LayerNorm(D)), nn.Linear(D, D)
        self.out = nn.Linear(D, 5)

    def mask(self, length: int) -> Tensor | None:
        return None

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return self.out(self.dec(self.pre(x), memory, tgt_mask=self.mask(x.shape[0])))


@pattern((6, 2, 24), (5, 2, 24), cut="dec.layers.0.linear1 dec.layers.1.linear1", batch=False)
class TransformerDecoderMasked(TransformerDecoder):
    """torch looks into the values of the mask, which its own export cannot; two layers begin as copies of one."""

    def mask(self, length: int) -> Tensor | None:
        return nn.Transformer.generate_square_subsequent_mask(length)


@pattern(ids(30, 2, 6), ids(30, 2, 5), cut="table t.encoder.layers.0.linear1 t.decoder.layers.0.linear2 out")
class WholeTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(30, D), nn.Linear(D, 30)
        self.t = nn.Transformer(D, H, 1, 1, 32, batch_first=True, bias=True)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.out(self.t(self.table(source), self.table(target)))


@pattern((2, 3, 16, 16), cut="patch mix.0 mix.2 chan.0 out")
class Mixer(nn.Module):
    """MLP-Mixer: one MLP along the patches, one along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 4, 4)
        self.mix = nn.Sequential(nn.Linear(16, 20), nn.GELU(), nn.Linear(20, 16))
        self.chan = nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 12))
        self.n1, self.n2, self.out = nn.LayerNorm(12), nn.LayerNorm(12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.mix(self.n1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.chan(self.n2(x))
        return self.out(x.mean(dim=1))


@pattern(TOKENS, cut="wq wk wv wo")
class EinsumHeads(nn.Module):
    """Weights [D, heads, lanes] as bare parameters, every product an einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.wq, self.wk, self.wv = (nn.Parameter(torch.randn(D, H, K) * 0.2) for _ in range(3))
        self.wo = nn.Parameter(torch.randn(H, K, 10) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("btd,dhk->bhtk", x, w) for w in (self.wq, self.wk, self.wv))
        s = torch.einsum("bhtk,bhsk->bhts", q, k).mul(K**-0.5).softmax(-1)
        return torch.einsum("bhts,bhsk,hkd->btd", s, v, self.wo)


@pattern(TOKENS, cut="q k v o")
class LinearAttention(Attention):
    """No softmax: (phi(q) (phi(k)' v)) over its own sum."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = F.elu(q) + 1, F.elu(k) + 1
        return (q @ (k.mT @ v)) / (q @ k.sum(2).unsqueeze(-1))
