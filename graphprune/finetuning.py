"""Fine-tuning with labels: a model, cut or not, is trained on a labelled folder and written back as ONNX."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphprune import data as loading
from graphprune.backends import onnx as writer
from graphprune.calibration import input_specs
from graphprune.errors import DataError, UsageError
from graphprune.frontends.onnx import SOURCE_FILES, Loaded
from graphprune.gradients import need_torch
from graphprune.labels import class_counts, labels_of
from graphprune.plan import Plan, plan_path

if TYPE_CHECKING:
    from graphprune.training.trainer import History

#: More samples than any folder holds.
ALL = 1 << 40
_FEED = 64


@dataclass
class Finetuned:
    """A finished fine-tuning.

    Attributes
    ----------
    model
        The model with the best weights; the source is as it was.
    record
        ``before`` and ``after``: accuracy on held-out samples (with a teacher and no labels: divergence from it); steps, samples,
        and how it ended.
    plan
        Of the source, where it lies beside it: it notes which weights were changed, so that ``graphprune verify`` goes on
        proving the cut.
    """

    loaded: Loaded
    model: ir.Model
    record: dict[str, Any] = field(default_factory=dict)
    plan: Plan | None = None

    def save(self, path: str | os.PathLike[str]) -> list[Path]:
        """Write ``path`` and, where the source has a plan, the plan beside it: all or none.

        Raises
        ------
        OutputError
            One of them cannot be written, or would overwrite the source.
        """
        path = Path(path)
        with writer.Transaction(protect=self.loaded.model.meta.get(SOURCE_FILES, ())) as transaction:
            files = writer.stage(self.model, path, transaction)
            if self.plan is not None:
                transaction.write(plan_path(path), self.plan.dumps().encode())
                files = [*files, plan_path(path)]
        return files


def finetune(
    source: Any, data: str | os.PathLike[str], *, teacher: Any = None, weight: float = 0.5, temperature: float = 2.0,
    shapes: Mapping[str, tuple[int, ...]] | None = None, mean: Sequence[float] | None = None, std: Sequence[float] | None = None,
    layout: str | None = None, holdout: float = 0.1, checkpoint: str | os.PathLike[str] | None = None, seed: int = 0,
    progress: Callable[[str, float], None] = lambda _what, _share: None, **recipe: Any,
) -> Finetuned:  # fmt: skip
    """Train a model on labelled data; the weights that are best on held-out samples are kept, those before included.

    Parameters
    ----------
    source
        A path to an ``.onnx`` file, an ``onnx.ModelProto``, an ``onnx_ir.Model``, or what else :func:`graphprune.prune` takes. It
        is never changed.
    data
        A folder with one subfolder of images a class (names that are numbers are class numbers, others are numbered in sorted
        order), or a ``.npz`` with the inputs and an array ``labels``.
    teacher
        A model with the same inputs and outputs that is learnt from as well, by ``weight``; with it, labels are not needed.
    weight
        Of T^2 KL to the teacher, 0..1; cross-entropy with the labels has the rest.
    holdout
        Share of the samples that judges, at most 2,048.
    checkpoint
        Folder; a run that was killed goes on from there when it is started again with the same options.
    **recipe
        The other fields of :class:`graphprune.training.trainer.Recipe`: ``minutes``, ``epochs`` (5) or ``steps``, ``batch``,
        ``lr``, ``optimizer``, ``norms`` (here ``train``), ``ema``, ``patience``, ``precision``, ...

    Returns
    -------
    Finetuned

    Raises
    ------
    GraphPruneError
        One clear message.
    """
    need_torch("finetune", "trains")
    from graphprune.backends.torch import update_model
    from graphprune.pipeline import load_any
    from graphprune.training.batches import Data
    from graphprune.training.teaching import showing
    from graphprune.training.trainer import Recipe, Trainer

    if not any(recipe.get(name) is not None for name in ("minutes", "epochs", "steps")):
        recipe["epochs"] = 5.0
    folder = None if checkpoint is None else Path(checkpoint)
    try:
        chosen = Recipe(**{"norms": "train", "lr": 5e-4, **recipe}, seed=seed, checkpoint=folder)
    except TypeError as error:
        raise UsageError(f"{error}".replace("Recipe.__init__()", "finetune()")) from error
    if not 0 <= weight <= 1 or temperature <= 0:
        raise UsageError("weight lies in 0..1 and temperature above 0")
    progress("reading the model", 0.0)
    loaded = load_any(source)
    model = loaded.model.clone()
    model.meta.update(loaded.model.meta)
    specs = input_specs(model)
    samples = loading.load(Path(data), specs, n=ALL, mean=mean, std=std, layout=layout, shapes=shapes, seed=seed, batch=_FEED)
    labels = labels_of(samples, class_counts(model))
    if labels is None and teacher is None:
        raise DataError(
            f"{data} has no labels: give a folder with one subfolder of images a class, a .npz with an array 'labels' beside the "
            "inputs, or a --teacher to learn from without labels"
        )
    parts = Data(samples, batch=chosen.batch, holdout=holdout, seed=seed, labels=labels, most=2048)
    if chosen.norms == "train" and parts.batch < 2:
        raise UsageError("a batch of one sample has no statistics for batch norms: give --norms eval, or a larger --batch")
    student, outputs, logits = showing(model, [])
    task = _task(student, outputs, logits, parts, labels, teacher, temperature, weight)
    identity = {
        "source": str(loaded.sha256), "data": samples.description, "seed": str(seed),
        "labels": "" if labels is None else hashlib.sha256(labels.tobytes()).hexdigest(),
        "options": str({**asdict(chosen), "checkpoint": 0, "every": 0, "weight": weight, "temperature": temperature}),
    }  # fmt: skip
    history = Trainer(student, task, parts, chosen, identity, progress).run()
    weights = {value: value.const_value for graph in model.graphs() for value in graph.initializers.values()}
    if history.at:
        update_model(model, student)
    changed = [str(value.name) for value, before in weights.items() if _differs(value.const_value, before)]
    found = Finetuned(loaded, model, _record(history, task, parts, labels is not None))
    beside = None if loaded.path is None else plan_path(loaded.path)
    if beside is not None and beside.is_file():
        found.plan = _noted(Plan.load(beside), changed, found.record)
    return found


def _task(
    student: Any, outputs: Sequence[str], logits: frozenset[str], data: Any, labels: np.ndarray[Any, Any] | None, teacher: Any,
    temperature: float, weight: float,
) -> Any:  # fmt: skip
    """What is learnt: labels, a teacher's outputs, or both."""
    from graphprune.pipeline import load_any
    from graphprune.training.classifying import Classifying
    from graphprune.training.processes import device
    from graphprune.training.teaching import Teacher, Teaching, showing

    master = None
    if teacher is not None:
        module, given, _ = showing(load_any(teacher).model, [])
        ours, theirs = list(student.meta["inputs"]), list(module.meta["inputs"])
        if ours != theirs or len(given) != len(outputs):
            raise UsageError(
                f"the teacher takes {', '.join(theirs)} and gives {len(given)} outputs, the model takes {', '.join(ours)} and "
                f"gives {len(outputs)}: both must take and give the same"
            )
        master = Teacher(module, data, device(), 0)
    if labels is None:
        assert master is not None
        return Teaching(master, outputs, logits, [], temperature, 0.0)
    return Classifying(outputs, labels, master, temperature, weight if master is not None else 0.0)


def _record(history: History, task: Any, data: Any, labelled: bool) -> dict[str, Any]:
    """What a plan keeps of it."""
    shown = task.accuracy if labelled else float
    return {
        "measure": "accuracy" if labelled else "divergence", "before": shown(history.first), "after": shown(history.best),
        **history.to_json(), "samples": len(data.fit), "held_out": len(data.held), "used": history.at > 0,
        "scores": [(step, shown(score)) for step, score in history.scores],
    }  # fmt: skip


def _noted(plan: Plan, changed: Sequence[str], record: Mapping[str, Any]) -> Plan:
    """A plan that says which weights are no longer the source's."""
    plan.recovery["tensors"] = list(dict.fromkeys([*plan.recovery.get("tensors", []), *changed]))
    plan.recovery.setdefault("dropped", [])
    plan.recovery["finetune"] = dict(record)
    return plan


def _differs(after: ir.TensorProtocol | None, before: ir.TensorProtocol | None) -> bool:
    """Whether a constant holds something else than it did."""
    if after is before or after is None or before is None:
        return False
    return after.tobytes() != before.tobytes()
