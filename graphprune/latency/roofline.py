"""A latency model of a device that is not here, from its peak and its bandwidth: an estimate, and said to be one.

The model is a sequence of kernels. What works element by element belongs to the kernel that gives its last operand, and views
cost nothing, as TensorRT fuses them. A kernel takes as long as its products at the peak, or as its bytes at the full bandwidth of
the memory, whichever is longer (the roofline model: Williams, Waterman and Patterson, 2009), and a launch; widths that a cut can
change count as the multiples that the device computes. Published are speeds of whole networks: how much of the roofline they
reach scales all kernels alike (``graphprune/devices/reached.csv``).

Where a profile of the device was read before (``graphprune calibrate``), kernels that it speaks of take what it says, scaled
by the roofline at other widths, and all others the roofline scaled by the mean of those.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune import shapes
from graphprune.costs import Widths, padded_terms
from graphprune.coupling import Coupling
from graphprune.devices import Target, alignment
from graphprune.devices.tables import peak_of, reached
from graphprune.errors import UsageError
from graphprune.facts import Facts
from graphprune.latency import calibration
from graphprune.latency.measure import timing_feed
from graphprune.ops.fusing import is_pointwise, is_view
from graphprune.ops.macs import terms_of
from graphprune.passes.base import State
from graphprune.rules import OpView, Place, UnknownShape

Terms = list[tuple[float, list[int]]]
Array = NDArray[np.float64]
#: Bytes of a number that is computed with.
_BYTES = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0}


@dataclass(eq=False)
class Kernel:
    """Nodes that run as one.

    Attributes
    ----------
    nodes
        In order; the first is what the others are fused into.
    products
        Multiply-accumulates: factors and slots of sizes.
    bytes
        Those of what it reads and writes.
    """

    nodes: list[ir.Node]
    products: Terms = field(default_factory=list)
    bytes: Terms = field(default_factory=list)

    def signature(self, facts: Facts) -> str:
        """What its time depends on besides the device: the first op, its attributes, shapes.

        Not what is fused into it: that takes little, and lowering writes it in other operators.
        """
        first = self.nodes[0]
        attributes = sorted(attr.SerializeToString().hex() for attr in ir.to_proto(first).attribute)
        sizes = [None if v is None else facts.shape(v) for v in (*first.inputs, *first.outputs)]
        text = json.dumps([first.domain, first.op_type, attributes, sizes])
        return hashlib.sha256(text.encode()).hexdigest()[:32]


class Roofline:
    """Times of a model's kernels on a device, as functions of its widths.

    Attributes
    ----------
    kernels
        All of them, in order.
    step
        Multiples that widths are computed at.
    share, launch_us
        How much of peak and bandwidth is reached, and microseconds of a kernel's launch.
    full
        float64[kernels], milliseconds at the source's widths by the roofline alone.
    """

    def __init__(self, state: State, target: Target, orders: Mapping[int, NDArray[np.int64]]) -> None:
        peak, precision = peak_of(target.device.name), target.width_precision
        tops = None if peak is None else {"fp32": peak.fp32_tops, "fp16": peak.fp16_tops, "int8": peak.int8_tops}.get(precision)
        if tops is None or target.device.bandwidth_gbs is None:
            raise UsageError(
                f"--device {target.device.name}: its peak at {precision} or its bandwidth is not known, so nothing can be "
                "estimated: give --latency-from a profile that 'trtexec --exportProfile' wrote on it"
            )
        self._tops, self._gbs, self._target = tops, target.device.bandwidth_gbs, target
        self.share, self.launch_us = reached(target.device.sm)
        self.step = alignment(target)
        self._facts = shapes.infer(state.model, {name: array.shape for name, array in timing_feed(state).items()})
        self.kernels, widths, rounded = _kernels(state.model, state.need_coupling(), self._facts, _BYTES[precision], orders)
        self._widths, self._rounded = widths, rounded
        one = len(widths.full)
        self._products = _Sums([kernel.products for kernel in self.kernels], one)
        self._bytes = _Sums([kernel.bytes for kernel in self.kernels], one)
        self.full = self.times({})

    def times(self, removed: Mapping[int, int]) -> Array:
        """float64[kernels], milliseconds with that many units of each group gone."""
        sizes = self._widths.sizes(removed)
        sizes[self._rounded] = np.ceil(sizes[self._rounded] / self.step - 1e-9) * self.step
        compute = 2e-9 * self._products(sizes) / self._tops
        memory = 1e-6 * self._bytes(sizes) / self._gbs
        return np.asarray(np.maximum(compute, memory) / self.share + 1e-3 * self.launch_us)

    def signatures(self) -> list[str]:
        return [kernel.signature(self._facts) for kernel in self.kernels]

    def describe(self) -> str:
        return (
            f"roofline of {self._target.device.title} at {self._target.width_precision.upper()} ({self._tops:g} TOPS dense, "
            f"{self._gbs:g} GB/s; {self.share:.0%} of both reached, as published speeds say; {self.launch_us:g} us a launch), "
            f"widths in multiples of {self.step}, activations and batch norm fused into what they follow"
        )


class Estimated:
    """A :class:`graphprune.latency.model.LatencyModel` of a device: the roofline, corrected by what was measured there."""

    def __init__(self, roofline: Roofline, known: calibration.Calibration | None) -> None:
        self._roofline, self._known = roofline, known
        self.step = roofline.step
        self._factors = np.ones(len(roofline.kernels))
        self._told = 0.0
        if known is not None:
            found = [known.ms.get(name) for name in roofline.signatures()]
            pairs = zip(found, roofline.full, strict=True)
            self._factors = np.asarray([known.scale if ms is None else ms / full for ms, full in pairs])
            ms = self._factors * roofline.full
            self._told = float(ms[[one is not None for one in found]].sum() / ms.sum())
        self.total = float(self._factors @ roofline.full)

    def share(self, removed: Mapping[int, int]) -> float:
        return float(self._factors @ self._roofline.times(removed)) / self.total

    def describe(self) -> str:
        text = f"latency is estimated, not measured: {self._roofline.describe()}"
        if self._known is not None:
            text += f"; {self._told:.0%} of the time as profiled there, the rest scaled by {self._known.scale:.3g} accordingly"
        return f"{text}; time the result on the device"


def estimated(state: State, target: Target, orders: Mapping[int, NDArray[np.int64]]) -> Estimated:
    """The model of a run's source on a device.

    Raises
    ------
    UsageError
        Nothing is known of the device's peak.
    """
    return Estimated(Roofline(state, target, orders), calibration.load(target))


class _Sums:
    """A sum of products of sizes a kernel."""

    def __init__(self, terms: list[Terms], one: int) -> None:
        flat = [term for own in terms for term in own]
        self._factors, self._slots = padded_terms(flat, one)
        self._owner = np.repeat(np.arange(len(terms)), [len(own) for own in terms])
        self._n = len(terms)

    def __call__(self, sizes: Array) -> Array:
        values = self._factors * np.append(sizes, 1.0)[self._slots].prod(axis=1)
        return np.asarray(np.bincount(self._owner, values, minlength=self._n), np.float64)


def _kernels(
    model: ir.Model, coupling: Coupling, facts: Facts, width: float, orders: Mapping[int, NDArray[np.int64]]
) -> tuple[list[Kernel], Widths, NDArray[np.int64]]:
    """The kernels, the sizes of their axes by decision, and the slots of those that a cut can change."""
    kernels, maker, origin = _fused(model, coupling, facts)
    places: dict[Place, int] = {}
    sizes: list[int] = []

    def slots(some: list[Place]) -> list[int]:
        out = []
        for value, axis in some:
            if (value, axis) not in places:
                places[value, axis] = len(sizes)
                sizes.append((facts.shape(value) or ())[axis])
            out.append(places[value, axis])
        return out

    read: dict[ir.Value, set[int]] = {}
    for number, kernel in enumerate(kernels):
        for node in kernel.nodes:
            for value in node.inputs:
                if value is not None:
                    read.setdefault(origin.get(value, value), set()).add(number)
    given = {origin.get(value, value) for value in model.graph.outputs}
    for number, kernel in enumerate(kernels):
        moved = [value for value, by in read.items() if number in by and maker.get(value) != number]
        made = [v for node in kernel.nodes for v in node.outputs if v in given or read.get(v, set()) - {number}]
        for value in (*moved, *made):
            shape, dtype = facts.shape(value), facts.dtype(value)
            if shape is None or dtype is None:
                continue
            each = width if dtype.is_floating_point() else min(dtype.itemsize, 4.0)
            kernel.bytes.append((each, slots([(value, axis) for axis in range(len(shape))])))
        for node in kernel.nodes:
            try:
                kernel.products += [(factor, slots(list(axes))) for factor, axes in terms_of(OpView(node, coupling.coupler))]
            except (UnknownShape, IndexError):
                continue  # a shape that is known when it runs: its bytes have to do
    widths = Widths(coupling, places, sizes, orders)
    return kernels, widths, np.asarray([slot for place, slot in places.items() if coupling.has_units(*place)], np.int64)


def _fused(model: ir.Model, coupling: Coupling, facts: Facts) -> tuple[list[Kernel], dict[ir.Value, int], dict[ir.Value, ir.Value]]:
    """Kernels; which of them makes a value; and for views the value that they are of."""
    kernels: list[Kernel] = []
    maker: dict[ir.Value, int] = {}
    origin: dict[ir.Value, ir.Value] = {}
    for node in model.graph:
        if all(coupling.coupler.is_parameter(v) or facts.known(v) is not None for v in node.outputs):
            continue  # computed when the engine is built
        inputs = [origin.get(v, v) for v in node.inputs if v is not None]
        if is_view(node) and inputs:
            origin[node.outputs[0]] = inputs[0]
            continue
        makers = [maker[v] for v in inputs if v in maker]
        number = len(kernels)
        if is_pointwise(node) and makers and _takes_more(kernels[max(makers)], coupling):
            number = max(makers)
            kernels[number].nodes.append(node)
        else:
            kernels.append(Kernel([node]))
        maker.update((v, number) for v in node.outputs)
    return kernels, maker, origin


def _takes_more(kernel: Kernel, coupling: Coupling) -> bool:
    """Whether what follows element by element is computed within it: where it multiplies, or works so itself."""
    first = kernel.nodes[0]
    try:
        return is_pointwise(first) or bool(terms_of(OpView(first, coupling.coupler)))
    except (UnknownShape, IndexError):
        return True
