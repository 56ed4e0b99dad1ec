"""``graphprune calibrate``: what a device's profile of a model says of its kernels, kept to correct estimates for that device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune import trtexec
from graphprune.backends.runtimes import LayerTime
from graphprune.errors import UsageError
from graphprune.latency import calibration
from graphprune.latency.device import TOLD, names_of
from graphprune.latency.roofline import Kernel, Roofline
from graphprune.passes.base import State


@dataclass(frozen=True)
class Calibrated:
    """What was read.

    Attributes
    ----------
    device
        Device and precision.
    kernels, matched
        Kernels of the model, and those that the profile speaks of by name.
    ms, told
        Milliseconds of the whole profile, and the share of them that goes by names of the model's nodes.
    roofline_ms, scale
        The roofline of the matched kernels, and what the device takes for them as a share of it.
    file
        Where it is kept.
    """

    device: str
    kernels: int
    matched: int
    ms: float
    told: float
    roofline_ms: float
    scale: float
    file: str

    def to_json(self) -> dict[str, Any]:
        return dict(self.__dict__)


def calibrate(
    source: Any, profile: str | Path, device: str, *, layers: str | Path | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Calibrated:  # fmt: skip
    """Read a profile that ``trtexec --exportProfile`` wrote on a device, of ``source`` itself.

    Parameters
    ----------
    profile
        The profile, or the ``result.json`` of a bundle.
    device
        ``NAME`` or ``NAME:PRECISION``, as the engine was built.
    layers
        What ``trtexec --exportLayerInfo`` wrote with ``--profilingVerbosity=detailed``: names the nodes of layers whose own
        names do not.

    Raises
    ------
    UsageError
        No profile, or one of another model.
    """
    from graphprune.devices import named
    from graphprune.pipeline import inspect

    target = named(device)
    steps = trtexec.read(profile).layers
    if not steps:
        raise UsageError(f"'{profile}' holds no layers: write it with 'trtexec --exportProfile=profile.json' on the device")
    origins = {} if layers is None else trtexec.read_layers(layers)
    state = inspect(source, shapes=shapes)
    roofline = Roofline(state, target, {})
    ms, moved = matched(roofline.kernels, roofline.full, steps, origins)
    whole = sum(step.ms for step in steps)
    told = float(ms.sum()) / max(whole - moved, 1e-12)
    if told < TOLD:
        raise UsageError(
            f"'{Path(profile).name}': only {told:.0%} of its time goes by names of this model's nodes: give the very file that the "
            "engine was built from, build with --profilingVerbosity=detailed, and give --layers what --exportLayerInfo wrote"
        )
    # Changes of layout belong to no node, and shrink with the kernels that they stand between.
    ms *= 1 + moved / float(ms.sum())
    known = np.flatnonzero(ms > 0)
    names = roofline.signatures()
    file = calibration.store(target, _rows(state, roofline, ms, known, names))
    full = float(roofline.full[known].sum())
    return Calibrated(str(target), len(names), len(known), whole, told, full, float(ms.sum()) / full, file)


def _rows(
    state: State, roofline: Roofline, ms: NDArray[np.float64], known: NDArray[np.int64], names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Times by signature; kernels alike are one, of their mean time."""
    alike: dict[str, list[int]] = {}
    for k in known.tolist():
        alike.setdefault(names[k], []).append(k)
    return {
        name: {
            "op": roofline.kernels[own[0]].nodes[0].op_type, "ms": float(ms[own].mean()),
            "roofline_ms": float(roofline.full[own[0]]),
        }
        for name, own in alike.items()
    }  # fmt: skip


def matched(
    kernels: Sequence[Kernel], full: NDArray[np.float64], steps: Sequence[LayerTime], origins: Mapping[str, Sequence[str]]
) -> tuple[NDArray[np.float64], float]:
    """Milliseconds of each kernel as profiled (0 where nothing speaks of it), and those of changes of layout.

    A step that holds several kernels is shared out among them by their roofline.
    """
    by_name: dict[str, int] = {}
    for number, kernel in enumerate(kernels):
        by_name.update((_called(node), number) for node in kernel.nodes)
    ms = np.zeros(len(kernels))
    moved = 0.0
    for step in steps:
        own = sorted({by_name[name] for name in (*names_of(step.name), *origins.get(step.name, ())) if name in by_name})
        if own:
            ms[own] += step.ms * full[own] / full[own].sum()
        elif step.layout:
            moved += step.ms
    return ms, moved


def _called(node: ir.Node) -> str:
    return node.name or str(node.outputs[0].name)
