"""A latency model from a device's own profile: an estimate, as nothing can be measured there from here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune import shapes, trtexec
from graphprune.backends.runtimes import LayerTime
from graphprune.costs import padded_terms
from graphprune.errors import UsageError
from graphprune.latency.layers import Layer, Parts, parts_of
from graphprune.latency.measure import timing_feed
from graphprune.passes.base import State

#: Share of a profile's time that must be told by names of the model's nodes.
TOLD = 0.5


@dataclass
class Estimated:
    """Layers that take what a profile says at the source's widths, and in proportion to blocks of channels elsewhere.

    A layer that multiplies follows the product of its widths, each rounded up to the step; all others follow the
    elements that they read and write.
    """

    parts: Parts
    #: Milliseconds of each layer at the source's widths.
    full: list[float]
    fixed: float
    step: int
    said: str
    _products: list[tuple[float, NDArray[np.int64]]] = field(init=False, default_factory=list)
    _volumes: list[tuple[float, tuple[np.ndarray, np.ndarray], float]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        sizes = self.parts.widths.full
        for layer, ms in zip(self.parts.layers, self.full, strict=True):
            if ms > 0 and layer.alone:
                self._products.append((ms, np.asarray(layer.slots)))
            elif ms > 0:
                terms = padded_terms([(1.0, list(slots)) for slots in layer.volumes], len(sizes))
                self._volumes.append((ms, terms, self._volume(terms, sizes)))

    @property
    def total(self) -> float:
        """Milliseconds of the source."""
        return self.fixed + sum(self.full)

    def share(self, removed: Mapping[int, int]) -> float:
        sizes, full = self.parts.widths.sizes(removed), self.parts.widths.full
        blocks = np.ceil(sizes / self.step - 1e-9) / np.ceil(full / self.step)
        ms = self.fixed + sum(own * float(blocks[slots].prod()) for own, slots in self._products)
        ms += sum(own * self._volume(terms, sizes) / volume for own, terms, volume in self._volumes)
        return ms / self.total

    def describe(self) -> str:
        return self.said

    @staticmethod
    def _volume(terms: tuple[np.ndarray, np.ndarray], sizes: NDArray[np.float64]) -> float:
        return float(terms[0] @ np.append(sizes, 1.0)[terms[1]].prod(axis=1))


def estimated(state: State, path: Path, orders: Mapping[int, NDArray[np.int64]], step: int) -> Estimated:
    """Read a profile of the source that ``trtexec --exportProfile`` wrote on a device.

    Raises
    ------
    UsageError
        The file is no profile, or one of another model: its layers do not go by this model's nodes.
    """
    steps = trtexec.read(path).layers
    if not steps:
        raise UsageError(f"'{path}' holds no layers: write it with 'trtexec --exportProfile=profile.json' on the device")
    facts = shapes.infer(state.model, {name: array.shape for name, array in timing_feed(state).items()})
    parts = parts_of(state.model, state.need_coupling(), facts, orders)
    found, rest = attributed(parts.layers, steps, state.model)
    total = sum(found.values()) + rest
    told = sum(found.values())
    if told < TOLD * total:
        raise UsageError(
            f"'{path}': only {told / max(total, 1e-12):.0%} of its time goes by names of this model's nodes: profile the very file "
            "that is cut (not a lowered one), in an engine built with --profilingVerbosity=detailed"
        )
    said = (
        f"latency is estimated, not measured: layers take what '{path.name}' says at the source's widths ({told / total:.0%} of "
        f"{total:.3g} ms by name), and in proportion to blocks of {step} at others; time the result on the device"
    )
    return Estimated(parts, [found.get(layer.node, 0.0) for layer in parts.layers], rest, step, said)


def names_of(step: str) -> list[str]:
    """Names that a step's may be made of: TensorRT joins those of what it fuses, ``conv1 + relu1``, ``PWN(sigmoid, mul)``."""
    return [step, *(part.strip() for part in re.split(r" \+ |, |\|\||[()]", step))]


def attributed(layers: Sequence[Layer], steps: Sequence[LayerTime], model: ir.Model) -> tuple[dict[ir.Node, float], float]:
    """Milliseconds by node, and those of no layer; a fused step goes to the node in its name that multiplies."""
    known = {layer.node for layer in layers}
    alone = {layer.node for layer in layers if layer.alone}
    by_name = {node.name: node for node in model.graph if node.name}
    out: dict[ir.Node, float] = {}
    rest = 0.0
    for step in steps:
        nodes = [by_name[name] for name in names_of(step.name) if name in by_name]
        chosen = next((node for node in nodes if node in alone), None) or next((n for n in nodes if n in known), None)
        if chosen is None:
            rest += step.ms
        else:
            out[chosen] = out.get(chosen, 0.0) + step.ms
    return out, rest
