"""What a lowering works with: a builder of nodes for one opset, and the registry of lowerings by operator.

A lowering is a function of a node and a `Builder`. It gives the values that take the place of the node's outputs, made
by the builder's nodes, or None where it does not apply. The first line of its docstring is what users read.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from graphprune.devices import Target
from graphprune.facts import Array, Dims, Facts, constant_tensor
from graphprune.shapes import step

Values = ir.Value | Sequence[ir.Value]
Lowering = Callable[[ir.Node, "Builder"], Values | None]

#: Operator -> lowerings, in the order in which they are tried.
LOWERINGS: dict[str, list[Lowering]] = {}


def lowers(*op_types: str) -> Callable[[Lowering], Lowering]:
    """Register a lowering for operators that a target does not take as they are."""

    def register(function: Lowering) -> Lowering:
        for op_type in op_types:
            LOWERINGS.setdefault(op_type, []).append(function)
        return function

    return register


def told(function: Lowering) -> str:
    """What a lowering does, for users."""
    return (function.__doc__ or function.__name__).strip().splitlines()[0].rstrip(".")


@dataclass
class Context:
    """One model on its way to one target.

    Attributes
    ----------
    opset
        The ONNX opset that the lowered model is written in.
    made
        Nodes that lowerings made -> the node of the source they stand for.
    """

    model: ir.Model
    target: Target
    facts: Facts
    opset: int
    source_opset: int
    made: dict[ir.Node, ir.Node] = field(default_factory=dict)
    opsets: dict[ir.Node, int] = field(default_factory=dict)
    names: Iterator[int] = field(default_factory=itertools.count)

    def origin(self, node: ir.Node) -> ir.Node:
        """The source's node that a node stands for."""
        return self.made.get(node, node)

    def opset_of(self, node: ir.Node) -> int:
        """The opset by which a node is to be read."""
        return self.opsets.get(node, self.opset if node in self.made else self.source_opset)


@lru_cache(4096)
def schema(op_type: str, opset: int) -> onnx.defs.OpSchema | None:
    """ONNX's definition of an operator in an opset."""
    try:
        found: onnx.defs.OpSchema = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
    return None if found.deprecated else found


def axes_as_input(op_type: str, opset: int) -> bool:
    """Whether a reduction reads its axes from an input in an opset; before, they are an attribute."""
    known = schema(op_type, opset)
    return known is not None and len(known.inputs) > 1


class Builder:
    """Makes nodes of the target's opset in place of one node.

    Parameters
    ----------
    context
        The model; constants are registered in its main graph.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.target = context.target
        self.opset = context.opset
        self.facts = context.facts
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []

    # What is known

    def shape(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """The static shape, None where any size is dynamic."""
        return None if value is None else self.facts.shape(value)

    def dims(self, value: ir.Value) -> Dims | None:
        """The shape with None for dynamic sizes."""
        return self.facts.partial(value)

    def rank(self, value: ir.Value) -> int | None:
        """Number of axes."""
        return self.facts.rank(value)

    def known(self, value: ir.Value | None) -> Array | None:
        """Contents of a constant."""
        return None if value is None else self.facts.known(value)

    def dtype(self, value: ir.Value) -> ir.DataType:
        """Element type; float32 where unknown."""
        return self.facts.dtype(value) or ir.DataType.FLOAT

    # Making

    def _name(self, hint: str) -> str:
        return f"lowered_{hint.lower()}_{next(self.context.names)}"

    def constant(self, array: Any, like: ir.Value | ir.DataType | None = None) -> ir.Value:
        """A constant; ``like`` says its element type, as of a value."""
        array = np.asarray(array)
        dtype = self.dtype(like) if isinstance(like, ir.Value) else like
        if dtype is not None:
            array = array.astype(dtype.numpy())
        name = self._name("constant")
        tensor = ir.Tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.context.model.graph.register_initializer(value)
        self.constants.append(value)
        return value

    def ints(self, *numbers: int) -> ir.Value:
        """A constant int64 vector."""
        return self.constant(np.array(numbers, np.int64))

    def many(
        self, op_type: str, *inputs: ir.Value | None, outputs: int = 1, domain: str = "", **attributes: Any
    ) -> list[ir.Value]:
        """A node with several outputs."""
        return self.of_opset(self.opset, op_type, inputs, outputs, attributes, domain)

    def of_opset(
        self, opset: int, op_type: str, inputs: Sequence[ir.Value | None], outputs: int, attributes: dict[str, Any],
        domain: str = "",
    ) -> list[ir.Value]:  # fmt: skip
        """A node of another opset than the target's, which is lowered in its turn."""
        values = [ir.Value(name=self._name(op_type)) for _ in range(outputs)]
        told = {k: v for k, v in attributes.items() if v is not None}
        node = ir.node(op_type, list(inputs), told, outputs=values, domain=domain, name=self._name(f"node_{op_type}"))
        self.nodes.append(node)
        if opset != self.opset:
            self.context.opsets[node] = opset
        step(node, self.facts, {**self.context.model.graph.opset_imports, "": opset})
        return values

    def op(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """A node with one output."""
        return self.many(op_type, *inputs, **attributes)[0]

    # Operators whose axes moved from attributes to inputs

    def unsqueeze(self, value: ir.Value, *axes: int) -> ir.Value:
        """New axes of size 1."""
        if self.opset >= 13:
            return self.op("Unsqueeze", value, self.ints(*axes))
        return self.op("Unsqueeze", value, axes=list(axes))

    def squeeze(self, value: ir.Value, *axes: int) -> ir.Value:
        """Axes of size 1 taken away."""
        if self.opset >= 13:
            return self.op("Squeeze", value, self.ints(*axes))
        return self.op("Squeeze", value, axes=list(axes))

    def reduce(self, op_type: str, value: ir.Value, axes: Sequence[int], keepdims: int = 1) -> ir.Value:
        """A reduction over constant axes."""
        if axes_as_input(op_type, self.opset):
            return self.op(op_type, value, self.ints(*axes), keepdims=keepdims)
        return self.op(op_type, value, axes=list(axes), keepdims=keepdims)

    def split(self, value: ir.Value, axis: int, sizes: Sequence[int]) -> list[ir.Value]:
        """Consecutive pieces."""
        if self.opset >= 13:
            return self.many("Split", value, self.ints(*sizes), outputs=len(sizes), axis=axis)
        return self.many("Split", value, outputs=len(sizes), axis=axis, split=list(sizes))

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Another element type, nothing where it is that already."""
        return value if self.facts.dtype(value) == dtype else self.op("Cast", value, to=int(dtype))

    def reshape(self, value: ir.Value, sizes: Sequence[int]) -> ir.Value:
        """Constant sizes; one may be -1, 0 keeps."""
        return self.op("Reshape", value, self.ints(*sizes))


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """An attribute's plain value."""
    found = node.attributes.get(name)
    if found is None:
        return default
    return list(found.value) if isinstance(found.value, (list, tuple)) else found.value


def given(node: ir.Node, index: int) -> ir.Value | None:
    """Input ``index`` of a node, None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def is_constant(value: ir.Value | None) -> bool:
    """Whether a value is stored in the model, as it is or quantised."""
    if value is None:
        return False
    if constant_tensor(value) is not None:
        return True
    node = value.producer()
    return node is not None and node.op_type == "DequantizeLinear" and is_constant(node.inputs[0])


def used(node: ir.Node, index: int) -> bool:
    """Whether anything reads an output."""
    if index >= len(node.outputs):
        return False
    value = node.outputs[index]
    return bool(value.name) and (bool(value.uses()) or value.is_graph_output())
