"""``entropy-luo``: how evenly a unit's mean activation is spread over its range, image by image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from graphprune.featuremaps import Reading, as_maps, layer_outputs, look, unit_means
from graphprune.passes.base import Needs, Score, Scores, State
from graphprune.weights import fill_missing

#: A range below this share of the largest value is rounding: the channel is constant.
_CONSTANT = 1e-6


@dataclass(frozen=True)
class EntropyLuo(Score):
    """Entropy of the histogram, over the images, of each map's mean; low entropy goes first.

    Every image gives each channel one number, the global average of its map. These fall into ``bins`` bins of equal
    width between the channel's smallest and largest; p is the share of the images in each bin, H = -sum p ln p in
    nats, 0 <= H <= ln(min(bins, images)). The sign is the opposite of ``entropy``, where flat maps have the largest
    entropy and go. Mean over a unit's channels, then over the layers that make it. Source: Luo & Wu, "An
    Entropy-based Pruning Method for CNN Compression", 2017. Unit: nats. Cost: one pass over the data; 256 samples
    by default, for with few images every image has a bin of its own.

    A channel whose mean never changes has H = 0. Layers in which all are the same (one image) say nothing: units
    read nowhere else fall back to ``l1``, and one line says so. Maps of one position are no special case.

    Parameters
    ----------
    bins
        Of each channel's histogram.
    reading
        ``act``: behind the activation. ``bn``: before it, behind the normalisation. ``conv``: at the layer's own output.
    """

    name: ClassVar[str] = "entropy-luo"
    unit: ClassVar[str] = "nats"
    needs: ClassVar[Needs] = "data"
    bins: int = 100
    reading: Reading = "act"

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise ValueError(f"bins={self.bins} must be 2 or more")

    def score(self, state: State) -> Scores:
        places = layer_outputs(state, self.reading)
        means: list[list[NDArray[np.float64]]] = [[] for _ in places]

        def visit(number: int, values: NDArray[Any]) -> None:
            means[number].append(as_maps(values, places[number][1]).mean(axis=2, dtype=np.float64))

        look(state, self.name, places, visit)
        entropies = (histogram_entropy(np.concatenate(one), self.bins) for one in means)
        scores, missing = unit_means(state.need_coupling(), zip(places, entropies, strict=True))
        return fill_missing(state, self.name, scores, missing, "have no histogram that tells them apart (one image, or constant)")


def histogram_entropy(values: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """Entropy in nats of each column's histogram between its own smallest and largest value.

    Parameters
    ----------
    values
        float64[images, channels].

    Returns
    -------
    float64[channels]
    """
    images, channels = values.shape
    low, width = values.min(axis=0), np.ptp(values, axis=0)
    constant = width <= _CONSTANT * np.abs(values).max(axis=0)
    place = np.minimum((values - low) / np.where(constant, 1, width) * bins, bins - 1).astype(np.int64)
    place[:, constant] = 0
    counts = np.bincount((place + bins * np.arange(channels)).reshape(-1), minlength=bins * channels)
    share = counts.reshape(channels, bins) / images
    return np.asarray(-(share * np.log(np.where(share > 0, share, 1))).sum(axis=1) + 0.0)
