"""Feeding models: calibration samples, and parameters that constants make among themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from graphprune import data as loading
from graphprune.errors import ModelError
from graphprune.example_feeds import example_samples
from graphprune.facts import Facts
from graphprune.inputs import Hints, InputSpec, Samples
from graphprune.ops.movement import transposition
from graphprune.ops.traits import SAME_ELEMENTS, looked_up
from graphprune.passes.base import State


def input_specs(model: ir.Model) -> list[InputSpec]:
    """Name, dtype and shape of every graph input that must be fed."""
    specs = []
    for value in model.graph.inputs:
        if value.is_initializer():
            continue
        if value.dtype is None or value.shape is None:
            raise ModelError(f"input '{value.name}' has no tensor type and shape: give it one in the file, or --shape")
        dims = tuple(
            d if isinstance(d, int) and d > 0 else (None if isinstance(d, int) else d.value) for d in value.shape
        )
        specs.append(InputSpec(str(value.name), np.dtype(value.dtype.numpy()), dims))
    return specs


def vocabulary(model: ir.Model, facts: Facts) -> dict[str, int]:
    """Upper bounds (exclusive) of integer inputs: the smallest table that each is looked up in."""
    limits: dict[str, int] = {}
    for value in model.graph.inputs:
        seen, queue = set(), [value]
        while queue:
            current = queue.pop()
            for node, index in current.uses():
                if node.op_type in SAME_ELEMENTS:
                    if index == 0 and node not in seen:
                        seen.add(node)
                        queue.extend(node.outputs)
                elif (table := looked_up(node, index)) is not None:
                    shape, axis = facts.shape(table[0]), table[1]
                    if shape:
                        n = shape[axis % len(shape)]
                        limits[str(value.name)] = min(limits.get(str(value.name), n), n)
    return limits


def samples_for(state: State, n: int | None = None, seed: int | None = None, batch: int = 1) -> Samples:
    """The run's calibration samples: the user's data, or synthetic inputs."""
    options = state.options
    specs = input_specs(state.model)
    n = options.sample_count if n is None else n
    seed = options.seed if seed is None else seed
    facts = state.need_facts()
    shapes = {spec.name: shape for spec in specs if (shape := _sample_shape(state, spec, facts)) is not None}
    hints = Hints(limits=vocabulary(state.model, facts))
    if options.data is None and state.loaded.torch is not None:
        return example_samples(state.loaded.torch.feed, specs, n=n, seed=seed, hints=hints)
    if options.data is not None:
        return loading.load(options.data, specs, n=n, mean=options.mean, std=options.std, layout=options.layout,
                            shapes=dict(options.shapes), seed=seed, batch=batch, hints=hints)  # fmt: skip
    return loading.synthetic(specs, n=n, seed=seed, shapes=shapes, hints=hints)


def _sample_shape(state: State, spec: InputSpec, facts: Facts) -> tuple[int, ...] | None:
    """The analysed shape of an input, as samples use it."""
    value = next(v for v in state.model.graph.inputs if v.name == spec.name)
    return facts.shape(value)


def evaluate_parameter(model: ir.Model, value: ir.Value) -> np.ndarray[Any, Any] | None:
    """Contents of a constant, or of what constants alone make, by ONNX Runtime; None if that fails."""
    if value.const_value is not None:
        array: np.ndarray[Any, Any] = value.const_value.numpy()
        return array
    turned = _transposed(value)
    if turned is not None:
        return turned
    nodes: list[ir.Node] = []
    seen: set[ir.Value] = set()
    constants: dict[str, ir.Value] = {}
    stack = [value]
    while stack:
        current = stack.pop()
        if current in seen:
            continue
        seen.add(current)
        producer = current.producer()
        if current.const_value is not None:
            constants[str(current.name)] = current
        elif producer is None:
            return None
        elif producer not in nodes:
            nodes.append(producer)
            stack.extend(v for v in producer.inputs if v is not None)
    order = {node: i for i, node in enumerate(model.graph)}
    if any(node not in order for node in nodes):
        return None
    nodes.sort(key=order.__getitem__)
    graph = onnx.helper.make_graph(
        [ir.to_proto(node) for node in nodes], "parameter", [],
        [onnx.helper.make_empty_tensor_value_info(str(value.name))],
        [_embedded(v.const_value) for v in constants.values() if v.const_value is not None],
    )  # fmt: skip
    for tensor, name in zip(graph.initializer, constants, strict=True):
        tensor.name = name
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in model.graph.opset_imports.items()]
    proto = onnx.helper.make_model(graph, opset_imports=imports, ir_version=min(model.ir_version or 10, 10))
    try:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 4
        session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        result = session.run(None, {})[0]
    except Exception:
        # A kernel that ONNX Runtime lacks: such a weight is not scored, which is said where scores are made.
        return None
    return np.asarray(result)


def _transposed(value: ir.Value) -> np.ndarray[Any, Any] | None:
    """A constant behind transpositions, as a view of it: what torch makes of the weight of every linear layer."""
    orders: list[tuple[int, ...]] = []
    while value.const_value is None:
        node = value.producer()
        order = None if node is None else transposition(node)
        if node is None or order is None or node.inputs[0] is None:
            return None
        orders.append(order)
        value = node.inputs[0]
    array: np.ndarray[Any, Any] = value.const_value.numpy()
    for order in reversed(orders):
        array = array.transpose(order or None)
    return array


def _embedded(tensor: ir.TensorProtocol) -> onnx.TensorProto:
    """A tensor with its data inside, wherever it is kept now."""
    proto: onnx.TensorProto = ir.to_proto(ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name))
    return proto
