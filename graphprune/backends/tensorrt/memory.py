"""How much memory a network takes on a device: weights, activations that live at once, the builder's workspace."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from graphprune.devices import Target
from graphprune.facts import Facts

#: Bytes of a floating-point element by precision; INT8 engines keep activations in INT8 where they can.
_BYTES = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0, "best": 1.0}
#: What CUDA, cuDNN and TensorRT hold once they are loaded, in bytes: measured figures of users lie between 0.6 and 1 GB.
RUNTIME = 0.7e9


@dataclass(frozen=True)
class Memory:
    """An estimate, in bytes.

    Attributes
    ----------
    weights, activations
        At the target's precision.
    building
        The most while the engine is built: weights in float32 and at the target's precision, activations, workspace
        and the libraries.
    """

    weights: int
    activations: int
    workspace: int
    building: int


def estimate(model: ir.Model, facts: Facts, target: Target) -> Memory:
    """Estimate what a lowered model takes at the shapes of ``facts``."""
    size = _BYTES[target.precision]
    stored = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    held = sum(
        v.const_value.size * size if v.dtype == ir.DataType.FLOAT else v.const_value.nbytes
        for v in model.graph.initializers.values()
        if v.const_value is not None
    )
    live = _live(model, facts, size)
    workspace = target.workspace_mib << 20
    return Memory(int(held), int(live), workspace, int(stored + held + live + workspace + RUNTIME))


def _live(model: ir.Model, facts: Facts, size: float) -> float:
    """The largest sum of values that are alive at one node."""
    order = {node: i for i, node in enumerate(model.graph)}
    last: dict[ir.Value, int] = {}
    for node, i in order.items():
        for value in node.inputs:
            if value is not None:
                last[value] = i
    ends: dict[int, list[ir.Value]] = {}
    for value, i in last.items():
        if not value.is_graph_output():
            ends.setdefault(i, []).append(value)

    def weigh(value: ir.Value) -> float:
        shape = facts.shape(value)
        return 0.0 if shape is None or value.is_initializer() else math.prod(shape) * size

    now = sum(weigh(value) for value in model.graph.inputs)
    most = now
    for node, i in order.items():
        now += sum(weigh(value) for value in node.outputs)
        most = max(most, now)
        now -= sum(weigh(value) for value in ends.get(i, ()))
    return most
