"""Feature maps: which values show what a unit does, how they are read, and how numbers of channels become scores of units.

What every criterion shares that looks at activations stands here: :func:`layer_outputs` and :func:`layer_inputs` say where to
look, :func:`look` runs the model over the calibration data, :func:`as_maps` gives each value one form, and
:func:`unit_means` turns one number a channel of every place into one number a unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.backends.ort import Runner
from graphprune.coupling import Coupling
from graphprune.ops.following import behind_activation, behind_norm
from graphprune.passes.base import Scores, State, per_unit
from graphprune.rules import Place

Array = NDArray[Any]
#: ``conv``: a layer's own output. ``bn``: behind the normalisation that follows. ``act``: behind the activation after that.
Reading = Literal["conv", "bn", "act"]

#: Numbers of a layer whose spread is below this share of the largest are the same.
SAME = 1e-12


def layer_outputs(state: State, reading: Reading) -> list[Place]:
    """Where the feature maps of weighted layers are read, each (value, channel axis) once.

    Where no normalisation or activation follows, or none that carries the units, the reading is the nearest before it.
    """
    behind: list[Callable[[ir.Value], ir.Value]] = [lambda value: value, behind_norm, behind_activation]
    tries = behind[("conv", "bn", "act").index(reading) :: -1]
    out: dict[Place, None] = {}
    for operand in state.need_coupling().operands:
        if operand.role == "weight" and operand.node.graph is state.model.graph:
            found = (_axes_with_units(state, follow(operand.node.outputs[0])) for follow in tries)
            out.update(dict.fromkeys(next(filter(None, found), [])))
    return list(out)


def layer_inputs(state: State) -> list[Place]:
    """What weighted layers read, each (value, channel axis) once: a unit as its consumers see it."""
    coupling = state.need_coupling()
    out: dict[Place, None] = {}
    for operand in coupling.operands:
        if operand.role == "weight" and operand.node.graph is state.model.graph:
            for value in operand.node.inputs:
                if value is not None and value.const_value is None and value not in coupling.coupler.parameters:
                    out.update(dict.fromkeys(_axes_with_units(state, value)))
    return list(out)


def _axes_with_units(state: State, value: ir.Value) -> list[Place]:
    """Axes of a floating-point value that units can shorten; axis 0 counts images."""
    coupling, facts = state.need_coupling(), state.need_facts()
    shape, dtype = facts.shape(value), facts.dtype(value)
    if shape is None or len(shape) < 2 or dtype is None or not dtype.is_floating_point():
        return []
    return [(value, axis) for axis in range(1, len(shape)) if coupling.has_units(value, axis)]


def look(state: State, name: str, places: Sequence[Place], visit: Callable[[int, Array], None], limit: int | None = None) -> None:
    """Run the source over the calibration data and show what stands at some places.

    Parameters
    ----------
    name
        Of the criterion, for the progress bar.
    visit
        Called with the number of a place and its value, once a feed.
    limit
        Feeds at most; all of them by default.
    """
    if not places:
        return
    names = [str(value.name) for value, _ in places]
    runner = Runner(state.model, outputs=list(dict.fromkeys(names)))
    feeds = state.samples
    for done, feed in enumerate(feeds):
        if done == limit:
            break
        state.progress(name, done / min(feeds.feeds, limit or feeds.feeds))
        found = runner.run(feed)
        for number, value in enumerate(names):
            visit(number, found[value])


def as_maps(values: Array, axis: int) -> Array:
    """A value as images x channels x positions.

    Parameters
    ----------
    values
        Any float dtype; axis 0 counts images unless it is the channel axis.
    axis
        The channel axis. All axes but it and axis 0 are the map.

    Returns
    -------
    ndarray[images, channels, positions]
        Of the same dtype; a view where that is possible.
    """
    maps = np.moveaxis(values, axis, 1) if axis != 0 else values[None]
    return maps.reshape(maps.shape[0], maps.shape[1], -1)


class Moments:
    """Mean and variance of every channel over images and positions, feed by feed, float64 (Chan's update)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Array = np.zeros(0)
        self.squares: Array = np.zeros(0)

    def add(self, maps: Array) -> None:
        """Take in ``maps[images, channels, positions]``."""
        x = np.asarray(maps, np.float64)
        n, mean = x.shape[0] * x.shape[2], x.mean(axis=(0, 2))
        squares = np.square(x - mean[:, None]).sum(axis=(0, 2))
        if not self.count:
            self.count, self.mean, self.squares = n, mean, squares
            return
        total, step = self.count + n, mean - self.mean
        self.squares = self.squares + squares + np.square(step) * (self.count * n / total)
        self.mean = self.mean + step * (n / total)
        self.count = total

    def variance(self) -> Array:
        """float64[channels], 1/n."""
        return np.asarray(self.squares / max(self.count, 1))


def tells_apart(values: Array) -> bool:
    """Whether the numbers of a layer say anything: finite, and not all the same."""
    if not len(values) or not np.isfinite(values).all():
        return False
    return float(values.max() - values.min()) > SAME * max(float(np.abs(values).max()), 1e-300)


def unit_means(
    coupling: Coupling, readings: Iterable[tuple[Place, Array]], *, relative: bool = False
) -> tuple[Scores, NDArray[np.bool_]]:
    """Numbers of channels as numbers of units: the mean over a unit's channels at one place, then over the places that show it.

    Parameters
    ----------
    readings
        Places, each with float64[channels]. Those whose numbers are all the same say nothing and do not count.
    relative
        Divide the numbers of each place by their mean first: where they carry the scale of the data, a place of large
        numbers would drown the others that a residual trunk is read at.

    Returns
    -------
    scores, missing
        float64[n_units], 0 where missing; bool[n_units], units that no place says anything about.
    """
    n = coupling.n_units
    total, members = np.zeros(n), np.zeros(n)
    for (value, axis), values in readings:
        if not tells_apart(values):
            continue
        if relative:
            values = values / (np.abs(values).mean() or 1.0)
        rows = coupling.rows(value, axis)
        sums, touched = per_unit(rows, np.asarray(values, np.float64), n)
        counts, _ = per_unit(rows, np.ones(len(rows)), n)
        total += sums / np.maximum(counts, 1)
        members += touched
    return total / np.maximum(members, 1), members == 0
