"""Resize, whose newer options older opsets lack."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphprune.backends.tensorrt.rewriting import Builder, Values, attribute, given, lowers

_KEPT = (
    "coordinate_transformation_mode",
    "cubic_coeff_a",
    "exclude_outside",
    "extrapolation_value",
    "mode",
    "nearest_mode",
)


@lowers("Resize")
def resize_all_axes(node: ir.Node, b: Builder) -> Values | None:
    """Scales or sizes for every axis."""
    x, scales, sizes = node.inputs[0], given(node, 2), given(node, 3)
    assert x is not None
    rank, dims, axes = b.rank(x), b.dims(x), attribute(node, "axes")
    if attribute(node, "antialias", 0) or attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return None
    if axes is None or rank is None or dims is None:
        return None
    options = {name: attribute(node, name) for name in _KEPT if name in node.attributes}
    empty = b.constant(np.zeros(0, np.float32))
    where = [a % rank for a in axes]
    if scales is not None and (known := b.known(scales)) is not None and known.size:
        full = np.ones(rank, np.float32)
        full[where] = known
        return b.op("Resize", x, empty, b.constant(full), **options)
    known = b.known(sizes)
    rest = [dims[a] for a in range(rank) if a not in where]
    if known is None or None in rest:
        return None
    target = np.array([d or 0 for d in dims], np.int64)
    target[where] = known
    return b.op("Resize", x, empty, empty, b.constant(target), **options)


@lowers("Resize")
def cubic_by_product(node: ir.Node, b: Builder) -> Values | None:
    """Products with constant interpolation matrices, one a spatial axis."""
    x, scales = node.inputs[0], given(node, 2)
    assert x is not None
    shape, out_shape = b.shape(x), b.shape(node.outputs[0])
    mode = attribute(node, "coordinate_transformation_mode", "half_pixel")
    if shape is None or out_shape is None or len(shape) != 4 or shape[:2] != out_shape[:2]:
        return None
    if attribute(node, "mode", "nearest") != "cubic" or attribute(node, "antialias", 0):
        return None
    if mode not in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric") or "axes" in node.attributes:
        return None
    known = b.known(scales)
    ratios = (
        known
        if known is not None and known.size == 4
        else np.array(out_shape, np.float32) / np.array(shape, np.float32)
    )
    matrices = [
        _cubic(shape[a], out_shape[a], float(ratios[a]), mode, float(attribute(node, "cubic_coeff_a", -0.75)),
               bool(attribute(node, "exclude_outside", 0))) for a in (2, 3)
    ]  # fmt: skip
    wide = b.op("MatMul", x, b.constant(matrices[1].T, x))
    return b.op("MatMul", b.constant(matrices[0], x), wide)


def _cubic(
    n: int, m: int, ratio: float, mode: str, a: float, exclude: bool
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Weights of cubic convolution (Keys 1981), float64[m, n]."""
    i = np.arange(m)
    if mode == "align_corners":
        at = i * (n - 1) / (m - 1) if m > 1 else i * 0.0
    elif mode == "asymmetric":
        at = i / ratio
    else:
        at = (i + 0.5) / ratio - 0.5
        at = np.zeros(m) if mode == "pytorch_half_pixel" and m == 1 else at
    base = np.floor(at).astype(int)
    weights = np.zeros((m, n))
    for offset in range(-1, 3):
        d = np.abs(at - base - offset)
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
        w = np.where(d <= 1, near, np.where(d < 2, far, 0.0))
        column = base + offset
        if exclude:
            w = np.where((column < 0) | (column >= n), 0.0, w)
        np.add.at(weights, (i, np.clip(column, 0, n - 1)), w)
    return weights / weights.sum(axis=1, keepdims=True) if exclude else weights
