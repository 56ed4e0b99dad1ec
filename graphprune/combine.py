"""Several criteria in one run: ``--combine weighted|rank-mean|intersection|parallel``.

The first three make one score of several (:func:`joined`). ``parallel`` does not: each criterion makes a mask of its own,
and every group takes one of them whole (:class:`Parallel`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import UsageError
from graphprune.spec import Value, instantiate, nearest, parse_pass_spec

if TYPE_CHECKING:
    from graphprune.choosing import Chooser
    from graphprune.coupling import Coupling
    from graphprune.passes.base import Scored, Scores, State

Mask = NDArray[np.bool_]
#: Rates of the thresholds of ``parallel`` that are looked through.
STEPS = 32


@dataclass(frozen=True)
class Combination:
    """Base of the ways to combine; ``name`` is what stands after ``--combine``."""

    name: ClassVar[str]


@dataclass(frozen=True)
class Weighted(Combination):
    """Weighted mean of the normalised scores. ``weights``: one a criterion, by name or in the order of the passes."""

    name: ClassVar[str] = "weighted"
    weights: tuple[float, ...] = ()
    named: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class RankMean(Combination):
    """Mean of the places that a unit has in the order of each criterion."""

    name: ClassVar[str] = "rank-mean"


@dataclass(frozen=True)
class Intersection(Combination):
    """Units that every criterion would remove: by the largest of the places that a unit has."""

    name: ClassVar[str] = "intersection"


@dataclass(frozen=True)
class InParallel(Combination):
    """A mask by each criterion, and in every group the whole mask that keeps fewer.

    ``bisect``: the rate of the thresholds is searched so that a rate or budget is met; false: ``--rate`` is the rate of each
    threshold, as published, and more is removed.
    """

    name: ClassVar[str] = "parallel"
    bisect: bool = True


WAYS: dict[str, type[Combination]] = {way.name: way for way in (Weighted, RankMean, Intersection, InParallel)}


def parse(text: str | None) -> Combination:
    """Read ``parallel``, ``weighted{entropy=0.7,l1=0.3}``, ``weighted{weights=[0.7,0.3]}``, ``parallel{bisect=false}``, ...

    Raises
    ------
    UsageError
        An unknown name or option, or weights that are no weights.
    """
    if text is None:
        return Weighted()
    try:
        spec = parse_pass_spec(text)
    except UsageError as error:
        raise UsageError(f"--combine: {error}") from error
    if spec.name not in WAYS:
        raise UsageError(f"--combine '{spec.name}': give one of {', '.join(WAYS)}{nearest(spec.name, WAYS)}")
    if spec.name == Weighted.name and "weights" not in spec.options:
        named = tuple((name, _weight(text, value)) for name, value in spec.options.items())
        _check_weights(text, [weight for _, weight in named])
        return Weighted(named=named)
    try:
        way = instantiate(WAYS[spec.name], spec.options)
    except UsageError as error:
        raise UsageError(f"{error}".replace(f"pass '{spec.name}'", f"--combine {spec.name}", 1)) from error
    if isinstance(way, Weighted):
        _check_weights(text, way.weights)
    return way


def _weight(text: str, value: Value) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"--combine '{text}': a weight is a number, not {value!r}")
    return float(value)


def _check_weights(text: str, weights: Sequence[float]) -> None:
    if weights and (min(weights) < 0 or not 0 < sum(weights) < np.inf):
        raise UsageError(f"--combine '{text}': weights are 0 or more, and not all 0")


def check(text: str | None, names: Sequence[str]) -> None:
    """Whether a combination fits the scoring passes of a run, by name and in order.

    Raises
    ------
    UsageError
    """
    if text is None:
        return
    way = parse(text)
    if len(names) < 2:
        given = f"only '{names[0]}' is given" if names else "none is given"
        raise UsageError(f"--combine {way.name} combines several criteria: {given}; add another --pass")
    if isinstance(way, Weighted):
        _weights(way, names)


def _weights(way: Weighted, names: Sequence[str]) -> list[float]:
    """One weight a criterion, those that are not named 0."""
    if not way.named:
        if way.weights and len(way.weights) != len(names):
            raise UsageError(f"--combine weighted: {len(way.weights)} weights for {len(names)} criteria ({', '.join(names)})")
        return list(way.weights) or [1.0] * len(names)
    known = {name.replace("-", "_"): i for i, name in enumerate(names)}  # as specs read the names of options
    out = [0.0] * len(names)
    for name, weight in way.named:
        if name not in known:
            raise UsageError(f"--combine weighted: no criterion '{name}' in this run{nearest(name, known)} ({', '.join(names)})")
        if sum(other.replace("-", "_") == name for other in names) > 1:
            raise UsageError(f"--combine weighted: '{name}' is given twice; write weights=[...] in the order of the passes")
        out[known[name]] = weight
    if not sum(out):
        raise UsageError("--combine weighted: the weights of this run's criteria are all 0")
    return out


def comparable(scored: Scored, coupling: Coupling) -> Scores:
    """The scores of one criterion such that one threshold serves all groups: divided by each group's mean where need be."""
    values = scored.values.copy()
    if not scored.normalized:
        for group in coupling.groups:
            mean = float(np.abs(values[group.units]).mean())
            values[group.units] /= mean if mean > 0 else 1.0
    return values


def joined(way: Combination, scored: Sequence[Scored], coupling: Coupling) -> Scores:
    """One score a unit of several criteria, float64[n_units]."""
    values = [comparable(one, coupling) for one in scored]
    if isinstance(way, Weighted):
        weights = np.asarray(_weights(way, [one.name for one in scored]))
        return np.asarray(np.tensordot(weights / weights.sum(), values, 1), np.float64)
    places = np.stack([_places(one) for one in values])
    # Units whose largest place is below a share are those that all criteria would remove at that share.
    return np.asarray(places.mean(axis=0) if isinstance(way, RankMean) else places.max(axis=0), np.float64)


def scores_of(state: State) -> Scores:
    """One score a unit from those of the run, comparable across groups, as ``--combine`` says; float64[n_units]."""
    if not state.scores:
        raise UsageError("nothing to select by: give a scoring pass, for example --pass l1")
    return joined(parse(state.options.combine), state.scores, state.need_coupling())


def _places(values: Scores) -> Scores:
    """Place of each number in ascending order as a share, equal ones at the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[inverse] / max(len(values), 1))


class Parallel:
    """Parallel pruning: one global threshold a criterion, all of the same rate; each group takes one criterion's mask whole.

    Of the masks of a group, the one that keeps fewer is taken. Where they keep the same number: that of ``bn-scale``, else that of
    the criterion given last. One that keeps nothing yields to the others. Floors, alignment and constraints hold as ever. Source:
    Shao et al., Sensors 21(19):6601, 2021.

    Parameters
    ----------
    choosers
        One a criterion, of the same run.
    names
        Of the criteria.
    """

    def __init__(self, choosers: Sequence[Chooser], names: Sequence[str]) -> None:
        self.choosers = list(choosers)
        self.names = list(names)
        first = self.choosers[0]
        self.weight, self.group_of = first.coupling.weight, first.coupling.group_of
        units = np.concatenate([group.units for group in first.groups])
        self.total = max(first.indices(), 1)
        #: For each criterion all units by score, and the indices that are gone up to each.
        self._orders = [units[np.argsort(chooser.scores[units], kind="stable")] for chooser in self.choosers]
        self._gone = [np.cumsum(self.weight[order]) for order in self._orders]
        # What decides between masks that keep the same: the later, bn-scale last.
        self._preferred = sorted(range(len(names)), key=lambda k: (names[k] == "bn-scale", k), reverse=True)

    def choice(self, rate: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What two thresholds of one rate decide, before floors and alignment.

        Returns
        -------
        chosen, removed
            int64[groups]: the criterion whose mask each group takes, and how many units it removes.
        """
        sizes = self.choosers[0].sizes
        counts = np.stack([
            np.bincount(self.group_of[order[: int(np.searchsorted(gone, rate * self.total, side="right"))]], minlength=len(sizes))
            for order, gone in zip(self._orders, self._gone, strict=True)
        ])  # fmt: skip
        rated = np.where(counts < sizes, counts, -1)  # an empty one yields
        chosen = np.full(len(sizes), self._preferred[0])
        for k in self._preferred[1:]:
            chosen = np.where(rated[k] > np.take_along_axis(rated, chosen[None], 0)[0], k, chosen)
        return chosen, np.take_along_axis(counts, chosen[None], 0)[0]

    def at(self, rate: float) -> Mask:
        """Dead units at one rate of the thresholds, bool[n_units]."""
        chosen, removed = self.choice(rate)
        removed = self.choosers[0].aligned(removed)
        by = chosen[self.group_of]
        dead = np.logical_or.reduce([(by == k) & one.lowest(removed) for k, one in enumerate(self.choosers)])
        return self.choosers[0].repair(dead)

    def removed(self, dead: Mask) -> float:
        """Share of the prunable indices that are gone."""
        return float(self.weight[dead].sum() / self.total)

    def meeting(self, target: float, measure: Callable[[Mask], float]) -> float:
        """The rate of the thresholds at which a measure comes nearest to a target, the lowest such.

        A mask that keeps nothing yields to one that may keep all, so that more is not always less: rates are looked through
        in coarse steps, and bisected where the measure first falls below the target.

        Parameters
        ----------
        measure
            Of what is left.
        """
        found: dict[float, float] = {}

        def left(rate: float) -> float:
            if rate not in found:
                found[rate] = measure(self.at(rate))
            return found[rate]

        rates = [k / STEPS for k in range(STEPS + 1)]
        for low, high in itertools.pairwise(rates):
            if left(low) > target >= left(high):
                for _ in range(max(len(self.group_of) // STEPS, 1).bit_length() + 1):
                    middle = (low + high) / 2
                    low, high = (middle, high) if left(middle) > target else (low, middle)
                break
        return min(sorted(found), key=lambda rate: abs(found[rate] - target))

    def said(self, rate: float) -> str:
        """Which criterion decides how many of the groups that lose anything, in words."""
        chosen, removed = self.choice(rate)
        cut = [group.id for group in self.choosers[0].groups if removed[group.id]]
        counts = np.bincount(chosen[cut], minlength=len(self.names)).tolist()
        listed = ", ".join(f"{name} {count}" for name, count in zip(self.names, counts, strict=True))
        return f"parallel, thresholds at a rate of {rate:.3g}: groups that each criterion decides: {listed}"
