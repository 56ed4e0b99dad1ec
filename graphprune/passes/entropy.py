"""``entropy``: how evenly a feature map's deviations from its mean are spread over the map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from graphprune.featuremaps import Reading, as_maps, layer_outputs, look, tells_apart, unit_means
from graphprune.passes.base import Needs, Score, Scores, State
from graphprune.weights import fill_missing

#: Maps of this many values at most are held at a time.
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Entropy(Score):
    """Entropy of the spatial softmax of each feature map; low entropy is kept.

    For every calibration image and channel map x (H x W): z = (x - mean(x))^2, p = softmax over the map of
    z, H = -sum p ln p in nats, float64, 0 <= H <= ln HW. e is the sum of H over the images; per layer
    e' = (e - min) / (max - min), and one threshold over all layers. The score is 1 - e'.

    Read at the output of the normalisation that follows a layer, before the activation (where it was folded
    away: at the layer itself). Source: Shao et al., "Filter Pruning via Measuring Feature Map Information",
    Sensors 21(19):6601, 2021. Unit: share of the layer's entropy range. Cost: one pass over the data.

    Where a map has one position (HW = 1), H is 0 for every channel, and where a layer's maps are all
    constant, e' is 0/0: units read nowhere else fall back to ``l1``, min-max scaled, and one line says so.

    Parameters
    ----------
    variant
        ``squared``: as above. ``raw``: the softmax of x itself.
    reading
        ``bn``: after the normalisation. ``conv``: at the layer's own output. ``act``: after the activation.
    normalize
        ``minmax``, or ``mean-var``: (e - mean) / var per layer.
    keep
        ``low``, or ``high`` for the opposite sign.
    """

    name: ClassVar[str] = "entropy"
    unit: ClassVar[str] = "1 - normalised nats"
    needs: ClassVar[Needs] = "data"
    normalized: ClassVar[bool] = True
    variant: Literal["squared", "raw"] = "squared"
    reading: Reading = "bn"
    normalize: Literal["minmax", "mean-var"] = "minmax"
    keep: Literal["low", "high"] = "low"

    def score(self, state: State) -> Scores:
        coupling = state.need_coupling()
        places = layer_outputs(state, self.reading)
        sums = [np.zeros(len(coupling.rows(value, axis))) for value, axis in places]

        def visit(number: int, values: np.ndarray[Any, Any]) -> None:
            sums[number] += map_entropy(values, places[number][1], self.variant)

        look(state, self.name, places, visit)
        scaled = [(place, self._scaled(total)) for place, total in zip(places, sums, strict=True) if _differ(total)]
        evenness, missing = unit_means(coupling, scaled)
        scores = 1 - evenness if self.keep == "low" else evenness
        why = "have no feature map with a spread of entropies (one position, or constant)"
        return fill_missing(state, self.name, scores, missing, why, ranged=True)

    def _scaled(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Entropies of one layer made comparable."""
        if self.normalize == "minmax":
            return np.asarray((values - values.min()) / (values.max() - values.min()))
        return np.asarray((values - values.mean()) / values.var())


def _differ(values: np.ndarray[Any, Any]) -> bool:
    """Whether the entropies of a layer differ by more than rounding leaves of equal ones."""
    return tells_apart(values) and float(values.max() - values.min()) > 1e-12


def map_entropy(values: np.ndarray[Any, Any], axis: int, variant: str = "squared") -> np.ndarray[Any, Any]:
    """Summed entropy over the images of a batch, per channel.

    Parameters
    ----------
    values
        Feature maps, any float dtype; axis 0 counts images unless it is the channel axis.
    axis
        The channel axis. All axes but it and axis 0 are the map.

    Returns
    -------
    float64[channels]
        Nats.
    """
    maps = as_maps(values, axis)
    total = np.zeros(maps.shape[1])
    step = max(1, _BLOCK // max(1, maps.shape[2] * maps.shape[0]))
    for start in range(0, maps.shape[1], step):
        x = maps[:, start : start + step].astype(np.float64)
        z = np.square(x - x.mean(axis=2, keepdims=True)) if variant == "squared" else x
        z -= z.max(axis=2, keepdims=True)
        weight = np.exp(z)
        mass = weight.sum(axis=2)
        # -sum p ln p with p = w / mass and ln w = z.
        total[start : start + step] = (np.log(mass) - (weight * z).sum(axis=2) / mass).sum(axis=0)
    return total
