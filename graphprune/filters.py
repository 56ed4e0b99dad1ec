"""The filters of a unit: what the layers that make it compute it from, as one vector, and how far these lie apart.

A unit may be made by several layers (a residual trunk) and own several outputs of each (a head). In each layer its filter
is all of its output rows in order; the vector of a unit is the filters of all layers side by side, each layer divided by
the mean norm of its filters and by the root of the number of layers, so that a layer of large weights does not drown the
others and distances of different groups can be compared. No such vector is ever held: Gram matrices add up over layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.coupler import Operand
from graphprune.coupling import Group
from graphprune.frontends.mapped import release_all
from graphprune.ops.linear_form import LinearForm, linear_form
from graphprune.passes.base import State

Array = NDArray[Any]

#: Wider groups get no distances: their matrix would take more than 2 GB.
LARGEST = 16384
#: Elements of a layer's filters that are multiplied at a time.
_BLOCK = 1 << 24


@dataclass
class Family:
    """The filters of the units of one group.

    Attributes
    ----------
    gram
        float64[n, n], inner products between the vectors of the group's units.
    l1
        float64[n], sum of abs(w) over a unit's filters, each layer divided by its mean; mean over layers.
    """

    group: Group
    gram: Array
    l1: Array

    def distances(self) -> Array:
        """Euclidean distance between any two units, float64[n, n]; takes the place of ``gram``, which is gone after."""
        squares = self.gram.diagonal().copy()
        d = self.gram
        d *= -2
        d += squares[:, None]
        d += squares
        np.maximum(d, 0, out=d)
        np.sqrt(d, out=d)
        np.fill_diagonal(d, 0)
        return d


def families(state: State, name: str) -> Iterator[Family]:
    """The filters of every group that linear layers make, a group at a time.

    Parameters
    ----------
    name
        Of the criterion, for the progress bar and notes.
    """
    coupling = state.need_coupling()
    makers: dict[int, list[tuple[Operand, LinearForm, NDArray[np.int64]]]] = {}
    for operand in coupling.operands:
        form = linear_form(operand.node) if operand.role == "weight" else None
        shape = state.need_facts().shape(operand.node.outputs[0])
        if form is None or form.w != operand.index or shape is None:
            continue
        axis = form.out_axis(len(shape))
        if coupling.has_units(operand.node.outputs[0], axis):
            rows = coupling.rows(operand.node.outputs[0], axis)
            for number in np.unique(coupling.group_of[rows[rows >= 0]]).tolist():
                makers.setdefault(number, []).append((operand, form, rows))
    for done, (number, layers) in enumerate(sorted(makers.items())):
        state.progress(name, done / len(makers))
        group = coupling.groups[number]
        n = len(group.units)
        if n > LARGEST:
            state.note(f"{name}: a group of {n:,} units is too wide for distances (at most {LARGEST:,})")
            continue
        gram, l1, count = np.zeros((n, n)), np.zeros(n), 0
        for operand, form, rows in layers:
            vectors = _vectors(state, operand, form, rows, group)
            if vectors is not None:
                count += _add(gram, l1, vectors)
        if count:
            yield Family(group, gram / count, l1 / count)


def _vectors(state: State, operand: Operand, form: LinearForm, rows: NDArray[np.int64], group: Group) -> Array | None:
    """One layer's filters of a group's units, float[n, m * d]; None where the weight cannot be read as a matrix.

    Units of fewer outputs than others are filled up with zeros.
    """
    array = state.parameter(operand.value)
    if array is None or array.ndim < 2 or array.dtype.kind not in "fV":
        return None
    matrix = form.matrix(np.asarray(array, np.float32))
    matrix = matrix.reshape(-1, matrix.shape[2])
    if len(matrix) != len(rows):
        return None
    units, outputs = _owned(rows, group.units)
    counts = np.bincount(units, minlength=len(group.units))
    slots = np.arange(len(units)) - np.repeat(np.cumsum(counts) - counts, counts)
    vectors = np.zeros((len(group.units), int(counts.max()), matrix.shape[1]), np.float32)
    vectors[units, slots] = matrix[outputs]
    release_all()
    return vectors.reshape(len(vectors), -1)


def _owned(rows: NDArray[np.int64], units: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(position of a unit in ``units``, index it kills) pairs, sorted, each once."""
    position = np.full(max(int(rows.max()), int(units.max())) + 2, -1)  # the last entry is what -1 finds
    position[units] = np.arange(len(units))
    index, column = np.nonzero(position[rows] >= 0)
    pairs = np.unique(np.stack([position[rows[index, column]], index]), axis=1)
    return pairs[0], pairs[1]


def _add(gram: Array, l1: Array, vectors: Array) -> int:
    """Add one layer's inner products and L1 norms, relative to their means; 1, or 0 where all its weights are 0."""
    step = max(1, _BLOCK // len(vectors))
    own, sizes = np.zeros_like(gram), np.zeros(len(vectors))
    for start in range(0, vectors.shape[1], step):
        block = vectors[:, start : start + step].astype(np.float64)
        own += block @ block.T
        sizes += np.abs(block).sum(axis=1)
    mean = float(np.sqrt(own.diagonal()).mean())
    if mean == 0 or not np.isfinite(mean):
        return 0
    gram += own / mean**2
    l1 += sizes / sizes.mean()
    return 1


def largest_first(l1: Array) -> Sequence[int]:
    """Positions by L1 norm, the largest first; equal ones in order."""
    return [int(i) for i in np.argsort(-l1, kind="stable")]
