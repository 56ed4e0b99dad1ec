"""``wanda``: a unit's activation times the weights that read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from graphprune.featuremaps import as_maps, look, unit_means
from graphprune.ops.linear_form import linear_form
from graphprune.passes.base import Needs, Score, Scores, State
from graphprune.rules import Place
from graphprune.weights import fill_missing


@dataclass(frozen=True)
class Wanda(Score):
    """Norm of a unit's activation times the norm of the weights that read it.

    For channel i of what a linear layer reads: ||a_i||_2 over images and positions, times ||W[:, i]||_2 over
    outputs and window. Mean over a unit's channels, then over the layers that read it, each divided by its mean
    first. Source: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models" (Wanda), ICLR
    2024, from single weights to units. Unit: share of the layer's mean. Cost: one pass over the data and over the
    weights.

    Units that no linear layer reads, or only layers in which all channels count the same, fall back to ``l1``; one
    line says so.
    """

    name: ClassVar[str] = "wanda"
    unit: ClassVar[str] = "share of the layer's mean"
    needs: ClassVar[Needs] = "data"

    def score(self, state: State) -> Scores:
        coupling = state.need_coupling()
        weights: list[tuple[Place, NDArray[np.float64]]] = []
        for operand in coupling.operands:
            form = linear_form(operand.node) if operand.role == "weight" else None
            if form is None or form.w != operand.index or operand.node.graph is not state.model.graph:
                continue
            x = operand.node.inputs[form.x]
            rank = None if x is None else state.need_facts().rank(x)
            if x is None or rank is None or not coupling.has_units(x, form.in_axis(rank)):
                continue
            array = state.parameter(operand.value)
            if array is None or array.ndim < 2:
                continue
            columns = np.square(form.matrix(np.asarray(array, np.float32))).sum(axis=1, dtype=np.float64)
            n = len(coupling.rows(x, form.in_axis(rank)))
            if columns.size % n == 0:  # [g, (i k)]: the inputs in order, each with its window
                weights.append(((x, form.in_axis(rank)), np.sqrt(columns.reshape(n, -1).sum(axis=1))))
        places = list(dict.fromkeys(place for place, _ in weights))
        squares = {place: np.zeros(len(coupling.rows(*place))) for place in places}

        def visit(number: int, values: NDArray[Any]) -> None:
            maps = as_maps(values, places[number][1]).astype(np.float64)
            squares[places[number]] += np.square(maps).sum(axis=(0, 2))

        look(state, self.name, places, visit)
        products = ((place, np.sqrt(squares[place]) * norms) for place, norms in weights)
        scores, missing = unit_means(coupling, products, relative=True)
        return fill_missing(state, self.name, scores, missing, "are read by no linear layer that tells them apart")
