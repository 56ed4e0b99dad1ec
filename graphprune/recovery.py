"""Least-squares recovery: the weights of a cut model re-fitted to what the source computes.

Layers are fitted in topological order on the already recovered part of the cut model: inputs ``U`` come from
the cut model, targets ``T`` are the source's outputs of the same layer at the kept channels. A fit is judged
on held-out samples and dropped where it does not help.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.backends.ort import Runner
from graphprune.backends.pieces import reads
from graphprune.backends.stepper import Shelf, Stepper, float_types
from graphprune.calibration import evaluate_parameter
from graphprune.cut import Rewriter
from graphprune.feeding import fitting_feeds
from graphprune.inputs import Feed
from graphprune.layers import Layer, find_layers, picks, read, write
from graphprune.lstsq import Rows, squared_error
from graphprune.ops.linear_form import Positions
from graphprune.ops.observe import Visible, repeats, walk

Array = NDArray[Any]
Mode = Literal["ls", "scale", "bias"]

#: Ridges that are tried, as a share of the mean squared input.
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
#: A layer whose outputs differ by less than this share of their variance needs nothing.
EQUAL = 1e-10
#: Times that a layer in a loop is fitted anew at most.
ROUNDS = 4
#: No channel is amplified by more than this when its spread is brought back.
MOST_GAIN = 4.0


@dataclass
class LayerReport:
    """What recovery did to one layer.

    Attributes
    ----------
    before, after
        Squared error of the layer's outputs on held-out samples, as a share of their variance.
    ridge
        The ridge chosen; None where only the intercept moved, or nothing did.
    rows
        Output positions that the fit saw.
    """

    layer: str
    op: str
    before: float
    after: float
    ridge: float | None
    rows: int
    kept: bool


@dataclass
class Record:
    """What a recovery did: a list of layers, the constants it changed, and what it left alone with the reason."""

    layers: list[LayerReport] = field(default_factory=list)
    tensors: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Job:
    """One layer with its targets on the shelf.

    Attributes
    ----------
    where
        Output positions, for each feed and each time that the layer runs in it.
    rows
        What the fitting feeds gave; ``held`` what the judging ones did, as (inputs, residuals).
    sums
        Sum and sum of squares of the targets, float64[2, g, o].
    """

    layer: Layer
    number: int
    where: list[list[Positions]] = field(default_factory=list)
    expected: int = 0
    rows: Rows | None = None
    held: list[tuple[Array, Array]] = field(default_factory=list)
    sums: Array = field(default_factory=lambda: np.zeros(()))

    @property
    def count(self) -> int:
        return 0 if self.rows is None else self.rows.n

    def variance(self) -> float:
        """Of the targets, summed over outputs, for one row."""
        mean = self.sums / max(self.count, 1)
        return float(np.maximum(mean[1] - np.square(mean[0]), 0).sum())


class Recovery:
    """One recovery of one cut model.

    Parameters
    ----------
    rewriter
        Source, decision and cut model.
    model
        The cut model; its weights are changed.
    feeds
        Calibration samples, in feeds.
    samples
        Samples in each feed.
    mode
        ``ls``: least squares. ``scale``: mean and spread of each output channel are brought back to the
        source's, which is what re-estimating batch-norm statistics does, also where these were folded.
        ``bias``: the mean alone.
    spread
        After least squares, bring back the spread of each channel too.
    patches
        Output positions a sample that a fit sees, at least.
    holdout
        Share of the feeds that judge.
    memory
        Bytes of activations held in memory; the rest lies in a temporary file.
    mask
        Gives for a layer, its weight and what it sees the weights that may stay, bool[g, o, d]; None where all may. With it
        every layer is gone through, also those that the cut left as they were.
    refit
        Whether masked layers are fitted; else the others are zeroed, and that is all.
    """

    def __init__(
        self, rewriter: Rewriter, model: ir.Model, feeds: Sequence[Feed], samples: int, *, mode: Mode = "ls",
        spread: bool = False, patches: int = 50, holdout: float = 0.2, memory: int = 2 << 30, seed: int = 0,
        progress: Callable[[str, float], None] = lambda _what, _share: None,
        mask: Callable[[Layer, Array, Rows], Array | None] | None = None, refit: bool = True,
    ) -> None:  # fmt: skip
        self.rewriter, self.model, self.feeds, self.samples = rewriter, model, list(feeds), samples
        self.mode, self.spread, self.patches, self.seed, self.progress = mode, spread, patches, seed, progress
        self.memory, self.mask, self.refit = memory, mask, refit
        self.types = float_types(rewriter.source, model)
        self.fitting = fitting_feeds(len(self.feeds), holdout)
        self.record = Record()

    def run(self) -> Record:
        """Recover; returns what was done."""
        stepper = Stepper(self.model, self.feeds, self.memory // 2, self.types)
        order = [(node, top) for top in stepper.nodes for node, _ in walk([top])]
        layers, self.record.left = find_layers(self.rewriter, self.model, [node for node, _ in order])
        affected = _affected(self.rewriter, stepper.nodes) if self.mask is None else {layer.node for layer in layers}
        jobs = [_Job(layer, n) for n, layer in enumerate(layers) if layer.node in affected]
        shelf = Shelf(self.memory // 2)
        self._targets(jobs, shelf)
        place = {node: n for n, node in enumerate(stepper.nodes)}
        tops = dict(order)
        by_weight: dict[ir.Value, list[_Job]] = {}
        for job in jobs:
            by_weight.setdefault(job.layer.weight, []).append(job)
        for done, job in enumerate(jobs):
            self.progress("recovering", done / len(jobs))
            stepper.advance(place[tops[job.layer.node]])
            together = by_weight[job.layer.weight]
            self._gather(job, self._inputs(job.layer, stepper), shelf)
            if job is together[-1]:
                changed = self._fit(together)
                if changed and len(together) > 1:
                    # Earlier nodes that share the weight ran with the old one.
                    stepper.rewind()
                elif changed and repeats(job.layer.path):
                    self._again(job, stepper, shelf)
                for one in together:
                    one.rows, one.held = None, []
            for i, times in enumerate(job.where):
                for t in range(len(times)):
                    shelf.drop((i, job.number, t))
        stepper.close()
        shelf.close()
        return self.record

    def _again(self, job: _Job, stepper: Stepper, shelf: Shelf) -> None:
        """Fit a layer of a loop anew: what it did in one iteration is what it reads in the next."""
        first = self.record.layers[-1]
        for _ in range(ROUNDS):
            last = self.record.layers.pop()
            self._gather(job, self._inputs(job.layer, stepper), shelf)
            improved = self._fit([job]) and self.record.layers[-1].after < 0.9 * last.after
            self.record.layers[-1].before, self.record.layers[-1].kept = first.before, True
            if not improved:
                break

    # -- what the source computes ---------------------------------------------------------------------
    def _targets(self, jobs: list[_Job], shelf: Shelf) -> None:
        """Run the source once and keep what each layer has to reproduce, at the chosen positions."""
        if not jobs:
            return
        olds = {new: old for old, new in self.rewriter.new_nodes.items()}
        outputs = [(job.layer.old.outputs[0], tuple((olds[n], k) for n, k in job.layer.path)) for job in jobs]
        visible = Visible(self.rewriter.source, outputs, self.rewriter.old_facts)
        runner = Runner(visible.model, outputs=visible.outputs(), widen=True)
        for i, feed in enumerate(self.feeds):
            self.progress("running the source", i / len(self.feeds))
            found = runner.run(feed)
            for job, place in zip(jobs, outputs, strict=True):
                rng = np.random.default_rng((self.seed, job.number, i))
                times = visible.instances(place, found)
                job.where.append([self._target(job, shelf, (i, job.number, t), y, rng, len(times)) for t, y in enumerate(times)])

    def _target(
        self, job: _Job, shelf: Shelf, key: tuple[int, int, int], y: Array, rng: np.random.Generator, times: int
    ) -> Positions:
        """Put what one run of a layer has to reproduce on the shelf, at positions that are chosen here."""
        value = job.layer.old.outputs[0]
        kept = [self.rewriter.kept(value, axis) for axis in range(y.ndim)]
        shape = [n if k is None else len(k) for n, k in zip(y.shape, kept, strict=True)]
        axis = job.layer.form.out_axis(y.ndim)
        where = picks(shape, axis, -(-self._count(job) // times), rng)
        target = read(y, where, axis, kept)
        job.expected += len(target)
        shelf.put(key, target)
        return where

    def _count(self, job: _Job) -> int:
        """Positions of one feed: as many as asked, more where the layer has many inputs."""
        return max(self.patches * self.samples, 3 * job.layer.unknowns // len(self.feeds))

    # -- what the cut model sees ------------------------------------------------------------------------
    def _inputs(self, layer: Layer, stepper: Stepper) -> Iterator[Sequence[Array]]:
        """What a layer of the cut model reads, feed by feed: once, or as often as the body runs that it is in."""
        if not layer.path:
            for i in range(len(self.feeds)):
                yield [stepper.value(i, layer.x)]
            return
        place = (layer.x, layer.path)
        visible = Visible(self.model, [place], self.rewriter.facts)
        runner = Runner(visible.model, outputs=visible.outputs(), widen=True)
        for feed in self.feeds:
            yield visible.instances(place, runner.run(feed))

    def _gather(self, job: _Job, inputs: Iterable[Sequence[Array]], shelf: Shelf) -> None:
        layer = job.layer
        weight = self._matrix(layer)
        bias = self._bias(layer, weight.shape)
        job.rows, job.held = Rows(weight.shape[2], job.expected), []
        job.sums = np.zeros((2, *weight.shape[:2]))
        flat = weight.astype(np.float32).transpose(0, 2, 1)
        for i, arrays in enumerate(inputs):
            # Where data decide what runs, the cut may take another branch or end a loop earlier.
            for t, (x, where) in enumerate(zip(arrays, job.where[i], strict=False)):
                u = layer.form.patches(x, where, layer.shape)
                target = shelf.get((i, job.number, t)).reshape(len(u), *weight.shape[:2])
                e = target - np.matmul(u.transpose(1, 0, 2), flat).transpose(1, 0, 2) - bias
                if i < self.fitting:
                    job.rows.add(u, e)
                    job.sums += np.stack([target.sum(0, dtype=np.float64), np.square(target).sum(0, dtype=np.float64)])
                if i >= self.fitting or len(self.feeds) == 1:
                    job.held.append((u, e))

    def _matrix(self, layer: Layer) -> Array:
        """The layer's weight as it is now, float64[g, o, d]."""
        array = evaluate_parameter(self.model, layer.weight)
        assert array is not None
        return np.asarray(layer.form.matrix(np.asarray(array, np.float64)))

    def _bias(self, layer: Layer, shape: Sequence[int]) -> Array:
        """The bias that the node itself adds, float32[g, o]; one that a later Add adds is no part of its output."""
        form = layer.form
        given = form.bias is not None and form.bias < len(layer.node.inputs)
        value = layer.node.inputs[form.bias] if given and form.bias is not None else None
        array = None if value is None else evaluate_parameter(self.model, value)
        flat = np.zeros(1) if array is None else np.asarray(array, np.float64).reshape(-1) * form.bias_gain()
        return np.broadcast_to(flat, (shape[0] * shape[1],)).reshape(shape[0], shape[1]).astype(np.float32)

    # -- the fit ----------------------------------------------------------------------------------------
    def _fit(self, jobs: list[_Job]) -> bool:
        """Fit the weight of one layer, or of several that share it; whether anything changed."""
        first, rows = jobs[0], Rows.joined([job.rows for job in jobs if job.rows is not None])
        layer, held = first.layer, [pair for job in jobs for pair in job.held]
        weight = self._matrix(layer)
        variance = sum(job.variance() for job in jobs) * sum(len(u) for u, _ in held)

        def judge(dw: Array | None, db: Array | None) -> float:
            return sum(squared_error(u, e, dw, db) for u, e in held) / max(variance, 1e-30)

        if self.mask is not None and (mask := self.mask(layer, weight, rows)) is not None:
            return self._fit_within(jobs, rows, weight, mask, judge)
        before = judge(None, None)
        report = LayerReport(layer.name, layer.node.op_type, before, before, None, rows.n, False)
        self.record.layers.append(report)
        if before <= EQUAL or not rows.n or not held:
            return False
        intercept = len(jobs) == 1 and layer.intercept is not None
        dw: Array | None = None
        db: Array | None = None
        if self.mode == "ls":
            for ridge in RIDGES:
                step, shift = rows.solve(ridge, intercept)
                error = judge(step, shift if intercept else None)
                if error < report.after:
                    report.after, report.ridge, dw, db = error, ridge, step, shift if intercept else None
            if dw is None:
                return False
        if self.mode == "scale" or (self.mode == "ls" and self.spread):
            dw, db = self._spread(jobs, rows, weight if dw is None else weight + dw, db, intercept)
            dw, report.after = dw - weight, judge(dw - weight, db)
        elif self.mode == "bias":
            if not intercept:
                return False
            db = rows.means()[1]
            report.after = judge(None, db)
            if report.after >= before:
                report.after = before
                return False
        report.kept = True
        self._write(jobs, None if dw is None else weight + dw, db)
        return True

    def _write(self, jobs: list[_Job], weight: Array | None, db: Array | None) -> None:
        """Change the weight that layers share, and what they add to their outputs."""
        layer = jobs[0].layer
        for n, job in enumerate(jobs):
            touched = write(job.layer, self.model, None if n else weight, None if db is None else db.reshape(-1))
            self.record.tensors.extend(name for name in touched if name not in self.record.tensors)
            job.layer.weight = layer.weight

    def _fit_within(
        self, jobs: list[_Job], rows: Rows, weight: Array, mask: Array, judge: Callable[[Array | None, Array | None], float]
    ) -> bool:
        """Zero what a mask leaves out, and fit the rest as far as held-out samples gain by it."""
        layer = jobs[0].layer
        intercept = len(jobs) == 1 and layer.intercept is not None
        dw, db = np.where(mask, 0.0, -weight), None
        before = judge(dw, None)
        report = LayerReport(layer.name, layer.node.op_type, before, before, None, rows.n, False)
        self.record.layers.append(report)
        if self.refit and rows.n and jobs[0].held:
            for ridge in RIDGES:
                step, shift = rows.solve_within(weight, mask, ridge, intercept)
                error = judge(step, shift if intercept else None)
                if error < report.after:
                    report.after, report.ridge, report.kept, dw, db = error, ridge, True, step, shift if intercept else None
        self._write(jobs, np.where(mask, weight + dw, 0.0), db)
        return True

    def _spread(
        self, jobs: list[_Job], rows: Rows, weight: Array, db: Array | None, intercept: bool
    ) -> tuple[Array, Array | None]:
        """Scale every output channel so that its spread (and, with an intercept, its mean) is the source's."""
        bias = self._bias(jobs[0].layer, weight.shape)
        mean, variance = rows.projected(weight)
        count = sum(job.count for job in jobs)
        want = sum(job.sums[0] for job in jobs) / count
        spread = np.sqrt(np.maximum(sum(job.sums[1] for job in jobs) / count - np.square(want), 0))
        low = 1e-6 * max(float(spread.max()), 1e-30)
        gain = np.clip(spread / np.maximum(np.sqrt(variance), low), 1 / MOST_GAIN, MOST_GAIN)
        gain[(spread < low) | (variance < low * low)] = 1.0
        return weight * gain[:, :, None], want - gain * mean - bias if intercept else db


def _affected(rewriter: Rewriter, order: Sequence[ir.Node]) -> set[ir.Node]:
    """Nodes of the cut model that may compute something else than in the source."""
    olds = {new: old for old, new in rewriter.new_nodes.items()}
    changed: set[ir.Value] = set()
    out: set[ir.Node] = set()
    for top in order:
        inside = [node for node, _ in walk([top])]
        cut = any(
            old is None or any(map(rewriter.is_cut, old.inputs)) or any(map(rewriter.is_cut, old.outputs))
            for old in map(olds.get, inside)
        )
        if cut or any(value in changed for value in reads(top)[0]):
            out.update(inside)
            changed.update(top.outputs)
    return out
