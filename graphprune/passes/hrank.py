"""``hrank``: how many independent rows a unit's feature map has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from graphprune.featuremaps import Reading, layer_outputs, look, unit_means
from graphprune.lstsq import one_thread
from graphprune.passes.base import Needs, Score, Scores, State
from graphprune.weights import fill_missing


@dataclass(frozen=True)
class HRank(Score):
    """Mean over the images of the rank of a unit's feature map as an H x W matrix; low rank goes first.

    The rank counts singular values above eps * max(H, W) * the largest, in float32. Mean over a unit's channels,
    then over the layers that make it. A map of three axes or more is taken as its first axis by the others. Source:
    Lin et al., "HRank: Filter Pruning using High-Rank Feature Map", CVPR 2020. Unit: rank. Cost: one pass over the
    data and a singular value decomposition of every map.

    Many channels have full rank: equal ones go in their order. Maps of fewer than two axes (tokens, vectors) and
    layers whose ranks are all the same (HW = 1 among them) say nothing: units read nowhere else fall back to
    ``l1``, and one line says so.

    Parameters
    ----------
    reading
        ``act``: behind the activation. ``bn``: before it, behind the normalisation. ``conv``: at the layer's own output.
    """

    name: ClassVar[str] = "hrank"
    unit: ClassVar[str] = "rank"
    needs: ClassVar[Needs] = "data"
    reading: Reading = "act"

    def score(self, state: State) -> Scores:
        coupling, facts = state.need_coupling(), state.need_facts()
        places = [place for place in layer_outputs(state, self.reading) if (facts.rank(place[0]) or 0) >= 4]
        sums = [np.zeros(len(coupling.rows(value, axis))) for value, axis in places]
        images = np.zeros(len(places))

        def visit(number: int, values: NDArray[Any]) -> None:
            sums[number] += map_ranks(values, places[number][1])
            images[number] += len(values)

        with one_thread():  # many small matrices: threads would only wait for each other
            look(state, self.name, places, visit)
        means = (total / max(count, 1) for total, count in zip(sums, images, strict=True))
        scores, missing = unit_means(coupling, zip(places, means, strict=True))
        return fill_missing(state, self.name, scores, missing, "have no feature map whose rank tells them apart")


def map_ranks(values: NDArray[Any], axis: int) -> NDArray[np.float64]:
    """Ranks of the maps of every channel, summed over the images.

    Parameters
    ----------
    values
        Rank 4 or more, any float dtype; axis 0 counts images.
    axis
        The channel axis, not 0.

    Returns
    -------
    float64[channels]
    """
    maps = np.moveaxis(values, axis, 1).astype(np.float32)
    maps = maps.reshape(*maps.shape[:3], -1)
    return np.asarray(np.linalg.matrix_rank(maps).sum(axis=0), np.float64)
