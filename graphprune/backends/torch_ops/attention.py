"""ONNX's own attention operators: Attention, RotaryEmbedding, LinearAttention."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor

from graphprune.backends.torch_ops.dtypes import TORCH
from graphprune.backends.torch_ops.pointwise import swiglu
from graphprune.backends.torch_ops.registry import Result, lower, traceable

if TYPE_CHECKING:
    from graphprune.backends.torch_call import Call


def heads(x: Tensor, count: int) -> Tensor:
    """``[b, s, heads * d]`` as ``[b, heads, s, d]``."""
    return x.reshape(x.shape[0], x.shape[1], count, -1).transpose(1, 2)


def merged(x: Tensor) -> Tensor:
    """``[b, heads, s, d]`` as ``[b, s, heads * d]``."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


def weigh(scores: Tensor, allowed: Tensor | None, dtype: torch.dtype | None = None) -> Tensor:
    """Softmax over the last axis where ``allowed``; a row with nothing allowed is all zeros."""
    kind = scores.dtype
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    top = scores.amax(-1, keepdim=True)
    dead = top == -math.inf
    scores = scores.masked_fill(dead, 0.0)
    weights = torch.softmax(scores if dtype is None else scores.to(dtype), -1).to(kind)
    return weights.masked_fill(dead, 0.0)


@traceable
def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, past_k: Tensor | None, past_v: Tensor | None,
    lengths: Tensor | None, q_heads: int, kv_heads: int, scale: float | None, causal: bool, softcap: float,
    left: int, right: int, mode: int | None, precision: torch.dtype | None,
) -> tuple[Any, ...]:  # fmt: skip
    """Scaled dot-product attention with all that ONNX's Attention allows; see its documentation for shapes."""
    flat = q.ndim == 3
    if flat:
        q, k, v = heads(q, q_heads), heads(k, kv_heads), heads(v, kv_heads)
    if past_k is not None and past_v is not None:
        k, v = torch.cat((past_k, k), 2), torch.cat((past_v, v), 2)
    present_k, present_v = k, v
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if k.shape[1] != q.shape[1]:
        repeat = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    plain = mode is None and not softcap and lengths is None and mask is None and left < 0 and right < 0
    if plain and precision is None and (not causal or (past_k is None and q.shape[2] == k.shape[2])):
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
        return (merged(y) if flat else y), present_k, present_v, None
    scores = torch.matmul(q * math.sqrt(scale), (k * math.sqrt(scale)).transpose(-1, -2))
    shown = scores
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    shown = scores if mode == 1 else shown
    allowed, rows, columns = None, q.shape[2], k.shape[2]
    at = torch.arange(columns, device=q.device)
    offset = torch.zeros(1, 1, 1, 1, dtype=torch.int64, device=q.device)
    if past_k is not None:
        offset = offset + past_k.shape[2]
    elif lengths is not None:
        offset = (lengths.to(torch.int64) - rows).reshape(-1, 1, 1, 1)
    place = torch.arange(rows, device=q.device)[:, None] + offset

    def meet(a: Tensor | None, b: Tensor) -> Tensor:
        return b if a is None else a & b

    if causal:
        allowed = at <= place
    if left >= 0:
        allowed = meet(allowed, at >= place - left)
    if right >= 0:
        allowed = meet(allowed, at <= place + right)
    if lengths is not None:
        allowed = meet(allowed, at < lengths.to(torch.int64).reshape(-1, 1, 1, 1))
    if mask is not None:
        if mask.shape[-1] < columns:
            missing = columns - mask.shape[-1]
            mask = F.pad(mask, (0, missing), value=False if mask.dtype == torch.bool else -math.inf)
        if mask.dtype == torch.bool:
            allowed = meet(allowed, mask)
        else:
            scores = scores + mask
    if mode == 2:
        shown = scores if allowed is None else scores.masked_fill(~allowed, -math.inf)
    weights = weigh(scores, allowed, precision)
    shown = weights if mode == 3 else shown
    y = torch.matmul(weights, v)
    return (merged(y) if flat else y), present_k, present_v, shown


@lower("Attention")
def _attention(call: Call) -> Result:
    precision = call.attr("softmax_precision")
    made = call.emit(
        attention, call.tensor(0), call.tensor(1), call.tensor(2), *(call.optional(i) for i in (3, 4, 5, 6)),
        int(call.attr("q_num_heads", 0)), int(call.attr("kv_num_heads", 0)), call.attr("scale"),
        call.flag("is_causal"), call.attr("softcap", 0.0), int(call.attr("left_window_size", -1)),
        int(call.attr("right_window_size", -1)),
        int(call.attr("qk_matmul_output_mode", 0)) if call.wants(3) else None,
        None if precision is None else TORCH[ir.DataType(precision)],
    )  # fmt: skip
    return call.unpack(made)


@traceable
def rotate(
    x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, count: int, width: int, interleaved: bool
) -> Tensor:
    """Rotate pairs of lanes by their position; ``x`` is ``[b, heads, s, d]`` or ``[b, s, heads * d]``."""
    flat = x.ndim == 3
    y = heads(x, count) if flat else x
    width = width or y.shape[-1]
    turned, kept = y[..., :width], y[..., width:]
    if positions is not None:
        cos, sin = cos[positions.to(torch.int64)], sin[positions.to(torch.int64)]
    cos, sin = (t[..., : width // 2].unsqueeze(1 if t.ndim == 3 else 0) for t in (cos, sin))
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
    else:
        a, b = turned.chunk(2, -1)
        turned = torch.cat((a * cos - b * sin, a * sin + b * cos), -1)
    y = torch.cat((turned, kept), -1) if kept.shape[-1] else turned
    return merged(y) if flat else y


@lower("RotaryEmbedding")
def _rotary(call: Call) -> Result:
    return call.emit(
        rotate, call.tensor(0), call.tensor(1), call.tensor(2), call.optional(3), int(call.attr("num_heads", 0)),
        int(call.attr("rotary_embedding_dim", 0)), call.flag("interleaved"),
    )  # fmt: skip


@traceable
def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, decay: Tensor | None, beta: Tensor | None, q_heads: int,
    kv_heads: int, scale: float, rule: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention as a recurrence over a state ``[b, heads, d_k, d_v]``."""
    dtype, wide = q.dtype, torch.promote_types(q.dtype, torch.float32)
    q, k, v = (heads(t.to(wide), count) for t, count in ((q, q_heads), (k, kv_heads), (v, kv_heads)))
    scale = scale or 1 / math.sqrt(q.shape[-1])
    batch, _, steps, _ = k.shape
    repeat = q_heads // kv_heads
    kept = dtype if state is None else state.dtype
    s = k.new_zeros(batch, kv_heads, k.shape[-1], v.shape[-1]) if state is None else state.to(wide)
    gate = None if decay is None or rule not in ("gated", "gated_delta") else heads(decay.to(wide), kv_heads).exp()
    rate = None
    if beta is not None and rule in ("delta", "gated_delta"):
        rate = beta.transpose(1, 2)[..., None]
    results = []
    for t in range(steps):
        kt, vt = k[:, :, t, :, None], v[:, :, t, None, :]
        if gate is not None:
            s = gate[:, :, t, :, None] * s
        if rate is not None:
            vt = rate[:, :, t, :, None] * (vt - (s * kt).sum(-2, keepdim=True))
        s = s + kt * vt
        spread = s.repeat_interleave(repeat, 1) if repeat > 1 else s
        results.append(scale * torch.matmul(q[:, :, t, None, :], spread)[:, :, 0])
    return merged(torch.stack(results, 2)).to(dtype), s.to(kept)


@lower("LinearAttention")
def _linear_attention(call: Call) -> Result:
    made = call.emit(
        linear_attention, call.tensor(0), call.tensor(1), call.tensor(2), *(call.optional(i) for i in (3, 4, 5)),
        int(call.attr("q_num_heads")), int(call.attr("kv_num_heads")), call.attr("scale", 0.0),
        call.attr("update_rule", "gated_delta"),
    )  # fmt: skip
    return call.unpack(made)


@lower("SwiGLU")
def _swiglu(call: Call) -> Result:
    return call.emit(swiglu, call.tensor(0), call.tensor(1), call.attr("alpha", 1.0))
