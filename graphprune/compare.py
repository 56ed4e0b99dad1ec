"""Criteria side by side: one model, the same budgets, data and recovery; what each leaves, before and after recovery.

Every criterion at every budget is a job of its own; jobs run on an executor (:mod:`graphprune.executor`) and their results are
kept by content (:mod:`graphprune.cache`), so that a run repeated with one criterion more computes that one only.
Published comparisons find no universal winner among criteria, and recovery matters more than most of them: hence this.
"""

from __future__ import annotations

import base64
import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from graphprune import cache
from graphprune.errors import GraphPruneError, UsageError
from graphprune.evaluation import Evaluation
from graphprune.executor import Executor, Here
from graphprune.options import Options
from graphprune.plugins import criterion_class, discover
from graphprune.spec import PassSpec, format_pass_spec, parse_pass_spec
from graphprune.timing import interleaved

Progress = Callable[[str, float], None]
Recovery = Literal["ls", "bn", "bias", "none"]
#: Seeds of criteria that draw.
SEEDS = 3


@dataclasses.dataclass(frozen=True)
class Job:
    """One criterion at one budget: plain values, so that it can travel.

    Attributes
    ----------
    model
        Path of the source.
    options
        Fields of :class:`graphprune.Options`, recovery and ``eval`` left out.
    recover
        Pass spec of the recovery, empty for none.
    evaluate
        ``MODULE:FUNCTION``, or empty.
    """

    model: str
    options: dict[str, Any]
    recover: str
    evaluate: str

    @property
    def criterion(self) -> str:
        """What the row is called."""
        names = "+".join(self.options["passes"])
        return f"{names} ({self.options['combine']})" if len(self.options["passes"]) > 1 else names


@dataclasses.dataclass
class Comparison:
    """What was found.

    Attributes
    ----------
    source
        The source's own ``macs``, ``params``, ``bytes``, its ``evaluation`` and ``latency`` in milliseconds.
    rows
        One a criterion and budget (seeds of one criterion together), in the order asked.
    correlation
        Criterion -> criterion -> Spearman's rank correlation of their scores within groups, weighted by units.
    fresh
        Jobs that were computed; the others were there.
    """

    source: dict[str, Any]
    rows: list[dict[str, Any]]
    correlation: dict[str, dict[str, float]]
    fresh: int

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def compare(
    model: str | os.PathLike[str],
    passes: Sequence[str],
    *,
    budgets: Sequence[str] = (),
    rate: float | None = None,
    combine: str = "rank-mean",
    recover: Recovery = "ls",
    evaluate: str = "",
    seeds: int = SEEDS,
    latency: bool = True,
    executor: Executor | None = None,
    progress: Progress = lambda _what, _share: None,
    **options: Any,
) -> Comparison:
    """Cut a model by several criteria and set the results side by side.

    Parameters
    ----------
    model
        Path of an ``.onnx`` file.
    passes
        Scoring passes, with their options if any; ``a+b`` stands for two that are combined. One that draws (``random``) is
        run with ``seeds`` seeds; one that can
        keep the low or the high side (``entropy``) is run with both.
    budgets
        ``macs=0.5`` and so on, each in turn; or a ``rate``.
    combine
        How ``a+b`` are combined (:mod:`graphprune.combine`).
    recover
        Mode of the recovery behind every criterion, ``none`` for none.
    evaluate
        ``MODULE:FUNCTION`` of the path of an ``.onnx`` file: accuracy before and after recovery.
    latency
        Time source and results against each other in ONNX Runtime, on this machine.
    **options
        Further fields of :class:`graphprune.Options`, the same for all.

    Raises
    ------
    UsageError
        Nothing to compare, an unknown pass, a bad option. A criterion that fails is a row with its message.
    """
    jobs = _jobs(Path(model), passes, budgets, rate, combine, recover, evaluate, seeds, options)
    digests = cache.inputs_digest(model, jobs[0].options.get("data"))
    keys = [cache.key("compare", _identity(job), digests, _code(job)) for job in jobs]
    found: dict[int, dict[str, Any]] = {
        n: entry for n, name in enumerate(keys) if (entry := cache.load("compare", name)) is not None
    }
    todo = [n for n in range(len(jobs)) if n not in found]
    for done, (at, entry) in enumerate((executor or Here()).run(measure, [jobs[n] for n in todo]), 1):
        found[todo[at]] = entry
        if "failed" not in entry:
            cache.store("compare", keys[todo[at]], entry)
        progress(f"{done} of {len(todo)} cuts", done / len(todo))
    entries = [found[n] for n in range(len(jobs))]
    source = _source(jobs[0], entries, digests, latency)
    if latency:
        _time(jobs[0], entries, keys, source, progress)
    return Comparison(source, _rows(jobs, entries), _correlation(jobs, entries), len(todo))


def measure(job: Job) -> dict[str, Any]:
    """One job: cut, recover, evaluate. Plain data; what the program itself refuses is ``failed``."""
    from graphprune.pipeline import prune

    start = time.perf_counter()
    options = dict(job.options)
    passes = [*options.pop("passes"), *filter(None, [job.recover])]
    try:
        result = prune(job.model, passes=passes, **options)
        seconds = time.perf_counter() - start
        evaluation: dict[str, Any] = {}
        if job.evaluate:
            judge, source = Evaluation(job.evaluate), Path(job.model)
            evaluation["after"] = judge(result.model, "after", source)
            evaluation["before"] = evaluation["after"]
            if result.plan.recovery.get("used"):
                assert result.state.rewriter is not None
                evaluation["before"] = judge(result.state.rewriter.again(), "before", source)
        proto = result.proto().SerializeToString()
    except GraphPruneError as error:
        return {"failed": str(error)}
    plan = result.plan
    groups = {str(group["id"]): [group["kept"], group["units"]] for group in plan.groups}
    fidelity = plan.recovery.get("fidelity") or ({"before": plan.fidelity, "after": plan.fidelity} if plan.fidelity else {})
    return {
        "source": plan.before, "costs": plan.after, "groups": groups, "error": plan.verify["max_rel_error"],
        "fidelity": {when: _short(fidelity[when]) for when in ("before", "after") if when in fidelity},
        "evaluation": evaluation, "seconds": seconds, "notes": plan.notes,
        "scores": next(iter(plan.scores.values()))["groups"] if plan.scores else {},
        "model": base64.b64encode(proto).decode() if len(proto) < 64 << 20 else "",
    }  # fmt: skip


def _short(fidelity: Mapping[str, Any]) -> dict[str, Any]:
    """A fidelity report in a few numbers: the divergence, and agreement where there are classes or boxes."""
    out = {"divergence": fidelity["divergence"]}
    tops = [entry["top1"] for entry in fidelity["outputs"].values() if "top1" in entry]
    if tops:
        out["top1"] = float(np.mean(tops))
    if "boxes" in fidelity:
        out["f1"] = fidelity["boxes"]["f1"]
    return out


def _jobs(
    model: Path, passes: Sequence[str], budgets: Sequence[str], rate: float | None, combine: str, recover: Recovery, evaluate: str,
    seeds: int, options: Mapping[str, Any],
) -> list[Job]:  # fmt: skip
    if not model.is_file():
        raise UsageError(f"'{model}' does not exist")
    if not passes:
        raise UsageError("nothing to compare: give --pass two times or more")
    goals: list[dict[str, Any]] = [{"budget": budget} for budget in budgets]
    if any(budget.lstrip().startswith("latency") for budget in budgets):
        # Jobs run side by side and are kept by content: times of such runs would be of each other.
        raise UsageError("compare takes no latency budgets: give macs=..., or run each criterion with the latency budget alone")
    if rate is not None or not goals:
        goals.append({"rate": rate if rate is not None else 0.5})
    choices: dict[tuple[str, ...], bool] = {}
    for text in passes:
        specs = [parse_pass_spec(part) for part in _parts(text)]
        classes = [criterion_class(spec.name) for spec in specs]
        draws = any(getattr(cls, "draws", False) and "seed" not in spec.options for spec, cls in zip(specs, classes, strict=True))
        for variant in [[one] for one in _both_signs(specs[0], classes[0])] if len(specs) == 1 else [specs]:
            choices[tuple(map(format_pass_spec, variant))] = draws
    recovery = "" if recover == "none" else f"recover{{mode={recover}}}"
    out = []
    for goal in goals:
        for names, draws in choices.items():
            for seed in range(seeds) if draws else (int(options.get("seed", 0)),):
                chosen = {**options, **goal, "passes": list(names), "seed": seed}
                if len(names) > 1:
                    chosen["combine"] = combine
                    if combine.strip().startswith("parallel"):
                        chosen.pop("allocate", None)  # its thresholds say what each group loses
                Options(**{**chosen, "passes": names})  # refuses what is wrong before any work
                out.append(Job(str(model), chosen, recovery, evaluate))
    return out


def _parts(text: str) -> list[str]:
    """``a{b=1}+c`` as its passes; a plus inside braces is none of ours."""
    parts, depth, start = [], 0, 0
    for n, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if character == "+" and depth == 0:
            parts.append(text[start:n])
            start = n + 1
    return [*parts, text[start:]]


def _both_signs(spec: PassSpec, cls: type) -> list[PassSpec]:
    """A criterion that can keep either side, with both."""
    hint = get_type_hints(cls).get("keep")
    if get_origin(hint) is not Literal or set(get_args(hint)) != {"low", "high"} or "keep" in spec.options:
        return [spec]
    default = next(item.default for item in dataclasses.fields(cls) if item.name == "keep")
    other = "high" if default == "low" else "low"
    return [spec, PassSpec(spec.name, {**spec.options, "keep": other})]


def _identity(job: Job) -> dict[str, Any]:
    """A job without what only says where things lie."""
    return {**job.options, "data": None, "recover": job.recover, "evaluate": job.evaluate}


def _code(job: Job) -> list[str]:
    """Contents of the code that is not this package's: plugged-in criteria, and the evaluation."""
    out = [cache.source_digest(discover().load(parse_pass_spec(text).name)) for text in job.options["passes"]]
    if job.evaluate:
        out.append(Evaluation(job.evaluate).digest)
    return out


def _source(job: Job, entries: Sequence[Mapping[str, Any]], digests: Mapping[str, str], latency: bool) -> dict[str, Any]:
    """The source's own figures."""
    out: dict[str, Any] = next((dict(entry["source"]) for entry in entries if "source" in entry), {})
    if job.evaluate and out:
        name = cache.key("source", digests, job.evaluate, _code(job))
        known = cache.load("compare", name)
        if known is None:
            known = Evaluation(job.evaluate)(Path(job.model), "before")
            cache.store("compare", name, known)
        out["evaluation"] = known
    return out


def _time(
    job: Job, entries: Sequence[dict[str, Any]], keys: Sequence[str], source: dict[str, Any], progress: Progress
) -> None:
    """Latency of every result as a share of the source's, which is measured in turns with it."""
    todo = [n for n, entry in enumerate(entries) if entry.get("model") and "latency" not in entry]
    if not todo and "latency" not in source:
        known = [entry["latency"] for entry in entries if "latency" in entry]
        if known:
            source["latency"] = known[0]["source"]
        return
    from graphprune.calibration import samples_for
    from graphprune.pipeline import inspect

    state = inspect(job.model, shapes=job.options.get("shapes")) if todo else None
    feed = dict(next(iter(samples_for(state, n=1)))) if state is not None else {}
    for done, n in enumerate(todo):
        progress("timing", done / len(todo))
        entry = entries[n]
        own, base = interleaved([base64.b64decode(entry["model"]), Path(job.model)], feed)
        entry["latency"] = {"ms": own, "source": base, "share": own / base}
        cache.store("compare", keys[n], entry)
    source["latency"] = float(np.median([entry["latency"]["source"] for entry in entries if "latency" in entry]))


def _rows(jobs: Sequence[Job], entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Results as they are shown; what differs in nothing but the seed is one row."""
    rows: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for job, entry in zip(jobs, entries, strict=True):
        goal = job.options.get("budget") or f"rate={job.options['rate']:g}"
        rows.setdefault((job.criterion, goal), []).append(entry)
    out = []
    for (criterion, goal), many in rows.items():
        failed = [entry["failed"] for entry in many if "failed" in entry]
        row: dict[str, Any] = {"criterion": criterion, "budget": goal, "seeds": len(many)}
        if failed:
            out.append({**row, "failed": failed[0]})
            continue
        for measure_ in ("macs", "params", "bytes"):
            row[measure_] = float(np.mean([e["costs"][measure_] / max(e["source"][measure_], 1) for e in many]))
        row["error"] = max(entry["error"] for entry in many)
        row["seconds"] = float(np.mean([entry["seconds"] for entry in many]))
        row["fidelity"] = {when: _mean([e["fidelity"][when] for e in many]) for when in many[0]["fidelity"]}
        row["evaluation"] = {when: _mean([e["evaluation"][when] for e in many]) for when in many[0]["evaluation"]}
        if len(many) > 1 and "after" in many[0]["evaluation"]:
            values = [headline(entry["evaluation"]["after"]) for entry in many]
            row["spread"] = [min(values), max(values)]
        if all("latency" in entry for entry in many):
            row["latency"] = float(np.mean([entry["latency"]["share"] for entry in many]))
        row["groups"] = many[0]["groups"]
        out.append(row)
    return out


def headline(value: Any) -> float:
    """The figure of an evaluation that rows are set in order by: the number, or the first of several by name."""
    return float(next(iter(value.values()))) if isinstance(value, Mapping) else float(value)


def judge(found: Comparison) -> str:
    """What the figure is called that rows are judged by."""
    values = [row["evaluation"]["after"] for row in found.rows if row.get("evaluation")]
    if not values:
        return "divergence"
    return str(next(iter(values[0]))) if isinstance(values[0], Mapping) else "evaluation"


def _mean(values: Sequence[Any]) -> Any:
    if isinstance(values[0], Mapping):
        return {key: float(np.mean([value[key] for value in values])) for key in values[0]}
    return float(np.mean(values))


def _correlation(jobs: Sequence[Job], entries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Spearman's rank correlation between the scores of every two criteria, first seed and budget of each."""
    scores: dict[str, Mapping[str, Sequence[float]]] = {}
    for job, entry in zip(jobs, entries, strict=True):
        if entry.get("scores") and len(job.options["passes"]) == 1:
            scores.setdefault(job.criterion, entry["scores"])
    return {a: {b: rank_correlation(scores[a], scores[b]) for b in scores} for a in scores}


def rank_correlation(a: Mapping[str, Sequence[float]], b: Mapping[str, Sequence[float]]) -> float:
    """Spearman's correlation within groups of three units or more, averaged with the units as weights; 0 where there are none.

    Parameters
    ----------
    a, b
        Group -> scores of its units, in one order.
    """
    total, weight = 0.0, 0
    for group, values in a.items():
        other = b.get(group)
        if other is None or len(values) < 3 or len(other) != len(values):
            continue
        x, y = _ranks(np.asarray(values)), _ranks(np.asarray(other))
        scale = float(np.sqrt(np.square(x).sum() * np.square(y).sum()))
        total += len(values) * (float(x @ y) / scale if scale else 0.0)
        weight += len(values)
    return total / weight if weight else 0.0


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    """Ranks about their mean, ties averaged."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    middle = ends - (counts + 1) / 2
    ranks = middle[inverse.reshape(-1)]
    return np.asarray(ranks - ranks.mean(), np.float64)
