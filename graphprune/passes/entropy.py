"""``entropy``: how evenly a feature map's deviations from its mean are spread over the map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir

from graphprune.backends.ort import Runner
from graphprune.coupling import Coupling
from graphprune.passes.base import Score, Scores, State, per_unit
from graphprune.weights import weight_norms

#: Maps of this many values at most are held at a time.
_BLOCK = 1 << 22
_NORMALISING = ("BatchNormalization", "InstanceNormalization", "GroupNormalization", "LayerNormalization",
                "RMSNormalization", "SimplifiedLayerNormalization")  # fmt: skip


@dataclass(frozen=True)
class Entropy(Score):
    """Entropy of the spatial softmax of each feature map; low entropy is kept.

    For every calibration image and channel map x (H x W): z = (x - mean(x))^2, p = softmax over the map of
    z, H = -sum p ln p in nats, float64, 0 <= H <= ln HW. e is the sum of H over the images; per layer
    e' = (e - min) / (max - min), and one threshold over all layers. The score is 1 - e'.

    Read at the output of the normalisation that follows a layer, before the activation (where it was folded
    away: at the layer itself). Source: Shao et al., "Filter Pruning via Measuring Feature Map Information",
    Sensors 21(19):6601, 2021. Unit: share of the layer's entropy range. Cost: one pass over the data.

    Where a map has one position (HW = 1), H is 0 for every channel, and where a layer's maps are all
    constant, e' is 0/0: units read nowhere else fall back to ``l1``, min-max scaled, and one line says so.

    Parameters
    ----------
    variant
        ``squared``: as above. ``raw``: the softmax of x itself.
    reading
        ``bn``: after the normalisation. ``conv``: at the layer's own output.
    normalize
        ``minmax``, or ``mean-var``: (e - mean) / var per layer.
    keep
        ``low``, or ``high`` for the opposite sign.
    """

    name: ClassVar[str] = "entropy"
    unit: ClassVar[str] = "1 - normalised nats"
    needs: ClassVar[Literal["weights", "data"]] = "data"
    normalized: ClassVar[bool] = True
    variant: Literal["squared", "raw"] = "squared"
    reading: Literal["bn", "conv"] = "bn"
    normalize: Literal["minmax", "mean-var"] = "minmax"
    keep: Literal["low", "high"] = "low"

    def score(self, state: State) -> Scores:
        coupling = state.need_coupling()
        points = readings(state, coupling, after_norm=self.reading == "bn")
        sums = [np.zeros(len(coupling.rows(value, axis))) for value, axis in points]
        names = [str(value.name) for value, _ in points]
        if points:
            runner = Runner(state.model, outputs=list(dict.fromkeys(names)))
            feeds = state.samples
            for done, feed in enumerate(feeds):
                state.progress("entropy", done / feeds.feeds)
                maps = runner.run(feed)
                for total, name, (_, axis) in zip(sums, names, points, strict=True):
                    total += map_entropy(maps[name], axis, self.variant)
        n = coupling.n_units
        total, members = np.zeros(n), np.zeros(n)
        for values, (value, axis) in zip(sums, points, strict=True):
            scaled = self._scaled(values)
            if scaled is None:
                continue
            rows = coupling.rows(value, axis)
            summed, touched = per_unit(rows, scaled, n)
            counts, _ = per_unit(rows, np.ones(len(rows)), n)
            total += summed / np.maximum(counts, 1)
            members += touched
        evenness = total / np.maximum(members, 1)
        scores = 1 - evenness if self.keep == "low" else evenness
        return self._fill(state, coupling, scores, members == 0)

    def _scaled(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
        """Entropies of one layer made comparable; None where they are all the same."""
        spread = float(values.max() - values.min())
        if not np.isfinite(values).all() or spread <= 1e-12 * max(float(np.abs(values).max()), 1.0):
            return None
        if self.normalize == "minmax":
            return np.asarray((values - values.min()) / spread)
        return np.asarray((values - values.mean()) / values.var())

    @staticmethod
    def _fill(state: State, coupling: Coupling, scores: Scores, missing: np.ndarray[Any, Any]) -> Scores:
        if not missing.any():
            return scores
        norms = weight_norms(state, 1)
        for group in coupling.groups:
            units = group.units[missing[group.units]]
            if len(units):
                low, high = norms[units].min(), norms[units].max()
                scores[units] = (norms[units] - low) / (high - low) if high > low else 0.5
        state.note(
            f"entropy: {int(missing.sum())} of {len(scores)} units have no feature map with a spread of entropies "
            "(one position, or constant): scored by l1 instead"
        )
        return scores


def map_entropy(values: np.ndarray[Any, Any], axis: int, variant: str = "squared") -> np.ndarray[Any, Any]:
    """Summed entropy over the images of a batch, per channel.

    Parameters
    ----------
    values
        Feature maps, any float dtype; axis 0 counts images unless it is the channel axis.
    axis
        The channel axis. All axes but it and axis 0 are the map.

    Returns
    -------
    float64[channels]
        Nats.
    """
    maps = np.moveaxis(values, axis, 1) if axis != 0 else values[None]
    maps = maps.reshape(maps.shape[0], maps.shape[1], -1)
    total = np.zeros(maps.shape[1])
    step = max(1, _BLOCK // max(1, maps.shape[2] * maps.shape[0]))
    for start in range(0, maps.shape[1], step):
        x = maps[:, start : start + step].astype(np.float64)
        z = np.square(x - x.mean(axis=2, keepdims=True)) if variant == "squared" else x
        z -= z.max(axis=2, keepdims=True)
        weight = np.exp(z)
        mass = weight.sum(axis=2)
        # -sum p ln p with p = w / mass and ln w = z.
        total[start : start + step] = (np.log(mass) - (weight * z).sum(axis=2) / mass).sum(axis=0)
    return total


def readings(state: State, coupling: Coupling, *, after_norm: bool) -> list[tuple[ir.Value, int]]:
    """Where feature maps are read: the outputs of weighted layers, behind the normalisation that follows."""
    facts = state.need_facts()
    out: dict[tuple[ir.Value, int], None] = {}
    for operand in coupling.operands:
        if operand.role != "weight" or operand.node.graph is not state.model.graph:
            continue
        value = operand.node.outputs[0]
        if after_norm:
            value = _behind_norm(value)
        shape = facts.shape(value)
        dtype = facts.dtype(value)
        if shape is None or len(shape) < 2 or dtype is None or not dtype.is_floating_point():
            continue
        for axis in range(len(shape)):
            if axis != 0 and coupling.has_units(value, axis):
                out[value, axis] = None
    return list(out)


def _behind_norm(value: ir.Value) -> ir.Value:
    """The output of the normalisation behind a layer, past an addition of a bias; else the layer's own."""
    current = value
    for _ in range(2):
        uses = tuple(current.uses())
        if len(uses) != 1:
            return value
        node = uses[0].node
        if node.op_type in _NORMALISING:
            return node.outputs[0]
        constant = any(v is not None and v.const_value is not None for v in node.inputs)
        if node.op_type not in ("Add", "Reshape") or not constant:
            return value
        current = node.outputs[0]
    return value
