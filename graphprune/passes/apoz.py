"""``apoz``: how often a unit is not zero behind its activation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from graphprune.featuremaps import as_maps, layer_outputs, look, unit_means
from graphprune.passes.base import Needs, Score, Scores, State
from graphprune.weights import fill_missing


@dataclass(frozen=True)
class Apoz(Score):
    """1 - the share of zeros in a unit's maps behind the activation (average percentage of zeros); what is mostly zero goes.

    Over images and positions; mean over a unit's channels, then over the layers that make it. Read behind the
    activation that follows a layer, past its normalisation and a residual addition. Source: Hu et al., "Network
    Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep Architectures", 2016. Unit: share of the
    values. Cost: one pass over the data.

    Layers behind which all channels are zero equally often (GELU, SiLU and no activation: never) say nothing; units
    read nowhere else fall back to ``l1``, on the scale of the others, and one line says so.
    """

    name: ClassVar[str] = "apoz"
    unit: ClassVar[str] = "share of values that are not 0"
    needs: ClassVar[Needs] = "data"
    normalized: ClassVar[bool] = True

    def score(self, state: State) -> Scores:
        coupling = state.need_coupling()
        places = layer_outputs(state, "act")
        alive = [np.zeros(len(coupling.rows(value, axis))) for value, axis in places]
        counts = np.zeros(len(places))

        def visit(number: int, values: NDArray[Any]) -> None:
            maps = as_maps(values, places[number][1])
            alive[number] += np.count_nonzero(maps, axis=(0, 2))
            counts[number] += maps.shape[0] * maps.shape[2]

        look(state, self.name, places, visit)
        shares = (one / max(count, 1) for one, count in zip(alive, counts, strict=True))
        scores, missing = unit_means(coupling, zip(places, shares, strict=True))
        return fill_missing(state, self.name, scores, missing, "have no activation with zeros that tells them apart")
