"""What the data says of every layer's inputs: second moments, and which units they belong to.

One pass of the source over the calibration data gives, for every linear layer whose inputs hold prunable units,
the covariance ``H: float[d, d]`` of what it sees. From ``H`` and the weight follows what the layer's outputs lose
when some of its inputs are removed *and the rest is fitted anew*: the same statistics serve scores
(``obs``, ``gram``), allocation and recovery.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.backends.ort import Runner
from graphprune.compression import Compression
from graphprune.coupling import Coupling
from graphprune.layers import picks
from graphprune.lstsq import Rows
from graphprune.ops.linear_form import LinearForm, linear_form
from graphprune.ops.observe import Path, Visible, hidden, walk

if TYPE_CHECKING:
    from graphprune.passes.base import State

Array = NDArray[Any]

#: Bytes of moments gathered in one pass over the data; more take further passes.
MEMORY = 1 << 30
#: Ridge of what is said about a layer, as a share of its mean squared input.
RIDGE = 1e-3
#: Layers with more inputs than this are seen through so many coordinates: a covariance takes at most 300 MB.
LARGEST = 6144


@dataclass
class Consumer:
    """A linear layer that reads prunable units.

    Attributes
    ----------
    weight
        float64[g, o, d], or in the coordinates of ``inputs.compression``.
    units
        int64[g, d, k], the prunable units of every input (or coordinate), -1 for none.
    inputs
        Where the rows come from: nodes that see the same rows share one entry.
    """

    node: ir.Node
    form: LinearForm
    shape: tuple[int, ...]
    weight: Array
    units: NDArray[np.int64]
    inputs: Inputs

    def refitted(self, state: State, weight: Array, removed: NDArray[np.bool_]) -> tuple[Array, Array]:
        """The layer's own weight, and what its outputs gain, when ``weight`` stands instead of :attr:`weight`.

        Parameters
        ----------
        removed
            bool[g, d], inputs (or coordinates) that leave.

        Returns
        -------
        ndarray, float64[g * o]
        """
        packed = self.inputs.compression
        if packed is None:
            return weight, ((self.weight - weight) * self.inputs.mean[:, None, :]).sum(2).reshape(-1)
        source = self.node.inputs[self.form.w]
        array = None if source is None else state.parameter(source)
        assert array is not None
        before = np.asarray(self.form.matrix(np.asarray(array, np.float32)))
        after = packed.lift(weight - self.weight, removed[0], before)
        return after, ((before - after) @ packed.mean).reshape(-1)

    def energy(self) -> float:
        """Variance of all outputs together, for one row."""
        cov = self.inputs.covariance
        return float(sum(((w @ c) * w).sum() for w, c in zip(self.weight, cov, strict=True)))


@dataclass
class Inputs:
    """Rows of one tensor as one kind of layer sees them."""

    value: ir.Value
    path: Path
    rows: Rows
    compression: Compression | None = None
    covariance: Array = field(default_factory=lambda: np.zeros((0, 0, 0)))
    mean: Array = field(default_factory=lambda: np.zeros((0, 0)))


def consumers_of(state: State, model: ir.Model, coupling: Coupling) -> list[Consumer]:
    """Linear layers of the source that sum over prunable units, in order; moments not gathered yet."""
    shared: dict[Any, Inputs] = {}
    out: list[Consumer] = []
    for node, path in walk(model.graph):
        form = None if hidden(path) else linear_form(node)
        if form is None:
            continue
        weight_value, x = node.inputs[form.w], node.inputs[form.x]
        assert weight_value is not None and x is not None
        axes = coupling.coupler.axes.get(weight_value)
        if axes is None or not any(coupling.has_units(weight_value, axis) for axis in range(len(axes))):
            continue
        array = state.parameter(weight_value)
        if array is None or array.ndim != len(axes) or array.ndim < 2 or array.dtype.kind not in "fV":
            continue
        units = _units_of_inputs(coupling, weight_value, form, array.shape)
        if units is None or not (units >= 0).any():
            continue
        weight = np.asarray(form.matrix(np.asarray(array, np.float64)))
        key = (x, path, form.geometry(array.shape))
        if key not in shared:
            shared[key] = Inputs(x, path, Rows(0, 1))
        if weight.shape[2] > LARGEST:
            given = shared[key].compression or (Compression.of(units[0], LARGEST) if len(weight) == 1 else None)
            if given is None:
                state.note(
                    f"{node.op_type} '{node.name or node.outputs[0].name}' sums over {weight.shape[2]:,} inputs, too many for "
                    f"a covariance (at most {LARGEST:,}): it has no say in data-driven scores and budgets"
                )
                continue
            shared[key].compression = given
        out.append(Consumer(node, form, array.shape, weight, units, shared[key]))
    return out


def _units_of_inputs(
    coupling: Coupling, weight: ir.Value, form: LinearForm, shape: Sequence[int]
) -> NDArray[np.int64] | None:
    """Units that remove each input of each product, int64[g, d, k]."""
    flat = form.matrix(np.arange(int(np.prod(shape))).reshape(shape))
    if flat.dtype.kind == "f":
        flat = np.rint(flat / flat.ravel()[1]).astype(np.int64) if flat.size > 1 else flat.astype(np.int64)
    columns = []
    for axis, index in enumerate(np.unravel_index(flat[:, 0, :], shape)):
        # Only axes that are summed over: a depthwise convolution passes its channels on, it does not mix them.
        if coupling.has_units(weight, axis) and (index != index[:, :1]).any():
            columns.append(coupling.rows(weight, axis)[index])
    return np.concatenate(columns, axis=2) if columns else None


def gather(state: State, consumers: Sequence[Consumer], patches: int = 50) -> None:
    """Fill in the covariances of all consumers' inputs by running the source over the calibration data.

    They stay empty where a layer is in a branch that no sample takes.
    """
    compressed = [c for c in consumers if c.inputs.compression is not None]
    if compressed:
        for c, u in _rows(state, list({id(c.inputs): c for c in compressed}.values()), patches):
            assert c.inputs.compression is not None
            c.inputs.compression.add(u[:, 0])
        for inputs in {id(c.inputs): c.inputs for c in compressed}.values():
            assert inputs.compression is not None
            inputs.compression.finish()
        for c in compressed:
            assert c.inputs.compression is not None
            c.weight, c.units = c.inputs.compression.project(c.weight), c.inputs.compression.spread(c.units[0])[None]
    for part in _batches(consumers):
        todo = {id(c.inputs): c for c in part}
        for c in todo.values():
            c.inputs.rows = Rows(c.weight.shape[2], 1 << 60)
        for c, u in _rows(state, list(todo.values()), patches):
            if c.inputs.compression is not None:
                u = c.inputs.compression.project(u).astype(np.float32)
            c.inputs.rows.add(u, np.zeros((len(u), u.shape[1], 1), np.float32))
        for c in todo.values():
            if not c.inputs.rows.n:
                continue  # in a branch that no sample takes
            covariance, _, c.inputs.mean, _ = c.inputs.rows.centred(True)
            d = covariance.shape[1]
            scale = covariance.trace(axis1=1, axis2=2) / d
            covariance[:, np.arange(d), np.arange(d)] += (RIDGE * scale + 1e-12)[:, None]
            c.inputs.covariance = covariance
            c.inputs.rows = Rows(0, 1)


def _rows(state: State, consumers: Sequence[Consumer], patches: int) -> Iterator[tuple[Consumer, Array]]:
    """Rows float32[n, g, d] that each consumer's inputs give, feed by feed."""
    from graphprune.calibration import samples_for
    from graphprune.feeding import feed_size

    samples = samples_for(state, batch=feed_size(state))
    places = [(value, c.inputs.path) for c in consumers for value in (c.inputs.value, c.node.outputs[0])]
    visible = Visible(state.model, places, state.need_facts())
    runner = Runner(visible.model, outputs=visible.outputs(), widen=True)
    for i, feed in enumerate(samples):
        state.progress("gathering statistics", i / samples.feeds)
        found = runner.run(feed)
        for n, c in enumerate(consumers):
            xs, ys = (visible.instances((v, c.inputs.path), found) for v in (c.inputs.value, c.node.outputs[0]))
            rng = np.random.default_rng((state.options.seed, n, i))
            count = max(patches * samples.batch, 2 * c.weight.shape[2] // samples.feeds)
            for x, y in zip(xs, ys, strict=True):
                where = picks(y.shape, c.form.out_axis(y.ndim), -(-count // len(xs)), rng)
                yield c, c.form.patches(x, where, c.shape)


def _batches(consumers: Sequence[Consumer]) -> Iterator[list[Consumer]]:
    """Consumers whose moments fit into memory together."""
    part: list[Consumer] = []
    seen: set[int] = set()
    held = 0
    for c in consumers:
        g, _, d = c.weight.shape
        size = 0 if id(c.inputs) in seen else 8 * g * d * d
        if part and held + size > MEMORY and size:
            yield part
            part, held = [], 0
        seen.add(id(c.inputs))
        part.append(c)
        held += size
    if part:
        yield part
