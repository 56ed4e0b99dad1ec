"""Shape arithmetic on Python integers.

Sizes of tensors, and what a model computes from them, are an int or a tuple of ints at run time instead of small
tensors: faster by an order of magnitude, and they stay symbolic under ``torch.compile``. A value of rank 0 is an
int or a bool, one of rank 1 a tuple.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from graphprune.backends.torch_ops.registry import traceable

if TYPE_CHECKING:
    from graphprune.backends.torch_call import Call

#: An int, a bool, or a tuple of them.
Host = Any
#: Function, its arguments, rank of the result and its length where known; None where integers cannot do it.
Rule = Callable[["Call"], "tuple[Any, ...] | None"]

HOST: dict[str, Rule] = {}


def literal(array: np.ndarray[Any, Any]) -> Host:
    """Return an integer array of rank 0 or 1 as a host value."""
    return array.item() if array.ndim == 0 else tuple(array.tolist())


# -- functions that stand in graphs ------------------------------------------------------------------------


@traceable
def to_tensor(value: Host, dtype: torch.dtype, like: torch.Tensor | None = None) -> torch.Tensor:
    """Make a host value a tensor on the device of ``like``."""
    if like is None or like.device.type == "cpu":
        return torch.tensor(value, dtype=dtype)
    return torch.tensor(value, dtype=dtype, device=like.device)


@traceable
def to_host(tensor: torch.Tensor) -> Host:
    """Read a tensor of rank 0 or 1 as a host value; of higher rank, its elements in order."""
    value = tensor.tolist()
    if isinstance(value, list):
        return tuple(value if tensor.ndim == 1 else tensor.reshape(-1).tolist())
    return value


@traceable
def shape(x: torch.Tensor, start: int = 0, end: int | None = None) -> Host:
    """Return the sizes of a tensor (or a part of them)."""
    return tuple(x.shape)[start:end]


@traceable
def shape_of_host(value: Host, start: int = 0, end: int | None = None) -> Host:
    """Return the shape of a host value."""
    return ((len(value),) if isinstance(value, tuple) else ())[start:end]


@traceable
def size_of_host(value: Host) -> Host:
    """Return the number of elements of a host value."""
    return len(value) if isinstance(value, tuple) else 1


@traceable
def size(x: torch.Tensor) -> Host:
    """Return the number of elements of a tensor."""
    return x.numel()


def _broadcast(function: Callable[[Any, Any], Any], a: Host, b: Host) -> Host:
    if isinstance(a, tuple):
        if isinstance(b, tuple):
            a, b = (a * len(b) if len(a) == 1 else a), (b * len(a) if len(b) == 1 else b)
            return tuple(function(x, y) for x, y in zip(a, b, strict=True))
        return tuple(function(x, b) for x in a)
    if isinstance(b, tuple):
        return tuple(function(a, y) for y in b)
    return function(a, b)


def _pairwise(name: str, function: Callable[[Any, Any], Any]) -> Callable[[Host, Host], Host]:
    """A function of two host values, element by element, which graphs call by its name here."""

    def apply(a: Host, b: Host) -> Host:
        return _broadcast(function, a, b)

    apply.__name__ = apply.__qualname__ = name
    return traceable(apply)


def _div(a: Any, b: Any) -> Any:
    """Divide with truncation towards zero, as C does."""
    return a // b if (a >= 0) == (b > 0) else -((-a) // b)


add = _pairwise("add", operator.add)
sub = _pairwise("sub", operator.sub)
mul = _pairwise("mul", operator.mul)
div = _pairwise("div", _div)
mod = _pairwise("mod", operator.mod)  # with the sign of the divisor
fmod = _pairwise("fmod", lambda x, y: x - _div(x, y) * y)  # with the sign of the dividend
equal = _pairwise("equal", operator.eq)
less = _pairwise("less", operator.lt)
less_equal = _pairwise("less_equal", operator.le)
maximum = _pairwise("maximum", max)
minimum = _pairwise("minimum", min)


def _each(function: Callable[[Any], Any], a: Host) -> Host:
    return tuple(function(x) for x in a) if isinstance(a, tuple) else function(a)


@traceable
def negative(a: Host) -> Host:
    """Negate."""
    return _each(operator.neg, a)


@traceable
def logical_not(a: Host) -> Host:
    """Negate a truth value."""
    return _each(operator.not_, a)


@traceable
def as_bool(a: Host) -> Host:
    """Convert to truth values."""
    return _each(bool, a)


@traceable
def as_int(a: Host) -> Host:
    """Convert truth values to 0 and 1."""
    return _each(lambda x: int(x) if isinstance(x, bool) else x, a)


@traceable
def where(condition: Host, a: Host, b: Host) -> Host:
    """Choose by a truth value."""
    pairs = _broadcast(lambda x, y: (x, y), a, b)
    if isinstance(pairs, tuple) and not (isinstance(a, tuple) or isinstance(b, tuple)):
        return _each(lambda c: a if c else b, condition)
    return _broadcast(lambda c, pair: pair[0] if c else pair[1], condition, pairs)


@traceable
def gather(data: Host, index: Host) -> Host:
    """Take elements; negative indices count from the end."""
    return _each(lambda i: data[i], index)


@traceable
def slice_(data: Host, start: Host, end: Host, step: Host = 1) -> Host:
    """Slice a tuple, clamping as ONNX does."""
    start, end, step = (v[0] if isinstance(v, tuple) else v for v in (start, end, step))
    if step < 0 and end < -len(data):
        return data[start::step]
    return data[start:end:step]


@traceable
def concat(*parts: Host) -> Host:
    """Join tuples."""
    return tuple(item for part in parts for item in part)


@traceable
def as_tuple(a: Host) -> Host:
    """Make an int a tuple of one."""
    return a if isinstance(a, tuple) else (a,)


@traceable
def as_scalar(a: Host) -> Host:
    """Make a tuple of one an int."""
    return a[0] if isinstance(a, tuple) else a


@traceable
def split(data: Host, sizes: tuple[int, ...]) -> Host:
    """Cut a tuple into pieces."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(data[start : start + length] for start, length in zip(starts, sizes, strict=True))


def _reducer(name: str, function: Callable[[Any], Any]) -> Callable[[Host, bool], Host]:
    """A function of all elements of a host value, which graphs call by its name here."""

    def apply(a: Host, keep: bool) -> Host:
        result = function(as_tuple(a))
        return (result,) if keep else result

    apply.__name__ = apply.__qualname__ = name
    return traceable(apply)


product = _reducer("product", math.prod)
total = _reducer("total", sum)
largest = _reducer("largest", max)
smallest = _reducer("smallest", min)


@traceable
def repeat(value: Host, count: Host) -> Host:
    """Repeat one value, or a tuple of one, to a length."""
    return as_tuple(value) * as_scalar(count)


# -- rules -------------------------------------------------------------------------------------------------


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        HOST.update(dict.fromkeys(names, rule))
        return rule

    return register


def _binary(function: Callable[..., Any]) -> Rule:
    def rule(call: Call) -> Any:
        if call.inputs != 2:
            return None
        rank = max(call.host_rank(0), call.host_rank(1))
        known = [n for i in (0, 1) if call.host_rank(i) and (n := call.host_length(i)) is not None]
        length = max(known) if len(known) == call.host_rank(0) + call.host_rank(1) and known else None
        return function, (call.host(0), call.host(1)), rank, length

    return rule


def _swapped(function: Callable[..., Any]) -> Rule:
    def rule(call: Call) -> Any:
        return function, (call.host(1), call.host(0)), max(call.host_rank(0), call.host_rank(1))

    return rule


def _unary(function: Callable[..., Any]) -> Rule:
    return lambda call: (function, (call.host(0),), call.host_rank(0))


for _name, _function in {
    "Add": add,
    "Sub": sub,
    "Mul": mul,
    "Div": div,
    "Equal": equal,
    "Less": less,
    "LessOrEqual": less_equal,
    "Max": maximum,
    "Min": minimum,
}.items():
    HOST[_name] = _binary(_function)
HOST["Greater"], HOST["GreaterOrEqual"] = _swapped(less), _swapped(less_equal)
HOST["Neg"], HOST["Not"] = _unary(negative), _unary(logical_not)


@_rule("Mod")
def _mod(call: Call) -> Any:
    function = fmod if call.attr("fmod", 0) else mod
    return function, (call.host(0), call.host(1)), max(call.host_rank(0), call.host_rank(1))


@_rule("Where")
def _where(call: Call) -> Any:
    return where, tuple(call.host(i) for i in range(3)), max(call.host_rank(i) for i in range(3))


@_rule("Cast")
def _cast(call: Call) -> Any:
    to = call.attr("to")
    if to not in (6, 7, 9):  # int32, int64, bool
        return None
    return (as_bool if to == 9 else as_int), (call.host(0),), call.host_rank(0)


@_rule("Identity")
def _identity(call: Call) -> Any:
    return as_int, (call.host(0),), call.host_rank(0)


@_rule("Gather")
def _gather(call: Call) -> Any:
    if call.host_rank(0) != 1:
        return None
    return gather, (call.host(0), call.host(1)), call.host_rank(1), call.host_length(1)


@_rule("Slice")
def _slice(call: Call) -> Any:
    if call.host_rank(0) != 1:
        return None
    if call.inputs == 1:
        starts, ends = call.attr("starts"), call.attr("ends")
        return (slice_, (call.host(0), int(starts[0]), int(ends[0])), 1) if len(starts) == 1 else None
    step = call.host(4) if call.has(4) else 1
    return slice_, (call.host(0), call.host(1), call.host(2), step), 1


@_rule("Concat")
def _concat(call: Call) -> Any:
    if any(call.host_rank(i) != 1 for i in range(call.inputs)):
        return None
    lengths = [call.host_length(i) for i in range(call.inputs)]
    length = None if None in lengths else sum(n for n in lengths if n is not None)
    return concat, tuple(call.host(i) for i in range(call.inputs)), 1, length


@_rule("Unsqueeze")
def _unsqueeze(call: Call) -> Any:
    axes = call.const_ints(1, "axes")
    if call.host_rank(0) != 0 or axes is None or len(axes) != 1:
        return None
    return as_tuple, (call.host(0),), 1, 1


@_rule("Squeeze")
def _squeeze(call: Call) -> Any:
    return as_scalar, (call.host(0),), 0


@_rule("Reshape")
def _reshape(call: Call) -> Any:
    target = call.const_ints(1, "shape")
    if target is None or len(target) > 1:
        return None
    length = call.host_length(0) if call.host_rank(0) else 1
    return (as_tuple, (call.host(0),), 1, length) if target else (as_scalar, (call.host(0),), 0)


@_rule("ConstantOfShape")
def _constant_of_shape(call: Call) -> Any:
    value = call.attr("value")
    array = np.zeros(1) if value is None else value.numpy()
    if call.host_length(0) != 1 or array.dtype not in (np.int64, np.int32, np.bool_):
        return None
    return repeat, (array.reshape(-1)[0].item(), call.host(0)), 1


def _reducing(function: Callable[..., Any]) -> Rule:
    def rule(call: Call) -> Any:
        if call.host_rank(0) != 1 or call.attr("noop_with_empty_axes", 0):
            return None
        return (function, (call.host(0), bool(call.attr("keepdims", 1))), 1 if call.attr("keepdims", 1) else 0)

    return rule


for _name, _reduction in {
    "ReduceProd": product,
    "ReduceSum": total,
    "ReduceMax": largest,
    "ReduceMin": smallest,
}.items():
    HOST[_name] = _reducing(_reduction)
