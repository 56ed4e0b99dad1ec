"""``bn-scale``: the scale that a normalisation gives a channel (Network Slimming)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphprune.passes.base import Score, Scores, State, per_unit
from graphprune.weights import fill_missing


@dataclass(frozen=True)
class BnScale(Score):
    """abs(gamma) of the normalisations a unit passes through, mean over them.

    Unit: abs(gamma). Needs weights only. Source: Liu et al., "Learning Efficient Convolutional Networks
    through Network Slimming", ICCV 2017. Where BatchNormalization was folded into the convolutions there is
    no gamma left to read: such groups fall back to the norm of the weight slices, scaled to the median
    abs(gamma) of the model, and one line says so.

    Parameters
    ----------
    fallback
        ``l1`` or ``l2``: what stands in where a unit has no normalisation scale.
    """

    name: ClassVar[str] = "bn-scale"
    unit: ClassVar[str] = "abs(gamma)"
    fallback: str = "l1"

    def score(self, state: State) -> Scores:
        coupling = state.need_coupling()
        n = coupling.n_units
        total, members = np.zeros(n), np.zeros(n)
        for operand in coupling.operands:
            if operand.role != "scale":
                continue
            array = state.parameter(operand.value)
            if array is None:
                continue
            for axis in range(array.ndim):
                if coupling.has_units(operand.value, axis):
                    others = tuple(a for a in range(array.ndim) if a != axis)
                    sizes = np.abs(np.asarray(array, np.float64)).mean(axis=others)
                    rows = coupling.rows(operand.value, axis)
                    sums, touched = per_unit(rows, sizes, n)
                    counts, _ = per_unit(rows, np.ones(len(rows)), n)
                    total += sums / np.maximum(counts, 1)
                    members += touched
        scores = total / np.maximum(members, 1)
        why = "have no normalisation scale (BatchNormalization folded away, or none there)"
        return fill_missing(state, self.name, scores, members == 0, why, p=2 if self.fallback == "l2" else 1)
