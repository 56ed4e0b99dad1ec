"""The proof of a lowering: source and lowered model give the same outputs in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphprune import data as loading
from graphprune.backends.ort import Runner
from graphprune.backends.tensorrt.lowering import Lowered, is_valid
from graphprune.calibration import input_specs, vocabulary
from graphprune.comparing import relative_error, value_names
from graphprune.decisions import decided
from graphprune.errors import GraphPruneError, VerificationError
from graphprune.inputs import Feed, Hints, Samples
from graphprune.passes.verify import tolerance_of
from graphprune.shapes import infer, probe_inputs


def samples(
    model: ir.Model, *, n: int, shapes: Mapping[str, tuple[int, ...]], data: str | Path | None = None, seed: int = 0,
    mean: Sequence[float] | None = None, std: Sequence[float] | None = None,
) -> Samples:  # fmt: skip
    """Inputs to run a model on: the user's data, or synthetic ones."""
    specs = input_specs(model)
    sizes = probe_inputs(model, shapes)
    hints = Hints(limits=vocabulary(model, infer(model, sizes)))
    if data is not None:
        return loading.load(data, specs, n=n, shapes=dict(shapes), seed=seed, hints=hints, mean=mean, std=std)
    return loading.synthetic(specs, n, seed, sizes, hints)


def fed(model: ir.Model, feed: Feed) -> Feed:
    """A feed in the lowered model's element types."""
    types = {str(v.name): v.dtype for v in model.graph.inputs}
    found: Feed = {}
    for name, array in feed.items():
        dtype = types.get(name)
        found[name] = array if dtype is None or dtype == ir.DataType.STRING else array.astype(dtype.numpy(), copy=False)
    return found


def compared(source: ir.Model, lowered: Lowered) -> list[str]:
    """Names of the values that both models have and that decide: outputs, and the heads before a plugin."""
    there = {str(v.name) for v in source.graph.outputs} | value_names(source)
    names = [str(v.name) for v in lowered.model.graph.outputs if str(v.name) in there]
    return list(dict.fromkeys([*names, *(name for name in lowered.heads if name in there)]))


class Source:
    """A source with its inputs; its outputs are computed once, for however many lowerings they are compared with.

    Parameters
    ----------
    feeds
        Inputs by name.
    """

    def __init__(self, model: ir.Model, feeds: Sequence[Feed]) -> None:
        self.model, self.feeds = model, feeds
        self._known: dict[tuple[str, ...], list[Feed]] = {}

    def outputs(self, names: Sequence[str]) -> list[Feed]:
        """The named values, a mapping for each of the inputs."""
        key = tuple(names)
        if key not in self._known:
            runner = Runner(self.model, outputs=names)
            self._known[key] = [runner.run(feed) for feed in self.feeds]
        return self._known[key]


def prove(source: Source, lowered: Lowered, tolerance: float | None = None) -> dict[str, Any]:
    """Compare a lowered model with its source.

    Parameters
    ----------
    source
        The model and the inputs on which both run.
    tolerance
        Allowed difference relative to each output's maximum; by default that of the source's element type, 1e-4 for float32.

    Returns
    -------
    dict
        ``max_rel_error`` (of an output's maximum), ``tolerance``, ``samples``, ``compared`` (names).

    Raises
    ------
    VerificationError
        They differ, or the lowered model is not valid or does not run; the message names the first value that differs.
    """
    if not lowered.model.graph.opset_imports.get("TRT") and (text := is_valid(lowered.model)):
        raise VerificationError(f"the lowered model is not valid ONNX: {text}. Nothing was written")
    names = compared(source.model, lowered)
    if not names:
        raise VerificationError("the lowered model has no output of the source left to compare. Nothing was written")
    left = source.outputs(names)
    runner = Runner(lowered.model, outputs=names)
    try:
        right = [runner.run(fed(lowered.model, feed)) for feed in source.feeds]
    except GraphPruneError as error:
        raise VerificationError(f"the lowered model does not run: {error}. Nothing was written") from error
    allowed = tolerance_of(source.model) if tolerance is None else tolerance

    def judge(a: Mapping[str, np.ndarray[Any, Any]], b: Mapping[str, np.ndarray[Any, Any]]) -> tuple[float, str]:
        return max(((_difference(a[name], b[name]), name) for name in names), key=lambda one: one[0])

    worst, where = 0.0, names[0]
    for feed, a, b in zip(source.feeds, left, right, strict=True):
        found, name = judge(a, b)
        if not found <= allowed:
            given = (feed, fed(lowered.model, feed))
            settled = decided(source.model, lowered.model, given, names, judge, _difference, allowed)
            found = found if settled is None else settled[0]
        if not found <= worst:
            worst, where = found, name
    if not worst <= allowed:
        first = _first_difference(source.model, lowered, source.feeds[0], allowed)
        raise VerificationError(
            f"the lowered model differs from its source by {worst:.2g} of the maximum of '{where}' (allowed {allowed:g})"
            + (f", first at '{first}'" if first else "")
            + ". Nothing was written"
        )
    return {"max_rel_error": worst, "tolerance": allowed, "samples": len(source.feeds), "compared": names}


def _difference(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    return relative_error(_alike(a, b), b)


def _alike(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return a.astype(b.dtype) if a.dtype == np.float64 and b.dtype == np.float32 else a


def _first_difference(source: ir.Model, lowered: Lowered, feed: Feed, allowed: float) -> str:
    present = value_names(lowered.model)
    names = [str(v.name) for node in source.graph for v in node.outputs if str(v.name) in present]
    try:
        a = Runner(source, outputs=names).run(feed)
        b = Runner(lowered.model, outputs=names).run(fed(lowered.model, feed))
    except GraphPruneError:
        return ""
    return next((n for n in names if _difference(a[n], b[n]) > allowed), "")
