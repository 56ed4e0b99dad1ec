"""Walking a ModelProto: every body (graph or function), every tensor, and how to name a node in a message."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import onnx

from graphprune.errors import ModelError

Body = onnx.GraphProto | onnx.FunctionProto


class Scope(NamedTuple):
    """A list of nodes: the main graph, a graph held by a node, or a function."""

    body: Body
    label: str
    """"" for the main graph, else words that place the body, such as "then_branch of If 'cond'"."""
    function: onnx.FunctionProto | None = None
    """The function that the body is, or is nested in."""


class NamedTensor(NamedTuple):
    """A tensor and the words that place it."""

    tensor: onnx.TensorProto
    label: str


def node_label(node: onnx.NodeProto) -> str:
    """``Conv 'conv1'``, or ``Conv (output 'x5')`` for a node without a name."""
    kind = f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
    if node.name:
        return f"{kind} '{node.name}'"
    first = next((name for name in node.output if name), "")
    return f"{kind} (output '{first}')" if first else f"{kind} (no name, no output)"


def attribute_graphs(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """Attribute name and graph, of every graph the node holds."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.name, attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            for graph in attribute.graphs:
                yield attribute.name, graph


def scopes(model: onnx.ModelProto) -> Iterator[Scope]:
    """The main graph, the functions, and everything nested in them, outer before inner."""
    stack = [Scope(model.graph, "")]
    stack += [Scope(function, f"function '{function.name}'", function) for function in reversed(model.functions)]
    while stack:
        scope = stack.pop()
        yield scope
        inner = []
        for node in scope.body.node:
            for name, graph in attribute_graphs(node):
                inner.append(Scope(graph, f"{name} of {node_label(node)}", scope.function))
        stack.extend(reversed(inner))


def check_text(model: onnx.ModelProto) -> None:
    """Raise ModelError when a text field is not text; protobuf would hand it on as bytes."""
    stack: list[Any] = [model]
    while stack:
        message = stack.pop()
        for field, value in message.ListFields():
            if field.type == field.TYPE_MESSAGE:
                if hasattr(value, "ListFields"):
                    stack.append(value)
                else:
                    stack.extend(value)
            elif field.type == field.TYPE_STRING:
                for text in (value,) if isinstance(value, (str, bytes)) else value:
                    if not isinstance(text, str):
                        raise ModelError(
                            f"the file is damaged: {message.DESCRIPTOR.name} has the {field.name} "
                            f"{text!r:.60}, which is not UTF-8 text"
                        )


def sparse_parts(sparse: onnx.SparseTensorProto, label: str) -> Iterator[NamedTensor]:
    yield NamedTensor(sparse.values, f"values of sparse {label}")
    yield NamedTensor(sparse.indices, f"indices of sparse {label}")


def _attribute_tensors(attribute: onnx.AttributeProto, label: str) -> Iterator[NamedTensor]:
    if attribute.type == onnx.AttributeProto.TENSOR:
        yield NamedTensor(attribute.t, label)
    elif attribute.type == onnx.AttributeProto.TENSORS:
        for tensor in attribute.tensors:
            yield NamedTensor(tensor, label)
    elif attribute.type == onnx.AttributeProto.SPARSE_TENSOR:
        yield from sparse_parts(attribute.sparse_tensor, label)
    elif attribute.type == onnx.AttributeProto.SPARSE_TENSORS:
        for sparse in attribute.sparse_tensors:
            yield from sparse_parts(sparse, label)


def tensors(model: onnx.ModelProto) -> Iterator[NamedTensor]:
    """Every tensor of the model: initializers, sparse ones' parts, attributes."""
    for body, _, _ in scopes(model):
        if isinstance(body, onnx.GraphProto):
            for tensor in body.initializer:
                yield NamedTensor(tensor, f"tensor '{tensor.name}'")
            for sparse in body.sparse_initializer:
                yield from sparse_parts(sparse, f"tensor '{sparse.values.name}'")
        else:
            for attribute in body.attribute_proto:
                yield from _attribute_tensors(attribute, f"default of attribute '{attribute.name}'")
        for node in body.node:
            for attribute in node.attribute:
                if attribute.type in _WITH_TENSORS:
                    yield from _attribute_tensors(attribute, f"attribute '{attribute.name}' of {node_label(node)}")


_WITH_TENSORS = {
    onnx.AttributeProto.TENSOR,
    onnx.AttributeProto.TENSORS,
    onnx.AttributeProto.SPARSE_TENSOR,
    onnx.AttributeProto.SPARSE_TENSORS,
}
