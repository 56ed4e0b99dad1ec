"""Where to clip a tensor for INT8: the limit that loses least information, as TensorRT's entropy calibration chooses it.

Source: S. Migacz, 8-bit Inference with TensorRT, GTC 2017: a histogram of absolute values; for each limit the values beyond it are
added to the last bin, and the Kullback-Leibler divergence between that and the same histogram in 128 levels is compared.
"""

from __future__ import annotations

import numpy as np

from graphprune.facts import Array

#: Bins of a histogram, and levels of the quantised one: the positive half of int8.
BINS, LEVELS = 1024, 128
#: Bins from one limit that is tried to the next: under half a percent of the range, and 226 limits in place of 897.
STEP = 4
#: Count that an empty bin stands for, as in ONNX Runtime's and MXNet's calibrators: no divergence is infinite.
FLOOR = 1e-4


class Histogram:
    """Absolute values of one tensor, over however many samples; the range doubles where a sample goes beyond it.

    Attributes
    ----------
    counts : float64[BINS]
    top : float
        Upper end of the last bin; 0 before the first value that is not 0.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS)
        self.top = 0.0

    def add(self, array: Array) -> None:
        """Count the values of one more sample, of any shape."""
        values = np.abs(array.reshape(-1).astype(np.float32, copy=False))
        largest = float(values.max(initial=0.0))
        if largest == 0:
            return
        self.top = self.top or largest
        while self.top < largest:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(axis=1), np.zeros(BINS // 2)])
            self.top *= 2
        self.counts += np.histogram(values, BINS, (0.0, self.top))[0]

    def limit(self) -> float:
        """The value at which clipping loses least."""
        counts = self.counts.copy()
        counts[0] = counts[1]  # zeros are exact in any scale, and would outweigh all else behind a ReLU
        used = np.flatnonzero(counts)
        if not used.size:
            return self.top
        last = int(used[-1]) + 1
        if last <= LEVELS:
            return self.top * last / BINS
        tried = [*range(LEVELS, last, STEP), last]
        best = min(tried, key=lambda n: divergence(counts, n))
        return self.top * best / BINS


def divergence(counts: Array, n: int) -> float:
    """Kullback-Leibler divergence, in nats, of a histogram clipped at a bin from itself in ``LEVELS`` levels.

    Parameters
    ----------
    counts : float64[BINS]
    n
        Bins that are kept.
    """
    kept = counts[:n]
    starts = np.arange(LEVELS) * n // LEVELS
    filled = np.add.reduceat((kept > 0).astype(np.float64), starts)
    level = np.add.reduceat(kept, starts) / np.maximum(filled, 1)
    coarse = np.where(kept > 0, np.repeat(level, np.diff([*starts, n])), 0.0)
    fine = kept.copy()
    fine[-1] += counts[n:].sum()
    coarse = np.maximum(coarse, FLOOR)  # what is clipped may fall where nothing was
    there = fine > 0
    p, q = fine[there] / fine.sum(), coarse[there] / coarse.sum()
    return float((p * np.log(p / q)).sum())
