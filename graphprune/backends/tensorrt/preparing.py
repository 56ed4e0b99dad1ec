"""What is done to a whole model before its nodes are looked at one by one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphprune.backends.tensorrt.rewriting import Builder, Context, attribute, given, is_constant
from graphprune.calibration import evaluate_parameter
from graphprune.devices import operator
from graphprune.facts import Array, constant_tensor

INT32 = np.iinfo(np.int32)
#: Operators where a bound beyond int32 says no more than int32's own.
_BOUNDS = frozenset(("Slice", "Clip", "Min", "Max"))
_LEFT = frozenset(("QuantizeLinear", "DequantizeLinear", "Constant", "If", "Loop", "Scan"))
LARGEST = 1 << 26
Changes = dict[ir.Node, list[str]]


def replace_by_constant(context: Context, value: ir.Value, array: Array) -> None:
    """Let readers of a computed value read a constant of the same name."""
    name = str(value.name)
    tensor = ir.Tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
    constant = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    value.name = f"{name}_computed"
    value.replace_all_uses_with(constant)
    context.model.graph.register_initializer(constant)


def fold(context: Context) -> Changes:
    """Compute in advance what static shapes and constants alone decide."""
    changes: Changes = {}
    for node in tuple(context.model.graph):
        if (
            node.op_type in _LEFT
            or node.domain not in ("", "ai.onnx")
            or any(v.is_graph_output() for v in node.outputs)
        ):
            continue
        known = [context.facts.known(value) for value in node.outputs]
        if any(array is None for array in known):
            continue
        for value, array in zip(node.outputs, known, strict=True):
            if value.uses() and array is not None:
                replace_by_constant(context, value, array)
        changes[node] = ["computed in advance"]
    return changes


def fold_weights(context: Context) -> Changes:
    """Compute weights that a parser wants stored, where constants alone make them."""
    changes: Changes = {}
    for node in tuple(context.model.graph):
        row = operator(node.op_type, context.target.tensorrt)
        if row is None or "constant=" not in row.rules:
            continue
        for value in node.inputs:
            producer = None if value is None else value.producer()
            if value is None or producer is None or is_constant(value) or producer.op_type == "DequantizeLinear":
                continue
            array = evaluate_parameter(context.model, value)
            if array is not None and array.size <= LARGEST:
                replace_by_constant(context, value, array)
                changes.setdefault(producer, []).append("computed in advance")
    return changes


def split_sequences(context: Context) -> Changes:
    """Split into values what a model splits into a sequence and takes at constant places, as torch's exporter writes it."""
    changes: Changes = {}
    for node in tuple(context.model.graph):
        if node.op_type != "SplitToSequence" or node.domain or node.outputs[0].is_graph_output():
            continue
        readers = [use.node for use in node.outputs[0].uses()]
        places = [context.facts.known(v) if (v := given(reader, 1)) is not None else None for reader in readers]
        sizes = _pieces(node, context)
        if sizes is None or any(
            reader.op_type != "SequenceAt" or place is None or reader.outputs[0].is_graph_output()
            for reader, place in zip(readers, places, strict=True)
        ):
            continue
        data = node.inputs[0]
        assert data is not None
        builder, axis = Builder(context), int(attribute(node, "axis", 0))
        parts = builder.split(data, axis, sizes)
        if given(node, 1) is None and not attribute(node, "keepdims", 1):
            parts = [builder.squeeze(part, axis) for part in parts]
        context.model.graph.insert_before(node, builder.nodes)
        context.made.update(dict.fromkeys(builder.nodes, node))
        for reader, place in zip(readers, places, strict=True):
            assert place is not None
            reader.outputs[0].replace_all_uses_with(parts[int(place.reshape(-1)[0])])
            changes[reader] = ["a value of its own"]
        changes[node] = ["Split"]
    return changes


def _pieces(node: ir.Node, context: Context) -> list[int] | None:
    """How long the pieces of a SplitToSequence are, None where that is not known in advance."""
    data, told = node.inputs[0], given(node, 1)
    dims = None if data is None else context.facts.partial(data)
    size = None if dims is None else dims[int(attribute(node, "axis", 0))]
    if told is None:
        return None if size is None else [1] * size
    known = context.facts.known(told)
    if known is None or known.ndim:
        return None if known is None else [int(n) for n in known]
    step = int(known)
    return None if size is None or step < 1 else [min(step, size - at) for at in range(0, size, step)]


def narrow_integers(context: Context) -> tuple[Changes, dict[ir.Node, str]]:
    """Bring int64 constants into int32's range for parsers that read them so; say where that changes a number.

    Returns
    -------
    tuple
        Readers whose bound was narrowed, and readers of a number that int32 cannot hold.
    """
    changes: Changes = {}
    lost: dict[ir.Node, str] = {}
    if context.target.tensorrt >= (10,):
        return changes, lost
    for value in list(context.model.graph.initializers.values()):
        tensor = constant_tensor(value)
        if tensor is None or tensor.dtype != ir.DataType.INT64:
            continue
        array = tensor.numpy()
        narrow = array.clip(INT32.min, INT32.max)
        if np.array_equal(array, narrow):
            continue
        readers = [use.node for use in value.uses()]
        beyond = [node for node in readers if node.op_type not in _BOUNDS]
        lost.update(
            dict.fromkeys(beyond, f"constant '{value.name}' holds numbers beyond int32, which it would be read as")
        )
        if beyond:
            continue
        value.const_value = ir.Tensor(narrow, name=value.name)
        context.facts.forget(value)
        for node in readers:
            changes.setdefault(node, []).append("int64 bound narrowed to int32")
    return changes, lost


def doubles_to_float(context: Context) -> Changes:
    """Compute in float32 what the model computes in float64, which no TensorRT does."""
    changes: Changes = {}
    double, single = ir.DataType.DOUBLE, ir.DataType.FLOAT
    for graph in context.model.graphs():
        for value in [*graph.inputs, *graph.initializers.values()]:
            tensor = constant_tensor(value) if value.is_initializer() else None
            if tensor is not None and tensor.dtype == double:
                value.const_value = ir.Tensor(tensor.numpy().astype(np.float32), name=value.name)
                value.type = ir.TensorType(single)
                for use in value.uses():
                    changes.setdefault(use.node, []).append("float32 instead of float64")
            elif value.dtype == double:
                value.type = ir.TensorType(single)
        for node in graph:
            for name, item in list(node.attributes.items()):
                if item.type == ir.AttributeType.INT and name in ("to", "dtype") and item.value == int(double):
                    node.attributes[name] = ir.AttrInt64(name, int(single))
                elif item.type == ir.AttributeType.TENSOR and item.value.dtype == double:
                    node.attributes[name] = ir.AttrTensor(name, ir.tensor(item.value.numpy().astype(np.float32)))
                else:
                    continue
                changes.setdefault(node, []).append("float32 instead of float64")
            for value in node.outputs:
                if value.dtype == double:
                    value.type = ir.TensorType(single)
    return changes
