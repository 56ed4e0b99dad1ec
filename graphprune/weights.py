"""How large the weights are that live and die with a unit: the sums that ``l1`` and ``l2`` are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphprune.coupler import Operand
from graphprune.frontends.mapped import release_all
from graphprune.ops.masking import dequantised
from graphprune.passes.base import Scores, State, per_unit

#: Elements of a weight that are worked on at a time.
_BLOCK = 1 << 22


def slice_norms(array: np.ndarray[Any, Any], p: int) -> list[np.ndarray[Any, Any]]:
    """Sum of abs(w)^p over every slice along every axis.

    Parameters
    ----------
    array
        Weights, any float or integer dtype, any rank; read block by block.
    p
        1 or 2.

    Returns
    -------
    list of float64[n]
        One per axis.
    """
    if array.ndim == 0:
        return []
    sums = [np.zeros(n) for n in array.shape]
    step = max(1, _BLOCK // max(1, int(np.prod(array.shape[1:]))))
    for start in range(0, array.shape[0], step):
        block = np.asarray(array[start : start + step], np.float32)
        block = np.abs(block) if p == 1 else np.square(block)
        matrix = block.reshape(len(block), -1)
        sums[0][start : start + step] = matrix.sum(axis=1, dtype=np.float64)
        if array.ndim > 1:
            rest = matrix.sum(axis=0, dtype=np.float64).reshape(array.shape[1:])
            for axis in range(1, array.ndim):
                others = tuple(a for a in range(array.ndim - 1) if a != axis - 1)
                sums[axis] += rest.sum(axis=others)
    return sums


def weight_norms(state: State, p: int) -> Scores:
    """Mean over a unit's weight slices of the sum of abs(w)^p in each, float64[n_units]."""
    coupling = state.need_coupling()
    total, members = np.zeros(coupling.n_units), np.zeros(coupling.n_units)
    operands: dict[ir.Value, Operand] = {}
    for operand in coupling.operands:
        if operand.role in ("weight", "table"):
            operands.setdefault(operand.value, operand)
    for done, (value, operand) in enumerate(operands.items()):
        state.progress("reading weights", done / len(operands))
        axes = [a for a in range(len(coupling.coupler.axes.get(value) or ())) if coupling.has_units(value, a)]
        array = state.parameter(value) if axes else None
        if array is None:
            continue
        norms = slice_norms(dequantised(operand, array, state.need_facts()), p)
        release_all()
        for axis in axes:
            sums, touched = per_unit(coupling.rows(value, axis), norms[axis], coupling.n_units)
            total += sums
            members += touched
    return total / np.maximum(members, 1)
