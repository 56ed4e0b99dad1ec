"""Meeting a latency budget: widths from the model of times, then the cut itself measured, and the model corrected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from graphprune import timing
from graphprune.allocation import Curve, importance_curves, programmed
from graphprune.backends import onnx as writer
from graphprune.backends.runtimes import Runtime, find
from graphprune.choosing import Chooser, Mask
from graphprune.cut import Rewriter
from graphprune.devices import alignment, named
from graphprune.errors import NotFasterError, UsageError
from graphprune.latency.measure import clock_of, measured, timing_feed
from graphprune.latency.model import LatencyModel
from graphprune.passes.base import State

#: Choices that are cut and measured at most, and how near the budget ends the search.
ROUNDS, NEAR = 6, 0.03
#: How far from the budget a result is said to have missed it.
MISSED = 0.10
#: Runs of source and cut for each choice, and for the one that is delivered.
_RUNS, _LAST = 15, 40
_SECONDS = 20.0


@dataclass(frozen=True)
class Trial:
    """One choice, cut and measured.

    Attributes
    ----------
    times
        float64[2, rounds], milliseconds of source and cut.
    """

    dead: Mask
    times: NDArray[np.float64]

    @property
    def medians(self) -> tuple[float, float]:
        source, cut = np.median(self.times, axis=1)
        return float(source), float(cut)

    @property
    def share(self) -> float:
        source, cut = self.medians
        return cut / source


Clockwork = Callable[[Mask, int], NDArray[np.float64]]


def meet(state: State, chooser: Chooser) -> Mask:
    """Units to remove so that the cut model runs in the time asked.

    Raises
    ------
    NotFasterError
        No choice ran faster than the source by measurement (unless ``--force``).
    UsageError
        The source is as fast already.
    """
    options = state.options
    if options.latency_from is not None or options.device != "cpu":
        return _estimate(state, chooser)
    runtime = find(options.runtime)
    threads = options.threads or timing.cores()
    with timing.pinned(threads):
        align = options.align if isinstance(options.align, int) else None
        model = measured(state, runtime, threads, chooser.orders, align)
        state.note(model.describe())
        if align is None:
            chooser.align_to(model.step)
        solver = solver_of(state, chooser, model)
        return search(state, model, solver, stopwatch(state, runtime, threads), runtime, threads)


def _estimate(state: State, chooser: Chooser) -> Mask:
    """The choice for a device by its profile, or by its peak and bandwidth: nothing here can measure it."""
    from graphprune.latency import device, roofline

    options = state.options
    target = None if options.device == "cpu" else named(options.device)
    own = 1 if target is None else alignment(target)
    step = options.align if isinstance(options.align, int) else own
    if not isinstance(options.align, int):
        chooser.align_to(step)
    model: device.Estimated | roofline.Estimated
    if options.latency_from is not None:
        model = device.estimated(state, Path(options.latency_from), chooser.orders, step)
    else:
        assert target is not None
        model = roofline.estimated(state, target, chooser.orders)
    _, amount = options.parsed_budget()
    if amount >= 1 and amount / 1000 >= model.total:
        raise UsageError(
            f"--budget {options.budget}: the source is estimated at {model.total:.3g} ms, which is as fast already; nothing to cut"
        )
    share = amount if amount < 1 else amount / 1000 / model.total
    dead = solver_of(state, chooser, model)(share)
    gone = {group.id: int(dead[group.units].sum()) for group in chooser.groups}
    reached = model.share(gone)
    state.note(model.describe())
    ms = f"{reached * model.total:.3g} ms of {model.total:.3g}"
    missed = "; --floor, --keep and frozen widths leave nothing nearer" if reached > share * (1 + MISSED) else ""
    state.note(f"budget {options.budget}: estimated at {reached:.3f} of the source, {ms}{missed}")
    where = "the profile's device" if target is None else f"{target.device.title}, {target.width_precision.upper()}"
    state.estimate = {"on": where, "before": model.total, "after": reached * model.total}
    return dead


def search(
    state: State, model: LatencyModel, solver: Callable[[float], Mask], clockwork: Clockwork, runtime: Runtime, threads: int,
) -> Mask:  # fmt: skip
    """Solve, cut, measure, correct the model by what was measured; the choice nearest to the budget.

    Parameters
    ----------
    solver
        Share of the source's time, as the model sees it -> units to remove.
    clockwork
        A choice and a number of runs -> times of source and cut, in turns.
    """
    _, amount = state.options.parsed_budget()
    trials: list[Trial] = []
    target = amount if amount < 1 else None
    aim = target if target is not None else 0.5
    shares: dict[bytes, float] = {}
    asked: list[tuple[float, float]] = []
    for n in range(2 * ROUNDS):
        state.progress("meeting the latency", n / (2 * ROUNDS))
        dead = solver(aim)
        name = dead.tobytes()
        if name not in shares:
            if len(trials) == ROUNDS:
                break
            trials.append(Trial(dead, clockwork(dead, _RUNS)))
            shares[name] = trials[-1].share
        if target is None:
            target = _share_asked(state, trials[0].medians[0])
        share = shares[name]
        if abs(share / target - 1) <= NEAR:
            break
        asked.append((aim, share))
        aim = next_aim(asked, target)
    assert target is not None
    wanted = target
    best = min(trials, key=lambda one: abs(np.log(one.share / wanted)))
    last = Trial(best.dead, clockwork(best.dead, _LAST))
    _said(state, last, target, [one.share for one in trials], runtime, threads)
    return best.dead


def next_aim(asked: Sequence[tuple[float, float]], target: float) -> float:
    """What to ask of the model next, given what was asked so far and what was measured then.

    Between the nearest choices on both sides where there are two, for a cut jumps where a width does; else what the model
    lacked at the last choice it will lack at the next, nearly.
    """
    below = [(aim, share) for aim, share in asked if share <= target]
    above = [(aim, share) for aim, share in asked if share > target]
    if below and above:
        (low, a), (high, b) = max(below), min(above)
        if low < high:
            # Where the line crosses, but well within: a jump near one end would be met again and again.
            weight = float(np.clip((target - a) / (b - a), 0.2, 0.8))
            return low + weight * (high - low)
    aim, share = asked[-1]
    return float(np.clip(aim * np.clip(target / share, 0.5, 2.0), 0.01, 0.98))


def _share_asked(state: State, source: float) -> float:
    """What an amount in milliseconds is of the source's time."""
    _, amount = state.options.parsed_budget()
    ms = amount / 1000
    if ms >= source:
        raise UsageError(f"--budget {state.options.budget}: the source runs in {source:.3g} ms already; nothing to cut")
    return ms / source


def _said(state: State, last: Trial, target: float, shares: Sequence[float], runtime: Runtime, threads: int) -> None:
    """Notes of what was reached; refuses what is not faster."""
    source, cut = last.medians
    low, high = timing.ratio_interval(last.times[1], last.times[0], state.options.seed)
    state.latency.update(before=source, after=cut)
    state.timed_in = f"{runtime.name} {runtime.version}"
    clock = "time of the processor" if clock_of(threads) == "cpu" else "time that passed"
    how = f"{runtime.name} {runtime.version}, {threads} thread{'s' if threads > 1 else ''}, {clock}, in turns"
    reached = f"{cut:.3g} ms of {source:.3g} ms, {last.share:.3f} of the source ({low:.3f} to {high:.3f} with 95 %; {how})"
    if high >= 1 and last.dead.any():
        text = (
            f"--budget {state.options.budget}: no cut found is faster than the source by measurement: the nearest one runs in "
            f"{reached}. What is left to cut takes too little of the time, or its widths are not those the runtime likes"
        )
        if not state.options.force:
            raise NotFasterError(f"{text}; allow more (--floor, --keep, --grain), or --force writes it all the same")
        state.note(f"{text}; written because of --force")
        return
    listed = ", ".join(f"{share:.3f}" for share in shares)
    missed = abs(last.share / target - 1) > MISSED
    word = "the nearest found is" if missed else "reached"
    state.note(f"budget {state.options.budget}: {word} {reached}; choices measured on the way: {listed}")
    if missed:
        state.note("the latency asked was missed by more than 10 %: --floor, --keep, frozen widths or the steps of the runtime "
                   "leave nothing nearer")  # fmt: skip


def stopwatch(state: State, runtime: Runtime, threads: int) -> Clockwork:
    """Times of source and cut, in turns; the source is loaded once."""
    path = state.loaded.path
    source = runtime.load(Path(path) if path is not None else writer.to_bytes(state.loaded.model), threads)
    feed = timing_feed(state)

    def run(dead: Mask, runs: int) -> NDArray[np.float64]:
        cut = runtime.load(writer.to_bytes(cut_model(state, dead)), threads)
        try:
            return timing.in_turns([source, cut], [feed, feed], runs=runs, seconds=_SECONDS, clock=clock_of(threads))
        finally:
            cut.close()

    return run


def cut_model(state: State, dead: Mask) -> ir.Model:
    """The model that a choice gives."""
    model = Rewriter(state.model, state.need_coupling(), state.need_facts(), dead).run()
    RemoveUnusedNodesPass()(model)
    return model


def solver_of(state: State, chooser: Chooser, model: LatencyModel) -> Callable[[float], Mask]:
    """How a budget is shared among the groups, as ``--allocate`` says: share of the time -> units to remove."""
    if chooser.sharing in ("uniform", "isomorphic"):
        return lambda share: chooser.first(chooser.reaching(lambda k: model.share(chooser.shrunk(chooser.counts(k))), share))
    if chooser.sharing == "dp":
        curves = _fitted_curves(state, chooser)
    else:
        curves = importance_curves(chooser.scores, chooser.orders, chooser.limits)
    return lambda share: programmed(chooser, curves, model.share, share, polish=False)


def _fitted_curves(state: State, chooser: Chooser) -> Sequence[Curve]:
    """What each group's loss costs after least squares, measured at the outputs."""
    from graphprune.allocation import curves_of
    from graphprune.lstsq import one_thread

    with one_thread():
        return curves_of(state, chooser).measured
