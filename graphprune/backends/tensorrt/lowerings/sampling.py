"""Sampling at computed places, and its inverse."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphprune.backends.tensorrt.rewriting import Builder, Values, attribute, lowers

#: What opset 20 calls the modes of opset 16.
_OLD_NAMES = {"linear": "bilinear", "cubic": "bicubic", "nearest": "nearest"}


@lowers("GridSample")
def old_names(node: ir.Node, b: Builder) -> Values | None:
    """The mode under its older name."""
    x, grid = node.inputs
    assert x is not None and grid is not None
    if not 16 <= b.opset < 20 or b.context.opset_of(node) < 20 or b.rank(x) != 4 or b.target.tensorrt < (8, 5):
        return None
    mode = _OLD_NAMES[attribute(node, "mode", "linear")]
    return b.op("GridSample", x, grid, mode=mode, padding_mode=attribute(node, "padding_mode", "zeros"),
                align_corners=attribute(node, "align_corners", 0))  # fmt: skip


@lowers("GridSample")
def by_gather(node: ir.Node, b: Builder) -> Values | None:
    """The neighbours of every place gathered, times their shares."""
    x, grid = node.inputs
    assert x is not None and grid is not None
    dims, places = b.dims(x), b.dims(grid)
    mode, padding = attribute(node, "mode", "linear"), attribute(node, "padding_mode", "zeros")
    if dims is None or places is None or len(dims) != 4 or None in dims[1:] or None in places[1:]:
        return None
    if mode not in ("linear", "bilinear", "nearest") or padding not in ("zeros", "border"):
        return None
    channels, height, width = (int(d or 0) for d in dims[1:])
    points = int(places[1] or 0) * int(places[2] or 0)
    flat = b.reshape(x, (0, channels, height * width))
    columns, rows = (b.reshape(part, (0, 1, points)) for part in b.split(grid, 3, (1, 1)))
    corners = bool(attribute(node, "align_corners", 0))
    at = [_place(b, value, n, corners, padding) for value, n in ((columns, width), (rows, height))]
    if mode == "nearest":
        out = _taken(b, flat, [b.op("Round", value) for value in at], (width, height), channels, padding)
    else:
        low = [b.op("Floor", value) for value in at]
        share = [b.op("Sub", value, base) for value, base in zip(at, low, strict=True)]
        one = b.constant(1.0, x)
        pairs = [
            ((base, b.op("Sub", one, part)), (b.op("Add", base, one), part))
            for base, part in zip(low, share, strict=True)
        ]
        terms = []
        for column, across in pairs[0]:
            for row, down in pairs[1]:
                taken = _taken(b, flat, [column, row], (width, height), channels, padding)
                terms.append(b.op("Mul", taken, b.op("Mul", across, down)))
        out = terms[0]
        for term in terms[1:]:
            out = b.op("Add", out, term)
    return b.reshape(out, (0, channels, int(places[1] or 0), int(places[2] or 0)))


def _place(b: Builder, value: ir.Value, n: int, corners: bool, padding: str) -> ir.Value:
    """From -1..1 to positions along an axis of n."""
    scale, shift = ((n - 1) / 2, (n - 1) / 2) if corners else (n / 2, (n - 1) / 2)
    at = b.op("Add", b.op("Mul", value, b.constant(scale, value)), b.constant(shift, value))
    return _clipped(b, at, n) if padding == "border" else at


def _clipped(b: Builder, at: ir.Value, n: int) -> ir.Value:
    return b.op("Min", b.op("Max", at, b.constant(0.0, at)), b.constant(float(n - 1), at))


def _taken(
    b: Builder, flat: ir.Value, at: list[ir.Value], sizes: tuple[int, int], channels: int, padding: str
) -> ir.Value:
    """Values at whole positions [N, 1, points]; zeros outside."""
    inside = [_clipped(b, value, n) for value, n in zip(at, sizes, strict=True)]
    index = b.op("Add", b.op("Mul", inside[1], b.constant(float(sizes[0]), inside[1])), inside[0])
    wide = b.op("Expand", b.cast(index, ir.DataType.INT64), b.ints(1, channels, 1))
    taken = b.op("GatherElements", flat, wide, axis=2)
    if padding == "border":
        return taken
    for value, clipped in zip(at, inside, strict=True):
        taken = b.op("Mul", taken, b.cast(b.op("Equal", value, clipped), b.dtype(flat)))
    return taken


@lowers("Col2Im")
def by_transposed_convolution(node: ir.Node, b: Builder) -> Values | None:
    """A grouped ConvTranspose whose kernels hold a single 1."""
    x, image, block = node.inputs
    assert x is not None
    dims, size, window = b.dims(x), b.known(image), b.known(block)
    if dims is None or dims[1] is None or size is None or window is None or len(size) != 2:
        return None
    strides, dilations = attribute(node, "strides") or [1, 1], attribute(node, "dilations") or [1, 1]
    pads = attribute(node, "pads") or [0] * 4
    span = [int(d * (k - 1) + 1) for d, k in zip(dilations, window, strict=True)]
    free = [int(n) + pads[i] + pads[i + 2] - span[i] for i, n in enumerate(size)]
    counts = [f // s + 1 for f, s in zip(free, strides, strict=True)]
    left = [f % s for f, s in zip(free, strides, strict=True)]
    many = int(np.prod(window))
    channels = int(dims[1] or 0) // many
    kernels = np.tile(np.eye(many, dtype=np.float32).reshape(many, 1, *map(int, window)), (channels, 1, 1, 1))
    grown = b.reshape(x, (0, channels * many, *counts))
    return b.op("ConvTranspose", grown, b.constant(kernels, x), group=channels, strides=strides, dilations=dilations,
                pads=pads, output_padding=left, kernel_shape=[int(k) for k in window])  # fmt: skip
