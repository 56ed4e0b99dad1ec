"""``fisher``: how much the loss changes, to second order, when the weights of a unit are zeroed (Optimal Brain Damage)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphprune.gradients import GradientScore
from graphprune.passes.base import Scores, State


@dataclass(frozen=True)
class Fisher(GradientScore):
    """1/2 sum of w^2 E[g^2] over all trainable numbers that die with a unit, g the gradient of one sample's loss.

    E[g^2] is the diagonal of the Fisher information, which stands for the Hessian. Without labels it is the network's true
    Fisher information, estimated by targets drawn from its own outputs (see docs/criteria.md); with labels the empirical one.
    Unit: loss. Cost: a forward and a backward pass for each sample, in torch. Source: LeCun et al., "Optimal Brain
    Damage", NIPS 1990; Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", 2018.

    A unit none of whose constants can be trained falls back to ``l1``; one line says so.

    Parameters
    ----------
    labels
        Take the loss from labels: subfolders of --data, or its array ``labels``.
    """

    name: ClassVar[str] = "fisher"

    def score(self, state: State) -> Scores:
        return self.mean(state, lambda product: np.square(product, dtype=np.float64), lambda sums: sums / 2)
