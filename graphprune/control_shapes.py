"""Shapes through If, Loop, Scan and any other operator that carries graphs.

Bodies are run on the shapes of what enters them, so that values inside have facts too. A loop's state whose
shape changes between iterations loses the sizes that change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphprune.ops.traits import copies
from graphprune.shapes import UNKNOWN, Array, Dims, Facts, Type, run_graph

# Loops nested deeper than this run their body once: reruns double with every level.
_RERUN_DEPTH = 4

Result = tuple[Type, Array | None]


def step_control(node: ir.Node, facts: Facts, opsets: Mapping[str, int]) -> None:
    """Run the bodies of ``node`` and store what they say of its outputs."""
    rule = _other if node.domain else {"If": _if, "Loop": _loop, "Scan": _scan}.get(node.op_type, _other)
    results: list[Result] = []
    facts.depth += 1
    try:
        results = rule(node, facts, opsets)
    except Exception as error:  # a body of any odd make
        facts.problems.append((node, f"the body does not fit its operator: {error}"))
    finally:
        facts.depth -= 1
    results.extend([(UNKNOWN, None)] * (len(node.outputs) - len(results)))
    for value, (found, known) in zip(node.outputs, results, strict=False):
        declared = facts.declared(value)
        if found.proto is None and declared.proto is not None:
            found = declared
        elif found.proto is None:
            found = Type(found.dtype or declared.dtype, _fill(found.dims, declared.dims))
        facts.set_type(value, found)
        if known is not None:
            facts.set_known(value, known)


def _fill(dims: Dims | None, declared: Dims | None) -> Dims | None:
    if dims is None or declared is None or len(dims) != len(declared):
        return declared if dims is None else dims
    return tuple(d if a is None else a for a, d in zip(dims, declared, strict=True))


def _meet(a: Type, b: Type) -> Type:
    """Return what holds of both types."""
    dtype = a.dtype if a.dtype == b.dtype else None
    if a.proto is not None or b.proto is not None:
        return a if a.proto == b.proto else UNKNOWN
    if a.dims is None or b.dims is None or len(a.dims) != len(b.dims):
        return Type(dtype)
    return Type(dtype, tuple(x if x == y else None for x, y in zip(a.dims, b.dims, strict=True)))


def _results(graph: ir.Graph, facts: Facts) -> list[Result]:
    # Only computed values travel outwards: a large constant stays where it is.
    return [(facts.type(v), facts.known(v)) for v in graph.outputs]


def _run(graph: ir.Graph, inputs: Sequence[Type], facts: Facts, opsets: Mapping[str, int]) -> list[Type]:
    for value, found in zip(graph.inputs, inputs, strict=False):
        declared = facts.declared(value)
        if found.proto is None and declared.proto is not None:
            found = declared
        facts.set_type(value, Type(found.dtype or declared.dtype, found.dims, found.proto))
    run_graph(graph, facts, opsets)
    return [facts.type(v) for v in graph.outputs]


def _if(node: ir.Node, facts: Facts, opsets: Mapping[str, int]) -> list[Result]:
    condition = None if node.inputs[0] is None else facts.known(node.inputs[0])
    taken = None if condition is None or condition.size != 1 else bool(condition.reshape(-1)[0])
    branches: list[list[Result]] = []
    for name, side in (("then_branch", True), ("else_branch", False)):
        graph, before = node.attributes[name].as_graph(), len(facts.problems)
        run_graph(graph, facts, opsets)
        if taken is not None and taken is not side:
            del facts.problems[before:]  # a branch that never runs may contradict itself
        branches.append(_results(graph, facts))
    if taken is not None:
        return branches[0] if taken else branches[1]
    merged: list[Result] = []
    for (a, x), (b, y) in zip(*branches, strict=True):
        same = x is not None and y is not None and x.shape == y.shape and bool(np.array_equal(x, y))
        merged.append((_meet(a, b), x if same else None))
    return merged


def _iterate(
    graph: ir.Graph,
    entering: tuple[Sequence[Type], Sequence[Type], Sequence[Type]],
    facts: Facts,
    opsets: Mapping[str, int],
    *,
    skip: int,
) -> tuple[list[Type], list[Type]]:
    """Run a body until its states hold for every iteration.

    Returns
    -------
    tuple
        The states' types, and those of the body's further outputs. ``skip`` outputs come before the states.
    """
    before, states, after = entering  # the inputs before the states, the states, the inputs after them
    kept, count = list(states), len(states)
    problems = len(facts.problems)
    outputs = _run(graph, [*before, *kept, *after], facts, opsets)
    merged = [_meet(a, b) for a, b in zip(kept, outputs[skip : skip + count], strict=True)]
    if merged != kept and facts.depth <= _RERUN_DEPTH:
        del facts.problems[problems:]
        kept, outputs = merged, _run(graph, [*before, *merged, *after], facts, opsets)
        merged = [_meet(a, b) for a, b in zip(kept, outputs[skip : skip + count], strict=True)]
    # What still moves after a second look has no shape that could be named.
    settled = [a if a == b else Type(b.dtype) for a, b in zip(kept, merged, strict=True)]
    return settled, outputs[skip + count :]


def _type(value: ir.Value | None, facts: Facts) -> Type:
    return UNKNOWN if value is None else facts.type(value)


def _loop(node: ir.Node, facts: Facts, opsets: Mapping[str, int]) -> list[Result]:
    graph, inputs = node.attributes["body"].as_graph(), node.inputs
    scalar = Type(ir.DataType.INT64, ()), Type(ir.DataType.BOOL, ())
    states = [_type(v, facts) for v in inputs[2:]]
    settled, scans = _iterate(graph, (scalar, states, ()), facts, opsets, skip=1)
    limit = facts.known(inputs[0]) if inputs and inputs[0] is not None else None
    going = facts.known(graph.outputs[0])
    trips: int | None = None
    # The trip count is only sure when the body never says stop.
    if limit is not None and limit.size == 1 and (_always(going) or _passes(graph)):
        first = facts.known(inputs[1]) if len(inputs) > 1 and inputs[1] is not None else np.array(True)
        if _always(first):
            trips = max(int(limit.reshape(-1)[0]), 0)
    stacked = [Type(t.dtype, None if t.dims is None else (trips, *t.dims)) for t in scans]
    return [(t, None) for t in [*settled, *stacked]]


def _always(array: Array | None) -> bool:
    return array is not None and array.size == 1 and bool(array.reshape(-1)[0])


def _passes(graph: ir.Graph) -> bool:
    """Whether the body hands its condition on unchanged."""
    value: ir.Value | None = graph.outputs[0]
    while value is not None and (producer := value.producer()) is not None and copies(producer):
        value = producer.inputs[0]
    return len(graph.inputs) > 1 and value is graph.inputs[1]


def _scan(node: ir.Node, facts: Facts, opsets: Mapping[str, int]) -> list[Result]:
    graph, count = node.attributes["body"].as_graph(), node.attributes["num_scan_inputs"].as_int()
    # Version 8 has an optional first input of lengths, and a batch axis in front of everything.
    batched = opsets.get("", 9) < 9
    inputs = node.inputs[1:] if batched else node.inputs
    types = [_type(v, facts) for v in inputs]
    if not 0 < count <= len(types):
        raise ValueError(f"{count} scan inputs of {len(types)} inputs")
    states, sequences = types[: len(types) - count], types[len(types) - count :]
    in_axes = node.attributes.get_ints("scan_input_axes") or [0] * count
    lead, length = (), None  # type: tuple[int | None, ...], int | None
    elements: list[Type] = []
    if batched:
        lead = next((t.dims[:1] for t in types if t.dims), (None,))
        states = [Type(t.dtype, t.dims[1:] if t.dims else None) for t in states]
        sequences = [Type(t.dtype, t.dims[1:] if t.dims else None) for t in sequences]
    for found, axis in zip(sequences, in_axes, strict=True):
        if not found.dims:
            elements.append(Type(found.dtype))
            continue
        axis %= len(found.dims)
        length = found.dims[axis] if length is None else length
        elements.append(Type(found.dtype, (*found.dims[:axis], *found.dims[axis + 1 :])))
    settled, scans = _iterate(graph, ((), states, elements), facts, opsets, skip=0)
    out_axes = node.attributes.get_ints("scan_output_axes") or [0] * len(scans)
    results = [Type(t.dtype, None if t.dims is None else (*lead, *t.dims)) for t in settled]
    for found, axis in zip(scans, out_axes, strict=True):
        if found.dims is None:
            results.append(found)
            continue
        axis %= len(found.dims) + 1
        results.append(Type(found.dtype, (*lead, *found.dims[:axis], length, *found.dims[axis:])))
    return [(t, None) for t in results]


def _other(node: ir.Node, facts: Facts, opsets: Mapping[str, int]) -> list[Result]:
    """Run bodies of operators not understood on what they declare, so that their values have facts."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            graphs: Sequence[ir.Graph] = (attribute.as_graph(),)
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs = attribute.as_graphs()
        else:
            continue
        for graph in graphs:
            _run(graph, [UNKNOWN] * len(graph.inputs), facts, opsets)
    return []
