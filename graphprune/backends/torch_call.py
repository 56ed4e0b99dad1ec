"""What a lowering in `graphprune.backends.torch_ops` sees of one ONNX node."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import onnx
import onnx_ir as ir
import torch
from torch import fx, nn

from graphprune.backends.torch_ops import host as hosts
from graphprune.backends.torch_ops.dtypes import TORCH, from_numpy, torch_dtype
from graphprune.errors import ModelError

if TYPE_CHECKING:
    from graphprune.backends.torch_build import Builder

Array = npt.NDArray[Any]


def label(node: ir.Node) -> str:
    """Name a node in a message."""
    name = node.name or next((v.name for v in node.outputs if v.name), "")
    return f"node '{name}' ({node.domain + '::' if node.domain else ''}{node.op_type})"


def unknown(node: ir.Node) -> ModelError:
    """Return the error for an operator without a lowering."""
    domain = f"domain '{node.domain}'" if node.domain else "ONNX's own domain"
    return ModelError(
        f"{label(node)}: the operator {node.op_type} of {domain} has no meaning in torch here; "
        "export the model without it, or register one with graphprune.backends.torch_ops.registry.lower"
    )


@functools.lru_cache(maxsize=4096)
def _type_words(op_type: str, version: int, domain: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return how a schema writes the types of inputs and of outputs: ``T``, ``tensor(int64)``."""
    try:
        schema = onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:
        return (), ()
    # Of inputs of many types under one word (Loop, Scan), that word says nothing.
    return tuple(i.type_str if i.is_homogeneous else "" for i in schema.inputs), tuple(
        o.type_str if o.is_homogeneous else "?" for o in schema.outputs
    )


def output_type(call: Call, index: int) -> torch.dtype | None:
    """Return the element type of an output: declared, or that of the inputs its schema ties it to."""
    declared = call.node.outputs[index].dtype
    if declared is not None:
        return TORCH.get(declared)
    if call.op == "Cast":
        return TORCH.get(ir.DataType(call.attr("to")))
    inputs, outputs = _type_words(call.node.op_type, call.version, call.node.domain)
    if not outputs:
        return None
    word = outputs[min(index, len(outputs) - 1)]
    for i in range(call.inputs):
        if inputs and inputs[min(i, len(inputs) - 1)] == word and call.has(i) and (found := call.dtype(i)):
            return found
    return torch.int64 if word == "tensor(int64)" else torch.bool if word == "tensor(bool)" else None


#: Operators whose result has as many axes as their first input.
_SAME_RANK = frozenset(
    """
    Abs BatchNormalization Cast Ceil Clip Concat Dropout Elu Erf Exp Floor Gelu GroupNormalization
    HardSigmoid HardSwish Identity InstanceNormalization LayerNormalization LeakyRelu Log LogSoftmax
    Mish Neg Pad PRelu Reciprocal Relu Resize Round Sigmoid Sign Slice Softmax Softplus Split Sqrt Tanh
    Tile Transpose Upsample MaxPool AveragePool GlobalAveragePool GlobalMaxPool Conv ConvTranspose
    DepthToSpace SpaceToDepth FusedConv QuantizeLinear DequantizeLinear
    """.split()  # noqa: SIM905
)
_BROADCAST = frozenset(
    """
    Add Sub Mul Div Pow Max Min Sum Where Equal Greater Less And Or Mod
    """.split()  # noqa: SIM905
)


def output_rank(call: Call, index: int) -> int | None:
    """Return the number of axes of an output where it is declared or follows from the inputs'."""
    declared = call.node.outputs[index].shape
    if declared is not None:
        return len(declared)
    kind = call.node.op_type
    if kind in _SAME_RANK:
        return call.const_rank(0)
    if kind in _BROADCAST:
        ranks = [call.const_rank(i) for i in range(call.inputs)]
        return None if None in ranks else max(r for r in ranks if r is not None)
    if kind == "Reshape" and call.has(1) and (target := call.const(1)) is not None:
        return int(target.size)
    if kind.startswith("Reduce") and call.flag("keepdims", 1):
        return call.const_rank(0)
    if kind == "MatMul":
        a, b = call.const_rank(0), call.const_rank(1)
        return max(a, b) if a and b and a > 1 and b > 1 else None
    return 2 if kind in ("Gemm", "Flatten") else None


class Call:
    """One ONNX node, as a lowering sees it.

    Attributes
    ----------
    op : str
        ``Op``, or ``domain::Op`` outside of ONNX's own domain.
    version : int
        Opset of the node's domain.
    inputs, outputs : int
        How many it has, left-out ones counted.
    """

    def __init__(self, builder: Builder, node: ir.Node) -> None:
        self.builder = builder
        self.node = node
        domain = "" if node.domain == "ai.onnx" else node.domain
        self.op = f"{domain}::{node.op_type}" if domain else node.op_type
        self.version = builder.shared.opsets.get(domain, builder.shared.opsets.get("ai.onnx", 0) if not domain else 1)
        self.inputs = len(node.inputs)
        self.outputs = len(node.outputs)

    # -- attributes

    def attr(self, name: str, default: Any = None) -> Any:
        """Return an attribute as a Python value (ints, floats and strings as such, lists as tuples)."""
        attribute = self.node.attributes.get(name)
        if attribute is None:
            return default
        value = attribute.value
        return tuple(value) if isinstance(value, (list, tuple)) else value

    def flag(self, name: str, default: int = 0) -> bool:
        """Return an integer attribute as a truth value."""
        return bool(self.attr(name, default))

    # -- inputs

    def has(self, index: int) -> bool:
        """Whether input ``index`` is given."""
        return index < self.inputs and self.node.inputs[index] is not None

    def value(self, index: int) -> ir.Value:
        """Return input ``index`` of the node."""
        value = self.node.inputs[index] if index < self.inputs else None
        if value is None:
            raise ModelError(f"{label(self.node)}: input {index} is missing")
        return value

    def tensor(self, index: int) -> Any:
        """Return input ``index`` as the fx node of a tensor."""
        return self.builder.tensor(self.value(index))

    def optional(self, index: int) -> Any:
        """Return input ``index`` as a tensor node, or None where it is left out."""
        return self.tensor(index) if self.has(index) else None

    def tensors(self) -> list[Any]:
        """Return all inputs as tensor nodes."""
        return [self.tensor(i) for i in range(self.inputs)]

    def const(self, index: int) -> Array | None:
        """Return the contents of input ``index`` where they are constant and no weight."""
        return self.builder.val(self.value(index)).array if self.has(index) else None

    def const_rank(self, index: int) -> int | None:
        """Return the number of axes of input ``index`` where it is known."""
        value = self.value(index)
        found = self.builder.val(value)
        if found.array is not None or found.host is not None:
            return found.rank
        if found.axes is not None:
            return found.axes
        shape = value.shape if value.const_value is None else value.const_value.shape
        return None if shape is None else len(shape)

    def dims(self, index: int) -> tuple[int | None, ...] | None:
        """Return the sizes of input ``index`` as far as the model declares them."""
        value = self.value(index)
        array = self.builder.val(value).array
        if array is not None:
            return tuple(array.shape)
        shape = value.shape if value.const_value is None else value.const_value.shape
        return None if shape is None else tuple(d if isinstance(d, int) else None for d in shape)

    def dtype(self, index: int) -> torch.dtype | None:
        """Return the element type of input ``index`` where it is known."""
        value = self.value(index)
        found = self.builder.val(value)
        if found.host is not None:
            return found.dtype
        if found.array is not None:
            return TORCH.get(ir.DataType.from_numpy(found.array.dtype))
        if found.kind is not None:
            return found.kind
        kind = value.dtype if value.const_value is None else value.const_value.dtype
        return TORCH.get(kind) if kind is not None else None

    def is_float(self, index: int) -> bool:
        """Whether input ``index`` is known to be of a floating-point type."""
        dtype = self.dtype(index)
        return dtype is not None and dtype.is_floating_point

    def number(self, index: int, default: Any = None) -> Any:
        """Return a constant input of one element as a Python number; ``default`` where it is left out.

        Raises
        ------
        ModelError
            When it is computed at run time.
        """
        if not self.has(index):
            return default
        array = self.const(index)
        if array is None:
            raise ModelError(f"{label(self.node)}: input {index} must be a constant to become torch")
        return array.reshape(-1)[0].item()

    def const_ints(self, index: int, name: str) -> tuple[int, ...] | None:
        """Return integers from a constant input, or from the attribute of older opsets; None where neither is."""
        if self.has(index):
            array = self.const(index)
            return None if array is None else tuple(int(i) for i in array.reshape(-1))
        value = self.attr(name)
        return None if value is None else tuple(int(i) for i in (value if isinstance(value, tuple) else (value,)))

    def ints(self, index: int) -> Any:
        """Return an input of integers: a tuple where constant, else the node of a host value."""
        array = self.const(index)
        if array is not None:
            return tuple(int(i) for i in array.reshape(-1))
        found = self.builder.val(self.value(index))
        if found.host is None:
            found.host = self.builder.emit(hosts.to_host, self.tensor(index))
            found.rank = self.const_rank_declared(index)
        if found.rank == 0:
            return self.builder.emit(hosts.as_tuple, found.host)
        return found.host

    def const_rank_declared(self, index: int) -> int:
        """Return the declared number of axes of input ``index``, 0 when unknown: then a tuple is made anew."""
        shape = self.value(index).shape
        return 0 if shape is None else min(len(shape), 1)

    def int_input(self, index: int) -> Any:
        """Return an input of one integer: an int where constant, else the node of one."""
        array = self.const(index)
        if array is not None:
            return int(array.reshape(-1)[0])
        return self.builder.emit(hosts.as_scalar, self.ints(index))

    def host(self, index: int) -> Any:
        """Return a hostable input: its node, or a literal."""
        found = self.builder.val(self.value(index))
        return hosts.literal(found.array) if found.array is not None else found.host

    def host_rank(self, index: int) -> int:
        """Return the number of axes, 0 or 1, of a hostable input."""
        return self.builder.val(self.value(index)).rank

    def host_length(self, index: int) -> int | None:
        """Return the number of elements of a hostable input where known; None for one of rank 0."""
        found = self.builder.val(self.value(index))
        if found.array is not None:
            return int(found.array.size) if found.array.ndim else None
        return found.length if found.rank else None

    def host_dtype(self) -> torch.dtype:
        """Return the element type of the node's result, all of whose inputs are host values."""
        kind = self.node.op_type
        if kind == "Cast":
            return torch_dtype(ir.DataType(self.attr("to")), label(self.node))
        if kind in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Not", "And", "Or"):
            return torch.bool
        if kind in ("Shape", "Size"):
            return torch.int64
        if kind == "ConstantOfShape":
            value = self.attr("value")
            return torch.float32 if value is None else TORCH[value.dtype]
        index = 1 if kind == "Where" else 0
        array = self.builder.val(self.value(index)).array
        return self.builder.val(self.value(index)).dtype if array is None else from_numpy(array, copy=True).dtype

    # -- results

    def emit(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """Append a call of a function to the graph."""
        return self.builder.emit(function, *args, **kwargs)

    def module(self, module: nn.Module, name: str, *args: Any) -> fx.Node:
        """Append a call of a new submodule to the graph."""
        return self.builder.emit_module(module, name, *args)

    def unpack(self, node: fx.Node) -> list[fx.Node | None]:
        """Return one node per output of a call that returns a tuple; None where nobody uses an output."""
        return [self.emit(operator.getitem, node, i) if _used(v) else None for i, v in enumerate(self.node.outputs)]

    def wants(self, index: int) -> bool:
        """Whether anybody uses output ``index``."""
        return index < self.outputs and _used(self.node.outputs[index])

    def refuse(self, what: str) -> ModelError:
        """Return an error about this node."""
        return ModelError(f"{label(self.node)}: {what}")


def _used(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()
