"""Functions that remember what they gave (``functools.lru_cache``) compute anew where a size carries its origin."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from graphprune.backends.inplace.sizes import contains

_REMEMBERING = type(functools.lru_cache(lambda: None))
#: An owner of a name, the name, and the function that remembers.
Memory = tuple[Any, str, Any]


def memories(module: torch.nn.Module) -> list[Memory]:
    """Functions that remember, by the names under which code finds them: globals of all modules, methods of the layers."""
    owners: dict[int, Any] = {id(one): one for one in list(sys.modules.values()) if isinstance(one, type(sys))}
    for layer in module.modules():
        owners.update((id(one), one) for one in type(layer).__mro__)
    return [
        (owner, name, value)
        for owner in owners.values()
        for name, value in list(vars(owner).items())
        if type(value) is _REMEMBERING
    ]


@contextmanager
def forgetful(found: Sequence[Memory]) -> Iterator[None]:
    """For the time being, they neither remember sizes nor are asked for what they gave for an equal number of another origin."""
    try:
        for owner, name, value in found:
            setattr(owner, name, _anew(value))
        yield
    finally:
        for owner, name, value in found:
            setattr(owner, name, value)


def _anew(function: Any) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return (function.__wrapped__ if contains(args) or contains(kwargs) else function)(*args, **kwargs)

    for name in ("cache_info", "cache_clear", "cache_parameters"):
        setattr(call, name, getattr(function, name))
    return call
