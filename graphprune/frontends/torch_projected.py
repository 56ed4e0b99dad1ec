"""LSTMs whose hidden state is projected, as ordinary ones.

torch's ONNX exporter writes ``nn.LSTM(proj_size=...)`` without its projections, since ONNX's LSTM has none. With
``r = P h`` the recurrence ``W x + U r`` is ``W x + (U P) h``: an LSTM without projection, and a product behind it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

_ZEROS = (torch.ops.aten.zeros.default, torch.ops.aten.zeros_like.default, torch.ops.aten.new_zeros.default)


def without_projections(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program with its projected LSTMs written out; itself where it has none."""
    aten = torch.ops.aten.lstm.input
    nodes = [node for node in program.graph.nodes if node.target is aten]
    projected = [node for node in nodes if _is_projected(*(_value(n) for n in node.args[1]))]
    if not projected:
        return program
    at_rest = itertools.cycle([_is_zero(node.args[1][0]) for node in projected])  # traced more than once

    def lstm(
        x: Tensor, hx: Sequence[Tensor], params: Sequence[Tensor], has_biases: bool, num_layers: int, dropout: float,
        train: bool, bidirectional: bool, batch_first: bool,
    ) -> Any:  # fmt: skip
        if not _is_projected(*hx):
            return NotImplemented
        return _projected(x, hx, params, has_biases, bidirectional, batch_first, next(at_rest))

    return program.run_decompositions({aten: lstm})


def _value(node: Any) -> Tensor:
    value = node.meta["val"]
    assert isinstance(value, Tensor)
    return value


def _is_projected(h: Tensor, c: Tensor) -> bool:
    return h.shape[-1] != c.shape[-1]


def _is_zero(node: Any) -> bool:
    return isinstance(node, Node) and node.target in _ZEROS


def _projected(
    x: Tensor, hx: Sequence[Tensor], params: Sequence[Tensor], has_biases: bool, bidirectional: bool, batch_first: bool,
    at_rest: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """What ``aten::lstm`` gives in eval mode.

    Parameters
    ----------
    x : float[steps, batch, width], or float[batch, steps, width] with ``batch_first``.
    hx : float[layers * directions, batch, projected] and float[layers * directions, batch, hidden].
    params
        A layer and direction: input weights, recurrent weights, with ``has_biases`` two biases, projection.
    at_rest
        The hidden state before the first step is known to be zero.
    """
    if batch_first:
        x = x.transpose(0, 1)
    each: Iterator[tuple[Tensor, ...]] = iter(zip(*[iter(params)] * (5 if has_biases else 3), strict=True))
    hs, cs = [], []
    directions = 2 if bidirectional else 1
    for number in range(0, hx[0].shape[0], directions):
        ways = []
        for way in range(directions):
            wi, wh, *biases, projection = next(each)
            h, c = hx[0][number + way], hx[1][number + way]
            given = x.flip(0) if way else x
            if not at_rest:
                # What the state adds before the first step comes in as input of that step.
                rest = h.new_zeros(given.shape[0] - 1, *h.shape)
                given, wi = torch.cat([given, torch.cat([h[None], rest])], -1), torch.cat([wi, wh], 1)
            states = [torch.zeros_like(c)[None], c[None]]
            weights = [wi, wh @ projection, *biases]
            y, _, last = torch.ops.aten.lstm.input(given, states, weights, has_biases, 1, 0.0, False, False, False)
            y = y @ projection.t()
            hs.append(y[-1])
            cs.append(last[0])
            ways.append(y.flip(0) if way else y)
        x = torch.cat(ways, -1) if bidirectional else ways[0]
    return (x.transpose(0, 1) if batch_first else x), torch.stack(hs), torch.stack(cs)
