"""Layers: products with weights, norms, pools, attention."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch.fx import Node

from graphprune.frontends.aten.writer import Unknown, Writer, aten, meta


@aten("linear.default")
def _linear(write: Writer, x: Node, weight: Node, bias: Node | None) -> ir.Value:
    if meta(weight).ndim != 2:
        raise Unknown("a weight that is no matrix")
    if meta(x).ndim == 2:
        inputs = [write.of(x), write.of(weight)] + ([] if bias is None else [write.of(bias)])
        return write.op("Gemm", inputs, {"transB": 1})
    found = write.op("MatMul", [write.of(x), write.op("Transpose", [write.of(weight)], {"perm": [1, 0]})])
    return found if bias is None else write.op("Add", [found, write.of(bias)])


@aten("matmul.default", "bmm.default", "mm.default")
def _matmul(write: Writer, x: Node, y: Node) -> ir.Value:
    if not meta(x).dtype.is_floating_point:
        raise Unknown("a product of whole numbers")
    return write.op("MatMul", [write.of(x), write.of(y)])


@aten("addmm.default")
def _addmm(write: Writer, bias: Node, x: Node, y: Node, beta: Any, alpha: Any) -> ir.Value:
    if beta != 1 or alpha != 1:
        raise Unknown("factors")
    return write.op("Gemm", [write.of(x), write.of(y), write.of(bias)])


def _spread(numbers: Any, n: int) -> list[int]:
    found = [int(v) for v in numbers] if isinstance(numbers, (list, tuple)) else [int(numbers)]
    return found * n if len(found) == 1 else found


@aten("conv1d.default", "conv2d.default", "conv3d.default")
def _conv(
    write: Writer, x: Node, weight: Node, bias: Node | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> ir.Value:
    shape = meta(weight).shape
    n = len(shape) - 2
    if meta(x).ndim != n + 2:
        raise Unknown("a sample without a batch")
    around = _spread(padding, n)
    attributes = {
        "kernel_shape": list(shape[2:]), "strides": _spread(stride, n), "pads": around * 2,
        "dilations": _spread(dilation, n), "group": groups,
    }  # fmt: skip
    inputs = [write.of(x), write.of(weight)] + ([] if bias is None else [write.of(bias)])
    return write.op("Conv", inputs, attributes)


@aten("batch_norm.default")
def _batch_norm(
    write: Writer, x: Node, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float,
    _cudnn: bool,
) -> ir.Value:  # fmt: skip
    parts = [weight, bias, mean, var]
    if training or any(part is None for part in parts) or any(meta(part).dtype != meta(x).dtype for part in parts):
        raise Unknown("statistics of the batch")
    inputs = [write.of(part) for part in (x, *parts)]
    return write.op("BatchNormalization", inputs, {"epsilon": eps, "momentum": 1 - momentum})


@aten("layer_norm.default")
def _layer_norm(write: Writer, x: Node, shape: Any, weight: Any, bias: Any, eps: float, _cudnn: bool) -> ir.Value:
    if weight is None:
        raise Unknown("a norm without a weight")
    inputs = [write.of(x), write.of(weight)] + ([] if bias is None else [write.of(bias)])
    return write.op("LayerNormalization", inputs, {"axis": -len(shape), "epsilon": eps, "stash_type": 1})


@aten("embedding.default")
def _embedding(write: Writer, weight: Node, indices: Node, *_: Any) -> ir.Value:
    return write.op("Gather", [write.of(weight), write.of(indices)], {"axis": 0})


@aten("max_pool2d.default")
def _max_pool(write: Writer, x: Node, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> ir.Value:
    return _pool(write, "MaxPool", x, kernel, stride, padding, ceil, {"dilations": _spread(dilation, 2)})


@aten("avg_pool2d.default")
def _avg_pool(
    write: Writer, x: Node, kernel: Any, stride: Any, padding: Any, ceil: bool, count_pads: bool, divisor: Any
) -> ir.Value:
    if divisor is not None or ceil:
        raise Unknown("an average over part of a window")
    return _pool(write, "AveragePool", x, kernel, stride, padding, ceil, {"count_include_pad": int(count_pads)})


def _pool(
    write: Writer, op_type: str, x: Node, kernel: Any, stride: Any, padding: Any, ceil: bool, more: Any
) -> ir.Value:
    if meta(x).ndim != 4 or ceil:
        raise Unknown("a pool of another kind")
    attributes = {
        "kernel_shape": _spread(kernel, 2), "strides": _spread(stride or kernel, 2), "pads": _spread(padding, 2) * 2, **more
    }  # fmt: skip
    return write.op(op_type, [write.of(x)], attributes)


@aten("adaptive_avg_pool2d.default")
def _mean_pool(write: Writer, x: Node, size: Any) -> ir.Value:
    if [int(n) for n in size] != [1, 1]:
        raise Unknown("an adaptive pool")
    return write.op("ReduceMean", [write.of(x), write.constant([-1, -2])], {"keepdims": 1})


@aten("scaled_dot_product_attention.default")
def _attention(
    write: Writer, q: Node, k: Node, v: Node, mask: Node | None, dropout: float, causal: bool, scale: Any, grouped: bool
) -> ir.Value:
    """Query and key each take half of the scale, as torch computes it."""
    dtype = meta(q).dtype
    if dropout or grouped or dtype not in (torch.float32, torch.float64):
        raise Unknown("attention of another kind")
    shape, rank = meta(k).shape, meta(k).ndim
    half = write.constant(math.sqrt(1 / math.sqrt(meta(q).shape[-1]) if scale is None else scale), dtype)
    turned = write.op("Transpose", [write.of(k)], {"perm": [*range(rank - 2), rank - 1, rank - 2]})
    found = write.op("MatMul", [write.op("Mul", [write.of(q), half]), write.op("Mul", [turned, half])])
    low = torch.finfo(dtype).min
    hides = False
    if causal:
        length = meta(q).shape[-2]
        upper = np.triu(np.full((length, shape[-2]), low), 1)
        found = write.op("Add", [found, write.constant(upper, dtype)])
    elif mask is not None:
        added = write.of(mask)
        if meta(mask).dtype == torch.bool:
            added = write.op("Where", [added, write.constant(0.0, dtype), write.constant(low, dtype)])
            hides = True
        elif meta(mask).dtype != dtype:
            raise Unknown("a mask of another type")
        found = write.op("Add", [found, added])
    weights = write.op("Softmax", [found], {"axis": -1})
    if hides:
        weights = write.op("Where", [write.op("IsNaN", [weights]), write.constant(0.0, dtype), weights])
    return write.op("MatMul", [weights, write.of(v)])
