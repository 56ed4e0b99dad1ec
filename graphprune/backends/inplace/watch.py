"""Running a module while its whole numbers carry their origin: what happened, and what must happen after the cut."""

from __future__ import annotations

import itertools
import sys
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from graphprune.backends.inplace.expect import Expected, Line, Shape
from graphprune.backends.inplace.holders import Slot
from graphprune.backends.inplace.sizes import Formula, Size, contains, origins, plain

_TORCH = str(Path(torch.__file__).parent)
_HERE = str(Path(__file__).parents[2])
#: Ways to change the attributes of one call that are tried.
_MOST_WAYS = 200


@dataclass(frozen=True)
class Event:
    """One call or comparison that a size took part in, in the source."""

    what: str
    modules: tuple[str, ...] = ()
    lines: frozenset[Line] = frozenset()
    shapes: tuple[Shape, ...] = ()
    result: bool = False
    origins: frozenset[int] = frozenset()


class Stuck(Exception):
    """No values of the attributes make a call give what the cut graph expects."""

    def __init__(self, text: str, line: Line | None) -> None:
        super().__init__(text)
        self.line = line


def is_users(name: str) -> bool:
    """Whether a file is neither torch's nor graphprune's."""
    return not name.startswith((_TORCH, _HERE, "<"))


def user_lines(start: Any) -> Iterator[Line]:
    """Lines of the stack that are neither torch's nor graphprune's, innermost first."""
    frame = start
    while frame is not None:
        name = frame.f_code.co_filename
        if is_users(name):
            yield name, frame.f_lineno
        frame = frame.f_back


def shapes_of(result: Any) -> tuple[Shape, ...]:
    """Shapes of the tensors that a call gave."""
    if isinstance(result, torch.Tensor):
        return (tuple(result.shape),)
    if isinstance(result, (tuple, list)):
        return tuple(shape for item in result for shape in shapes_of(item))
    return ()


class Watch(TorchFunctionMode):
    """Hands every call that a size takes part in to ``handler``, and shows the results of all others to ``other``."""

    def __init__(
        self, handler: Callable[[Callable[..., Any], Any, Any], Any], other: Callable[[Callable[..., Any], Any], None]
    ) -> None:
        super().__init__()
        self._handler, self._other = handler, other

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if contains(args) or (kwargs and contains(dict(kwargs))):
            return self._handler(func, args, dict(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        self._other(func, result)
        return result


@contextmanager
def module_stack(module: torch.nn.Module) -> Iterator[list[tuple[str, ...]]]:
    """The names of the modules that are running, outermost first; one module may have several names."""
    names: dict[int, tuple[str, ...]] = {}
    for name, one in module.named_modules(remove_duplicate=False):
        names[id(one)] = (*names.get(id(one), ()), name)
    stack: list[tuple[str, ...]] = []

    def enter(one: torch.nn.Module, _args: Any) -> None:
        stack.append(names.get(id(one), stack[-1] if stack else ("",)))

    def leave(_one: torch.nn.Module, _args: Any, _out: Any) -> None:
        stack.pop()

    hooks = (
        torch.nn.modules.module.register_module_forward_pre_hook(enter),
        torch.nn.modules.module.register_module_forward_hook(leave, always_call=True),
    )
    try:
        yield stack
    finally:
        for hook in hooks:
            hook.remove()


@dataclass
class Recorder:
    """Watches the source run: every call and comparison with its origins and results."""

    values: Sequence[int]
    stack: list[tuple[str, ...]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    scales: set[int] = field(default_factory=set)
    others: dict[tuple[str, ...], list[tuple[str, tuple[Shape, ...]]]] = field(default_factory=dict)

    def size(self, slot: int) -> Size:
        """The number in a slot."""
        return Size.of(self.values[slot], Formula(None, (), slot), self)

    def call(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Note a call, and make it."""
        result = func(*plain(args, self.values), **plain(kwargs, self.values))
        lines = frozenset(user_lines(sys._getframe(1)))
        modules = self.stack[-1] if self.stack else ("",)
        event = Event(_name(func), modules, lines, shapes_of(result), origins=origins((args, kwargs)))
        self.events.append(event)
        return result

    def other(self, func: Callable[..., Any], result: Any) -> None:
        """Note what a call gave that no size took part in."""
        if shapes := shapes_of(result):
            modules = self.stack[-1] if self.stack else ("",)
            self.others.setdefault(modules, []).append((_name(func), shapes))

    def compared(self, function: Callable[[Any, Any], bool], left: Any, right: Any) -> bool:
        """Note a comparison, and make it."""
        result = bool(function(_now(left, self.values), _now(right, self.values)))
        asked = frozenset().union(*(side.origins for side in (left, right) if isinstance(side, Formula)))
        modules = self.stack[-1] if self.stack else ("",)
        self.events.append(Event("compare", modules, result=result, origins=asked))
        return result

    def lost(self, formula: Formula) -> None:
        """Note attributes that a scale was computed from."""
        self.scales |= formula.origins


def _now(side: Any, values: Sequence[int]) -> Any:
    return side.value(values) if isinstance(side, Formula) else side


def _name(func: Callable[..., Any]) -> str:
    return getattr(func, "__name__", str(func))


@dataclass
class Script:
    """Choices of a search: which way to go where several are open. Layers of one kind choose alike."""

    taken: dict[Hashable, int] = field(default_factory=dict)
    open: dict[Hashable, int] = field(default_factory=dict)

    def choose(self, key: Hashable, ways: int) -> int:
        """The way to go at a fork."""
        self.open[key] = max(ways, self.open.get(key, 0))
        return min(self.taken.setdefault(key, 0), ways - 1)

    def turn(self) -> bool:
        """Go another way at the last fork that has one left; False when none has."""
        while self.taken:
            key, way = self.taken.popitem()
            if way + 1 < self.open[key]:
                self.taken[key] = way + 1
                return True
        return False


@dataclass
class Solver:
    """Runs the module with its tensors cut, and finds the values of its attributes as calls need them.

    Attributes
    ----------
    slots
        The attributes.
    values
        Their values so far; changed while it runs.
    events
        What happened in the source.
    first
        Whether this is the first round. Later ones only change what does not fit.
    """

    slots: Sequence[Slot]
    values: list[int]
    events: Sequence[Event]
    graph: Expected
    script: Script
    first: bool = True
    stack: list[tuple[str, ...]] = field(default_factory=list)
    used: set[int] = field(default_factory=set)
    changed: bool = False
    others: Mapping[tuple[str, ...], Sequence[tuple[str, tuple[Shape, ...]]]] = field(default_factory=dict)
    suspect: Stuck | None = None
    _queues: dict[tuple[str, ...], deque[Event]] = field(default_factory=dict)
    _places: dict[tuple[str, ...], int] = field(default_factory=dict)

    def size(self, slot: int) -> Size:
        """The number in a slot."""
        return Size.of(self.values[slot], Formula(None, (), slot), self)

    def call(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Make a call; attributes that it was given are changed where it would not give what is expected."""
        lines = frozenset(user_lines(sys._getframe(1)))
        asked = origins((args, kwargs))
        modules = self.stack[-1] if self.stack else ("",)
        event = self._next(_name(func), asked, modules)
        self.used |= asked
        wanted = self._wanted(event, modules, lines)
        good: list[tuple[list[int], Any]] = []
        tried: set[str] = set()
        failure: Exception | None = None
        inplace = (_name(func).endswith("_") and not _name(func).endswith("__")) or _name(func) == "__setitem__"
        for values in self._ways(asked, modules):
            given = plain((args, kwargs), values)
            numbers = _numbers(given)
            if numbers in tried:
                continue
            tried.add(numbers)
            try:
                result = func(*given[0], **given[1])
            except Exception as error:  # whatever torch makes of impossible sizes
                failure = failure or error
                continue
            if _fits(shapes_of(result), wanted):
                good.append((values, result))
                if inplace or not self.first or self._certain(values, asked, modules):
                    break
        if not good:
            raise Stuck(self._told(func, asked, wanted, failure), next(user_lines(sys._getframe(1)), None))
        way = 0
        if len(good) > 1:
            here = next(iter(user_lines(sys._getframe(1))), None)
            way = self.script.choose((here, tuple(self.slots[n].path for n in sorted(asked))), len(good))
        chosen, result = good[way]
        self._take(chosen)
        return result

    def compared(self, function: Callable[[Any, Any], bool], left: Any, right: Any) -> bool:
        """A comparison must come out as it did in the source."""
        asked = frozenset().union(*(side.origins for side in (left, right) if isinstance(side, Formula)))
        modules = self.stack[-1] if self.stack else ("",)
        event = self._next("compare", asked, modules)
        result = bool(function(_now(left, self.values), _now(right, self.values)))
        if event is None or result == event.result:
            return result
        for values in self._ways(asked, modules):
            try:
                if bool(function(_now(left, values), _now(right, values))) == event.result:
                    self._take(values)
                    return event.result
            except ArithmeticError:
                continue
        return result

    def other(self, func: Callable[..., Any], result: Any) -> None:
        """Remember the first call without any size of an attribute that gives a shape the graph does not have there."""
        shapes = shapes_of(result)
        if self.suspect is not None or not shapes:
            return
        modules = self.stack[-1] if self.stack else ("",)
        place = self._places.get(modules, 0)
        known = self.others.get(modules, ())
        self._places[modules] = place + 1
        if place >= len(known) or known[place][0] != _name(func):
            return
        for before, after in zip(known[place][1], shapes, strict=False):
            wanted = self.graph.of_call(modules, before, frozenset())
            if wanted is None or after in wanted:
                continue
            told = f"{_name(func)} gives shape {list(after)} where the cut graph has {list(min(wanted))}"
            self.suspect = Stuck(told, next(user_lines(sys._getframe(1)), None))
            return

    def lost(self, formula: Formula) -> None:
        """Noted in the source's run."""

    def _next(self, what: str, asked: frozenset[int], modules: tuple[str, ...]) -> Event | None:
        """The same event in the source; None from where a module goes another way."""
        if not self._queues:
            for event in self.events:
                self._queues.setdefault(event.modules, deque()).append(event)
        queue = self._queues.get(modules)
        if queue and queue[0].what == what and queue[0].origins == asked:
            return queue.popleft()
        if queue:
            queue.clear()
        return None

    def _wanted(
        self, event: Event | None, modules: tuple[str, ...], lines: frozenset[Line]
    ) -> list[frozenset[Shape] | None] | None:
        if event is None:
            return None
        return [self.graph.of_call(modules, shape, lines | event.lines) for shape in event.shapes]

    def _ways(self, asked: frozenset[int], modules: tuple[str, ...]) -> Iterator[list[int]]:
        """Values of all attributes, with those asked for as they are first, then changed, likeliest first."""
        numbers = sorted(asked)
        options = []
        for number in numbers:
            slot, now = self.slots[number], self.values[number]
            found = self.graph.candidates((*modules, slot.module), slot.value)
            first = found[0] if self.first and now == slot.value and self._settled(found, slot, modules) else now
            options.append(list(dict.fromkeys((first, now, *found))))
        # Sums of ranks: the likeliest ways first, with few changes, and what was changed already not changed back.
        costs = [
            [rank + 3 * (option == self.slots[number].value != self.values[number]) for rank, option in enumerate(own)]
            for number, own in zip(numbers, options, strict=True)
        ]
        every = itertools.islice(itertools.product(*(range(len(o)) for o in options)), 4096)
        ranks = sorted(every, key=lambda way: sum(cost[rank] for cost, rank in zip(costs, way, strict=True)))
        for way in ranks[:_MOST_WAYS]:
            values = list(self.values)
            for number, option, rank in zip(numbers, options, way, strict=True):
                values[number] = option[rank]
            yield values

    def _settled(self, found: Sequence[int], slot: Slot, modules: tuple[str, ...]) -> bool:
        """Whether every size of an attribute's value, in the module that uses it, becomes one and the same other."""
        if slot.value < 2:
            return False
        seen: set[int] = set()
        for name in modules:
            seen.update(self.graph.sizes.get(name, {}).get(slot.value, ()))
        return len(seen) == 1 and seen == {found[0]} and found[0] != slot.value

    def _certain(self, values: Sequence[int], asked: frozenset[int], modules: tuple[str, ...]) -> bool:
        """Whether no other way need be looked at: none of the attributes is another size elsewhere in this module."""
        for number in asked:
            slot = self.slots[number]
            seen = set(itertools.chain(*(self.graph.sizes.get(name, {}).get(slot.value, ()) for name in modules)))
            if seen - {values[number]}:
                return False
        return True

    def _take(self, values: list[int]) -> None:
        if values != self.values:
            self.changed = True
            self.values[:] = values

    def _told(self, func: Callable[..., Any], asked: frozenset[int], wanted: Any, failure: Any) -> str:
        named = ", ".join(f"{self.slots[n]} = {self.slots[n].value}" for n in sorted(asked)[:4])
        if failure is not None:
            reason = " ".join(str(failure).split())[:200]
            return f"{_name(func)} fails for every value of {named}: {reason}"
        shapes = [sorted(w)[0] if w else None for w in wanted or ()]
        return f"{_name(func)} gives no result of shape {shapes} for any value of {named}"


def _fits(shapes: tuple[Shape, ...], wanted: list[frozenset[Shape] | None] | None) -> bool:
    if wanted is None:
        return True
    if len(shapes) != len(wanted):
        return False
    return all(want is None or shape in want for shape, want in zip(shapes, wanted, strict=True))


def _numbers(given: Any) -> str:
    """What tells the numbers of two calls apart; tensors are the same."""
    if isinstance(given, torch.Tensor):
        return "t"
    if isinstance(given, (tuple, list)):
        return f"({','.join(map(_numbers, given))})"
    if isinstance(given, dict):
        return _numbers(list(given.values()))
    return repr(given) if isinstance(given, (int, slice)) else "o"
