"""``similarity``: filters that resemble a filter that stays can go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from graphprune.filters import Family, families, largest_first
from graphprune.passes.base import Score, Scores, State
from graphprune.weights import fill_missing

Array = NDArray[Any]


@dataclass(frozen=True)
class Similarity(Score):
    """Distance of a unit's filter to the nearest filter that is kept: copies of large filters go first.

    In each group, the targets T are the units whose filters have the largest L1 norm; they stay. For every other
    unit j, d_j = min over t in T of ||F_j - F_t||_2, and small d_j go first. Distances are divided by the layer's
    mean ||F||, so that one threshold can serve all layers. Source: L. Shao, "Model Compression and Implementation
    Based on Information Measurement", thesis, 2023 (reconstructed from its abstract).

    F is what the layers that make a unit compute it from; where several do (a residual trunk), d^2 is the mean over
    the layers. A target's score is the largest d of its group plus its L1 norm (as a share of the mean), so that
    targets go last, the smallest first. Filters of zeros and equal filters have d = 0. Unit: mean filter norms.
    Needs weights only. Cost: one product of each layer's filters with themselves, n^2 d; memory n^2 for one group
    at a time.

    Units that no linear layer makes, layers of zeros alone, and groups of more than 16,384 units fall back to
    ``l1``, on the scale of the others; one line says so.

    Parameters
    ----------
    variant
        ``targets``: as above. ``greedy``: protect the largest filter, remove the one nearest to it, protect the
        largest of the rest, and so on; a unit's score is the largest distance at which one went up to it. ``closest``: of the two
        filters that are nearest to each other, the smaller by L1 goes; its score is that distance.
    targets
        |T| as a share of the units, at least one and fewer than the asked ``--rate`` leaves.
    """

    name: ClassVar[str] = "similarity"
    unit: ClassVar[str] = "mean filter norms"
    normalized: ClassVar[bool] = True
    variant: Literal["targets", "greedy", "closest"] = "targets"
    targets: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.targets < 1:
            raise ValueError(f"targets={self.targets:g} is outside (0, 1): it is the share of the units that are targets")

    def score(self, state: State) -> Scores:
        scores = np.full(state.need_coupling().n_units, -1.0)
        for family in families(state, self.name):
            scores[family.group.units] = self._of(family, state.options.rate)
        return fill_missing(state, self.name, scores, scores < 0, "have no filters to compare")

    def _of(self, family: Family, rate: float | None) -> Array:
        l1 = family.l1
        distances = family.distances()
        if self.variant == "greedy":
            return greedy(distances, l1)
        if self.variant == "closest":
            return closest(distances, l1)
        n = len(l1)
        room = n if rate is None else int(np.floor((1 - rate) * n + 1e-9)) - 1
        return nearest_target(distances, l1, max(1, min(int(self.targets * n + 1e-9), room)))


def nearest_target(distances: Array, l1: Array, count: int) -> Array:
    """Scores by the distance to the nearest of the ``count`` largest filters, float64[n].

    Parameters
    ----------
    distances
        float64[n, n].
    l1
        float64[n], norms as a share of their mean.
    """
    targets = largest_first(l1)[:count]
    scores = distances[:, targets].min(axis=1)
    scores[targets] = scores.max() + l1[targets]
    return np.asarray(scores)


def greedy(distances: Array, l1: Array) -> Array:
    """Scores by turns: the largest filter left is protected, the one nearest to it goes."""
    n = len(l1)
    free = np.ones(n, np.bool_)
    scores = np.zeros(n)
    protected: list[int] = []
    reached, turn = 0.0, 0
    for largest in largest_first(l1):
        if not free[largest]:
            continue
        free[largest] = False
        protected.append(largest)
        if free.any():
            near = int(np.where(free, distances[largest], np.inf).argmin())
            reached = max(reached, float(distances[largest, near]))
            # Turns at one distance keep their order.
            scores[near], free[near] = reached + 1e-12 * turn, False
            turn += 1
    scores[protected] = scores.max() + l1[protected]
    return scores


def closest(distances: Array, l1: Array) -> Array:
    """Scores by turns: of the two nearest filters the smaller goes. ``distances`` is worked on in place."""
    n = len(l1)
    scores = np.zeros(n)
    np.fill_diagonal(distances, np.inf)
    near = distances.argmin(axis=1)
    far = distances[np.arange(n), near]
    for turn in range(n - 1):
        i = int(far.argmin())
        j = int(near[i])
        gone = i if (l1[i], j) < (l1[j], i) else j  # the smaller; of equal ones the later
        scores[gone] = far[i] + 1e-12 * turn
        distances[gone], distances[:, gone], far[gone] = np.inf, np.inf, np.inf
        for other in np.flatnonzero((near == gone) & np.isfinite(far)):
            near[other] = distances[other].argmin()
            far[other] = distances[other, near[other]]
        last = i + j - gone
    if n > 1:
        scores[last] = scores.max() + l1[last]
    return scores
