"""Which units of a group to let go, and what their consumers lose when the rest is fitted anew.

For a consumer ``y = W u`` with ``H = cov(u)``, removing the inputs ``S`` and re-fitting the others costs
``tr(W_S [(H^-1)_SS]^-1 W_S')`` of the variance of ``y`` (the optimal brain surgeon's formula, over outputs).
Within one group of units only the block ``P = (H^-1)_GG`` of its own inputs matters, so that a group is
eliminated greedily on small matrices, whatever else its consumers read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from graphprune.lstsq import solve_positive
from graphprune.moments import Consumer

Array = NDArray[Any]
Ids = NDArray[np.int64]

#: Steps that the elimination of one group takes at most; wider groups lose several units a step.
STEPS = 256


@dataclass
class Part:
    """What one product of one consumer says about a group.

    Attributes
    ----------
    precision
        float64[m, m], ``(H^-1)_GG`` over the group's inputs.
    weight
        float64[o, m].
    blocks
        int64[n, b], positions in 0..m-1 of the inputs that each of the group's n units removes; m where it
        has fewer than b.
    energy
        Variance of the consumer's outputs.
    covariance
        float64[m, m], ``H_GG``.
    """

    precision: Array
    weight: Array
    blocks: Ids
    energy: float
    covariance: Array = field(default_factory=lambda: np.zeros((0, 0)))


class Statistics:
    """Consumers with their precisions, and the parts of each group."""

    def __init__(self, consumers: Sequence[Consumer]) -> None:
        self.consumers = list(consumers)
        self._precision: dict[int, Array] = {}
        self._energy = {id(c): max(c.energy(), 1e-30) for c in self.consumers}

    def precision(self, consumer: Consumer) -> Array:
        """``H^-1`` of every product, float64[g, d, d]."""
        key = id(consumer.inputs)
        if key not in self._precision:
            cov = consumer.inputs.covariance
            self._precision[key] = np.stack([solve_positive(c, np.eye(len(c))) for c in cov])
        return self._precision[key]

    def parts(self, units: Ids) -> list[Part]:
        """What every consumer says about the units of one group (ids as in the coupling)."""
        number = np.full(int(max((c.units.max() for c in self.consumers), default=0)) + 2, -1)
        inside = units[units < len(number) - 1]
        number[inside] = np.arange(len(units))[units < len(number) - 1]
        out = []
        for consumer in self.consumers:
            local = np.where(consumer.units >= 0, number[consumer.units], -1)
            for g in np.flatnonzero((local >= 0).any(axis=(1, 2))):
                out.append(self._part(consumer, int(g), local[g], len(units)))
        return out

    def _part(self, consumer: Consumer, g: int, local: Ids, n: int) -> Part:
        dims = np.flatnonzero((local >= 0).any(axis=1))
        pairs = [(u, position) for position, d in enumerate(dims.tolist()) for u in set(local[d].tolist()) if u >= 0]
        counts = np.bincount([u for u, _ in pairs], minlength=n)
        blocks = np.full((n, int(counts.max())), len(dims))
        filled = np.zeros(n, np.int64)
        for u, position in pairs:
            blocks[u, filled[u]] = position
            filled[u] += 1
        precision = self.precision(consumer)[g][np.ix_(dims, dims)]
        covariance = consumer.inputs.covariance[g][np.ix_(dims, dims)]
        return Part(precision, consumer.weight[g][:, dims], blocks, self._energy[id(consumer)], covariance)


def eliminate(parts: Sequence[Part], n: int) -> tuple[Ids, Array]:
    """Remove units one after the other, always the one that costs its consumers least.

    Returns
    -------
    order, costs
        int64[n], units in the order in which they go; float64[n], the loss each adds, as a share of its
        consumers' variance, summed over consumers.
    """
    work = [_Working(part) for part in parts]
    alive = np.ones(n, np.bool_)
    order: list[int] = []
    costs: list[float] = []
    step = max(1, -(-n // STEPS))
    while alive.any():
        ids = np.flatnonzero(alive)
        scores = np.zeros(len(ids))
        for one in work:
            scores += one.scores(ids)
        chosen = np.argsort(scores, kind="stable")[:step]
        gone = ids[chosen]
        order.extend(gone.tolist())
        costs.extend(scores[chosen].tolist())
        alive[gone] = False
        for one in work:
            one.remove(gone)
    return np.asarray(order, np.int64), np.asarray(costs)


class _Working:
    """A part while units leave it: the precision ``P``, and the weight as ``M = W'W``, which is all that losses need."""

    def __init__(self, part: Part) -> None:
        m = len(part.precision)
        # One dimension more, without weight, stands for the inputs that a unit does not have.
        self.precision = np.zeros((m + 1, m + 1))
        self.precision[:m, :m] = part.precision
        self.power = np.zeros((m + 1, m + 1))
        self.power[:m, :m] = part.weight.T @ part.weight
        self.blocks = part.blocks
        self.energy = part.energy
        self.empty = m

    def scores(self, units: Ids) -> Array:
        """Loss of removing each of some units alone now, float64[len(units)]: tr(P_BB^-1 M_BB)."""
        blocks = self.blocks[units]
        if blocks.shape[1] == 1:
            own, power = (matrix[blocks[:, 0], blocks[:, 0]] for matrix in (self.precision, self.power))
            return np.asarray(np.where(own > 0, power / np.where(own > 0, own, 1), 0) / self.energy)
        inner, power = (matrix[blocks[:, :, None], blocks[:, None, :]] for matrix in (self.precision, self.power))
        # Inputs that are gone or not there have a zero row: they must not make the block singular.
        flat = np.arange(blocks.shape[1])
        diagonal = inner[:, flat, flat]
        inner[:, flat, flat] = np.where(diagonal > 0, diagonal, 1)
        return np.asarray(np.trace(np.linalg.solve(inner, power), axis1=1, axis2=2) / self.energy)

    def remove(self, units: Ids) -> None:
        """Take units out and let the others' weights make up for them."""
        dims = np.unique(self.blocks[units])
        dims = dims[dims != self.empty]
        dims = dims[self.precision[dims, dims] > 0]
        if not len(dims):
            return
        rows = self.precision[dims]
        gain = solve_positive(rows[:, dims], rows)
        self.precision -= rows.T @ gain
        # W loses W_B G: M = W'W changes by its cross terms and the square.
        crossed = self.power[:, dims] @ gain
        self.power += gain.T @ (self.power[np.ix_(dims, dims)] @ gain) - crossed - crossed.T
        for matrix in (self.precision, self.power):
            matrix[dims] = 0
            matrix[:, dims] = 0


def losses(part: Part, order: Ids) -> Array:
    """What a consumer loses after each removal of a given order, float64[n + 1], share of its variance.

    With the inputs sorted so that what goes first stands last, one Cholesky factor ``L`` of the conditional
    covariance holds all answers: the loss of a tail is the sum over its columns of ``|(W L)_j|^2``.
    """
    n, m = len(part.blocks), len(part.precision)
    owner = np.full(m + 1, -1)
    when = np.empty(n, np.int64)
    when[order] = np.arange(n)
    # An input that several units remove goes with the first of them.
    for u in order[::-1]:
        owner[part.blocks[u]] = when[u]
    leaves = owner[:m]
    position = np.argsort(-leaves, kind="stable")
    covariance = solve_positive(part.precision, np.eye(m))[np.ix_(position, position)]
    jitter = 1e-12 * max(float(np.trace(covariance)) / m, 1e-30)
    factor = scipy.linalg.cholesky(covariance + jitter * np.eye(m), lower=True, check_finite=False)
    columns = np.square(part.weight[:, position] @ factor).sum(0) / part.energy
    by_step = np.bincount(leaves[position], weights=columns, minlength=n)
    return np.concatenate([[0.0], np.cumsum(by_step)])


def gram_of(statistics: Statistics, units: Ids) -> Array | None:
    """Covariance between the units of a group as its consumers see them, float64[n, n]; None where none does.

    Where a consumer sees a unit several times (the taps of a window), matching sights are averaged. Every consumer
    counts with a trace of 1.
    """
    total = np.zeros((len(units), len(units)))
    for part in statistics.parts(units):
        m = len(part.precision)
        # The block of H itself, not of its inverse's: what the group's inputs are, whatever else is read.
        covariance = np.zeros((m + 1, m + 1))
        covariance[:m, :m] = part.covariance
        for tap in range(part.blocks.shape[1]):
            at = part.blocks[:, tap]
            total += covariance[np.ix_(at, at)] / max(float(np.trace(part.covariance)), 1e-30)
    return total if total.any() else None


def pivoted(gram: Array) -> tuple[Ids, Array]:
    """Pivoted Cholesky of a covariance.

    Returns
    -------
    order, left
        int64[n], positions as they are picked; float64[n], what was unexplained of each when it was.
    """
    n = len(gram)
    residual = gram.diagonal().copy()
    factor = np.zeros((n, n))
    order = np.zeros(n, np.int64)
    left = np.zeros(n)
    free = np.ones(n, np.bool_)
    for step in range(n):
        pick = int(np.where(free, residual, -np.inf).argmax())
        order[step], left[step], free[pick] = pick, max(float(residual[pick]), 0.0), False
        if left[step] > 1e-12:
            column = (gram[:, pick] - factor[:, :step] @ factor[pick, :step]) / np.sqrt(left[step])
            factor[:, step] = np.where(free, column, 0)
            factor[pick, step] = np.sqrt(left[step])
            residual = np.maximum(residual - np.square(factor[:, step]), 0)
    return order, left
