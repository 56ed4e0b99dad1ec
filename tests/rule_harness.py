"""Rules of single ops, said in one line and checked in two ways.

A :class:`Case` is one node, its inputs, and what its coupling rule must make of them, written like this::

    case("Conv", "2x6x5x5 4x3x3x3* 4*", "b (g i) _ _, (g o) i _ _, (g o) -> b! (g o) _ _ | g=2", group=2)

Inputs: ``2x6x5x5`` is data, ``4*`` a parameter (a constant with random contents), ``i64:3`` or ``bool:3`` has
another element type, ``-`` is left out, ``()`` is a scalar; a number, list or array is a constant whose
contents count. Every index of every data or parameter axis longer than 1 starts as a unit of its own.

Expectation: operands and results as comma-separated lists of axes. A letter is an axis of units, the same
letter the same units; ``_`` an axis without any; ``(a b)`` a row-major product, ``(a _2)`` with a factor of
two that nobody kills; ``a+b`` one behind the other, ``a+_3``; ``a[1:]``, ``a[2,0]``, ``a[::-1]`` are taken as
numpy does; ``-`` as an operand is not looked at, ``?`` is a result without known axes. ``~a``: the node looks
across this input axis, cutting it is inexact. ``a!``: values at removed indices need not be zero (on an
input, they are made so). Behind ``|`` stand sizes of letters that no axis tells alone.

:func:`check` compares units, up to their names, :func:`check_cut` removes random units, rewrites the
node and runs source and cut: what is kept must be equal, and what is said to be zero must be.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx.defs
import onnx.reference
import onnx_ir as ir
import onnxruntime as ort
from onnx import helper, numpy_helper

from graphprune import shapes
from graphprune.coupler import Coupler
from graphprune.coupling import Coupling
from graphprune.cut import Rewriter
from graphprune.masking import MASKED_ROLES
from graphprune.ops.masking import zero_point
from graphprune.rules import Axis
from graphprune.units import frozen_rows
from tests.rule_notation import Notation, Units, classes, picture

#: Opset of a case that names none; newer ops use the first that has them.
OPSET = 21
TYPES = {"i64": np.int64, "i32": np.int32, "bool": np.bool_, "u8": np.uint8, "i8": np.int8, "f16": np.float16,
         "str": np.object_}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One node and what its rule must make of it; see the module's text."""

    op: str
    inputs: str | Sequence[Any]
    expect: str
    attrs: Mapping[str, Any] = field(default_factory=dict)
    opset: int | None = None
    roles: str = ""  # "1:weight 2:bias"
    why: str = ""  # part of a reason that must have been given for freezing something
    outputs: int | None = None  # number of results the node has, where the expectation does not tell
    runs: bool = True  # whether source and cut are run and compared
    data: Mapping[int, Any] = field(default_factory=dict)  # contents of data inputs when run (indices, say)
    integers: bool = False  # whether integers and booleans are numbers, zeroed with the rest, or positions
    chain: Sequence[onnx.NodeProto] = ()  # nodes before this one, which read the operands as i0, i1, ...
    reads: str = ""  # what the node reads, where it does not read the operands themselves

    @property
    def domain(self) -> str:
        return self.op.rpartition("::")[0]

    @property
    def name(self) -> str:
        return self.op.rpartition("::")[2]

    def __str__(self) -> str:
        return f"{self.op}: {self.expect}"


def case(
    op: str,
    inputs: str | Sequence[Any],
    expect: str,
    *,
    opset: int | None = None,
    roles: str = "",
    why: str = "",
    outputs: int | None = None,
    runs: bool = True,
    data: Mapping[int, Any] | None = None,
    integers: bool = False,
    chain: Sequence[onnx.NodeProto] = (),
    reads: str = "",
    **attrs: Any,
) -> Case:
    """A table line; keywords it does not know are attributes of the node."""
    return Case(op, inputs, expect, attrs, opset, roles, why, outputs, runs, data or {}, integers, chain, reads)


# -- building the node ---------------------------------------------------------------------------------
@dataclass(frozen=True)
class Input:
    """One operand: its name, shape and type, and contents where it is a constant."""

    name: str
    shape: tuple[int, ...]
    dtype: Any
    value: np.ndarray | None = None
    known: bool = False


def _draw(shape: tuple[int, ...], dtype: Any, rng: np.random.Generator) -> np.ndarray:
    if dtype is np.object_:
        return np.full(shape, "a", dtype=object)
    if np.issubdtype(dtype, np.floating):
        return (rng.random(shape) + 0.5).astype(dtype) * rng.choice([-1, 1], shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)


def _inputs(spec: str | Sequence[Any]) -> list[Input | None]:
    rng = np.random.default_rng(1)
    out: list[Input | None] = []
    for i, item in enumerate(spec.split() if isinstance(spec, str) else spec):
        if item is None or (isinstance(item, str) and item == "-"):
            out.append(None)
        elif isinstance(item, str):
            kind, _, size = item.rpartition(":")
            dtype = TYPES[kind] if kind else np.float32
            text = size.rstrip("*")
            shape = () if text == "()" else tuple(map(int, text.split("x")))
            value = _draw(shape, dtype, rng) if size.endswith("*") else None
            out.append(Input(f"i{i}", shape, dtype, value))
        else:
            array = np.asarray(item)
            array = array.astype(np.float32) if array.dtype == np.float64 else array
            out.append(Input(f"i{i}", array.shape, array.dtype.type, array, True))
    return out


def _opset(case: Case) -> int:
    if case.opset is not None or case.domain:
        return case.opset or OPSET
    names = (s for s in onnx.defs.get_all_schemas_with_history() if s.name == case.name and not s.domain)
    return max(OPSET, min((s.since_version for s in names), default=OPSET))


def _declare(spec: Input) -> onnx.ValueInfoProto:
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
    return helper.make_tensor_value_info(spec.name, dtype, spec.shape)


def build(case: Case, inputs: list[Input | None], outputs: int) -> onnx.ModelProto:
    """The model of one node, its data as graph inputs."""
    node = helper.make_node(
        case.name, case.reads.split() or ["" if i is None else i.name for i in inputs], [f"o{j}" for j in range(outputs)],
        domain=case.domain, **case.attrs,
    )  # fmt: skip
    given = [i for i in inputs if i is not None]
    graph = helper.make_graph(
        [*case.chain, node],
        "case",
        [_declare(i) for i in given if i.value is None],
        [helper.make_empty_tensor_value_info(f"o{j}") for j in range(outputs)],
        [numpy_helper.from_array(i.value, i.name) for i in given if i.value is not None],
    )
    imports = [helper.make_opsetid("", _opset(case))]
    if case.domain:
        imports.append(helper.make_opsetid(case.domain, 1))
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


# -- running the rule ----------------------------------------------------------------------------------
class Analysis:
    """A case, its model, and the coupling that the rule makes."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.notation = Notation(case.expect)
        self.inputs = _inputs(case.inputs)
        outputs = case.outputs or len(self.notation.results)
        self.proto = build(case, self.inputs, outputs)
        self.model = ir.from_proto(self.proto)
        self.node = next(reversed(self.model.graph))
        named = {str(v.name): v for v in (*self.model.graph.inputs, *self.model.graph.initializers.values())}
        self.values = [None if i is None else named[i.name] for i in self.inputs]
        given = {i.name: i.shape for i in self.inputs if i is not None and i.value is None}
        self.facts = shapes.infer(self.model, given)
        self.coupler = Coupler(self.facts, self.model.graph.opset_imports)
        for value in self.model.graph.inputs:
            slot = int(str(value.name)[1:])
            axes = []
            for i, n in enumerate(given[str(value.name)]):
                rows = self.coupler.units.fresh(n)[:, None] if n > 1 else frozen_rows(n)
                axes.append(Axis(rows, not self._made_nonzero(slot, i), ((value, i),)))
            self.coupler.axes[value] = axes
        self.coupler.sweep(self.model.graph)

    def _made_nonzero(self, slot: int, axis: int) -> bool:
        operand = self.notation.operands[slot] if slot < len(self.notation.operands) else "-"
        return operand != "-" and self.notation.axes(operand)[axis].endswith("!")

    def live(self, value: ir.Value) -> list[Units] | None:
        axes = self.coupler.axes_of(value)
        if axes is None:
            return None
        out: list[Units] = []
        for axis in axes:
            rows = self.coupler.units.resolve(axis.rows)
            out.append([frozenset(int(u) for u in row if u > 0) for row in rows])
        return out

    def operands(self) -> list[tuple[str, ir.Value, str]]:
        """(slot, value, expectation) of every operand and result that the expectation looks at."""
        out = []
        for i, text in enumerate(self.notation.operands):
            value = self.values[i] if i < len(self.values) else None
            if text and text != "-" and value is not None:
                out.append((f"i{i}", value, text))
        for j, text in enumerate(self.notation.results):
            if text != "-":
                out.append((f"o{j}", self.node.outputs[j], text))
        return out


def check(case: Case) -> None:
    """The rule makes exactly the units, flags and roles that the case expects."""
    run = Analysis(case)
    coupler, notation = run.coupler, run.notation
    assert not coupler.unknown_ops, f"no rule for {case.op}"
    assert not coupler.unshaped or "?" in case.expect or case.why, coupler.unshaped
    looked = []
    for slot, value, text in run.operands():
        live = run.live(value)
        if text == "?":
            assert live is None, f"{slot} was to have no known axes"
            continue
        assert live is not None, f"{slot} has no known axes"
        terms = notation.axes(text)
        if not terms or terms == ["()"]:
            terms = []
        assert len(terms) == len(live), f"{slot} has {len(live)} axes, '{text}' describes {len(terms)}"
        looked.append((slot, terms, live))
    pairs = [pair for _, terms, live in looked for pair in zip(terms, live, strict=True)]
    while any(notation.learn(term, len(units)) for term, units in pairs):
        pass
    want: dict[tuple[str, int], Units] = {}
    got: dict[tuple[str, int], Units] = {}
    for slot, terms, live in looked:
        for a, (term, units) in enumerate(zip(terms, live, strict=True)):
            want[slot, a], got[slot, a] = notation.rows(term, len(units)), units
    assert classes(want) == classes(got), f"expected\n{picture(want)}\ngot\n{picture(got)}"
    _check_flags(run, looked)
    if case.roles:
        roles = {f"{o.index}:{o.role}" for o in coupler.operands if o.node is run.node}
        assert roles == set(case.roles.split()), roles
    if case.why:
        reasons = [freeze.reason for freeze in coupler.freezes]
        assert any(case.why in reason for reason in reasons), reasons


def _check_flags(run: Analysis, looked: list[tuple[str, list[str], list[Units]]]) -> None:
    coupler = run.coupler
    live_across = [item for item in coupler.across if not item.exact and coupler.units.resolve(item.rows).any()]
    across = {place for item in live_across for place in item.places}
    for slot, terms, live in looked:
        value = run.values[int(slot[1:])] if slot[0] == "i" else run.node.outputs[int(slot[1:])]
        assert value is not None
        axes = coupler.axes_of(value) or []
        for a, (term, units) in enumerate(zip(terms, live, strict=True)):
            if not any(units):
                continue
            if slot[0] == "i":
                inexact = (value, a) in across
                assert inexact == term.startswith("~"), f"{slot}[{a}] inexact: {inexact}"
            else:
                assert axes[a].zero != term.endswith("!"), f"{slot}[{a}] zero: {axes[a].zero}"


# -- running the node ----------------------------------------------------------------------------------
def check_cut(case: Case, seed: int = 0) -> bool:
    """Remove random exact units and run both models; False where no runtime here knows the op."""
    run = Analysis(case)
    coupling = _everything_prunable(run)
    rng = np.random.default_rng(seed)
    dead = _choose(run, coupling, rng)
    rewriter = Rewriter(run.model, coupling, run.facts, dead)
    for value in run.model.graph.inputs:
        rewriter._set(value)
        rewriter.new_of[value].shape = ir.Shape(rewriter.expected(value) or ())
    cut = ir.to_proto(rewriter.run())
    source, feeds, cut_feeds = _masked(run, rewriter, rng)
    expected = _execute(source, feeds)
    if expected is None:
        return False
    found = _execute(cut, cut_feeds)
    assert found is not None, "the source ran, the cut did not"
    # Integers that are positions or quantised are not set to zero, so nothing follows for what is made of them.
    zeroed = case.integers or all(array.dtype.kind == "f" for array in feeds.values())
    for j, (value, a, b) in enumerate(zip(run.node.outputs, expected, found, strict=True)):
        if isinstance(a, list):
            continue
        for axis in range(a.ndim):
            kept = rewriter.kept(value, axis) if run.coupler.axes.get(value) else None
            if kept is None:
                continue
            gone = np.setdiff1d(np.arange(a.shape[axis]), kept)
            own = (run.coupler.axes[value] or [])[axis]
            if own.zero and zeroed:
                assert not np.any(a.take(gone, axis)), f"o{j}[{axis}] is said to be zero where it was removed"
            a = a.take(kept, axis)
        assert a.shape == b.shape, (j, a.shape, b.shape)
        if a.dtype.kind == "f":
            scale = max(float(np.max(np.abs(a), initial=0)), 1e-6)
            np.testing.assert_allclose(b / scale, a / scale, atol=1e-5)
        else:
            np.testing.assert_array_equal(a, b)
    return True


def _everything_prunable(run: Analysis) -> Coupling:
    """A coupling in which every live unit may be removed, weights or not."""
    n = len(run.coupler.units)
    live: set[int] = set()
    for value, axes in run.coupler.axes.items():
        # Units that only stand inside a body are left: nothing ties them to what is looked at.
        if value in run.model.graph.inputs or value.is_initializer() or value in run.node.outputs:
            for axis in axes or ():
                live.update(int(u) for u in np.unique(run.coupler.units.resolve(axis.rows)) if u > 0)
    compact = np.full(n, -1)
    compact[sorted(live)] = np.arange(len(live))
    return Coupling(run.coupler, len(live), _compact=compact)


def _choose(run: Analysis, coupling: Coupling, rng: np.random.Generator) -> np.ndarray:
    """Random units to remove: exact ones, and never so many that an axis is left empty."""
    dead = np.zeros(coupling.n_units, np.bool_)
    places = [(value, a) for value, axes in run.coupler.axes.items() for a in range(len(axes or ()))]
    tables = [coupling.rows(value, a) for value, a in places]
    inexact = np.zeros(coupling.n_units + 1, np.bool_)
    for item in run.coupler.across:
        inexact[coupling._compact[run.coupler.units.resolve(item.rows)].reshape(-1)] = True
    for unit in rng.permutation(coupling.n_units)[: max(1, coupling.n_units // 2)]:
        trial = np.append(dead, False)
        trial[unit] = True
        if not inexact[unit] and not any(len(t) and trial[t].any(axis=1).all() for t in tables):
            dead = trial[:-1]
    return dead


def _masked(
    run: Analysis, rewriter: Rewriter, rng: np.random.Generator
) -> tuple[onnx.ModelProto, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The source with parameters and data zeroed where indices are removed, and the feeds of both models."""
    source = onnx.ModelProto()
    source.CopyFrom(run.proto)
    masked = {o.index: o for o in run.coupler.operands if o.node is run.node and o.role in MASKED_ROLES}
    feeds: dict[str, np.ndarray] = {}
    cut_feeds: dict[str, np.ndarray] = {}
    for i, spec in enumerate(run.inputs):
        value = run.values[i]
        if spec is None or value is None or (spec.value is not None and i not in masked):
            continue
        if spec.value is not None:
            array = spec.value.copy()
        elif i in run.case.data:
            array = np.array(run.case.data[i], spec.dtype).reshape(spec.shape)
        else:
            array = _draw(spec.shape, spec.dtype, rng)
        takes = []
        for axis, own in enumerate(run.coupler.axes_of(value) or []):
            kept = rewriter.kept(value, axis)
            if kept is None:
                continue
            takes.append((axis, kept))
            gone = np.setdiff1d(np.arange(array.shape[axis]), kept)
            if i in masked or (own.zero and (array.dtype.kind == "f" or run.case.integers)):
                fill = zero_point(masked[i], run.facts) if i in masked else None
                where = (slice(None),) * axis + (gone,)
                array[where] = 0 if fill is None else np.broadcast_to(fill, array.shape)[where]
        if spec.value is None:
            small = array
            for axis, kept in takes:
                small = small.take(kept, axis)
            feeds[spec.name], cut_feeds[spec.name] = array, small
        else:
            tensor = next(t for t in source.graph.initializer if t.name == spec.name)
            tensor.CopyFrom(numpy_helper.from_array(array, spec.name))
    return source, feeds, cut_feeds


def _execute(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[Any] | None:
    """Run in ONNX Runtime, else in ONNX's own reference; None where neither knows the op."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    except Exception:
        return _refer(model, feeds)
    return list(session.run(None, feeds))


def _refer(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[Any] | None:
    try:
        return list(onnx.reference.ReferenceEvaluator(model).run(None, feeds))
    except (NotImplementedError, RuntimeError, TypeError, KeyError):
        return None


@functools.cache
def registered() -> frozenset[str]:
    """Names of all ops that have a coupling rule or are frozen by design."""
    from graphprune.rules import load_rules

    return frozenset(f"{d}::{n}" if d else n for d, n in load_rules())


def missing(cases: Iterable[Case], domains: Sequence[str] = ("",)) -> list[str]:
    """Registered ops of some domains that have no table line."""
    seen = {c.op for c in cases}
    return sorted(name for name in registered() - seen if name.rpartition("::")[0] in domains)


__all__ = ["Analysis", "Case", "case", "check", "check_cut", "missing", "registered"]
