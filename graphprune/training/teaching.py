"""A source that teaches its cut: which values are compared, what the source gives there, and the loss made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from graphprune.backends.torch import to_module
from graphprune.coupling import Coupling
from graphprune.detection.nearness import comparable
from graphprune.detection.reading import Reader, reader
from graphprune.errors import UsageError
from graphprune.featuremaps import layer_inputs, layer_outputs
from graphprune.ops.traits import softmax_over_last
from graphprune.passes.base import State
from graphprune.training.batches import INDEX, Batch, Data
from graphprune.training.losses import Output, apart, divergence, judged, kind_of, relative_error, score

#: Samples that one pass of the teacher takes while its outputs are stored.
_CHUNK = 32


@dataclass(frozen=True)
class Feature:
    """A value of teacher and student that is compared beside the outputs.

    Attributes
    ----------
    place
        Its number among the outputs of both.
    kept
        Axis -> int64[m], the teacher's indices that the student has.
    """

    name: str
    place: int
    kept: Mapping[int, Tensor]

    def of(self, teacher: Tensor) -> Tensor:
        """The part of the teacher's value that the student has."""
        for axis, indices in self.kept.items():
            teacher = teacher.index_select(axis, indices.to(teacher.device))
        return teacher


def showing(model: ir.Model, names: Sequence[str]) -> tuple[fx.GraphModule, list[str], frozenset[str]]:
    """A model as a module that gives some inner values beside its outputs.

    What goes into a Softmax that makes an output stands in its place: it is the same distribution, and does not saturate.

    Parameters
    ----------
    names
        Of values of the main graph.

    Returns
    -------
    module, names, logits
        The values that the module gives, in order, and those that stand in the place of a distribution.
    """
    clone = model.clone()
    clone.meta.update(model.meta)
    values = {str(v.name): v for node in clone.graph for v in node.outputs}
    logits = set()
    version = clone.graph.opset_imports.get("", 1)
    for place, value in enumerate(tuple(clone.graph.outputs)):
        node = value.producer()
        if node is not None and softmax_over_last(node, version):
            before = node.inputs[0]
            if before is not None and before.producer() is not None and not before.is_graph_output():
                clone.graph.outputs[place] = before
                logits.add(str(before.name))
    given = {str(v.name) for v in clone.graph.outputs}
    clone.graph.outputs.extend(values[name] for name in names if name not in given)
    return to_module(clone), [str(v.name) for v in clone.graph.outputs], frozenset(logits)


def boundaries(state: State, cut: ir.Model) -> list[ir.Value]:
    """For each group the last value that shows its units to the layers behind them; values of the source that the cut has too."""
    coupling: Coupling = state.need_coupling()
    there = {str(v.name) for node in cut.graph for v in node.outputs}
    order = {value: i for i, node in enumerate(state.model.graph) for value in node.outputs}
    last: dict[int, ir.Value] = {}
    for value, axis in [*layer_outputs(state, "act"), *layer_inputs(state)]:
        if value not in order or str(value.name) not in there:
            continue
        rows = coupling.rows(value, axis)
        for number in np.unique(coupling.group_of[rows[rows >= 0]]).tolist():
            if number not in last or order[value] > order[last[number]]:
                last[number] = value
    return sorted(set(last.values()), key=order.__getitem__)


class Teacher:
    """What the source gives for a batch: computed as it is asked for, or once before where that fits into memory.

    Parameters
    ----------
    memory
        Bytes that stored outputs may take.
    """

    def __init__(self, module: fx.GraphModule, data: Data, device: torch.device, memory: int) -> None:
        self.module, self.data, self.device = module.to(device).eval(), data, device
        for parameter in self.module.parameters():
            parameter.requires_grad_(False)
        self.names = list(module.meta["inputs"])
        self.memory, self.taken = memory, 0
        self.stored: list[Tensor] | None = None
        self.held: dict[int, tuple[Tensor, ...]] = {}
        self.place: NDArray[np.int64] = np.zeros(0, np.int64)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> tuple[Tensor, ...]:
        if self.stored is not None:
            where = torch.from_numpy(self.place[batch[INDEX].cpu().numpy()])
            if bool((where >= 0).all()):
                return tuple(values[where].to(self.device) for values in self.stored)
        return self._run(batch)

    @torch.no_grad()
    def judging(self, batch: Batch, count: int) -> tuple[Tensor, ...]:
        """The first ``count`` values for held-out samples, which come in the same batches every time; stored while they fit."""
        first = int(batch[INDEX][0])
        found = self.held.get(first)
        if found is None:
            found = self._run(batch)[:count]
            size = sum(y.numel() * y.element_size() for y in found)
            if size <= self.memory - self.taken:
                # The runs that train come after: what stands here counts against what they may store.
                self.taken += size
                self.held[first] = found
        return found

    def _run(self, batch: Batch) -> tuple[Tensor, ...]:
        found = self.module(*(batch[name].to(self.device) for name in self.names))
        return found if isinstance(found, tuple) else (found,)

    @torch.no_grad()
    def store(self, progress: Callable[[str, float], None]) -> bool:
        """Run over all samples that train, in a fixed order, and keep what comes out; False where it does not fit."""
        data = self.data
        n = len(data.fit)
        if not data.samples.batched or data.samples.static:
            return False
        rows: list[Tensor] = []
        done = 0
        for batch in data.straight(data.fit, _CHUNK):
            size = len(batch[INDEX])
            found = self._run(batch)
            if any(y.ndim == 0 or len(y) != size for y in found):
                return False  # its first axis counts something else
            if not rows:
                needed = n * sum(y[0].numel() * y.element_size() for y in found)
                if needed > self.memory - self.taken:
                    return False
                self.taken += needed
                rows = [torch.empty((n, *y.shape[1:]), dtype=y.dtype) for y in found]
            for values, y in zip(rows, found, strict=True):
                if y.shape[1:] != values.shape[1:]:
                    return False
                values[done : done + size] = y.cpu()
            done += size
            progress("running the source", done / n)
        self.place = np.full(len(data.samples), -1)
        self.place[data.fit] = np.arange(n)
        self.stored = rows
        return True


class Teaching:
    """The task of a distillation: outputs and features of the student against the teacher's.

    Parameters
    ----------
    outputs
        Names of the values that stand for the model's outputs, the first ones that both modules give.
    logits
        Those of them that hold classes, whatever they look like.
    temperature
        Softens distributions.
    weight
        Of the features, where the outputs have 1; both are balanced at the start so that 1 means as much.
    """

    name = "distill"

    def __init__(
        self, teacher: Teacher, outputs: Sequence[str], logits: frozenset[str], features: Sequence[Feature], temperature: float,
        weight: float,
    ) -> None:  # fmt: skip
        self.teacher, self.names, self.logits, self.features = teacher, outputs, logits, features
        self.temperature, self.weight = temperature, weight
        self.outputs: list[Output] = []
        self.variance: dict[int, float] = {}
        self.balance = 0.0

    def start(self, forward: Callable[[Batch], tuple[Tensor, ...]], batches: list[Batch]) -> dict[str, Any]:
        found = [(forward(batch), self.teacher(batch)) for batch in batches]
        first = found[0][1]
        kinds: dict[str, str] = {}
        for place, name in enumerate(self.names):
            s, t = found[0][0][place], first[place]
            if t.is_floating_point() and t.shape == s.shape and t.numel():
                kinds[name] = "logits" if name in self.logits else kind_of(t)
        how = _detections([t for _, t in found], self.names, kinds)
        if how is not None:
            for name in how.names[:2]:
                kinds[name] = "detections"
        if not kinds:
            raise UsageError(
                f"distillation compares floating-point outputs of the same shape; the model has none ({', '.join(self.names)})"
            )
        wanted = [place for place, name in enumerate(self.names) if kinds.get(name) == "values"]
        variance = {place: float(torch.stack([t[place].float().var() for _, t in found]).mean()) for place in wanted}
        variance |= {f.place: float(torch.stack([f.of(t[f.place]).float().var() for _, t in found]).mean()) for f in self.features}
        variance = {place: value for place, value in variance.items() if value > 0 or place < len(self.names)}
        notes = {"kinds": kinds, "variance": {str(k): v for k, v in variance.items()}, "balance": 0.0}
        notes["how"] = None if how is None else asdict(how)
        self.resume(notes)
        outputs = float(torch.stack([self._outputs(s, t) for s, t in found]).mean())
        features = float(torch.stack([self._features(s, t) for s, t in found]).mean())
        self.balance = self.weight * outputs / features if features > 0 else 0.0
        return {**notes, "balance": self.balance}

    def resume(self, notes: Mapping[str, Any]) -> None:
        kinds = notes["kinds"]
        how = None if notes.get("how") is None else Reader(**{k: _tuples(v) for k, v in notes["how"].items()})
        # What holds boxes and what holds their scores is one thing to compare.
        beside = () if how is None else how.names[1:2]
        self.outputs = [Output(name, place, kinds[name], how if kinds[name] == "detections" else None)
                        for place, name in enumerate(self.names) if name in kinds and name not in beside]  # fmt: skip
        self.variance = {int(place): float(value) for place, value in notes["variance"].items()}
        self.balance = float(notes["balance"])

    def _outputs(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        parts = []
        for one in self.outputs:
            s, t = student[one.place], teacher[one.place]
            if one.kind == "detections":
                error, believed = apart(one, student, teacher, self.names)
                parts.append(error / believed.clamp_min(1e-3))
            elif one.kind == "values":
                parts.append(relative_error(s, t, self.variance[one.place]))
            else:
                parts.append(divergence(s, t, one.kind, self.temperature))
        return torch.stack(parts).mean()

    def _features(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        parts = [
            relative_error(student[f.place], f.of(teacher[f.place]), self.variance[f.place])
            for f in self.features
            if f.place in self.variance
        ]
        return torch.stack(parts).mean() if parts else student[self.outputs[0].place].new_zeros(())

    def loss(self, found: tuple[Tensor, ...], batch: Batch) -> Tensor:
        teacher = self.teacher(batch)
        total = self._outputs(found, teacher)
        return total + self.balance * self._features(found, teacher) if self.balance else total

    def judge(self, found: tuple[Tensor, ...], batch: Batch) -> Tensor:
        return judged(self.outputs, found, self.teacher.judging(batch, len(self.names)), self.names)

    def score(self, sums: Tensor) -> float:
        return score(self.outputs, sums)


def _detections(teacher: Sequence[tuple[Tensor, ...]], names: Sequence[str], kinds: Mapping[str, str]) -> Reader | None:
    """How the teacher's outputs hold boxes cell by cell, None where they do not."""
    places = {name: place for place, name in enumerate(names) if name in kinds}
    outputs = [{name: t[place].detach().float().cpu().numpy() for name, place in places.items()} for t in teacher]
    how = reader(outputs)
    return how if comparable(how, outputs) else None


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def features_of(state: State, names: Sequence[str], values: Sequence[ir.Value]) -> list[Feature]:
    """Features among the values that both modules give."""
    assert state.rewriter is not None
    places = {name: place for place, name in enumerate(names)}
    out = []
    for value in values:
        rank = state.need_facts().rank(value) or 0
        kept = {axis: k for axis in range(rank) if (k := state.rewriter.kept(value, axis)) is not None}
        out.append(Feature(str(value.name), places[str(value.name)], {a: torch.from_numpy(k) for a, k in kept.items()}))
    return out

