"""Quantised operators of ONNX Runtime (com.microsoft)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from graphprune.backends.torch_ops.attention import heads, merged
from graphprune.backends.torch_ops.contrib import attend
from graphprune.backends.torch_ops.quant import dynamic_quantize, product_of, requantize
from graphprune.backends.torch_ops.registry import Result, lower, traceable

if TYPE_CHECKING:
    from graphprune.backends.torch_call import Call

_MS = "com.microsoft::"


@traceable
def scaled_product(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, a_zero: Tensor | None, b_zero: Tensor | None,
    bias: Tensor | None,
) -> Tensor:  # fmt: skip
    """Matrix product of quantised numbers as floating-point ones."""
    y = product_of(a, b, a_zero, b_zero) * (a_scale.to(torch.float64) * b_scale.to(torch.float64))
    y = y.to(a_scale.dtype)
    return y if bias is None else y + bias


@lower(_MS + "MatMulIntegerToFloat")
def _integer_to_float(call: Call) -> Result:
    t, o = call.tensor, call.optional
    return call.emit(scaled_product, t(0), t(1), t(2), t(3), o(4), o(5), o(6))


@traceable
def dynamic_product(a: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor | None, bias: Tensor | None) -> Tensor:
    """Quantise the left operand by its range, then multiply."""
    y, scale, zero = dynamic_quantize(a)
    return scaled_product(y, b, scale, b_scale, zero, b_zero, bias)


@lower(_MS + "DynamicQuantizeMatMul")
def _dynamic_product(call: Call) -> Result:
    return call.emit(
        dynamic_product, call.tensor(0), call.tensor(1), call.tensor(2), call.optional(3), call.optional(4)
    )


@traceable
def packed_blocks(
    packed: Tensor, scales: Tensor, zeros: Tensor | None, k: int, n: int, bits: int, block: int
) -> Tensor:
    """Unpack a blockwise quantised weight, ``[n, k]``."""
    blocks = -(-k // block)
    per = 8 // bits
    shifts = torch.arange(per, device=packed.device) * bits
    numbers = (packed.reshape(n, blocks, -1, 1).to(torch.int32) >> shifts) & ((1 << bits) - 1)
    numbers = numbers.reshape(n, blocks, -1)[:, :, :block]
    if zeros is None:
        zero: Any = 1 << (bits - 1)
    elif zeros.is_floating_point():
        zero = zeros.reshape(n, blocks, 1)
    else:
        rows = (zeros.reshape(n, -1, 1).to(torch.int32) >> shifts) & ((1 << bits) - 1)
        zero = rows.reshape(n, -1)[:, :blocks, None]
    weight: Tensor = (numbers - zero).to(scales.dtype) * scales.reshape(n, blocks, 1)
    return weight.reshape(n, -1)[:, :k]


@traceable
def blockwise_linear(
    x: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor | None, bias: Tensor | None, k: int, n: int, bits: int,
    block: int,
) -> Tensor:  # fmt: skip
    """Product with a blockwise quantised weight."""
    return F.linear(x, packed_blocks(packed, scales, zeros, k, n, bits, block).to(x.dtype), bias)


@lower(_MS + "MatMulNBits")
def _blockwise(call: Call) -> Result:
    if call.has(4):
        raise call.refuse("MatMulNBits with reordered columns (g_idx) is not known here")
    bits = int(call.attr("bits", 4))
    if bits not in (2, 4, 8):
        raise call.refuse(f"MatMulNBits of {bits} bits is not known here")
    return call.emit(
        blockwise_linear, call.tensor(0), call.tensor(1), call.tensor(2), call.optional(3), call.optional(5),
        int(call.attr("K")), int(call.attr("N")), bits, int(call.attr("block_size")),
    )  # fmt: skip


@traceable
def quantised_attention(
    x: Tensor, w: Tensor, bias: Tensor | None, x_scale: Tensor, w_scale: Tensor, mask: Tensor | None,
    x_zero: Tensor | None, w_zero: Tensor | None, past: Tensor | None, count: int, scale: float | None, causal: bool,
    fill: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention whose projection is a product of quantised numbers."""
    q, k, v = (heads(t, count) for t in scaled_product(x, w, x_scale, w_scale, x_zero, w_zero, bias).chunk(3, -1))
    if past is not None:
        k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
    return merged(attend(q, k, v, mask, None, scale, causal, fill)), torch.stack((k, v))


@lower(_MS + "QAttention")
def _quantised_attention(call: Call) -> Result:
    made = call.emit(
        quantised_attention, call.tensor(0), call.tensor(1), *(call.optional(i) for i in range(2, 9)),
        int(call.attr("num_heads")), call.attr("scale"), call.flag("unidirectional"),
        call.attr("mask_filter_value", -10000.0),
    )  # fmt: skip
    return call.unpack(made)


@traceable
def _plain(x: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    return (x.to(torch.float64) - (0 if zero is None else zero.to(torch.float64))) * scale.to(torch.float64)


@traceable
def _pack(y: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return requantize(y, torch.ones((), dtype=torch.float64, device=y.device), scale, zero, -1)


@traceable
def binary(
    a: Tensor, a_scale: Tensor, a_zero: Tensor | None, b: Tensor, b_scale: Tensor, b_zero: Tensor | None,
    scale: Tensor, zero: Tensor, product: bool,
) -> Tensor:  # fmt: skip
    """Sum or product of quantised numbers."""
    x, y = _plain(a, a_scale, a_zero), _plain(b, b_scale, b_zero)
    return _pack(x * y if product else x + y, scale, zero)


@lower(_MS + "QLinearAdd", _MS + "QLinearMul")
def _binary(call: Call) -> Result:
    return call.emit(binary, *(call.optional(i) for i in range(8)), call.op.endswith("Mul"))


@traceable
def join(axis: int, scale: Tensor, zero: Tensor, *parts: Tensor) -> Tensor:
    """Concatenate numbers of different quantisations; ``parts`` are tensor, scale, zero point by turns."""
    triples = [parts[i : i + 3] for i in range(0, len(parts), 3)]
    return torch.cat([_pack(_plain(*triple), scale, zero) for triple in triples], axis)


@lower(_MS + "QLinearConcat")
def _join(call: Call) -> Result:
    return call.emit(join, int(call.attr("axis")), *call.tensors())


@traceable
def unary(
    x: Tensor, x_scale: Tensor, x_zero: Tensor | None, scale: Tensor, zero: Tensor, kind: str, alpha: float
) -> Tensor:
    """Activation or pooling of quantised numbers."""
    y = _plain(x, x_scale, x_zero)
    if kind == "QLinearLeakyRelu":
        y = F.leaky_relu(y, alpha)
    elif kind == "QLinearSigmoid":
        y = torch.sigmoid(y)
    else:
        axes = tuple(range(1, y.ndim - 1)) if kind.endswith("Last") else tuple(range(2, y.ndim))
        y = y.mean(axes, keepdim=True)
    return _pack(y, scale, zero)


@lower(_MS + "QLinearLeakyRelu", _MS + "QLinearSigmoid", _MS + "QLinearGlobalAveragePool")
def _unary(call: Call) -> Result:
    kind = call.node.op_type + ("Last" if call.flag("channels_last") else "")
    return call.emit(unary, *(call.optional(i) for i in range(5)), kind, call.attr("alpha", 0.01))


@traceable
def gemm(
    a: Tensor, a_scale: Tensor, a_zero: Tensor | None, b: Tensor, b_scale: Tensor, b_zero: Tensor | None,
    c: Tensor | None, scale: Tensor | None, zero: Tensor | None, alpha: float, ta: bool, tb: bool,
) -> Tensor:  # fmt: skip
    """Product of quantised matrices; floating-point where no scale of the result is given."""
    if tb:
        b = b.t()
    y = product_of(a.t() if ta else a, b, a_zero, b_zero)
    y = y if c is None else y + c.to(torch.float64)
    y = y * (alpha * a_scale.to(torch.float64) * b_scale.to(torch.float64))
    return y.to(a_scale.dtype) if scale is None or zero is None else _pack(y, scale, zero)


@lower(_MS + "QGemm")
def _gemm(call: Call) -> Result:
    return call.emit(
        gemm, *(call.optional(i) for i in range(9)), call.attr("alpha", 1.0), call.flag("transA"), call.flag("transB")
    )
