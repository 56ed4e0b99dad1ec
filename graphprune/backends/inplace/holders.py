"""Where modules keep whole numbers: attributes, tuples, lists and dicts, and configuration objects.

A configuration is often one object that all layers hold. Each module's view of it is a place of its own, so that one
layer may need another value than the next; afterwards modules that need the same share one copy again.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from graphprune.backends.inplace.sizes import KeptScale

Path = tuple[Any, ...]
#: Attributes that ``nn.Module`` itself keeps.
_OWN = frozenset(vars(torch.nn.Module()))
_DEPTH = 5
#: Entries of a list up to which it is looked through.
_LONGEST = 4096
_SKIPPED = (
    torch.nn.Module, torch.Tensor, torch.dtype, torch.device, torch.Generator, type, types.ModuleType,
    types.FunctionType, types.MethodType, types.BuiltinFunctionType, str, bytes, enum.Enum,
)  # fmt: skip


@dataclass(frozen=True)
class Slot:
    """One whole number that a module keeps.

    Attributes
    ----------
    module
        Name of the module, ``""`` for the whole.
    path
        Attribute name, then keys, positions and attribute names down to the number.
    value
        As it is before the cut.
    holder
        The innermost object that it lies in, and the rest of the path from there: shared objects are known by it.
    scale
        What scales are computed from it with: its value before any cut.
    """

    module: str
    path: Path
    value: int
    holder: tuple[int, Path]
    scale: int = 0

    def __str__(self) -> str:
        return ".".join(str(part) for part in (*([self.module] if self.module else ()), *self.path))


def slots(module: torch.nn.Module) -> list[Slot]:
    """All whole numbers that a module and its submodules keep."""
    found: list[Slot] = []
    for name, one in module.named_modules():

        def note(path: Path, value: int, holder: tuple[int, Path], name: str = name) -> int:
            found.append(Slot(name, path, int(value), holder, getattr(value, "scale", int(value))))
            return value

        _View(one, note).values()
    return found


def install(module: torch.nn.Module, replace: Callable[[str, Path, int], int]) -> list[tuple[dict[str, Any], str, Any]]:
    """Put other numbers in the places of `slots`; shared objects are copied for every module that holds them.

    Returns
    -------
    list
        (attributes of a module, name, value before), for :func:`put_back`.
    """
    undo = []
    for name, one in module.named_modules():

        def change(path: Path, value: int, _holder: tuple[int, Path], name: str = name) -> int:
            return replace(name, path, value)

        new = _View(one, change).values()
        for key, value in new.items():
            undo.append((vars(one), key, vars(one)[key]))
            vars(one)[key] = value
    return undo


def put_back(undo: list[tuple[dict[str, Any], str, Any]]) -> None:
    """Undo :func:`install` or :func:`write`."""
    for attributes, key, value in reversed(undo):
        attributes[key] = value


def write(
    module: torch.nn.Module, values: Mapping[tuple[str, Path], int]
) -> list[tuple[dict[str, Any], str, Any]]:
    """Write new numbers for good. Modules that held one object and need the same of it hold one copy afterwards.

    The objects themselves stay as they were: another module, made from the same configuration, may hold them.
    """
    undo = []
    copies: dict[Any, Any] = {}
    for name, one in module.named_modules():
        mine = {path: new for (owner, path), new in values.items() if owner == name}
        if not mine:
            continue

        def change(path: Path, value: int, _holder: tuple[int, Path], mine: dict[Path, int] = mine) -> int:
            return mine.get(path, value)

        for key, value in _View(one, change, copies).values().items():
            undo.append((vars(one), key, vars(one)[key]))
            vars(one)[key] = value
    return undo


@dataclass
class _View:
    """One module's numbers, and what it holds once they are replaced."""

    module: torch.nn.Module
    replace: Callable[[Path, int, tuple[int, Path]], int]
    #: (object, what it becomes) -> the copy that stands for it, over all modules.
    copies: dict[Any, Any] | None = None
    _active: set[int] = field(default_factory=set)
    _seen: dict[int, Any] = field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """Attribute name -> new value, of attributes that change."""
        out = {}
        for key, value in list(vars(self.module).items()):
            if key in _OWN:
                continue
            new = self._visit(value, (key,), (id(self.module), (key,)), 0)
            if new is not value:
                out[key] = new
        return out

    def _visit(self, value: Any, path: Path, holder: tuple[int, Path], depth: int) -> Any:
        if type(value) in (int, KeptScale):
            new = self.replace(path, value, holder)
            return value if type(new) in (int, KeptScale) and new == value else new
        if depth > _DEPTH or value is None or isinstance(value, (bool, float, *_SKIPPED)):
            return value
        if isinstance(value, (tuple, list)):
            if len(value) > _LONGEST:
                return value
            items = [self._visit(v, (*path, i), (holder[0], (*holder[1], i)), depth + 1) for i, v in enumerate(value)]
            if all(a is b for a, b in zip(items, value, strict=True)):
                return value
            if isinstance(value, tuple) and hasattr(value, "_fields"):
                return type(value)(*items)
            if type(value) in (tuple, list, torch.Size):
                return type(value)(items)
            return value
        if type(value) is dict:
            if _is_numbering(value):
                return value
            entries = {k: self._visit(v, (*path, k), (holder[0], (*holder[1], k)), depth + 1) for k, v in value.items()}
            return value if all(entries[k] is v for k, v in value.items()) else entries
        return self._object(value, path, depth)

    def _object(self, value: Any, path: Path, depth: int) -> Any:
        attributes = getattr(value, "__dict__", None)
        if type(attributes) is not dict or type(value).__module__.split(".")[0] in ("torch", "builtins", "logging"):
            return value
        if id(value) in self._seen:
            return self._seen[id(value)]
        if id(value) in self._active:
            return value
        self._active.add(id(value))
        changed = {}
        for key, item in list(attributes.items()):
            new = self._visit(item, (*path, key), (id(value), (key,)), depth + 1)
            if new is not item:
                changed[key] = new
        self._active.discard(id(value))
        result = value
        if changed:
            known = None if self.copies is None else (id(value), _frozen(changed))
            if known is not None and self.copies is not None and known in self.copies:
                result = self.copies[known][1]
            else:
                result = _copy(value, changed)
                if known is not None and self.copies is not None:
                    self.copies[known] = (value, result)
        self._seen[id(value)] = result
        return result


def _is_numbering(held: dict[Any, Any]) -> bool:
    """Whether a dict numbers its keys from 0, as labels and tokens are: none of it is a size."""
    return all(type(value) is int and value == number for number, value in enumerate(held.values()))


def _frozen(changed: Mapping[str, Any]) -> Any:
    """What tells two sets of changes apart."""
    return tuple((key, type(value).__name__, repr(value) if isinstance(value, (int, tuple, list, dict)) else id(value))
                 for key, value in sorted(changed.items()))  # fmt: skip


def _copy(value: Any, changed: Mapping[str, Any]) -> Any:
    """A shallow copy with other attributes, past any check that its class makes on setting them."""
    try:
        kind: Any = type(value)
        new = kind.__new__(kind)
        new.__dict__.update(value.__dict__)
        new.__dict__.update(changed)
    except Exception:  # a class of the user's that cannot be made so keeps its numbers
        return value
    return new
