"""Sequences and optionals: Python lists, and None."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from graphprune.backends.torch_ops.registry import Result, lower, traceable

if TYPE_CHECKING:
    from graphprune.backends.torch_call import Call


@traceable
def construct(*items: Any) -> list[Any]:
    """Make a sequence."""
    return list(items)


@lower("SequenceConstruct")
def _construct(call: Call) -> Result:
    return call.emit(construct, *call.tensors())


@lower("SequenceEmpty")
def _empty(call: Call) -> Result:
    return call.emit(construct)


@traceable
def at(items: list[Any], index: Any) -> Any:
    """Return one item."""
    return items[index]


@lower("SequenceAt")
def _at(call: Call) -> Result:
    return call.emit(at, call.tensor(0), call.int_input(1))


@traceable
def insert(items: list[Any], item: Any, index: Any = None) -> list[Any]:
    """Return a sequence with one item more."""
    place = len(items) if index is None else index + len(items) if index < 0 else index
    return [*items[:place], item, *items[place:]]


@lower("SequenceInsert")
def _insert(call: Call) -> Result:
    return call.emit(insert, call.tensor(0), call.tensor(1), call.int_input(2) if call.has(2) else None)


@traceable
def erase(items: list[Any], index: Any = None) -> list[Any]:
    """Return a sequence with one item less."""
    place = (len(items) - 1 if index is None else index) % len(items)
    return [*items[:place], *items[place + 1 :]]


@lower("SequenceErase")
def _erase(call: Call) -> Result:
    return call.emit(erase, call.tensor(0), call.int_input(1) if call.has(1) else None)


@traceable
def length(items: list[Any]) -> torch.Tensor:
    """Count items."""
    return torch.tensor(len(items), dtype=torch.int64)


@lower("SequenceLength")
def _length(call: Call) -> Result:
    return call.emit(length, call.tensor(0))


@traceable
def join(items: list[torch.Tensor], axis: int, new: bool) -> torch.Tensor:
    """Concatenate a sequence, or stack it along a new axis."""
    return torch.stack(items, axis) if new else torch.cat(items, axis)


@lower("ConcatFromSequence")
def _join(call: Call) -> Result:
    return call.emit(join, call.tensor(0), int(call.attr("axis")), call.flag("new_axis"))


@traceable
def cut(x: torch.Tensor, sizes: Any, axis: int, keep: bool) -> list[torch.Tensor]:
    """Cut along an axis into a sequence: single steps, pieces of one size, or of sizes given."""
    if sizes is None:
        return [p if keep else p.squeeze(axis) for p in torch.split(x, 1, axis)]
    return list(torch.split(x, sizes if isinstance(sizes, int) else list(sizes), axis))


@lower("SplitToSequence")
def _cut(call: Call) -> Result:
    sizes: Any = None
    if call.has(1):
        sizes = call.int_input(1) if call.const_rank(1) == 0 else call.ints(1)
    return call.emit(cut, call.tensor(0), sizes, int(call.attr("axis", 0)), call.flag("keepdims", 1))


@traceable
def same(item: Any = None) -> Any:
    """Return what is given."""
    return item


@lower("Optional", "OptionalGetElement")
def _optional(call: Call) -> Result:
    return call.emit(same, *call.tensors())


@traceable
def has_element(item: Any = None) -> torch.Tensor:
    """Whether there is anything."""
    return torch.tensor(item is not None)


@lower("OptionalHasElement")
def _has_element(call: Call) -> Result:
    return call.emit(has_element, *([call.tensor(0)] if call.has(0) else []))
