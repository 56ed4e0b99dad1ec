"""``spread``: a criterion of its own, as a plug-in would bring it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphprune.passes.base import Score, Scores, State, per_unit


@dataclass(frozen=True)
class Spread(Score):
    """Standard deviation of the weights of a unit's slices, mean over them: flat filters go first.

    Parameters
    ----------
    power
        Exponent of the standard deviation.
    """

    name: ClassVar[str] = "spread"
    unit: ClassVar[str] = "standard deviation"
    power: float = 1.0

    def score(self, state: State) -> Scores:
        coupling = state.need_coupling()
        total, members = np.zeros(coupling.n_units), np.zeros(coupling.n_units)
        for operand in coupling.operands:
            array = state.parameter(operand.value) if operand.role == "weight" else None
            for axis in range(0 if array is None else array.ndim):
                if coupling.has_units(operand.value, axis):
                    others = tuple(a for a in range(array.ndim) if a != axis)
                    sums, touched = per_unit(
                        coupling.rows(operand.value, axis), array.std(axis=others, dtype=np.float64), coupling.n_units
                    )
                    total += sums
                    members += touched
        return (total / np.maximum(members, 1)) ** self.power
