"""Operators that work element by element, comparisons, casts and reductions."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch.fx import Node

from graphprune.frontends.aten.writer import DTYPES, Unknown, Writer, aten, meta

ONE_TO_ONE = {
    "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "erf": "Erf",
    "abs": "Abs", "neg": "Neg", "sin": "Sin", "cos": "Cos", "floor": "Floor", "hardswish": "HardSwish",
    "reciprocal": "Reciprocal", "logical_not": "Not", "bitwise_not": "Not",
}  # fmt: skip
ARITHMETIC = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div"}
COMPARISONS = {"eq": "Equal", "gt": "Greater", "ge": "GreaterOrEqual", "lt": "Less", "le": "LessOrEqual"}


def _float(x: Node) -> None:
    if not meta(x).dtype.is_floating_point:
        raise Unknown("a function of whole numbers")


def _one(op_type: str) -> Any:
    def write_one(write: Writer, x: Node) -> ir.Value:
        if op_type not in ("Neg", "Abs", "Relu", "Not"):
            _float(x)
        if op_type == "Not" and meta(x).dtype != torch.bool:
            raise Unknown("not, of numbers")
        return write.op(op_type, [write.of(x)])

    return write_one


for _name, _type in ONE_TO_ONE.items():
    aten(f"{_name}.default")(_one(_type))


def operand(write: Writer, argument: Any, dtype: torch.dtype) -> ir.Value:
    """A tensor or a number in an element type."""
    if isinstance(argument, Node):
        value: ir.Value = write.cast(write.of(argument), meta(argument).dtype, dtype)
        return value
    if not isinstance(argument, (int, float, bool)):
        raise Unknown(f"operand {argument}")
    return write.constant(argument, dtype)


def _arithmetic(op_type: str) -> Any:
    def write_two(write: Writer, x: Any, y: Any, alpha: Any = 1) -> ir.Value:
        assert write.node is not None
        dtype = meta(write.node).dtype
        if dtype == torch.bool:
            raise Unknown("arithmetic of truths")
        right = operand(write, y, dtype)
        if alpha != 1:
            right = write.op("Mul", [right, write.constant(alpha, dtype)])
        return write.op(op_type, [operand(write, x, dtype), right])

    return write_two


for _name, _type in ARITHMETIC.items():
    aten(f"{_name}.Tensor")(_arithmetic(_type))
    aten(f"{_name}.Scalar")(_arithmetic(_type))


@aten("rsub.Scalar")
def _rsub(write: Writer, x: Node, y: Any, alpha: Any) -> Any:
    if alpha != 1:
        raise Unknown("a factor")
    return _arithmetic("Sub")(write, y, x)


def _comparison(op_type: str) -> Any:
    def write_two(write: Writer, x: Node, y: Any) -> ir.Value:
        dtype = torch.result_type(torch.empty_like(meta(x), device="meta"), _stand_in(y))
        if dtype == torch.bool:
            raise Unknown("an order of truths")
        return write.op(op_type, [operand(write, x, dtype), operand(write, y, dtype)])

    return write_two


def _stand_in(argument: Any) -> Any:
    return torch.empty_like(meta(argument), device="meta") if isinstance(argument, Node) else argument


for _name, _type in COMPARISONS.items():
    aten(f"{_name}.Tensor")(_comparison(_type))
    aten(f"{_name}.Scalar")(_comparison(_type))


@aten("ne.Tensor", "ne.Scalar")
def _ne(write: Writer, x: Node, y: Any) -> ir.Value:
    return write.op("Not", [_comparison("Equal")(write, x, y)])


def _logical(op_type: str) -> Any:
    def write_two(write: Writer, x: Node, y: Node) -> ir.Value:
        if not all(isinstance(v, Node) and meta(v).dtype == torch.bool for v in (x, y)):
            raise Unknown("bits of numbers")
        return write.op(op_type, [write.of(x), write.of(y)])

    return write_two


for _name, _type in (("and", "And"), ("or", "Or")):
    aten(f"logical_{_name}.default", f"bitwise_{_name}.Tensor", f"__{_name}__.Tensor")(_logical(_type))


@aten("rsqrt.default")
def _rsqrt(write: Writer, x: Node) -> ir.Value:
    _float(x)
    return write.op("Reciprocal", [write.op("Sqrt", [write.of(x)])])


@aten("silu.default")
def _silu(write: Writer, x: Node) -> ir.Value:
    return write.op("Mul", [write.of(x), write.op("Sigmoid", [write.of(x)])])


@aten("gelu.default")
def _gelu(write: Writer, x: Node, approximate: str) -> ir.Value:
    return write.op("Gelu", [write.of(x)], {"approximate": approximate})


@aten("leaky_relu.default")
def _leaky(write: Writer, x: Node, slope: float) -> ir.Value:
    _float(x)
    return write.op("LeakyRelu", [write.of(x)], {"alpha": float(slope)})


@aten("hardtanh.default")
def _hardtanh(write: Writer, x: Node, low: float, high: float) -> ir.Value:
    dtype = meta(x).dtype
    return write.op("Clip", [write.of(x), write.constant(low, dtype), write.constant(high, dtype)])


@aten("relu6.default")
def _relu6(write: Writer, x: Node) -> ir.Value:
    return _hardtanh(write, x, 0, 6)


@aten("hardsigmoid.default")
def _hardsigmoid(write: Writer, x: Node) -> ir.Value:
    return write.op("HardSigmoid", [write.of(x)], {"alpha": 1 / 6, "beta": 0.5})


@aten("pow.Tensor_Scalar")
def _pow(write: Writer, x: Node, exponent: float) -> ir.Value:
    _float(x)
    return write.op("Pow", [write.of(x), write.constant(exponent, meta(x).dtype)])


@aten("where.self")
def _where(write: Writer, condition: Node, x: Node, y: Node) -> ir.Value:
    assert write.node is not None
    dtype = meta(write.node).dtype
    return write.op("Where", [write.of(condition), operand(write, x, dtype), operand(write, y, dtype)])


@aten("masked_fill.Scalar")
def _masked_fill(write: Writer, x: Node, mask: Node, number: float) -> ir.Value:
    return write.op("Where", [write.of(mask), write.constant(number, meta(x).dtype), write.of(x)])


@aten("softmax.int")
def _softmax(write: Writer, x: Node, axis: int, dtype: Any) -> ir.Value:
    have = meta(x).dtype
    want = have if dtype is None else dtype
    return write.op("Softmax", [write.cast(write.of(x), have, want)], {"axis": axis})


@aten("log_softmax.int")
def _log_softmax(write: Writer, x: Node, axis: int, dtype: Any) -> ir.Value:
    have = meta(x).dtype
    want = have if dtype is None else dtype
    return write.op("LogSoftmax", [write.cast(write.of(x), have, want)], {"axis": axis})


@aten("to.dtype")
def _to_dtype(write: Writer, x: Node, dtype: torch.dtype, _block: Any, _copy: Any, _format: Any) -> ir.Value:
    return _cast(write, x, dtype)


def _cast(write: Writer, x: Node, dtype: torch.dtype) -> ir.Value:
    if dtype not in DTYPES:
        raise Unknown(str(dtype))
    return write.cast(write.of(x), meta(x).dtype, dtype)


@aten("to.dtype_layout")
def _to_layout(write: Writer, x: Node, dtype: Any, *_: Any) -> ir.Value:
    return _cast(write, x, dtype or meta(x).dtype)


@aten("to.device")
def _to_device(write: Writer, x: Node, _device: Any, dtype: torch.dtype, *_: Any) -> ir.Value:
    return _cast(write, x, dtype)


@aten("_assert_tensor_metadata.default")
def _nothing(_write: Writer, *_: Any) -> None:
    """A check of torch's."""


@aten("cumsum.default")
def _cumsum(write: Writer, x: Node, axis: int, dtype: Any) -> ir.Value:
    want = dtype or (meta(x).dtype if meta(x).dtype.is_floating_point else torch.int64)
    return write.op("CumSum", [operand(write, x, want), write.constant(axis)])


@aten("_to_copy.default")
def _to_copy(write: Writer, x: Node, dtype: Any, *_: Any) -> ir.Value:
    return _cast(write, x, dtype or meta(x).dtype)


@aten("clone.default", "contiguous.default", "detach.default", "detach_.default", "alias.default", "lift_fresh_copy.default")
@aten("dropout.default", "feature_dropout.default")
def _same(write: Writer, x: Node, *rest: Any) -> Any:
    assert write.node is not None
    if "dropout" in str(write.node.target) and rest[0] and rest[1]:
        raise Unknown("dropout in training mode")
    return write.of(x)


def _reduction(op_type: str) -> Any:
    def write_one(write: Writer, x: Node, axes: Any, keep: bool, dtype: Any) -> ir.Value:
        have = meta(x).dtype
        if (dtype is not None and dtype != have) or not have.is_floating_point:
            raise Unknown("a reduction in another type")
        inputs = [write.of(x)] + ([write.constant(list(axes))] if axes else [])
        return write.op(op_type, inputs, {"keepdims": int(keep)})

    return write_one


aten("mean.dim")(_reduction("ReduceMean"))
aten("sum.dim_IntList")(_reduction("ReduceSum"))
