"""A latency model from measurements on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune import shapes, timing
from graphprune.backends import onnx as writer
from graphprune.backends.runtimes import Runtime, find
from graphprune.benching import feed_of
from graphprune.coupling import Coupling
from graphprune.devices import alignment, named
from graphprune.errors import GraphPruneError
from graphprune.facts import Facts
from graphprune.latency.layers import Layer, Micro, parts_of
from graphprune.latency.model import Measured, in_context, within
from graphprune.latency.steps import Bench, Table, find_step
from graphprune.passes.base import State

Progress = Callable[[str, float], None]
#: Different layers that are timed alone at most, those that take longest; the rest follow what they read and write.
MOST_LAYERS = 120
#: Runs of the whole model that its profile is made of.
_PROFILED = 12
#: Longest side of a layer that a step is looked for on.
_WIDEST = 512


def measured(
    state: State, runtime: Runtime, threads: int, orders: Mapping[int, NDArray[np.int64]], align: int | None = None
) -> Measured:
    """Time the layers of a run's model at a few widths each.

    Parameters
    ----------
    orders
        Group number -> its units in the order in which they go.
    align
        Multiples that widths are kept to; by default the runtime's own step is looked for.

    Raises
    ------
    ModelError
        The runtime refuses the model.
    """
    coupling = state.need_coupling()
    feed = timing_feed(state)
    facts = shapes.infer(state.model, {name: array.shape for name, array in feed.items()})
    parts = parts_of(state.model, coupling, facts, orders)
    state.progress("timing the model's layers", 0.0)
    profile = runtime.profile(writer.to_bytes(state.model), feed, threads, _PROFILED)
    found, fixed = within(parts.layers, profile, state.model)
    bench = Bench(runtime, threads)
    micros = _micros(parts.layers, state.model, facts, coupling, found)
    step = align if align is not None else step_of(bench, micros)
    tables, refused = _tables(bench, micros, step, lambda share: state.progress("timing layers alone", share))
    listed: list[Table | None] = [tables.get(layer.node) for layer in parts.layers]
    full = in_context(listed, parts.layers, found)
    distinct = len({micro.signature() for micro in micros.values()})
    said = (
        f"latency model: {distinct} different layers timed alone in {runtime.name} {runtime.version}, {threads} "
        f"thread{'s' if threads > 1 else ''}: {bench.measured} points measured now, {bench.known} known from before; "
        f"widths between them are rounded up to multiples of {step} and interpolated; "
        f"{sum(table is None for table in listed)} other nodes follow the elements that they read and write"
    )
    if refused:
        said += f"; {refused} layers could not run alone"
    return Measured(parts, listed, full, fixed, step, said)


def timing_feed(state: State) -> dict[str, NDArray[np.generic]]:
    """What a run's model is timed on: a batch of one where that is open, sizes of ``--shape`` elsewhere."""
    return dict(feed_of(state.model, dict(state.options.shapes), seed=state.options.seed))


def auto_step(state: State) -> int:
    """The step that ``--align auto`` keeps widths to: the device's, or that of the model's longest layer here; said in a note."""
    if state.options.device != "cpu":
        target = named(state.options.device)
        step = alignment(target)
        state.note(f"--align auto: multiples of {step}, as {target.device.title} computes {target.width_precision.upper()}")
        return step
    runtime = find(state.options.runtime)
    threads = state.options.threads or timing.cores()
    with timing.pinned(threads):
        step = detected_step(state, runtime, threads)
    state.note(f"--align auto: multiples of {step}, as measured in {runtime.name} {runtime.version}")
    return step


def detected_step(state: State, runtime: Runtime, threads: int) -> int:
    """The step of widths that a runtime likes, on the model's longest layer that shows one."""
    feed = timing_feed(state)
    facts = shapes.infer(state.model, {name: array.shape for name, array in feed.items()})
    coupling = state.need_coupling()
    orders = {group.id: group.units for group in coupling.groups}
    parts = parts_of(state.model, coupling, facts, orders)
    profile = runtime.profile(writer.to_bytes(state.model), feed, threads, _PROFILED)
    found, _ = within(parts.layers, profile, state.model)
    return step_of(Bench(runtime, threads), _micros(parts.layers, state.model, facts, coupling, found))


def step_of(bench: Bench, micros: Mapping[ir.Node, Micro]) -> int:
    """The step of widths that the runtime likes, on the longest layer that is wide enough to show one."""
    for micro in micros.values():
        wide = [min(full, _WIDEST) for full, _ in micro.layer.dims]
        if len(wide) != 2 or min(wide) < 64:
            continue

        def times(widths: Sequence[int], micro: Micro = micro) -> list[float]:
            # Both widths at once: what one layer writes the next one reads.
            return bench.points(micro, [(width, width) for width in widths])

        try:
            return find_step(times, min(wide))
        except GraphPruneError:
            continue
    return 1


def _micros(
    layers: Sequence[Layer], model: ir.Model, facts: Facts, coupling: Coupling, found: Mapping[ir.Node, float]
) -> dict[ir.Node, Micro]:
    """The layers that are timed alone, those that take longest within the model first."""
    out: dict[ir.Node, Micro] = {}
    seen: set[str] = set()
    for layer in sorted(layers, key=lambda one: -found.get(one.node, 0.0)):
        if not layer.alone:
            continue
        constants = {v: coupling.coupler.is_parameter(v) for v in layer.node.inputs if v is not None}
        micro = Micro(layer, model, facts, constants)
        seen.add(micro.signature())
        if len(seen) <= MOST_LAYERS:
            out[layer.node] = micro
    return out


def _tables(
    bench: Bench, micros: Mapping[ir.Node, Micro], step: int, progress: Callable[[float], None]
) -> tuple[dict[ir.Node, Table], int]:
    """Times of every layer, layers alike measured once; and how many the runtime refused alone."""
    by_signature: dict[str, Table | None] = {}
    out: dict[ir.Node, Table] = {}
    for n, (node, micro) in enumerate(micros.items()):
        progress(n / len(micros))
        name = micro.signature()
        if name not in by_signature:
            try:
                by_signature[name] = bench.table(micro, step)
            except (GraphPruneError, ValueError, RuntimeError):
                by_signature[name] = None  # it follows its elements, as what cannot run alone does
        table = by_signature[name]
        if table is not None:
            out[node] = table
    return out, sum(table is None for table in by_signature.values())


def clock_of(threads: int) -> timing.Clock:
    """With one thread, the processor's time for this program: what other programs do does not count."""
    return "cpu" if threads == 1 else "wall"
