"""How large the weights are that live and die with a unit: what ``l1`` and ``l2`` are made of, and every fallback to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.coupler import Operand
from graphprune.frontends.mapped import release_all
from graphprune.ops.masking import dequantised
from graphprune.passes.base import Scores, State, per_unit

#: Elements of a weight that are worked on at a time: they stay in the cache, and sums of so few lose nothing in float32.
_BLOCK = 1 << 17


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
    # As it lies in memory: a transposed view is read along its rows too.
    order = sorted(range(array.ndim), key=lambda axis: -array.strides[axis])
    array = array.transpose(order)
    sums: list[np.ndarray[Any, Any]] = [np.zeros(n) for n in array.shape]
    step = max(1, _BLOCK // max(1, int(np.prod(array.shape[1:]))))
    rest = np.zeros(array[0].size if len(array) else 0)
    for start in range(0, array.shape[0], step):
        block = np.asarray(array[start : start + step], np.float32)
        matrix = (np.abs(block) if p == 1 else np.square(block)).reshape(len(block), -1)
        sums[0][start : start + step] = matrix.sum(axis=1, dtype=_wide(matrix))
        rest += matrix.sum(axis=0, dtype=_wide(matrix))
    if array.ndim > 1 and len(array):
        shaped = rest.reshape(array.shape[1:])
        for axis in range(1, array.ndim):
            sums[axis] += shaped.sum(axis=tuple(a for a in range(array.ndim - 1) if a != axis - 1))
    return [sums[order.index(axis)] for axis in range(array.ndim)]


def _wide(matrix: np.ndarray[Any, Any]) -> type[np.floating[Any]]:
    """What a block is summed in: sums of huge numbers overflow float32, and a conversion costs more than the sum."""
    return np.float32 if matrix.size and float(matrix.max()) < 1e30 else np.float64


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


def fill_missing(
    state: State, name: str, scores: Scores, missing: NDArray[np.bool_], why: str, *, ranged: bool = False, p: int = 1
) -> Scores:
    """Score the units that a criterion has nothing to say about by the norm of their weights, on the scale of the others.

    Within a group, the norms of those units are divided by their mean and multiplied by the mean score of the group's other
    units, or by the median of all scores where the whole group is missing.

    Parameters
    ----------
    scores
        float64[n_units]; changed in place.
    missing
        bool[n_units].
    why
        The rest of the note ``NAME: 3 of 20 units ...: scored by l1 instead``.
    ranged
        For scores that lie in 0..1: the norms are min-max scaled within the group, 0.5 where they are all the same.
    p
        1 or 2: by ``l1`` or ``l2``.

    Returns
    -------
    float64[n_units]
        ``scores``.
    """
    if not missing.any():
        return scores
    norms = weight_norms(state, p)
    known = scores[~missing]
    middle = float(np.median(known)) if len(known) else 1.0
    for group in state.need_coupling().groups:
        units = group.units[missing[group.units]]
        if not len(units):
            continue
        low, high, mean = norms[units].min(), norms[units].max(), norms[units].mean()
        if ranged:
            scores[units] = (norms[units] - low) / (high - low) if high > low else 0.5
        else:
            others = scores[group.units[~missing[group.units]]]
            level = float(others.mean()) if len(others) else middle
            scores[units] = norms[units] * (level / mean if mean > 0 else 1.0)
    state.note(f"{name}: {int(missing.sum())} of {len(scores)} units {why}: scored by l{p} instead")
    return scores
