"""The pass contract, and the state that passes work on.

A pass is a frozen dataclass: its fields are its options (``--pass entropy{reading=conv}``), its docstring
is its help, ``name`` its command-line name. It is registered by an entry point of group
``graphprune.passes``. Scoring passes return one number per unit and never change a graph; of the built-in
ones only ``canonicalize``, ``rewrite`` and what stands behind the proof (``recover``, ``distill``, ``sparsify``,
``quantize``) change one, and say so in ``changes_graph``.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.errors import GraphPruneError

if TYPE_CHECKING:
    from graphprune.costs import Costs
    from graphprune.coupling import Coupling
    from graphprune.cut import Rewriter
    from graphprune.elimination import Statistics
    from graphprune.facts import Facts
    from graphprune.frontends.onnx import Loaded
    from graphprune.inputs import Samples
    from graphprune.options import Options
    from graphprune.plan import Plan
    from graphprune.stages import Stages

Scores = NDArray[np.float64]
Kind = Literal["transform", "analysis", "score", "select", "recover", "compress", "check"]
#: What a criterion looks at: the weights, feature maps of calibration data, or gradients of a loss (with torch).
Needs = Literal["weights", "data", "gradients"]


@dataclass(frozen=True)
class Scored:
    """The result of one scoring pass.

    Attributes
    ----------
    values
        float64[n_units]; higher means keep.
    unit
        What the numbers are in: ``L1``, ``nats``, ...
    normalized
        Whether numbers of different groups can be compared as they are; otherwise selection divides by
        each group's mean.
    """

    name: str
    values: Scores
    unit: str
    normalized: bool


@dataclass(frozen=True)
class Quota:
    """What a step of several leaves and takes, group by group, where the options speak of the source.

    Attributes
    ----------
    groups
        Groups that may be cut: those of the source that may.
    floors
        Group -> units that stay at least.
    rates
        Group -> share to remove, with ``--scope group``.
    indices
        Indices to remove in all, with ``--scope global``.
    """

    groups: frozenset[int]
    floors: Mapping[int, int]
    rates: Mapping[int, float]
    indices: float


@dataclass
class State:
    """Everything one run knows. Data moves one way: passes read what earlier ones wrote."""

    loaded: Loaded
    options: Options
    progress: Callable[[str, float], None] = lambda _what, _share: None
    #: The source model in canonical form; never changed after ``canonicalize``.
    model: ir.Model = field(init=False)
    facts: Facts | None = None
    coupling: Coupling | None = None
    scores: list[Scored] = field(default_factory=list)
    dead: NDArray[np.bool_] | None = None
    plan: Plan | None = None
    cut: ir.Model | None = None
    rewriter: Rewriter | None = None
    before: Costs | None = None
    after: Costs | None = None
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    #: Milliseconds of one run, ``before`` and ``after`` the cut, where it was measured.
    latency: dict[str, float] = field(default_factory=dict)
    #: The same estimated for a device: ``on``, ``before``, ``after``. Never mixed with what was measured.
    estimate: dict[str, Any] = field(default_factory=dict)
    #: What it was measured in.
    timed_in: str = "ONNX Runtime"
    #: Tensors of the file that only folded nodes read, each with its reader.
    folded: list[tuple[ir.Value, ir.Node]] = field(default_factory=list)
    quota: Quota | None = None
    #: What is delivered where the cut was quantised: ``cut`` stays in floating point.
    quantised: ir.Model | None = None
    stages: Stages | None = None
    #: The first input that the cut was proved on, and what the cut model gave for it, before any recovery.
    proved: tuple[Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]] | None = None
    _samples: Samples | None = None
    _statistics: Statistics | None = None

    def __post_init__(self) -> None:
        self.model = self.loaded.model
        if self.loaded.torch is not None:
            self.notes.extend(self.loaded.torch.notes)

    def note(self, text: str) -> None:
        """Something the user should read, once."""
        if text not in self.notes:
            self.notes.append(text)

    def need_facts(self) -> Facts:
        if self.facts is None:
            raise GraphPruneError("shapes are not known yet: run 'couple' first")
        return self.facts

    def need_coupling(self) -> Coupling:
        if self.coupling is None:
            raise GraphPruneError("the coupling is not known yet: run 'couple' first")
        return self.coupling

    @property
    def saw_data(self) -> bool:
        """Whether a pass looked at calibration samples."""
        return self._samples is not None or self._statistics is not None

    @property
    def samples(self) -> Samples:
        """Calibration samples: the user's, or synthetic ones (said once)."""
        if self._samples is None:
            from graphprune.calibration import samples_for

            self._samples = samples_for(self)
            self.note(f"calibration data: {self._samples.description}")
        return self._samples

    @property
    def statistics(self) -> Statistics:
        """Second moments of what every layer reads, gathered once for all passes that ask."""
        if self._statistics is None:
            from graphprune.elimination import Statistics
            from graphprune.lstsq import one_thread
            from graphprune.moments import consumers_of, gather

            consumers = consumers_of(self, self.model, self.need_coupling())
            with self.timed("statistics"), one_thread():
                gather(self, consumers)
            self._statistics = Statistics([c for c in consumers if c.inputs.covariance.size])
        return self._statistics

    def parameter(self, value: ir.Value) -> np.ndarray[Any, Any] | None:
        """Contents of a parameter: a constant, or what constants alone make of it (dequantised, transposed).

        Returns
        -------
        ndarray or None
            Of the value's own shape and dtype; None where it cannot be evaluated.
        """
        from graphprune.calibration import evaluate_parameter

        return evaluate_parameter(self.model, value)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Pass(ABC):
    """Base of every pass."""

    name: ClassVar[str]
    kind: ClassVar[Kind] = "analysis"
    changes_graph: ClassVar[bool] = False
    #: For passes behind the proof: whether it runs once, on the whole cut, also where that is made in steps. Of those that
    #: recover it is the ones that train.
    last: ClassVar[bool] = False
    #: Place among the passes that compress.
    order: ClassVar[int] = 0

    def check(self, state: State) -> None:  # noqa: B027  # most passes work on any model
        """Raise what forbids the pass on this model, before anything is scored."""

    @abstractmethod
    def run(self, state: State) -> None:
        """Do the work: read from ``state``, write the result there."""


@dataclass(frozen=True)
class Score(Pass):
    """Base of every scoring pass: one number per unit, higher means keep."""

    kind: ClassVar[Kind] = "score"
    #: What the numbers are in.
    unit: ClassVar[str] = ""
    #: What it must look at; a run that cannot give it says so before any work.
    needs: ClassVar[Needs] = "weights"
    #: Whether numbers of different groups can be compared as they are.
    normalized: ClassVar[bool] = False
    #: Whether another seed gives other numbers.
    draws: ClassVar[bool] = False

    @abstractmethod
    def score(self, state: State) -> Scores:
        """One number per prunable unit, float64[n_units]; higher means keep."""

    def run(self, state: State) -> None:
        with np.errstate(all="ignore"):  # what is not finite is told below, once
            values = np.asarray(self.score(state), np.float64)
        n = state.need_coupling().n_units
        if values.shape != (n,):
            raise GraphPruneError(f"pass '{self.name}' gave scores of shape {values.shape}, not ({n},), one a unit")
        if not np.isfinite(values).all():
            bad = int((~np.isfinite(values)).sum())
            raise GraphPruneError(
                f"pass '{self.name}' gave {bad} of {n} scores that are not finite numbers{_infinite(state)}"
            )
        state.scores.append(Scored(self.name, values, self.unit, self.normalized))


def _infinite(state: State) -> str:
    """Where scores that are not finite may come from, in words."""
    from graphprune.frontends.onnx import nonfinite_weights

    names = nonfinite_weights(state.model, limit=3)
    if not names:
        return ": weights or feature maps of this size overflow; try another criterion ('graphprune passes')"
    listed = ", ".join(f"'{name}'" for name in names)
    return f": tensors with infinities: {listed}; the model is broken, train or export it again"


def per_unit(rows: NDArray[np.int64], per_index: NDArray[np.float64], n_units: int) -> tuple[Scores, NDArray[np.bool_]]:
    """Sum numbers of indices, float64[n], over the units that kill them.

    Parameters
    ----------
    rows
        int64[n, k] of prunable units, -1 for none (:meth:`graphprune.coupling.Coupling.rows`).

    Returns
    -------
    float64[n_units], bool[n_units]
        Sums; whether any index is the unit's.
    """
    live = rows >= 0
    weights = np.broadcast_to(per_index[:, None], rows.shape)[live]
    sums = np.bincount(rows[live], weights=weights, minlength=n_units)[:n_units]
    touched = np.bincount(rows[live], minlength=n_units)[:n_units] > 0
    return np.asarray(sums, np.float64), touched
