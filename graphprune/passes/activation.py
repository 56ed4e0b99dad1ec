"""``activation``: how large what a unit's consumers see of it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from graphprune.featuremaps import as_maps, layer_inputs, look, unit_means
from graphprune.passes.base import Needs, Score, Scores, State
from graphprune.weights import fill_missing


@dataclass(frozen=True)
class Activation(Score):
    """Mean size of a unit's activation over images and positions, as its consumers see it.

    Read at the input of every weighted layer; mean over a unit's channels, then over the layers that read it, each
    divided by its mean first. Source: Molchanov et al., "Pruning Convolutional Neural Networks for Resource
    Efficient Inference", ICLR 2017 (activation criteria). Unit: share of the layer's mean. Cost: one pass over the
    data.

    Units that no weighted layer reads, or only layers whose inputs are all of one size, fall back to ``l1``; one
    line says so.

    Parameters
    ----------
    norm
        ``l1``: mean of abs(a). ``l2``: root of the mean of a^2.
    """

    name: ClassVar[str] = "activation"
    unit: ClassVar[str] = "share of the layer's mean"
    needs: ClassVar[Needs] = "data"
    norm: Literal["l1", "l2"] = "l1"

    def score(self, state: State) -> Scores:
        coupling = state.need_coupling()
        places = layer_inputs(state)
        sums = [np.zeros(len(coupling.rows(value, axis))) for value, axis in places]
        counts = np.zeros(len(places))

        def visit(number: int, values: NDArray[Any]) -> None:
            maps = as_maps(values, places[number][1]).astype(np.float64)
            sums[number] += (np.abs(maps) if self.norm == "l1" else np.square(maps)).sum(axis=(0, 2))
            counts[number] += maps.shape[0] * maps.shape[2]

        look(state, self.name, places, visit)
        means = [total / max(count, 1) for total, count in zip(sums, counts, strict=True)]
        if self.norm == "l2":
            means = [np.sqrt(mean) for mean in means]
        scores, missing = unit_means(coupling, zip(places, means, strict=True), relative=True)
        return fill_missing(state, self.name, scores, missing, "have no activation that tells them apart")
