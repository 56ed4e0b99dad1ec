"""What a person sees in the terminal: progress, tables, the proof."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from graphprune.coupling import node_name
from graphprune.errors import UsageError
from graphprune.frontends.onnx import plan_name
from graphprune.passes.rewrite import frozen_entries, group_entries
from graphprune.spec import nearest

if TYPE_CHECKING:
    from graphprune.passes.base import State
    from graphprune.pipeline import Result
    from graphprune.plan import Plan

#: Figures of a fidelity report: key, what it is, and its format.
FIDELITY = (
    ("rel_mse", "squared error, share of the variance", ".3g"),
    ("top1", "same best class", ".1%"),
    ("kl", "KL divergence, nats", ".3g"),
    ("equal", "equal elements", ".1%"),
    ("f1", "F1 of matched boxes", ".3f"),
)
#: Rows shown of a long table; ``--json`` gives all.
_ROWS = 24


class Display:
    """A progress bar on standard error while a run works; nothing when quiet or not a terminal."""

    def __init__(self, quiet: bool = False) -> None:
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description:<22}"), BarColumn(28), TimeElapsedColumn(), transient=True,
            console=console, disable=quiet or not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("loading", total=1.0)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def progress(self, what: str, share: float) -> None:
        """Show what is being done and how much of it is done, 0 to 1."""
        self._bar.update(self._task, description=what, completed=share)


def human(n: float) -> str:
    """A count in four characters or so: 1.82 G."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.2f} {unit}"
    return f"{n:.0f}"


def print_result(result: Result, files: list[Path]) -> None:
    """Costs before and after, widths, the proof, what was left alone, and where it was written."""
    console = Console()
    plan, state = result.plan, result.state
    table = Table(title=None, header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, justify in (("", "left"), ("before", "right"), ("after", "right"), ("kept", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for key, label in (("macs", "MACs"), ("params", "parameters"), ("bytes", "weight bytes")):
        before, after = plan.before[key], plan.after[key]
        table.add_row(label, human(before), human(after), f"{after / before:.1%}" if before else "-")
    if state.latency:
        before, after = state.latency["before"], state.latency["after"]
        table.add_row("latency, ms", f"{before:.4g}", f"{after:.4g}", f"{after / before:.1%}")
    if state.estimate:
        before, after = state.estimate["before"], state.estimate["after"]
        table.add_row("latency, ms (estimate)", f"{before:.4g}", f"{after:.4g}", f"{after / before:.1%}")
    for key, source, now in evaluations(state):
        table.add_row(key, f"{source:.4g}", f"{now:.4g}", "")
    console.print(table)
    console.print()
    cut = [group for group in plan.groups if group["kept"] < group["units"]]
    kinds = Counter(group["kind"] for group in cut)
    shown = ", ".join(f"{n} of {kind}s" for kind, n in kinds.items())
    console.print(f"[bold]{len(cut)}[/] of {len(plan.groups)} groups cut" + (f" ({shown})" if shown else ""))
    _print_reasons(console, plan.frozen)
    check = plan.verify
    console.print(
        f"[bold green]proved[/]: largest difference to the masked original {check['max_rel_error']:.1e} of an "
        f"output's maximum (allowed {check['tolerance']:g}); {check['exact_units']} exact, "
        f"{check['inexact_units']} inexact units removed"
    )
    if "openvino" in check:
        one = check["openvino"]
        console.print(
            f"[bold green]proved[/]: OpenVINO {one['version']} gives what ONNX Runtime gives, largest difference "
            f"{one['max_rel_error']:.1e} of an output's maximum (allowed {one['tolerance']:g})"
            + (", weights stored as float16" if one["compress_to_fp16"] else "")
        )
    _print_recovery(console, plan.recovery)
    if plan.stages:
        print_stages(console, plan)
    else:
        _print_fidelity(console, plan)
    for note in state.notes:
        console.print(f"[yellow]note[/]: {escape(note)}")
    seconds = sum(state.seconds.values())
    console.print(f"written in {seconds:.1f} s: " + ", ".join(escape(str(path)) for path in files))


def _print_recovery(console: Console, recovery: Mapping[str, Any]) -> None:
    """What recovery fitted."""
    if not recovery:
        return
    if "layers" in recovery:
        layers = recovery["layers"]
        fitted = [layer for layer in layers if layer["kept"]]
        console.print(
            f"[bold green]recovered[/]: {len(fitted)} of {len(layers)} layers fitted on {recovery['samples']} samples, "
            f"{len(layers) - len(fitted)} left as cut (no gain on held-out samples), {len(recovery['left'])} not fittable"
        )
    if "distill" in recovery:
        one = recovery["distill"]
        kept = f"best at step {one['best_step']:,}" if one["used"] else "[yellow]no gain, weights left as they were[/]"
        console.print(
            f"[bold green]distilled[/]: {one['steps']:,} of {one['planned']:,} steps ({one['epochs']:.2g} epochs of "
            f"{one['samples']:,} samples) in {one['seconds']:.0f} s, {one['ended']}; {kept}"
        )


def _print_fidelity(console: Console, plan: Plan) -> None:
    """How near the outputs are to the source's, before recovery and after it where there was one."""
    after = plan.fidelity
    if not after:
        return
    before = plan.unrecovered or None
    console.print(f"fidelity to the source on {after['samples']} held-out samples:")

    def line(what: str, unit: str, then: float | None, now: float, form: str) -> None:
        console.print(f"  {what}: {unit} " + ("" if then is None else f"{then:{form}} -> ") + f"{now:{form}}")

    def shown(earlier: Mapping[str, Any] | None, now: Mapping[str, Any], what: str) -> None:
        for key, unit, form in FIDELITY:
            if key in now:
                line(what, unit, None if earlier is None else earlier.get(key), now[key], form)

    for name, entry in list(after["outputs"].items())[:_ROWS]:
        shown(None if before is None else before["outputs"].get(name), entry, f"'{escape(name)}'")
    if "boxes" in after:
        names = ", ".join(f"'{escape(name)}'" for name in after["boxes"]["outputs"])
        shown(None if before is None else before.get("boxes"), after["boxes"], f"boxes in {names}")


def stage_rows(plan: Plan) -> tuple[list[str], list[list[float | str | None]]]:
    """The model at each stage of the run: what its columns are, and a row for each; shares end in ``%``."""
    given = [stage.get("evaluation") for stage in plan.stages]
    tables = [one if isinstance(one, Mapping) else {} if one is None else {"evaluation": one} for one in given]
    names = list(tables[0])[:4]
    faith = [stage["fidelity"] for stage in plan.stages]
    agreeing = [key for key in ("top1", "f1") if any(agreement(one, key) is not None for one in faith)]
    labels = {key: label for key, label, _ in FIDELITY}
    columns = ["stage", "file bytes", *names, *(f"{labels[key]}, %" for key in agreeing), "divergence"]
    rows: list[list[float | str | None]] = []
    for stage, table, one in zip(plan.stages, tables, faith, strict=True):
        shares = [None if (share := agreement(one, key)) is None else 100 * share for key in agreeing]
        rows.append([stage["stage"], stage["bytes"], *map(table.get, names), *shares, one.get("divergence")])
    return columns, rows


def agreement(fidelity: Mapping[str, Any], key: str) -> float | None:
    """A share of a fidelity report, over all outputs that have it."""
    if key == "f1":
        return (fidelity.get("boxes") or {}).get("f1")
    found = [entry[key] for entry in fidelity.get("outputs", {}).values() if key in entry]
    return sum(found) / len(found) if found else None


def print_stages(console: Console, plan: Plan) -> None:
    """Source, cut, recovered, INT8: each judged on the same samples."""
    columns, rows = stage_rows(plan)
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name, justify="left" if name == "stage" else "right")
    for row in rows:
        size = human(float(row[1] or 0))
        table.add_row(str(row[0]), size, *("" if value is None else f"{value:.4g}" for value in row[2:]))
    console.print(f"stages, outputs against the source's on {plan.fidelity['samples']} held-out samples:")
    console.print(table)


def evaluations(state: State) -> list[tuple[str, float, float]]:
    """What the user's function gave: name, before, after."""
    before, after = state.evaluation.get("before"), state.evaluation.get("after")
    if before is None or after is None:
        return []
    if not hasattr(before, "items"):
        return [("evaluation", before, after)]
    return [(str(key), float(value), float(after[key])) for key, value in before.items() if key in after]


def _print_reasons(console: Console, frozen: list[dict[str, Any]]) -> None:
    """Frozen axes, counted by reason."""
    reasons = Counter(entry["reason"] for entry in frozen if entry["size"] > 1)
    if not reasons:
        return
    common = "; ".join(f"{n} x {escape(reason)}" for reason, n in reasons.most_common(3))
    more = f"; {len(reasons) - 3} more reasons" if len(reasons) > 3 else ""
    console.print(f"left alone: {sum(reasons.values())} tensor axes: {common}{more} [dim](graphprune inspect)[/]")


def inspection(state: State) -> dict[str, Any]:
    """What ``inspect --json`` prints."""
    import numpy as np

    from graphprune.costs import CostModel

    coupling = state.need_coupling()
    costs = CostModel(state.model, coupling, state.need_facts()).price()
    return {
        "model": None if state.loaded.path is None else str(state.loaded.path),
        "costs": costs.to_json(),
        "units": coupling.n_units,
        "groups": group_entries(coupling, np.zeros(coupling.n_units, np.bool_)),
        "frozen": frozen_entries(coupling),
        "unknown_ops": sorted(coupling.coupler.unknown_ops),
        "notes": state.notes,
    }


def print_inspection(state: State) -> None:
    """Groups and frozen axes as tables."""
    console = Console()
    data = inspection(state)
    costs = data["costs"]
    console.print(
        f"{human(costs['macs'])} MACs, {human(costs['params'])} parameters; {data['units']} prunable units in "
        f"{len(data['groups'])} groups"
    )
    table = Table(header_style="bold", title="groups", title_justify="left")
    for name, justify in (
        ("id", "right"),
        ("kind", "left"),
        ("units", "right"),
        ("exact", "left"),
        ("tensors", "left"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for group in data["groups"][:_ROWS]:
        members = [f"{escape(name)}\\[{axis}]" for name, axis in group["members"]]
        text = ", ".join(members[:3]) + (f", {len(members) - 3} more" if len(members) > 3 else "")
        table.add_row(str(group["id"]), group["kind"], str(group["units"]), "yes" if group["exact"] else "no", text)
    console.print(table)
    _more(console, len(data["groups"]))
    rows = Counter((entry["reason"], entry["op"]) for entry in data["frozen"])
    first = {(entry["reason"], entry["op"]): entry for entry in reversed(data["frozen"])}
    table = Table(header_style="bold", title="frozen axes", title_justify="left")
    for name in ("axes", "reason", "op", "first at"):
        table.add_column(name, justify="right" if name == "axes" else "left")
    for (reason, op), n in rows.most_common(_ROWS):
        entry = first[reason, op]
        table.add_row(str(n), escape(reason), op, escape(f"{entry['tensor']}[{entry['axis']}] by {entry['node']}"))
    console.print(table)
    _more(console, len(rows))
    if data["unknown_ops"]:
        console.print("unknown ops, frozen: " + ", ".join(data["unknown_ops"]))
    for note in state.notes:
        console.print(f"[yellow]note[/]: {escape(note)}")


def _more(console: Console, n: int) -> None:
    if n > _ROWS:
        console.print(f"[dim]... {n - _ROWS} more; --json gives all[/]")


def print_why(state: State, text: str, as_json: bool) -> None:
    """The path from a tensor's axes to what froze them."""
    coupling = state.need_coupling()
    named = {plan_name(value): value for value in coupling.constants}
    named.update({str(value.name): value for value in coupling.coupler.axes if str(value.name) not in named})
    name, _, number = text.rpartition(":")
    if not (number.isdigit() and name in named):
        name, number = text, ""
    if name not in named:
        raise UsageError(f"no tensor is called '{name}'{nearest(name, named)}; 'graphprune inspect' lists those of all groups")
    value = named[name]
    axes = range(len(coupling.coupler.axes.get(value) or ()))
    if number and int(number) not in axes:
        raise UsageError(f"'{name}' has {len(axes)} axes; {number} is none of them")
    console, found = Console(), []
    for axis in [int(number)] if number else axes:
        rows = coupling.rows(value, axis)
        free = int((rows >= 0).any(axis=1).sum())
        entry: dict[str, Any] = {"tensor": name, "axis": axis, "size": len(rows), "prunable": free, "path": []}
        reason = next((f for f in coupling.frozen if f.tensor is value and f.axis == axis), None)
        if free < len(rows):
            for (where, at), node in coupling.why(value, axis):
                step = {"tensor": str(where.name), "axis": at}
                entry["path"].append(step if node is None else {**step, "by": f"{node.op_type} {node_name(node)}"})
            if entry["path"]:
                end = coupling.why(value, axis)[-1][0]
                cause = coupling.causes[end]
                entry["node"] = str(end[0].name) if cause.node is None else node_name(cause.node)
                entry["reason"] = cause.reason
            elif reason is not None:
                entry.update(node=reason.node, reason=reason.reason)
        found.append(entry)
    if as_json:
        print(json.dumps(found))
        return
    for entry in found:
        head = f"[bold]{escape(entry['tensor'])}[/] axis {entry['axis']} ({entry['size']} indices): "
        if entry["prunable"] == entry["size"]:
            console.print(head + "[green]prunable[/]")
            continue
        console.print(
            head + (f"{entry['prunable']} prunable, the rest " if entry["prunable"] else "") + "[yellow]frozen[/]"
        )
        for step in entry["path"][1:]:
            console.print(f"  -> {escape(step['tensor'])}[dim] axis {step['axis']}[/] through {escape(step['by'])}")
        if "reason" in entry:
            console.print(f"  [yellow]{escape(entry['reason'])}[/] [dim](at {escape(entry['node'])})[/]")


def print_passes(as_json: bool) -> None:
    """Every pass with its options; broken plug-ins with their error."""
    from dataclasses import asdict

    from graphprune.plugins import discover

    entries = discover().entries()
    if as_json:
        print(json.dumps([asdict(entry) for entry in entries], default=str))
        return
    console = Console()
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("pass", "kind", "options", "what it does"):
        table.add_column(name)
    for entry in entries:
        if entry.error:
            table.add_row(entry.name, "[red]broken[/]", "", escape(f"{entry.error} ({entry.distribution})"))
            continue
        options = ", ".join(str(option) for option in entry.options)
        table.add_row(entry.name, entry.kind, escape(options), escape(entry.help))
    console.print(table)
