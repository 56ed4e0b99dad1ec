"""Scatters, which TensorRT has from 8.2 on: at constant places they are a choice of rows."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphprune.backends.tensorrt.rewriting import Builder, Values, attribute, lowers
from graphprune.facts import Array


@lowers("ScatterND")
def scatter_rows(node: ir.Node, b: Builder) -> Values | None:
    """Constant indices: Concat of old and new rows, and Gather of those that stay."""
    data, places, updates = node.inputs
    assert data is not None and updates is not None
    dims, indices = b.dims(data), b.known(places)
    if dims is None or indices is None or attribute(node, "reduction", "none") != "none":
        return None
    k = indices.shape[-1]
    head, rest = dims[:k], [-1 if n is None else n for n in dims[k:]]
    if None in head or rest.count(-1) > 1:
        return None
    sizes = [int(n or 0) for n in head]
    counted = np.where(indices < 0, indices + sizes, indices)
    rows = np.ravel_multi_index(tuple(np.moveaxis(counted, -1, 0)), sizes).reshape(-1)
    return _chosen(data, updates, rows, sizes, rest, b)


@lowers("ScatterElements")
def scatter_elements_flat(node: ir.Node, b: Builder) -> Values | None:
    """Constant indices: Concat of old and new elements, and Gather of those that stay."""
    data, places, updates = node.inputs
    assert data is not None and updates is not None
    shape, indices = b.shape(data), b.known(places)
    if shape is None or indices is None or attribute(node, "reduction", "none") != "none":
        return None
    axis = int(attribute(node, "axis", 0)) % len(shape)
    where: list[Array] = list(np.indices(indices.shape))
    where[axis] = np.where(indices < 0, indices + shape[axis], indices)
    return _chosen(data, updates, np.ravel_multi_index(tuple(where), shape).reshape(-1), list(shape), [], b)


def _chosen(
    data: ir.Value, updates: ir.Value, rows: Array, sizes: list[int], rest: list[int], b: Builder
) -> ir.Value:
    """``data`` with rows replaced.

    Parameters
    ----------
    rows : int64[m]
        Number of each update's row, counted over the leading axes.
    sizes
        Of the leading axes.
    rest
        Of the axes behind them, -1 where it is dynamic.
    """
    if not len(rows):
        return b.op("Identity", data)
    n = int(np.prod(sizes))
    choice = np.arange(n)
    choice[rows] = n + np.arange(len(rows))  # of updates of one row the last counts, as in ONNX Runtime
    joined = b.op("Concat", b.reshape(data, (n, *rest)), b.reshape(updates, (len(rows), *rest)), axis=0)
    return b.reshape(b.op("Gather", joined, b.constant(choice), axis=0), (*sizes, *rest))
