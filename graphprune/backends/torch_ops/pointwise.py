"""Elementwise operators: arithmetic, activations, comparisons, logic, conversions."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import nn

from graphprune.backends.torch_ops.dtypes import torch_dtype
from graphprune.backends.torch_ops.registry import Result, cast, lower, reinterpret, traceable, unary

if TYPE_CHECKING:
    from graphprune.backends.torch_call import Call

unary(
    {
        "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin, "Asinh": torch.asinh,
        "Atan": torch.atan, "Atanh": torch.atanh, "Ceil": torch.ceil, "Cos": torch.cos, "Cosh": torch.cosh,
        "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor, "HardSwish": F.hardswish, "IsNaN": torch.isnan,
        "Log": torch.log, "Mish": F.mish, "Neg": torch.neg, "Not": torch.logical_not, "Reciprocal": torch.reciprocal,
        "Relu": F.relu, "Round": torch.round, "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin,
        "Sinh": torch.sinh, "Softsign": F.softsign, "Sqrt": torch.sqrt, "Tan": torch.tan, "Tanh": torch.tanh,
        "BitwiseNot": torch.bitwise_not,
    }
)  # fmt: skip


def operands(call: Call) -> list[Any]:
    """Return both inputs; a constant of one number as a Python number where that changes no shape."""
    found: list[Any] = []
    for index in (0, 1):
        array = call.const(index)
        other = call.const_rank(1 - index)
        plain = array is not None and array.size == 1 and (array.ndim == 0 or (other or 0) >= array.ndim)
        if array is not None and plain and array.dtype.kind in "fiuVb" and call.const(1 - index) is None:
            number = array.reshape(-1)[0]
            found.append(number.item() if array.dtype.kind in "fiub" else float(number))
        else:
            found.append(call.tensor(index))
    return found


_WIDE = (torch.uint16, torch.uint32, torch.uint64)


def _check_type(call: Call) -> None:
    if any(call.dtype(i) in _WIDE for i in range(call.inputs)):
        raise call.refuse("torch has no arithmetic on uint16, uint32 and uint64: cast to int64 in the model")


def _binary(function: Callable[..., Any], call: Call) -> Result:
    _check_type(call)
    return call.emit(function, *operands(call))


for _name, _function in {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Equal": operator.eq,
    "Less": operator.lt,
    "LessOrEqual": operator.le,
    "Greater": operator.gt,
    "GreaterOrEqual": operator.ge,
}.items():
    lower(_name)(functools.partial(_binary, _function))


def _tensors(function: Callable[..., Any], call: Call) -> Result:
    return call.emit(function, *call.tensors())


for _name, _function in {
    "And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor, "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or, "BitwiseXor": torch.bitwise_xor,
}.items():  # fmt: skip
    lower(_name)(functools.partial(_tensors, _function))


@traceable
def divide(a: Any, b: Any) -> Any:
    """Divide: integers towards zero, as C does."""
    tensor = a if isinstance(a, torch.Tensor) else b
    if tensor.is_floating_point() or tensor.is_complex():
        return a / b
    return torch.div(a, b, rounding_mode="trunc") if isinstance(a, torch.Tensor) else torch.div(
        torch.full_like(b, a), b, rounding_mode="trunc"
    )  # fmt: skip


@lower("Div")
def _div(call: Call) -> Result:
    _check_type(call)
    function = operator.truediv if call.is_float(0) or call.is_float(1) else divide
    return call.emit(function, *operands(call))


@traceable
def power(a: Any, b: Any) -> torch.Tensor:
    """Raise to a power; the result has the type of the base."""
    if not isinstance(a, torch.Tensor):
        return torch.pow(a, b)
    result = torch.pow(a, b)
    return result if result.dtype == a.dtype else result.to(a.dtype)


@lower("Pow")
def _pow(call: Call) -> Result:
    exponent = call.const(1)
    if exponent is not None and exponent.size == 1 and exponent.ndim <= (call.const_rank(0) or 0) and call.is_float(0):
        return call.emit(torch.pow, call.tensor(0), float(exponent.reshape(-1)[0]))
    return call.emit(power, call.tensor(0), call.tensor(1))


@lower("Mod")
def _mod(call: Call) -> Result:
    _check_type(call)
    function = torch.fmod if call.attr("fmod", 0) else torch.remainder
    return call.emit(function, call.tensor(0), call.tensor(1))


def _chain(function: Callable[..., Any], call: Call) -> Result:
    if call.inputs > 1:
        _check_type(call)
    result = call.tensor(0)
    for index in range(1, call.inputs):
        result = call.emit(function, result, call.tensor(index))
    return result


lower("Max")(functools.partial(_chain, torch.maximum))
lower("Min")(functools.partial(_chain, torch.minimum))
lower("Sum")(functools.partial(_chain, operator.add))


@lower("Mean")
def _mean(call: Call) -> Result:
    return call.emit(operator.truediv, _chain(operator.add, call), call.inputs)


# -- activations -------------------------------------------------------------------------------------------


@lower("LeakyRelu")
def _leaky_relu(call: Call) -> Result:
    return call.emit(F.leaky_relu, call.tensor(0), call.attr("alpha", 0.01))


@lower("Elu")
def _elu(call: Call) -> Result:
    return call.emit(F.elu, call.tensor(0), call.attr("alpha", 1.0))


@lower("Celu")
def _celu(call: Call) -> Result:
    return call.emit(F.celu, call.tensor(0), call.attr("alpha", 1.0))


@traceable
def selu(x: torch.Tensor, alpha: float, gamma: float) -> torch.Tensor:
    """Scaled exponential unit with its two numbers given."""
    return gamma * F.elu(x, alpha)


@lower("Selu")
def _selu(call: Call) -> Result:
    alpha, gamma = call.attr("alpha", 1.67326319217681884765625), call.attr("gamma", 1.05070102214813232421875)
    return call.emit(selu, call.tensor(0), alpha, gamma)


@lower("Softplus")
def _softplus(call: Call) -> Result:
    return call.emit(F.softplus, call.tensor(0))


@lower("ThresholdedRelu")
def _thresholded_relu(call: Call) -> Result:
    return call.emit(F.threshold, call.tensor(0), call.attr("alpha", 1.0), 0.0)


@traceable
def hard_sigmoid(x: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
    """Clamp ``alpha x + beta`` to [0, 1]."""
    return torch.clamp(alpha * x + beta, 0, 1)


@lower("HardSigmoid")
def _hard_sigmoid(call: Call) -> Result:
    alpha, beta = call.attr("alpha", 0.2), call.attr("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return call.emit(F.hardsigmoid, call.tensor(0))
    return call.emit(hard_sigmoid, call.tensor(0), alpha, beta)


@lower("Gelu")
def _gelu(call: Call) -> Result:
    return call.emit(F.gelu, call.tensor(0), approximate=call.attr("approximate", "none"))


@traceable
def swish(x: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return ``x sigmoid(alpha x)``."""
    return x * torch.sigmoid(alpha * x)


@lower("Swish")
def _swish(call: Call) -> Result:
    alpha = call.attr("alpha", 1.0)
    return call.emit(F.silu, call.tensor(0)) if alpha == 1.0 else call.emit(swish, call.tensor(0), alpha)


@traceable
def swiglu(gate: torch.Tensor, x: torch.Tensor, alpha: float) -> torch.Tensor:
    """Swish of the gate times the other."""
    return swish(gate, alpha) * x


@traceable
def prelu(x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """Scale negative values by a slope that broadcasts to ``x``."""
    return torch.where(x < 0, x * slope, x)


@lower("PRelu")
def _prelu(call: Call) -> Result:
    return call.emit(prelu, call.tensor(0), call.tensor(1))


@traceable
def shrink(x: torch.Tensor, bias: float, limit: float) -> torch.Tensor:
    """Pull values beyond a limit towards zero, and others to zero."""
    zero = torch.zeros_like(x)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, zero)).to(x.dtype)


@lower("Shrink")
def _shrink(call: Call) -> Result:
    return call.emit(shrink, call.tensor(0), call.attr("bias", 0.0), call.attr("lambd", 0.5))


@traceable
def clip(x: torch.Tensor, low: Any, high: Any) -> torch.Tensor:
    """Clamp between two bounds, either of which may be left out; the upper one wins."""
    if isinstance(low, torch.Tensor):
        x = torch.maximum(x, low)
        low = None
    if isinstance(high, torch.Tensor):
        x = torch.minimum(x if low is None else torch.clamp(x, min=low), high)
        low = high = None
    return x if low is None and high is None else torch.clamp(x, low, high)


@lower("Clip")
def _clip(call: Call) -> Result:
    if call.version < 11:
        bounds: list[Any] = [call.attr("min"), call.attr("max")]
    else:
        bounds = []
        for index in (1, 2):
            array = call.const(index)
            if array is None:
                bounds.append(call.optional(index))
            else:
                bounds.append(array.reshape(-1)[0].item() if array.dtype.kind in "fiu" else float(array.reshape(-1)[0]))
    low, high = bounds
    if low is None and high is None:
        return call.tensor(0)
    if low == 0 and high == 6:
        return call.emit(F.relu6, call.tensor(0))
    if any(hasattr(bound, "op") for bound in bounds):
        return call.emit(clip, call.tensor(0), low, high)
    return call.emit(torch.clamp, call.tensor(0), low, high)


# -- logic and bits ----------------------------------------------------------------------------------------


@traceable
def where(condition: torch.Tensor, a: Any, b: Any) -> torch.Tensor:
    """Choose elements by a condition."""
    return torch.where(condition, a, b)


@lower("Where")
def _where(call: Call) -> Result:
    return call.emit(torch.where, *call.tensors())


@traceable
def is_inf(x: torch.Tensor, negative: bool, positive: bool) -> torch.Tensor:
    """Find infinities of the signs asked for."""
    if negative and positive:
        return torch.isinf(x)
    return torch.isposinf(x) if positive else torch.isneginf(x) if negative else torch.zeros_like(x, dtype=torch.bool)


@lower("IsInf")
def _is_inf(call: Call) -> Result:
    return call.emit(is_inf, call.tensor(0), call.flag("detect_negative", 1), call.flag("detect_positive", 1))


@traceable
def bit_shift(x: torch.Tensor, by: torch.Tensor, left: bool) -> torch.Tensor:
    """Shift bits."""
    wide, dtype = x.dtype in (torch.uint16, torch.uint32, torch.uint64), x.dtype
    a, b = (x.to(torch.int64), by.to(torch.int64)) if wide else (x, by)
    return (torch.bitwise_left_shift(a, b) if left else torch.bitwise_right_shift(a, b)).to(dtype)


@lower("BitShift")
def _bit_shift(call: Call) -> Result:
    return call.emit(bit_shift, call.tensor(0), call.tensor(1), call.attr("direction") == "LEFT")


# -- conversions -------------------------------------------------------------------------------------------

_EIGHT = (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz)


@traceable
def to_dtype(x: torch.Tensor, dtype: torch.dtype, saturate: bool = True) -> torch.Tensor:
    """Convert the element type, as ONNX's Cast does."""
    if dtype in _EIGHT and x.dtype not in _EIGHT:
        limit = torch.finfo(dtype).max
        if saturate:
            clamped = torch.clamp(x, -limit, limit)
            x = torch.where(torch.isnan(x), x, clamped)
        elif dtype == torch.float8_e4m3fn:  # which has no infinity: what is rounded beyond its largest is no number
            x = torch.where(x.abs() > 464, torch.full_like(x, math.nan), x)
        return x.to(dtype)
    if x.is_floating_point() and dtype in (torch.uint8, torch.uint16, torch.uint32):
        return x.to(torch.int64).to(dtype)
    return x.to(dtype)


@traceable
def wrap_bits(x: torch.Tensor, bits: int, signed: bool) -> torch.Tensor:
    """Convert to an integer of few bits, kept in 8; what is beyond its range wraps around."""
    half = 1 << (bits - 1) if signed else 0
    return ((x.to(torch.int64) + half) % (1 << bits) - half).to(torch.int8 if signed else torch.uint8)


def _cast(call: Call, to: ir.DataType) -> Result:
    from graphprune.backends.torch_call import label

    if to.name in ("INT4", "UINT4", "INT2", "UINT2"):
        return call.emit(wrap_bits, call.tensor(0), int(to.name[-1]), to.name[0] == "I")
    dtype = torch_dtype(to, label(call.node))
    if call.dtype(0) == dtype:
        return call.tensor(0)
    if dtype in (torch.float32, torch.float64, torch.int64, torch.bool):
        return call.emit(cast, call.tensor(0), dtype)
    return call.emit(to_dtype, call.tensor(0), dtype, call.flag("saturate", 1))


@lower("Cast")
def _cast_op(call: Call) -> Result:
    return _cast(call, ir.DataType(call.attr("to")))


@traceable
def to_dtype_of(x: torch.Tensor, like: torch.Tensor, saturate: bool = True) -> torch.Tensor:
    """Convert the element type to that of another tensor."""
    return to_dtype(x, like.dtype, saturate)


@lower("CastLike")
def _cast_like(call: Call) -> Result:
    kind = call.value(1).dtype
    if kind is not None:
        return _cast(call, kind)
    return call.emit(to_dtype_of, call.tensor(0), call.tensor(1), call.flag("saturate", 1))


@lower("BitCast")
def _bit_cast(call: Call) -> Result:
    from graphprune.backends.torch_call import label

    return call.emit(reinterpret, call.tensor(0), torch_dtype(ir.DataType(call.attr("to")), label(call.node)))


@lower("Identity")
def _identity(call: Call) -> Result:
    return [call.builder.val(call.value(0))]


# -- dropout -----------------------------------------------------------------------------------------------


class Dropout(nn.Module):
    """Dropout that also returns its mask; active while the module trains."""

    def __init__(self, ratio: float | None) -> None:
        super().__init__()
        self.ratio = ratio

    def forward(self, x: torch.Tensor, given: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the result and the mask, both of the shape of ``x``; ``given`` is a ratio known at run time."""
        ratio = float(given) if self.ratio is None else self.ratio
        if not self.training:
            return x, torch.ones_like(x, dtype=torch.bool)
        mask = torch.rand_like(x, dtype=torch.float32) >= ratio
        return x * mask / (1 - ratio) if ratio < 1 else torch.zeros_like(x), mask


@lower("Dropout")
def _dropout(call: Call) -> Result:
    if call.version >= 12 and call.has(1) and call.const(1) is None:
        return call.unpack(call.module(Dropout(None), "dropout", call.tensor(0), call.tensor(1)))
    ratio = call.attr("ratio", 0.5) if call.version < 12 else call.number(1, 0.5)
    if not call.wants(1):
        return call.module(nn.Dropout(float(ratio)), "dropout", call.tensor(0))
    return call.unpack(call.module(Dropout(float(ratio)), "dropout", call.tensor(0)))


# -- random numbers ----------------------------------------------------------------------------------------


@traceable
def random_like(x: torch.Tensor, kind: str, a: float, b: float, dtype: torch.dtype | None) -> torch.Tensor:
    """Draw numbers in the shape of ``x``: uniform in [a, b) or normal of mean a and deviation b."""
    noise = torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device)
    return noise.uniform_(a, b) if kind == "uniform" else noise.normal_(a, b)


@traceable
def random(shape: tuple[int, ...], kind: str, a: float, b: float, dtype: torch.dtype, like: Any = None) -> torch.Tensor:
    """Draw numbers in a shape: uniform in [a, b) or normal of mean a and deviation b."""
    noise = torch.empty(shape, dtype=dtype, device=None if like is None else like.device)
    return noise.uniform_(a, b) if kind == "uniform" else noise.normal_(a, b)


@lower("RandomUniformLike", "RandomNormalLike", "RandomUniform", "RandomNormal")
def _random(call: Call) -> Result:
    from graphprune.backends.torch_call import label

    uniform = "Uniform" in call.op
    kind = "uniform" if uniform else "normal"
    a, b = (
        (call.attr("low", 0.0), call.attr("high", 1.0))
        if uniform
        else (call.attr("mean", 0.0), call.attr("scale", 1.0))
    )
    asked = call.attr("dtype")
    dtype = None if asked is None else torch_dtype(ir.DataType(asked), label(call.node))
    if call.op.endswith("Like"):
        return call.emit(random_like, call.tensor(0), kind, a, b, dtype)
    return call.emit(random, call.attr("shape"), kind, a, b, dtype or torch.float32, call.builder.device())


@traceable
def bernoulli(x: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """Draw zeros and ones of given probabilities."""
    return torch.bernoulli(x).to(dtype or x.dtype)


@lower("Bernoulli")
def _bernoulli(call: Call) -> Result:
    from graphprune.backends.torch_call import label

    asked = call.attr("dtype")
    return call.emit(
        bernoulli, call.tensor(0), None if asked is None else torch_dtype(ir.DataType(asked), label(call.node))
    )


@lower("Constant")
def _constant(call: Call) -> Result:
    from graphprune.backends.torch_build import Val
    from graphprune.backends.torch_call import label

    for name in ("value", "value_float", "value_int", "value_floats", "value_ints"):
        found = call.attr(name)
        if found is None:
            continue
        if name == "value":
            torch_dtype(found.dtype, label(call.node))
            array = found.numpy()
        else:
            array = np.array(found, np.float32 if "float" in name else np.int64)
        return [Val(array=array, rank=array.ndim, name=call.node.outputs[0].name or "")]
    raise call.refuse("a constant of this kind (strings, sparse) has no meaning in torch")
