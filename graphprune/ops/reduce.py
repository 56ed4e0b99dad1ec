"""Reductions, pooling over everything, and searches along an axis."""

from __future__ import annotations

from graphprune.rules import Axes, Axis, OpView, op

#: Reductions for which a removed slice of zeros is the same as no slice.
ZERO_SAFE = {"ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"}
_NAMES = [
    "ReduceSum",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceLogSum",
    "ReduceLogSumExp",
]


def reduced_axes(view: OpView, rank: int, axes_input_since: int) -> set[int] | None:
    """Axes that a reduction works on, or None if they are not known before running."""
    if view.opset >= axes_input_since:
        if not view.has(1):
            return set() if view.attr("noop_with_empty_axes", 0) else set(range(rank))
        known = view.known(1)
        if known is None:
            return None
        if known.size == 0:
            return set() if view.attr("noop_with_empty_axes", 0) else set(range(rank))
        return {int(a) % rank for a in known.reshape(-1)}
    given = view.attr("axes")
    return {int(a) % rank for a in given} if given else set(range(rank))


@op(*_NAMES, text="... c -> ... 1")
def reduce(view: OpView) -> list[Axes | None]:
    """Reduced axes vanish; exact only where removed values are zero and zeros do not count."""
    name = view.node.op_type
    x = view.axes(0)
    since = 13 if name == "ReduceSum" else 18
    axes = reduced_axes(view, len(x), since)
    if axes is None:
        view.freeze_inputs(f"axes of {name} are computed when it runs", [0])
        return view.frozen_outputs()
    masked = view.is_parameter(0)  # sums of a table's rows, read beside data: masked as the table is
    if masked:
        view.weight(0, "gain")
    out: Axes = []
    for i, axis in enumerate(x):
        zero = axis.zero or masked
        if i not in axes:
            keeps = name not in ("ReduceLogSum", "ReduceLogSumExp")
            out.append(Axis(axis.rows, zero and keeps, axis.places))
            continue
        if not (name in ZERO_SAFE and zero):
            view.inexact(axis, f"is reduced by {name}")
        if view.attr("keepdims", 1):
            out.append(view.frozen(1))
    return [out]


@op("ArgMax", "ArgMin", text="... _k -> ... 1")
def arg_search(view: OpView) -> list[Axes | None]:
    """The searched axis is frozen: its positions are the answer."""
    x = view.axes(0)
    along = int(view.attr("axis", 0)) % len(x)
    view.freeze(x[along], f"positions along it are what {view.node.op_type} answers")
    out = [Axis(a.rows, False, a.places) for i, a in enumerate(x) if i != along]
    if view.attr("keepdims", 1):
        out.insert(along, view.frozen(1))
    return [out]


@op("CumSum", "CumProd", text="... _k -> ... _k")
def cumulative(view: OpView) -> list[Axes | None]:
    """The axis that is run along is frozen."""
    x = list(view.axes(0))
    known = view.known(1)
    if known is None:
        view.freeze_inputs(f"axis of {view.node.op_type} is computed when it runs", [0])
        return view.frozen_outputs()
    along = int(known.reshape(-1)[0]) % len(x)
    x[along] = view.freeze(x[along], f"{view.node.op_type} runs along it")
    return [x]


@op("TopK", text="... _k -> ... _n")
def top_k(view: OpView) -> list[Axes | None]:
    """The searched axis is frozen."""
    x = list(view.axes(0))
    along = int(view.attr("axis", -1)) % len(x)
    view.freeze(x[along], "TopK searches along it")
    shape = view.out_shape(0)
    out = [view.frozen(shape[i]) if i == along else Axis(a.rows, a.zero, a.places) for i, a in enumerate(x)]
    return [out, [Axis(a.rows, False, a.places) for a in out]]
