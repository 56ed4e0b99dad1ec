"""Pass specs: the text ``entropy{bins=64,reading=bn}`` and the frozen dataclass that it stands for.

Grammar::

    spec   = name [ "{" [ option { "," option } ] "}" ]
    option = key "=" value
    value  = "[" [ value { "," value } ] "]" | quoted | bare

A quoted value (single or double quotes, backslash escapes) is always a string. A bare value is a number,
``true``, ``false`` or ``none`` where it reads as one, and otherwise a string.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import math
import re
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from graphprune.errors import UsageError

Value = None | bool | int | float | str | list["Value"]
"""What an option can hold as text."""

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]*")
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_\-]*")
_BARE = re.compile(r"[^\s,{}\[\]\"'=][^,{}\[\]\"'=]*")
_INT = re.compile(r"[+-]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[+-]?((\d+\.\d*|\.\d+|\d+)([eE][+-]?\d+)?|inf|nan)")
_WORDS: dict[str, bool | None] = {"true": True, "false": False, "none": None}
_ESCAPES = {"n": "\n", "t": "\t", "\\": "\\", '"': '"', "'": "'"}
_WINDOW = 100
_DEEPEST = 20
_LONGEST = 4000  # digits; Python itself refuses to read more than 4300


@dataclass(frozen=True)
class PassSpec:
    """The name of a pass and the options it was asked for, not yet checked against the pass.

    Attributes
    ----------
    name
        Command-line name of the pass.
    options
        Option name to value, in the order written.
    """

    name: str
    options: Mapping[str, Value] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        return format_pass_spec(self)


class _Parser:
    """Recursive descent over one pass spec, ``at`` being the next character to read."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def fail(self, message: str, at: int | None = None) -> UsageError:
        """An error that shows the text with a caret under the place."""
        at = self.at if at is None else at
        start = max(0, at - _WINDOW // 2)
        # One column per character, or the caret would point elsewhere.
        shown = "".join(c if c.isprintable() else " " for c in self.text[start : start + _WINDOW])
        return UsageError(f"{message}\n    {shown}\n    {' ' * (at - start)}^")

    def skip(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def peek(self) -> str:
        self.skip()
        return self.text[self.at : self.at + 1]

    def found(self) -> str:
        return f"'{self.peek()}'" if self.peek() else "the end"

    def take(self, pattern: re.Pattern[str], what: str) -> str:
        self.skip()
        match = pattern.match(self.text, self.at)
        if match is None:
            raise self.fail(f"expected {what}, found {self.found()}")
        self.at = match.end()
        return match.group()

    def expect(self, character: str, what: str) -> None:
        if self.peek() != character:
            raise self.fail(f"expected {what}, found {self.found()}")
        self.at += 1

    def spec(self) -> PassSpec:
        name = self.take(_NAME, "the name of a pass")
        options: dict[str, Value] = {}
        if self.peek() == "{":
            opened = self.at
            self.at += 1
            while self.peek() != "}":
                if not self.peek():
                    raise self.fail("this '{' is never closed: write '}' at the end", opened)
                self.skip()
                start = self.at
                key = self.take(_KEY, "the name of an option").replace("-", "_")
                if key in options:
                    raise self.fail(f"option '{key}' is given twice", start)
                self.expect("=", f"'=' and a value after option '{key}'")
                options[key] = self.value(f"a value for option '{key}'")
                if not self.peek():
                    raise self.fail("this '{' is never closed: write '}' at the end", opened)
                if self.peek() != "}":
                    self.expect(",", "',' or '}'")
                    if self.peek() in (",", "}"):
                        raise self.fail("expected the name of an option after ','")
            self.at += 1
        if self.peek():
            raise self.fail(f"expected the end of the pass spec, found {self.found()}")
        return PassSpec(name, options)

    def value(self, what: str, depth: int = 0) -> Value:
        start = self.peek()
        if start == "[":
            if depth == _DEEPEST:
                raise self.fail(f"lists are nested more than {_DEEPEST} deep")
            return self.items(depth)
        if start in ('"', "'"):
            return self.quoted(start)
        return _read_bare(self.take(_BARE, what).rstrip())

    def items(self, depth: int) -> list[Value]:
        opened = self.at
        self.at += 1
        items: list[Value] = []
        while self.peek() != "]":
            items.append(self.value("a list item", depth + 1))
            if not self.peek():
                raise self.fail("this '[' is never closed: write ']' after the last item", opened)
            if self.peek() != "]":
                self.expect(",", "',' or ']'")
                if self.peek() in (",", "]"):
                    raise self.fail("expected a list item after ','")
        self.at += 1
        return items

    def quoted(self, quote: str) -> str:
        opened = self.at
        self.at += 1
        characters: list[str] = []
        while self.at < len(self.text) and self.text[self.at] != quote:
            if self.text[self.at] == "\\":
                self.at += 1
                escaped = self.text[self.at : self.at + 1]
                if escaped not in _ESCAPES:
                    raise self.fail("unknown escape: only \\\\ \\n \\t \\' \\\" are known", self.at - 1)
                characters.append(_ESCAPES[escaped])
            else:
                characters.append(self.text[self.at])
            self.at += 1
        if self.at >= len(self.text):
            raise self.fail("this quote is never closed", opened)
        self.at += 1
        return "".join(characters)


def _read_bare(text: str) -> Value:
    """A number, ``true``, ``false`` or ``none`` where the text reads as one, else the text."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _INT.fullmatch(text) and len(text) < _LONGEST:
        return int(text)
    # Digits alone that are no integer (007, or too long for one) are kept as written.
    if _FLOAT.fullmatch(text) and not text.lstrip("+-").isdigit():
        return float(text)
    return text


def parse_pass_spec(text: str) -> PassSpec:
    """Read a pass spec such as ``entropy{bins=64,reading=bn}``.

    Parameters
    ----------
    text
        What was given to ``--pass``. Dashes in option names are read as underscores.

    Returns
    -------
    PassSpec
        Name and options. Whether the pass exists and takes the options is for others to say.

    Raises
    ------
    UsageError
        With the text and a caret under the place that cannot be read.
    """
    return _Parser(text).spec()


def format_value(value: object) -> str:
    """One option value as text that :func:`parse_pass_spec` reads back to the same value."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, enum.Enum):
        return format_value(value.name)
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple | set | frozenset):
        return "[" + ",".join(map(format_value, value)) + "]"
    text = str(value)
    if _BARE.fullmatch(text) and text == text.strip() and isinstance(_read_bare(text), str):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'


def format_pass_spec(spec: PassSpec) -> str:
    """The text of a pass spec: ``parse_pass_spec(format_pass_spec(spec)) == spec``."""
    if not spec.options:
        return spec.name
    return spec.name + "{" + ",".join(f"{k}={format_value(v)}" for k, v in spec.options.items()) + "}"


@dataclass(frozen=True)
class OptionInfo:
    """One option of a pass, as shown in help and errors.

    Attributes
    ----------
    name, type
        Field name, and its annotation in words (``int``, ``bn|conv``, ``list of float``).
    default
        Default value as text, ``None`` where the option must be given.
    """

    name: str
    type: str
    default: str | None

    def __str__(self) -> str:
        return f"{self.name}: {self.type}" + ("" if self.default is None else f" = {self.default}")


def nearest(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'entropy'?"`` for the closest of the known words, or nothing when none is close."""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.5)
    return f"; did you mean '{by_lower[close[0]]}'?" if close else ""


def _hints(cls: type) -> dict[str, Any]:
    """Type of every init field of a dataclass; the error names the pass whose annotations do not resolve."""
    try:
        hints = get_type_hints(cls)
    except (NameError, TypeError, SyntaxError) as error:
        raise UsageError(f"{cls.__qualname__}: its field annotations cannot be read: {error}") from error
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}


def options_of(cls: type) -> tuple[OptionInfo, ...]:
    """The options of a pass class: the init fields of the dataclass, with type and default in words."""
    hints = _hints(cls)
    infos = []
    for f in dataclasses.fields(cls):
        if not f.init:
            continue
        default = None
        if f.default is not dataclasses.MISSING:
            default = format_value(f.default)
        elif f.default_factory is not dataclasses.MISSING:
            default = format_value(f.default_factory())
        infos.append(OptionInfo(f.name, describe_type(hints[f.name]), default))
    return tuple(infos)


def describe_type(annotation: Any) -> str:
    """An annotation in the words of a user: ``Literal["bn", "conv"] | None`` is ``bn|conv|none``."""
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation is None or annotation is types.NoneType:
        return "none"
    if origin is Literal:
        return "|".join(map(_plain, args))
    if origin in (Union, types.UnionType):
        return "|".join(map(describe_type, args))
    if origin is tuple and not (len(args) == 2 and args[1] is Ellipsis):
        return "[" + ",".join(map(describe_type, args)) + "]"
    if isinstance(origin, type) and issubclass(origin, Mapping) and args:
        return f"{describe_type(args[0])} to {describe_type(args[1])}, by key"
    if isinstance(origin, type) and issubclass(origin, Collection) and args:
        return f"list of {describe_type(args[0])}"
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return "|".join(member.name for member in annotation)
    return {str: "text", Path: "path"}.get(annotation, getattr(annotation, "__name__", str(annotation)))


class _Mismatch(Exception):
    """A value that is not of the annotated type."""


def _to_int(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise _Mismatch


def _to_float(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            raise _Mismatch from None
        if not math.isnan(number):
            return number
    raise _Mismatch


def _to_bool(value: object) -> bool:
    if isinstance(value, bool) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    raise _Mismatch


def _to_str(value: object) -> str:
    if isinstance(value, str):
        return value
    # A bare 12 or none was meant as text where text is asked for; a float may not survive the trip.
    if value is None or isinstance(value, int):
        return format_value(value)
    raise _Mismatch


_SCALARS: dict[Any, Callable[[object], object]] = {
    int: _to_int,
    float: _to_float,
    bool: _to_bool,
    str: _to_str,
    Path: lambda value: Path(_to_str(value)),
}


def _coerce(value: object, annotation: Any) -> object:
    """The value as the annotated type, or :class:`_Mismatch`."""
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation is Any or annotation is object:
        return value
    if annotation is None or annotation is types.NoneType:
        if value is None:
            return None
        raise _Mismatch
    if origin is Literal:
        return _choose(value, {_plain(arg): arg for arg in args})
    if origin in (Union, types.UnionType):
        return _coerce_union(value, args)
    if annotation in _SCALARS:
        return _SCALARS[annotation](value)
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return value if isinstance(value, annotation) else _choose(value, dict(annotation.__members__))
    container = origin or annotation
    if isinstance(container, type) and container in (tuple, list, frozenset, Sequence, Collection):
        return _coerce_items(value, container, args)
    if container is Mapping:
        if not isinstance(value, Mapping):
            raise _Mismatch
        return {_coerce(key, args[0]): _coerce(inner, args[1]) for key, inner in value.items()}
    raise TypeError(f"options of type {describe_type(annotation)} cannot be given as text")


def _plain(value: object) -> str:
    """A choice as a user writes it, quoted by nobody: ``none`` for None and for the word alike."""
    return value if isinstance(value, str) else format_value(value)


def _choose(value: object, choices: Mapping[str, object]) -> object:
    for choice in choices.values():
        if type(choice) is type(value) and choice == value:
            return choice
    if _plain(value) in choices:
        return choices[_plain(value)]
    raise _Mismatch


def _coerce_union(value: object, args: Sequence[Any]) -> object:
    # The type the value has already wins over one it can be turned into: 1 stays int in float | int.
    for arg in sorted(args, key=lambda arg: arg is not type(value)):
        try:
            return _coerce(value, arg)
        except _Mismatch:
            continue
    raise _Mismatch


def _coerce_items(value: object, container: type, args: tuple[Any, ...]) -> object:
    items = list(value) if isinstance(value, list | tuple | set | frozenset) else [value]
    if container is tuple and args and args[-1] is not Ellipsis:
        if len(items) != len(args):
            raise _Mismatch
        return tuple(_coerce(item, arg) for item, arg in zip(items, args, strict=True))
    item_type = args[0] if args else Any
    coerced = [_coerce(item, item_type) for item in items]
    return container(coerced) if container in (list, frozenset) else tuple(coerced)


def typed(cls: type, values: Mapping[str, object], title: str) -> dict[str, Any]:
    """Values of fields of a dataclass, each as the type that the field is annotated with.

    Raises
    ------
    UsageError
        A value of another type; ``title`` says whose it is.
    """
    hints, out = _hints(cls), {}
    for name, value in values.items():
        try:
            out[name] = _coerce(value, hints[name])
        except _Mismatch:
            wanted = describe_type(hints[name])
            near = nearest(value, wanted.split("|")) if isinstance(value, str) else ""
            raise UsageError(f"{title}: option '{name}' is {wanted}, not {format_value(value)}{near}") from None
        except TypeError as error:
            raise UsageError(f"{title}: option '{name}': {error}") from error
    return out


def instantiate(cls: type[T], options: Mapping[str, object], title: str = "") -> T:
    """Build a pass from its options, each checked against the annotation of its field.

    Parameters
    ----------
    cls
        A dataclass. ``name``, where it has one, is how errors call it.
    options
        Option name to value, as :func:`parse_pass_spec` read it, or as given from Python.
    title
        How errors call it where it is no pass.

    Returns
    -------
    T
        The instance; options not given keep their defaults.

    Raises
    ------
    UsageError
        An unknown option (with the nearest one and the list of all), a value of the wrong type, an option
        that is missing, or what ``__post_init__`` of the pass refused.
    """
    title = title or f"pass '{getattr(cls, 'name', cls.__qualname__)}'"
    hints, known = _hints(cls), options_of(cls)
    listing = "its options are: " + ", ".join(map(str, known)) if known else "it takes no options"
    for name in options:
        if name not in hints:
            raise UsageError(f"{title} has no option '{name}'{nearest(name, hints)}\n{listing}")
    values = typed(cls, options, title)
    missing = [info.name for info in known if info.default is None and info.name not in values]
    if missing:
        raise UsageError(f"{title} needs option '{missing[0]}': write {missing[0]}=...\n{listing}")
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{title}: {error}") from error
