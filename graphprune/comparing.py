"""Models run side by side: how much their outputs differ, relative to their own maximum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphprune.backends.ort import Runner
from graphprune.decisions import decided
from graphprune.errors import UnprovableError
from graphprune.inputs import Feed
from graphprune.ops.pointwise import saturates

#: Bytes of weights that a proof holds at a time: those of the masked original are copies.
AT_ONCE = 64 << 20

def relative_error(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """Largest difference relative to the largest magnitude of ``a``; inf for other shapes or new NaNs.

    Integers and booleans: the share of elements that differ.
    """
    if a.shape != b.shape:
        return float("inf")
    if a.size == 0:
        return 0.0
    if a.dtype.kind in "iubOSU":
        return float((a != b).mean())
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    finite = np.isfinite(a)
    if (finite != np.isfinite(b)).any():
        return float("inf")
    if not finite.any():
        return 0.0
    a, b = a[finite], b[finite]
    return float(np.abs(a - b).max() / max(float(np.abs(a).max()), 1e-12)) if a.any() or b.any() else 0.0


@dataclass(frozen=True)
class Compared:
    """How two models differ.

    Attributes
    ----------
    worst, where
        The largest relative error of an output on any input, and that output.
    outputs
        What the second model gave for every input.
    decided, undecided
        Nodes where rounding decided between nearly equal numbers, and on how many inputs.
    """

    worst: float
    where: str
    outputs: list[Mapping[str, np.ndarray[Any, Any]]]
    decided: tuple[str, ...] = ()
    undecided: int = 0


def compare(masked: ir.Model, cut: ir.Model, feeds: Iterable[Feed], allowed: float | None = None) -> tuple[float, str]:
    """Worst relative error over all outputs and samples, and the output that shows it."""
    found = compare_runs(masked, cut, feeds, allowed)
    return found.worst, found.where


def compare_runs(masked: ir.Model, cut: ir.Model, feeds: Iterable[Feed], allowed: float | None = None) -> Compared:
    """Run two models and compare their outputs.

    Parameters
    ----------
    allowed
        Where they differ by more, whether rounding decided between nearly equal numbers: see :mod:`graphprune.decisions`.
    """
    feeds = list(feeds)
    names = [str(value.name) for value in cut.graph.outputs]
    inner = saturated(cut) if (present := value_names(masked)) else {}
    inner = {name: source for name, source in inner.items() if source in present}
    wanted = list(dict.fromkeys([*names, *inner.values()]))
    left = run_all(masked, feeds, wanted, AT_ONCE)
    right = run_all(cut, feeds, wanted, AT_ONCE)
    floats = [a[name] for a in left for name in names if a[name].dtype.kind == "f" and a[name].size]
    if floats and not any(np.isfinite(array).any() for array in floats):
        # NaN equals NaN: such a comparison would prove anything.
        raise UnprovableError(
            f"no output of the model holds a finite number on these inputs ({', '.join(names)}), so nothing can be "
            "proved: give inputs that it was made for with --data, or train or export it again"
        )

    def judge(a: Mapping[str, np.ndarray[Any, Any]], b: Mapping[str, np.ndarray[Any, Any]]) -> tuple[float, str]:
        worst, where = 0.0, names[0] if names else ""
        for name in names:
            error = relative_error(a[name], b[name])
            if name in inner and a[name].shape == b[name].shape:
                error = min(error, relative_error(a[inner[name]], b[inner[name]]))
            if error > worst:
                worst, where = error, name
        return worst, where

    errors = [judge(a, b) for a, b in zip(left, right, strict=True)]
    nodes: list[str] = []
    undecided = 0
    for number, (error, where) in enumerate(errors):
        if allowed is None or error <= allowed:
            continue
        found = decided(masked, cut, (feeds[number], feeds[number]), wanted, judge, relative_error, allowed)
        if found is not None:
            errors[number] = found[0], where
            nodes.extend(found[1])
            undecided += 1
    worst, where = max(errors, key=lambda one: one[0], default=(0.0, names[0] if names else ""))
    return Compared(worst, where, right, tuple(dict.fromkeys(nodes)), undecided)


def run_all(
    model: ir.Model, feeds: list[Feed], outputs: list[str] | None = None, max_weight_bytes: int = 512 << 20
) -> list[Mapping[str, np.ndarray[Any, Any]]]:
    """Values of a model on several feeds: its outputs, or those named."""
    found: list[Mapping[str, np.ndarray[Any, Any]]] = []
    Runner(model, outputs=outputs, max_weight_bytes=max_weight_bytes).run_many(feeds, lambda _, values: found.append(values))
    return found


def value_names(model: ir.Model) -> set[str]:
    """Names of all values that nodes of the main graph compute."""
    return {str(value.name) for node in model.graph for value in node.outputs}


def saturated(model: ir.Model) -> dict[str, str]:
    """Outputs that a saturating function makes, with the value that goes into it.

    In its flat part such a function gives nothing but its own rounding (a sigmoid of 1e-6 is off by 1e-7 in
    float32), so two equal models seem to differ there. What goes in decides: the function is the same.
    """
    out: dict[str, str] = {}
    computed = value_names(model)
    for value in model.graph.outputs:
        node = value.producer()
        if node is not None and saturates(node) and node.inputs[0] is not None:
            source = str(node.inputs[0].name)
            if source in computed:
                out[str(value.name)] = source
    return out
