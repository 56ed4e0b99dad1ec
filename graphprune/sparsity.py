"""2:4 masks, chosen by what a pair of weights costs when the others are fitted anew."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from graphprune.layers import Layer
from graphprune.lstsq import Rows
from graphprune.ops.sparsity import fours

Array = NDArray[Any]
Criterion = Literal["obs", "magnitude"]
#: Ridge of the inverse that costs are read off, as a share of the mean squared input.
RIDGE = 1e-2


@dataclass
class Masks:
    """What is kept of each layer's weight, for :class:`graphprune.recovery.Recovery`.

    Attributes
    ----------
    keep
        Names of layers that stay dense.
    sparse, dense
        Names of layers that got a mask, and why others did not.
    """

    criterion: Criterion
    keep: frozenset[str]
    sparse: list[str]
    dense: dict[str, str]

    def __call__(self, layer: Layer, weight: Array, rows: Rows) -> Array | None:
        """bool[g, o, d] of the weights that stay; None for a layer that stays dense."""
        columns = fours(layer.form, layer.shape)
        reason = "it was to be kept" if layer.name in self.keep else "its input channels are no multiple of 4, or grouped"
        if columns is None or layer.name in self.keep:
            self.dense[layer.name] = reason
            return None
        if layer.name not in self.sparse:
            self.sparse.append(layer.name)
        best = weight
        curvature = None
        if self.criterion == "obs" and rows.n:
            step, _ = rows.solve(RIDGE)
            best, curvature = weight + step, rows.curvature(RIDGE)[0]
        return two_of_four(best[0], columns, curvature)[None]


def two_of_four(weight: Array, columns: NDArray[np.int64], curvature: Array | None) -> NDArray[np.bool_]:
    """The two of every four weights that stay: those whose fellows cost least.

    Parameters
    ----------
    weight
        float64[o, d].
    columns
        int64[d / 4, 4].
    curvature
        The inverse of the inputs' second moments, float64[d, d]: a pair P costs ``w_P ([H^-1]_PP)^-1 w_P'`` with all other
        weights fitted anew. float64[d]: the moments themselves, where these are known alone. None: the weights decide.

    Returns
    -------
    bool[o, d]
    """
    pairs = list(itertools.combinations(range(4), 2))
    costs = []
    for a, b in pairs:
        i, j = columns[:, a], columns[:, b]
        u, v = weight[:, i], weight[:, j]
        if curvature is None:
            costs.append(u**2 + v**2)
        elif curvature.ndim == 1:
            costs.append(u**2 * curvature[i] + v**2 * curvature[j])
        else:
            p, q, r = curvature[i, i], curvature[j, j], curvature[i, j]
            costs.append((u**2 * q - 2 * u * v * r + v**2 * p) / np.maximum(p * q - r * r, 1e-30))
    cheapest = np.stack(costs).argmin(0)
    stays = np.ones(weight.shape, np.bool_)
    for number, (a, b) in enumerate(pairs):
        row, block = np.nonzero(cheapest == number)
        stays[row, columns[block, a]] = stays[row, columns[block, b]] = False
    return stays
