"""Transforms and windows of signal processing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch

from graphprune.backends.torch_ops.dtypes import torch_dtype
from graphprune.backends.torch_ops.registry import Result, lower, traceable

if TYPE_CHECKING:
    from graphprune.backends.torch_call import Call

#: Coefficients of the cosines of each window.
_WINDOWS = {
    "HannWindow": (0.5, -0.5),
    "HammingWindow": (25 / 46, -21 / 46),
    "BlackmanWindow": (0.42, -0.5, 0.08),
}


@traceable
def cosine_window(size: int, terms: tuple[float, ...], periodic: bool, dtype: torch.dtype, like: Any) -> torch.Tensor:
    """Sum of cosines over a window of ``size`` samples."""
    steps = torch.arange(size, dtype=torch.float64, device=None if like is None else like.device)
    angle = 2 * math.pi * steps / max(size if periodic else size - 1, 1)
    parts = torch.stack([term * torch.cos(k * angle) for k, term in enumerate(terms)])
    return parts.sum(0).to(dtype)


@lower(*_WINDOWS)
def _window(call: Call) -> Result:
    from graphprune.backends.torch_call import label

    dtype = torch_dtype(ir.DataType(call.attr("output_datatype", 1)), label(call.node))
    return call.emit(
        cosine_window, call.int_input(0), _WINDOWS[call.op], call.flag("periodic", 1), dtype, call.builder.device()
    )


@traceable
def dft(x: torch.Tensor, length: Any, axis: int, inverse: bool, onesided: bool) -> torch.Tensor:
    """Fourier transform; the last axis holds real (and imaginary) parts."""
    axis = axis % x.ndim
    real = x.shape[-1] == 1
    if inverse and onesided:
        y: torch.Tensor = torch.fft.irfft(torch.view_as_complex(x.contiguous()), length, axis)
        return y.unsqueeze(-1)
    if real and onesided:
        return torch.view_as_real(torch.fft.rfft(x[..., 0], length, axis))
    z = torch.complex(x[..., 0], torch.zeros_like(x[..., 0])) if real else torch.view_as_complex(x.contiguous())
    z = torch.fft.ifft(z, length, axis) if inverse else torch.fft.fft(z, length, axis)
    if onesided:
        z = z.narrow(axis, 0, z.shape[axis] // 2 + 1)
    return torch.view_as_real(z)


@lower("DFT")
def _dft(call: Call) -> Result:
    length = call.int_input(1) if call.has(1) else None
    if call.version < 20:
        axis: Any = int(call.attr("axis", 1))
    else:
        axis = call.int_input(2) if call.has(2) else -2
    return call.emit(dft, call.tensor(0), length, axis, call.flag("inverse"), call.flag("onesided"))


@traceable
def stft(x: torch.Tensor, step: int, window: torch.Tensor | None, length: Any, onesided: bool) -> torch.Tensor:
    """Fourier transforms of windows along a signal ``[n, t, 1 or 2]``, as ``[n, frames, bins, 2]``."""
    size = int(length) if length is not None else int(window.shape[0]) if window is not None else int(x.shape[1])
    frames = x.unfold(1, size, step).movedim(-1, 2)
    if window is not None:
        frames = frames * window[:, None]
    return dft(frames, None, 2, False, onesided)


@lower("STFT")
def _stft(call: Call) -> Result:
    length = call.int_input(3) if call.has(3) else None
    return call.emit(stft, call.tensor(0), call.int_input(1), call.optional(2), length, call.flag("onesided", 1))
