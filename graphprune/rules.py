"""How an op is described: a coupling rule, a shrink rule, or a place among the frozen by design.

A coupling rule does to row tables what the op does to data. It is an einops-like string where it can be::

    Conv      b (g i) _..., (g o) i _..., (g o) -> b (g o) _...
    MatMul    ... i k, ... k j -> ... i j

and a short function of an :class:`OpView` elsewhere. Grammar of a string: operands and results separated by
``,``, the two sides by ``->``; ``name`` is an axis, tied wherever the same name stands again; ``_name`` is a
frozen axis, ``(a b)`` an axis that is the row-major product of others, ``...`` any number of axes that
broadcast, ``_...`` any number of frozen axes. Operands past those an instance has are skipped.

A shrink rule (:mod:`graphprune.cut`) mends what an op stores as numbers.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import math
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnx_ir as ir

from graphprune.units import Rows, frozen_rows

if TYPE_CHECKING:
    from graphprune.cut import Cut

__all__ = ["REGISTRY", "Axis", "OpRule", "OpView", "frozen_by_design", "op", "rule_for"]

Place = tuple[ir.Value, int]


@dataclass(frozen=True, eq=False)
class Axis:
    """One axis of one value while rules run.

    Attributes
    ----------
    rows
        int64[n, k], the units that kill each index.
    zero
        Whether the value is zero at removed indices of this axis in the masked original.
    places
        The (value, axis) pairs these rows came from; they make the coupling graph that people look at.
    """

    rows: Rows
    zero: bool = True
    places: tuple[Place, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)


Axes = list[Axis]


class Sweep(Protocol):
    """What a rule may ask of the running analysis (:class:`graphprune.coupler.Coupler`)."""

    def axes_of(self, value: ir.Value) -> Axes | None: ...
    def shape_of(self, value: ir.Value) -> tuple[int, ...] | None: ...
    def known(self, value: ir.Value) -> np.ndarray | None: ...
    def constant(self, value: ir.Value) -> np.ndarray | None: ...
    def steady(self, value: ir.Value) -> np.ndarray | None: ...
    def is_parameter(self, value: ir.Value) -> bool: ...
    def tie(self, node: ir.Node, a: Axis, b: Axis) -> None: ...
    def split(self, node: ir.Node, axis: Axis, sizes: Sequence[int]) -> Axes: ...
    def merge(self, axes: Sequence[Axis]) -> Axis: ...
    def take(self, axis: Axis, indices: np.ndarray) -> Axis: ...
    def concat(self, axes: Sequence[Axis]) -> Axis: ...
    def fresh(self, n: int) -> Axis: ...
    def freeze(self, node: ir.Node, axis: Axis, reason: str) -> Axis: ...
    def weight(self, node: ir.Node, index: int, role: str) -> None: ...
    def mark(self, axis: Axis, kind: str) -> None: ...
    def inexact(self, node: ir.Node, axis: Axis, reason: str, exact: bool = False) -> None: ...
    def graph(self, graph: ir.Graph, bind: Mapping[ir.Value, Axes | None]) -> list[Axes | None]: ...
    def opset(self, domain: str) -> int: ...


class OpView:
    """One node, as its coupling rule sees it: inputs as axes, attributes, constants, and the verbs."""

    def __init__(self, node: ir.Node, sweep: Sweep) -> None:
        self.node = node
        self.sweep = sweep

    # -- reading -----------------------------------------------------------------------------------
    @property
    def opset(self) -> int:
        return self.sweep.opset(self.node.domain)

    def has(self, i: int) -> bool:
        """Whether input ``i`` is given."""
        return i < len(self.node.inputs) and self.node.inputs[i] is not None

    def value(self, i: int) -> ir.Value:
        value = self.node.inputs[i]
        assert value is not None
        return value

    def axes(self, i: int) -> Axes:
        """Axes of input ``i``; a constant gets a fresh unit for every index when it is first read."""
        axes = self.sweep.axes_of(self.value(i))
        if axes is None:
            raise UnknownShape(f"the shape of '{self.value(i).name}' is not known")
        return axes

    def shape(self, i: int) -> tuple[int, ...]:
        shape = self.sweep.shape_of(self.value(i))
        if shape is None:
            raise UnknownShape(f"the shape of '{self.value(i).name}' is not known")
        return shape

    def out_shape(self, j: int = 0) -> tuple[int, ...]:
        shape = self.sweep.shape_of(self.node.outputs[j])
        if shape is None:
            raise UnknownShape(f"the shape of '{self.node.outputs[j].name}' is not known")
        return shape

    def attr(self, name: str, default: Any = None) -> Any:
        return attribute(self.node, name, default)

    def known(self, i: int) -> np.ndarray | None:
        """Value of input ``i`` at the analysed sizes, where it is known before running, else None."""
        return self.sweep.known(self.value(i)) if self.has(i) else None

    def constant(self, i: int) -> np.ndarray | None:
        """As :meth:`known`, but None for what depends on the sizes of dynamic axes."""
        return self.sweep.constant(self.value(i)) if self.has(i) else None

    def steady(self, i: int) -> np.ndarray | None:
        """Which entries of a known 1-d input do not depend on the sizes of dynamic axes, bool[n]."""
        return self.sweep.steady(self.value(i)) if self.has(i) else None

    def is_parameter(self, i: int) -> bool:
        """Whether input ``i`` is made from constants alone."""
        return self.has(i) and self.sweep.is_parameter(self.value(i))

    # -- verbs -------------------------------------------------------------------------------------
    def tie(self, a: Axis, b: Axis) -> Axis:
        self.sweep.tie(self.node, a, b)
        return Axis(a.rows, a.zero and b.zero, a.places + b.places)

    def split(self, axis: Axis, sizes: Sequence[int]) -> Axes:
        return self.sweep.split(self.node, axis, sizes)

    def merge(self, axes: Sequence[Axis]) -> Axis:
        return self.sweep.merge(axes)

    def take(self, axis: Axis, indices: np.ndarray) -> Axis:
        return self.sweep.take(axis, indices)

    def concat(self, axes: Sequence[Axis]) -> Axis:
        return self.sweep.concat(axes)

    def fresh(self, n: int) -> Axis:
        """An axis that this op makes up (padding, expansion): its indices are free until tied."""
        return self.sweep.fresh(n)

    def freeze(self, axis: Axis, reason: str) -> Axis:
        return self.sweep.freeze(self.node, axis, reason)

    def frozen(self, n: int, zero: bool = True) -> Axis:
        """An axis of ``n`` indices that are nobody's channels."""
        return Axis(frozen_rows(n), zero)

    def weight(self, i: int, role: str = "weight") -> None:
        """Input ``i`` is a parameter: its axes are what pruning is for, and masking zeroes it."""
        if self.has(i):
            self.sweep.weight(self.node, i, role)

    def mark(self, axis: Axis, kind: str) -> None:
        self.sweep.mark(axis, kind)

    def inexact(self, axis: Axis, reason: str) -> None:
        self.sweep.inexact(self.node, axis, reason)

    def apart(self, axis: Axis, reason: str) -> None:
        """Indices of an axis do not see each other here, but zeros would give NaN: the proof leaves them out."""
        self.sweep.inexact(self.node, axis, reason, exact=True)

    def freeze_inputs(self, reason: str, only: Iterable[int] | None = None) -> None:
        """Freeze every axis of the inputs (or of ``only`` some)."""
        for i in range(len(self.node.inputs)) if only is None else only:
            if self.has(i):
                for axis in self.sweep.axes_of(self.value(i)) or []:
                    self.freeze(axis, reason)

    def frozen_outputs(self) -> list[Axes | None]:
        """All outputs with frozen axes (None where even the shape is unknown)."""
        shapes = [self.sweep.shape_of(value) for value in self.node.outputs]
        return [None if shape is None else [self.frozen(n) for n in shape] for shape in shapes]


class UnknownShape(Exception):
    """A rule met a value whose shape is not known; the sweep freezes the node and says so."""


Couple = Callable[[OpView], Sequence[Axes | None]]
Shrink = Callable[["Cut"], None]


@dataclass(frozen=True)
class OpRule:
    """What is known about one op.

    Attributes
    ----------
    couple
        The coupling rule, or None for an op that is frozen by design.
    text
        The rule in words or as its string, for the table in the docs.
    shrink
        Mends what the op stores as numbers; None where it stores nothing.
    reason
        Why an op without a coupling rule is frozen.
    gather
        Inputs with an axis to be gathered in the masked original, because the op looks across it.
    """

    name: str
    domain: str
    couple: Couple | None
    text: str
    shrink: Shrink | None = None
    reason: str = ""
    family: str = field(default="")


REGISTRY: dict[tuple[str, str], OpRule] = {}
_loaded = False


def op(
    *names: str,
    rule: str | None = None,
    text: str = "",
    weights: Mapping[int, str] | None = None,
    sizes: Callable[[OpView], Mapping[str, int]] | None = None,
    shrink: Shrink | None = None,
    after: Callable[[OpView, Mapping[str, Axis]], None] | None = None,
    through: Callable[[OpView], Sequence[bool]] | None = None,
) -> Callable[[Couple], Couple]:
    """Register a coupling rule for ops (``Name`` or ``domain::Name``).

    With ``rule`` the op is described by that string and the call itself registers; otherwise it decorates a
    function. ``weights`` maps operand numbers to their role, ``sizes`` gives the sizes of factors that no
    axis alone tells, ``after`` may mark axes by name once the string has been applied. ``through`` tells for each
    axis of ``_...`` whether this instance works on its indices one by one: such an axis is not frozen.
    """

    def register(couple: Couple) -> Couple:
        family = couple.__module__.rpartition(".")[2] if rule is None else _caller
        doc = (couple.__doc__ or "").strip().split("\n")[0]
        for name in names:
            domain, _, base = name.rpartition("::")
            key = (domain, base)
            if key in REGISTRY:
                raise ValueError(f"two coupling rules for {name}")
            REGISTRY[key] = OpRule(base, domain, couple, rule or text or doc, shrink, family=family)
        return couple

    _caller = ""
    if rule is not None:
        _caller = _calling_module()
        pattern = Pattern.parse(rule)
        register(functools.partial(_apply, pattern, weights or {}, sizes, after, through))
    return register


def _calling_module() -> str:
    import sys

    return str(sys._getframe(2).f_globals.get("__name__", "")).rpartition(".")[2]


def frozen_by_design(reason: str, *names: str) -> None:
    """Register ops whose inputs and outputs are never cut, with the reason in words."""
    for name in names:
        domain, _, base = name.rpartition("::")
        if (domain, base) in REGISTRY:
            raise ValueError(f"{name} has a coupling rule already")
        REGISTRY[(domain, base)] = OpRule(base, domain, None, "frozen", reason=reason, family="frozen")


def load_rules() -> Mapping[tuple[str, str], OpRule]:
    """All rules, the families imported on first use."""
    global _loaded  # noqa: PLW0603
    if not _loaded:
        _loaded = True
        package = importlib.import_module("graphprune.ops")
        for family in sorted(pkgutil.iter_modules(package.__path__), key=lambda module: module.name):
            importlib.import_module(f"graphprune.ops.{family.name}")
    return REGISTRY


def rule_for(node: ir.Node) -> OpRule | None:
    """The rule of a node's op, or None where nobody has described it."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    return load_rules().get((domain, node.op_type))


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """A node's attribute as a plain Python value."""
    attr = node.attributes.get(name)
    if attr is None or attr.value is None:
        return default
    return list(attr.value) if isinstance(attr.value, tuple) else attr.value


# -- the strings ---------------------------------------------------------------------------------------

ELLIPSIS = ("...",)
FROZEN_ELLIPSIS = ("_...",)
Term = tuple[str, ...]  # the names that make one axis; ELLIPSIS; FROZEN_ELLIPSIS


@dataclass(frozen=True)
class Pattern:
    """A parsed rule string."""

    inputs: tuple[tuple[Term, ...], ...]
    outputs: tuple[tuple[Term, ...], ...]

    @classmethod
    def parse(cls, text: str) -> Pattern:
        left, arrow, right = text.partition("->")
        if not arrow:
            raise ValueError(f"rule '{text}' has no '->'")
        sides = [tuple(_terms(part) for part in side.split(",")) for side in (left, right)]
        return cls(sides[0], sides[1])


def _terms(text: str) -> tuple[Term, ...]:
    out: list[Term] = []
    group: list[str] | None = None
    for token in text.replace("(", " ( ").replace(")", " ) ").split():
        if token == "(":
            group = []
        elif token == ")":
            if group is None:
                raise ValueError(f"unbalanced ')' in '{text}'")
            out.append(tuple(group))
            group = None
        elif group is not None:
            group.append(token)
        else:
            out.append((token,))
    return tuple(out)


def _expand(terms: tuple[Term, ...], rank: int) -> list[Term]:
    """Terms with the ellipsis spelled out; broadcast axes are numbered from the right: ``.0`` is the last."""
    out: list[Term] = []
    for term in terms:
        if term in (ELLIPSIS, FROZEN_ELLIPSIS):
            n = rank - (len(terms) - 1)
            if n < 0:
                raise UnknownShape(f"a value of rank {rank} where the op's rule has {len(terms) - 1} axes or more")
            prefix = "_." if term == FROZEN_ELLIPSIS else "."
            out.extend((f"{prefix}{n - 1 - i}",) for i in range(n))
        else:
            out.append(term)
    if len(out) != rank:
        raise UnknownShape(f"a value of rank {rank} where the op's rule has {len(out)} axes")
    return out


def _apply(
    pattern: Pattern,
    weights: Mapping[int, str],
    sizes: Callable[[OpView], Mapping[str, int]] | None,
    after: Callable[[OpView, Mapping[str, Axis]], None] | None,
    through: Callable[[OpView], Sequence[bool]] | None,
    view: OpView,
) -> list[Axes | None]:
    """Run one rule string on one node."""
    size = dict(sizes(view)) if sizes is not None else {}
    passed = [] if through is None else list(through(view))
    free = {f"_.{len(passed) - 1 - i}" for i, one_by_one in enumerate(passed) if one_by_one}
    env: dict[str, Axis] = {}
    additive = {i for i, role in weights.items() if role == "bias"}
    added = [
        set(itertools.chain(*_expand(pattern.inputs[i], len(view.axes(i))))) for i in sorted(additive) if view.has(i)
    ]
    for i in weights:
        view.weight(i, weights[i])
    for i, terms in enumerate(pattern.inputs):
        if not view.has(i):
            continue
        for term, axis in zip(_expand(terms, len(view.axes(i))), view.axes(i), strict=True):
            if i in weights and view.is_parameter(i):
                axis = Axis(axis.rows, True, axis.places)
            for name, factor in zip(term, _factors(view, term, axis, size), strict=True):
                if name.startswith("_") and name not in free:
                    what = f"{name[1:]} axis" if name[1] != "." else "kernel axis" if i in weights else "spatial axis"
                    view.freeze(factor, f"{what} of {view.node.op_type}")
                    continue
                size[name] = len(factor) if name not in size or size[name] == 1 else size[name]
                env[name] = _meet(view, env.get(name), factor, i in additive)
    results: list[Axes | None] = []
    used: set[str] = set()
    for j, terms in enumerate(pattern.outputs):
        if j >= len(view.node.outputs):
            break
        shape = view.out_shape(j)
        axes = []
        for term, n in zip(_expand(terms, len(shape)), shape, strict=True):
            used.update(term)
            known = [env.get(name) for name in term]
            full = [axis for axis in known if axis is not None]
            product = math.prod(len(axis) for axis in full)
            if len(full) != len(term) or product != n:
                axes.append(view.frozen(n))
                continue
            merged = view.merge(full)
            # Behind a sum with a bias that does not follow an axis, nothing along it is zero.
            axes.append(Axis(merged.rows, merged.zero and all(set(term) <= names for names in added), merged.places))
        results.append(axes)
    for name, axis in env.items():
        if name not in used and not axis.zero:
            view.inexact(axis, "is summed over where the removed values need not be zero")
    if after is not None:
        after(view, env)
    return results


def _factors(view: OpView, term: Term, axis: Axis, size: dict[str, int]) -> Axes:
    """The factors of a composite axis; one size may be left to be computed."""
    if len(term) == 1:
        return [axis]
    unknown = [name for name in term if name not in size]
    given = math.prod(size[name] for name in term if name in size)
    if len(unknown) > 1 or given == 0 or len(axis) % given or (not unknown and given != len(axis)):
        raise UnknownShape(f"an axis of {len(axis)} indices does not factor as ({' '.join(term)})")
    if unknown:
        size[unknown[0]] = len(axis) // given
    return view.split(axis, [size[name] for name in term])


def _meet(view: OpView, old: Axis | None, new: Axis, additive: bool) -> Axis:
    """The same name seen again: tied, unless one of the two is broadcast."""
    if old is None:
        return new
    if len(old) != len(new):
        if min(len(old), len(new)) != 1:
            raise UnknownShape(f"sizes {len(old)} and {len(new)} meet")
        return old if len(old) > len(new) else new
    tied = view.tie(old, new)
    zero = (old.zero and new.zero) if additive else (old.zero or new.zero)
    return Axis(tied.rows, zero, tied.places)
