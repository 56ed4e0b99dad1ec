"""A runtime that runs nothing: what a model costs follows from its shapes, on a staircase, and never changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import shape_inference

from graphprune import timing
from graphprune.backends.runtimes.base import LayerTime

#: Channels of a block: a width between two multiples costs what the next one does.
BLOCK = 8


def _dims(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    inferred = shape_inference.infer_shapes(model, data_prop=True).graph
    values = [*inferred.input, *inferred.value_info, *inferred.output]
    out = {v.name: tuple(max(d.dim_value, 1) for d in v.type.tensor_type.shape.dim) for v in values}
    return out | {t.name: tuple(t.dims) for t in inferred.initializer}


def cost_of(model: bytes | Path) -> list[LayerTime]:
    """A step a node: products by blocks of channels, everything else by its elements."""
    proto = onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(model)
    dims, steps = _dims(proto), []
    for node in proto.graph.node:
        out = dims.get(node.output[0], ())
        ms = 1e-6 * float(np.prod(out))
        if node.op_type in ("Conv", "Gemm"):
            rows, columns, *kernel = dims[node.input[1]]
            blocks = -(-rows // BLOCK) * -(-columns // BLOCK) * BLOCK * BLOCK
            ms = 1e-4 * blocks * float(np.prod(kernel)) * float(np.prod(out[2:]))
        steps.append(LayerTime(node.name or node.output[0], node.op_type, ms, ms))
    return steps


class FakeEngine:
    def __init__(self, ms: float) -> None:
        self.ms = ms

    def run(self, feed: Any) -> None: ...

    def close(self) -> None: ...


class FakeRuntime:
    """``overhead`` is a share of the source's time that no layer shows, and no cut removes."""

    name, version, device = "fake", "1", "cpu"

    def __init__(self, overhead: float = 0.0) -> None:
        self.overhead = overhead
        self.source: float | None = None
        self.profiled = 0

    def load(self, model: bytes | Path, threads: int) -> FakeEngine:
        ms = sum(step.ms for step in cost_of(model))
        self.source = ms if self.source is None else self.source
        return FakeEngine((1 - self.overhead) * ms + self.overhead * self.source)

    def profile(self, model: bytes | Path, feed: Any, threads: int, runs: int, *, named: bool = True) -> list[LayerTime]:
        self.profiled += 1
        return cost_of(model)


def install(monkeypatch: pytest.MonkeyPatch, runtime: FakeRuntime, cache: Path) -> FakeRuntime:
    """Let latency budgets be measured in it, a clock that says what its engines cost, and an empty cache."""
    monkeypatch.setattr("graphprune.latency.budget.find", lambda name: runtime)
    monkeypatch.setattr("graphprune.latency.measure.find", lambda name: runtime)
    monkeypatch.setenv("GRAPHPRUNE_CACHE", str(cache))

    def in_turns(engines: Any, feeds: Any, *, runs: int, **settings: Any) -> Any:
        return np.outer([engine.ms for engine in engines], np.ones(runs))

    monkeypatch.setattr(timing, "in_turns", in_turns)
    return runtime
