"""``random``: the baseline every criterion must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphprune.passes.base import Score, Scores, State


@dataclass(frozen=True)
class Random(Score):
    """A number drawn from U(0, 1) for every unit, by ``--seed``.

    Unit: none. Needs nothing. Fair comparisons run it with several seeds (Li et al., "Revisiting Random
    Channel Pruning", CVPR 2022).

    Parameters
    ----------
    seed
        Overrides the run's ``--seed``.
    """

    name: ClassVar[str] = "random"
    unit: ClassVar[str] = "U(0,1)"
    normalized: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    seed: int | None = None

    def score(self, state: State) -> Scores:
        seed = state.options.seed if self.seed is None else self.seed
        return np.random.default_rng(seed).random(state.need_coupling().n_units)
