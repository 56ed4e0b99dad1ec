"""``variance``: how much what a unit's consumers see of it varies; what hardly does is a constant that a bias can hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray

from graphprune.featuremaps import Moments, as_maps, layer_inputs, look, unit_means
from graphprune.passes.base import Needs, Score, Scores, State
from graphprune.weights import fill_missing


@dataclass(frozen=True)
class Variance(Score):
    """Variance of a unit's activation over images and positions, as its consumers see it; low variance goes first.

    Read at the input of every weighted layer; mean over a unit's channels, then over the layers that read it, each
    divided by its mean first. With ``--pass recover{mode=bias}`` the mean of what went is added to the biases of
    its consumers, as the source does. Source: Berisha et al., "Variance-Based Pruning for Accelerating and
    Compressing Trained Networks" (VBP), ICCV 2025. Unit: share of the layer's mean variance. Cost: one pass over
    the data.

    Units that no weighted layer reads, or only layers whose inputs all vary alike (not at all: one image and one
    position), fall back to ``l1``; one line says so.
    """

    name: ClassVar[str] = "variance"
    unit: ClassVar[str] = "share of the layer's mean variance"
    needs: ClassVar[Needs] = "data"

    def score(self, state: State) -> Scores:
        places = layer_inputs(state)
        moments = [Moments() for _ in places]

        def visit(number: int, values: NDArray[Any]) -> None:
            moments[number].add(as_maps(values, places[number][1]))

        look(state, self.name, places, visit)
        found = zip(places, (one.variance() for one in moments), strict=True)
        scores, missing = unit_means(state.need_coupling(), found, relative=True)
        return fill_missing(state, self.name, scores, missing, "have no activation whose variance tells them apart")
