"""``select``: scores, a rate or a budget, and constraints -> which units die."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from graphprune import combine
from graphprune.choosing import Chooser, Mask
from graphprune.costs import CostModel, Profile
from graphprune.coupling import Coupling
from graphprune.errors import UsageError
from graphprune.options import Options
from graphprune.passes.base import Kind, Pass, State


@dataclass(frozen=True)
class Select(Pass):
    """Choose the units to remove: lowest scores first, never below a floor a group.

    Units of every group are removed in the order of their scores, so a choice is one number a group. With
    ``--scope group`` the groups lose the same share; with ``--scope global`` the order runs over all groups
    by normalised score. A rate counts indices; a budget is met by bisection along the same order. Several
    criteria are combined as ``--combine`` says.
    """

    name: ClassVar[str] = "select"
    kind: ClassVar[Kind] = "select"

    def run(self, state: State) -> None:
        coupling = state.need_coupling()
        costs = CostModel(state.model, coupling, state.need_facts())
        state.before = costs.price()
        options = state.options
        if not state.scores:
            # Only what stands behind the proof was asked for: nothing is cut.
            state.dead, state.after = np.zeros(coupling.n_units, np.bool_), state.before
            return
        way = combine.parse(options.combine)
        if isinstance(way, combine.InParallel):
            state.dead = self._parallel(state, coupling, costs, way.bisect)
        else:
            chooser = Chooser(state, coupling, combine.scores_of(state))
            if options.times:
                from graphprune.latency.budget import meet

                state.dead = meet(state, chooser)
            elif options.budget is not None:
                state.dead = self._budget(state, chooser, costs)
            else:
                state.dead = chooser.by_rate((0.0 if options.rates else 0.5) if options.rate is None else options.rate)
        state.after = costs.price(state.dead)
        if not state.dead.any():
            asked = f"align {options.align or 1}, floor {options.floor:g}"
            state.note(f"nothing was cut: less than one step of any group was asked ({asked}); ask for more, or align less")

    @staticmethod
    def _parallel(state: State, coupling: Coupling, costs: CostModel, bisect: bool) -> Mask:
        """Every group by the criterion that removes more of it."""
        options = state.options
        choosers = [Chooser(state, coupling, combine.comparable(one, coupling)) for one in state.scores]
        parallel = combine.Parallel(choosers, [one.name for one in state.scores])
        rate = 0.5 if options.rate is None else options.rate
        if options.budget is not None:
            budget = Budget.of(state, costs)
            rate = parallel.meeting(budget.target, budget.left)
            budget.say(state, parallel.at(rate))
        elif bisect:
            # A step of several counts the indices that are left to it.
            wanted = rate if state.quota is None else state.quota.indices / parallel.total
            rate = parallel.meeting(1 - wanted, lambda mask: 1 - parallel.removed(mask))
        state.note(parallel.said(rate))
        return parallel.at(rate)

    @staticmethod
    def _budget(state: State, chooser: Chooser, costs: CostModel) -> Mask:
        """The choice of one order that comes nearest to a budget, or what dynamic programming makes of the scores."""
        budget = Budget.of(state, costs)
        met = chooser.reaching(lambda k: budget.left(chooser.first(k)), budget.target)
        if state.options.allocation == "dp":
            from graphprune.allocation import allocate
            from graphprune.lstsq import one_thread

            price = partial(Profile(costs, chooser.orders).price, budget.measure)
            with one_thread():
                dead = allocate(state, chooser, price, budget.target, [chooser.first(met)])
        else:
            # Both neighbours of the crossing: the nearer one.
            k = min((max(met - 1, 0), met), key=lambda k: budget.distance(chooser.first(k)))
            dead = chooser.first(k)
            if budget.missed(dead):
                # Units are large steps here: a step more or less in one group may come nearer.
                dead = min([dead, *chooser.near(k)], key=budget.distance)
        budget.say(state, dead)
        return dead


@dataclass(frozen=True)
class Budget:
    """What is to be left of a measure, and how far choices are from it.

    Attributes
    ----------
    amount
        As asked: a share of the source's below 1, else a number.
    full, target
        What the source has; what is to be left.
    """

    costs: CostModel
    measure: str
    amount: float
    full: int
    target: float

    @classmethod
    def of(cls, state: State, costs: CostModel) -> Budget:
        """The budget of the options.

        Raises
        ------
        UsageError
            The source has no more already.
        """
        measure, amount = state.options.parsed_budget()
        assert state.before is not None
        full = state.before.measure(measure)
        target = amount * full if amount < 1 else amount
        if target >= full:
            raise UsageError(f"--budget {measure}={amount:g}: the model has {full:,} already; nothing to cut")
        return cls(costs, measure, amount, full, target)

    def left(self, dead: Mask) -> int:
        """What a choice leaves of the measure."""
        return self.costs.price(dead).measure(self.measure)

    def distance(self, dead: Mask) -> float:
        return abs(self.left(dead) - self.target)

    def missed(self, dead: Mask) -> bool:
        """Whether a choice is more than a hundredth away."""
        return self.distance(dead) > 0.01 * self.target

    def say(self, state: State, dead: Mask) -> None:
        """Note where the budget could not be met."""
        if self.missed(dead):
            reached = self.left(dead)
            state.note(
                f"budget {self.measure}={self.amount:g}: the nearest possible along the scores is {reached:,} "
                f"({reached / self.full:.1%} of the source) where {self.target:,.0f} was asked; what is frozen, --floor, "
                "--align or --keep leave no nearer step"
            )


def check_scored(passes: Sequence[Pass], options: Options) -> None:
    """Without a criterion nothing can be cut, which is fine where the weights alone are to become cheaper.

    Raises
    ------
    UsageError
        A cut was asked for, or nothing at all.
    """
    compressing = [one.name for one in passes if one.kind == "compress"]
    if not compressing:
        raise UsageError("no scoring pass is given: add one, for example --pass l1")
    asked = [f"--{name}" for name in ("rate", "budget", "rates") if getattr(options, name)]
    asked += ["--steps"] if options.steps > 1 else []
    asked += [f"--pass {one.name}" for one in passes if one.kind == "recover"]
    if asked:
        raise UsageError(
            f"{asked[0]} is for a cut, and no scoring pass is given: add one, for example --pass "
            f"l1; or leave it out, and '{compressing[0]}' works on the whole model"
        )
