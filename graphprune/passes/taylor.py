"""``taylor``: how much the loss changes, to first order, when a weight slice of a unit is zeroed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from graphprune.gradients import GradientScore, Member, products, summed
from graphprune.ops.following import normalises
from graphprune.passes.base import Scores, State


@dataclass(frozen=True)
class Taylor(GradientScore):
    """abs(sum of w g) over each slice that dies with a unit, mean over samples, then over the slices.

    g is the gradient of one sample's loss with respect to the weight w. Without labels the loss is the negative log-likelihood
    of a target drawn from the network's own outputs (see docs/criteria.md). Unit: loss. Cost: a forward and a
    backward pass for each sample, in torch. Source: Molchanov et al., "Importance Estimation for Neural
    Network Pruning", CVPR 2019.

    A unit none of whose constants can be trained (quantised weights) falls back to ``l1``; one line says so.

    Parameters
    ----------
    labels
        Take the loss from labels: subfolders of --data, or its array ``labels``.
    per
        ``slice``: as above. ``weight``: sum of abs(w g), no weight makes up for another.
    at
        ``weights``: slices of weights and tables. ``gates``: (sum of w g)^2 over scale and shift of the normalisation
        that a unit passes through, mean over the norms. For a unit without a normalisation (or where it was folded away) the
        slices of weights stand in, each squared.
    """

    name: ClassVar[str] = "taylor"
    per: Literal["slice", "weight"] = "slice"
    at: Literal["weights", "gates"] = "weights"

    def score(self, state: State) -> Scores:
        n = state.need_coupling().n_units
        roles: dict[str, set[str]] = {}
        for operand in state.need_coupling().operands:
            roles.setdefault(str(operand.value.name), set()).add(operand.role)
        gates, slices = np.zeros(n), np.zeros(n)
        gated, sliced = np.zeros(n), np.zeros(n)
        count = 0
        for found in products(state, self.name, self.labels):
            count += 1
            norms: dict[str, Scores] = {}
            for member, product in found:
                role = roles.get(str(member.value.name), set())
                norm = self.at == "gates" and bool(role & {"scale", "bias"}) and not role & {"weight", "table"}
                if not norm and product.ndim < 2:
                    continue
                for axis in member.axes:
                    sums, touched = self._sum(state, member, axis, product)
                    if norm:
                        node = _norm(member)
                        if node is not None:
                            norms[node] = norms.get(node, np.zeros(n)) + sums
                            gated += touched * ("scale" in role)
                    else:
                        slices += np.square(sums) if self.at == "gates" else np.abs(sums)
                        sliced += touched
            for one in norms.values():
                gates += np.square(one)
        scores = np.where(gated > 0, gates / np.maximum(gated, 1), slices / np.maximum(sliced, 1))
        missing = (gated == 0) & (sliced == 0) if count else np.ones(n, np.bool_)
        return self.filled(state, scores, missing)

    def _sum(self, state: State, member: Member, axis: int, product: Scores) -> tuple[Scores, Scores]:
        numbers = np.abs(product) if self.per == "weight" else product
        sums, touched = summed(state, member, axis, member.slices(numbers, axis))
        return sums, touched.astype(np.float64)


def _norm(member: Member) -> str | None:
    """The normalisation that reads a scale or a shift, None for the bias of anything else."""
    for node, _ in member.value.uses():
        if normalises(node):
            return str(node.outputs[0].name)
    return None
