"""``lamp``: the share of a unit's weights in what would be left of its group when all smaller ones are gone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from graphprune.passes.base import Score, Scores, State
from graphprune.weights import weight_norms


@dataclass(frozen=True)
class Lamp(Score):
    """Squared weights of a unit as a share of those of all units of its group that are not smaller.

    With the units of a group sorted by w_u^2, ascending: score_u = w_u^2 / sum_{v >= u} w_v^2. The largest of every
    group has 1, so that one threshold over all groups never empties one. w_u^2 is the sum of squares over each
    weight slice that dies with a unit, mean over the slices (that of ``l2``). Source: Lee et al., "Layer-Adaptive
    Sparsity for the Magnitude-based Pruning", ICLR 2021, from single weights to units. Unit: share of the group's
    L2 energy left. Needs weights only; cost: one pass over the weights and a sort.

    Equal units keep their order, the first goes first. Where all weights of what is left are 0, the score is 0.
    """

    name: ClassVar[str] = "lamp"
    unit: ClassVar[str] = "share of what is left"
    normalized: ClassVar[bool] = True

    def score(self, state: State) -> Scores:
        squares = weight_norms(state, 2)
        scores = np.zeros(len(squares))
        for group in state.need_coupling().groups:
            scores[group.units] = lamp(squares[group.units])
        return scores


def lamp(squares: NDArray[np.float64]) -> NDArray[np.float64]:
    """The scores of one group, float64[n], from the units' squared weights, float64[n]."""
    order = np.argsort(squares, kind="stable")
    left = np.cumsum(squares[order][::-1])[::-1]
    scores = np.zeros(len(squares))
    np.divide(squares[order], left, out=left, where=left > 0)
    scores[order] = left
    return scores
