"""How near a cut model's outputs are to the source's, on data that nothing was fitted to. No labels needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.detection.boxes import agreement
from graphprune.detection.nearness import comparable, distance
from graphprune.detection.reading import Reader, reader

Array = NDArray[Any]
Outputs = Mapping[str, Array]


def compare_outputs(source: Sequence[Outputs], other: Sequence[Outputs]) -> dict[str, Any]:
    """Fidelity of one model's outputs to another's.

    Parameters
    ----------
    source, other
        One mapping of output name to array for each feed, in the same order.

    Returns
    -------
    dict
        ``outputs``: for each floating output of equal shapes ``rel_mse`` (squared error as a share of the source's
        variance) and, where it holds classes, ``top1`` (share of positions where both prefer the same class) and ``kl``
        (nats from the source's distribution to the other's); for each output of integers, ``equal`` (share of equal elements).
        ``boxes``, where the outputs hold boxes (:mod:`graphprune.detection.reading`): ``f1`` of the other's boxes against the
        source's, how many each finds, in which outputs, and ``distance`` where they say something of every cell
        (:mod:`graphprune.detection.nearness`). ``divergence``: one number to compare by, the mean over outputs of ``kl``
        where there is one and of ``rel_mse`` elsewhere, of ``distance`` for those that have one; where an output cannot be
        compared element by element, as the number of boxes differs, ``1 - f1`` counts as well, and where there is no floating
        output, ``1 - equal``.
    """
    report: dict[str, Any] = {}
    total: list[float] = []
    table: list[float] = []
    unequal: list[float] = []
    odd = False
    how = reader(source)
    dense = comparable(how, source)
    for name in source[0] if source else ():
        pairs = [(np.asarray(a[name]), np.asarray(b[name])) for a, b in zip(source, other, strict=True)]
        kind = pairs[0][0].dtype.kind
        if any(a.shape != b.shape for a, b in pairs) or kind not in "fiub":
            odd = True
        elif kind != "f":
            size = sum(a.size for a, _ in pairs)
            report[name] = {"equal": sum(int((a == b).sum()) for a, b in pairs) / size if size else 1.0}
            unequal.append(1 - report[name]["equal"])
        else:
            entry = {"rel_mse": _relative_error(pairs)}
            if classes(pairs[0][0]):
                entry["top1"], entry["kl"] = _agreement(pairs)
            report[name] = entry
            (table if dense and how is not None and name in how.names else total).append(entry.get("kl", entry["rel_mse"]))
    found: dict[str, Any] = {"outputs": report}
    if how is not None:
        found["boxes"] = {**agreement([how.read(s) for s in source], [how.read(o) for o in other]), "outputs": list(how.names)}
        if dense and (apart := _distance(how, source, other)) is not None:
            found["boxes"]["distance"] = apart
            table = [apart]
        elif odd:
            total.append(1 - found["boxes"]["f1"])
    total += table
    return {"divergence": float(np.mean(total or unequal)) if total or unequal else 0.0, **found}


def _distance(how: Reader, source: Sequence[Outputs], other: Sequence[Outputs]) -> float | None:
    """How far the other's cells are from the source's; None where shapes differ, or the source finds nothing."""
    error = weight = 0.0
    for a, b in zip(source, other, strict=True):
        theirs, mine = ({name: np.asarray(outputs[name], np.float64) for name in how.names[:2]} for outputs in (a, b))
        if any(theirs[name].shape != mine[name].shape for name in theirs):
            return None
        found = distance(how, theirs, mine, np)
        error, weight = error + float(found[0]), weight + float(found[1])
    return error / weight if weight > 0 else None


def _relative_error(pairs: Sequence[tuple[Array, Array]]) -> float:
    count, first, second, error = 0, 0.0, 0.0, 0.0
    for a, b in pairs:
        a, b = a.astype(np.float64), b.astype(np.float64)
        count += a.size
        first += float(a.sum())
        second += float(np.square(a).sum())
        error += float(np.square(a - b).sum())
    variance = second - first * first / max(count, 1)
    return error / max(variance, 1e-30)


def classes(y: Array) -> bool:
    """Whether the last axis of an output counts classes: distributions, or one vector a sample."""
    if y.ndim < 2 or y.shape[-1] < 2:
        return False
    return y.ndim == 2 or _is_distribution(y)


def _is_distribution(y: Array) -> bool:
    return bool(y.size and y.min() >= 0 and np.allclose(y.sum(-1, dtype=np.float64), 1, atol=1e-3))


def _agreement(pairs: Sequence[tuple[Array, Array]]) -> tuple[float, float]:
    same, divergence, rows = 0, 0.0, 0
    for a, b in pairs:
        p, q = _log_distribution(a), _log_distribution(b)
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
        divergence += float((np.exp(p) * (p - q)).sum())
        rows += p[..., 0].size
    return same / max(rows, 1), divergence / max(rows, 1)


def _log_distribution(y: Array) -> Array:
    y = y.astype(np.float64)
    if _is_distribution(y):
        # What is exactly 0 in float32 is not impossible, only small.
        return np.asarray(np.log(np.maximum(y, 1e-12)))
    y = y - y.max(-1, keepdims=True)
    return np.asarray(y - np.log(np.exp(y).sum(-1, keepdims=True)))
