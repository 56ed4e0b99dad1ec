"""One node after the other of an exported program, as ONNX."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch.fx import Node

OPSET = 20
TRACE = "pkg.torch.onnx.stack_trace"
SCOPES = "pkg.torch.onnx.name_scopes"

DTYPES = {
    torch.float32: ir.DataType.FLOAT, torch.float64: ir.DataType.DOUBLE, torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16, torch.int64: ir.DataType.INT64, torch.int32: ir.DataType.INT32,
    torch.int16: ir.DataType.INT16, torch.int8: ir.DataType.INT8, torch.uint8: ir.DataType.UINT8,
    torch.bool: ir.DataType.BOOL,
}  # fmt: skip

Handler = Callable[..., Any]
#: Operator, as ``aten.linear.default`` -> what writes it, called with the writer and the operator's arguments in order.
TABLE: dict[str, Handler] = {}


class Unknown(Exception):
    """A program that torch's exporter has to write."""


def aten(*names: str) -> Callable[[Handler], Handler]:
    """Register what writes the operators ``aten.NAME``."""

    def register(handler: Handler) -> Handler:
        TABLE.update({f"aten.{name}": handler for name in names})
        return handler

    return register


class Writer:
    """A graph in the making.

    Attributes
    ----------
    node
        The node of the program that is being written.
    """

    def __init__(self, name: str) -> None:
        self.graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name=name)
        self.values: dict[Node, Any] = {}
        self.node: Node | None = None
        self._count = 0
        self._constants: dict[Any, ir.Value] = {}
        self._props: dict[str, str] = {}

    # What handlers use

    def op(self, op_type: str, inputs: Sequence[ir.Value | None], attributes: dict[str, Any] | None = None) -> ir.Value:
        """Add a node with one output."""
        return self.ops(op_type, inputs, attributes, 1)[0]

    def ops(
        self, op_type: str, inputs: Sequence[ir.Value | None], attributes: dict[str, Any] | None, outputs: int
    ) -> list[ir.Value]:
        """Add a node with several outputs."""
        self._count += 1
        node = ir.node(
            op_type, inputs, attributes=attributes or {}, num_outputs=outputs, name=f"node_{op_type}_{self._count}"
        )
        for number, value in enumerate(node.outputs):
            value.name = f"val_{self._count}" + (f"_{number}" if number else "")
        node.metadata_props.update(self._props)
        self.graph.append(node)
        return list(node.outputs)

    def constant(self, array: Any, dtype: torch.dtype | None = None) -> ir.Value:
        """A constant: numbers (integers are int64), or a number of an element type of torch's."""
        kind = DTYPES[torch.int64 if dtype is None else dtype]
        held = np.asarray(array, kind.numpy())
        key = kind, held.shape, held.tobytes()
        if key not in self._constants:
            self._count += 1
            value = ir.Value(name=f"const_{self._count}", const_value=ir.Tensor(held, dtype=kind))
            value.type, value.shape = ir.TensorType(kind), ir.Shape(held.shape)
            self.graph.register_initializer(value)
            self._constants[key] = value
        return self._constants[key]

    def cast(self, value: ir.Value, have: torch.dtype, want: torch.dtype) -> ir.Value:
        """The value in another element type, itself where it has that one."""
        return value if have == want else self.op("Cast", [value], {"to": int(DTYPES[want])})

    def of(self, argument: Any) -> Any:
        """What an argument is in the graph; numbers and other plain things are themselves."""
        if isinstance(argument, Node):
            return self.values[argument]
        if isinstance(argument, (list, tuple)):
            return [self.of(item) for item in argument]
        return argument

    # What a program is made of

    def enter(self, node: Node) -> None:
        """Say which node of the program is written from now on."""
        self.node = node
        scopes = [name for name, _ in (node.meta.get("nn_module_stack") or {}).values()]
        self._props = {SCOPES: str([*scopes, node.name]), TRACE: node.meta.get("stack_trace") or ""}

    def name(self, node: Node, value: Any) -> None:
        """Give what a node made its name, element type and shape."""
        self.values[node] = value
        if isinstance(value, ir.Value) and value.producer() is not None and value.shape is None:
            value.name = node.name
            describe(value, meta(node))


def meta(node: Any) -> torch.Tensor:
    """The stand-in for what a node computes."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    if not isinstance(value, torch.Tensor) or value.dtype not in DTYPES or not all(type(n) is int for n in value.shape):
        raise Unknown(f"{node} is no tensor of fixed sizes")
    return value


def describe(value: ir.Value, like: torch.Tensor) -> None:
    """Give a value the element type and shape of a tensor."""
    value.type, value.shape = ir.TensorType(DTYPES[like.dtype]), ir.Shape(like.shape)


@functools.cache
def _parameters(target: Any) -> tuple[tuple[str, bool, Any], ...]:
    """Name, whether there is a default, and the default, of every argument of an operator."""
    return tuple((a.name, a.has_default_value(), a.default_value) for a in target._schema.arguments)


def arguments(node: Node) -> list[Any]:
    """All arguments of a call in the order of the operator's schema."""
    out: list[Any] = []
    for number, (name, known, default) in enumerate(_parameters(node.target)):
        if number < len(node.args):
            out.append(node.args[number])
        elif name in node.kwargs:
            out.append(node.kwargs[name])
        elif known:
            out.append(default)
        else:
            raise Unknown(f"{node.target} without {name}")
    return out


def translate(program: Any, tensor_of: Callable[[torch.Tensor, str], ir.TensorProtocol]) -> ir.Model:
    """The program as a model.

    Parameters
    ----------
    program
        A ``torch.export.ExportedProgram``.
    tensor_of
        Makes the contents of an initializer of a tensor and its name.

    Raises
    ------
    Unknown
        It has something that is not written here.
    """
    signature = program.graph_signature
    if any(str(spec.kind.name) != "USER_OUTPUT" for spec in signature.output_specs):
        raise Unknown("it changes buffers or inputs")
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    for node in calls:
        if str(node.target) not in TABLE and node.target is not operator.getitem:
            raise Unknown(str(node.target))
    write = Writer(type(program).__name__)
    specs = {spec.arg.name: spec for spec in signature.input_specs}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            _placeholder(write, program, node, specs[node.name], tensor_of)
        elif node.op == "call_function":
            write.enter(node)
            if node.target is operator.getitem:
                write.name(node, write.of(node.args[0])[node.args[1]])
            else:
                write.name(node, TABLE[str(node.target)](write, *arguments(node)))
        elif node.op == "output":
            results = [write.of(result) for result in node.args[0]]
            if not all(isinstance(result, ir.Value) for result in results):
                raise Unknown("an output that is no tensor")
            write.graph.outputs.extend(results)
        else:
            raise Unknown(node.op)
    return ir.Model(write.graph, ir_version=10, producer_name="graphprune")


def _placeholder(write: Writer, program: Any, node: Node, spec: Any, tensor_of: Callable[..., Any]) -> None:
    kind = spec.kind.name
    value = ir.Value(name=node.name if kind == "USER_INPUT" else str(spec.target))
    if kind == "USER_INPUT":
        describe(value, meta(node))
        write.graph.inputs.append(value)
    elif kind in ("PARAMETER", "BUFFER", "CONSTANT_TENSOR"):
        held = program.state_dict.get(spec.target)
        held = program.constants.get(spec.target) if held is None else held
        if not isinstance(held, torch.Tensor) or held.dtype not in DTYPES or held.is_sparse or held.is_quantized:
            raise Unknown(f"{spec.target} is no plain tensor")
        describe(value, held)
        if value.name in write.graph.initializers:
            raise Unknown(f"{spec.target} twice")
        value.const_value = tensor_of(held, str(value.name))
        write.graph.register_initializer(value)
    else:
        raise Unknown(kind)
    write.values[node] = value
