"""Convolutions, matrix products, and what is made of them."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from graphprune.backends.torch_ops.registry import Result, lower, traceable

if TYPE_CHECKING:
    from graphprune.backends.torch_call import Call

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def same_pads(size: int, window: int, stride: int, dilation: int, upper: bool) -> tuple[int, int]:
    """Return the padding before and after that keeps ``ceil(size / stride)`` positions."""
    total = max((-(-size // stride) - 1) * stride + (window - 1) * dilation + 1 - size, 0)
    return (total // 2, total - total // 2) if upper else (total - total // 2, total // 2)


def torch_pads(pads: tuple[int, ...]) -> list[int]:
    """Turn ONNX's pads (all befores, all afters) into those of ``F.pad`` (last axis first)."""
    rank = len(pads) // 2
    return [p for axis in reversed(range(rank)) for p in (pads[axis], pads[rank + axis])]


@traceable
def pad_same(
    x: torch.Tensor, kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...], upper: bool,
    value: float = 0.0,
) -> torch.Tensor:  # fmt: skip
    """Pad spatial axes by auto_pad SAME_UPPER or SAME_LOWER."""
    pads = [
        same_pads(size, k, s, d, upper) for size, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True)
    ]
    flat = [p for pair in reversed(pads) for p in pair]
    return F.pad(x, flat, value=value) if any(flat) else x


def window(call: Call, rank: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], str]:
    """Return strides, dilations, pads (begins then ends) and auto_pad of a windowed operator."""
    strides = call.attr("strides") or (1,) * rank
    dilations = call.attr("dilations") or (1,) * rank
    pads = call.attr("pads") or (0,) * 2 * rank
    auto = call.attr("auto_pad", "NOTSET")
    if auto == "VALID":
        pads = (0,) * 2 * rank
    return strides, dilations, pads, auto


@traceable
def convolution(x: torch.Tensor, w: torch.Tensor, b: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
    """Convolve with as many spatial axes as the weight has."""
    return _CONV[w.ndim - 2](x, w, b, stride, padding, dilation, groups)


@traceable
def convolve(
    x: torch.Tensor, w: torch.Tensor, b: Any, strides: Any, dilations: Any, pads: Any, auto: str, groups: int
) -> torch.Tensor:
    """Convolve with any padding; strides, dilations and pads are those of ONNX, or None."""
    rank = w.ndim - 2
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    if auto.startswith("SAME"):
        x = pad_same(x, tuple(w.shape[2:]), strides, dilations, auto == "SAME_UPPER")
    elif pads and auto != "VALID" and any(pads):
        x = F.pad(x, torch_pads(pads))
    return torch.convolution(x, w, b, strides, (0,) * rank, dilations, False, (0,) * rank, groups)


def conv(call: Call, x: Any, w: Any, b: Any, *, index: int = 1) -> Any:
    """Emit a convolution by the attributes of the node; the weight is its input ``index``."""
    groups = int(call.attr("group", 1))
    known = [call.attr("kernel_shape"), call.attr("strides"), (call.attr("pads") or ())[::2], call.attr("dilations")]
    ranks = [len(v) for v in known if v] + [r - 2 for r in (call.const_rank(0), call.const_rank(index)) if r]
    auto = call.attr("auto_pad", "NOTSET")
    if ranks and ranks[0] not in _CONV:
        raise call.refuse(f"torch convolves 1 to 3 spatial axes, not {ranks[0]}")
    if not ranks or auto.startswith("SAME"):
        return call.emit(
            convolve, x, w, b, call.attr("strides"), call.attr("dilations"), call.attr("pads"), auto, groups
        )
    rank = ranks[0]
    strides, dilations, pads, _ = window(call, rank)
    before, after = pads[:rank], pads[rank:]
    if before != after or any(p < 0 for p in pads):
        x = call.emit(F.pad, x, torch_pads(pads))
        before = (0,) * rank
    return call.emit(_CONV[rank], x, w, b, strides, before, dilations, groups)


@lower("Conv")
def _conv(call: Call) -> Result:
    return conv(call, call.tensor(0), call.tensor(1), call.optional(2))


@traceable
def conv_transpose(
    x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, strides: tuple[int, ...], dilations: tuple[int, ...],
    pads: tuple[int, ...], extra: tuple[int, ...], groups: int, shape: tuple[int, ...] | None, auto: str,
) -> torch.Tensor:  # fmt: skip
    """Transposed convolution by ONNX's rules: the full result, cropped by pads that may differ on both sides."""
    rank = w.ndim - 2
    if shape is None and auto.startswith("SAME"):
        shape = tuple(size * s for size, s in zip(x.shape[2:], strides, strict=True))
    if shape is not None:
        begins, ends = [], []
        for axis in range(rank):
            full = strides[axis] * (x.shape[2 + axis] - 1) + extra[axis] + (w.shape[2 + axis] - 1) * dilations[axis] + 1
            total = max(full - shape[axis], 0)
            begin = total // 2 if auto == "SAME_UPPER" else total - total // 2
            begins.append(begin)
            ends.append(full - shape[axis] - begin)  # below zero: rows beyond the result
        pads = (*begins, *ends)
    symmetric = min((min(pads[axis], pads[rank + axis]) for axis in range(rank)), default=0) >= 0
    base = tuple(max(min(pads[axis], pads[rank + axis]), 0) for axis in range(rank)) if symmetric else (0,) * rank
    # torch wants its output_padding below the stride or the dilation: larger ones are appended as zero rows of input.
    inner = all(e < max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True))
    y = _TRANSPOSED[rank](x, w, None, strides, base, extra if inner else 0, groups, dilations)
    crop = []
    for axis in reversed(range(rank)):
        more = 0 if inner else extra[axis]
        crop += [base[axis] - pads[axis], base[axis] - pads[rank + axis] + more]
    y = F.pad(y, crop) if any(crop) else y
    return y if b is None else y + b.reshape(-1, *[1] * rank)


@lower("ConvTranspose")
def _conv_transpose(call: Call) -> Result:
    dims = call.dims(1)
    kernel = call.attr("kernel_shape") or (None if dims is None else dims[2:])
    if kernel is None:
        raise call.refuse("its kernel_shape is not known: export the model with kernel_shape attributes")
    rank = len(kernel)
    if rank not in _TRANSPOSED:
        raise call.refuse(f"torch convolves 1 to 3 spatial axes, not {rank}")
    strides, dilations, pads, auto = window(call, rank)
    extra = call.attr("output_padding") or (0,) * rank
    shape = call.attr("output_shape")
    groups = int(call.attr("group", 1))
    plain = shape is None and pads[:rank] == pads[rank:] and not auto.startswith("SAME") and min(pads, default=0) >= 0
    if plain and all(e < max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True)):
        return call.emit(
            _TRANSPOSED[rank], call.tensor(0), call.tensor(1), call.optional(2), strides, pads[:rank], extra, groups,
            dilations,
        )  # fmt: skip
    if shape is not None:
        shape = tuple(shape[-rank:])
    return call.emit(
        conv_transpose, call.tensor(0), call.tensor(1), call.optional(2), strides, dilations, pads, extra, groups,
        shape, auto,
    )  # fmt: skip


@traceable
def gemm(
    a: torch.Tensor, b: torch.Tensor, c: torch.Tensor | None, alpha: float, beta: float, ta: bool, tb: bool
) -> torch.Tensor:
    """Matrix product with scales, transposed operands and an addend."""
    y = torch.matmul(a.t() if ta else a, b.t() if tb else b)
    y = y if alpha == 1 else alpha * y
    return y if c is None else y + (c if beta == 1 else beta * c)


def product(call: Call, a: Any, b: Any, c: Any) -> Any:
    """Emit a Gemm by the attributes of the node."""
    alpha, beta = call.attr("alpha", 1.0), call.attr("beta", 1.0)
    ta, tb = call.flag("transA"), call.flag("transB")
    dims = call.dims(2) if call.has(2) else None
    integral = not call.is_float(0)
    row = not call.has(2) or (dims is not None and len(dims) == 1 and dims != (1,))
    if tb and not ta and alpha == 1 and beta == 1 and row and not integral:
        return call.emit(F.linear, a, b, c)
    if float(alpha).is_integer() and float(beta).is_integer():
        alpha, beta = int(alpha), int(beta)
    return call.emit(gemm, a, b, c, alpha, beta, ta, tb)


@lower("Gemm")
def _gemm(call: Call) -> Result:
    return product(call, call.tensor(0), call.tensor(1), call.optional(2))


@lower("MatMul")
def _matmul(call: Call) -> Result:
    return call.emit(torch.matmul, call.tensor(0), call.tensor(1))


@traceable
def einsum(equation: str, *operands: torch.Tensor) -> torch.Tensor:
    """Sum products by an equation."""
    return torch.einsum(equation, *operands)


@lower("Einsum")
def _einsum(call: Call) -> Result:
    return call.emit(einsum, call.attr("equation").replace(" ", ""), *call.tensors())


@lower("Det")
def _det(call: Call) -> Result:
    return call.emit(torch.linalg.det, call.tensor(0))


@traceable
def deform_conv(
    x: torch.Tensor, w: torch.Tensor, offset: torch.Tensor, b: torch.Tensor | None, mask: torch.Tensor | None,
    strides: tuple[int, ...], dilations: tuple[int, ...], pads: tuple[int, ...], groups: int, offset_groups: int,
) -> torch.Tensor:  # fmt: skip
    """Deformable convolution of two spatial axes: bilinear samples at moved positions, then a product."""
    batch, channels, height, width = x.shape
    kh, kw = w.shape[2:]
    oh, ow = offset.shape[2:]
    taps = kh * kw
    offset = offset.reshape(batch, offset_groups, taps, 2, oh, ow)
    ky = torch.arange(kh, device=x.device).repeat_interleave(kw) * dilations[0]
    kx = torch.arange(kw, device=x.device).repeat(kh) * dilations[1]
    oy = torch.arange(oh, device=x.device) * strides[0] - pads[0]
    ox = torch.arange(ow, device=x.device) * strides[1] - pads[1]
    y = offset[:, :, :, 0] + (ky[:, None, None] + oy[:, None]).to(x.dtype)
    xs = offset[:, :, :, 1] + (kx[:, None, None] + ox).to(x.dtype)
    grid = torch.stack((2 * xs / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1), -1)
    if width == 1 or height == 1:  # a grid cannot tell positions along an axis of one: measure in two
        x = F.pad(x, (0, int(width == 1), 0, int(height == 1)))
        grid = torch.stack((2 * xs / (x.shape[3] - 1) - 1, 2 * y / (x.shape[2] - 1) - 1), -1)
    flat = grid.reshape(batch * offset_groups, taps * oh, ow, 2)
    parts = x.reshape(batch * offset_groups, channels // offset_groups, *x.shape[2:])
    samples = F.grid_sample(parts, flat, padding_mode="zeros", align_corners=True)
    samples = samples.reshape(batch, offset_groups, channels // offset_groups, taps, oh, ow)
    if mask is not None:
        samples = samples * mask.reshape(batch, offset_groups, 1, taps, oh, ow)
    samples = samples.reshape(batch, groups, channels // groups, taps, oh * ow)
    kernel = w.reshape(groups, w.shape[0] // groups, w.shape[1], taps)
    result = torch.einsum("bgctn,goct->bgon", samples, kernel).reshape(batch, w.shape[0], oh, ow)
    return result if b is None else result + b.reshape(-1, 1, 1)


@lower("DeformConv")
def _deform_conv(call: Call) -> Result:
    strides, dilations, pads, _ = window(call, 2)
    return call.emit(
        deform_conv, call.tensor(0), call.tensor(1), call.tensor(2), call.optional(3), call.optional(4), strides,
        dilations, pads, int(call.attr("group", 1)), int(call.attr("offset_group", 1)),
    )  # fmt: skip


_ACTIVATIONS: dict[str, Any] = {
    "Relu": F.relu, "Tanh": torch.tanh, "Sigmoid": torch.sigmoid, "LeakyRelu": F.leaky_relu, "Clip": torch.clamp,
    "HardSigmoid": None,
}  # fmt: skip


def fused_activation(call: Call, y: Any) -> Any:
    """Emit the activation that ONNX Runtime fuses behind a product."""
    name = call.attr("activation")
    if not name:
        return y
    if name not in _ACTIVATIONS:
        raise call.refuse(f"the fused activation '{name}' is not known here")
    params = call.attr("activation_params") or tuple(
        call.attr(f"activation_{key}") for key in ("alpha", "beta") if call.attr(f"activation_{key}") is not None
    )
    if name == "HardSigmoid":
        from graphprune.backends.torch_ops.pointwise import hard_sigmoid

        return call.emit(hard_sigmoid, y, *(params or (0.2, 0.5)))
    return call.emit(_ACTIVATIONS[name], y, *(params if name in ("LeakyRelu", "Clip") else ()))


@lower("com.microsoft::FusedConv")
def _fused_conv(call: Call) -> Result:
    y = conv(call, call.tensor(0), call.tensor(1), call.optional(2))
    if call.has(3):
        y = call.emit(operator.add, y, call.tensor(3))
    return fused_activation(call, y)


@lower("com.microsoft::FusedGemm")
def _fused_gemm(call: Call) -> Result:
    return fused_activation(call, product(call, call.tensor(0), call.tensor(1), call.optional(2)))


@traceable
def fused_matmul(
    a: torch.Tensor, b: torch.Tensor, alpha: float, ta: bool, tb: bool, batch_a: bool, batch_b: bool
) -> torch.Tensor:
    """Matrix product with a scale; transBatch moves the first axis behind the second last."""
    if batch_a:
        a = torch.movedim(a, 0, -2)
    if batch_b:
        b = torch.movedim(b, 0, -2)
    a = a.transpose(-1, -2) if ta and a.ndim > 1 else a
    b = b.transpose(-1, -2) if tb and b.ndim > 1 else b
    y = torch.matmul(a, b)
    return y if alpha == 1 else alpha * y


@lower("com.microsoft::FusedMatMul")
def _fused_matmul(call: Call) -> Result:
    return call.emit(
        fused_matmul, call.tensor(0), call.tensor(1), call.attr("alpha", 1.0), call.flag("transA"),
        call.flag("transB"), call.flag("transBatchA"), call.flag("transBatchB"),
    )  # fmt: skip


@traceable
def causal_conv(
    x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, state: torch.Tensor | None, activation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Depthwise convolution over the past, with the last samples carried as state."""
    past = w.shape[-1] - 1
    state = x.new_zeros((x.shape[0], x.shape[1], past)) if state is None else state
    joined = torch.cat((state, x), -1)
    y = F.conv1d(joined, w, b, groups=w.shape[0])
    return (F.silu(y) if activation in ("silu", "swish") else y), joined[..., joined.shape[-1] - past :]


@lower("CausalConvWithState")
def _causal_conv(call: Call) -> Result:
    y = call.emit(
        causal_conv, call.tensor(0), call.tensor(1), call.optional(2), call.optional(3), call.attr("activation", "none")
    )
    return call.unpack(y)
