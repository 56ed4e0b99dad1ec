"""An independent judge of a cut: source file, cut file and plan go in, a list of complaints comes out.

Nothing of graphprune is imported here, so a mistake in its rules cannot hide itself.  The oracle follows
constants forward to the operators that use them as weights, zeroes there what the plan removed, runs the
masked source and the cut file in ONNX Runtime on the same inputs and compares every output.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, helper, numpy_helper
from onnx.inliner import inline_local_functions

from tests.oracle_constants import ZERO_POINT, Array, Constants, Slot, all_constants, attr, load, same_bits, session

Feeds = dict[str, Any]


@dataclass
class Report:
    """What the oracle found."""

    problems: list[str] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    replayed: int = 0
    cut_axes: int = 0
    effect: float = 0.0  # how much masking changed the source's outputs: 0 means the comparison had no power

    @property
    def max_error(self) -> float:
        return max(self.errors.values(), default=0.0)


# ------------------------------------------------------------------------------------------- the checks


def kept_axes(plan: Mapping[str, Any]) -> Iterator[tuple[str, int, int, list[int]]]:
    """(tensor, axis, source size, kept indices) of everything sliced."""
    for name, entry in plan["tensors"].items():
        for axis, kept in entry["kept"].items():
            yield name, int(axis), entry["shape"][int(axis)], kept


def scoped(constants: dict[str, list[Array]], plan: Mapping[str, Any]) -> dict[str, list[Array]]:
    """Also under ``branch/name``, which a plan must write where sibling scopes reuse a name."""
    more = {}
    for name in plan["tensors"]:
        values = constants.get(name.rpartition("/")[2], [])
        if name not in constants and len(values) > 1:
            more[name] = values
    return constants | more


def as_inlined(plan: Mapping[str, Any], source: ModelProto) -> dict[str, Any]:
    """The plan under the names that inlining gives: the file's name of a function's constant gets a number there."""
    if not source.functions:
        return dict(plan)
    known = all_constants(source)
    outer = {t.name for t in source.graph.initializer} | {o for n in source.graph.node for o in n.output}
    numbered: dict[str, list[str]] = {}
    for name in all_constants(inline_local_functions(source)):
        stem, mark, number = name.rpartition("__")
        if mark and number.isdigit() and stem in known and stem not in outer:
            numbered.setdefault(stem, []).append(name)
    new = {stem: names[0] for stem, names in numbered.items() if len(names) == 1}
    return {
        **plan,
        "tensors": {new.get(name, name): entry for name, entry in plan["tensors"].items()},
        "groups": [{**g, "members": [[new.get(m[0], m[0]), m[1]] for m in g["members"]]} for g in plan["groups"]],
        "frozen": [{**f, "tensor": new.get(f["tensor"], f["tensor"])} for f in plan["frozen"]],
    }


def check_plan(plan: Mapping[str, Any], source: ModelProto, report: Report) -> None:
    """Schema, ranges, no axis emptied, every frozen entry explained."""
    for key in ("schema", "source", "options", "before", "after", "tensors", "groups", "frozen", "verify"):
        if key not in plan:
            report.problems.append(f"plan: no {key!r}")
    constants = scoped(all_constants(source), plan)
    inlined = all_constants(inline_local_functions(source)) if source.functions else {}
    values = {o for n in source.graph.node for o in n.output}
    for name, entry in plan["tensors"].items():
        shapes = {v.shape for v in constants.get(name, inlined.get(name, []))}
        if not shapes and name not in values:
            report.problems.append(f"plan: tensor {name!r} is not in the source file")
        elif shapes and tuple(entry["shape"]) not in shapes:
            report.problems.append(f"plan: {name!r} has shape {entry['shape']}, the source {shapes}")
    for name, axis, size, kept in kept_axes(plan):
        if not kept:
            report.problems.append(f"plan: {name!r} axis {axis} emptied")
        elif kept != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= size:
            report.problems.append(f"plan: {name!r} axis {axis} keeps {kept} of {size}")
        report.cut_axes += len(kept) < size
    for entry in plan["frozen"]:
        if not entry.get("reason") or not entry.get("node"):
            report.problems.append(f"frozen entry without node or reason: {entry}")


def check_replay(plan: Mapping[str, Any], source: ModelProto, cut: ModelProto, report: Report) -> None:
    """(a): slicing the source's weights by the plan gives the cut file's weights, bit for bit."""
    before, after = scoped(all_constants(source), plan), all_constants(cut)
    missing = []
    for name, entry in plan["tensors"].items():
        if name not in before or name not in after:
            missing.append(name)
            continue
        want = []
        for value in before[name]:
            for axis, kept in entry["kept"].items():
                value = np.take(value, kept, axis=int(axis))
            want.append(value)
        if not any(same_bits(w, got) for w in want for got in after[name]):
            report.problems.append(
                f"replay: {name!r} {[w.shape for w in want]} differs from the file's {[g.shape for g in after[name]]}"
            )
        report.replayed += 1
    if missing and not report.replayed:
        report.problems.append(f"replay: none of the planned tensors is in the cut file: {missing[:5]}")


def check_untouched(plan: Mapping[str, Any], source: Constants, cut: ModelProto, report: Report) -> None:
    """(a): a weight the plan does not mention is the source's own."""
    after = all_constants(cut)
    for name in source.roots():
        if (
            name in after
            and name not in plan["tensors"]
            and not any(same_bits(source.values[name], v) for v in after[name])
        ):
            report.problems.append(f"replay: {name!r} changed without standing in the plan")


def check_misses(plan: Mapping[str, Any], source: Constants, report: Report) -> None:
    """(d): every channel axis of every weight is cut, in a group, or frozen with a reason."""
    known = {(n, a) for n, a, _, _ in kept_axes(plan)}
    known |= {(m[0], int(m[1])) for g in plan["groups"] for m in g["members"]}
    known |= {(f["tensor"], int(f["axis"])) for f in plan["frozen"]}
    for name in source.roots():
        for axis in source.channel_axes(name):
            if (name, axis) not in known:
                report.problems.append(f"silent miss: {name!r} axis {axis} (size {source.values[name].shape[axis]})")


def check_rate(plan: Mapping[str, Any], rate: float, exact: bool, report: Report) -> None:
    """(f): every group loses its share to within one unit, unless another family on the same axis does."""
    fewest: dict[tuple[str, int], int] = {}  # units of the coarsest family on an axis
    cut_on = set()
    for group in plan["groups"]:
        for place in map(tuple, group["members"]):
            fewest[place] = min(group["units"], fewest.get(place, group["units"]))
            if group["kept"] < group["units"]:
                cut_on.add(place)
    for group in plan["groups"]:
        units, kept = group["units"], group["kept"]
        if kept < 1:
            report.problems.append(f"group {group['id']} emptied: {group}")
        if exact and not group["exact"]:
            if kept != units:
                report.problems.append(f"exact run cut an inexact group: {group}")
            continue
        if kept == units and any(p in cut_on or fewest[p] < units for p in map(tuple, group["members"])):
            continue  # a coarser family has the axis
        if abs(kept - units * (1 - rate)) > 1 and units > 1:
            report.problems.append(
                f"rate {rate}: group {group['id']} keeps {kept} of {units} ({group['kind']}, {group['members'][:3]})"
            )
    for name, axis, size, kept in kept_axes(plan):
        on_axis = [g for g in plan["groups"] if [name, axis] in g["members"]]
        if not on_axis:
            report.problems.append(f"plan: {name!r} axis {axis} is cut but in no group")
        elif len(on_axis) == 1 and not any(f["tensor"] == name and f["axis"] == axis for f in plan["frozen"]):
            footprint = math.ceil(size / on_axis[0]["units"])
            if abs(len(kept) - size * (1 - rate)) > footprint:
                report.problems.append(f"rate {rate}: {name!r} axis {axis} keeps {len(kept)} of {size}")


def check_files(source: ModelProto, cut: ModelProto, report: Report, checker: bool) -> None:
    """(c): valid, loads with default optimisations, same interface, nothing empty (e)."""
    if checker:
        try:
            onnx.checker.check_model(cut, full_check=True)
        except Exception as e:
            report.problems.append(f"checker: {str(e)[:300]}")
    try:
        session(cut, optimise=True)
    except Exception as e:
        report.problems.append(f"onnxruntime refuses the cut file: {str(e)[:300]}")
    for what in ("input", "output"):
        before = (
            [interface(v) for v in graph_inputs(source)]
            if what == "input"
            else [interface(v) for v in source.graph.output]
        )
        after = (
            [interface(v) for v in graph_inputs(cut)] if what == "input" else [interface(v) for v in cut.graph.output]
        )
        if [b[:2] for b in before] != [a[:2] for a in after]:
            report.problems.append(f"{what}s changed from {before} to {after}")
        for b, a in zip(before, after, strict=False):
            if b[2] is not None and b[2] != a[2]:
                report.problems.append(f"{what} {b[0]!r}: shape {b[2]} became {a[2]}")
    empty = {n for n, vs in all_constants(cut).items() if any(v.size == 0 for v in vs)}
    empty -= {n for n, vs in all_constants(source).items() if any(v.size == 0 for v in vs)}
    if empty:
        report.problems.append(f"empty constants in the cut file: {sorted(empty)}")


def interface(value: onnx.ValueInfoProto) -> tuple[str, int, list[str | int | None] | None]:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
        return value.name, tensor.elem_type, None
    dims: list[str | int | None] = []
    for d in tensor.shape.dim:
        dims.append(d.dim_value if d.HasField("dim_value") else d.dim_param or None)
    return value.name, tensor.elem_type, dims


def graph_inputs(model: ModelProto) -> list[onnx.ValueInfoProto]:
    stored = {t.name for t in model.graph.initializer}
    return [v for v in model.graph.input if v.name not in stored]


# --------------------------------------------------------------------------------------- masked original


def dead_positions(plan: Mapping[str, Any], consts: Constants) -> dict[str, Array]:
    dead = {}
    for name, axis, size, kept in kept_axes(plan):
        if name not in consts.values:
            continue
        mask = dead.setdefault(name, np.zeros(consts.values[name].shape, bool))
        gone = np.setdiff1d(np.arange(size), kept)
        np.moveaxis(mask, axis, 0)[gone] = True
    return dead


def masked_original(source: ModelProto, plan: Mapping[str, Any]) -> ModelProto:
    """The source with the removed slices zeroed wherever they serve as weight, bias or norm parameter."""
    model = inline_local_functions(source) if source.functions else load(source)
    model.ir_version = max(model.ir_version, 4)
    consts = Constants(model)
    dead = consts.spread(dead_positions(plan, consts))
    for n, slot in enumerate(consts.slots):
        mask = dead.get(slot.name)
        if mask is None or not mask.any():
            continue
        value = consts.values[slot.name]
        masked = np.where(mask, zero_of(slot, value, consts), value).astype(value.dtype)
        name = f"__oracle_masked_{n}"
        slot.graph.initializer.append(numpy_helper.from_array(masked, name))
        slot.node.input[slot.index] = name
    return model


def zero_of(slot: Slot, value: Array, consts: Constants) -> Array:
    """What zero looks like for this weight: its zero point where it is quantised."""
    where = ZERO_POINT.get((slot.node.op_type, slot.index))
    if where is None or where[0] >= len(slot.node.input) or not slot.node.input[where[0]]:
        return np.zeros((), value.dtype)
    point = consts.values[slot.node.input[where[0]]]
    if point.size == 1:
        return point.reshape(())
    if point.ndim > 1:
        return point
    view = [1] * value.ndim
    transposed = slot.node.op_type == "QGemm" and attr(slot.node, "transB", 0)
    view[0 if transposed else where[1]] = -1
    return point.reshape(view)


# ------------------------------------------------------------------------------------------------ running


def id_ranges(model: ModelProto) -> dict[str, int]:
    """Upper bounds of integer inputs that index a constant table."""
    consts = Constants(model)
    source = {v.name: v.name for v in model.graph.input}
    bounds: dict[str, int] = {}
    for node in model.graph.node:
        if (
            node.op_type in ("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten")
            and node.input[0] in source
        ):
            source[node.output[0]] = source[node.input[0]]
        if node.op_type == "Gather" and node.input[1] in source and node.input[0] in consts.values:
            axis = attr(node, "axis", 0)
            name, size = source[node.input[1]], consts.values[node.input[0]].shape[axis]
            bounds[name] = min(bounds.get(name, size), size)
    return bounds


def make_feeds(
    model: ModelProto,
    dims: Mapping[str, int],
    ranges: Mapping[str, tuple[float, float]],
    rng: np.random.Generator,
) -> Feeds:
    """Random inputs of the declared types; ``dims`` gives each named axis its size."""
    bounds = id_ranges(model)
    feeds: Feeds = {}
    for value in graph_inputs(model):
        tensor = value.type.tensor_type
        shape = [d.dim_value if d.HasField("dim_value") else dims[d.dim_param] for d in tensor.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        low, high = ranges.get(value.name, (0, bounds.get(value.name, 2)))
        if dtype == np.bool_:
            feeds[value.name] = np.asarray(rng.random(shape) < 0.7)
        elif dtype.kind in "iu":
            if value.name not in ranges and value.name not in bounds and dtype.itemsize == 1:
                low, high = 0, 100
            feeds[value.name] = np.asarray(rng.integers(int(low), int(high), shape)).astype(dtype)
        elif value.name in ranges:
            feeds[value.name] = rng.uniform(low, high, shape).astype(dtype)
        else:
            feeds[value.name] = rng.standard_normal(shape).astype(dtype)
    return feeds


def dim_choices(model: ModelProto, given: Mapping[str, tuple[int, int]]) -> list[dict[str, int]]:
    """Two sizes for every named axis of the inputs."""
    names = sorted(
        {d.dim_param for v in graph_inputs(model) for d in v.type.tensor_type.shape.dim if d.HasField("dim_param")}
    )
    both = []
    for i in range(2 if names else 1):
        choice = {}
        for n, name in enumerate(names):
            default = (2, 3) if name.lower().startswith(("n", "b")) else (8 + 4 * n, 12 + 4 * n)
            choice[name] = given.get(name, default)[i]
        both.append(choice)
    return both


def flat(outputs: Sequence[Any]) -> list[list[Array]]:
    return [[np.asarray(v) for v in o] if isinstance(o, list) else [np.asarray(o)] for o in outputs]


def rel_error(want: Array, got: Array) -> float:
    """Largest difference in units of the largest wanted value; inf where shapes or NaNs differ."""
    if want.shape != got.shape:
        return math.inf
    if want.size == 0:
        return 0.0
    if want.dtype.kind in "OUS":
        return 0.0 if np.array_equal(want, got) else math.inf
    want, got = want.astype(np.float64), got.astype(np.float64)
    odd = ~np.isfinite(want)
    if not np.array_equal(odd, ~np.isfinite(got)) or not np.array_equal(want[odd], got[odd], equal_nan=True):
        return math.inf
    difference = np.abs(want[~odd] - got[~odd]).max(initial=0.0)
    return float(difference / (np.abs(want[~odd]).max(initial=0.0) or 1.0))


def compare(
    source: ModelProto,
    cut: ModelProto,
    plan: Mapping[str, Any],
    report: Report,
    *,
    dims: Mapping[str, tuple[int, int]],
    ranges: Mapping[str, tuple[float, float]],
    feeds: Callable[[np.random.Generator, int], Feeds] | None,
    seed: int,
    masked: bool,
) -> None:
    """(b): run both on the same inputs; without ``masked`` only see that the cut one runs and stays finite."""
    theirs, plain = session(cut), session(source)
    ours = session(masked_original(source, plan)) if masked else plain
    names = [o.name for o in source.graph.output]
    for i, choice in enumerate(dim_choices(source, dims)):
        rng = np.random.default_rng([seed, i])
        inputs = feeds(rng, i) if feeds else make_feeds(source, choice, ranges, rng)
        want, base = flat(ours.run(names, inputs)), flat(plain.run(names, inputs))
        try:
            got = flat(theirs.run(names, inputs))
        except Exception as e:
            report.problems.append(f"cut file fails to run at {choice}: {str(e)[:300]}")
            continue
        for name, a, b, c in zip(names, want, got, base, strict=True):
            if masked:
                error = math.inf if len(a) != len(b) else max(map(rel_error, a, b), default=0.0)
                report.errors[name] = max(report.errors.get(name, 0.0), error)
                report.effect = max([report.effect, *(e for e in map(rel_error, c, a) if e < math.inf)])
            else:
                report.problems.extend(
                    f"output {name!r} is not finite"
                    for x, y in zip(b, c, strict=False)
                    if x.dtype.kind == "f" and np.isfinite(y).all() and not np.isfinite(x).all()
                )
                if [x.shape for x in b] != [y.shape for y in c]:
                    report.problems.append(
                        f"output {name!r} changed shape: {[y.shape for y in c]} to {[x.shape for x in b]}"
                    )


def check(
    source: str | Path | ModelProto,
    cut: str | Path | ModelProto,
    plan: Mapping[str, Any],
    *,
    rate: float | None = None,
    exact: bool = False,
    masked: bool = True,
    tolerance: float = 1e-4,
    checker: bool = True,
    dims: Mapping[str, tuple[int, int]] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    feeds: Callable[[np.random.Generator, int], Feeds] | None = None,
    seed: int = 0,
) -> Report:
    """Judge a cut.

    Parameters
    ----------
    source, cut : the two models, as paths or protos.
    plan : the plan file's dict, schema 1.
    rate : share removed with ``scope="group"``; None when the run had another scope or a budget.
    exact : the run left inexact units alone.
    masked : compare with the masked original; off for runs that cut inexact units.
    tolerance : largest relative error accepted per output.
    checker : run onnx.checker (off where the source itself uses operators it does not know).
    dims, ranges, feeds : sizes of named axes, value ranges of inputs, or whole inputs, where defaults do not do.
    """
    before, after, report = load(source), load(cut), Report()
    check_plan(plan, before, report)
    check_replay(plan, before, after, report)
    plan = as_inlined(plan, before)
    consts = Constants(inline_local_functions(before) if before.functions else before)
    check_untouched(plan, consts, after, report)
    check_misses(plan, consts, report)
    if rate is not None:
        check_rate(plan, rate, exact, report)
    check_files(before, after, report, checker)
    if not any("refuses" in p for p in report.problems):
        compare(
            before, after, plan, report, dims=dims or {}, ranges=ranges or {}, feeds=feeds, seed=seed, masked=masked
        )
    for name, error in report.errors.items():
        if not error <= tolerance:
            report.problems.append(f"output {name!r} is off by {error:.3g} (allowed {tolerance:g})")
    return report


def widths(plan: Mapping[str, Any]) -> Counter[tuple[str, int]]:
    """Kept size per (tensor, axis)."""
    return Counter({(n, a): len(k) for n, a, _, k in kept_axes(plan)})
