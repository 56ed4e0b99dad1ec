"""LSTM, GRU and RNN: torch's fused ones where they mean the same, else step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from graphprune.backends.torch_ops.registry import Result, lower, traceable

if TYPE_CHECKING:
    from graphprune.backends.torch_call import Call


def _activation(name: str, alpha: float | None, beta: float | None) -> Callable[[Tensor], Tensor]:
    def given(number: float | None, default: float) -> float:
        return default if number is None else number

    table: dict[str, Callable[[Tensor], Tensor]] = {
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "relu": F.relu,
        "softsign": F.softsign,
        "softplus": F.softplus,
        "affine": lambda x: given(alpha, 1.0) * x + given(beta, 0.0),
        "leakyrelu": lambda x: F.leaky_relu(x, given(alpha, 0.01)),
        "thresholdedrelu": lambda x: F.threshold(x, given(alpha, 1.0), 0.0),
        "scaledtanh": lambda x: given(alpha, 1.0) * torch.tanh(given(beta, 1.0) * x),
        "hardsigmoid": lambda x: torch.clamp(given(alpha, 0.2) * x + given(beta, 0.5), 0, 1),
        "elu": lambda x: F.elu(x, given(alpha, 1.0)),
    }
    return table[name.lower()]


def _gates(w: Tensor, order: tuple[int, ...]) -> Tensor:
    """Put the gates of a weight ``[gates * hidden, ...]`` into torch's order."""
    parts = w.chunk(len(order), 0)
    return torch.cat([parts[i] for i in order], 0)


#: Order of ONNX's gates in torch's, per kind.
_ORDER = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}


@traceable
def fused(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor | None, h: Tensor | None, c: Tensor | None, kind: str, mode: str,
    batch_first: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Run torch's own recurrence; shapes as ONNX's: x ``[t, n, i]``, w ``[d, gates h, i]``, result ``[t, d, n, h]``."""
    directions, hidden = w.shape[0], r.shape[-1]
    if batch_first:
        x = x.transpose(0, 1)
    flat: list[Tensor] = []
    for d in range(directions):
        flat += [_gates(w[d], _ORDER[kind]), _gates(r[d], _ORDER[kind])]
        if b is not None:
            first, second = b[d].chunk(2, 0)
            flat += [_gates(first, _ORDER[kind]), _gates(second, _ORDER[kind])]
    states = []
    for state in (h, c):
        if state is None:
            states.append(x.new_zeros(directions, x.shape[1], hidden))
        else:
            states.append((state.transpose(0, 1) if batch_first else state).contiguous())
    backward = mode == "reverse"
    x = x.flip(0) if backward else x
    args = (flat, b is not None, 1, 0.0, False, directions == 2, False)
    found: tuple[Tensor, ...]
    if kind == "LSTM":
        found = torch.lstm(x, states, *args)
    elif kind == "GRU":
        found = torch.gru(x, states[0], *args)
    else:
        found = torch.rnn_tanh(x, states[0], *args)
    y = found[0].flip(0) if backward else found[0]
    y = y.reshape(y.shape[0], y.shape[1], directions, hidden)
    y = y.transpose(1, 2)
    last = found[1:]
    if batch_first:
        return y.permute(2, 0, 1, 3), *(s.transpose(0, 1) for s in last)
    return y, *last


def _lstm_step(p: dict[str, Any]) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    f, g, h_act = p["activations"]

    def step(gates: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        gates = gates + h @ p["r"].t() + p["rb"]
        i, o, fo, cell = gates.chunk(4, -1)
        if p["peep"] is not None:
            pi, po, pf = p["peep"].chunk(3, -1)
            i, fo = i + pi * c, fo + pf * c
        forget = f(p["clip"](fo))
        keep = 1 - forget if p["input_forget"] else f(p["clip"](i))
        new = forget * c + keep * g(p["clip"](cell))
        if p["peep"] is not None:
            o = o + po * new
        return f(p["clip"](o)) * h_act(new), new

    return step


def _gru_step(p: dict[str, Any]) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    f, g = p["activations"][:2]
    size = p["r"].shape[-1]

    def step(gates: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        both = gates[..., : 2 * size] + h @ p["r"][: 2 * size].t() + p["rb"][: 2 * size]
        update, reset = f(p["clip"](both)).chunk(2, -1)
        third, bias = p["r"][2 * size :].t(), p["rb"][2 * size :]
        inner = reset * (h @ third + bias) if p["linear_before_reset"] else (reset * h) @ third + bias
        new = g(p["clip"](gates[..., 2 * size :] + inner))
        return (1 - update) * new + update * h, c

    return step


def _rnn_step(p: dict[str, Any]) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    f = p["activations"][0]
    return lambda gates, h, c: (f(p["clip"](gates + h @ p["r"].t() + p["rb"])), c)


_STEPS = {"LSTM": _lstm_step, "GRU": _gru_step, "RNN": _rnn_step}
_COUNT = {"LSTM": (4, 3), "GRU": (3, 2), "RNN": (1, 1)}


@traceable
def unrolled(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor | None, lengths: Tensor | None, h: Tensor | None, c: Tensor | None,
    peep: Tensor | None, kind: str, mode: str, batch_first: bool, activations: tuple[tuple[Any, ...], ...],
    clip: float | None, input_forget: bool, linear_before_reset: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Run a recurrence step by step, with all that ONNX allows; sequences end where ``lengths`` says."""
    if batch_first:
        x = x.transpose(0, 1)
        h = None if h is None else h.transpose(0, 1)
        c = None if c is None else c.transpose(0, 1)
    steps, batch = x.shape[:2]
    gates, acts = _COUNT[kind]
    hidden = r.shape[-1]
    ends = None if lengths is None else lengths.to(torch.int64)
    all_y, all_h, all_c = [], [], []
    for d in range(w.shape[0]):
        zero = x.new_zeros(gates * hidden)
        wb, rb = (zero, zero) if b is None else b[d].chunk(2, 0)
        step = _STEPS[kind](
            {
                "r": r[d], "rb": rb, "peep": None if peep is None else peep[d], "input_forget": input_forget,
                "linear_before_reset": linear_before_reset,
                "clip": (lambda v: v) if clip is None else (lambda v: v.clamp(-clip, clip)),
                "activations": [_activation(*a) for a in activations[d * acts : (d + 1) * acts]],
            }
        )  # fmt: skip
        inputs = x @ w[d].t() + wb
        state = x.new_zeros(batch, hidden) if h is None else h[d]
        cell = x.new_zeros(batch, hidden) if c is None else c[d]
        backward = mode == "reverse" or d == 1
        line: list[Tensor] = []
        for t in reversed(range(steps)) if backward else range(steps):
            new, new_cell = step(inputs[t], state, cell)
            if ends is None:
                state, cell = new, new_cell
                line.append(new)
            else:
                alive = (t < ends)[:, None]
                state, cell = torch.where(alive, new, state), torch.where(alive, new_cell, cell)
                line.append(torch.where(alive, new, torch.zeros_like(new)))
        all_y.append(torch.stack(line[::-1] if backward else line))
        all_h.append(state)
        all_c.append(cell)
    y, hs, cs = torch.stack(all_y, 1), torch.stack(all_h), torch.stack(all_c)
    if batch_first:
        y, hs, cs = y.permute(2, 0, 1, 3), hs.transpose(0, 1), cs.transpose(0, 1)
    return (y, hs, cs) if kind == "LSTM" else (y, hs)


_DEFAULT = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}


@lower("LSTM", "GRU", "RNN")
def _recurrent(call: Call) -> Result:
    kind, mode = call.op, call.attr("direction", "forward")
    first = call.flag("layout")
    default = _DEFAULT[kind] * (2 if mode == "bidirectional" else 1)
    names = call.attr("activations") or default
    x, w, r, b = call.tensor(0), call.tensor(1), call.tensor(2), call.optional(3)
    h = call.optional(5)
    c, peep = (call.optional(6), call.optional(7)) if kind == "LSTM" else (None, None)
    usual = tuple(n.lower() for n in names) == tuple(n.lower() for n in default)
    usual = usual and call.attr("clip") is None and not call.has(4) and peep is None and not call.flag("input_forget")
    usual = usual and (kind != "GRU" or call.flag("linear_before_reset"))
    if usual:
        return call.unpack(call.emit(fused, x, w, r, b, h, c, kind, mode, first))
    alpha, beta = list(call.attr("activation_alpha", ())), list(call.attr("activation_beta", ()))
    takes_alpha = ("affine", "leakyrelu", "thresholdedrelu", "scaledtanh", "hardsigmoid", "elu")
    takes_beta = ("affine", "scaledtanh", "hardsigmoid")
    chosen = tuple(
        (
            name,
            alpha.pop(0) if name.lower() in takes_alpha and alpha else None,
            beta.pop(0) if name.lower() in takes_beta and beta else None,
        )
        for name in names
    )
    for name, *_ in chosen:
        try:
            _activation(name, None, None)
        except KeyError:
            raise call.refuse(f"the activation '{name}' is not known here") from None
    made = call.emit(
        unrolled, x, w, r, b, call.optional(4), h, c, peep, kind, mode, first, chosen, call.attr("clip"),
        call.flag("input_forget"), call.flag("linear_before_reset"),
    )  # fmt: skip
    return call.unpack(made)
