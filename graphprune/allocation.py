"""How much each group loses under a budget: levels, errors after least squares, dynamic programming.

For every group a few levels (shares of its units removed, in the order of the scores) get an error, measured
*after* least squares on what is left: locally, from the second moments of what reads the group, and end to end,
by the divergence of the source's outputs when one group alone is cut and its consumers re-fitted. Dynamic
programming then picks a level for each group that minimises the sum of errors within the budget. A cost such as
MACs is no sum over groups (a layer's MACs are a product of two widths), so it is linearised at the current
choice and the program solved again. A few candidates are cut, recovered and judged end to end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.backends.ort import Runner
from graphprune.choosing import Chooser, Mask
from graphprune.elimination import Statistics, losses
from graphprune.fidelity import compare_outputs
from graphprune.inputs import Feed
from graphprune.layers import Layer, make_layer, write
from graphprune.lstsq import solve_positive
from graphprune.ops.observe import walk
from graphprune.passes.base import State

Array = NDArray[Any]

#: Levels a group, the untouched one included.
LEVELS = 13
#: Levels that are measured end to end, as shares of what a group can lose.
ANCHORS = (0.3, 0.7)
#: Parts that the budget is divided into.
BUCKETS = 2000
#: Single steps by which a choice is brought nearer to its budget at most.
POLISH = 16
ROUNDS = 8


@dataclass(frozen=True)
class Curve:
    """One group's choices.

    Attributes
    ----------
    removed
        int64[l], units removed at each level, ascending from 0.
    error
        float64[l].
    heard
        Whether any layer could say what it loses; otherwise the error is a guess that grows with the square.
    """

    group: int
    units: NDArray[np.int64]
    removed: NDArray[np.int64]
    error: Array
    heard: bool = True


def local_curves(statistics: Statistics, orders: dict[int, NDArray[np.int64]], limits: dict[int, int]) -> list[Curve]:
    """Errors from second moments: what the readers of each group lose, as shares of their variance, summed.

    Parameters
    ----------
    orders
        Group number -> its units in the order in which they go.
    limits
        Group number -> units that may go at most.
    """
    curves = []
    for number, units in orders.items():
        most = limits[number]
        if most < 1:
            continue
        removed = np.unique(np.round(np.linspace(0, most, min(LEVELS, most + 1))).astype(np.int64))
        parts = statistics.parts(units)
        total = np.zeros(len(removed)) if parts else np.square(removed / len(units))
        for part in parts:
            total += losses(part, np.arange(len(units)))[removed]
        curves.append(Curve(number, units, removed, total, bool(parts)))
    return curves


def importance_curves(scores: Array, orders: dict[int, NDArray[np.int64]], limits: dict[int, int]) -> list[Curve]:
    """Errors from scores alone: what share of a group's importance is lost, -log of what is left, a unit.

    The sum is least where the product of the kept shares is largest: no group pays for all, as it would if losses were
    added up, and scores that hardly differ give shares that hardly differ.

    Parameters
    ----------
    scores
        float64[n_units], higher means keep.
    orders, limits
        As for :func:`local_curves`.
    """
    curves = []
    for number, units in orders.items():
        most = limits[number]
        if most < 1:
            continue
        removed = np.unique(np.round(np.linspace(0, most, min(2 * LEVELS, most + 1))).astype(np.int64))
        # Scores below zero count for nothing; half of it all is spread evenly, for scores of zero are no proof of nothing.
        values = np.maximum(scores[units], 0)
        share = 0.5 * values / max(float(values.sum()), 1e-30) + 0.5 / len(units)
        lost = np.concatenate([[0.0], np.cumsum(share)])[removed]
        curves.append(Curve(number, units, removed, -len(units) * np.log(np.maximum(1 - lost, 1e-6))))
    return curves


def end_to_end(
    state: State, statistics: Statistics, curves: Sequence[Curve], feeds: Sequence[Feed], progress: Callable[[float], None]
) -> list[Curve]:
    """The same curves in units of output divergence, measured at a few levels and interpolated along the local errors."""
    runner = Runner(state.model, widen=True)
    source = [runner.run(feed) for feed in feeds]
    out = []
    for n, curve in enumerate(curves):
        progress(n / len(curves))
        if not curve.heard:
            out.append(curve)
            continue
        points = sorted({int(np.clip(round(a * (len(curve.removed) - 1)), 1, len(curve.removed) - 1)) for a in ANCHORS})
        measured = [_divergence(state, statistics, curve.units[: curve.removed[p]], feeds, source) for p in points]
        out.append(Curve(curve.group, curve.units, curve.removed, _calibrated(curve.error, points, measured)))
    # What nobody could measure is guessed in the same unit as the rest.
    ratios = [m.error[-1] / c.error[-1] for m, c in zip(out, curves, strict=True) if c.heard and c.error[-1] > 0]
    typical = float(np.median(ratios)) if ratios else 1.0
    return [c if c.heard else Curve(c.group, c.units, c.removed, c.error * typical, False) for c in out]


def _calibrated(local: Array, points: Sequence[int], measured: Sequence[float]) -> Array:
    """A curve through measured points that runs along ``local`` between and beyond them."""
    scale = np.asarray([m / max(local[p], 1e-12) for p, m in zip(points, measured, strict=True)])
    factor = np.interp(local, [local[p] for p in points], scale) if len(points) > 1 else np.full(len(local), scale[0])
    return np.maximum.accumulate(np.maximum(factor * local, 0))


def _divergence(
    state: State, statistics: Statistics, dead: NDArray[np.int64], feeds: Sequence[Feed], source: Sequence[Any]
) -> float:
    """Divergence of the outputs when some units go, the weights of their readers fitted anew."""
    model = state.model.clone()
    paths = dict(walk(model.graph))
    twin = dict(zip((node for node, _ in walk(state.model.graph)), paths, strict=True))
    gone = np.zeros(state.need_coupling().n_units + 1, np.bool_)
    gone[dead] = True
    for consumer in statistics.consumers:
        hit: Array = np.any(gone[consumer.units], axis=2)
        if not hit.any():
            continue
        layer = make_layer(model, consumer.node, twin[consumer.node], paths)
        if not isinstance(layer, Layer):
            continue
        weight = consumer.weight.copy()
        precision = statistics.precision(consumer)
        for g in np.flatnonzero(hit.any(axis=1)).tolist():
            s = np.flatnonzero(hit[g])
            weight[g] -= weight[g][:, s] @ solve_positive(precision[g][np.ix_(s, s)], precision[g][s])
            weight[g][:, s] = 0
        write(layer, model, *consumer.refitted(state, weight, hit))
    runner = Runner(model, widen=True)
    return float(compare_outputs(source, [runner.run(feed) for feed in feeds])["divergence"])


def program(
    curves: Sequence[Curve], price: Callable[[Sequence[int]], float], target: float
) -> list[int]:
    """Units that each group loses: least sum of errors with ``price`` at most ``target``.

    Parameters
    ----------
    price
        Cost of a choice of removed units a group, in the order of ``curves``.

    Returns
    -------
    list of int
        Removed units for each curve.
    """
    full = price([0] * len(curves))
    # Start where all groups lose the same share.
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if price([round(middle * int(c.removed[-1])) for c in curves]) > target else (low, middle)
    state = [round(high * int(c.removed[-1])) for c in curves]
    best, best_error = state, float("inf")
    for _ in range(ROUNDS):
        saving = _savings(curves, state, price)
        # Linearised around `state`: what all groups save together there, against what they save one by one.
        together = full - price(state)
        alone = sum(float(np.interp(r, c.removed, s)) for r, c, s in zip(state, curves, saving, strict=True))
        factor = together / alone if alone > 0 and together > 0 else 1.0
        levels = _knapsack([c.error for c in curves], [s * factor for s in saving], full - target)
        chosen = [int(c.removed[level]) for c, level in zip(curves, levels, strict=True)]
        chosen = _fit_budget(curves, chosen, price, target)
        error = sum(float(np.interp(r, c.removed, c.error)) for r, c in zip(chosen, curves, strict=True))
        if error < best_error * (1 - 1e-6):
            best, best_error = chosen, error
        if chosen == state:
            break
        state = [round((a + b) / 2) for a, b in zip(state, chosen, strict=True)]
    return best


def polished(
    curves: Sequence[Curve], chosen: Sequence[int], price: Callable[[Sequence[int]], float], target: float, step: int
) -> list[int]:
    """The choice moved a few single steps, each in the group where it brings the price nearest to the target."""
    best, distance = list(chosen), abs(price(chosen) - target)
    for _ in range(POLISH):
        if distance <= 0.002 * target:
            break
        trials = [
            [*best[:n], best[n] + by, *best[n + 1 :]]
            for n, curve in enumerate(curves)
            for by in (-step, step)
            if 0 <= best[n] + by <= curve.removed[-1]
        ]
        prices = [abs(price(trial) - target) for trial in trials]
        if not prices or min(prices) >= distance:
            break
        distance = min(prices)
        best = trials[prices.index(distance)]
    return best


def _savings(curves: Sequence[Curve], state: Sequence[int], price: Callable[[Sequence[int]], float]) -> list[Array]:
    """What each level of each group saves while the others stay as they are."""
    out = []
    for n, curve in enumerate(curves):
        trial = list(state)
        prices = []
        for removed in curve.removed:
            trial[n] = int(removed)
            prices.append(price(trial))
        out.append(np.maximum(prices[0] - np.asarray(prices), 0))
    return out


def _knapsack(errors: Sequence[Array], savings: Sequence[Array], needed: float) -> list[int]:
    """A level for each group: least sum of errors with a sum of savings of at least ``needed``."""
    unit = max(needed, 1e-30) / BUCKETS
    best = np.full(BUCKETS + 1, np.inf)
    best[0] = 0.0
    tables: list[tuple[Array, NDArray[np.int64], NDArray[np.int64]]] = []
    for error, saving in zip(errors, savings, strict=True):
        # Rounded to the nearest bucket: errors of rounding cancel over many groups.
        steps = np.minimum(np.round(saving / unit).astype(np.int64), BUCKETS)
        trial = np.full((len(steps), BUCKETS + 1), np.inf)
        for level, step in enumerate(steps.tolist()):
            trial[level, step:] = best[: BUCKETS + 1 - step] + error[level]
            # More than is needed counts as what is needed.
            trial[level, BUCKETS] = float(best[BUCKETS - step :].min()) + error[level]
        tables.append((best, steps, trial.argmin(0)))
        best = trial.min(0)
    at = BUCKETS if np.isfinite(best[BUCKETS]) else int(np.flatnonzero(np.isfinite(best))[-1])
    levels = []
    for before, steps, choice in reversed(tables):
        level = int(choice[at])
        step = int(steps[level])
        at = BUCKETS - step + int(before[BUCKETS - step :].argmin()) if at == BUCKETS else at - step
        levels.append(level)
    return levels[::-1]


def _fit_budget(
    curves: Sequence[Curve], chosen: Sequence[int], price: Callable[[Sequence[int]], float], target: float
) -> list[int]:
    """The same profile a little larger or smaller, so that the real price meets the target."""

    def scaled(t: float) -> list[int]:
        return [min(round(r * t), int(c.removed[-1])) for r, c in zip(chosen, curves, strict=True)]

    low, high = 0.0, 4.0
    if not any(chosen) or price(scaled(high)) > target:
        # Where the profile's own groups cannot reach it, the others follow.
        return _raise_all(curves, chosen, price, target)
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if price(scaled(middle)) > target else (low, middle)
    return scaled(high)


def _raise_all(
    curves: Sequence[Curve], chosen: Sequence[int], price: Callable[[Sequence[int]], float], target: float
) -> list[int]:
    def mixed(t: float) -> list[int]:
        return [round(r + t * (int(c.removed[-1]) - r)) for r, c in zip(chosen, curves, strict=True)]

    low, high = 0.0, 1.0
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if price(mixed(middle)) > target else (low, middle)
    return mixed(high)


def programmed(
    chooser: Chooser, curves: Sequence[Curve], price: Callable[[dict[int, int]], float], target: float, *, polish: bool
) -> Mask:
    """The units to remove by the errors of some curves.

    Parameters
    ----------
    price
        Group number -> units that it loses, widths aligned; to a cost.
    polish
        Whether the choice is brought nearer to the target in single steps afterwards.
    """
    groups = [curve.group for curve in curves]

    def cost(removed: Sequence[int]) -> float:
        return price(chooser.shrunk(chooser.counts_of(groups, removed)))

    chosen = program(curves, cost, target)
    if polish:
        chosen = polished(curves, chosen, cost, target, int(chooser.steps.max(initial=1)))
    return chooser.mask(chooser.counts_of(groups, chosen))


def judge(state: State, dead: Mask, fitting: Sequence[Feed], judging: Sequence[Feed], samples: int) -> float:
    """Divergence of a cut and recovered model's outputs on feeds that nothing was fitted to."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    from graphprune.cut import Rewriter
    from graphprune.recovery import Recovery

    rewriter = Rewriter(state.model, state.need_coupling(), state.need_facts(), dead)
    model = rewriter.run()
    RemoveUnusedNodesPass()(model)
    Recovery(rewriter, model, fitting, samples, patches=20, seed=state.options.seed).run()
    source, cut = Runner(state.model, widen=True), Runner(model, widen=True)
    return float(compare_outputs([source.run(f) for f in judging], [cut.run(f) for f in judging])["divergence"])


@dataclass(frozen=True)
class Curves:
    """Errors of every group's levels, and the feeds that they and choices are judged on.

    Attributes
    ----------
    local, measured
        From second moments; and end to end.
    fitting, judging
        Feeds that recovery fits on, and those held back.
    batch
        Samples of a feed.
    """

    local: list[Curve]
    measured: list[Curve]
    fitting: list[Feed]
    judging: list[Feed]
    batch: int


def curves_of(state: State, chooser: Chooser) -> Curves:
    """Measure what each group's loss costs."""
    from graphprune.calibration import samples_for
    from graphprune.feeding import feed_size

    statistics = state.statistics
    samples = samples_for(state, batch=feed_size(state))
    feeds = list(samples)
    held = max(1, round(0.25 * len(feeds)))
    fitting, judging = feeds[:-held] or feeds, feeds[-held:]
    local = local_curves(statistics, chooser.orders, chooser.limits)
    measured = end_to_end(state, statistics, local, judging[: max(1, JUDGED // samples.batch)],
                          lambda share: state.progress("measuring groups", share))  # fmt: skip
    return Curves(local, measured, fitting, judging, samples.batch)


def allocate(
    state: State, chooser: Chooser, price: Callable[[dict[int, int]], float], target: float, others: Sequence[Mask]
) -> Mask:
    """The units to remove under a budget: dynamic programming, the best of a few candidates.

    Parameters
    ----------
    price
        As for :func:`programmed`.
    others
        Further candidates: what other ways of allocating give.
    """
    known = curves_of(state, chooser)
    found: list[tuple[str, Mask]] = [("given", one) for one in others]
    for name, curves in (("local", known.local), ("measured", known.measured)):
        found.append((name, programmed(chooser, curves, price, target, polish=True)))
    results = []
    for n, (_, dead) in enumerate(found):
        state.progress("judging allocations", n / len(found))
        results.append(judge(state, dead, known.fitting[: max(1, FITTED // known.batch)], known.judging, known.batch))
    best = int(np.argmin(results))
    listed = ", ".join(f"{name} {value:.3g}" for (name, _), value in zip(found, results, strict=True))
    state.note(f"allocation by '{found[best][0]}': divergence on held-out samples after recovery: {listed}")
    return found[best][1]


#: Samples that measure a group, and that a candidate is recovered on.
JUDGED, FITTED = 64, 128
