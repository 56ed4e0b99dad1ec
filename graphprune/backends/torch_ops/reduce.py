"""Reductions and what runs along one axis: sums, extremes, positions of extremes, cumulative sums."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from graphprune.backends.torch_ops.registry import Result, lower, traceable

if TYPE_CHECKING:
    from graphprune.backends.torch_call import Call

Axes = tuple[int, ...] | None


def _axes(x: torch.Tensor, axes: Axes) -> list[int]:
    """Return the axes to reduce: all of them where none is given."""
    return [a % x.ndim for a in axes] if axes else list(range(x.ndim))


@traceable
def reduce_sum(x: torch.Tensor, axes: Axes, keep: bool) -> torch.Tensor:
    """Add up."""
    return torch.sum(x, _axes(x, axes), keepdim=keep, dtype=x.dtype) if x.ndim else x


@traceable
def reduce_mean(x: torch.Tensor, axes: Axes, keep: bool) -> torch.Tensor:
    """Average; integers are divided towards zero."""
    if not x.ndim:
        return x
    if x.is_floating_point():
        return torch.mean(x, _axes(x, axes), keepdim=keep)
    count = x.numel() // max(reduce_sum(x, axes, False).numel(), 1)
    return torch.div(reduce_sum(x, axes, keep), count, rounding_mode="trunc")


@traceable
def reduce_max(x: torch.Tensor, axes: Axes, keep: bool) -> torch.Tensor:
    """Largest element; of none, the smallest number there is."""
    return _extreme(torch.amax, x, axes, keep, largest=True)


@traceable
def reduce_min(x: torch.Tensor, axes: Axes, keep: bool) -> torch.Tensor:
    """Smallest element; of none, the largest number there is."""
    return _extreme(torch.amin, x, axes, keep, largest=False)


def _extreme(function: Callable[..., Any], x: torch.Tensor, axes: Axes, keep: bool, *, largest: bool) -> torch.Tensor:
    if not x.ndim:
        return x
    dims = _axes(x, axes)
    if any(x.shape[d] == 0 for d in dims):
        if x.is_floating_point():
            fill: Any = float("-inf" if largest else "inf")
        elif x.dtype == torch.bool:
            fill = not largest
        else:
            fill = torch.iinfo(x.dtype).min if largest else torch.iinfo(x.dtype).max
        shape = [1 if d in dims else s for d, s in enumerate(x.shape) if keep or d not in dims]
        return x.new_full(shape, fill)
    return torch.as_tensor(function(x, dims, keepdim=keep))


@traceable
def reduce_prod(x: torch.Tensor, axes: Axes, keep: bool) -> torch.Tensor:
    """Multiply."""
    if not x.ndim:
        return x
    for axis in sorted(_axes(x, axes), reverse=True):
        x = torch.prod(x, axis, keepdim=keep, dtype=x.dtype)
    return x


@traceable
def reduce_l1(x: torch.Tensor, axes: Axes, keep: bool) -> torch.Tensor:
    """Sum of absolute values."""
    return reduce_sum(x.abs(), axes, keep)


@traceable
def reduce_l2(x: torch.Tensor, axes: Axes, keep: bool) -> torch.Tensor:
    """Root of the sum of squares."""
    if not x.is_floating_point():
        return torch.sqrt(reduce_sum(x.double().square(), axes, keep)).to(x.dtype)
    return torch.linalg.vector_norm(x, 2, _axes(x, axes), keepdim=keep) if x.ndim else x.abs()


@traceable
def reduce_sum_square(x: torch.Tensor, axes: Axes, keep: bool) -> torch.Tensor:
    """Sum of squares."""
    return reduce_sum(x.square(), axes, keep)


@traceable
def reduce_log_sum(x: torch.Tensor, axes: Axes, keep: bool) -> torch.Tensor:
    """Logarithm of the sum."""
    return torch.log(reduce_sum(x, axes, keep))


@traceable
def reduce_log_sum_exp(x: torch.Tensor, axes: Axes, keep: bool) -> torch.Tensor:
    """Logarithm of the sum of exponentials."""
    return torch.logsumexp(x, _axes(x, axes), keepdim=keep) if x.ndim else x


@traceable
def reduce_or_not(x: torch.Tensor, axes: Axes, keep: bool, kind: str) -> torch.Tensor:
    """Reduce along axes known at run time; along none, leave every element by itself."""
    return _REDUCTIONS[kind](x, axes, keep) if axes else unreduced(x, kind)


def _reduce(function: Callable[..., Any], call: Call) -> Result:
    axes = call.ints(1) if call.has(1) else call.attr("axes")
    if axes is not None and not isinstance(axes, tuple) and call.flag("noop_with_empty_axes"):
        return call.emit(reduce_or_not, call.tensor(0), axes, call.flag("keepdims", 1), call.op)
    if not axes and call.flag("noop_with_empty_axes"):
        # The step before the reduction still happens, which is the same over axes of one.
        return call.emit(unreduced, call.tensor(0), call.op)
    keep = call.flag("keepdims", 1)
    if function is reduce_mean and isinstance(axes, tuple) and axes and call.is_float(0):
        return call.emit(torch.mean, call.tensor(0), axes, keepdim=keep)
    return call.emit(function, call.tensor(0), axes, keep)


@traceable
def unreduced(x: torch.Tensor, kind: str) -> torch.Tensor:
    """Reduce every element by itself."""
    if kind in ("ReduceSumSquare",):
        return x.square()
    if kind in ("ReduceL1", "ReduceL2"):
        return x.abs()
    return torch.log(x) if kind == "ReduceLogSum" else x


_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "ReduceSum": reduce_sum, "ReduceMean": reduce_mean, "ReduceMax": reduce_max, "ReduceMin": reduce_min,
    "ReduceProd": reduce_prod, "ReduceL1": reduce_l1, "ReduceL2": reduce_l2, "ReduceSumSquare": reduce_sum_square,
    "ReduceLogSum": reduce_log_sum, "ReduceLogSumExp": reduce_log_sum_exp,
}  # fmt: skip
for _name, _function in _REDUCTIONS.items():
    lower(_name)(functools.partial(_reduce, _function))


@traceable
def arg_extreme(x: torch.Tensor, axis: int, keep: bool, last: bool, largest: bool) -> torch.Tensor:
    """Position of the largest or smallest element; of equals, the first or the last."""
    if last:
        x = x.flip(axis)
    # torch promises no order among equals; the maximum of ranks does.
    best = x.amax(axis, keepdim=True) if largest else x.amin(axis, keepdim=True)
    size = x.shape[axis]
    ranks = torch.arange(size, 0, -1, device=x.device).reshape([-1] + [1] * (x.ndim - 1 - axis % x.ndim))
    index = size - (ranks * (x == best)).amax(axis, keepdim=True)
    index = size - 1 - index if last else index
    return index if keep else index.squeeze(axis)


@lower("ArgMax", "ArgMin")
def _arg(call: Call) -> Result:
    return call.emit(
        arg_extreme, call.tensor(0), int(call.attr("axis", 0)), call.flag("keepdims", 1),
        call.flag("select_last_index"), call.op == "ArgMax",
    )  # fmt: skip


@traceable
def cumulate(x: torch.Tensor, axis: int, exclusive: bool, reverse: bool, product: bool) -> torch.Tensor:
    """Running sum or product along an axis."""
    x = x.flip(axis) if reverse else x
    y = torch.cumprod(x, axis, dtype=x.dtype) if product else torch.cumsum(x, axis, dtype=x.dtype)
    if exclusive:
        first = torch.full_like(y.narrow(axis, 0, 1), 1 if product else 0)
        y = torch.cat((first, y.narrow(axis, 0, y.shape[axis] - 1)), axis)
    return y.flip(axis) if reverse else y


@lower("CumSum", "CumProd")
def _cumulate(call: Call) -> Result:
    return call.emit(
        cumulate, call.tensor(0), call.int_input(1), call.flag("exclusive"), call.flag("reverse"), call.op == "CumProd"
    )
