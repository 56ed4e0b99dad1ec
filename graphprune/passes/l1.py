"""``l1``: how large the weights are that live and die with a unit, by absolute value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphprune.passes.base import Score, Scores, State
from graphprune.weights import weight_norms


@dataclass(frozen=True)
class L1(Score):
    """Sum of abs(w) over each weight slice that dies with a unit, mean over the slices.

    Unit: L1. Needs weights only; cost: one pass over the weights. Source: Li et al., "Pruning Filters for
    Efficient ConvNets", ICLR 2017, extended to coupled slices.
    """

    name: ClassVar[str] = "l1"
    unit: ClassVar[str] = "L1"

    def score(self, state: State) -> Scores:
        return weight_norms(state, 1)
