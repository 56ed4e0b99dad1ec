"""The notation of expectations in the rule table, explained in tests/rule_harness.py."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from typing import Any

Units = list[frozenset[int]]  # the units that kill each index of one axis


def split(text: str, at: str) -> list[str]:
    """Split at characters of ``at`` that stand outside brackets."""
    parts, depth = [""], 0
    for char in text:
        depth += (char in "([") - (char in ")]")
        if char in at and not depth:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts if part.strip() or at == ","]


class Notation:
    """One expectation, applied to the sizes that the axes have."""

    def __init__(self, expect: str) -> None:
        body, _, sizes = expect.partition("|")
        left, arrow, right = body.partition("->")
        assert arrow, f"'{expect}' has no '->'"
        self.operands = split(left, ",")
        self.results = split(right, ",")
        self.size: dict[str, int] = {}
        for item in sizes.split():
            name, _, number = item.partition("=")
            self.size[name] = int(number)
        self.base: dict[str, int] = {}

    @staticmethod
    def axes(operand: str) -> list[str]:
        return split(operand, " ")

    @staticmethod
    def bare(axis: str) -> str:
        return axis.lstrip("~").rstrip("!")

    def learn(self, axis: str, n: int) -> bool:
        """Take the sizes of letters from an axis of ``n`` indices; whether there was anything new."""
        axis = self.bare(axis)
        if re.fullmatch(r"[a-zA-Z]\w*", axis):
            new = axis not in self.size
            self.size.setdefault(axis, n)
            return new
        if axis.startswith("(") and axis.endswith(")") and len(split(axis, "+")) == 1:
            terms = split(axis[1:-1], " ")
            unknown = [t for t in terms if not self._length(t)]
            if len(unknown) == 1:
                known = (self._length(t) or 1 for t in terms if t not in unknown)
                return self.learn(unknown[0], n // math.prod(known))
        return False

    def _length(self, text: str) -> int | None:
        """Number of indices that an expression describes; None where a letter's size is not known yet."""
        terms = split(text, "+")
        if len(terms) > 1:
            lengths = [self._length(term) for term in terms]
            return None if None in lengths else sum(n or 0 for n in lengths)
        if text.startswith("(") and text.endswith(")"):
            lengths = [self._length(term) for term in split(text[1:-1], " ")]
            return None if None in lengths else math.prod(n or 0 for n in lengths)
        if re.fullmatch(r"_?\d+", text):
            return int(text.lstrip("_"))
        return self.size.get(text)

    def rows(self, axis: str, n: int) -> Units:
        """The units of an axis of ``n`` indices."""
        axis = self.bare(axis)
        if axis == "_":
            return [frozenset()] * n
        out = self._sum(axis)
        assert len(out) == n, f"'{axis}' describes {len(out)} indices, the axis has {n}"
        return out

    def _sum(self, text: str) -> Units:
        return [unit for term in split(text, "+") for unit in self._term(term)]

    def _term(self, term: str) -> Units:
        if term.endswith("]"):
            start = term.rindex("[")
            whole: list[Any] = self._term(term[:start])
            inside = term[start + 1 : -1]
            if ":" in inside:
                return whole[slice(*(int(p) if p else None for p in inside.split(":")))]
            return [whole[int(p)] for p in inside.split(",")]
        if term.startswith("("):
            parts = split(term[1:-1], "+")
            if len(parts) > 1:
                return [unit for part in parts for unit in self._term(part)]
            inner = [self._term(t) for t in split(term[1:-1], " ")]
            return [frozenset().union(*units) for units in itertools.product(*inner)]
        if re.fullmatch(r"_?\d+", term):
            return [frozenset()] * int(term.lstrip("_"))
        n = self.size[term]
        first = self.base.setdefault(term, 1 + sum(self.size[name] for name in self.base))
        return [frozenset({first + i}) if n > 1 else frozenset() for i in range(n)]


def classes(axes: Mapping[tuple[str, int], Units]) -> set[frozenset[tuple[str, int, int]]]:
    """What units do, whatever they are called: the indices each of them kills."""
    kills: dict[int, set[tuple[str, int, int]]] = {}
    for (slot, axis), units in axes.items():
        for index, row in enumerate(units):
            for unit in row:
                kills.setdefault(unit, set()).add((slot, axis, index))
    return {frozenset(indices) for indices in kills.values()}


def picture(axes: Mapping[tuple[str, int], Units]) -> str:
    met = sorted({unit for rows in axes.values() for row in rows for unit in row})
    names = {unit: f"u{k}" for k, unit in enumerate(met)}
    lines = []
    for (slot, axis), units in axes.items():
        rows = ("".join(sorted(names[u] for u in row)) or "." for row in units)
        lines.append(f"  {slot}[{axis}]: " + " ".join(rows))
    return "\n".join(lines)
