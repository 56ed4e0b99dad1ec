"""What may be removed, and in which order: scores and the constraints of the options -> choices of units."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.coupling import Coupling, Group
from graphprune.errors import NothingPrunableError, UsageError
from graphprune.frontends.onnx import plan_name
from graphprune.passes.base import Scores, State
from graphprune.spec import nearest

Mask = NDArray[np.bool_]


def topology(coupling: Coupling, group: Group) -> object:
    """What a group is made of: its kind, and the ops and roles of the tensors that it cuts; equal for groups alike."""
    roles: dict[object, set[str]] = {}
    for operand in coupling.operands:
        roles.setdefault(operand.value, set()).add(f"{operand.node.op_type}.{operand.role}")
    members = ((axis, tuple(sorted(roles.get(value, ())))) for value, axis in group.members)
    return group.kind, tuple(sorted(members))


class Chooser:
    """Removal orders under the constraints of the options.

    Attributes
    ----------
    groups
        That may be cut.
    orders
        Group number -> its units in the order in which they go, int64[m].
    order
        Units of all groups in the order in which they go, without those that stay in any case, int64[n].
    sizes, limit, steps
        int64[groups]: how many units each group has, how many may go at most, by how many its kept number is aligned.
    """

    def __init__(self, state: State, coupling: Coupling, scores: Scores) -> None:
        options = state.options
        self.coupling = coupling
        self.scores = scores
        self.sharing = options.allocation
        self.both = options.grain == "both"
        self.quota = state.quota
        if self.quota is not None:
            # Of two families that share an axis one may be down to a single unit: the other stays what it was.
            self.groups = [group for group in coupling.groups if group.id in self.quota.groups]
        else:
            self.groups = [group for group in coupling.groups if self._wanted(group, options.grain, options.exact)]
            if options.exact and options.grain == "coarse":
                self._next_coarsest()
        for pattern in options.keep:
            hit = self._matched("--keep", pattern)
            self.groups = [group for group in self.groups if group not in hit]
        self.steps = np.full(len(coupling.groups), options.align if isinstance(options.align, int) else 1, np.int64)
        if options.align == "auto" and not options.times:
            from graphprune.latency.measure import auto_step

            self.align_to(auto_step(state))
        #: Group -> its own rate; the first pattern that names one of its tensors says it.
        self.rates: dict[int, float] = {}
        for pattern, rate in options.rates.items():
            for group in self._matched("the rate of", pattern):
                self.rates.setdefault(group.id, rate)
        if self.quota is not None:
            self.rates.update(self.quota.rates)
        #: Tables of axes that several families share: cutting both could take everything.
        tables = (coupling.rows(value, axis) for value, axis in coupling.places())
        self._crossed = [rows for rows in tables if rows.shape[1] > 1]
        self._sort(options.floor)

    def _sort(self, least: float) -> None:
        """Lay out the orders; ``least``: the share of each group that stays at least."""
        coupling, scores = self.coupling, self.scores
        self.rank = np.full(coupling.n_units, -1)
        self.sizes = np.zeros(len(coupling.groups), np.int64)
        self.limit = np.zeros(len(coupling.groups), np.int64)
        self.orders: dict[int, NDArray[np.int64]] = {}
        #: Per group: indices of weight axes that are gone with the first, the first two, ... units, int64[m].
        self.gone: dict[int, NDArray[np.int64]] = {}
        order, keys = [], []
        for group in self.groups:
            units = group.units[np.argsort(scores[group.units], kind="stable")]
            m = len(units)
            self.orders[group.id] = units
            self.rank[units] = np.arange(m)
            self.sizes[group.id] = m
            floor = max(1, int(np.ceil(least * m - 1e-9)))
            if self.quota is not None:
                floor = min(self.quota.floors.get(group.id, floor), m)
            self.limit[group.id] = m - floor
            order.append(units[: m - floor])
            weight = coupling.weight[units]
            gone = np.cumsum(weight)
            self.gone[group.id] = gone
            share = ((gone - 0.5 * weight) / gone[-1])[: m - floor]
            keys.append(share if self.sharing == "uniform" else scores[units[: m - floor]])
        if self.sharing == "isomorphic":
            keys = self._within_classes(order)
        flat = np.concatenate(order) if order else np.zeros(0, np.int64)
        key = np.concatenate(keys) if keys else np.zeros(0)
        self.order = flat[np.argsort(key, kind="stable")]
        if not len(self.order):
            raise NothingPrunableError(
                "nothing is prunable here: every axis is frozen or kept; 'graphprune inspect' tells why for each"
            )

    def _within_classes(self, order: list[NDArray[np.int64]]) -> list[NDArray[np.float64]]:
        """Keys by which groups of one topology lose the same share together, ranked among themselves by score."""
        classes: dict[object, list[int]] = {}
        for n, group in enumerate(self.groups):
            classes.setdefault(topology(self.coupling, group), []).append(n)
        keys = [np.zeros(0)] * len(order)
        for members in classes.values():
            scores = np.concatenate([self.scores[order[n]] for n in members])
            total = sum(int(self.sizes[self.groups[n].id]) for n in members)
            place = np.empty(len(scores))
            place[np.argsort(scores, kind="stable")] = (np.arange(len(scores)) + 0.5) / max(total, 1)
            for n, part in zip(members, np.split(place, np.cumsum([len(order[n]) for n in members])[:-1]), strict=True):
                keys[n] = part
        return keys

    @staticmethod
    def _wanted(group: Group, grain: str, exact: bool) -> bool:
        if exact and not group.exact:
            return False
        if grain == "coarse":
            return not group.fine
        return grain == "both" or group.fine or not group.shared

    def _next_coarsest(self) -> None:
        """Where --exact leaves the coarse family of an axis alone, an exact one that shares the axis stands in for it."""
        wanted = {group.id for group in self.groups}
        for group in self.coupling.groups:
            if group.exact and group.id not in wanted and not self.coupling.near.get(group.id, set()) & wanted:
                wanted.add(group.id)
        self.groups = [group for group in self.coupling.groups if group.id in wanted]

    def _matched(self, what: str, pattern: str) -> list[Group]:
        """Groups one of whose tensors has a name like ``pattern``, or like ``pattern`` with ``:axis``."""

        def like(value: ir.Value, axis: int) -> bool:
            name = plan_name(value)
            return fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(f"{name}:{axis}", pattern)

        hit = [group for group in self.groups if any(like(value, axis) for value, axis in group.members)]
        names = [plan_name(value) for value in self.coupling.constants]
        if not hit and not any(fnmatch.fnmatch(name, pattern) for name in names):
            raise UsageError(
                f"{what} '{pattern}' matches no tensor of the model{nearest(pattern, names)}; 'graphprune inspect' lists them"
            )
        return hit

    @property
    def limits(self) -> dict[int, int]:
        """Group number -> units that may go at most."""
        return {group.id: int(self.limit[group.id]) for group in self.groups}

    def counts_of(self, groups: Sequence[int], removed: Sequence[int]) -> NDArray[np.int64]:
        """Units that each group loses where only some lose any, int64[groups]."""
        counts = np.zeros(len(self.sizes), np.int64)
        counts[list(groups)] = removed
        return counts

    def shrunk(self, removed: NDArray[np.int64]) -> dict[int, int]:
        """Group number -> units that go once widths are aligned."""
        aligned = self.aligned(removed)
        return {group.id: int(aligned[group.id]) for group in self.groups}

    def aligned(self, removed: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many units each group loses, within its limit and with a kept width that is aligned."""
        removed = np.minimum(removed, self.limit)
        if (self.steps > 1).any():
            kept = self.sizes - removed
            up = -(-kept // self.steps) * self.steps
            down = kept // self.steps * self.steps
            near = np.where((up - kept <= kept - down) | (down == 0), up, down)
            removed = np.maximum(self.sizes - near, 0)
        return removed

    def align_to(self, step: int) -> None:
        """Keep widths to multiples of so many indices: fewer units where each has several, as a head has."""
        for group in self.groups:
            # A unit has most indices where axes are merged; the axis that it has fewest of says the layer's width.
            own = [self.coupling.rows(value, axis) for value, axis in group.members]
            per = min((int((rows == group.units[0]).any(axis=1).sum()) for rows in own), default=1)
            self.steps[group.id] = step // math.gcd(step, max(per, 1))

    def mask(self, removed: NDArray[np.int64]) -> Mask:
        """Dead units, given how many each group loses (lowest scores first), aligned and repaired."""
        return self.repair(self.lowest(self.aligned(removed)))

    def lowest(self, removed: NDArray[np.int64]) -> Mask:
        """The units of lowest score, as many as each group loses."""
        return (self.rank >= 0) & (self.rank < removed[self.coupling.group_of])

    def repair(self, dead: Mask) -> Mask:
        """No axis may lose all its indices, also where families share it in an irregular way."""
        gone = np.append(dead, False)
        for rows in self._crossed:
            if gone[rows].any(axis=1).all():
                alive = np.where(rows >= 0, np.append(self.scores, 0.0)[rows], 0.0).sum(axis=1)
                best = rows[int(alive.argmax())]
                gone[best[best >= 0]] = False
        return gone[:-1]

    def first(self, k: int) -> Mask:
        """The first ``k`` units of the order dead."""
        return self.mask(self.counts(k))

    def counts(self, k: int) -> NDArray[np.int64]:
        """Units that each group loses when the first ``k`` of the order go."""
        return np.bincount(self.coupling.group_of[self.order[:k]], minlength=len(self.sizes))

    def reaching(self, cost: Callable[[int], float], target: float) -> int:
        """How many of the order have to go until a cost, which falls with the number, is at most a target."""
        low, high = 0, len(self.order)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if cost(middle) > target else (low, middle)
        return low

    def near(self, k: int) -> Iterator[Mask]:
        """As ``first``, with a step more or less in one group; all such choices, of 256 groups at most."""
        counts = self.counts(k)
        for group in self.groups[:256]:
            for sign in (-1, 1):
                other = counts.copy()
                other[group.id] = max(0, counts[group.id] + sign * self.steps[group.id])
                yield self.mask(other)

    def by_rate(self, rate: float) -> Mask:
        """Remove that share of the prunable indices."""
        if self.sharing == "uniform":
            return self.mask(self._uniform(rate))
        weight = self.coupling.weight
        wanted = rate * self.indices() if self.quota is None else self.quota.indices
        return self.first(int(np.searchsorted(np.cumsum(weight[self.order]), wanted, side="right")))

    def indices(self) -> int:
        """Prunable indices of weight axes, in all groups that may be cut."""
        return sum(int(self.coupling.weight[group.units].sum()) for group in self.groups)

    def _uniform(self, rate: float) -> NDArray[np.int64]:
        """Units to remove in each group; roundings of groups that follow each other make up for one another.

        Where two families share an axis and both are cut, each loses 1 - sqrt(1 - rate), so that the rate
        holds for the indices.
        """
        removed = np.zeros(len(self.sizes), np.int64)
        carry = 0.0
        for group in self.groups:
            own = self.rates.get(group.id, rate)
            share = 1 - np.sqrt(1 - own) if self.both and group.shared else own
            gone = self.gone[group.id]
            if gone[-1] != len(gone) * gone[0] or (np.diff(gone) != gone[0]).any():
                # Units of several sizes: the rate counts indices, so the nearest sum of sizes.
                removed[group.id] = int(np.abs(np.append(0, gone) - share * gone[-1]).argmin())
                continue
            exact = share * len(group.units)
            removed[group.id] = int(np.floor(exact + carry + 0.5)) if abs(carry) < 1 else round(exact)
            removed[group.id] = min(max(removed[group.id], int(np.floor(exact))), int(np.ceil(exact)))
            carry += exact - removed[group.id]
            carry = min(max(carry, -0.5), 0.5)
        return removed
