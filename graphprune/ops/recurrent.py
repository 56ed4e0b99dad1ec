"""Recurrent layers: a hidden unit is cut across all gates, both directions and the state at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphprune.rules import Axes, Axis, OpView, op

if TYPE_CHECKING:
    from graphprune.cut import Cut

#: Gates stacked in W and R of each op.
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1, "DynamicQuantizeLSTM": 4}
#: The activations of one direction, in the order of the ``activations`` attribute.
_DEFAULTS = {
    "LSTM": ("Sigmoid", "Tanh", "Tanh"),
    "GRU": ("Sigmoid", "Tanh"),
    "RNN": ("Tanh",),
    "DynamicQuantizeLSTM": ("Sigmoid", "Tanh", "Tanh"),
}
#: Activations with f(0) = 0, in lower case (the specification compares names so).
_ZERO_KEEPING = frozenset({"relu", "tanh", "leakyrelu", "thresholdedrelu", "scaledtanh", "elu", "softsign"})


def shrink_hidden(cut: Cut) -> None:
    """``hidden_size`` is what the recurrent weight is left with."""
    width = 1 if cut.old.op_type == "DynamicQuantizeLSTM" else 2
    cut.set_attr("hidden_size", cut.new_in(2)[width])


def candidate_keeps_zero(view: OpView) -> bool:
    """Whether the activations that a state passes through map 0 to 0 in every direction.

    The gates' own activation does not matter: what it multiplies is zero.
    """
    defaults = _DEFAULTS[view.node.op_type]
    given = view.attr("activations") or defaults
    names = [name.decode() if isinstance(name, bytes) else str(name) for name in given]
    first = 1 if len(defaults) > 1 else 0
    return all(name.lower() in _ZERO_KEEPING for i, name in enumerate(names) if i % len(defaults) >= first)


def _is_zero(view: OpView, axis: Axis, i: int) -> bool:
    """Whether operand ``i`` is zero along ``axis`` at removed indices: parameters are masked."""
    return axis.zero or view.is_parameter(i)


class _Layer:
    """The named axes of one layer while its operands are met."""

    def __init__(self, view: OpView) -> None:
        self.view = view
        self.axes: dict[str, Axis] = {}

    def meet(self, name: str, axis: Axis) -> None:
        old = self.axes.get(name)
        if old is None:
            self.axes[name] = axis
        else:
            self.view.tie(old, axis)

    def gates(self, axis: Axis, n: int, what: str) -> Axis:
        """The hidden factor of an axis that stacks ``n`` gates over hidden units."""
        gate, hidden = self.view.split(axis, [n, len(axis) // n])
        self.view.freeze(gate, f"stacks the {what} of {self.view.node.op_type}")
        return hidden

    def weights(self, gated: int, read: int) -> None:
        """Meet W and R, and the input: which of their axes stacks gates, and which is summed over."""
        view, stacked = self.view, GATES[self.view.node.op_type]
        for i, role in ((1, "weight"), (2, "weight"), (3, "bias")):
            view.weight(i, role)
        w, r = view.axes(1), view.axes(2)
        self.meet("direction", w[0])
        self.meet("direction", r[0])
        self.meet("hidden", self.gates(w[gated], stacked, "gates"))
        self.meet("hidden", self.gates(r[gated], stacked, "gates"))
        self.meet("hidden", r[read])
        view.tie(w[read], view.axes(0)[2])

    def bias(self) -> Axis:
        """Meet the biases of W and R; the axis that stacks them."""
        direction, stacked = self.view.axes(3)
        self.meet("direction", direction)
        self.meet("hidden", self.gates(stacked, 2 * GATES[self.view.node.op_type], "gates"))
        return stacked


def recurrent_axes(view: OpView, layer: _Layer, zero: bool) -> list[Axes | None]:
    """Meet the sequence, the states and the peepholes; axes of the outputs Y, Y_h and Y_c.

    Parameters
    ----------
    layer
        Holds the axes ``direction``, ``hidden`` and ``input`` of the weights.
    zero
        Whether weights and bias are zero at removed hidden units.
    """
    batch_first = bool(view.attr("layout", 0))
    x = view.axes(0)
    sequence, batch = (x[1], x[0]) if batch_first else (x[0], x[1])
    view.freeze(sequence, f"{view.node.op_type} runs along it")
    layer.meet("batch", batch)
    if view.has(4):
        layer.meet("batch", view.axes(4)[0])
    started = {5: True, 6: True}
    for i in (5, 6):
        if view.has(i) and i < len(view.node.inputs):
            view.weight(i, "shift")
            state = view.axes(i)
            directions, rows = (state[1], state[0]) if batch_first else (state[0], state[1])
            layer.meet("direction", directions)
            layer.meet("batch", rows)
            layer.meet("hidden", state[2])
            started[i] = _is_zero(view, state[2], i)
    if view.has(7):
        view.weight(7, "weight")
        peephole = view.axes(7)
        layer.meet("direction", peephole[0])
        layer.meet("hidden", layer.gates(peephole[1], len(peephole[1]) // len(layer.axes["hidden"]), "peepholes"))
        zero = zero and _is_zero(view, peephole[1], 7)
    view.freeze(layer.axes["direction"], f"direction of {view.node.op_type}")
    zero = zero and candidate_keeps_zero(view)
    # An LSTM's state is its cell: the hidden state before the first step is only read through R.
    steps = zero and (started[6] if "LSTM" in view.node.op_type else started[5])
    last = steps and started[5]
    hidden = layer.axes["hidden"]
    rows = Axis(layer.axes["batch"].rows, False, batch.places)
    n, d = len(sequence), len(layer.axes["direction"])
    every, final = Axis(hidden.rows, steps, hidden.places), Axis(hidden.rows, last, hidden.places)
    if batch_first:
        return [
            [rows, view.frozen(n), view.frozen(d), every], [rows, view.frozen(d), final], [rows, view.frozen(d), every],
        ]  # fmt: skip
    return [[view.frozen(n), view.frozen(d), rows, every], [view.frozen(d), rows, final], [view.frozen(d), rows, every]]


@op(*("LSTM", "GRU", "RNN"), text="s b i, d (_g h) i, d (_g h) h, d (_g h), b, d b h -> s d b h, d b h, d b h",
    shrink=shrink_hidden)  # fmt: skip
def recurrent(view: OpView) -> list[Axes | None]:
    """Hidden units live in all gates, directions and states; input features meet W's columns."""
    layer = _Layer(view)
    x, w, r = view.axes(0), view.axes(1), view.axes(2)
    layer.weights(gated=1, read=2)
    if not (x[2].zero or _is_zero(view, w[2], 1)):
        view.inexact(x[2], "is summed over where the removed values need not be zero")
    zero = _is_zero(view, w[1], 1) and _is_zero(view, r[1], 2)
    if view.has(3):
        zero = _is_zero(view, layer.bias(), 3) and zero
    outs = recurrent_axes(view, layer, zero)
    if not (_is_zero(view, r[2], 2) or zero):
        view.inexact(r[2], "is summed over where the removed values need not be zero")
    return outs


@op("com.microsoft::DynamicQuantizeLSTM",
    text="s b i, d i (_g h), d h (_g h), d (_g h), b, d b h -> s d b h, d b h, d b h", shrink=shrink_hidden)  # fmt: skip
def quantized_lstm(view: OpView) -> list[Axes | None]:
    """As LSTM with transposed int8 weights; scales and zero points follow the columns."""
    layer = _Layer(view)
    x = view.axes(0)
    layer.weights(gated=2, read=1)
    if not x[2].zero:
        # The step's scale is taken from all input features, also from those that nobody reads.
        view.inexact(x[2], "is quantised by its range when it runs")
    for i in (8, 9, 10, 11):
        own = view.axes(i)
        layer.meet("direction", own[0])
        if len(own) > 1 and len(own[1]) > 1:
            layer.meet("hidden", layer.gates(own[1], GATES[view.node.op_type], "gates"))
    if view.has(3):
        layer.bias()
    zero = all(view.is_parameter(i) for i in (1, 2, 3) if view.has(i))
    outs = recurrent_axes(view, layer, zero)
    if outs[0] is not None and not outs[0][-1].zero:
        view.inexact(layer.axes["hidden"], "is quantised by its range when it runs")
    return outs
