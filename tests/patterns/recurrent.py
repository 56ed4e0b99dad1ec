"""LSTM, GRU and RNN: hidden widths, directions, stacks, states and lengths; Scan and Loop cells are in control.py."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto

from tests.patterns.build import I32, Net, pattern

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
SEQ = {"T": (4, 7)}


def _cell(
    g: Net,
    op: str,
    x: str,
    name: str,
    i: int,
    h: int,
    *,
    both: bool = False,
    bias: bool = True,
    n: int = 2,
    extra: tuple[str | None, ...] = (),
    **kw: object,
) -> tuple[str, ...]:
    """One recurrent layer with weights ``name.W``, ``name.R``, ``name.B``."""
    d, k = (2 if both else 1), GATES[op]
    w = g.w(f"{name}.W", d, k * h, i, scale=i**-0.5)
    r = g.w(f"{name}.R", d, k * h, h, scale=h**-0.5)
    b = g.w(f"{name}.B", d, 2 * k * h, scale=0.2) if bias else None
    if both:
        kw["direction"] = "bidirectional"
    return g.op(op, x, w, r, b, *extra, n=n, hidden_size=h, **kw)


@pattern("l.W:1 l.R:1,2 l.B:1 o.w:0", frozen="l.W:2 o.w:1", dims=SEQ, widths={"l.W:1": 24, "l.R:2": 6, "o.w:0": 6})
def lstm() -> ModelProto:
    g = Net()
    y, _ = _cell(g, "LSTM", g.x("T", "N", 7), "l", 7, 12)
    g.out(g.linear(g.Squeeze(y, g.c([1])), "o", 12, 3))
    return g.model()


@pattern("l.W:1 l.R:1,2 l.B:1 o.w:0", dims=SEQ, widths={"o.w:0": 6})
def gru_last_state() -> ModelProto:
    g = Net()
    _, h = _cell(g, "GRU", g.x("T", "N", 7), "l", 7, 12, linear_before_reset=1)
    g.out(g.linear(g.Squeeze(h, g.c([0])), "o", 12, 3))
    return g.model()


@pattern("l.W:1 l.R:1,2 o.w:0", dims=SEQ)
def rnn_without_bias() -> ModelProto:
    g = Net()
    y, _ = _cell(g, "RNN", g.x("T", "N", 7), "l", 7, 10, bias=False, activations=["Relu"])
    g.out(g.linear(g.Squeeze(y, g.c([1])), "o", 10, 3))
    return g.model()


@pattern("l.W:1 l.R:1,2 l.B:1 o.w:0", dims=SEQ)
def lstm_bidirectional() -> ModelProto:
    """One hidden_size for both directions: a unit is the pair, or the cut keeps the same count in each."""
    g = Net()
    y, _ = _cell(g, "LSTM", g.x("T", "N", 7), "l", 7, 10, both=True)
    y = g.reshape(g.t(y, 0, 2, 1, 3), 0, -1, 20)
    g.out(g.linear(y, "o", 20, 3))
    return g.model()


@pattern("l.W:1 l.R:1,2 m.W:1,2 m.R:1,2 o.w:0", dims=SEQ, widths={"m.W:2": 5, "o.w:0": 7})
def gru_stacked() -> ModelProto:
    g = Net()
    y, _ = _cell(g, "GRU", g.x("T", "N", 7), "l", 7, 10)
    y, _ = _cell(g, "GRU", g.Squeeze(y, g.c([1])), "m", 10, 14)
    g.out(g.linear(g.Squeeze(y, g.c([1])), "o", 14, 3))
    return g.model()


@pattern("l.W:1 m.W:1,2 o.w:0", dims=SEQ)
def lstm_bidirectional_stacked() -> ModelProto:
    g = Net()
    x = g.x("T", "N", 7)
    for name, i in (("l", 7), ("m", 16)):
        x, _ = _cell(g, "LSTM", x, name, i, 8, both=True)
        x = g.reshape(g.t(x, 0, 2, 1, 3), 0, 0, -1)
    g.out(g.linear(x, "o", 16, 3))
    return g.model()


@pattern(nothing=True, dims=SEQ)
def lstm_states_are_inputs_and_outputs() -> ModelProto:
    """Initial states cross the border: the hidden width is frozen and says so."""
    g = Net()
    x = g.x("T", "N", 7)
    h, c = g.x(1, "N", 8, name="h0"), g.x(1, "N", 8, name="c0")
    y, hn, cn = _cell(g, "LSTM", x, "l", 7, 8, n=3, extra=(None, h, c))
    g.out(g.linear(g.Squeeze(y, g.c([1])), "o", 8, 3))
    g.out(hn, "hn")
    g.out(cn, "cn")
    return g.model()


@pattern("l.W:1 l.R:1,2 o.w:0 h0:2", dims=SEQ)
def lstm_constant_states_and_lengths() -> ModelProto:
    """Learned initial states as weights, sequence lengths from an input, batch of 2."""
    g = Net()
    x, lens = g.x("T", 2, 7), g.x(2, name="lens", dtype=I32)
    y, _ = _cell(g, "LSTM", x, "l", 7, 10, extra=(lens, g.w("h0", 1, 2, 10, scale=0.5), g.w("c0", 1, 2, 10, scale=0.5)))
    g.out(g.linear(g.Squeeze(y, g.c([1])), "o", 10, 3))
    return g.model()


@pattern("l.W:1 l.R:1,2 o.w:0", dims=SEQ)
def lstm_zero_states_from_shape() -> ModelProto:
    """torch: initial states are ConstantOfShape or Expand of a zero to [1, batch, hidden] built at run time."""
    g = Net()
    x = g.x("T", "N", 7)
    batch = g.Gather(g.Shape(x), g.c([1]))
    h = g.Expand(g.f([[[0.0]]]), g.Concat(g.c([1]), batch, g.c([10]), axis=0))
    c = g.ConstantOfShape(g.Concat(g.c([1]), batch, g.c([10]), axis=0))
    y, _ = _cell(g, "LSTM", x, "l", 7, 10, extra=(None, h, c))
    g.out(g.linear(g.Squeeze(y, g.c([1])), "o", 10, 3))
    return g.model()


@pattern("l.W:1 l.R:1,2 l.P:1 o.w:0", dims=SEQ)
def lstm_peepholes() -> ModelProto:
    g = Net()
    p = g.w("l.P", 1, 30, scale=0.3)
    y, _ = _cell(g, "LSTM", g.x("T", "N", 7), "l", 7, 10, extra=(None, None, None, p))
    g.out(g.linear(g.Squeeze(y, g.c([1])), "o", 10, 3))
    return g.model()


@pattern("a.w:0 l.W:1,2 o.w:0", dims={"W": (12, 16)})
def crnn() -> ModelProto:
    """OCR: convolution, height squeezed, width becomes time, LSTM, CTC logits."""
    g = Net()
    x = g.cbr(g.x("N", 3, 4, "W"), "a", 10, 3)
    x = g.MaxPool(x, kernel_shape=[4, 1], strides=[4, 1])
    x = g.t(g.Squeeze(x, g.c([2])), 2, 0, 1)
    y, _ = _cell(g, "LSTM", x, "l", 10, 12)
    g.out(g.Softmax(g.linear(g.Squeeze(y, g.c([1])), "o", 12, 6), axis=-1))
    return g.model()


@pattern("o.w:0 Wi:0", dims=SEQ)
def lstm_weights_rebuilt_from_torch_gates() -> ModelProto:
    """Old exporters keep torch's i f g o order and rebuild ONNX's by Slice, Concat, Unsqueeze of constants."""
    g = Net()
    h = 8

    def reorder(v: str) -> str:
        parts = [g.slice(v, a * h, b * h, 0) for a, b in ((0, 1), (3, 4), (1, 3))]
        return g.Concat(*parts, axis=0)

    w = g.Unsqueeze(reorder(g.w("Wi", 4 * h, 7, scale=0.4)), g.c([0]))
    r = g.Unsqueeze(reorder(g.w("Wh", 4 * h, h, scale=0.4)), g.c([0]))
    b = g.Concat(reorder(g.w("bi", 4 * h, scale=0.2)), reorder(g.w("bh", 4 * h, scale=0.2)), axis=0)
    y, _ = g.LSTM(g.x("T", "N", 7), w, r, g.Unsqueeze(b, g.c([0])), hidden_size=h, n=2)
    g.out(g.linear(g.Squeeze(y, g.c([1])), "o", h, 3))
    return g.model()


@pattern("l.W:1 l.R:1,2 o.w:0", dims=SEQ)
def gru_reverse_batch_first() -> ModelProto:
    """layout=0 with Transposes for batch-first tensors, direction reverse."""
    g = Net()
    x = g.t(g.x("N", "T", 7), 1, 0, 2)
    y, _ = _cell(g, "GRU", x, "l", 7, 9, direction="reverse")
    g.out(g.linear(g.t(g.Squeeze(y, g.c([1])), 1, 0, 2), "o", 9, 3))
    return g.model()


@pattern("a.w:1 l.W:1,2", dims=SEQ)
def lstm_attention_pooling() -> ModelProto:
    """Additive attention over LSTM outputs."""
    g = Net()
    x = g.Relu(g.linear(g.x("T", "N", 5), "a", 5, 9))
    y, _ = _cell(g, "LSTM", x, "l", 9, 12)
    y = g.Squeeze(y, g.c([1]))
    s = g.MatMul(g.Tanh(g.linear(y, "u", 12, 8)), g.w("v", 8, 1))
    y = g.ReduceSum(g.Mul(y, g.Softmax(s, axis=0)), g.c([0]), keepdims=0)
    g.out(g.linear(y, "o", 12, 3))
    return g.model()


@pattern("l.W:1 o.w:0", dims={})
def lstm_reverse_time_and_stack() -> ModelProto:
    """ReverseSequence and a hand-made backward direction."""
    g = Net()
    x, lens = g.x(6, 3, 7), g.c(np.array([6, 4, 3]))
    y, _ = _cell(g, "LSTM", x, "l", 7, 8)
    z, _ = _cell(g, "LSTM", g.ReverseSequence(x, lens, batch_axis=1, time_axis=0), "r", 7, 10)
    y, z = g.Squeeze(y, g.c([1])), g.ReverseSequence(g.Squeeze(z, g.c([1])), lens, batch_axis=1, time_axis=0)
    g.out(g.linear(g.Concat(y, z, axis=-1), "o", 18, 3))
    return g.model()
