"""``chip``: how much of a layer's nuclear norm goes with a unit: what the other channels cannot express."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from graphprune.featuremaps import Reading, as_maps, layer_outputs, look, tells_apart
from graphprune.lstsq import one_thread
from graphprune.passes.base import Needs, Score, Scores, State
from graphprune.weights import fill_missing

Array = NDArray[Any]
#: Elements of the matrices whose eigenvalues are taken at a time.
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Chip(Score):
    """Nuclear norm that a layer's maps lose when a unit's rows are zeroed (channel independence); what is lost least goes first.

    For every image, A is the layer's maps as a channels x positions matrix: CI_u = ||A||_* - ||A with the rows of u
    zeroed||_*, mean over the images, as a share of the mean ||A||_*; mean over the layers that make a unit, each
    divided by its mean first. Source: Sui et al., "CHIP: CHannel Independence-based Pruning for Compact Neural
    Networks", NeurIPS 2021. Unit: share of the layer's mean. Slow: per image and unit the eigenvalues of a matrix
    of min(channels, positions); so few images and positions are looked at.

    Layers in which all units lose the same (one unit, constant maps) say nothing: units read nowhere else fall back
    to ``l1``, and one line says so.

    Parameters
    ----------
    images
        How many feeds are looked at, the first ones.
    positions
        Positions of larger maps that are looked at, evenly spaced.
    reading
        ``act``: behind the activation. ``bn``: before it, behind the normalisation. ``conv``: at the layer's own output.
    """

    name: ClassVar[str] = "chip"
    unit: ClassVar[str] = "share of the layer's mean"
    needs: ClassVar[Needs] = "data"
    images: int = 5
    positions: int = 256
    reading: Reading = "act"

    def __post_init__(self) -> None:
        if self.images < 1 or self.positions < 1:
            raise ValueError(f"images={self.images} and positions={self.positions} must be 1 or more")

    def score(self, state: State) -> Scores:
        coupling = state.need_coupling()
        places = layer_outputs(state, self.reading)
        owned = []
        for value, axis in places:
            rows = coupling.rows(value, axis)
            units = np.unique(rows[rows >= 0])
            owned.append((units, np.array([(rows == unit).any(axis=1) for unit in units])))
        lost = [np.zeros(len(units)) for units, _ in owned]
        whole = np.zeros(len(places))

        def visit(number: int, values: Array) -> None:
            maps = as_maps(values, places[number][1])
            if maps.shape[2] > self.positions:
                maps = maps[:, :, np.linspace(0, maps.shape[2] - 1, self.positions).astype(np.int64)]
            for image in maps.astype(np.float64):
                full, loss = independence(image, owned[number][1])
                lost[number] += loss
                whole[number] += full

        with one_thread():  # many small matrices: threads would only wait for each other
            look(state, self.name, places, visit, limit=self.images)
        total, members = np.zeros(coupling.n_units), np.zeros(coupling.n_units)
        for (units, _), loss, full in zip(owned, lost, whole, strict=True):
            share = loss / full if full > 0 else loss
            # What differs by rounding alone is the same.
            if tells_apart(share) and share.max() - share.min() > 1e-7:
                total[units] += share / share.mean()
                members[units] += 1
        scores, missing = total / np.maximum(members, 1), members == 0
        return fill_missing(state, self.name, scores, missing, "have no feature maps that tell them apart")


def independence(maps: Array, owned: Array) -> tuple[float, Array]:
    """Nuclear norm of one image's maps, and what it loses when the rows of each unit are zeroed.

    Parameters
    ----------
    maps
        float64[channels, positions].
    owned
        bool[units, channels].

    Returns
    -------
    float, float64[units]
    """
    channels, positions = maps.shape
    wide = channels <= positions
    gram = maps @ maps.T if wide else maps.T @ maps
    full = float(_root_sum(gram[None])[0])
    loss = np.empty(len(owned))
    step = max(1, _BLOCK // gram.size)
    for start in range(0, len(owned), step):
        part = owned[start : start + step]
        if wide:
            left = gram * ~part[:, :, None] * ~part[:, None, :]
        else:
            left = np.stack([gram - maps[rows].T @ maps[rows] for rows in part])
        loss[start : start + step] = full - _root_sum(left)
    return full, np.maximum(loss, 0)


def _root_sum(grams: Array) -> Array:
    """Sums of the roots of eigenvalues: nuclear norms of what the Gram matrices float64[b, m, m] are of."""
    values = np.linalg.eigvalsh(grams)
    # Eigenvalues that are rounding of 0 would count with their root.
    noise = 1e-14 * grams.shape[1] * values[:, -1:]
    return np.asarray(np.sqrt(np.where(values > noise, values, 0)).sum(axis=1))
