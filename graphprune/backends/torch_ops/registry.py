"""The table from ONNX operators to torch: who lowers what, and what a lowering sees of its node."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import fx

if TYPE_CHECKING:
    from graphprune.backends.torch_call import Call

#: What a lowering returns: the fx node of the first output, or a list with one entry per output.
Result = Any
Lowering = Callable[["Call"], Result]

LOWERINGS: dict[str, Lowering] = {}
"""``Op`` or ``domain::Op`` -> its lowering."""

_F = TypeVar("_F", bound=Callable[..., Any])


def lower(*names: str) -> Callable[[Lowering], Lowering]:
    """Register the decorated lowering for operators, written ``Op`` or ``domain::Op``."""

    def register(lowering: Lowering) -> Lowering:
        for name in names:
            if name in LOWERINGS:
                raise ValueError(f"two lowerings of {name}")
            LOWERINGS[name] = lowering
        return lowering

    return register


def unary(table: dict[str, Callable[..., Any]]) -> None:
    """Register operators of one tensor and no attribute that are one torch function."""
    for name, function in table.items():
        lower(name)(functools.partial(_unary, function))


def _unary(function: Callable[..., Any], call: Call) -> Result:
    return call.emit(function, call.tensor(0))


def traceable(function: _F) -> _F:
    """Keep a function of torch values one node when its graph is traced once more by ``torch.fx``."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        for arg in args:
            if isinstance(arg, fx.Proxy):
                return arg.tracer.create_proxy("call_function", wrapper, args, kwargs)
        return function(*args, **kwargs)

    return wrapper  # type: ignore[return-value]


@traceable
def cast(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Convert the element type."""
    return x.to(dtype)


@traceable
def reinterpret(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Read the same bits as another element type."""
    return x.view(dtype)
