"""``l2``: how large the weights are that live and die with a unit, squared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphprune.passes.base import Score, Scores, State
from graphprune.weights import weight_norms


@dataclass(frozen=True)
class L2(Score):
    """Sum of w^2 over each weight slice that dies with a unit, mean over the slices.

    Unit: squared L2. Needs weights only; cost: one pass over the weights. Source: as ``l1``, with p = 2.
    """

    name: ClassVar[str] = "l2"
    unit: ClassVar[str] = "L2^2"

    def score(self, state: State) -> Scores:
        return weight_norms(state, 2)
