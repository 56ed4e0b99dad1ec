"""``nn.MultiheadAttention`` with fewer heads, or narrower ones, than its model width is made of.

torch's own class can only compute with ``embed_dim`` equal to heads times width of a head. Its parameters stay where they
are, under their names; only what ``forward`` does with them is written for any number of heads and any width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CutAttention(nn.MultiheadAttention):
    """Attention over ``num_heads`` heads of ``head_dim`` lanes (``value_dim`` of the values); see ``nn.MultiheadAttention``.

    Attributes
    ----------
    scale
        What products of queries and keys are multiplied with: as before the cut.
    """

    scale: float
    value_dim: int

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None, need_weights: bool = True,
        attn_mask: Tensor | None = None, average_attn_weights: bool = True, is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """As in ``nn.MultiheadAttention``."""
        batched = query.dim() == 3
        if batched and not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        q, k, v = (
            self._heads(x, weight, bias, self.value_dim if i == 2 else self.head_dim)
            for i, (x, weight, bias) in enumerate(zip((query, key, value), *self._projections(), strict=True))
        )
        mask = self._mask(attn_mask, key_padding_mask, q)
        dropout = self.dropout if self.training else 0.0
        if need_weights:
            scores = (q * self.scale) @ k.transpose(-1, -2)
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            mixed = F.dropout(weights, dropout) @ v
        else:
            weights = None
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=self.scale)
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if not batched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _heads(self, x: Tensor, weight: Tensor, bias: Tensor | None, lanes: int) -> Tensor:
        """[batch, time, width] -> [batch, heads, time, lanes]."""
        return F.linear(x, weight, bias).unflatten(-1, (self.num_heads, lanes)).transpose(1, 2)

    def _projections(self) -> tuple[list[Tensor], list[Any]]:
        """Weights and biases of queries, keys and values."""
        narrow, wide = self.num_heads * self.head_dim, self.num_heads * self.value_dim
        bias = self.in_proj_bias
        biases = [None] * 3 if bias is None else list(bias.split([narrow, narrow, wide]))
        if self.in_proj_weight is not None:
            return list(self.in_proj_weight.split([narrow, narrow, wide])), biases
        return [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight], biases

    def _mask(self, mask: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
        """Both masks as one that is added, [batch or 1, heads or 1, time or 1, keys]."""
        parts = []
        if mask is not None:
            mask = _added(mask, q)
            parts.append(mask.view(q.shape[0], -1, *mask.shape[1:]) if mask.dim() == 3 else mask)
        if padding is not None:
            parts.append(_added(padding, q)[:, None, None, :])
        return parts[0] if len(parts) == 1 else parts[0] + parts[1] if parts else None


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """A mask to add; of a boolean one, what is true is left out."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, float("-inf"))


def adapt(module: nn.Module, entries: Mapping[str, Mapping[str, Any]]) -> list[tuple[nn.Module, type, dict[str, Any]]]:
    """Let the attention layers of a module whose tensors a plan cuts compute with what is left.

    To be called before the tensors are cut.

    Returns
    -------
    list
        (layer, its class, its attributes) as they were, for :func:`give_back`.
    """
    undo: list[tuple[nn.Module, type, dict[str, Any]]] = []
    for prefix, one in module.named_modules():
        if type(one) is not nn.MultiheadAttention or one.bias_k is not None or one.add_zero_attn:
            continue
        dot = f"{prefix}." if prefix else ""
        packed = one.in_proj_weight is not None
        names = ["in_proj_weight"] if packed else ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
        cuts = [entries.get(dot + name, {}).get("kept", {}) for name in names]
        if not any(cuts) and not entries.get(f"{dot}out_proj.weight"):
            continue
        width, lanes = one.embed_dim, one.head_dim
        kept = [_kept(cuts[0] if packed else cuts[i], "0", width * (3 if packed else 1)) for i in range(len(names))]
        if packed:
            kept = [kept[0][(kept[0] >= i * width) & (kept[0] < (i + 1) * width)] - i * width for i in range(3)]
        heads = [len(np.unique(part // lanes)) for part in kept]
        if len(set(heads)) != 1 or any(len(part) % heads[0] for part in kept) or len(kept[0]) != len(kept[1]):
            continue
        inputs = [len(_kept(cuts[0 if packed else i], "1", one.embed_dim)) for i in range(3)] if packed else []
        undo.append((one, type(one), dict(vars(one))))
        one.__class__ = CutAttention
        one.scale = lanes**-0.5
        one.num_heads, one.head_dim, one.value_dim = heads[0], len(kept[0]) // heads[0], len(kept[2]) // heads[0]
        if inputs:
            one.kdim, one.vdim = inputs[1], inputs[2]
        else:
            one.kdim, one.vdim = (len(_kept(cuts[i], "1", size)) for i, size in ((1, one.kdim), (2, one.vdim)))
        one.embed_dim = len(_kept(entries.get(f"{dot}out_proj.weight", {}).get("kept", {}), "0", width))
        one._qkv_same_embed_dim = False  # torch's fused path for whole encoder layers asks for this
    return undo


def give_back(undo: list[tuple[nn.Module, type, dict[str, Any]]]) -> None:
    """Undo :func:`adapt`."""
    for one, kind, attributes in reversed(undo):
        one.__class__ = kind
        vars(one).clear()
        vars(one).update(attributes)


def _kept(entry: Mapping[str, Any], axis: str, size: int) -> np.ndarray[Any, Any]:
    return np.asarray(entry.get(axis, range(size)), np.int64)
