"""Concrete shapes and small known values of every value in a graph, found node by node in order.

An abstract interpreter: inputs get concrete probe shapes, ONNX's own schema inference tells the output
shapes of one node at a time, and the arithmetic that files do on shapes (Shape -> Gather -> Concat ->
Reshape) is computed on real, small arrays. What only the data decide (NonZero, Unique, non-maximum
suppression) has unknown dimensions; `Facts.shape` is None there while `Facts.partial` keeps what is known.
Nothing here raises on an odd graph: contradictions are collected in `Facts.problems`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import onnx
import onnx.defs
import onnx.shape_inference
import onnx_ir as ir

from graphprune.facts import OPEN, UNKNOWN, Array, Dims, Facts, Type, is_open
from graphprune.ops import contrib_shapes, inferring
from graphprune.ops.evaluate import evaluate, is_bounded
from graphprune.ops.traits import joins, picks, reads_sizes

__all__ = ["UNKNOWN", "Array", "Dims", "Facts", "Type", "infer", "probe_inputs", "run_graph", "start", "step"]

MAX_KNOWN = 4096  # elements of a computed value that is kept


# One node


def step(node: ir.Node, facts: Facts, opsets: Mapping[str, int]) -> None:
    """Infer the outputs of one node from what ``facts`` holds of its inputs, and store them there.

    Parameters
    ----------
    node
        Any node; bodies of If, Loop and Scan are run with the values they capture.
    facts
        Read and written. What it held of the node's outputs is replaced.
    opsets
        Domain to version, as ``model.opset_imports``.
    """
    if node.op_type == "Constant" and not node.domain:
        for value in node.outputs:
            facts.forget(value)
        return
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        from graphprune.control_shapes import step_control  # it needs this module

        step_control(node, facts, opsets)
        return
    types = [None if v is None else facts.type(v) for v in node.inputs]
    before = len(facts.problems)
    found = _infer(node, types, facts, opsets)
    message = None
    for value, type_ in zip(node.outputs, found, strict=True):
        merged, trouble = _checked(node, type_, facts.declared(value), types)
        message = message or trouble
        facts.set_type(value, merged)
    made = facts.partial(node.outputs[0]) if node.outputs else None
    message = message or inferring.misfit(node, [None if t is None else t.dims for t in types], made)
    if message and len(facts.problems) == before:
        facts.problems.append((node, message))
    _compute(node, types, facts, opsets)


def _infer(node: ir.Node, types: Sequence[Type | None], facts: Facts, opsets: Mapping[str, int]) -> list[Type]:
    """Ask the schema, then the contrib table; what neither knows stays unknown."""
    blank = [UNKNOWN] * len(node.outputs)
    version = opsets.get(node.domain) or (0 if node.domain else opsets.get("ai.onnx", 0))
    data = [_data(v, facts) for v in node.inputs]
    if inferring.takes_vectors(node):
        types = [t and (Type(t.dtype, ()) if t.dims == (1,) else t) for t in types]
        data = [None if a is None else a.reshape(()) if a.size == 1 else a for a in data]
    found = None
    # A schema insists on element types. Where one is unknown a stand-in serves, and its verdict counts less.
    sure = all(t is None or t.dtype is not None or t.proto is not None for t in types)
    asked = types if sure else [t and (t if t.dtype or t.proto else Type(ir.DataType.FLOAT, t.dims)) for t in types]
    try:
        found = _ask_schema(node, (node.op_type, node.domain, version), asked, data, opsets)
    except Exception as error:  # a bad model makes the library raise half a dozen unrelated kinds
        if sure:
            facts.problems.append((node, _tidy(error)))
        return blank
    if found is not None and not sure:
        found = [Type(None, t.dims, t.proto) for t in found]
    if found and (told := inferring.told_shape(node, data)) is not None:
        found = [Type(found[0].dtype, told)]
    if found is not None and any(t.dims is not None or t.proto is not None for t in found):
        return found
    delegate = contrib_shapes.DELEGATES.get(node.op_type) or contrib_shapes.CHANNELS_LAST.get(node.op_type)
    if delegate is not None and (node.domain == "com.microsoft" or found is not None):
        return _delegated(node, delegate, asked, data, opsets) or found or blank
    dims = contrib_shapes.shapes(node, [None if t is None else t.dims for t in types])
    if not dims:
        return found or blank
    dtype = contrib_shapes.element_type(node, [None if t is None else t.dtype for t in types])
    merged = [Type(dtype if i == 0 else None, d) for i, d in enumerate(dims)] + blank
    return [Type((found[i].dtype if found else None) or merged[i].dtype, merged[i].dims) for i in range(len(blank))]


def _delegated(
    node: ir.Node,
    delegate: tuple[str, tuple[int, ...]],
    types: Sequence[Type | None],
    data: Sequence[Array | None],
    opsets: Mapping[str, int],
) -> list[Type] | None:
    """Infer a contrib operator as the standard one it wraps."""
    op_type, pick = delegate
    indices = [i for i in pick or range(len(types)) if i < len(types)]
    last = op_type != node.op_type and (
        node.op_type in contrib_shapes.CHANNELS_LAST or node.attributes.get_int("channels_last", 0) == 1
    )
    chosen = [types[i] for i in indices]
    own = chosen[0].dtype if chosen and chosen[0] is not None else None
    if op_type != node.op_type:
        # The standard operator takes no quantised values; shapes do not depend on the type.
        chosen = [t and Type(ir.DataType.FLOAT, t.dims) for t in chosen]
    if last:
        # The weight of a channels-last convolution has its input channels last as well.
        chosen = [t and Type(t.dtype, _channels(t.dims, first=True)) for t in chosen]
    try:
        found = _ask_schema(node, (op_type, "", opsets.get("", 0)), chosen, [data[i] for i in indices], opsets)
    except Exception:  # the wrapped operator may allow what the standard one does not
        return None
    if last and found:
        found = [Type(t.dtype, _channels(t.dims, first=False)) for t in found]
    if op_type != node.op_type and found and found[0].dtype == ir.DataType.FLOAT:
        found = [Type(own, found[0].dims), *found[1:]]
    return found


def _channels(dims: Dims | None, *, first: bool) -> Dims | None:
    if dims is None or len(dims) < 3:
        return dims
    return (dims[0], dims[-1], *dims[1:-1]) if first else (dims[0], *dims[2:], dims[1])


@lru_cache(maxsize=4096)
def _schema(op_type: str, version: int, domain: str) -> onnx.defs.OpSchema | None:
    try:
        schema = onnx.defs.get_schema(op_type, version or 10**6, domain)
        # Upsample and Scatter are still met after their deprecation: the last living version explains them.
        return onnx.defs.get_schema(op_type, schema.since_version - 1, domain) if schema.deprecated else schema
    except onnx.defs.SchemaError:
        return None


@lru_cache(maxsize=64)
def _imports(opsets: tuple[tuple[str, int], ...]) -> list[onnx.OperatorSetIdProto]:
    return [onnx.OperatorSetIdProto(domain=d, version=v) for d, v in opsets]


@lru_cache(maxsize=65_536)
def _proto(dtype: int, dims: Dims | None) -> onnx.TypeProto:
    proto = onnx.TypeProto()
    proto.tensor_type.elem_type = dtype
    if dims is not None:
        proto.tensor_type.shape.SetInParent()  # rank 0 is a shape too
        for size in dims:
            dim = proto.tensor_type.shape.dim.add()
            if size is not None:
                dim.dim_value = size
    return proto


def _data(value: ir.Value | None, facts: Facts) -> Array | None:
    """Return a known input that a schema may read: sizes, axes, bounds, scales."""
    array = None if value is None else facts.known(value)
    if array is None or array.ndim > 1:
        return None
    kind = array.dtype.kind
    return array if (kind in "iu" and array.size <= MAX_KNOWN) or (kind == "f" and array.size <= 16) else None


def _ask_schema(
    node: ir.Node,
    operator: tuple[str, str, int],
    types: Sequence[Type | None],
    data: Sequence[Array | None],
    opsets: Mapping[str, int],
) -> list[Type] | None:
    """Run ONNX's inference for one node under positional names; None where there is no schema."""
    op_type, domain, version = operator
    schema = _schema(op_type, version, domain)
    if schema is None:
        return None
    proto = onnx.NodeProto(op_type=op_type, domain=domain)
    proto.input.extend("" if t is None else f"i{k}" for k, t in enumerate(types))
    proto.output.extend("" if v.name == "" else f"o{k}" for k, v in enumerate(node.outputs))
    for attribute in node.attributes.values():
        if op_type == node.op_type or attribute.name in schema.attributes:
            proto.attribute.append(ir.serde.serialize_attribute(attribute))
    for name, default in inferring.MISREAD.get(op_type, {}).items():
        if name not in node.attributes:
            proto.attribute.append(onnx.helper.make_attribute(name, default))
    protos = {f"i{k}": t.proto or _proto(int(t.dtype or 0), t.dims) for k, t in enumerate(types) if t is not None}
    tensors = {
        f"i{k}": onnx.TensorProto(data_type=int(ir.DataType.from_numpy(a.dtype)), dims=a.shape, raw_data=a.tobytes())
        for k, a in enumerate(data)
        if a is not None
    }
    found = onnx.shape_inference.infer_node_outputs(
        schema, proto, protos, tensors, opset_imports=_imports(tuple(opsets.items()))
    )
    return [_read(found.get(f"o{k}")) for k in range(len(node.outputs))]


def _read(proto: onnx.TypeProto | None) -> Type:
    if proto is None:
        return UNKNOWN
    if not proto.HasField("tensor_type"):
        return Type(None, None, proto)
    tensor = proto.tensor_type
    dtype = ir.DataType(tensor.elem_type) if tensor.elem_type else None
    if not tensor.HasField("shape"):
        return Type(dtype)
    return Type(dtype, tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim))


def _tidy(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__


def _checked(node: ir.Node, found: Type, declared: Type, types: Sequence[Type | None]) -> tuple[Type, str | None]:
    """Fill the gaps of an inferred type from the declared one; say what is impossible in it."""
    if found.proto is not None or (found == UNKNOWN and declared.proto is not None):
        return (found if found.proto is not None else declared), None
    dtype = found.dtype or declared.dtype
    dims = found.dims
    if dims is None:
        return Type(dtype, declared.dims), None
    trouble = None
    empty = any(t is not None and t.dims is not None and 0 in t.dims for t in types)
    if any(d is not None and (d < 0 or (d == 0 and inferring.needs_room(node) and not empty)) for d in dims):
        trouble = f"the input is too small: the output would have shape {list(dims)}"
        dims = tuple(None if d is not None and d <= 0 else d for d in dims)
    elif declared.dims is not None and len(declared.dims) == len(dims):
        dims = tuple(d if a is None else a for a, d in zip(dims, declared.dims, strict=True))
    return Type(dtype, dims), trouble


def _compute(node: ir.Node, types: Sequence[Type | None], facts: Facts, opsets: Mapping[str, int]) -> None:
    """Compute the node's outputs where all its inputs are known and the outputs are small."""
    outputs = node.outputs
    if reads_sizes(node):
        dims = types[0].dims if types and types[0] is not None else None
        if dims is not None and (sizes := inferring.read_sizes(node, dims)) is not None:
            facts.set_known(outputs[0], sizes)
        elif dims is not None and node.op_type == "Shape":
            found = inferring.read_sizes(node, tuple(OPEN if size is None else size for size in dims))
            if found is not None:
                facts.set_sizes(outputs[0], found)
        return
    if picks(node) and len(outputs) == 1:
        _pick(node, facts, opsets)
    inputs: list[Array | None] = []
    for value in node.inputs:
        array = None if value is None else facts.known(value)
        if array is None and value is not None:
            return
        inputs.append(array)
    shapes = [facts.shape(v) for v in outputs]
    if not is_bounded(node, inputs, MAX_KNOWN) and any(s is None or math.prod(s) > MAX_KNOWN for s in shapes):
        return
    results = evaluate(node, inputs, opsets)
    for value, shape, array in zip(outputs, shapes, results or (), strict=False):
        dtype = facts.dtype(value)
        if (shape is not None and array.shape != shape) or array.size > MAX_KNOWN or dtype is None:
            continue
        try:
            facts.set_known(value, array.astype(dtype.numpy(), copy=False))
        except (TypeError, ValueError):
            continue


def _pick(node: ir.Node, facts: Facts, opsets: Mapping[str, int]) -> None:
    """Where some sizes are open, find out which of them a node picks: the height of a picture does not hang on the batch."""
    # What says which elements stay must be known; only what they are picked from may be open.
    count = len(node.inputs) if joins(node) else 1
    inputs = [None if v is None else facts.sizes(v) if i < count else facts.known(v) for i, v in enumerate(node.inputs)]
    if any(array is None and value is not None for array, value in zip(inputs, node.inputs, strict=True)):
        return
    if not any(array is not None and is_open(array) for array in inputs):
        return
    results = evaluate(node, inputs, opsets)
    dtype = facts.dtype(node.outputs[0])
    if results and results[0].size <= MAX_KNOWN and dtype in (None, ir.DataType.INT64):
        facts.set_sizes(node.outputs[0], results[0].astype(np.int64, copy=False))


# A whole graph


def run_graph(graph: ir.Graph, facts: Facts, opsets: Mapping[str, int], *, stop: bool = False) -> int:
    """Step all nodes in order; with ``stop``, up to the first problem. Returns the nodes stepped."""
    count = 0
    for node in graph:
        step(node, facts, opsets)
        if stop and facts.problems:
            break
        count += 1
    return count


def start(model: ir.Model, input_shapes: Mapping[str, tuple[int, ...]]) -> Facts:
    """Return facts that hold the probe shapes of the inputs and nothing else."""
    facts = Facts()
    for value in model.graph.inputs:
        shape = input_shapes.get(value.name or "")
        if shape is None or value.is_initializer():
            continue
        facts.set_shape(value, shape)
        for declared, size in zip(value.shape or (), shape, strict=False):
            if not isinstance(declared, int) and declared.value is not None:
                facts.symbols.setdefault(declared.value, int(size))
    return facts


def infer(
    model: ir.Model,
    input_shapes: Mapping[str, tuple[int, ...]],
    *,
    input_values: Mapping[str, Array] | None = None,
) -> Facts:
    """Interpret the whole model on concrete input shapes.

    Parameters
    ----------
    model
        A model whose local functions have been inlined.
    input_shapes
        Concrete shape per graph input that is not an initializer. Inputs left out keep what is declared.
    input_values
        Inputs whose contents are known as well (a shape given as an input, say).

    Returns
    -------
    Facts
        Shapes and small values; contradictions that were met are in its ``problems``.
    """
    facts = start(model, input_shapes)
    for value in model.graph.inputs:
        given = None if input_values is None else input_values.get(value.name or "")
        if given is not None:
            facts.set_known(value, np.asarray(given))
    run_graph(model.graph, facts, model.graph.opset_imports)
    return facts


def probe_inputs(model: ir.Model, overrides: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Choose concrete input shapes; see `graphprune.probing.probe_inputs`."""
    from graphprune.probing import probe_inputs as choose

    return choose(model, overrides)
