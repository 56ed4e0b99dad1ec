"""A model at the stages of a run (source, cut, recovered, INT8, ...), each judged on the same held-out samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphprune.backends.onnx import file_bytes
from graphprune.calibration import samples_for
from graphprune.comparing import run_all
from graphprune.feeding import feed_size, fitting_feeds, samples_in
from graphprune.fidelity import compare_outputs
from graphprune.inputs import Feed
from graphprune.passes.base import State

#: Share of the samples that judge, as in a recovery.
HELD_OUT = 0.2
SOURCE, CUT, RECOVERED, SPARSE, INT8, ALONE = "source", "cut", "recovered", "2:4 sparse", "INT8", "INT8 alone"


@dataclass
class Stage:
    """A model on the way.

    Attributes
    ----------
    delivered
        Whether it lies on the way to what is written; what is beside it is there to compare with.
    bytes
        Of its file.
    fidelity
        Of its outputs to the source's on held-out samples (:func:`graphprune.fidelity.compare_outputs`); empty for the source.
    evaluation
        What the user's function gave.
    """

    name: str
    model: ir.Model
    bytes: int
    fidelity: dict[str, Any]
    delivered: bool = True
    evaluation: float | dict[str, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """The stage as a plan has it."""
        data = {"stage": self.name, "bytes": self.bytes, "delivered": self.delivered, "fidelity": self.fidelity}
        return data if self.evaluation is None else {**data, "evaluation": self.evaluation}


@dataclass
class Stages:
    """The stages of a run, and what judges them.

    Attributes
    ----------
    fitting, held
        Samples that later passes may learn from, and those that judge; a single feed does both.
    count, fitting_count
        Samples in ``held`` and in ``fitting``.
    """

    fitting: list[Feed]
    held: list[Feed]
    count: int
    fitting_count: int
    source: list[Mapping[str, np.ndarray[Any, Any]]]
    entries: list[Stage] = field(default_factory=list)

    def judge(self, model: ir.Model, most: int | None = None) -> dict[str, Any]:
        """Fidelity of a model's outputs to the source's, on ``most`` held-out feeds (all)."""
        return compare_outputs(self.source[:most], run_all(model, self.held[:most]))

    def add(self, name: str, model: ir.Model, delivered: bool = True) -> Stage:
        """Judge a model and put it down."""
        stage = Stage(name, model, file_bytes(model), self.judge(model), delivered)
        self.entries.append(stage)
        return stage

    @property
    def last(self) -> Stage:
        """What is delivered."""
        return [stage for stage in self.entries if stage.delivered][-1]


def stages_of(state: State) -> Stages:
    """The run's stages so far: what was done before the first pass that asks is put down here."""
    if state.stages is not None:
        return state.stages
    assert state.rewriter is not None and state.cut is not None and state.plan is not None and state.dead is not None
    samples = samples_for(state, batch=feed_size(state))
    feeds = list(samples)
    fitting = fitting_feeds(len(feeds), HELD_OUT)
    held = feeds[fitting:] or feeds
    counts = [sum(samples_in(feed, samples.batched) for feed in part) for part in (held, feeds[:fitting])]
    stages = Stages(feeds[:fitting], held, counts[0], counts[1], run_all(state.model, held))
    path = state.loaded.path
    size = Path(path).stat().st_size if path is not None and Path(path).is_file() else 0
    # A file with its weights beside it is as large as both.
    stages.entries.append(Stage(SOURCE, state.model, max(size, file_bytes(state.model)), {}))
    recovered = bool(state.plan.recovery.get("used"))
    if state.dead.any():
        stages.add(CUT, state.rewriter.again() if recovered else state.cut.clone())
    if recovered:
        stages.add(RECOVERED, state.cut.clone())
    state.stages = stages
    return stages


def deliver(state: State, stage: Stage) -> None:
    """The stage is what the run gives now: its fidelity is the plan's."""
    assert state.plan is not None and state.stages is not None
    state.plan.fidelity = {"samples": state.stages.count, **stage.fidelity}
    state.plan.stages = [one.to_json() for one in state.stages.entries]
