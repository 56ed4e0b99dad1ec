"""What a report shows, as plain JSON data; the page draws it and computes nothing.

Every list is bounded, and says what was left out, so that a report of a huge network opens as quickly as any.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from graphprune.coupling import Coupling, node_name
from graphprune.frontends.onnx import plan_name
from graphprune.passes.base import Scored, State
from graphprune.plan import Plan
from graphprune.printing import FIDELITY, evaluations, stage_rows
from graphprune.recipe import dumps
from graphprune.report.layout import layered
from graphprune.report.network import Box, boxes_of, stem
from graphprune.report.recipe import command_line

#: Bounds of what is listed: groups, members and boxes of one group, members altogether, reasons, axes of one reason.
MOST_GROUPS, MOST_MEMBERS, MOST_LISTED, MOST_REASONS, MOST_AXES = 1500, 200, 12_000, 300, 200
#: Frozen axes altogether, layers of a recovery, outputs compared, notes.
MOST_FROZEN, MOST_LAYERS, MOST_OUTPUTS, MOST_NOTES = 6000, 2000, 100, 100
#: Boxes and edges of the drawing.
MOST_BOXES, MOST_EDGES = 1200, 4000
#: Characters of one name.
LONGEST = 240
_BINS = 24

Json = dict[str, Any]


def payload(state: State, plan: Plan) -> Json:
    """Everything the page shows."""
    coupling = state.need_coupling()
    names = _group_names(plan)
    boxes = boxes_of(state.model, coupling)
    in_boxes = _boxes_of_groups(coupling, boxes)
    data = {
        "model": _model(plan),
        "costs": [[label, plan.before[key], plan.after[key]] for key, label in _COSTS if plan.before.get(key)],
        "evaluation": [list(row) for row in (*evaluations(state), *_latency(state))][:MOST_OUTPUTS],
        "verify": plan.verify,
        "fidelity": _fidelity(plan),
        "stages": _stages(plan),
        "recovery": _recovery(plan.recovery, boxes),
        "seconds": [[name, seconds] for name, seconds in state.seconds.items()],
        "notes": [_short(note, 2000) for note in plan.notes[:MOST_NOTES]],
        "groups": _groups(plan, names, in_boxes),
        "groups_in_all": len(plan.groups),
        "groups_cut": sum(entry["kept"] < entry["units"] for entry in plan.groups),
        "units": [sum(entry[key] for entry in plan.groups) for key in ("units", "kept")],
        "scores": [_scores(scored, state, coupling) for scored in state.scores],
        "frozen": _frozen(plan.frozen),
        "recipe": _recipe(state, plan),
        "graph": _graph(plan, boxes, coupling, in_boxes),
    }
    return dict(_plain(data))


def _latency(state: State) -> list[tuple[str, float, float]]:
    timed, guessed = state.latency, state.estimate
    rows = [(f"latency in {state.timed_in}, ms", timed["before"], timed["after"])] if timed else []
    if guessed:
        rows.append((f"latency on {guessed['on']}, ms (an estimate, not measured)", guessed["before"], guessed["after"]))
    return rows


_COSTS = (("macs", "MACs"), ("params", "parameters"), ("bytes", "weight bytes"))


def _model(plan: Plan) -> Json:
    path = plan.source.get("path")
    return {
        "name": "model in memory" if path is None else _short(Path(path).name),
        "path": path, "sha256": plan.source.get("sha256"), "version": plan.graphprune,
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }  # fmt: skip


def _recipe(state: State, plan: Plan) -> Json:
    options = [[key, value if isinstance(value, str) else _words(value)] for key, value in plan.options.items()]
    command = command_line(plan.options, plan.source.get("path"))
    return {"command": command, "options": options, "yaml": dumps(state.options)}


def _words(value: Any) -> str:
    """An option's value in words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_words(item)}" for key, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_words, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


# -- outputs and layers ------------------------------------------------------------------------------
def _fidelity(plan: Plan) -> Json:
    after = plan.fidelity
    if not after:
        return {}
    before = plan.unrecovered
    rows: list[Json] = []

    def add(what: str, now: Mapping[str, Any], then: Mapping[str, Any]) -> None:
        for key, label, form in FIDELITY:
            if key in now:
                rows.append({"what": _short(what), "measure": label, "share": form.endswith("%"),
                             "before": then.get(key), "after": now[key]})  # fmt: skip

    outputs = after.get("outputs", {})
    for name, entry in list(outputs.items())[:MOST_OUTPUTS]:
        add(name, entry, before.get("outputs", {}).get(name, {}))
    if "boxes" in after:
        add("boxes in " + ", ".join(after["boxes"]["outputs"]), after["boxes"], before.get("boxes") or {})
    left = max(0, len(outputs) - MOST_OUTPUTS)
    return {"samples": after["samples"], "rows": rows, "recovered": bool(before), "left_out": left}


def _stages(plan: Plan) -> Json:
    """The model at each stage of the run."""
    if not plan.stages:
        return {}
    columns, rows = stage_rows(plan)
    return {
        "columns": [_short(name) for name in columns], "rows": rows, "samples": plan.fidelity.get("samples"),
        "quantised": len(plan.quantize.get("tensors") or ()), "left": len(plan.quantize.get("left") or ()),
    }  # fmt: skip


def _recovery(recovery: Mapping[str, Any], boxes: Sequence[Box]) -> Json:
    taught = _taught(recovery.get("distill") or {})
    if "layers" not in recovery:
        return {"used": taught["used"], "distill": taught} if taught else {}
    names = {node_name(box.node): box.name for box in boxes if box.node is not None}
    keys = ("layer", "op", "before", "after", "ridge", "rows", "kept")
    layers = [{key: layer.get(key) for key in keys} for layer in recovery["layers"][:MOST_LAYERS]]
    for layer in layers:
        layer["name"] = _short(names.get(layer["layer"], str(layer["layer"])))
        layer["layer"] = _short(str(layer["layer"]))
    return {
        "mode": recovery.get("mode"), "samples": recovery.get("samples"), "distill": taught,
        "used": recovery.get("used") or bool(taught and taught["used"]), "fitted": recovery.get("fitted", recovery.get("used")),
        "layers": layers, "left_out": max(0, len(recovery["layers"]) - MOST_LAYERS),
        "left": [[_short(layer), _short(why, 400)] for layer, why in list((recovery.get("left") or {}).items())[:MOST_LAYERS]],
    }  # fmt: skip


def _taught(record: Mapping[str, Any]) -> Json:
    """What a distillation did."""
    keys = ("used", "steps", "planned", "samples", "seconds", "best_step", "ended")
    return {**{key: record.get(key) for key in keys}, "scores": list(record.get("scores") or [])} if record else {}


# -- groups ------------------------------------------------------------------------------------------
def _group_names(plan: Plan) -> list[str]:
    """A name for each group: the layer that its first telling member belongs to."""
    out = []
    for entry in plan.groups:
        members = [str(name) for name, _ in entry["members"][:MOST_MEMBERS]]
        out.append(_short(stem(members) or (members[0] if members else "folded constants")))
    return out


def _boxes_of_groups(coupling: Coupling, boxes: Sequence[Box]) -> list[list[int]]:
    """For each group the boxes whose tensors it cuts."""
    users: dict[Any, list[int]] = {}
    for number, box in enumerate(boxes):
        for tensor in box.tensors:
            users.setdefault(tensor, []).append(number)
    out = []
    for group in coupling.groups:
        tensors = {value for value, _ in group.members}
        out.append(sorted({number for value in tensors for number in users.get(value, ())[:MOST_MEMBERS]}))
    return out


def _groups(plan: Plan, names: Sequence[str], in_boxes: Sequence[Sequence[int]]) -> list[Json]:
    """Groups in the order of the network, the widest where there are too many of them."""
    chosen = range(len(plan.groups))
    if len(plan.groups) > MOST_GROUPS:
        chosen = sorted(sorted(chosen, key=lambda i: -plan.groups[i]["units"])[:MOST_GROUPS])  # type: ignore[assignment]
    left, out = MOST_LISTED, []
    for number in chosen:
        entry = plan.groups[number]
        shown = entry["members"][: min(MOST_MEMBERS, left)]
        left -= len(shown)
        out.append({
            "id": entry["id"], "kind": entry["kind"], "units": entry["units"], "kept": entry["kept"],
            "exact": entry["exact"], "name": names[number],
            "members": [_member(plan, str(name), axis) for name, axis in shown],
            "more": len(entry["members"]) - len(shown),
            "boxes": [box for box in in_boxes[number][:MOST_MEMBERS] if box < MOST_BOXES],
        })  # fmt: skip
    return out


def _member(plan: Plan, name: str, axis: int) -> list[Any]:
    """A tensor axis: name, axis, shape before and shape after where it is cut."""
    entry = plan.tensors.get(name)
    if entry is None:
        return [_short(name), axis]
    after = list(entry["shape"])
    for cut, kept in entry["kept"].items():
        after[int(cut)] = len(kept)
    return [_short(name), axis, list(entry["shape"]), after]


# -- scores ------------------------------------------------------------------------------------------
def _scores(scored: Scored, state: State, coupling: Coupling) -> Json:
    assert state.dead is not None
    groups = coupling.groups
    if len(groups) > MOST_GROUPS:
        groups = sorted(groups, key=lambda group: -len(group.units))[:MOST_GROUPS]
    found = {group.id: histogram(scored.values[group.units], state.dead[group.units]) for group in groups}
    return {"name": scored.name, "unit": scored.unit, "groups": found}


def histogram(values: np.ndarray[Any, Any], gone: np.ndarray[Any, Any], bins: int = _BINS) -> Json:
    """Units kept and removed by score: counts per bin, the bins' ends, and the threshold where one score parts them.

    Parameters
    ----------
    values
        float64[n], finite.
    gone
        bool[n], which of them are removed.
    """
    low, high = float(values.min()), float(values.max())
    log = low > 0 and high / low > 50
    ends = (math.log10(low), math.log10(high)) if log else (low, high)
    at = np.log10(values) if log else values
    span = ends if ends[1] > ends[0] else (ends[0] - 0.5, ends[1] + 0.5)
    edges = np.linspace(*span, bins + 1)
    kept, removed = (np.histogram(at[chosen], edges)[0].tolist() for chosen in (~gone, gone))
    out = {"log": log, "low": low, "high": high, "kept": kept, "gone": removed, "cut": None, "place": None}
    if gone.any() and not gone.all() and values[gone].max() <= values[~gone].min():
        cut = float(at[gone].max() + at[~gone].min()) / 2
        out["cut"] = 10**cut if log else cut
        out["place"] = (cut - span[0]) / (span[1] - span[0])
    return out


# -- what is frozen ----------------------------------------------------------------------------------
def _frozen(frozen: Sequence[Mapping[str, Any]]) -> list[Json]:
    """Frozen axes by reason, the most common one first."""
    by_reason: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in frozen:
        by_reason.setdefault((str(entry["reason"]), str(entry.get("op", ""))), []).append(entry)
    left, out = MOST_FROZEN, []
    for (reason, op), entries in sorted(by_reason.items(), key=lambda item: -len(item[1]))[:MOST_REASONS]:
        shown = entries[: min(MOST_AXES, left)]
        left -= len(shown)
        out.append({
            "reason": _short(reason, 600), "op": op, "axes": len(entries), "indices": sum(e["size"] for e in entries),
            "entries": [[_short(str(e["tensor"])), e["axis"], e["size"], _short(str(e["node"]))] for e in shown],
            "more": len(entries) - len(shown),
        })  # fmt: skip
    return out


# -- the drawing -------------------------------------------------------------------------------------
def _graph(plan: Plan, boxes: Sequence[Box], coupling: Coupling, in_boxes: Sequence[Sequence[int]]) -> Json:
    why: dict[str, dict[str, None]] = {}
    for entry in plan.frozen:
        if entry["size"] > 1:
            why.setdefault(entry["tensor"], {})[_short(str(entry["reason"]))] = None
    shown = boxes[:MOST_BOXES]
    edges = [(source, number) for number, box in enumerate(shown) for source in box.reads[:MOST_EDGES]][:MOST_EDGES]
    total = sum(len(box.reads) for box in boxes)
    layout = layered(len(shown), edges)
    cut_in: dict[int, list[int]] = {}
    for group, numbers in enumerate(in_boxes):
        for number in numbers:
            if number < len(shown):
                cut_in.setdefault(number, []).append(group)
    return {
        "width": layout.width, "height": layout.height,
        "boxes": [
            {
                "x": layout.centres[i][0], "y": layout.centres[i][1], "kind": box.kind, "name": _short(box.name),
                "ops": list(dict.fromkeys(box.ops))[:8], "out": [number for number, _ in box.groups(coupling)][:8],
                "node": "" if box.node is None else _short(str(box.node.name or "")),
                "groups": cut_in.get(i, [])[:32],
                "frozen": list(dict.fromkeys(reason for t in box.tensors for reason in why.get(plan_name(t), ())))[:4],
                "tensors": [_short(plan_name(t)) for t in list(box.tensors)[:16]],
            }
            for i, box in enumerate(shown)
        ],
        "edges": [[a, b, *bends] for (a, b), bends in zip(edges, layout.bends, strict=True)],
        "boxes_in_all": len(boxes), "edges_left_out": total - len(edges),
    }  # fmt: skip


# -- plain data --------------------------------------------------------------------------------------
def _short(text: str, longest: int = LONGEST) -> str:
    """The text, its middle left out where it is long: names differ at their ends."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]}…{text[-half:]}"


def _plain(value: Any) -> Any:
    """As JSON has it: numpy numbers as Python's, what is not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value if value is None else str(value)
