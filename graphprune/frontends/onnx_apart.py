"""The message of an IR model without its weights, and the weights beside it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import onnx
import onnx_ir as ir

from graphprune.errors import ModelError
from graphprune.frontends.onnx_proto import scopes
from graphprune.frontends.onnx_wire import BULK, HERE


class Holder(NamedTuple):
    """A tensor of the model and the way to put another in its place."""

    tensor: ir.TensorProtocol
    put: Callable[[ir.TensorProtocol], None]


def holders(model: ir.Model) -> Iterator[Holder]:
    """Every tensor of numbers in the model: initializers and tensor attributes."""
    for root in (model.graph, *(function.graph for function in model.functions.values())):
        for graph in (root, *root.subgraphs()):
            for value in graph.initializers.values():
                tensor = value.const_value
                if tensor is not None and tensor.dtype != ir.DataType.STRING:
                    yield Holder(tensor, functools.partial(setattr, value, "const_value"))
            for node in graph:
                for attribute in node.attributes.values():
                    if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                        tensor = attribute.value
                        if tensor.dtype != ir.DataType.STRING:
                            yield Holder(tensor, functools.partial(_put_attribute, node, attribute.name))


def _put_attribute(node: ir.Node, name: str, tensor: ir.TensorProtocol) -> None:
    node.attributes[name] = ir.AttrTensor(name, tensor, doc_string=node.attributes[name].doc_string)


def take_apart(
    model: ir.Model, places: dict[int, tuple[str, int, int]] | None = None
) -> tuple[bytes, list[ir.TensorProtocol]]:
    """The model's message with placeholders for large tensors, and the tensors they stand for.

    ``places`` gives, for the holders (by number) that already lie in an external file, its name, offset and
    length.
    """
    tensors: list[ir.TensorProtocol] = []
    changed: list[Holder] = []
    try:
        for index, holder in enumerate(list(holders(model))):
            tensor = holder.tensor
            if places and index in places:
                location, offset, length = places[index]
            elif isinstance(tensor, ir.ExternalTensor) or tensor.nbytes >= BULK:
                location, offset, length = HERE, len(tensors), tensor.nbytes
                tensors.append(tensor)
            else:
                continue
            changed.append(holder)
            holder.put(
                ir.ExternalTensor(
                    location,
                    offset,
                    length,
                    tensor.dtype,
                    shape=ir.Shape(tensor.shape.numpy()),
                    name=tensor.name or "",
                    doc_string=tensor.doc_string,
                    metadata_props=dict(tensor.metadata_props),
                )
            )
        try:
            proto = ir.serde.serialize_model(model)
            _drop_repeated_info(proto)
            return proto.SerializeToString(), tensors
        except (RuntimeError, ValueError, TypeError) as error:
            root: BaseException = error
            while root.__cause__ is not None:
                root = root.__cause__
            raise ModelError(f"the model cannot be written as ONNX: {root}") from error
    finally:
        for holder in changed:
            holder.put(holder.tensor)


def _drop_repeated_info(proto: onnx.ModelProto) -> None:
    """Drop type and shape of initializers from value_info: the initializers say it themselves."""
    for body, _, _ in scopes(proto):
        if isinstance(body, onnx.GraphProto):
            own = {tensor.name for tensor in body.initializer}
            keep = [info for info in body.value_info if info.name not in own or info.doc_string or info.metadata_props]
            if len(keep) < len(body.value_info):
                kept = [onnx.ValueInfoProto.FromString(info.SerializeToString()) for info in keep]
                del body.value_info[:]
                body.value_info.extend(kept)
