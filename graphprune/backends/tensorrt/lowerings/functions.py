"""Operators that ONNX itself defines by others: its own definition, taken node by node."""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir

from graphprune.backends.tensorrt.rewriting import Builder, Values, schema


def by_definition(node: ir.Node, b: Builder) -> Values | None:
    """ONNX's own definition of the operator by simpler ones."""
    body = _definition(node, b)
    if body is None:
        return None
    version = next((o.version for o in body.opset_import if o.domain in ("", "ai.onnx")), b.opset)
    values: dict[str, ir.Value | None] = dict(zip(body.input, node.inputs, strict=False))
    for inner in body.node:
        if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in inner.attribute):
            return None
        attributes = {a.name: found for a in inner.attribute if (found := _attribute(a, node, b)) is not None}
        made = b.of_opset(version, inner.op_type, [values.get(name) if name else None for name in inner.input],
                          len(inner.output), attributes)  # fmt: skip
        values.update(zip(inner.output, made, strict=True))
    found = [values.get(name) for name in body.output[: len(node.outputs)]]
    return None if None in found else [v for v in found if v is not None]


def _definition(node: ir.Node, b: Builder) -> onnx.FunctionProto | None:
    """The body, of the newest opset that is no newer than the target's, else of the oldest."""
    at: Any = schema(node.op_type, b.context.opset_of(node))  # onnx's stubs lack what gives function bodies
    if at is None:
        return None
    versions = [*at.function_opset_versions, *at.context_dependent_function_opset_versions]
    if not versions:
        return None
    fitting = [v for v in versions if v <= b.opset]
    version = max(fitting) if fitting else min(versions)
    body = onnx.FunctionProto()
    if version in at.function_opset_versions:
        body.ParseFromString(at.get_function_with_opset_version(version))
        return body
    types = []
    for value in node.inputs:
        proto = onnx.TypeProto()
        if value is not None:
            proto.tensor_type.elem_type = int(b.dtype(value))
            for size in b.dims(value) or ():
                dim = proto.tensor_type.shape.dim.add()
                if size is not None:
                    dim.dim_value = size
        types.append(proto.SerializeToString())
    data = at.get_context_dependent_function_with_opset_version(version, ir.to_proto(node).SerializeToString(), types)
    body.ParseFromString(data)
    return body if body.node else None


def _attribute(proto: onnx.AttributeProto, node: ir.Node, b: Builder) -> Any:
    """An attribute of the body; where it refers to the node's, that or its default."""
    if not proto.ref_attr_name:
        return ir.from_proto(proto)
    found = node.attributes.get(proto.ref_attr_name)
    if found is not None:
        return ir.Attr(proto.name, found.type, found.value)
    at = schema(node.op_type, b.context.opset_of(node))
    default = at.attributes[proto.ref_attr_name].default_value if at and proto.ref_attr_name in at.attributes else None
    if default is None or not default.type:
        return None
    copy = onnx.AttributeProto()
    copy.CopyFrom(default)
    copy.name = proto.name
    return ir.from_proto(copy)
