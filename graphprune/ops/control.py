"""If, Loop, Scan, sequences and optionals: bodies are swept in place, and what goes round a loop is tied to itself.

Sequences hold tensors under one name, so axes do not fit on them. Where a sequence is only packed and
unpacked at places known before running, it is looked through; everywhere else what enters it is frozen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from graphprune.rules import Axes, Axis, OpView, UnknownShape, op

if TYPE_CHECKING:
    from graphprune.cut import Cut


# -- branches --------------------------------------------------------------------------------------------
@op("If", text="both branches swept, their results tied")
def if_(view: OpView) -> list[Axes | None]:
    """Both branches are swept; what they hand out lives and dies together."""
    then, other = (
        view.sweep.graph(view.node.attributes[name].as_graph(), {}) for name in ("then_branch", "else_branch")
    )
    outs: list[Axes | None] = []
    for value, a, b in zip(view.node.outputs, then, other, strict=True):
        shape = view.sweep.shape_of(value)
        pairs = None if a is None or b is None else _modulo_ones(a, b)
        if pairs is None or shape is None:
            for axis in (*(a or ()), *(b or ())):
                view.freeze(axis, "the branches of If differ in shape")
            outs.append(None if shape is None else [view.frozen(n) for n in shape])
            continue
        tied = [view.tie(p, q) for p, q in pairs]
        wide = [n for n in shape if n != 1]
        if wide != [len(axis) for axis in tied]:
            # Neither branch hands out what the file declares: nothing is known of it.
            for axis in tied:
                view.freeze(axis, "the branches of If differ in shape")
            tied = [view.frozen(n) for n in wide]
        rest = iter(tied)
        outs.append([view.frozen(1) if n == 1 else next(rest) for n in shape])
    return outs


def _modulo_ones(a: Axes, b: Axes) -> list[tuple[Axis, Axis]] | None:
    """Pairs of the axes longer than 1, where these agree in size: torch guards a Squeeze by an If."""
    left, right = ([axis for axis in axes if len(axis) != 1] for axes in (a, b))
    if [len(axis) for axis in left] != [len(axis) for axis in right]:
        return None
    return list(zip(left, right, strict=True))


# -- loops -----------------------------------------------------------------------------------------------
def _outer(view: OpView, i: int, role: str) -> Axes | None:
    """Axes of an operand; a parameter gets its role out here, for inside the body it is a value like any other."""
    axes = view.sweep.axes_of(view.value(i)) if view.has(i) else None
    if axes is None or not view.is_parameter(i):
        return axes
    view.weight(i, role)
    return [Axis(axis.rows, True, axis.places) for axis in axes]


def _entering(axes: Axes | None) -> Axes | None:
    """State as the body sees it: from the second round on it is what the body made, so zero is no promise."""
    return None if axes is None else [Axis(axis.rows, False, axis.places) for axis in axes]


def _round(view: OpView, before: Axes | None, after: Axes | None, outer: tuple[int, ...] | None) -> Axes | None:
    """State that leaves the body is the state that enters it."""
    if before is None or after is None or [len(p) for p in before] != [len(q) for q in after]:
        for axis in (*(before or ()), *(after or ())):
            view.freeze(axis, f"a state of {view.node.op_type} changes its shape")
        return None if outer is None else [view.frozen(n) for n in outer]
    return [view.tie(p, q) for p, q in zip(before, after, strict=True)]


def _stacked(view: OpView, axes: Axes | None, shape: tuple[int, ...] | None, at: int) -> Axes | None:
    """What every round hands out, one behind the other along a new axis."""
    if shape is None or axes is None:
        # Nobody knows how many rounds there are, so the result has no shape to go on with.
        for axis in axes or ():
            view.freeze(axis, f"{view.node.op_type} stacks it a number of times computed when it runs")
        return None if shape is None else [view.frozen(n) for n in shape]
    out = [Axis(axis.rows, axis.zero, axis.places) for axis in axes]
    out.insert(at % len(shape), view.frozen(shape[at % len(shape)]))
    return out


def _shape(view: OpView, j: int) -> tuple[int, ...] | None:
    return view.sweep.shape_of(view.node.outputs[j])


@op("Loop", text="states tied to themselves; stacked results get a frozen axis")
def loop(view: OpView) -> list[Axes | None]:
    """States go round; the rest that the body hands out is stacked along a new first axis."""
    body = view.node.attributes["body"].as_graph()
    states = len(body.inputs) - 2
    before = [_outer(view, i + 2, "shift") for i in range(states)]
    bound = {value: _entering(axes) for value, axes in zip(body.inputs[2:], before, strict=True)}
    after = view.sweep.graph(body, bound)[1:]
    outs = [_round(view, before[j], after[j], _shape(view, j)) for j in range(states)]
    return outs + [_stacked(view, after[j], _shape(view, j), 0) for j in range(states, len(after))]


@op("Scan", text="states tied to themselves; the scanned axes are frozen")
def scan(view: OpView) -> list[Axes | None]:
    """States go round; scanned inputs lose an axis inside, stacked results gain one outside."""
    body = view.node.attributes["body"].as_graph()
    # Before opset 9 a batch axis stood in front of everything, and lengths came first.
    batched = view.opset < 9
    first, lead = (1, 1) if batched else (0, 0)
    scanned = int(view.attr("num_scan_inputs"))
    states = len(view.node.inputs) - first - scanned
    inputs: list[Axes] = []
    for i in range(first, len(view.node.inputs)):
        axes = _outer(view, i, "shift" if i < first + states else "weight")
        if axes is None:
            raise UnknownShape(f"the shape of '{view.value(i).name}' is not known")
        inputs.append(list(axes))
    if batched:
        for axes in inputs:
            view.freeze(axes.pop(0), "batch axis of Scan")
    along = view.attr("scan_input_axes") or [0] * scanned
    inner: list[Axes | None] = [_entering(axes) for axes in inputs[:states]]
    for axes, axis in zip(inputs[states:], along, strict=True):
        view.freeze(axes.pop(int(axis) % len(axes)), "Scan runs along it")
        inner.append(axes)
    after = view.sweep.graph(body, dict(zip(body.inputs, inner, strict=True)))
    where = view.attr("scan_output_axes") or [0] * (len(after) - states)
    outs: list[Axes | None] = []
    for j, handed in enumerate(after):
        shape = _shape(view, j)
        own = None if shape is None else shape[lead:]
        if j < states:
            found = _round(view, inputs[j], handed, own)
        else:
            found = _stacked(view, handed, own, where[j - states])
        outs.append(found if found is None or shape is None else [view.frozen(n) for n in shape[:lead]] + found)
    return outs


# -- sequences and optionals -------------------------------------------------------------------------------
#: Ops that unpack a sequence or an optional; SequenceAt only at a place that is known.
_UNPACKING = ("SequenceAt", "ConcatFromSequence", "OptionalGetElement")
#: Ops that read nothing of the tensors inside.
_COUNTING = ("SequenceLength", "OptionalHasElement")


def _only_unpacked(view: OpView) -> bool:
    """Whether everything that reads this node's result unpacks it at places known before running."""
    packed = view.node.outputs[0]
    if packed.is_graph_output():
        return False
    for node, _ in packed.uses():
        if node.domain or node.op_type not in (*_UNPACKING, *_COUNTING):
            return False
        if node.op_type == "SequenceAt" and OpView(node, view.sweep).constant(1) is None:
            return False
    return True


def _packed(view: OpView) -> list[Axes | None] | None:
    """Axes of the tensors in the sequence that a node unpacks; None where that is not known."""
    node = view.value(0).producer()
    if node is None or node.domain:
        return None
    maker = OpView(node, view.sweep)
    if node.op_type in ("SequenceConstruct", "Optional"):
        return [maker.sweep.axes_of(maker.value(i)) for i in range(len(node.inputs))]
    if node.op_type == "SplitToSequence":
        parts = split_parts(maker)
        x = maker.axes(0)
        along = int(maker.attr("axis", 0)) % len(x)
        if parts is None:
            return None
        keeps = maker.has(1) or maker.attr("keepdims", 1)
        return [
            [view.take(axis, part) if i == along else axis for i, axis in enumerate(x) if keeps or i != along]
            for part in parts
        ]
    return None


def split_parts(view: OpView) -> list[np.ndarray] | None:
    """The positions that SplitToSequence puts into each tensor; None where they are computed when it runs."""
    n = view.shape(0)[int(view.attr("axis", 0)) % len(view.shape(0))]
    if not view.has(1):
        return [np.asarray([i]) for i in range(n)]
    known = view.constant(1)
    if known is None:
        return None
    if known.ndim == 0:
        bounds = [*range(int(known), n, int(known))]
    else:
        bounds = np.cumsum(known)[:-1].tolist()
    return list(np.split(np.arange(n), bounds))


def _pack(view: OpView, only: Sequence[int] | None = None) -> list[Axes | None]:
    if not _only_unpacked(view):
        view.freeze_inputs("goes into a sequence that is not only unpacked at known places", only)
    return [None]


@op("SequenceConstruct", "Optional", text="looked through where only unpacked, else frozen")
def construct(view: OpView) -> list[Axes | None]:
    """Tensors are packed; what unpacks them finds their axes again."""
    return _pack(view)


def _shrink_split(cut: Cut) -> None:
    """Parts keep what is left of them."""
    along = int(cut.attr("axis", 0)) % len(cut.old_in(0))
    kept, parts = cut.kept_in(0, along), split_parts(cut.view)
    if kept is None:
        return
    if parts is None:
        raise cut.error("its parts are computed when it runs")
    sizes = [int(np.isin(part, kept).sum()) for part in parts]
    cut.set_input(1, np.asarray(sizes, np.int64))


@op("SplitToSequence", text="as Split where only unpacked, else frozen", shrink=_shrink_split)
def split_to_sequence(view: OpView) -> list[Axes | None]:
    """Each tensor takes its stretch; without sizes every index is a tensor, so none can go."""
    x = view.axes(0)
    along = int(view.attr("axis", 0)) % len(x)
    if split_parts(view) is None:
        view.freeze(x[along], "is split at sizes computed when it runs")
    elif not view.has(1):
        view.freeze(x[along], "each of its indices is a tensor of its own")
    return _pack(view, [0])


@op("SequenceAt", "OptionalGetElement", text="what was packed there, else frozen")
def unpack(view: OpView) -> list[Axes | None]:
    """The axes of the tensor that was packed; a tensor passes through OptionalGetElement."""
    if view.node.op_type == "OptionalGetElement" and (axes := view.sweep.axes_of(view.value(0))) is not None:
        return [axes]
    items = _packed(view)
    place = view.constant(1) if view.node.op_type == "SequenceAt" else np.asarray(0)
    if items is None or place is None or not -len(items) <= int(place) < len(items):
        return view.frozen_outputs()
    return [items[int(place)]]


@op("ConcatFromSequence", text="as Concat, or stacked along a new frozen axis")
def concat_from_sequence(view: OpView) -> list[Axes | None]:
    """What was packed, one behind the other or stacked."""
    items = _packed(view)
    if items is None or any(axes is None for axes in items):
        for axis in (axis for axes in items or () for axis in axes or ()):
            view.freeze(axis, "is put together from tensors of unknown shape")
        return view.frozen_outputs()
    given = [axes for axes in items if axes is not None]
    stacked = bool(view.attr("new_axis", 0))
    rank = len(given[0]) + stacked
    along = int(view.attr("axis")) % rank
    out: Axes = []
    for i, axis in enumerate(given[0]):
        if i == along and not stacked:
            out.append(view.concat([axes[i] for axes in given]))
            continue
        for other in given[1:]:
            axis = view.tie(axis, other[i])
        out.append(axis)
    if stacked:
        out.insert(along, view.frozen(len(given)))
    return [out]


@op("SequenceLength", "OptionalHasElement", text="-> a number")
def count(view: OpView) -> list[Axes | None]:
    """How many tensors there are does not change with a cut."""
    return view.frozen_outputs()
