"""Layers with very many inputs, seen through few: each unit's inputs by their principal components.

A dense layer behind a flattened map of 512 channels of 7 x 7 reads 25,088 inputs, whose covariance would take 5 GB.
A channel leaves with all of its 49 inputs, and these are much alike. So each unit's inputs are replaced by their leading
principal components, as many as there is room for, and what is said of the layer is said in these coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass
class Compression:
    """Coordinates of one layer's inputs.

    Attributes
    ----------
    blocks
        int64[m] each: the inputs of one unit, or of one set of units.
    width
        Coordinates that a block gets at most.
    bases
        float64[m, r] each, orthonormal; there when :meth:`finish` has run.
    mean
        float64[d], of the inputs themselves.
    """

    blocks: list[NDArray[np.int64]]
    width: int
    bases: list[Array] = field(default_factory=list)
    mean: Array = field(default_factory=lambda: np.zeros(0))
    _count: int = 0
    _sums: list[Array] = field(default_factory=list)
    _squares: list[Array] = field(default_factory=list)

    @classmethod
    def of(cls, units: NDArray[np.int64], largest: int) -> Compression | None:
        """For inputs whose units are ``units: int64[d, k]``, into at most ``largest`` coordinates; None if blocks are too many."""
        _, owner = np.unique(np.sort(units, axis=1), axis=0, return_inverse=True)
        owner = owner.reshape(-1)
        order = np.argsort(owner, kind="stable")
        blocks = np.split(order, np.flatnonzero(np.diff(owner[order])) + 1)
        width = largest // len(blocks)
        return cls(blocks, width) if width else None

    def add(self, u: Array) -> None:
        """Rows to learn the coordinates from, float[n, d]."""
        if not self._sums:
            self._sums = [np.zeros(len(b)) for b in self.blocks]
            self._squares = [np.zeros((len(b), len(b))) for b in self.blocks]
        self._count += len(u)
        for block, total, square in zip(self.blocks, self._sums, self._squares, strict=True):
            x = np.asarray(u[:, block], np.float32)
            total += x.sum(0, dtype=np.float64)
            square += x.T @ x

    def finish(self) -> None:
        """Find the coordinates."""
        self.mean = np.zeros(sum(map(len, self.blocks)))
        n = max(self._count, 1)
        for block, total, square in zip(self.blocks, self._sums, self._squares, strict=True):
            mean = total / n
            self.mean[block] = mean
            # Ascending eigenvalues: the leading directions stand last.
            vectors = np.linalg.eigh(square / n - np.outer(mean, mean))[1]
            self.bases.append(vectors[:, ::-1][:, : self.width])
        self._sums, self._squares = [], []

    def project(self, matrix: Array) -> Array:
        """Rows of inputs, or of weights, in the new coordinates: float[..., d] to float64[..., r]."""
        parts = zip(self.blocks, self.bases, strict=True)
        return np.concatenate([np.asarray(matrix[..., block], np.float64) @ basis for block, basis in parts], axis=-1)

    def lift(self, change: Array, removed: NDArray[np.bool_], weight: Array) -> Array:
        """A layer's weight after a change in the new coordinates.

        Parameters
        ----------
        change
            float64[..., r].
        removed
            bool[r], coordinates of units that leave: their inputs get no weight at all.
        weight
            float[..., d], as it was.
        """
        out = np.array(weight, np.float32)
        start = 0
        for block, basis in zip(self.blocks, self.bases, strict=True):
            own = slice(start, start + basis.shape[1])
            start = own.stop
            out[..., block] = 0 if removed[own].all() else out[..., block] + change[..., own] @ basis.T
        return out

    def spread(self, units: NDArray[np.int64]) -> NDArray[np.int64]:
        """Units of the new coordinates, int64[r, k] from int64[d, k]."""
        return np.concatenate([np.repeat(units[b[:1]], p.shape[1], 0) for b, p in zip(self.blocks, self.bases, strict=True)])
