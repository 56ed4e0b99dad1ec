"""How long a decision would run: a sum over layers, whose times come from measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import onnx_ir as ir

from graphprune.backends.runtimes import LayerTime
from graphprune.costs import padded_terms
from graphprune.latency.layers import Layer, Parts
from graphprune.latency.steps import Table, interpolate

#: Bounds of how far a layer within its model may run from the same layer alone before that is put down to another cause.
_CONTEXT = (0.4, 2.5)


class LatencyModel(Protocol):
    """Predicts the time of a cut model; where the times come from is its own business.

    What is measured here is one; a device's profile or a table of its bandwidth could be others.
    """

    #: Widths that are multiples of this cost what they compute.
    step: int

    def share(self, removed: Mapping[int, int]) -> float:
        """Time with that many units of each group gone, as a share of the source's."""

    def describe(self) -> str:
        """Where the times are from, in words."""


@dataclass
class Measured:
    """Layers timed alone, scaled to what they take within the whole model; the rest by what it reads and writes."""

    parts: Parts
    tables: list[Table | None]
    #: Milliseconds of each layer within the source.
    full: list[float]
    #: Milliseconds that no decision changes.
    fixed: float
    step: int
    said: str
    _total: float = field(init=False)

    def __post_init__(self) -> None:
        widths = self.parts.widths
        one = len(widths.full)
        self._rest: list[tuple[float, tuple[np.ndarray, np.ndarray], float]] = []
        self._tabled: list[tuple[Table, float, np.ndarray]] = []
        for layer, table, ms in zip(self.parts.layers, self.tables, self.full, strict=True):
            if table is not None and table.full > 0:
                self._tabled.append((table, ms / table.full, np.asarray(layer.slots)))
            elif ms > 0:
                terms = padded_terms([(1.0, list(slots)) for slots in layer.volumes], one)
                self._rest.append((ms, terms, self._volume(terms, widths.full)))
        self._total = self._ms({})

    @staticmethod
    def _volume(terms: tuple[np.ndarray, np.ndarray], sizes: np.ndarray) -> float:
        return float(terms[0] @ np.append(sizes, 1.0)[terms[1]].prod(axis=1))

    def _ms(self, removed: Mapping[int, int]) -> float:
        sizes = self.parts.widths.sizes(removed)
        total = self.fixed
        for table, factor, slots in self._tabled:
            total += factor * interpolate(table, sizes[slots], self.step)
        for ms, terms, volume in self._rest:
            total += ms * self._volume(terms, sizes) / volume
        return total

    def share(self, removed: Mapping[int, int]) -> float:
        return self._ms(removed) / self._total

    def describe(self) -> str:
        return self.said


def within(layers: Sequence[Layer], profile: Sequence[LayerTime], model: ir.Model) -> tuple[dict[ir.Node, float], float]:
    """What each node takes within the whole model, by its runtime's profile.

    A step that does several nodes counts for the one that multiplies, where it can be told; otherwise for the node it
    is named after.

    Returns
    -------
    dict, float
        Milliseconds by node; and those of steps that belong to no layer.
    """
    by_name = {node.name or str(node.outputs[0].name): node for node in model.graph}
    timed = {layer.node for layer in layers if layer.alone}
    named = {by_name[step.name] for step in profile if step.name in by_name}
    known = {layer.node for layer in layers}
    out: dict[ir.Node, float] = {}
    rest = 0.0
    for step in profile:
        node = None if step.layout else by_name.get(step.name)
        if node is not None and node not in timed:
            node = _behind(node, timed - named) or node
        if node in known:
            assert node is not None
            out[node] = out.get(node, 0.0) + step.least
        elif not step.layout:
            rest += step.least
    return out, rest


def _behind(node: ir.Node, wanted: set[ir.Node]) -> ir.Node | None:
    """The nearest of some nodes that a fused step may have begun with: a few nodes up."""
    layer = [node]
    for _ in range(4):
        layer = [p for one in layer for v in one.inputs if v is not None and (p := v.producer()) is not None]
        hit = next((one for one in layer if one in wanted), None)
        if hit is not None:
            return hit
    return None


def in_context(tables: Sequence[Table | None], layers: Sequence[Layer], found: Mapping[ir.Node, float]) -> list[float]:
    """Milliseconds of each layer within the source: by the profile where it says, else as it takes alone."""
    ratios = [
        found[layer.node] / table.full
        for layer, table in zip(layers, tables, strict=True)
        if table is not None and table.full > 0 and layer.node in found
    ]
    typical = float(np.median(ratios)) if ratios else 1.0
    out = []
    for layer, table in zip(layers, tables, strict=True):
        if table is None or table.full <= 0:
            out.append(found.get(layer.node, 0.0))
        elif layer.node in found:
            low, high = (bound * typical * table.full for bound in _CONTEXT)
            out.append(float(np.clip(found[layer.node], low, high)))
        else:
            out.append(typical * table.full)
    return out
