"""``obs``: what the consumers of a unit lose when it goes and the others are fitted anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphprune.elimination import eliminate
from graphprune.lstsq import one_thread
from graphprune.passes.base import Needs, Score, Scores, State
from graphprune.weights import fill_missing


@dataclass(frozen=True)
class Obs(Score):
    """Loss of the layers that read a unit, after least squares on what is left; greedy, with updates.

    For a consumer with inputs of covariance H = X X', removing the inputs S costs
    sum_rows w_S [(H^-1)_SS]^-1 w_S' of its output's variance. Within a group, the cheapest unit goes first, the
    weights and H^-1 of the others are updated, and so on. A unit's score is what it added to the loss when it
    went, never less than what went before it. Sources: optimal brain surgeon; its structured forms ZipLM, SlimGPT, OBSPA.
    Unit: share of the consumers' variance. Cost: one pass over the data, one factorisation a layer.

    Units that no linear layer reads are scored by ``l1``, on the scale of the others; one line says so.
    """

    name: ClassVar[str] = "obs"
    unit: ClassVar[str] = "share of the consumers' variance"
    needs: ClassVar[Needs] = "data"
    normalized: ClassVar[bool] = True

    def score(self, state: State) -> Scores:
        with one_thread():
            return self._score(state)

    @staticmethod
    def _score(state: State) -> Scores:
        coupling = state.need_coupling()
        statistics = state.statistics
        scores = np.full(coupling.n_units, -1.0)
        for done, group in enumerate(coupling.groups):
            state.progress("eliminating units", done / len(coupling.groups))
            parts = statistics.parts(group.units)
            if parts:
                order, costs = eliminate(parts, len(group.units))
                scores[group.units[order]] = np.maximum.accumulate(costs) + 1e-12 * np.arange(len(order))
        return fill_missing(state, Obs.name, scores, scores < 0, "are read by no linear layer")
