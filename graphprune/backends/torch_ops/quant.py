"""Quantised operators. Rounding has the gradient of the identity, clamping that of a clamp (straight through)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F

from graphprune.backends.torch_ops.dtypes import torch_dtype
from graphprune.backends.torch_ops.linear import torch_pads, window
from graphprune.backends.torch_ops.registry import Result, cast, lower, traceable

if TYPE_CHECKING:
    from graphprune.backends.torch_call import Call

_EIGHT = (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz)


def round_through(x: torch.Tensor) -> torch.Tensor:
    """Round half to even; the gradient passes as if nothing was rounded."""
    return x + (torch.round(x) - x).detach() if x.requires_grad else torch.round(x)


def _spread(factor: torch.Tensor, x: torch.Tensor, axis: int, block: int) -> torch.Tensor:
    """Let a scale or zero point per tensor, per index of an axis, or per block of one broadcast to ``x``."""
    if factor.ndim == 0 or factor.numel() == 1:
        return factor.reshape(())
    if block:
        return factor.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    if factor.ndim == 1:
        shape = [1] * x.ndim
        shape[axis] = -1
        return factor.reshape(shape)
    return factor


def _limits(dtype: torch.dtype, bits: int | None, signed: bool) -> tuple[int, int]:
    if bits is not None:
        return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    return torch.iinfo(dtype).min, torch.iinfo(dtype).max


@traceable
def quantize(
    x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, axis: int, block: int, dtype: torch.dtype,
    bits: int | None, saturate: bool = True,
) -> torch.Tensor:  # fmt: skip
    """Quantise to an integer (or 8-bit float) type."""
    scale = _spread(scale, x, axis, block)
    y = x / scale if x.is_floating_point() else x.to(scale.dtype) / scale
    if dtype in _EIGHT:
        from graphprune.backends.torch_ops.pointwise import to_dtype

        return to_dtype(y, dtype, saturate)
    y = torch.round(y)
    if zero is not None:
        y = y + _spread(zero, x, axis, block).to(y.dtype)
    low, high = _limits(dtype, bits, dtype in (torch.int8, torch.int16, torch.int32))
    return y.clamp(low, high).to(torch.int32 if dtype in (torch.uint16, torch.uint32) else dtype).to(dtype)


@traceable
def dequantize(
    x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, axis: int, block: int, dtype: torch.dtype | None
) -> torch.Tensor:
    """Turn quantised numbers back into floating-point ones."""
    wide = scale if scale.dtype != torch.float16 else scale.float()
    y = x.to(wide.dtype) if x.dtype in _EIGHT else x.to(torch.int32)
    if zero is not None and x.dtype not in _EIGHT:
        y = y - _spread(zero, x, axis, block).to(torch.int32)
    return (y.to(wide.dtype) * _spread(wide, x, axis, block)).to(dtype or scale.dtype)


@traceable
def fake_quantize(
    x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, axis: int, block: int, dtype: torch.dtype,
    bits: int | None,
) -> torch.Tensor:  # fmt: skip
    """Quantise and dequantise in one step, with a gradient."""
    x = x if x.is_floating_point() else x.to(scale.dtype)
    scale = _spread(scale, x, axis, block)
    shift = 0 if zero is None else _spread(zero, x, axis, block).to(x.dtype)
    low, high = _limits(dtype, bits, dtype in (torch.int8, torch.int16, torch.int32))
    y = (round_through(x / scale) + shift).clamp(low, high)
    return (y - shift) * scale


_BITS = {ir.DataType.INT4: (torch.int8, 4), ir.DataType.UINT4: (torch.uint8, 4), ir.DataType.INT2: (torch.int8, 2),
         ir.DataType.UINT2: (torch.uint8, 2)}  # fmt: skip


def target_type(call: Call) -> tuple[torch.dtype, int | None]:
    """Return the type a QuantizeLinear makes, and its bits where torch has only a wider one."""
    from graphprune.backends.torch_call import label

    kind = call.node.outputs[0].dtype
    if call.has(2):
        value = call.value(2)
        kind = value.dtype if value.const_value is None else value.const_value.dtype
    asked = call.attr("output_dtype")
    kind = ir.DataType(asked) if asked else kind or ir.DataType.UINT8
    return _BITS[kind] if kind in _BITS else (torch_dtype(kind, label(call.node)), None)


@lower("QuantizeLinear", "com.microsoft::QuantizeLinear")
def _quantize(call: Call) -> Result:
    dtype, bits = target_type(call)
    return call.emit(
        quantize, call.tensor(0), call.tensor(1), call.optional(2), int(call.attr("axis", 1)),
        int(call.attr("block_size", 0)), dtype, bits, call.flag("saturate", 1),
    )  # fmt: skip


def _same_grid(call: Call) -> bool:
    """Whether a DequantizeLinear undoes the QuantizeLinear before it, number by number."""
    made = call.value(0).producer()
    if made is None or made.op_type != "QuantizeLinear":
        return False
    for name, default in (("axis", 1), ("block_size", 0)):
        if int(call.attr(name, default)) != made.attributes.get_int(name, default):
            return False
    for index in (1, 2):
        theirs = made.inputs[index] if index < len(made.inputs) else None
        ours = call.node.inputs[index] if index < call.inputs else None
        if ours is theirs:
            continue
        if ours is None or theirs is None:
            return False
        a, b = call.builder.val(ours).array, call.builder.val(theirs).array
        if a is None or b is None or not np.array_equal(a, b):
            return False
    return True


@lower("DequantizeLinear", "com.microsoft::DequantizeLinear")
def _dequantize(call: Call) -> Result:
    axis, block = int(call.attr("axis", 1)), int(call.attr("block_size", 0))
    source = call.builder.val(call.value(0)).node
    if getattr(source, "target", None) is quantize and source.args[5] not in _EIGHT and _same_grid(call):
        return call.emit(fake_quantize, *source.args[:7])
    asked = call.attr("output_dtype")
    dtype = None
    if asked:
        from graphprune.backends.torch_call import label

        dtype = torch_dtype(ir.DataType(asked), label(call.node))
    return call.emit(dequantize, call.tensor(0), call.tensor(1), call.optional(2), axis, block, dtype)


@traceable
def dynamic_quantize(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Quantise to uint8 by the range of the data; return numbers, scale and zero point."""
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / 255
    divisor = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.round((-low / divisor).clamp(0, 255))
    y = (torch.round(x / divisor) + zero).clamp(0, 255).to(torch.uint8)
    return y, scale, zero.to(torch.uint8)


@lower("DynamicQuantizeLinear")
def _dynamic_quantize(call: Call) -> Result:
    return call.unpack(call.emit(dynamic_quantize, call.tensor(0)))


def _centred(x: torch.Tensor, zero: torch.Tensor | None, axis: int = -1) -> torch.Tensor:
    """Numbers less their zero point, as float64: sums of products of 8-bit numbers are exact in it."""
    wide = x.to(torch.float64)
    if zero is None:
        return wide
    zero = zero.to(torch.float64)
    if zero.ndim == 1 and zero.numel() > 1:
        shape = [1] * x.ndim
        shape[axis] = -1
        zero = zero.reshape(shape)
    elif zero.numel() == 1:
        zero = zero.reshape(())
    return wide - zero


@traceable
def matmul_integer(
    a: torch.Tensor, b: torch.Tensor, a_zero: torch.Tensor | None, b_zero: torch.Tensor | None
) -> torch.Tensor:
    """Matrix product of integers less their zero points."""
    return torch.matmul(_centred(a, a_zero, -2), _centred(b, b_zero, -1)).to(torch.int32)


@lower("MatMulInteger")
def _matmul_integer(call: Call) -> Result:
    return call.emit(matmul_integer, call.tensor(0), call.tensor(1), call.optional(2), call.optional(3))


@traceable
def conv_integer(
    x: torch.Tensor, w: torch.Tensor, x_zero: torch.Tensor | None, w_zero: torch.Tensor | None, bias: Any,
    strides: tuple[int, ...], dilations: tuple[int, ...], pads: tuple[int, ...], auto: str, groups: int,
) -> torch.Tensor:  # fmt: skip
    """Convolve integers less their zero points; the result is float64 that holds integers."""
    from graphprune.backends.torch_ops.linear import convolution, pad_same

    y = _centred(x, x_zero)
    if auto.startswith("SAME"):
        y = pad_same(y, tuple(w.shape[2:]), strides, dilations, auto == "SAME_UPPER")
    elif any(pads):
        y = F.pad(y, torch_pads(pads))
    extra = None if bias is None else bias.to(torch.float64)
    result: torch.Tensor = convolution(y, _centred(w, w_zero, 0), extra, strides, 0, dilations, groups)
    return result


def emit_conv_integer(call: Call, x: Any, w: Any, xz: Any, wz: Any, bias: Any, index: int) -> Any:
    """Emit a convolution of integers; the weight is input ``index``."""
    dims = call.dims(index)
    rank = len(dims) - 2 if dims is not None else len(call.attr("kernel_shape", (1, 1)))
    strides, dilations, pads, auto = window(call, rank)
    return call.emit(conv_integer, x, w, xz, wz, bias, strides, dilations, pads, auto, int(call.attr("group", 1)))


@lower("ConvInteger")
def _conv_integer(call: Call) -> Result:
    made = emit_conv_integer(call, call.tensor(0), call.tensor(1), call.optional(2), call.optional(3), None, 1)
    return call.emit(cast, made, torch.int32)


@traceable
def requantize(
    y: torch.Tensor, scale: torch.Tensor, out_scale: torch.Tensor, zero: torch.Tensor, axis: int
) -> torch.Tensor:
    """Scale exact integer sums to the type of the zero point."""
    factor = scale.to(torch.float64) / out_scale.to(torch.float64)
    if factor.numel() > 1:
        shape = [1] * y.ndim
        shape[axis] = -1
        factor = factor.reshape(shape)
    else:
        factor = factor.reshape(())
    if zero.dtype in _EIGHT:
        return (y * factor).to(torch.float32).to(zero.dtype)
    info = torch.iinfo(zero.dtype)
    return (torch.round(y * factor) + zero.to(torch.float64)).clamp(info.min, info.max).to(zero.dtype)


@traceable
def scales(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Multiply two scales."""
    return a.to(torch.float64) * b.to(torch.float64)


@lower("QLinearConv")
def _qlinear_conv(call: Call) -> Result:
    t = call.tensor
    y = emit_conv_integer(call, t(0), t(3), t(2), t(5), call.optional(8), 3)
    return call.emit(requantize, y, call.emit(scales, t(1), t(4)), t(6), t(7), 1)


@traceable
def product_of(a: torch.Tensor, b: torch.Tensor, a_zero: Any, b_zero: Any) -> torch.Tensor:
    """Matrix product of quantised numbers less their zero points, in float64."""
    return torch.matmul(_centred(a, a_zero, -2), _centred(b, b_zero, -1))


@lower("QLinearMatMul")
def _qlinear_matmul(call: Call) -> Result:
    t = call.tensor
    y = call.emit(product_of, t(0), t(3), t(2), t(5))
    return call.emit(requantize, y, call.emit(scales, t(1), t(4)), t(6), t(7), -1)
