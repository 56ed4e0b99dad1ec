"""``graphprune bench``: models side by side in one runtime, in turns, with confidence intervals."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune import shapes as inference
from graphprune import timing, trtexec
from graphprune.backends import onnx as writer
from graphprune.backends import openvino
from graphprune.backends.runtimes import Engine, LayerTime, Runtime, find
from graphprune.calibration import input_specs, vocabulary
from graphprune.errors import ModelError, UsageError
from graphprune.frontends.onnx import load
from graphprune.inputs import Feed, Hints, batched_inputs
from graphprune.synthetic import synthetic

#: Runs of each model when neither runs nor seconds are given, and then at most so many seconds.
RUNS, SECONDS = 50, 60.0
#: Runs when only seconds are given.
MOST_RUNS = 1_000_000
#: Runs that a profile of layers is made of.
PROFILED = 20

Source = str | os.PathLike[str] | bytes | onnx.ModelProto | ir.Model


@dataclass(frozen=True)
class Timed:
    """One model's times.

    Attributes
    ----------
    name
        The file as given.
    times
        float64[rounds], milliseconds of one run.
    median, interval
        Its median and the bounds of that with 95 % confidence, milliseconds.
    ratio, ratio_interval
        Median as a share of the first model's, and the bounds of that; None for the first itself.
    layers
        Steps of the runtime's plan, where a profile was asked for.
    inputs
        Input name to the shape that was fed.
    """

    name: str
    times: NDArray[np.float64]
    median: float
    interval: tuple[float, float]
    ratio: float | None = None
    ratio_interval: tuple[float, float] | None = None
    layers: list[LayerTime] = field(default_factory=list)
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"name": self.name, "inputs": {name: list(shape) for name, shape in self.inputs.items()}}
        if len(self.times):
            out |= {
                "median_ms": self.median, "interval_ms": list(self.interval), "least_ms": float(self.times.min()),
                "p90_ms": float(np.percentile(self.times, 90)), "runs": len(self.times),
            }  # fmt: skip
        if self.ratio is not None and self.ratio_interval is not None:
            out |= {"ratio": self.ratio, "ratio_interval": list(self.ratio_interval)}
        if self.layers:
            out["layers"] = [{"name": one.name, "op": one.op, "ms": one.ms, "layout": one.layout} for one in self.layers]
        return out


@dataclass(frozen=True)
class Bench:
    """Models side by side.

    Attributes
    ----------
    runtime
        Name and version of what ran them, and where: ``onnxruntime 1.32.0``, ``cpu``.
    threads, processors
        Threads of one operator, and the processors that they were kept on.
    clock
        ``wall`` or ``cpu``, see :func:`bench`.
    in_turns
        Whether the models ran in turns on one machine; not so for files of a device.
    """

    runtime: str
    device: str
    machine: str
    threads: int | None
    processors: list[int]
    in_turns: bool
    seed: int
    clock: str
    rows: list[Timed]

    def to_json(self) -> dict[str, Any]:
        return {
            "runtime": self.runtime, "device": self.device, "machine": self.machine, "threads": self.threads,
            "processors": self.processors, "in_turns": self.in_turns, "seed": self.seed, "clock": self.clock,
            "confidence": timing.CONFIDENCE,
            "models": [row.to_json() for row in self.rows],
        }  # fmt: skip


def bench(
    *models: Source,
    runtime: str = "onnxruntime",
    threads: int | None = None,
    runs: int | None = None,
    seconds: float | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    batch: int | None = None,
    clock: timing.Clock = "wall",
    profile: bool = False,
    seed: int = 0,
) -> Bench:
    """Time models in turns; ratios are to the first.

    Parameters
    ----------
    *models
        Paths of ``.onnx`` files, for OpenVINO of ``.xml`` files too, or models in memory; or of JSON files that trtexec wrote
        on a device.
    runtime
        ``onnxruntime``, ``openvino`` or ``tensorrt``.
    threads
        Threads of one operator; all processors by default.
    runs, seconds
        Rounds in which each model runs once, and the time after which no further round begins.
    shapes
        Input name to shape, for dynamic axes; of each model those that it has.
    batch
        Size of a dynamic batch axis.
    clock
        ``wall``, or with one thread ``cpu``: time that the processor worked for this program, for a machine that other
        programs use as well.
    profile
        Also time the single steps of each model, in runs of their own.

    Raises
    ------
    UsageError
        Nothing to time, files of a device beside models, a shape or runtime that does not fit.
    ModelError
        The runtime refuses a model.
    """
    if not models:
        raise UsageError("nothing to time: give one or more models")
    for name, value in (("threads", threads), ("runs", runs), ("seconds", seconds), ("batch", batch)):
        if value is not None and value <= 0:
            raise UsageError(f"--{name} {value:g} must be above 0")
    files = [isinstance(model, (str, os.PathLike)) and trtexec.is_device_file(Path(model)) for model in models]
    if all(files):
        return _of_device([Path(model) for model in models if isinstance(model, (str, os.PathLike))], seed)
    if any(files):
        raise UsageError("times of a device and models to run here cannot be compared: give one kind")
    found = find(runtime)
    threads = timing.cores() if threads is None else threads
    if clock not in ("wall", "cpu"):
        raise UsageError(f"--clock {clock}: give wall or cpu")
    if clock == "cpu" and (threads != 1 or found.device != "cpu"):
        raise UsageError("--clock cpu adds up the time of all threads: give --threads 1 too, and a runtime on the CPU")
    if runs is None:
        runs, seconds = (RUNS, SECONDS) if seconds is None else (MOST_RUNS, seconds)
    sources = [runnable(model) for model in models]
    for source in sources:
        if openvino.is_ir(source) and found.name != "openvino":
            raise UsageError(f"'{Path(str(source))}' is OpenVINO's IR, which {found.name} does not read: give --runtime openvino")
    feeds = feeds_of(sources, shapes, batch, seed)
    _check_shapes(shapes, feeds)
    names = [str(model) if isinstance(model, (str, os.PathLike)) else f"model {n + 1}" for n, model in enumerate(models)]
    with timing.pinned(threads) as processors:
        times, layers = _measure(found, sources, feeds, threads, runs, seconds, seed, clock, profile)
    rows = [
        _row(name, times[n], times[0] if n else None, seed, layers[n], {key: a.shape for key, a in feeds[n].items()})
        for n, name in enumerate(names)
    ]
    version = f"{found.name} {found.version}"
    return Bench(version, found.device, timing.machine(), threads, processors, True, seed, clock, rows)


def _measure(
    runtime: Runtime, sources: Sequence[bytes | Path], feeds: Sequence[Feed], threads: int, runs: int,
    seconds: float | None, seed: int, clock: timing.Clock, profile: bool,
) -> tuple[NDArray[np.float64], list[list[LayerTime]]]:  # fmt: skip
    engines: list[Engine] = []
    try:
        for source, feed in zip(sources, feeds, strict=True):
            engines.append(runtime.load(source, threads))
            try:
                engines[-1].run(feed)
            except Exception as error:
                what = "the model" if isinstance(source, bytes) else f"'{source}'"
                raise ModelError(f"{runtime.name} cannot run {what} on made-up inputs: {' '.join(str(error).split())}") from error
        times = timing.in_turns(engines, feeds, runs=runs, seconds=seconds, seed=seed, clock=clock)
    finally:
        for engine in engines:
            engine.close()
    pairs = zip(sources, feeds, strict=True)
    return times, [runtime.profile(source, feed, threads, PROFILED) if profile else [] for source, feed in pairs]


def _row(
    name: str, times: NDArray[np.float64], base: NDArray[np.float64] | None, seed: int, layers: list[LayerTime],
    inputs: dict[str, tuple[int, ...]], *, paired: bool = True,
) -> Timed:  # fmt: skip
    median = float(np.median(times))
    ratio = bounds = None
    if base is not None:
        ratio = median / float(np.median(base))
        bounds = timing.ratio_interval(times, base, seed, paired=paired)
    return Timed(name, times, median, timing.median_interval(times, seed), ratio, bounds, layers, inputs)


def _of_device(paths: Sequence[Path], seed: int) -> Bench:
    """Files that trtexec wrote, side by side."""
    read = [trtexec.read(path) for path in paths]
    rows: list[Timed] = []
    base: NDArray[np.float64] | None = None
    for one in read:
        if one.latency is None:
            nothing = np.zeros(0)
            total = sum(layer.ms for layer in one.layers)
            rows.append(Timed(str(one.path), nothing, total, (total, total), layers=one.layers))
            continue
        rows.append(_row(str(one.path), one.latency, base, seed, one.layers, {}, paired=False))
        base = one.latency if base is None else base
    return Bench("trtexec", "a device", "the device that wrote the files", None, [], False, seed, "wall", rows)


def runnable(model: Source) -> bytes | Path:
    """A model as runtimes take it: its file, or its bytes."""
    if isinstance(model, (str, os.PathLike)):
        return Path(model)
    if isinstance(model, bytes):
        return model
    return model.SerializeToString() if isinstance(model, onnx.ModelProto) else writer.to_bytes(model)


def feeds_of(
    sources: Sequence[bytes | Path], shapes: Mapping[str, tuple[int, ...]] | None, batch: int | None, seed: int
) -> list[Feed]:
    """Made-up inputs of each model; an IR, whose graph is not looked into, takes the sizes of the ONNX files beside it."""
    found: dict[int, Feed] = {}
    for n, source in enumerate(sources):
        if not openvino.is_ir(source):
            found[n] = feed_of(source, shapes, batch, seed)
    sizes = {name: array.shape for feed in found.values() for name, array in feed.items()} | dict(shapes or {})
    for n, source in enumerate(sources):
        if n not in found:
            found[n] = feed_of(_inputs_alone(Path(str(source))), sizes, batch, seed)
    return [found[n] for n in range(len(sources))]


def input_names(path: str) -> list[str]:
    """Names of a model's inputs, in order."""
    return [spec.name for spec in (openvino.specs(Path(path)) if openvino.is_ir(path) else input_specs(load(path).model))]


def _inputs_alone(path: Path) -> ir.Model:
    """A model of the inputs of an IR and nothing else."""
    specs = openvino.specs(path)
    inputs = [ir.Value(name=s.name, shape=ir.Shape(s.shape), type=ir.TensorType(ir.DataType.from_numpy(s.dtype))) for s in specs]
    return ir.Model(ir.Graph(inputs, [], nodes=[], opset_imports={"": 20}), ir_version=10)


def feed_of(
    source: bytes | Path | ir.Model, shapes: Mapping[str, tuple[int, ...]] | None = None, batch: int | None = None, seed: int = 0,
) -> Feed:  # fmt: skip
    """Made-up inputs of a model: dynamic axes of the sizes given, a dynamic batch of 1 or ``batch``."""
    if isinstance(source, ir.Model):
        model = source
    else:
        model = load(onnx.load_from_string(source) if isinstance(source, bytes) else source).model
    specs = input_specs(model)
    own = {spec.name: tuple((shapes or {})[spec.name]) for spec in specs if spec.name in (shapes or {})}
    chosen = inference.probe_inputs(model, own)
    if batch is not None:
        _, batched = batched_inputs(specs, chosen)
        for spec in specs:
            if spec.name in batched and spec.name not in own:
                if spec.size(0) not in (None, batch):
                    raise UsageError(f"--batch {batch}: the batch of input {spec} is fixed at {spec.size(0)}")
                chosen[spec.name] = (batch, *chosen[spec.name][1:])
    facts = inference.infer(model, chosen)
    hints = Hints(limits=vocabulary(model, facts))
    return next(iter(synthetic(specs, n=max(batch or 1, 1), seed=seed, shapes=chosen, hints=hints)))


def _check_shapes(shapes: Mapping[str, tuple[int, ...]] | None, feeds: Sequence[Feed]) -> None:
    known = {name for feed in feeds for name in feed}
    for name in shapes or {}:
        if name not in known:
            raise UsageError(f"--shape {name}: no model has an input of this name (inputs: {', '.join(sorted(known))})")
