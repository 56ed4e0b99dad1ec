"""``fpgm``: how far a unit's filter lies from all others of its group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphprune.filters import families
from graphprune.passes.base import Score, Scores, State
from graphprune.weights import fill_missing


@dataclass(frozen=True)
class Fpgm(Score):
    """Sum of the distances from a unit's filter to all others of its group: what lies near the geometric median goes first.

    score_i = sum_j ||F_i - F_j||_2. F is what the layers that make a unit compute it from, each layer divided by
    its mean ||F||; where several do (a residual trunk), squared distances are averaged over the layers. Source: He
    et al., "Filter Pruning via Geometric Median", CVPR 2019. Unit: mean filter norms. Needs weights only. Cost: one
    product of each layer's filters with themselves, n^2 d; memory n^2 for one group at a time.

    Units that no linear layer makes, layers of zeros alone, and groups of more than 16,384 units fall back to
    ``l1``, on the scale of the others; one line says so. Where all filters of a group are the same, all of its
    scores are 0.
    """

    name: ClassVar[str] = "fpgm"
    unit: ClassVar[str] = "mean filter norms"

    def score(self, state: State) -> Scores:
        scores = np.full(state.need_coupling().n_units, -1.0)
        for family in families(state, self.name):
            scores[family.group.units] = family.distances().sum(axis=1)
        return fill_missing(state, self.name, scores, scores < 0, "have no filters to compare")
