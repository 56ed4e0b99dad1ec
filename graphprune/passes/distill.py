"""``distill``: a cut model learns from its source, on data without labels."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import onnx_ir as ir

from graphprune.calibration import samples_for
from graphprune.comparing import run_all
from graphprune.errors import GraphPruneError, UsageError
from graphprune.feeding import feed_size
from graphprune.fidelity import compare_outputs
from graphprune.gradients import need_torch
from graphprune.passes.base import Kind, Pass, State

if TYPE_CHECKING:
    from graphprune.training.trainer import History, Recipe

#: More samples than any folder holds.
ALL = 1 << 40


@dataclass(frozen=True)
class Distill(Pass):
    """Train the cut model to give what its source gives, on --data without labels; runs after ``recover``.

    The loss is T^2 KL between the softened distributions for outputs that hold classes, the squared error as a share
    of the variance for others; and the squared error of the values at the borders of groups, at the kept indices, as a
    share of their variance. The two parts weigh the same at the start times ``features``. Held-out samples judge the
    averaged weights; the best are kept, and none that are worse than before. Changes the graph's weights. Cost: as asked.
    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015; Romero et al., "FitNets", ICLR 2015.
    Runs on Accelerate: 'accelerate launch -m graphprune run ...' uses several devices or nodes ('torchrun' on CPUs).

    Parameters
    ----------
    minutes, epochs, steps
        Length; give one of them (10 minutes otherwise). Minutes are turned into steps at the start.
    samples
        Samples that are learnt from; all of --data by default.
    batch, lr, optimizer, warmup
        Of a step; the rate rises for a share of the steps, then falls to 0 as a cosine.
    temperature
        T above.
    features
        Weight of the values inside; 0: outputs alone.
    norms
        ``eval``: batch norms keep the statistics that they have; ``train``: they follow the data, and dropout works.
    ema
        Share of the steps that the average of the weights looks back over.
    holdout
        Share of the samples that judges, at most 256.
    patience
        Judgements without gain, of 20, after which training ends.
    augment
        ``noise`` or ``mix`` (blends of two samples), of the floating inputs.
    precision
        ``auto``: bfloat16 where the device has it.
    checkpoint
        Folder; a run that was killed goes on from there when it is started again with the same options.
    every
        Seconds between checkpoints.
    memory
        Gigabytes of the source's outputs that are stored instead of computed again.
    """

    name: ClassVar[str] = "distill"
    kind: ClassVar[Kind] = "recover"
    changes_graph: ClassVar[bool] = True
    last: ClassVar[bool] = True
    minutes: float | None = None
    epochs: float | None = None
    steps: int | None = None
    samples: int | None = None
    batch: int = 32
    lr: float = 1e-3
    optimizer: Literal["adamw", "sgd"] = "adamw"
    warmup: float = 0.05
    temperature: float = 2.0
    features: float = 1.0
    norms: Literal["eval", "train"] = "eval"
    ema: float = 0.02
    holdout: float = 0.1
    patience: int = 8
    augment: Literal["none", "noise", "mix"] = "none"
    precision: Literal["no", "auto", "bf16", "fp16"] = "no"
    checkpoint: str | None = None
    every: float = 60.0
    memory: float = 2.0

    def recipe(self, seed: int) -> Recipe:
        """The options of the training loop."""
        from graphprune.training.trainer import Recipe

        names = set(asdict(self)) & set(Recipe.__dataclass_fields__) - {"checkpoint", "minutes"}
        length = 10.0 if self.minutes is None and self.epochs is None and self.steps is None else self.minutes
        folder = None if self.checkpoint is None else Path(self.checkpoint)
        return Recipe(**{name: getattr(self, name) for name in names}, minutes=length, seed=seed, checkpoint=folder)

    def run(self, state: State) -> None:
        if state.rewriter is None or state.cut is None or state.plan is None:
            raise GraphPruneError("there is no cut to distil: run 'rewrite' first")
        need_torch("distill", "trains")
        if self.temperature <= 0 or self.features < 0 or self.memory < 0 or (self.samples is not None and self.samples < 2):
            raise UsageError("distill: temperature is above 0, features and memory 0 or more, samples 2 or more")
        recipe = self.recipe(state.options.seed)
        from graphprune.training.batches import Data

        count = self.samples or (ALL if state.options.data is not None else None)
        samples = samples_for(state, n=count, batch=feed_size(state))
        if state.options.data is None:
            state.note("distill: learnt from made-up inputs; give --data with samples of what the model will see")
        data = Data(samples, batch=self.batch, holdout=self.holdout, seed=state.options.seed)
        feeds = list(data.feeds(data.held, samples.batch))
        source = run_all(state.model, feeds)
        before = compare_outputs(source, run_all(state.cut, feeds))
        weights = {value: value.const_value for graph in state.cut.graphs() for value in graph.initializers.values()}
        history, values = self._train(state, data, recipe)
        after = compare_outputs(source, run_all(state.cut, feeds))
        used = after["divergence"] < before["divergence"]
        if not used:
            for value, tensor in weights.items():
                value.const_value = tensor
            after = before
            state.note("distill: the outputs on held-out samples came no nearer to the source's: the weights stay as they were")
        changed = [str(value.name) for value, tensor in weights.items() if _differs(value, tensor)]
        record: dict[str, Any] = {
            "samples": len(data.fit), "held_out": len(data.held), "used": used, **history.to_json(), "features": values,
            "options": {k: v for k, v in asdict(self).items() if v is not None},
            "fidelity": {"samples": len(data.held), "before": before, "after": after},
        }  # fmt: skip
        recovery = state.plan.recovery
        recovery["distill"] = record
        recovery["tensors"] = list(dict.fromkeys([*recovery.get("tensors", []), *changed]))
        recovery.setdefault("dropped", [])
        if "layers" in recovery:
            recovery["fitted"] = recovery["used"]
        recovery["used"] = bool(recovery.get("used")) or used
        state.plan.fidelity = {"samples": len(data.held), **after}

    def _train(self, state: State, data: Any, recipe: Recipe) -> tuple[History, list[str]]:
        """Train a module that the cut model was made into, and write its weights back."""
        from graphprune.backends.torch import update_model
        from graphprune.training.processes import device
        from graphprune.training.teaching import Teacher, Teaching, boundaries, features_of, showing
        from graphprune.training.trainer import Trainer

        assert state.cut is not None and state.plan is not None
        values = boundaries(state, state.cut) if self.features else []
        names = [str(value.name) for value in values]
        student, given, logits = showing(state.cut, names)
        module, same, _ = showing(state.model, names)
        if given != same:
            raise GraphPruneError(f"source and cut show other values ({given} and {same}). Please report this model")
        outputs = given[: len(state.model.graph.outputs)]
        features = features_of(state, given, [value for value in values if str(value.name) not in outputs])
        trainer: Trainer | None = None
        teacher = Teacher(module, data, device(), int(self.memory * (1 << 30)))
        task = Teaching(teacher, outputs, logits, features, self.temperature, self.features)
        trainer = Trainer(student, task, data, recipe, self._identity(state, data), state.progress)
        if self.augment == "none":
            teacher.store(state.progress)
        history = trainer.run()
        update_model(state.cut, student)
        return history, [feature.name for feature in features]

    def _identity(self, state: State, data: Any) -> dict[str, str]:
        """What a checkpoint must be of: source, cut, data and options."""
        assert state.plan is not None
        kept = hashlib.sha256(json.dumps(state.plan.tensors, sort_keys=True, default=str).encode()).hexdigest()
        options = {k: v for k, v in asdict(self).items() if k not in ("checkpoint", "every", "memory")}
        return {
            "source": str(state.loaded.sha256), "cut": kept, "seed": str(state.options.seed),
            "data": f"{state.options.data}: {len(data.samples)} samples", "options": json.dumps(options, sort_keys=True),
        }  # fmt: skip


def _differs(value: ir.Value, before: ir.TensorProtocol | None) -> bool:
    """Whether a constant holds something else than it did."""
    after = value.const_value
    if after is before or after is None or before is None:
        return False
    return after.tobytes() != before.tobytes()
