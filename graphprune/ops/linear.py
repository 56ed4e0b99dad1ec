"""Ops that multiply by a weight: convolutions, matrix products, einsum."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

from graphprune.rules import Axes, Axis, OpView, op
from graphprune.units import frozen_rows

if TYPE_CHECKING:
    from graphprune.cut import Cut


def linear_groups(view: OpView) -> Mapping[str, int]:
    return {"g": int(view.attr("group", 1))}


def grouped_axes(view: OpView, w: Axes) -> tuple[Axis, Axis, Axis]:
    """Meet the input of a convolution in groups with its weight, and freeze what runs over positions.

    Returns
    -------
    inputs, groups, outputs
        Channels of one group that are summed over; the groups; the output channels of one group.
    """
    x, op_type = view.axes(0), view.node.op_type
    for axis in x[2:]:
        view.freeze(axis, f"spatial axis of {op_type}")
    for axis in w[2:]:
        view.freeze(axis, f"kernel axis of {op_type}")
    groups = linear_groups(view)["g"]
    xg, xi = view.split(x[1], [groups, len(x[1]) // groups])
    wg, wo = view.split(w[0], [groups, len(w[0]) // groups])
    view.tie(xg, wg)
    view.tie(xi, w[1])
    mark_groups(view, {"g": wg})
    return xi, wg, wo


def mark_groups(view: OpView, env: Mapping[str, Axis]) -> None:
    view.mark(env["g"], "group")


def follow(view: OpView, axis: Axis, *parameters: int) -> None:
    """Scales and zero points with one entry an index live and die with ``axis``."""
    for i in parameters:
        if not view.has(i) or not view.axes(i):
            continue
        own = [mine for mine in view.axes(i) if len(mine) > 1]
        if not own:
            continue
        if len(own) == 1 and len(own[0]) == len(axis):
            view.tie(axis, own[0])
        else:
            view.freeze_inputs(f"a quantisation parameter of {view.node.op_type}", [i])
            view.freeze(axis, "its scales are not one an index")


def follow_rows(view: OpView, axes: Axes, *parameters: int) -> None:
    """Scales and zero points of a left operand: one a row."""
    if len(axes) > 1:
        follow(view, axes[-2], *parameters)
    else:
        view.freeze_inputs(f"a quantisation parameter of {view.node.op_type}", [i for i in parameters if view.has(i)])


def _conv_integer(view: OpView, env: Mapping[str, Axis]) -> None:
    mark_groups(view, env)
    follow(view, view.axes(1)[0], 3)


def shrink_groups(cut: Cut) -> None:
    """The number of groups is what the cut input channels hold at the weight's channels a group."""
    weight = cut.weight_index
    old = int(cut.attr("group", 1))
    if old > 1:
        if cut.node.op_type == "ConvTranspose":
            # The weight is (g i) o: channels a group cannot be read off it, the kept groups can.
            per_group = cut.old_in(weight)[0] // old
            kept = cut.kept_in(weight, 0)
            groups = old if kept is None else len(set((kept // per_group).tolist()))
        else:
            groups = cut.new_in(0)[1] // cut.new_in(weight)[1]
        cut.set_attr("group", groups)


def window_of_one(view: OpView) -> list[bool]:
    """For each spatial axis, whether the window takes one index at a time, each once.

    A convolution over time that mixes [batch, time, features] along time is one: features are its spatial axis.
    """
    x, y, weight = map(view.sweep.shape_of, (view.value(0), view.node.outputs[0], view.value(1)))
    if x is None or y is None or weight is None:
        # What comes out of a sequence has axes but no inferred shape.
        return [False] * (len(view.axes(1)) - 2)
    kernel, n = weight[2:], len(x) - 2
    strides, pads = view.attr("strides") or [1] * n, view.attr("pads") or [0] * (2 * n)
    if len(kernel) != n or len(y) != len(x):
        return [False] * n
    return [
        kernel[i] == 1 and strides[i] == 1 and not pads[i] and not pads[n + i] and x[2 + i] == y[2 + i]
        for i in range(n)
    ]


#: Activations with f(0) = 0 that fused ops carry, in lower case.
_ZERO_KEEPING = frozenset({"", "relu", "tanh", "leakyrelu", "elu", "softsign", "scaledtanh", "thresholdedrelu"})


def fused_activation_keeps_zero(view: OpView) -> bool:
    """Whether the activation that a fused op carries, if any, maps 0 to 0."""
    name = view.attr("activation", "")
    return (name.decode() if isinstance(name, bytes) else str(name)).lower() in _ZERO_KEEPING


CONV = "b (g i) _..., (g o) i _..., (g o) -> b (g o) _..."
op("Conv", rule=CONV, sizes=linear_groups, weights={1: "weight", 2: "bias"}, shrink=shrink_groups, after=mark_groups,
   through=window_of_one)  # fmt: skip
op("ConvInteger", rule="b (g i) _..., (g o) i _... -> b (g o) _...", sizes=linear_groups, weights={1: "weight"},
   shrink=shrink_groups, after=_conv_integer)  # fmt: skip
op("ConvTranspose", rule="b (g i) _..., (g i) o _..., (g o) -> b (g o) _...", sizes=linear_groups,
   weights={1: "weight", 2: "bias"}, shrink=shrink_groups, after=mark_groups, through=window_of_one)  # fmt: skip


@op("DeformConv", text=CONV, shrink=shrink_groups)
def deform_conv(view: OpView) -> list[Axes | None]:
    """As Conv; offsets and mask keep their axes."""
    view.weight(1, "weight")
    view.weight(3, "bias")
    x = view.axes(0)
    batch = x[0]
    for i, what in ((2, "offsets"), (4, "mask")):
        if view.has(i):
            view.tie(batch, view.axes(i)[0])
            for axis in view.axes(i)[1:]:
                view.freeze(axis, f"holds {what} of DeformConv")
    if int(view.attr("offset_group", 1)) > 1:
        view.freeze(x[1], "channels of DeformConv with several offset groups")
    _, wg, wo = grouped_axes(view, view.axes(1))
    merged = view.merge([wg, wo])
    bias = view.has(3)
    if bias:
        view.tie(merged, view.axes(3)[0])
    zero = view.is_parameter(1) and (not bias or view.is_parameter(3))
    own = {0: Axis(batch.rows, batch.zero and not bias, batch.places), 1: Axis(merged.rows, zero, merged.places)}
    return [[own.get(i, view.frozen(n)) for i, n in enumerate(view.out_shape())]]


def weights_of(view: OpView, pair: tuple[int, int]) -> None:
    """The parameters among two operands; where both are, the left one is data that was made in advance."""
    for i in pair:
        if view.is_parameter(i):
            made_in_advance = i == pair[0] and view.is_parameter(pair[1])
            view.weight(i, "gain" if made_in_advance else "weight")


def matmul_axes(view: OpView, a: Axes, b: Axes, parameters: tuple[bool, bool]) -> Axes:
    """Result axes of numpy's matmul: ``... i k, ... k j -> ... i j`` with 1-d operands promoted."""
    one = [Axis(frozen_rows(1))]
    left, right = (one + a if len(a) == 1 else a), (b + one if len(b) == 1 else b)
    k = Axis(left[-1].rows, left[-1].zero or parameters[0], left[-1].places)
    view.tie(left[-1], right[-2])
    if not (k.zero or right[-2].zero or parameters[1]):
        view.inexact(k, "is summed over where the removed values need not be zero")
    batch: Axes = []
    pairs = list(itertools.zip_longest(reversed(left[:-2]), reversed(right[:-2])))
    for p, q in reversed(pairs):
        if p is None or q is None or 1 in (len(p), len(q)):
            chosen = max((axis for axis in (p, q) if axis is not None), key=len)
            batch.append(chosen)
        else:
            tied = view.tie(p, q)
            batch.append(Axis(tied.rows, p.zero or q.zero, tied.places))
        view.mark(batch[-1], "expert" if any(parameters) else "head")
    i = Axis(left[-2].rows, left[-2].zero or parameters[0], left[-2].places)
    j = Axis(right[-1].rows, right[-1].zero or parameters[1], right[-1].places)
    return batch + ([i] if len(a) > 1 else []) + ([j] if len(b) > 1 else [])


@op("MatMul", "MatMulInteger", "com.microsoft::MatMulInteger16", text="... i k, ... k j -> ... i j")
def matmul(view: OpView) -> list[Axes | None]:
    """Numpy's matrix product; batch axes are heads or experts. Zero points may be one a row or column."""
    follow_rows(view, view.axes(0), 2)
    follow(view, view.axes(1)[-1], 3)
    weights_of(view, (0, 1))
    return [matmul_axes(view, view.axes(0), view.axes(1), (view.is_parameter(0), view.is_parameter(1)))]


@op("com.microsoft::FusedMatMul", "com.microsoft::TransposeMatMul", text="... i k, ... k j -> ... i j")
def fused_matmul(view: OpView) -> list[Axes | None]:
    """MatMul with either operand transposed."""
    weights_of(view, (0, 1))
    a, b = list(view.axes(0)), list(view.axes(1))
    for axes, side in ((a, "A"), (b, "B")):
        if view.attr(f"transBatch{side}", 0):
            axes[:-1] = axes[1:-1] + axes[:1]
        if view.attr(f"trans{side}", 0) and len(axes) > 1:
            axes[-2:] = axes[:-3:-1]
    return [matmul_axes(view, a, b, (view.is_parameter(0), view.is_parameter(1)))]


@op("Gemm", "com.microsoft::FusedGemm", text="i k, k j, ... -> i j")
def gemm(view: OpView) -> list[Axes | None]:
    """Matrix product with either operand transposed and a sum that broadcasts."""
    weights_of(view, (0, 1))
    a, b = list(view.axes(0)), list(view.axes(1))
    a = a[::-1] if view.attr("transA", 0) else a
    b = b[::-1] if view.attr("transB", 0) else b
    out = matmul_axes(view, a, b, (view.is_parameter(0), view.is_parameter(1)))
    if view.has(2):
        view.weight(2, "bias")
        masked = view.is_parameter(2)
        c = view.axes(2)
        for position in (1, 2):
            axis = out[-position]
            if len(c) >= position and len(c[-position]) == len(axis) and len(axis) > 1:
                view.tie(axis, c[-position])
                zero = axis.zero and (masked or c[-position].zero)
            else:
                # What is added along it is the same for all its indices.
                zero = False
            out[-position] = Axis(axis.rows, zero, axis.places)
    if not fused_activation_keeps_zero(view):
        out = [Axis(axis.rows, False, axis.places) for axis in out]
    return [out]


def einsum_terms(equation: str, ranks: list[int]) -> tuple[list[list[str]], list[str]]:
    """Axis names of every operand and of the result; an ellipsis is spelled out from the right as .n."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    inputs = []
    for text, rank in zip(left.split(","), ranks, strict=True):
        head, dots, tail = text.partition("...")
        n = rank - len(head) - len(tail)
        inputs.append([*head, *(f".{n - 1 - i}" for i in range(n if dots else 0)), *tail])
    longest = max((sum(name[0] == "." for name in names) for names in inputs), default=0)
    dotted = [f".{longest - 1 - i}" for i in range(longest)]
    if not arrow:
        counts: dict[str, int] = {}
        for name in itertools.chain(*inputs):
            counts[name] = counts.get(name, 0) + 1
        return inputs, dotted + sorted(n for n, count in counts.items() if count == 1 and n[0] != ".")
    head, dots, tail = right.partition("...")
    return inputs, [*head, *(dotted if dots else []), *tail]


@op("Einsum", text="its own equation")
def einsum(view: OpView) -> list[Axes | None]:
    """The equation is the rule."""
    n = len(view.node.inputs)
    operands = [view.axes(i) for i in range(n)]
    raw = view.attr("equation", "")
    equation = raw.decode() if isinstance(raw, bytes) else str(raw)
    inputs, output = einsum_terms(equation, [len(axes) for axes in operands])
    env: dict[str, Axis] = {}
    seen: dict[str, set[int]] = {}
    for i, (names, axes) in enumerate(zip(inputs, operands, strict=True)):
        parameter = view.is_parameter(i)
        if parameter and n > 1:
            view.weight(i, "weight")
        for name, axis in zip(names, axes, strict=True):
            axis = Axis(axis.rows, axis.zero or parameter, axis.places)
            seen.setdefault(name, set()).add(i)
            old = env.get(name)
            if old is None or len(old) < len(axis):
                env[name] = axis
            elif len(axis) == len(old):
                tied = view.tie(old, axis)
                env[name] = Axis(tied.rows, old.zero or axis.zero, tied.places)
    for name, axis in env.items():
        if name not in output and not axis.zero:
            view.inexact(axis, "is summed over where the removed values need not be zero")
        if name in output and len(seen[name]) > 1:
            view.mark(axis, "head")
    return [[env[name] for name in output]]


@op("Det", "com.microsoft::Inverse", text="... _m _m -> ...")
def matrix_function(view: OpView) -> list[Axes | None]:
    """A function of whole matrices: their axes are frozen."""
    x = view.axes(0)
    for axis in x[-2:]:
        view.freeze(axis, f"is an axis of the matrix that {view.node.op_type} works on")
    if view.node.op_type == "Det":
        return [x[:-2]]
    for axis in x[:-2]:
        if axis.zero:
            view.apart(axis, "has no inverse where it is zero")
    return [[*(Axis(a.rows, False, a.places) for a in x[:-2]), *(view.frozen(len(a)) for a in x[-2:])]]
