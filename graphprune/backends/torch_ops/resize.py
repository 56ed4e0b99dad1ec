"""Resize in all its modes: torch's own interpolation where it means the same, else one matrix an axis."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from graphprune.backends.torch_ops.registry import Result, lower, traceable

if TYPE_CHECKING:
    from graphprune.backends.torch_call import Call


def _cubic(distance: torch.Tensor, a: float) -> torch.Tensor:
    d = distance.abs()
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


def _positions(
    out: int, size: int, scale: float, coordinates: str, start: float, end: float, device: torch.device
) -> torch.Tensor:
    """Where in the input (in indices) each output sample lies, float64."""
    x = torch.arange(out, dtype=torch.float64, device=device)
    if coordinates == "align_corners":
        return x * (size - 1) / (out - 1) if out > 1 else x * 0
    if coordinates == "asymmetric":
        return x / scale
    if coordinates == "pytorch_half_pixel":
        return (x + 0.5) / scale - 0.5 if out > 1 else x * 0
    if coordinates == "half_pixel_symmetric":
        exact = size * scale
        centre = size / 2
        return centre * (1 - out / exact) + (x + 0.5) / scale - 0.5
    if coordinates == "tf_half_pixel_for_nn":
        return (x + 0.5) / scale
    if coordinates == "tf_crop_and_resize":
        if out > 1:
            return start * (size - 1) + x * (end - start) * (size - 1) / (out - 1)
        return x * 0 + 0.5 * (start + end) * (size - 1)
    return (x + 0.5) / scale - 0.5


def _nearest(x: torch.Tensor, rounding: str) -> torch.Tensor:
    if rounding == "floor":
        return torch.floor(x)
    if rounding == "ceil":
        return torch.ceil(x)
    if rounding == "round_prefer_ceil":
        return torch.floor(x + 0.5)
    return torch.ceil(x - 0.5)


def axis_matrix(
    out: int, size: int, scale: float, mode: str, coordinates: str, rounding: str, a: float, outside: bool,
    antialias: bool, start: float, end: float, device: torch.device,
) -> torch.Tensor:  # fmt: skip
    """Weights of every input index for every output index of one axis, ``float64[out, size]``."""
    x = _positions(out, size, scale, coordinates, start, end, device)
    if mode == "nearest":
        index = _nearest(x, rounding).clamp(0, size - 1).to(torch.int64)
        return F.one_hot(index, size).to(torch.float64)
    shrink = min(scale, 1.0) if antialias else 1.0
    reach = math.ceil((2 if mode == "cubic" else 1) / shrink)
    base = torch.floor(x)
    taps = torch.arange(-reach + 1, reach + 1, dtype=torch.float64, device=device)
    places = base[:, None] + taps
    distance = (x[:, None] - places) * shrink
    if mode == "cubic":
        weights = _cubic(distance, a)
    else:
        weights = (1 - distance.abs()).clamp(min=0)
    if outside:
        weights = torch.where((places < 0) | (places > size - 1), torch.zeros_like(weights), weights)
    if outside or antialias:
        weights = weights / weights.sum(1, keepdim=True)
    matrix = torch.zeros(out, size, dtype=torch.float64, device=device)
    return matrix.scatter_add(1, places.clamp(0, size - 1).to(torch.int64), weights)


@traceable
def resize(
    x: torch.Tensor, sizes: Any, scales: Any, roi: Any, axes: Any, mode: str, coordinates: str, rounding: str,
    a: float, outside: bool, antialias: bool, fill: float, policy: str,
) -> torch.Tensor:  # fmt: skip
    """Resize any axes; see ONNX's Resize for the meaning of its many attributes."""
    axes = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in axes]
    if isinstance(scales, torch.Tensor):
        scales = scales.tolist() if scales.numel() else None
    if isinstance(roi, torch.Tensor):
        roi = roi.tolist() if roi.numel() else None
    if scales is None:
        assert sizes is not None
        factors = [size / x.shape[axis] for size, axis in zip(sizes, axes, strict=True)]
        if policy != "stretch":
            factor = min(factors) if policy == "not_larger" else max(factors)
            sizes = [math.floor(factor * x.shape[axis] + 0.5) for axis in axes]
            factors = [factor] * len(axes)
        outs = [int(size) for size in sizes]
    else:
        factors = list(scales)
        outs = []
        for i, axis in enumerate(axes):
            size: float = x.shape[axis]
            if coordinates == "tf_crop_and_resize" and roi:
                size = size * (roi[len(axes) + i] - roi[i])
            # The scale is a float32 number: what it stands for is within its rounding.
            product = size * factors[i]
            near = round(product)
            outs.append(near if abs(product - near) <= 1e-6 * max(near, 1) else math.floor(product))
    dtype = x.dtype
    y = x if x.is_floating_point() else x.to(torch.float32)
    beyond: torch.Tensor | None = None
    for i, axis in enumerate(axes):
        start, end = (roi[i], roi[len(axes) + i]) if roi else (0.0, 1.0)
        crop = coordinates == "tf_crop_and_resize"
        if outs[i] == x.shape[axis] and factors[i] == 1 and not crop:
            continue
        matrix = axis_matrix(
            outs[i], x.shape[axis], factors[i], mode, coordinates, rounding, a, outside, antialias, start, end, x.device
        )
        if mode == "nearest":
            y = y.index_select(axis, matrix.argmax(1))
        else:
            y = torch.matmul(y.movedim(axis, -1), matrix.to(y.dtype).t()).movedim(-1, axis)
        if crop:
            at = _positions(outs[i], x.shape[axis], factors[i], coordinates, start, end, x.device)
            mask = (at < 0) | (at > x.shape[axis] - 1)
            mask = mask.reshape([-1] + [1] * (x.ndim - 1 - axis))
            beyond = mask if beyond is None else beyond | mask
    if beyond is not None:
        y = torch.where(beyond, torch.full_like(y, fill), y)
    if dtype != y.dtype and not dtype.is_floating_point and mode != "nearest":
        limits = torch.iinfo(dtype)
        y = torch.round(y).clamp(limits.min, limits.max)
    return y.to(dtype)


@traceable
def interpolate(x: torch.Tensor, sizes: Any, scales: Any, axes: Any, *exact: Any) -> torch.Tensor:
    """Resize by torch's own interpolation where it means the same at these sizes, else as `resize`."""
    mode, coordinates = exact[:2]
    found = _native(x, sizes, scales, mode, coordinates) if axes is None else None
    if found is None:
        return resize(x, sizes, scales, None, axes, *exact)
    name, aligned = found
    if sizes is not None:
        return F.interpolate(x, size=list(sizes[2:]), mode=name, align_corners=aligned)
    return F.interpolate(
        x, scale_factor=list(scales[2:]), mode=name, align_corners=aligned, recompute_scale_factor=False
    )


_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}


def _native(x: torch.Tensor, sizes: Any, scales: Any, mode: str, coordinates: str) -> tuple[str, bool | None] | None:
    """Return torch's name of the mode and align_corners, or None where torch means something else."""
    if x.ndim not in _LINEAR or not x.is_floating_point() or isinstance(scales, torch.Tensor):
        return None
    if sizes is not None:
        if len(sizes) != x.ndim or tuple(sizes[:2]) != tuple(x.shape[:2]):
            return None
        whole = all(a % b == 0 or b % a == 0 for a, b in zip(sizes[2:], x.shape[2:], strict=True) if a and b)
        single = 1 in sizes[2:]
    else:
        if len(scales) != x.ndim or tuple(scales[:2]) != (1.0, 1.0):
            return None
        # Other scales are rounded by torch in another place.
        whole = all(s in (int(s), 1 / max(round(1 / s), 1)) for s in scales)
        single = any(int(size * s) == 1 for size, s in zip(x.shape[2:], scales[2:], strict=True))
        if not whole or coordinates == "align_corners":
            return None
    if mode == "nearest":
        return ("nearest", None) if whole else None
    aligned = coordinates == "align_corners"
    if coordinates == "pytorch_half_pixel" and single:
        return None
    if mode == "cubic":
        return ("bicubic", aligned) if x.ndim == 4 else None
    return _LINEAR[x.ndim], aligned


def _numbers(array: np.ndarray[Any, Any] | None) -> Any:
    return None if array is None or not array.size else tuple(float(v) for v in array)


@lower("Resize", "Upsample")
def _resize(call: Call) -> Result:
    upsample = call.op == "Upsample"
    old = upsample or call.version < 11
    mode = call.attr("mode", "nearest")
    coordinates = "asymmetric" if old else call.attr("coordinate_transformation_mode", "half_pixel")
    rounding = "floor" if old else call.attr("nearest_mode", "round_prefer_floor")
    at = 1 if old else 2
    scales: Any = None
    if call.attr("scales") is not None:
        scales = tuple(float(s) for s in call.attr("scales"))
    elif call.attr("height_scale") is not None:
        scales = (1.0, 1.0, float(call.attr("height_scale")), float(call.attr("width_scale")))
    elif call.has(at):
        constant = call.const(at)
        scales = _numbers(constant) if constant is not None else call.tensor(at)
    sizes = call.ints(3) if call.has(3) and not old else None
    if sizes == ():
        sizes = None
    if sizes is not None:
        scales = None
    mode = {"bilinear": "linear", "trilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    axes = call.attr("axes")
    antialias, outside = call.flag("antialias"), call.flag("exclude_outside")
    policy = call.attr("keep_aspect_ratio_policy", "stretch")
    x = call.tensor(0)
    exact = (
        mode, coordinates, rounding, call.attr("cubic_coeff_a", -0.75), outside, antialias,
        call.attr("extrapolation_value", 0.0), policy,
    )  # fmt: skip
    plain = not (antialias or outside) and policy == "stretch" and exact[3] == -0.75
    if mode == "nearest":
        usual = coordinates == "asymmetric" and rounding == "floor"
    else:
        usual = coordinates in ("half_pixel", "pytorch_half_pixel", "align_corners")
    if plain and usual:
        return call.emit(interpolate, x, sizes, scales, axes, *exact)
    roi: Any = None
    if coordinates == "tf_crop_and_resize" and call.has(1):
        constant = call.const(1)
        roi = _numbers(constant) if constant is not None else call.tensor(1)
    return call.emit(resize, x, sizes, scales, roi, axes, *exact)
