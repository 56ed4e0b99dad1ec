"""Finding the values that a module's attributes must have after the cut, by running it."""

from __future__ import annotations

import contextlib
import linecache
import re
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from graphprune.backends.inplace.expect import Expected, Line
from graphprune.backends.inplace.holders import Path, Slot, install, put_back, slots
from graphprune.backends.inplace.layers import follow
from graphprune.backends.inplace.memory import Memory, forgetful, memories
from graphprune.backends.inplace.sizes import KeptScale
from graphprune.backends.inplace.watch import Recorder, Script, Solver, Stuck, Watch, is_users, module_stack
from graphprune.frontends.torch_export import left_as_it_was, quiet

#: Runs of the module with its tensors cut, over all ways that are tried.
MOST_RUNS = 40
_MOST_ROUNDS = 6
#: Words in the names of sizes, and of other numbers. They only decide on numbers that nothing was computed with.
_SIZE = re.compile(r"dim|size|channel|feature|width|head|group|hidden|embed|plane|inner|units|filters|^(in|out|num|n|d)_")
_OTHER = re.compile(
    r"kernel|patch|window|image|stride|pad|dilat|layer|block|depth|stage|vocab|max_|position|type|pool|token|label|class|"
    r"idx|index|(^|_)id$|seed|step|ratio|batch|length"
)


class Declined(Exception):
    """A module that cannot be cut in place; ``line`` is the line of its code that stands against it."""

    def __init__(self, text: str, line: Line | None = None) -> None:
        super().__init__(text)
        self.line = line

    def told(self) -> str:
        """Reason and line in words."""
        return str(self) if self.line is None else f"{self} ({where(self.line)})"


def where(line: Line) -> str:
    """A line of code as people look for it."""
    text = linecache.getline(*line).strip()
    return f'{line[0]}:{line[1]}: "{text}"' if text else f"{line[0]}:{line[1]}"


@dataclass
class Call:
    """How the module is run: always the same arguments, in eval mode, leaving no trace in it.

    ``on_stand_ins``: with tensors on the meta device, which have a shape and no contents, where sizes are all that is looked for.
    """

    module: torch.nn.Module
    make: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]
    on_stand_ins: bool = False

    def follower(self) -> Callable[[], Any]:
        """What runs the module for what its code does; stand-ins are made here, before anybody watches."""
        if not self.on_stand_ins:
            return self.run
        held = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        state = {name: torch.empty_like(tensor, device="meta") for name, tensor in held.items()}
        args, kwargs = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.to("meta"), self.make())

        def follow() -> None:
            with left_as_it_was(self.module), torch.no_grad(), quiet():
                torch.func.functional_call(self.module, state, args, kwargs)

        return follow

    def run(self) -> Any:
        """What the module gives."""
        args, kwargs = self.make()
        buffers = [(one, one.detach().clone(), one._version) for one in self.module.buffers()]
        try:
            with left_as_it_was(self.module), torch.no_grad(), torch.random.fork_rng(devices=[]), quiet():
                return self.module(*args, **kwargs)
        finally:
            with torch.no_grad():
                for one, before, version in buffers:
                    if one._version != version and one.shape == before.shape:
                        one.copy_(before)


@dataclass
class Search:
    """The attributes of a module, how it used them before the cut, and what is expected of it afterwards."""

    call: Call
    graph: Expected
    slots: list[Slot] = field(default_factory=list)
    recorder: Recorder | None = None
    reasons: list[Declined] = field(default_factory=list)
    suspect: Stuck | None = None
    memories: Sequence[Memory] = ()

    def record(self) -> None:
        """Run the source once, and see what its numbers are used for. To be called before its tensors are cut."""
        self.slots = slots(self.call.module)
        self.memories = memories(self.call.module)
        self.recorder = Recorder([slot.value for slot in self.slots])
        try:
            self._watched(self.recorder)
        except Exception:
            if not self.call.on_stand_ins:
                raise
            self.call.on_stand_ins = False  # its code asks for values
            self.record()

    def solutions(self, computing: bool = False) -> Iterator[dict[tuple[str, Path], int]]:
        """Values of the attributes that change, by module and path: the likeliest first.

        ``computing``: with real tensors, also where stand-ins would do.
        """
        assert self.recorder is not None
        self.call.on_stand_ins = self.call.on_stand_ins and not computing
        scales = self.recorder.scales
        script = Script()
        runs = 0
        while runs < MOST_RUNS:
            values = self._start()
            for number in range(_MOST_ROUNDS):
                solver = Solver(self.slots, values, self.recorder.events, self.graph, script, number == 0,
                                others=self.recorder.others)  # fmt: skip
                runs += 1
                try:
                    self._watched(solver)
                except Stuck as error:
                    self.reasons.append(Declined(str(error), error.line))
                    break
                except Exception as error:
                    self.reasons.append(Declined(" ".join(f"{type(error).__name__}: {error}".split())[:300],
                                                 line_of(error)))  # fmt: skip
                    break
                if not solver.changed:
                    self.suspect = solver.suspect
                    yield self._changes(values, solver.used | scales)
                    break
            else:
                self.reasons.append(Declined("its attributes are needed with several values at once"))
            if not script.turn():
                return

    def blame(self, error: Exception) -> Declined:
        """A failed proof with the line of code that it came from, where the error itself tells."""
        if isinstance(error, Declined):
            if error.line is None and self.suspect is not None:
                return Declined(f"{error}; first, {self.suspect}", self.suspect.line)
            return error
        return Declined(" ".join(f"{type(error).__name__}: {error}".split())[:300], line_of(error))

    def reason(self) -> Declined:
        """Why nothing was found: the first reason that names a line."""
        named = [reason for reason in self.reasons if reason.line is not None]
        return (named or self.reasons or [Declined("no values of its attributes were found")])[0]

    def _start(self) -> list[int]:
        """Values before the search: those of torch's own layers follow from their parameters."""
        values = [slot.value for slot in self.slots]
        number = {(slot.module, slot.path): i for i, slot in enumerate(self.slots)}
        for name, one in self.call.module.named_modules():
            for key, value in follow(one).items():
                pairs = [((key,), value)] if isinstance(value, int) else [((key, i), v) for i, v in enumerate(value)]
                for path, size in pairs:
                    if (name, path) in number:
                        values[number[name, path]] = size
        return values

    def _watched(self, board: Recorder | Solver) -> None:
        numbers = {(slot.module, slot.path): i for i, slot in enumerate(self.slots)}

        def replace(module: str, path: Path, value: int) -> int:
            found = numbers.get((module, path))
            return value if found is None else board.size(found)

        with module_stack(self.call.module) as stack:
            board.stack = stack
            follow = self.call.follower()
            undo = install(self.call.module, replace)
            try:
                with forgetful(self.memories), Watch(board.call, board.other):
                    follow()
            finally:
                put_back(undo)

    def _changes(self, values: Sequence[int], used: set[int]) -> dict[tuple[str, Path], int]:
        """The attributes that change: those that were computed with, and those that only tell of a size."""
        values = list(values)
        for number, slot in enumerate(self.slots):
            if number not in used and values[number] == slot.value and slot.value > 1:
                values[number] = self._told_size(slot)
        self._agree(values, used)
        assert self.recorder is not None
        return {
            (slot.module, slot.path): KeptScale(values[n], slot.scale) if n in self.recorder.scales else values[n]
            for n, slot in enumerate(self.slots)
            if values[n] != slot.value
        }

    def _told_size(self, slot: Slot) -> int:
        """The new value of a number that nothing was computed with, where its name and its module leave no doubt."""
        name = next((str(part) for part in reversed(slot.path) if isinstance(part, str)), "")
        if not _SIZE.search(name) or _OTHER.search(name):
            return slot.value
        found = self.graph.within(slot.module, slot.value)
        return found.pop() if len(found) == 1 else slot.value

    def _agree(self, values: list[int], used: set[int]) -> None:
        """Numbers of one shared object become the same for all that hold it, where those that need one agree."""
        by_holder: dict[Any, list[int]] = {}
        for number, slot in enumerate(self.slots):
            by_holder.setdefault(slot.holder, []).append(number)
        for numbers in by_holder.values():
            if len(numbers) < 2:
                continue
            needed = Counter(values[n] for n in numbers if n in used)
            if not needed:
                needed = Counter(values[n] for n in numbers if values[n] != self.slots[n].value)
            for number in numbers if len(needed) == 1 else ():
                values[number] = next(iter(needed))


def line_of(error: BaseException) -> Line | None:
    """The deepest line of user code that an error went through."""
    frames = traceback.extract_tb(error.__traceback__)
    found = [(frame.filename, frame.lineno or 0) for frame in frames if is_users(frame.filename)]
    return found[-1] if found else None


@contextlib.contextmanager
def written(undo: list[tuple[dict[str, Any], str, Any]]) -> Iterator[None]:
    """Keep what was written if all goes well, and put it back if not."""
    try:
        yield
    except BaseException:
        put_back(undo)
        raise


def describe(changes: Mapping[tuple[str, Path], int], before: Sequence[Slot]) -> list[dict[str, Any]]:
    """Changes as they stand in a plan."""
    old = {(slot.module, slot.path): slot.value for slot in before}
    return [
        {"module": module, "path": list(path), "before": old[module, path], "after": int(value)}
        | ({"scale": value.scale} if isinstance(value, KeptScale) else {})
        for (module, path), value in changes.items()
    ]
