"""What a model's time is a sum of: its layers, each with the widths that a decision can change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.costs import Widths
from graphprune.coupling import Coupling
from graphprune.facts import Facts
from graphprune.ops.alone import Mender, mender_of
from graphprune.rules import Place

Shape = tuple[int, ...]
#: One axis of one input of a node.
Spot = tuple[int, int]
#: Elements up to which a constant keeps its contents when a layer runs alone: scales, zero points, axes.
_SMALL = 16


@dataclass(frozen=True, eq=False)
class Layer:
    """One node and the widths that it is timed at.

    Attributes
    ----------
    node
        The source's node.
    dims
        For each width that changes by itself: its size in the source, and the axes of the node's inputs that follow it,
        as (input, axis).
    slots
        For each of them the slot of its size in :class:`graphprune.costs.Widths`.
    alone
        Whether it can run alone; otherwise its time follows the elements that it reads and writes.
    volumes
        Slots of the axes of every value that it reads and writes, a list a value.
    """

    node: ir.Node
    dims: tuple[tuple[int, tuple[Spot, ...]], ...]
    slots: tuple[int, ...]
    alone: bool
    volumes: tuple[tuple[int, ...], ...]


@dataclass
class Parts:
    """A model's nodes as layers.

    Attributes
    ----------
    layers
        Nodes that some decision can make smaller, in order.
    widths
        Sizes of their axes by decision.
    """

    layers: list[Layer] = field(default_factory=list)
    widths: Widths = field(init=False)


def parts_of(model: ir.Model, coupling: Coupling, facts: Facts, orders: Mapping[int, NDArray[np.int64]]) -> Parts:
    """Take a model apart, on the shapes of ``facts``."""
    places: dict[Place, int] = {}
    sizes: list[int] = []
    found: list[tuple[ir.Node, list[list[int]]]] = []

    def slot(place: Place, size: int) -> int:
        if place not in places:
            places[place] = len(sizes)
            sizes.append(size)
        return places[place]

    for node in model.graph:
        volumes = []
        cut = False
        for value in dict.fromkeys([*node.inputs, *node.outputs]):
            shape = None if value is None else facts.shape(value)
            if value is None or shape is None or coupling.coupler.axes.get(value) is None:
                continue
            volumes.append([slot((value, axis), size) for axis, size in enumerate(shape)])
            cut |= any(coupling.has_units(value, axis) for axis in range(len(shape)))
        if cut:
            found.append((node, volumes))
    parts = Parts()
    parts.widths = Widths(coupling, places, sizes, orders)
    for node, volumes in found:
        parts.layers.append(_layer(node, volumes, places, parts.widths, facts))
    return parts


def _layer(node: ir.Node, volumes: Sequence[list[int]], places: Mapping[Place, int], widths: Widths, facts: Facts) -> Layer:
    # Axes that the same groups shorten follow one width; the longest of them says it.
    followers: dict[frozenset[int], list[tuple[int, Spot, int]]] = {}
    for i, value in enumerate(node.inputs):
        for axis in range(len(facts.shape(value) or ()) if value is not None else 0):
            assert value is not None
            at = places.get((value, axis))
            if at is not None and widths.groups.get(at):
                followers.setdefault(widths.groups[at], []).append((int(widths.full[at]), (i, axis), at))
    dims, slots = [], []
    for entries in followers.values():
        size, _, at = max(entries, key=lambda entry: entry[0])
        dims.append((size, tuple(where for _, where, _ in entries)))
        slots.append(at)
    known = all(value is None or facts.shape(value) is not None for value in node.inputs)
    alone = bool(dims) and len(dims) <= 3 and known and mender_of(node) is not None
    return Layer(node, tuple(dims), tuple(slots), alone, tuple(tuple(one) for one in volumes))


class Micro:
    """A layer as a model of its own, at any widths.

    Parameters
    ----------
    layer
        One that can run alone.
    model
        Its model, for versions of op sets.
    constants
        Whether a value is made from parameters alone, by value.
    """

    def __init__(self, layer: Layer, model: ir.Model, facts: Facts, constants: Mapping[ir.Value, bool]) -> None:
        self.layer = layer
        self._node = layer.node
        mender = mender_of(self._node)
        assert mender is not None
        self._mender: Mender = mender
        self._opsets = dict(model.graph.opset_imports)
        self._ir_version = min(model.ir_version or 10, 10)
        self._inputs: list[tuple[Shape, np.dtype[Any], bool, NDArray[Any] | None] | None] = []
        for value in self._node.inputs:
            if value is None:
                self._inputs.append(None)
                continue
            shape = tuple(facts.shape(value) or ())
            dtype = facts.dtype(value) or ir.DataType.FLOAT
            small = int(np.prod(shape)) <= _SMALL
            known = facts.known(value) if small else None
            if known is None and small and value.const_value is not None:
                known = value.const_value.numpy()
            self._inputs.append((shape, np.dtype(dtype.numpy()), constants.get(value, False), known))

    def signature(self) -> str:
        """What its times depend on besides widths, runtime and machine."""
        node = ir.to_proto(self._node)
        attributes = sorted(attr.SerializeToString().hex() for attr in node.attribute)
        shapes = [None if one is None else [list(one[0]), one[1].name, one[2]] for one in self._inputs]
        text = json.dumps([node.op_type, node.domain, attributes, shapes, self.layer.dims, sorted(self._opsets.items())])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def build(self, sizes: Sequence[int]) -> tuple[bytes, dict[str, NDArray[Any]]]:
        """The model with widths of ``sizes``, one a dim, and what to feed it."""
        rng = np.random.default_rng(0)
        shapes: list[Shape] = [() if one is None else one[0] for one in self._inputs]
        for (full, followers), size in zip(self.layer.dims, sizes, strict=True):
            for i, axis in followers:
                kept = max(1, round(shapes[i][axis] * size / full))
                shapes[i] = (*shapes[i][:axis], kept, *shapes[i][axis + 1 :])
        proto = ir.to_proto(self._node)
        for name, value in self._mender(self._node, shapes).items():
            for attr in [attr for attr in proto.attribute if attr.name == name]:
                proto.attribute.remove(attr)
            proto.attribute.append(onnx.helper.make_attribute(name, value))
        feed, inputs, initializers = {}, [], []
        del proto.input[:]
        for n, (one, shape) in enumerate(zip(self._inputs, shapes, strict=True)):
            if one is None:
                proto.input.append("")
                continue
            old, dtype, constant, known = one
            name = f"input_{n}"
            proto.input.append(name)
            array = known if known is not None and old == shape else _made(rng, shape, dtype)
            if constant or (known is not None and old == shape):
                initializers.append(onnx.numpy_helper.from_array(np.asarray(array, dtype), name))
            else:
                feed[name] = array
                kind = onnx.helper.np_dtype_to_tensor_dtype(dtype)
                inputs.append(onnx.helper.make_tensor_value_info(name, kind, shape))
        outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in proto.output if name]
        graph = onnx.helper.make_graph([proto], "layer", inputs, outputs, initializers)
        imports = [onnx.helper.make_opsetid(domain, version) for domain, version in self._opsets.items()]
        return onnx.helper.make_model(graph, opset_imports=imports, ir_version=self._ir_version).SerializeToString(), feed


def _made(rng: np.random.Generator, shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind == "b":
        return np.ones(shape, dtype)
    if dtype.kind in "iu":
        return rng.integers(0, 4, shape).astype(dtype)
    return (0.1 * rng.standard_normal(shape)).astype(dtype)
