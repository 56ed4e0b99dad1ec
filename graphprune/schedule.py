"""A cut in several steps: score, cut, recover, and again on what is left, along a geometric way to the target.

Each step is a run of its own on the recovered model of the step before, and serves the next scores. What it removes is
carried back to the units of the source. So there is one plan, one proof, of the whole cut against the masked source, and one
recovery that counts: of the whole cut, to what the source itself computes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.choosing import Chooser
from graphprune.costs import CostModel
from graphprune.errors import GraphPruneError, NothingPrunableError
from graphprune.frontends.onnx import plan_name
from graphprune.options import Options
from graphprune.passes.base import Quota, State
from graphprune.pipeline import BEFORE, build_passes, finish, load_any, run_passes, run_state
from graphprune.plan import DERIVED
from graphprune.plugins import discover
from graphprune.spec import parse_pass_spec

Progress = Callable[[str, float], None]
Mask = NDArray[np.bool_]


def run_steps(source: Any, options: Options, progress: Progress | None = None) -> State:
    """Cut a model in ``options.steps`` steps.

    Returns
    -------
    State
        Of the source: the decision in its units, the cut, its proof, its recovery.
    """
    report: Progress = progress or (lambda _what, _share: None)
    origin = run_state(source, dataclasses.replace(options, steps=1), progress, until="couple")
    coupling = origin.need_coupling()
    for one in build_passes(options.passes):
        one.check(origin)
    costs = CostModel(origin.model, coupling, origin.need_facts())
    origin.before = costs.price()
    dead = np.zeros(coupling.n_units, np.bool_)
    model: Any = origin.loaded.path or origin.loaded.model
    states: list[State] = []
    for step in range(1, options.steps + 1):
        share = step / options.steps

        def shown(what: str, done: float, at: int = step) -> None:
            report(f"step {at} of {options.steps}: {what}", done)

        if states and _is_there(origin, states[-1], options, share):
            continue
        try:
            state = _run(origin, model, options, share, dead, shown)
        except NothingPrunableError:
            if not states:
                raise
            origin.note(f"nothing was left to cut after step {step - 1} of {options.steps}")
            break
        assert state.dead is not None and state.cut is not None
        dead[units_of(state, origin, dead)[state.dead]] = True
        states.append(state)
        model = state.cut
    origin.options = options
    origin.scores = states[0].scores
    origin.dead, origin.after = dead, costs.price(dead)
    done = ("score", "select")
    run_passes(origin, [one for one in build_passes(options.passes) if one.name not in BEFORE and one.kind not in done])
    finish(origin)
    assert origin.plan is not None
    for state in states:
        for name, seconds in state.seconds.items():
            origin.seconds[name] = origin.seconds.get(name, 0.0) + seconds
    for note in states[-1].notes:
        origin.note(note)
    kept = [s.plan.after["macs"] / max(origin.before.macs, 1) for s in states if s.plan is not None]
    origin.note(f"cut in {options.steps} steps, MACs kept: " + ", ".join(f"{share:.1%}" for share in kept))
    origin.plan.notes = list(origin.notes)
    return origin


def _run(origin: State, model: Any, options: Options, share: float, dead: Mask, progress: Progress) -> State:
    """One step, up to ``share`` of the way; ``dead`` are the units of the source that are gone already."""
    now = dataclasses.replace(options, steps=1, eval=None, rates={}, passes=_without_training(options.passes))
    if options.budget is not None:
        measure, target = _target(origin, options, share)
        now = dataclasses.replace(now, budget=f"{measure}={max(target, 2):.0f}")
    elif options.rates:
        now = dataclasses.replace(now, scope="group")

    def prepare(state: State) -> None:
        state.quota = _quota(state, origin, options, share, dead)

    # A step's model takes what its source does: the example inputs of a torch module are its samples too.
    loaded = dataclasses.replace(load_any(model), torch=origin.loaded.torch)
    try:
        return run_state(loaded, now, progress, prepare=prepare)
    except GraphPruneError as error:
        raise type(error)(f"at {share:.0%} of the way: {error}") from error


def _without_training(passes: tuple[str, ...]) -> tuple[str, ...]:
    """Pass specs without those that train, which run once, on the whole cut."""
    registry = discover()
    return tuple(text for text in passes if not registry.load(parse_pass_spec(text).name).last)


def _target(origin: State, options: Options, share: float) -> tuple[str, float]:
    """What a budget measures, and how much of it is left at ``share`` of the way."""
    measure, amount = options.parsed_budget()
    assert origin.before is not None
    full = origin.before.measure(measure)
    return measure, full * (amount if amount < 1 else amount / full) ** share


def _is_there(origin: State, state: State, options: Options, share: float) -> bool:
    """Whether the step before went as far already, as its units are large."""
    if options.budget is None:
        return False
    measure, target = _target(origin, options, share)
    return state.after is not None and state.after.measure(measure) <= target


def _quota(state: State, origin: State, options: Options, share: float, dead: Mask) -> Quota:
    """What the options, which speak of the source, mean for the model of one step."""
    source, here = origin.need_coupling(), state.need_coupling()
    whole = Chooser(origin, source, np.zeros(source.n_units))
    rate = 0.5 if options.rate is None and not options.rates else options.rate or 0.0
    units = units_of(state, origin, dead)
    allowed = {group.id for group in whole.groups}
    groups, floors, rates = set(), {}, {}
    for group in here.groups:
        old = source.groups[int(source.group_of[units[group.units[0]]])]
        if old.id in allowed:
            groups.add(group.id)
        floors[group.id] = max(1, math.ceil(options.floor * len(old.units) - 1e-9))
        power = 2 if options.grain == "both" and group.shared else 1
        # Two families that share an axis each take the root, which the selection does again.
        left = len(old.units) * (1 - whole.rates.get(old.id, rate)) ** (share / power)
        rates[group.id] = 1 - min(left / len(group.units), 1.0) ** power
    wanted = whole.indices() * (1 - (1 - rate) ** share) - float(source.weight[dead].sum())
    return Quota(frozenset(groups), floors, rates if options.rates or options.scope == "group" else {}, wanted)


def units_of(state: State, origin: State, dead: Mask) -> NDArray[np.int64]:
    """Units of the source that the units of a partly cut model are, int64[n_units].

    Raises
    ------
    GraphPruneError
        Some have no tensor of the source left: a recovery wrote out weights that constants had made.
    """
    source, here = origin.need_coupling(), state.need_coupling()
    olds = {plan_name(value): value for value in source.constants if DERIVED not in value.meta}
    out = np.full(here.n_units, -1)
    gone = np.append(dead, False)
    for value in here.constants:
        old = olds.get(plan_name(value))
        if old is None:
            continue
        for axis in range(len(here.coupler.axes.get(value) or ())):
            if not here.has_units(value, axis):
                continue
            before, now = source.rows(old, axis), here.rows(value, axis)
            before = before[~gone[before].any(axis=1)]
            if len(before) != len(now) or before.shape[1] != now.shape[1]:
                continue
            known = (now >= 0) & (before >= 0)
            out[now[known]] = before[known]
    if (out < 0).any():
        raise GraphPruneError(
            f"{int((out < 0).sum())} of {len(out)} units of the model after a step are in no tensor of the source any more: "
            "cut this model in one step (--steps 1), or without recovery between steps"
        )
    return out
