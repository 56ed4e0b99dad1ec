"""RoIAlign and non-maximum suppression in plain torch; in an exported graph they are ONNX's RoiAlign and NonMaxSuppression.

``torch.export`` sees each as one operator, ``detectors::roi_align`` and ``detectors::nms``; ``TRANSLATIONS`` says how
these are written, for graphprune as well as for ``torch.onnx.export(custom_translation_table=...)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset18 as op
from torch import Tensor

from graphprune.frontends.torch_export import TRANSLATIONS as KNOWN

#: Regions that are pooled at once: it bounds the memory.
CHUNK = 64


def _weights(low: Tensor, high: Tensor, cells: int, samples: int, size: int) -> Tensor:
    """How much each pixel of an axis counts in each cell, float[regions, cells, size].

    Bilinear interpolation is a product of two hat functions, one an axis: so pooling is a product with two matrices.
    """
    extent = (high - low).clamp(min=1.0)
    steps = (torch.arange(cells * samples, dtype=low.dtype, device=low.device) + 0.5) / (cells * samples)
    at = low[:, None] + extent[:, None] * steps
    inside = (at >= -1) & (at <= size)
    pixels = torch.arange(size, dtype=low.dtype, device=low.device)
    hats = (1 - (at.clamp(0, size - 1)[..., None] - pixels).abs()).clamp(min=0) * inside[..., None]
    return hats.unflatten(1, (cells, samples)).mean(2)


def _pooled(x: Tensor, regions: Tensor, batch: Tensor, scale: float, cells: int, samples: int) -> Tensor:
    found = []
    for picture, boxes in zip(batch.split(CHUNK), (regions * scale).split(CHUNK), strict=True):
        across = _weights(boxes[:, 0], boxes[:, 2], cells, samples, x.shape[3])
        down = _weights(boxes[:, 1], boxes[:, 3], cells, samples, x.shape[2])
        for p in picture.unique_consecutive():  # regions of one picture lie together
            of = picture == p
            rows = torch.einsum("chw,rjw->rchj", x[p], across[of])
            found.append(torch.einsum("rchj,rih->rcij", rows, down[of]))
    return torch.cat(found) if found else x.new_zeros(0, x.shape[1], cells, cells)


@torch.library.custom_op("detectors::roi_align", mutates_args=())
def _roi_align(x: Tensor, regions: Tensor, batch: Tensor, scale: float, cells: int, samples: int) -> Tensor:
    return _pooled(x, regions, batch, scale, cells, samples)


@_roi_align.register_fake
def _(x: Tensor, regions: Tensor, batch: Tensor, scale: float, cells: int, samples: int) -> Tensor:
    return x.new_empty(regions.shape[0], x.shape[1], cells, cells)


def roi_align(x: Tensor, regions: Tensor, batch: Tensor, scale: float, cells: int, samples: int = 2) -> Tensor:
    """The part of a map under each region, as a square of cells; as torchvision's with ``aligned=False``.

    Parameters
    ----------
    x
        float[batch, channels, h, w].
    regions
        float[regions, 4] as left, top, right, bottom in pixels of the picture.
    batch
        int64[regions], ascending: the picture of each.
    scale
        Size of the map, as a share of the picture's.
    samples
        Points a cell along each axis.

    Returns
    -------
    Tensor
        float[regions, channels, cells, cells].
    """
    if torch.compiler.is_exporting():
        return torch.ops.detectors.roi_align(x, regions, batch, scale, cells, samples)
    return _pooled(x, regions, batch, scale, cells, samples)


@torch.library.custom_op("detectors::nms", mutates_args=())
def nms(boxes: Tensor, scores: Tensor, overlap: float) -> Tensor:
    """Which boxes stay when each goes that overlaps one of a larger score; boxes of no positive score go too.

    Parameters
    ----------
    boxes
        float[batch, boxes, 4] as left, top, right, bottom.
    scores
        float[batch, boxes].
    overlap
        Intersection over union above which the smaller score goes.

    Returns
    -------
    Tensor
        bool[batch, boxes].
    """
    keep = torch.zeros_like(scores, dtype=torch.bool)
    for picture, (found, score) in enumerate(zip(boxes, scores, strict=True)):
        order = score.argsort(descending=True, stable=True)
        order = order[score[order] > 0]
        found = found[order]
        low = torch.maximum(found[:, None, :2], found[None, :, :2])
        high = torch.minimum(found[:, None, 2:], found[None, :, 2:])
        shared = (high - low).clamp(min=0).prod(2)
        area = (found[:, 2:] - found[:, :2]).prod(1)
        over = (shared > overlap * (area[:, None] + area[None] - shared)).numpy()
        gone = torch.zeros(len(order), dtype=torch.bool).numpy()
        for i in range(len(order)):
            if not gone[i]:
                keep[picture, order[i]] = True
                gone[i + 1 :] |= over[i, i + 1 :]
    return keep


@nms.register_fake
def _(boxes: Tensor, scores: Tensor, overlap: float) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


def _write_roi_align(x: Any, regions: Any, batch: Any, scale: float, cells: int, samples: int) -> Any:
    return op.RoiAlign(
        x, regions, batch, coordinate_transformation_mode="output_half_pixel", output_height=cells, output_width=cells,
        sampling_ratio=samples, spatial_scale=scale,
    )  # fmt: skip


def _write_nms(boxes: Any, scores: Any, overlap: float) -> Any:
    count = op.Constant(value_ints=[int(scores.shape[1])])
    found = op.NonMaxSuppression(
        boxes, op.Unsqueeze(scores, op.Constant(value_ints=[1])), count, op.Constant(value_floats=[overlap]),
        op.Constant(value_floats=[0.0]),
    )  # fmt: skip
    places = op.Gather(found, op.Constant(value_ints=[0, 2]), axis=1)  # picture and box, without the class
    ones = op.CastLike(op.Gather(found, op.Constant(value_int=0), axis=1) >= op.Constant(value_int=0), scores)
    kept = op.ScatterND(op.Mul(scores, op.CastLike(op.Constant(value_float=0.0), scores)), places, ones)
    return op.Cast(kept, to=9)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.detectors.roi_align.default: _write_roi_align,
    torch.ops.detectors.nms.default: _write_nms,
}
KNOWN.update(TRANSLATIONS)
