"""Whole numbers that know which attributes they were computed from.

While a module runs, every ``int`` that it keeps stands as a `Size`: an ``int`` like any other, which carries its origin
through arithmetic. Where it is handed to torch, or compared, the value that the attribute must have after the cut can
be put in its place.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Protocol


class Formula:
    """How a number follows from attributes.

    Parameters
    ----------
    function
        Of the values of ``parts``; for an attribute itself, ``slot`` is its number instead.
    """

    __slots__ = ("function", "origins", "parts", "slot")

    def __init__(self, function: Callable[..., Any] | None, parts: Sequence[Any], slot: int = -1) -> None:
        self.function, self.parts, self.slot = function, tuple(parts), slot
        self.origins: frozenset[int] = (
            frozenset((slot,))
            if function is None
            else frozenset().union(*(part.origins for part in self.parts if isinstance(part, Formula)))
        )

    def value(self, values: Sequence[int]) -> Any:
        """The number, for these values of all attributes."""
        if self.function is None:
            return values[self.slot]
        return self.function(*(part.value(values) if isinstance(part, Formula) else part for part in self.parts))


class Board(Protocol):
    """What sizes ask when they are compared."""

    def compared(self, function: Callable[[Any, Any], bool], left: Any, right: Any) -> bool:
        """Whether a comparison holds; ``left`` and ``right`` are formulas or plain numbers."""
        ...

    def lost(self, formula: Formula) -> None:
        """A number went into one that is not whole: a scale, whose value the cut must not change."""
        ...


class Size(int):
    """A whole number with its origin."""

    formula: Formula
    board: Board

    @classmethod
    def of(cls, value: int, formula: Formula, board: Board) -> Size:
        """A number of this value and origin."""
        size = cls(value)
        size.formula, size.board = formula, board
        return size

    def __hash__(self) -> int:
        return int.__hash__(self)

    def __copy__(self) -> Size:
        return self

    def __deepcopy__(self, memo: Any) -> Size:
        return self

    def __reduce__(self) -> Any:
        return int, (int(self),)

    def __float__(self) -> float:
        self.board.lost(self.formula)
        return int.__float__(self)

    def __round__(self, digits: Any = None) -> Any:
        return self if digits is None else int.__round__(self, digits)


def _follow(function: Callable[..., Any], reflected: bool) -> Callable[[Size, Any], Any]:
    def method(self: Size, other: Any) -> Any:
        if not isinstance(other, int):
            if isinstance(other, float):
                self.board.lost(self.formula)
                return function(other, int(self)) if reflected else function(int(self), other)
            return NotImplemented
        a, b = (other, self) if reflected else (self, other)
        result = function(int(a), int(b))
        if type(result) is not int:
            for x in (a, b):
                if isinstance(x, Size):
                    self.board.lost(x.formula)
            return result
        parts = [x.formula if isinstance(x, Size) else int(x) for x in (a, b)]
        return Size.of(result, Formula(function, parts), self.board)

    return method


def _follow_one(function: Callable[[Any], Any]) -> Callable[[Size], Any]:
    def method(self: Size) -> Any:
        return Size.of(function(int(self)), Formula(function, [self.formula]), self.board)

    return method


def _compare(function: Callable[[Any, Any], bool]) -> Callable[[Size, Any], Any]:
    def method(self: Size, other: Any) -> Any:
        if not isinstance(other, int):
            return function(int(self), other) if isinstance(other, float) else NotImplemented
        right = other.formula if isinstance(other, Size) else int(other)
        return self.board.compared(function, self.formula, right)

    return method


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    setattr(Size, f"__{_name}__", _follow(getattr(operator, _name), reflected=False))
    setattr(Size, f"__r{_name}__", _follow(getattr(operator, _name), reflected=True))
for _name in ("neg", "pos", "abs"):
    setattr(Size, f"__{_name}__", _follow_one(getattr(operator, _name)))
for _name in ("floor", "ceil", "trunc"):
    setattr(Size, f"__{_name}__", _follow_one(getattr(math, _name)))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Size, f"__{_name}__", _compare(getattr(operator, _name)))
# Defining comparisons takes the hash away from a class that is built in one go; here it stays, and must equal int's.


class KeptScale(int):
    """A size after a cut, of which the code also computes a scale: there it is what it was before.

    ``x.view(b, t, heads, self.head_dim) / math.sqrt(self.head_dim)`` needs the new size in one place and the old one in
    the other. As a whole number it is new; where it becomes a floating-point number it is old.
    """

    scale: int

    def __new__(cls, value: int, scale: int) -> KeptScale:
        self = super().__new__(cls, value)
        self.scale = scale
        return self

    def __float__(self) -> float:
        return float(self.scale)

    def __pow__(self, other: Any, mod: Any = None) -> Any:
        if isinstance(other, float) or (isinstance(other, int) and other < 0):
            return self.scale**other
        return int.__pow__(int(self), other) if mod is None else int.__pow__(int(self), other, mod)

    def __truediv__(self, other: Any) -> Any:
        return self.scale / other if isinstance(other, (int, float)) else NotImplemented

    def __rtruediv__(self, other: Any) -> Any:
        return other / self.scale if isinstance(other, (int, float)) else NotImplemented

    def __mul__(self, other: Any) -> Any:
        return self.scale * other if isinstance(other, float) else int.__mul__(self, other)

    __rmul__ = __mul__

    def __reduce__(self) -> Any:
        return KeptScale, (int(self), self.scale)


def contains(value: Any) -> bool:
    """Whether an argument of a call holds a `Size`, in tuples, lists, dicts and slices too."""
    if isinstance(value, Size):
        return True
    if isinstance(value, (tuple, list)):
        return any(map(contains, value))
    if type(value) is slice:
        return contains((value.start, value.stop, value.step))
    if type(value) is dict:
        return any(map(contains, value.values()))
    return False


def origins(value: Any) -> frozenset[int]:
    """Numbers of the attributes that an argument was computed from."""
    if isinstance(value, Size):
        return value.formula.origins
    if isinstance(value, (tuple, list)):
        return frozenset().union(*map(origins, value))
    if type(value) is slice:
        return origins((value.start, value.stop, value.step))
    if type(value) is dict:
        return frozenset().union(*map(origins, value.values()))
    return frozenset()


def plain(value: Any, values: Sequence[int]) -> Any:
    """An argument with plain numbers, as they are for these values of all attributes."""
    if isinstance(value, Size):
        return int(value.formula.value(values))
    if isinstance(value, (tuple, list)):
        if not contains(value):
            return value
        items = [plain(item, values) for item in value]
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*items)
        return type(value)(items)
    if type(value) is slice:
        return slice(*(plain(part, values) for part in (value.start, value.stop, value.step)))
    if type(value) is dict:
        return {key: plain(item, values) for key, item in value.items()}
    return value
