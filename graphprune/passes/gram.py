"""``gram``: how much of a unit's activation the others of its group already express."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphprune.elimination import Statistics, gram_of, pivoted
from graphprune.lstsq import one_thread
from graphprune.passes.base import Needs, Score, Scores, State
from graphprune.weights import fill_missing


@dataclass(frozen=True)
class Gram(Score):
    """Variance of a unit's activation that the units kept before it do not express: pivoted Cholesky.

    The centred covariance of what a group's consumers see of each unit, summed over consumers, each with a trace of 1.
    The unit of largest variance is kept first; then, again and again, the one of which the units kept so far leave
    most unexplained. That remainder is the score. Source: interpolative decomposition of activations. Unit:
    share of the group's variance. Cost: one pass over the data, one pivoted Cholesky a group.

    Units that no linear layer reads are scored by ``l1``, on the scale of the others; one line says so.
    """

    name: ClassVar[str] = "gram"
    unit: ClassVar[str] = "share of the group's variance"
    needs: ClassVar[Needs] = "data"
    normalized: ClassVar[bool] = True

    def score(self, state: State) -> Scores:
        coupling = state.need_coupling()
        scores = np.full(coupling.n_units, -1.0)
        statistics: Statistics = state.statistics
        with one_thread():
            for group in coupling.groups:
                gram = gram_of(statistics, group.units)
                if gram is not None:
                    order, left = pivoted(gram)
                    # Ties at the end, where all is explained, keep the order in which they were picked.
                    scores[group.units[order]] = left + 1e-12 * np.arange(len(order), 0, -1)
        return fill_missing(state, self.name, scores, scores < 0, "are read by no linear layer")
