"""``group-taylor``: how much the loss changes, to first order, when everything of a unit is zeroed at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphprune.gradients import GradientScore
from graphprune.passes.base import Scores, State


@dataclass(frozen=True)
class GroupTaylor(GradientScore):
    """abs(sum of w g) over all trainable numbers that die with a unit together, mean over samples.

    Weights of what makes a unit and of what reads it, biases, scales and shifts: the parts may cancel, as they do
    when the unit leaves. g is the gradient of one sample's loss; without labels, of a target drawn from the network's own
    outputs (see docs/criteria.md). Unit: loss. Cost: a forward and a backward pass for each sample, in torch. Source:
    Molchanov et al., CVPR 2019, over the coupled parameters of Fang et al., "DepGraph", CVPR 2023.

    A unit none of whose constants can be trained falls back to ``l1``; one line says so.

    Parameters
    ----------
    labels
        Take the loss from labels: subfolders of --data, or its array ``labels``.
    """

    name: ClassVar[str] = "group-taylor"

    def score(self, state: State) -> Scores:
        return self.mean(state, lambda product: product, np.abs)
