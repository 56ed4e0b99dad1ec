"""How much a model minds: one group at a time is cut at several levels, and the outputs are compared with the source's.

Without refitting, so that what is seen is the cut alone; ``recover`` gets most of it back, and groups that are hard here are
mostly those that stay hard. Groups are jobs on an executor, their curves are kept by content.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from graphprune import cache, combine
from graphprune.choosing import Chooser
from graphprune.costs import CostModel
from graphprune.cut import Rewriter
from graphprune.errors import GraphPruneError, UsageError
from graphprune.executor import Executor, Here
from graphprune.fidelity import compare_outputs
from graphprune.frontends.onnx import plan_name
from graphprune.options import Options
from graphprune.passes.base import State
from graphprune.plugins import criterion_class
from graphprune.spec import parse_pass_spec

Progress = Callable[[str, float], None]
LEVELS = (0.1, 0.25, 0.5, 0.75)
#: Groups that one job does: its worker analyses the model once for all of them.
CHUNK = 8


@dataclass(frozen=True)
class Job:
    """Some groups of one model."""

    model: str
    options: dict[str, Any]
    levels: tuple[float, ...]
    groups: tuple[int, ...]


@dataclass(frozen=True)
class Curve:
    """One group.

    Attributes
    ----------
    removed
        Units removed at each level.
    error
        Divergence of the outputs from the source's (:func:`graphprune.fidelity.compare_outputs`).
    macs
        Share of the model's MACs that is left.
    tensor
        One of its members, to call it by.
    """

    id: int
    kind: str
    units: int
    tensor: str
    removed: list[int]
    error: list[float]
    macs: list[float]


@dataclass(frozen=True)
class Sensitivity:
    """Curves of all groups; ``fresh`` counts those that were computed now."""

    criterion: str
    levels: list[float]
    samples: int
    curves: list[Curve]
    fresh: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def sensitivity(
    model: str | os.PathLike[str],
    criterion: str = "l1",
    *,
    levels: Sequence[float] = LEVELS,
    executor: Executor | None = None,
    progress: Progress = lambda _what, _share: None,
    **options: Any,
) -> Sensitivity:
    """Cut each group alone at several levels.

    Parameters
    ----------
    model
        Path of an ``.onnx`` file.
    criterion
        Scoring pass that says in which order units go.
    levels
        Shares of a group's units, in (0, 1).
    **options
        Further fields of :class:`graphprune.Options`: ``data``, ``samples``, ``keep``, ``grain``, ...

    Raises
    ------
    UsageError
        A bad option, no criterion, nothing to cut.
    """
    path = Path(model)
    if not path.is_file():
        raise UsageError(f"'{path}' does not exist")
    if not levels or not all(0 < level < 1 for level in levels):
        raise UsageError("levels are shares of a group's units to remove, in (0, 1)")
    cls = criterion_class(parse_pass_spec(criterion).name)
    chosen = {**options, "passes": [criterion]}
    checked = Options(**{**chosen, "passes": (criterion,)})
    known = {**chosen, "data": None}
    name = cache.key("sensitivity", known, list(levels), cache.inputs_digest(path, checked.data), cache.source_digest(cls))
    stored = cache.load("sensitivity", name)
    if stored is not None:
        return Sensitivity(criterion, list(levels), checked.sample_count, [Curve(**curve) for curve in stored], 0)
    progress("analysing", 0.0)
    chooser = _scored(str(path), chosen)[1]
    ids = [group.id for group in chooser.groups]
    chunks = [tuple(ids[start : start + CHUNK]) for start in range(0, len(ids), CHUNK)]
    jobs = [Job(str(path), chosen, tuple(levels), chunk) for chunk in chunks]
    curves: dict[int, list[Curve]] = {}
    for done, (at, found) in enumerate((executor or Here()).run(measure, jobs), 1):
        curves[at] = [Curve(**curve) for curve in found]
        progress(f"{min(done * CHUNK, len(ids))} of {len(ids)} groups", done / len(jobs))
    ordered = [curve for at in range(len(jobs)) for curve in curves[at]]
    cache.store("sensitivity", name, [asdict(curve) for curve in ordered])
    return Sensitivity(criterion, list(levels), checked.sample_count, ordered, len(ordered))


def measure(job: Job) -> list[dict[str, Any]]:
    """Curves of a job's groups, as plain data."""
    from graphprune.calibration import samples_for
    from graphprune.comparing import run_all
    from graphprune.feeding import feed_size

    state, chooser = _scored(job.model, job.options)
    coupling = state.need_coupling()
    costs = CostModel(state.model, coupling, state.need_facts())
    full = max(costs.price().macs, 1)
    feeds = list(samples_for(state, batch=feed_size(state)))
    source = run_all(state.model, feeds)
    out = []
    for group in coupling.groups:
        if group.id not in job.groups:
            continue
        errors, macs, counts = [], [], []
        for level in job.levels:
            dead = chooser.mask(chooser.counts_of([group.id], [round(level * len(group.units))]))
            counts.append(int(dead[group.units].sum()))
            macs.append(costs.price(dead).macs / full)
            errors.append(_divergence(state, dead, feeds, source) if dead.any() else 0.0)
        tensor = next((plan_name(value) for value, _ in group.members), "")
        out.append(asdict(Curve(group.id, group.kind, len(group.units), tensor, counts, errors, macs)))
    return out


def _divergence(state: State, dead: Any, feeds: Any, source: Any) -> float:
    from graphprune.comparing import run_all

    cut = Rewriter(state.model, state.need_coupling(), state.need_facts(), dead).run()
    try:
        return float(compare_outputs(source, run_all(cut, feeds))["divergence"])
    except GraphPruneError as error:
        raise GraphPruneError(f"a cut of {int(dead.sum())} units does not run: {error}") from error


def _scored(model: str, options: Mapping[str, Any]) -> tuple[State, Chooser]:
    """The model with its scores, and what may be removed in which order."""
    from graphprune.pipeline import run_state

    chosen = Options(**{**options, "passes": tuple(options["passes"])})
    state = run_state(model, chosen, until="scores")
    return state, Chooser(state, state.need_coupling(), combine.scores_of(state))
