"""Fused operators of ONNX Runtime (com.microsoft), as far as they run on a CPU."""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from graphprune.backends.torch_ops.attention import heads, merged, rotate, weigh
from graphprune.backends.torch_ops.indexing import embedding
from graphprune.backends.torch_ops.norm import layer_norm, rms_norm
from graphprune.backends.torch_ops.registry import Result, lower, traceable

if TYPE_CHECKING:
    from graphprune.backends.torch_call import Call

_MS = "com.microsoft::"


@lower(_MS + "Gelu")
def _gelu(call: Call) -> Result:
    return call.emit(F.gelu, call.tensor(0))


@lower(_MS + "BiasGelu")
def _bias_gelu(call: Call) -> Result:
    return call.emit(F.gelu, call.emit(operator.add, call.tensor(0), call.tensor(1)))


@lower(_MS + "FastGelu")
def _fast_gelu(call: Call) -> Result:
    x = call.tensor(0)
    x = call.emit(operator.add, x, call.tensor(1)) if call.has(1) else x
    return call.emit(F.gelu, x, approximate="tanh")


@lower(_MS + "QuickGelu")
def _quick_gelu(call: Call) -> Result:
    from graphprune.backends.torch_ops.pointwise import swish

    return call.emit(swish, call.tensor(0), call.attr("alpha", 1.702))


@lower(_MS + "BiasAdd")
def _bias_add(call: Call) -> Result:
    first = call.emit(operator.add, call.tensor(0), call.tensor(1))
    return call.emit(operator.add, first, call.tensor(2))


@traceable
def bias_split_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """First half times GELU of the second, after a bias."""
    a, b = (x + bias).chunk(2, -1)
    return a * F.gelu(b)


@lower(_MS + "BiasSplitGelu")
def _bias_split_gelu(call: Call) -> Result:
    return call.emit(bias_split_gelu, call.tensor(0), call.tensor(1))


@traceable
def bias_softmax(x: Tensor, bias: Tensor, axis: int) -> Tensor:
    """Softmax over all axes from ``axis`` on, after a bias."""
    y = x + bias
    return torch.softmax(y.flatten(axis % y.ndim), -1).reshape(y.shape)


@lower(_MS + "BiasSoftmax")
def _bias_softmax(call: Call) -> Result:
    if not call.flag("is_inner_broadcast", 1):
        raise call.refuse("BiasSoftmax with is_inner_broadcast=0 is not known here")
    return call.emit(bias_softmax, call.tensor(0), call.tensor(1), int(call.attr("axis", 1)))


@traceable
def channels_last_group_norm(
    x: Tensor, scale: Tensor, bias: Tensor, groups: int, epsilon: float, last: bool, swish: bool
) -> Tensor:
    """Group normalisation of images, channels last or second, with a swish behind it on request."""
    y = x.movedim(-1, 1) if last else x
    y = F.group_norm(y, groups, scale.to(y.dtype), bias.to(y.dtype), epsilon)
    y = F.silu(y) if swish else y
    return y.movedim(1, -1) if last else y


@lower(_MS + "GroupNorm", _MS + "SkipGroupNorm")
def _group_norm(call: Call) -> Result:
    x = call.tensor(0)
    if call.op.endswith("SkipGroupNorm"):
        for index in (3, 4):
            if call.has(index):
                x = call.emit(_add_skip, x, call.tensor(index))
    y = call.emit(
        channels_last_group_norm, x, call.tensor(1), call.tensor(2), int(call.attr("groups")),
        call.attr("epsilon", 1e-5), call.flag("channels_last", 1), call.attr("activation", 0) == 1,
    )  # fmt: skip
    return [y, x][: call.outputs]


@traceable
def _add_skip(x: Tensor, skip: Tensor) -> Tensor:
    if skip.ndim == 2:
        skip = skip[:, None, None]
    return x + skip


@traceable
def distances(a: Tensor, b: Tensor, squared: bool) -> Tensor:
    """Euclidean distances of rows."""
    square = (a[:, None] - b[None]).square().sum(-1)
    return square if squared else torch.sqrt(square)


@lower(_MS + "CDist")
def _cdist(call: Call) -> Result:
    return call.emit(distances, call.tensor(0), call.tensor(1), call.attr("metric", "sqeuclidean") == "sqeuclidean")


# -- normalisation with a residual -------------------------------------------------------------------------


@lower(
    _MS + "SkipLayerNormalization", _MS + "SkipSimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"
)  # fmt: skip
def _skip_layer_norm(call: Call) -> Result:
    simple = "Simplified" in call.op
    total = call.emit(operator.add, call.tensor(0), call.tensor(1))
    at = 3 if simple else 4
    if call.has(at):
        total = call.emit(operator.add, total, call.tensor(at))
    epsilon = call.attr("epsilon", 1e-12)
    if simple:
        y = call.emit(rms_norm, total, call.tensor(2), -1, epsilon)
    else:
        y = call.emit(layer_norm, total, call.tensor(2), call.optional(3), -1, epsilon)
    return [y, None, None, total][: call.outputs]


@lower(_MS + "SimplifiedLayerNormalization", _MS + "RMSNormalization")
def _simplified(call: Call) -> Result:
    return call.emit(rms_norm, call.tensor(0), call.tensor(1), int(call.attr("axis", -1)), call.attr("epsilon", 1e-5))


@lower(_MS + "LayerNormalization")
def _layer_norm(call: Call) -> Result:
    from graphprune.backends.torch_ops.norm import normalised

    return normalised(call, call.tensor(0), call.optional(1), call.optional(2))


@traceable
def embed(
    ids: Tensor, segments: Tensor | None, words: Tensor, positions: Tensor, kinds: Tensor | None, scale: Tensor,
    bias: Tensor, mask: Tensor | None, given: Tensor | None, epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Sum of word, position and segment embeddings, normalised; also the count of the mask, and the sum."""
    place = torch.arange(ids.shape[1], device=ids.device) if given is None else given
    total = embedding(words, ids) + embedding(positions, place)
    if kinds is not None and segments is not None:
        total = total + embedding(kinds, segments)
    count = ids.new_zeros(ids.shape[0], dtype=torch.int32) if mask is None else mask.sum(1).to(torch.int32)
    return layer_norm(total, scale, bias, -1, epsilon), count, total


@lower(_MS + "EmbedLayerNormalization")
def _embed(call: Call) -> Result:
    made = call.emit(embed, *(call.optional(i) for i in range(9)), call.attr("epsilon", 1e-12))
    return call.unpack(made)


# -- attention ---------------------------------------------------------------------------------------------


def _bias_of(mask: Tensor | None, batch: int, rows: int, columns: int, fill: float) -> Tensor | None:
    """Turn a mask of any of ONNX Runtime's forms into what is added to scores ``[b, heads, rows, columns]``."""
    if mask is None:
        return None
    at = torch.arange(columns, device=mask.device)
    if mask.ndim == 1:
        keep = at < mask[:batch, None]
        if mask.numel() == 2 * batch:  # ends, then begins
            keep = keep & (at >= mask[batch:, None])
        keep = keep[:, None, None]
    else:
        keep = mask != 0
        keep = keep[:, None, None] if mask.ndim == 2 else keep[:, None] if mask.ndim == 3 else keep
    return (~keep).to(torch.float32) * fill


@traceable
def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, scale: float | None, causal: bool,
    fill: float, past: int = 0,
) -> Tensor:  # fmt: skip
    """Attention over ``[b, heads, s, d]`` with a mask and a bias on scores."""
    scale = scale or 1 / math.sqrt(q.shape[-1])
    scores = torch.matmul(q, k.transpose(-1, -2)) * scale
    added = _bias_of(mask, q.shape[0], q.shape[2], k.shape[2], fill)
    scores = scores if added is None else scores + added.to(scores.dtype)
    scores = scores if bias is None else scores + bias
    allowed = None
    if causal:
        rows = torch.arange(q.shape[2], device=q.device)[:, None] + (k.shape[2] - q.shape[2])
        allowed = torch.arange(k.shape[2], device=q.device) <= rows
    return torch.matmul(weigh(scores, allowed), v)


@traceable
def packed_attention(
    x: Tensor, w: Tensor, b: Tensor | None, mask: Tensor | None, past: Tensor | None, bias: Tensor | None,
    count: int, sizes: tuple[int, ...] | None, scale: float | None, causal: bool, fill: float, rotary: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Projection to queries, keys and values in one product, and attention over them."""
    y = torch.matmul(x, w)
    y = y if b is None else y + b
    q, k, v = torch.split(y, list(sizes), -1) if sizes else y.chunk(3, -1)
    q, k, v = (heads(t, count) for t in (q, k, v))
    if past is not None:
        k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
    present = torch.stack((k, v)) if k.shape == v.shape else k
    return merged(attend(q, k, v, mask, bias, scale, causal, fill)), present


@lower(_MS + "Attention")
def _attention(call: Call) -> Result:
    if call.flag("do_rotary") or call.has(6) or call.flag("past_present_share_buffer"):
        raise call.refuse("rotary embedding or a shared past buffer inside Attention is not known here")
    made = call.emit(
        packed_attention, call.tensor(0), call.tensor(1), *(call.optional(i) for i in (2, 3, 4, 5)),
        int(call.attr("num_heads")), call.attr("qkv_hidden_sizes"), call.attr("scale"), call.flag("unidirectional"),
        call.attr("mask_filter_value", -10000.0), False,
    )  # fmt: skip
    return call.unpack(made)


@traceable
def multi_head(
    q: Tensor, k: Tensor | None, v: Tensor | None, b: Tensor | None, mask: Tensor | None, bias: Tensor | None,
    past_k: Tensor | None, past_v: Tensor | None, count: int, scale: float | None, causal: bool, fill: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Attention over projected queries, keys and values, packed or apart."""
    if k is None and q.ndim == 5:
        q, k, v = (q[:, :, :, i].flatten(2) for i in range(3))
    elif v is None and k is not None and k.ndim == 5:
        k, v = (k[:, :, :, i].flatten(2) for i in range(2))
    assert k is not None and v is not None
    if b is not None:
        width = q.shape[-1]
        q = q + b[:width]
        if k.ndim == 3:
            k, v = k + b[width : width + k.shape[-1]], v + b[width + k.shape[-1] :]
    q = heads(q, count)
    k, v = (heads(t, count) if t.ndim == 3 else t for t in (k, v))
    if past_k is not None and past_v is not None:
        k, v = torch.cat((past_k, k), 2), torch.cat((past_v, v), 2)
    return merged(attend(q, k, v, mask, bias, scale, causal, fill)), k, v


@lower(_MS + "MultiHeadAttention")
def _multi_head(call: Call) -> Result:
    made = call.emit(
        multi_head, call.tensor(0), *(call.optional(i) for i in range(1, 8)), int(call.attr("num_heads")),
        call.attr("scale"), call.flag("unidirectional"), call.attr("mask_filter_value", -10000.0),
    )  # fmt: skip
    return call.unpack(made)


@traceable
def grouped_query(
    q: Tensor, k: Tensor | None, v: Tensor | None, past_k: Tensor | None, past_v: Tensor | None, lengths: Tensor,
    total: Tensor, cos: Tensor | None, sin: Tensor | None, count: int, kv_count: int, scale: float | None,
    softcap: float, window: int, rotary: bool, interleaved: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Causal attention with fewer keys than queries; ``lengths`` are the valid keys of each entry less one."""
    if k is None or v is None:
        width = q.shape[-1] // (count + 2 * kv_count)
        q, k, v = torch.split(q, [count * width, kv_count * width, kv_count * width], -1)
    q, k, v = heads(q, count), heads(k, kv_count), heads(v, kv_count)
    steps, batch = q.shape[2], q.shape[0]
    ends = lengths.reshape(-1).to(torch.int64) + 1
    before = (ends - steps).clamp(min=0) if past_k is not None and past_k.shape[2] else torch.zeros_like(ends)
    place = before[:, None] + torch.arange(steps, device=q.device)
    if rotary and cos is not None and sin is not None:
        where = place.clamp(max=cos.shape[0] - 1)
        q, k = (rotate(t, cos, sin, where, 0, 2 * cos.shape[-1], interleaved) for t in (q, k))
    if past_k is not None and past_v is not None and past_k.shape[2]:
        size = max(int(total.reshape(-1)[0]), past_k.shape[2])
        k, v = (
            torch.scatter(F.pad(old, (0, 0, 0, size - old.shape[2])), 2, place[:, None, :, None].expand(new.shape), new)
            for old, new in ((past_k, k), (past_v, v))
        )
    present_k, present_v = k, v
    repeat = count // kv_count
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scores = torch.matmul(q, k.transpose(-1, -2)) * (scale or 1 / math.sqrt(q.shape[-1]))
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    at = torch.arange(k.shape[2], device=q.device)
    allowed = at <= place[:, None, :, None]
    if window > 0:
        allowed = allowed & (at > place[:, None, :, None] - window)
    assert batch
    return merged(torch.matmul(weigh(scores, allowed), v)), present_k, present_v


@lower(_MS + "GroupQueryAttention")
def _grouped_query(call: Call) -> Result:
    if call.inputs > 9 and any(call.has(i) for i in range(9, call.inputs)):
        raise call.refuse("position_ids, attention_bias or head_sink of GroupQueryAttention is not known here")
    made = call.emit(
        grouped_query, call.tensor(0), *(call.optional(i) for i in range(1, 9)), int(call.attr("num_heads")),
        int(call.attr("kv_num_heads")), call.attr("scale"), call.attr("softcap", 0.0),
        int(call.attr("local_window_size", -1)), call.flag("do_rotary"), call.flag("rotary_interleaved"),
    )  # fmt: skip
    return call.unpack(made)


@traceable
def rotary_embedding(
    x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, count: int, width: int, interleaved: bool
) -> Tensor:
    """Rotate pairs of lanes; one position is that of the first step."""
    steps = x.shape[1] if x.ndim == 3 else x.shape[2]
    if positions.numel() == 1:
        positions = (positions.reshape(1, 1) + torch.arange(steps, device=x.device)).expand(x.shape[0], -1)
    if x.ndim == 3 and not count:
        count = x.shape[-1] // (width or 2 * cos.shape[-1])
    return rotate(x, cos, sin, positions, count, width or 2 * cos.shape[-1], interleaved)


@lower(_MS + "RotaryEmbedding")
def _rotary(call: Call) -> Result:
    return call.emit(
        rotary_embedding, *call.tensors(), int(call.attr("num_heads", 0)), int(call.attr("rotary_embedding_dim", 0)),
        call.flag("interleaved"),
    )  # fmt: skip


# -- mixture of experts ------------------------------------------------------------------------------------


@traceable
def mixture(
    x: Tensor, router: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, w3: Tensor | None,
    b3: Tensor | None, k: int, activation: str, normalise: bool,
) -> Tensor:  # fmt: skip
    """Send every row to its best experts and add their answers by weight."""
    flat = x.reshape(-1, x.shape[-1])
    weights, chosen = torch.softmax(router, -1).topk(k, -1)
    if normalise:
        weights = weights / weights.sum(-1, keepdim=True)
    table: dict[str, Any] = {
        "relu": F.relu, "gelu": F.gelu, "silu": F.silu, "identity": lambda t: t,
    }  # fmt: skip
    result = torch.zeros(flat.shape[0], w2.shape[1], dtype=x.dtype, device=x.device)
    for expert in range(w1.shape[0]):
        row, slot = torch.nonzero(chosen == expert, as_tuple=True)
        if not len(row):
            continue
        taken = flat[row]
        y = table[activation](F.linear(taken, w1[expert], None if b1 is None else b1[expert]))
        if w3 is not None:
            y = y * F.linear(taken, w3[expert], None if b3 is None else b3[expert])
        y = F.linear(y, w2[expert], None if b2 is None else b2[expert])
        result = result.index_add(0, row, y * weights[row, slot, None])
    return result.reshape(*x.shape[:-1], -1)


@lower(_MS + "MoE")
def _moe(call: Call) -> Result:
    activation = call.attr("activation_type", "relu")
    if activation not in ("relu", "gelu", "silu", "identity"):
        raise call.refuse(f"the activation '{activation}' of MoE is not known here")
    return call.emit(
        mixture, *(call.optional(i) for i in range(8)), int(call.attr("k", 1)), activation,
        call.flag("normalize_routing_weights"),
    )  # fmt: skip
