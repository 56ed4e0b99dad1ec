"""2:4 sparsity: which four weights share two places, as the sparse tensor cores of Ampere and later read them.

Of every four weights that follow each other along the input channels, at the same output and the same tap of the kernel, at
most two are not zero. Source: "Structured sparsity" in NVIDIA's TensorRT guide (a weight [K, C, R, S] with C a multiple of 4).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.ops.linear_form import ConvForm, LinearForm, ProductForm, linear_form

#: Compute capability times ten from which processors have sparse tensor cores.
SPARSE_SM = 80


def fours(form: LinearForm, shape: Sequence[int]) -> NDArray[np.int64] | None:
    """Columns of a layer's matrix that go together, int64[d / 4, 4]; None where there is no such layout.

    Parameters
    ----------
    shape
        Of the weight.
    """
    if isinstance(form, ConvForm) and form.groups() == 1:
        channels, taps = int(shape[1]), math.prod(shape[2:])
    elif isinstance(form, ProductForm) and not form.left and len(shape) == 2:
        channels, taps = int(shape[1] if form.transposed else shape[0]), 1
    else:
        return None
    if channels % 4:
        return None
    columns = np.arange(channels * taps).reshape(channels // 4, 4, taps)
    return columns.transpose(0, 2, 1).reshape(-1, 4)


def sparse_layers(nodes: Iterable[ir.Node]) -> list[ir.Node]:
    """Layers whose weight, as it is or dequantised, is 2:4 sparse."""
    return [node for node in nodes if _is_sparse(node)]


def _is_sparse(node: ir.Node) -> bool:
    form = linear_form(node)
    stored = None if form is None else _stored(node.inputs[form.w])
    if form is None or stored is None:
        return False
    columns = fours(form, stored.shape)
    if columns is None:
        return False
    present = form.matrix((stored != 0).astype(np.float32)) != 0
    return bool((present[0][:, columns].sum(2) <= 2).all())


def _stored(value: ir.Value | None) -> NDArray[Any] | None:
    """Contents of a weight, or the integers that stand for it; those of a zero point other than 0 have no zeros."""
    if value is not None and value.const_value is None:
        node = value.producer()
        if node is None or node.op_type != "DequantizeLinear":
            return None
        zero = node.inputs[2].const_value if len(node.inputs) > 2 and node.inputs[2] is not None else None
        if zero is not None and zero.numpy().any():
            return None
        value = node.inputs[0]
    return None if value is None or value.const_value is None else np.asarray(value.const_value.numpy())
