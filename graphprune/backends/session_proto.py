"""Write part of a graph as a small model of its own, for one ONNX Runtime session.

The copy has unique value names (bodies may reuse a name, sessions may not), no stated shapes besides those
of the inputs (a rewritten graph may carry stale ones), and a low IR version. Large weights are declared
only; their contents are handed to the session as buffers, so they are never serialised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from graphprune.backends.pieces import is_hoisted, is_large
from graphprune.errors import ModelError
from graphprune.facts import constant_tensor
from graphprune.ops.traits import BODY_TYPES

Array = npt.NDArray[Any]
Types = Mapping[ir.DataType, ir.DataType]

# Old enough for every supported runtime. What later versions added (device placement, more metadata) is not
# copied, and element types are checked by the operators, not by this number.
_IR_VERSION = 10
# The runtime's own operators; its product takes a turned matrix as it lies.
_FUSED_DOMAIN = "com.microsoft"
# Attributes that hold an element type.
_TYPE_ATTRIBUTES = frozenset(["to", "dtype", "output_dtype", "output_datatype", "softmax_precision", "stash_type"])


class SessionWriter:
    """Serialise parts of one model.

    Parameters
    ----------
    model
        Read only.
    replace
        Gives other contents for a constant, or None to leave it.
    types
        Element types to write as another one (``bfloat16`` as ``float`` where a runtime lacks kernels).
    """

    def __init__(
        self, model: ir.Model, replace: Callable[[ir.Value], Array | None] | None = None, types: Types | None = None
    ) -> None:
        self.types = dict(types or {})
        self._model = model
        self._replace = replace
        self._names: dict[ir.Value, str] = {}
        self._taken: set[str] = set()
        for value in (*model.graph.inputs, *model.graph.outputs):
            self.name(value)  # the interface keeps its names, whatever bodies are called inside

    def name(self, value: ir.Value) -> str:
        """Return the value's name in sessions: its own where that is free."""
        found = self._names.get(value)
        if found is None:
            base = value.name or "value"
            found, count = base, 1
            while found in self._taken:
                found, count = f"{base}__{count}", count + 1
            self._taken.add(found)
            self._names[value] = found
        return found

    def type(self, dtype: ir.DataType) -> ir.DataType:
        """Return the element type that is written for ``dtype``."""
        return self.types.get(dtype, dtype)

    def contents(self, value: ir.Value) -> Array:
        """Read a constant: as replaced, else from its tensor, in the element type that is written."""
        tensor = constant_tensor(value)
        assert tensor is not None
        array = None if self._replace is None else self._replace(value)
        if array is None:
            try:
                array = tensor.numpy()
            except Exception as error:  # missing files, wrong sizes, foreign tensor classes
                raise ModelError(f"the data of tensor {value.name!r} cannot be read: {error}") from error
        elif tuple(array.shape) != tuple(tensor.shape.numpy()):
            raise ModelError(
                f"tensor {value.name!r} has shape {list(tensor.shape.numpy())}; it cannot be replaced by one of "
                f"shape {list(array.shape)}"
            )
        wanted = self.type(tensor.dtype)
        return array if wanted == tensor.dtype else array.astype(wanted.numpy())

    def element_type(self, value: ir.Value) -> ir.DataType:
        """Return the element type in which a constant is written."""
        tensor = constant_tensor(value)
        assert tensor is not None
        return self.type(tensor.dtype)

    def model(
        self,
        nodes: Sequence[ir.Node],
        inputs: Sequence[tuple[ir.Value, onnx.TypeProto]],
        outputs: Sequence[ir.Value],
        weights: Sequence[ir.Value],
        *,
        weights_as_inputs: bool,
    ) -> onnx.ModelProto:
        """Write a model of ``nodes``.

        Parameters
        ----------
        nodes
            In topological order.
        inputs
            Values that are fed, with their types.
        outputs
            Values to return; the runtime infers their types.
        weights
            Constants that the nodes read. Small ones are written out.
        weights_as_inputs
            Declare large weights as inputs; otherwise as initializers whose data a session must be given.
        """
        proto = onnx.ModelProto(ir_version=_IR_VERSION, producer_name="graphprune")
        imports = dict(self._model.graph.opset_imports)
        imports.setdefault("", onnx.defs.onnx_opset_version())
        turned = self._turned(nodes, outputs)
        for node in nodes:
            imports.setdefault(_FUSED_DOMAIN if node in turned else node.domain, 1)
        proto.opset_import.extend(onnx.OperatorSetIdProto(domain=d, version=v) for d, v in imports.items())
        proto.functions.extend(ir.serde.serialize_function(f) for f in self._model.functions.values())
        graph = proto.graph
        graph.name = self._model.graph.name or "graph"
        for value, kind in inputs:
            graph.input.append(onnx.ValueInfoProto(name=self.name(value), type=kind))
        for value in weights:
            if not is_large(value):
                self._initializer(graph, value)
            elif weights_as_inputs:
                tensor = constant_tensor(value)
                assert tensor is not None
                dims = tuple(int(d) for d in tensor.shape.numpy())
                kind = tensor_type(self.type(tensor.dtype), dims)
                graph.input.append(onnx.ValueInfoProto(name=self.name(value), type=kind))
            else:
                self._declaration(graph, value)
        idle = {node for node in turned.values() if all(use in turned for use, _ in node.outputs[0].uses())}
        for node in nodes:
            if node not in idle:
                graph.node.append(self._fused(node, turned[node]) if node in turned else self._node(node))
        graph.output.extend(onnx.ValueInfoProto(name=self.name(v)) for v in outputs)
        return proto

    def _turned(self, nodes: Sequence[ir.Node], outputs: Sequence[ir.Value]) -> dict[ir.Node, ir.Node]:
        """Products with a turned weight -> the Transpose: left alone, the runtime turns it in every run, or keeps a copy."""
        found: dict[ir.Node, ir.Node] = {}
        inside, kept = set(nodes), set(outputs)
        for node in nodes:
            if node.op_type != "MatMul" or node.domain or (right := node.inputs[1]) is None:
                continue
            turn = right.producer()
            if turn is None or turn not in inside or right in kept or turn.op_type != "Transpose" or turn.domain:
                continue
            weight = turn.inputs[0]
            if weight is None or (tensor := constant_tensor(weight)) is None or len(tensor.shape) != 2:
                continue
            if self.type(tensor.dtype) == ir.DataType.FLOAT and tuple(turn.attributes.get_ints("perm", (1, 0))) == (1, 0):
                found[node] = turn
        return found

    def _fused(self, node: ir.Node, turn: ir.Node) -> onnx.NodeProto:
        proto = self._node(node)
        weight = turn.inputs[0]
        assert weight is not None
        proto.op_type, proto.domain, proto.input[1] = "FusedMatMul", _FUSED_DOMAIN, self.name(weight)
        proto.attribute.append(onnx.helper.make_attribute("transB", 1))
        return proto

    def _declaration(self, graph: onnx.GraphProto, value: ir.Value) -> None:
        """Declare an initializer whose data a session gets as a buffer; the location is never opened."""
        tensor = constant_tensor(value)
        assert tensor is not None
        dtype = self.type(tensor.dtype)
        size = int(tensor.size * dtype.itemsize)
        proto = graph.initializer.add(name=self.name(value), data_type=int(dtype), dims=tensor.shape.numpy())
        proto.data_location = onnx.TensorProto.EXTERNAL
        for key, text in (("location", "buffer"), ("offset", "0"), ("length", str(size))):
            proto.external_data.add(key=key, value=text)

    def _initializer(self, graph: onnx.GraphProto, value: ir.Value) -> None:
        proto = graph.initializer.add(name=self.name(value))
        self._fill(proto, value)

    def _fill(self, proto: onnx.TensorProto, value: ir.Value) -> None:
        tensor = constant_tensor(value)
        assert tensor is not None
        if tensor.dtype == ir.DataType.STRING:
            proto.data_type, proto.dims[:] = int(tensor.dtype), tensor.shape.numpy()
            proto.string_data.extend(bytes(s) for s in tensor.numpy().reshape(-1))
            return
        dtype, array = self.type(tensor.dtype), self.contents(value)
        fill_tensor(proto, array, dtype)

    def _node(self, node: ir.Node) -> onnx.NodeProto:
        proto = onnx.NodeProto(op_type=node.op_type, domain=node.domain, overload=node.overload)
        # Errors of the runtime name the node: one without a name goes by what it makes.
        proto.name = node.name or next((v.name for v in node.outputs if v.name), "")
        proto.input.extend("" if v is None else self.name(v) for v in node.inputs)
        outputs = ["" if v.name == "" else self.name(v) for v in node.outputs]
        while outputs and not outputs[-1]:
            outputs.pop()
        proto.output.extend(outputs)
        for attribute in node.attributes.values():
            proto.attribute.append(self._attribute(attribute, node.op_type))
        return proto

    def _attribute(self, attribute: ir.Attr, op_type: str) -> onnx.AttributeProto:
        if attribute.type == ir.AttributeType.GRAPH:
            proto = onnx.AttributeProto(name=attribute.name, type=onnx.AttributeProto.GRAPH)
            proto.g.CopyFrom(self._graph(attribute.as_graph()))
            for info, dtype in zip(proto.g.input, BODY_TYPES.get(op_type, ()), strict=False):
                info.type.CopyFrom(tensor_type(dtype, ()))
            return proto
        if attribute.type == ir.AttributeType.GRAPHS:
            proto = onnx.AttributeProto(name=attribute.name, type=onnx.AttributeProto.GRAPHS)
            proto.graphs.extend(self._graph(g) for g in attribute.as_graphs())
            return proto
        if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
            tensor = attribute.as_tensor()
            if tensor.dtype != ir.DataType.STRING:
                proto = onnx.AttributeProto(name=attribute.name, type=onnx.AttributeProto.TENSOR)
                dtype = self.type(tensor.dtype)
                fill_tensor(proto.t, tensor.numpy().astype(dtype.numpy(), copy=False), dtype)
                return proto
        proto = ir.serde.serialize_attribute(attribute)
        if self.types and attribute.name in _TYPE_ATTRIBUTES and proto.type == onnx.AttributeProto.INT:
            proto.i = int(self.types.get(ir.DataType(proto.i), ir.DataType(proto.i)))
        if proto.type == onnx.AttributeProto.TYPE_PROTO:
            self._retype(proto.tp)
        return proto

    def _graph(self, graph: ir.Graph) -> onnx.GraphProto:
        """Write a body. Its large constants are left out: the model around it has them."""
        proto = onnx.GraphProto(name=graph.name or "body")
        proto.input.extend(self._body_value(v) for v in graph.inputs)
        for value in graph.initializers.values():
            if not is_hoisted(value):
                self._initializer(proto, value)
        for node in graph:
            if node.op_type != "Constant" or node.domain or constant_tensor(node.outputs[0]) is None:
                proto.node.append(self._node(node))
            elif not is_hoisted(node.outputs[0]):
                constant = proto.node.add(op_type="Constant", name=node.name or "")
                constant.output.append(self.name(node.outputs[0]))
                attribute = constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
                self._fill(attribute.t, node.outputs[0])
        proto.output.extend(self._body_value(v) for v in graph.outputs)
        return proto

    def _body_value(self, value: ir.Value) -> onnx.ValueInfoProto:
        """Declare an input or output of a body by its rank: Scan and Loop insist on one, sizes may be stale."""
        info = onnx.ValueInfoProto(name=self.name(value))
        if isinstance(value.type, ir.TensorType):
            info.type.CopyFrom(
                tensor_type(value.type.dtype, None if value.shape is None else [None] * len(value.shape))
            )
        elif value.type is not None:
            info.type.CopyFrom(ir.serde.serialize_type(value.type))
        self._retype(info.type)
        return info

    def input_type(self, value: ir.Value) -> onnx.TypeProto | None:
        """Return the declared type of a graph input, open dimensions left open; None where nothing is said."""
        if value.type is None:
            return None
        proto = ir.serde.serialize_type(value.type)
        if isinstance(value.type, ir.TensorType) and value.shape is not None:
            sizes = [int(d) if isinstance(d, int) and d > 0 else None for d in value.shape]
            proto = tensor_type(value.type.dtype, sizes)
        self._retype(proto)
        return proto

    def _retype(self, proto: onnx.TypeProto) -> None:
        """Write other element types into a type, however deep it is nested."""
        kind = proto.WhichOneof("value")
        if kind == "tensor_type":
            dtype = ir.DataType(proto.tensor_type.elem_type)
            proto.tensor_type.elem_type = int(self.types.get(dtype, dtype))
        elif kind in ("sequence_type", "optional_type"):
            self._retype(getattr(proto, kind).elem_type)
        elif kind == "map_type":
            self._retype(proto.map_type.value_type)


def tensor_type(dtype: ir.DataType, dims: Sequence[int | None] | None) -> onnx.TypeProto:
    """Return a tensor type; None sizes stay open, and so does the rank where ``dims`` is None."""
    proto = onnx.TypeProto()
    proto.tensor_type.elem_type = int(dtype)
    if dims is not None:
        proto.tensor_type.shape.SetInParent()
        for size in dims:
            dim = proto.tensor_type.shape.dim.add()
            if size is not None:
                dim.dim_value = size
    return proto


def fill_tensor(proto: onnx.TensorProto, array: Array, dtype: ir.DataType) -> None:
    """Write an array into a proto as raw bytes; types of less than a byte are packed."""
    proto.data_type = int(dtype)
    proto.dims.extend(array.shape)
    proto.raw_data = ir.Tensor(np.ascontiguousarray(array).reshape(array.shape), dtype=dtype).tobytes()
