"""One training loop for distillation and fine-tuning, on Accelerate: devices, processes, nodes and precision are its business.

Whatever is random in a step follows from the seed and the number of the step, the learning rate from the number of the step
alone, and the order of the samples from seed and epoch. So a checkpoint needs weights, their average, the optimizer and the
number of the step, and a run that was killed goes on as if nothing had happened.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from graphprune.errors import UsageError
from graphprune.training import checkpoint
from graphprune.training.batches import Batch, Data, augmented
from graphprune.training.processes import on_cpu

Progress = Callable[[str, float], None]
#: Steps that are run and thrown away before the clock starts, and then timed at least.
WARM, TIMED = 2, 4
#: Share of a time budget that goes into measuring how long a step takes, and into judging at most.
MEASURING, JUDGING = 0.02, 0.15
#: Judgements that are made all the same.
FEWEST = 4


@dataclass(frozen=True)
class Recipe:
    """How a module is trained.

    Attributes
    ----------
    steps, epochs, minutes
        Length, whichever is given; minutes are turned into steps once, at the start.
    warmup
        Share of the steps over which the learning rate rises; then it falls to 0 like a cosine.
    ema
        Share of the steps that the average of the weights looks back over; 0: the weights themselves are judged.
    evaluations
        Times that held-out samples judge, evenly over the run; fewer where they would take too much of a time budget.
    patience
        Judgements without gain after which training ends.
    norms
        ``eval``: batch norms use the statistics that they have, and dropout is off. ``train``: both work as in training.
    every
        Seconds between checkpoints.
    """

    steps: int | None = None
    epochs: float | None = None
    minutes: float | None = None
    batch: int = 32
    lr: float = 1e-3
    optimizer: Literal["adamw", "sgd"] = "adamw"
    decay: float = 0.0
    warmup: float = 0.05
    ema: float = 0.02
    clip: float = 1.0
    evaluations: int = 20
    patience: int = 8
    norms: Literal["eval", "train"] = "eval"
    augment: Literal["none", "noise", "mix"] = "none"
    precision: Literal["no", "auto", "bf16", "fp16"] = "no"
    seed: int = 0
    checkpoint: Path | None = None
    every: float = 60.0

    def __post_init__(self) -> None:
        given = [name for name in ("steps", "epochs", "minutes") if getattr(self, name) is not None]
        if len(given) != 1:
            raise UsageError(f"give one of minutes, epochs and steps, not {' and '.join(given) or 'none'}")
        if getattr(self, given[0]) <= 0:
            raise UsageError(f"{given[0]} must be above 0, not {getattr(self, given[0]):g}")
        if not (self.lr > 0 and self.clip > 0 and self.decay >= 0 and self.every >= 0):
            raise UsageError("lr and clip must be above 0, decay and every 0 or more")
        if not (0 <= self.warmup < 1 and 0 <= self.ema < 1) or self.evaluations < 1 or self.patience < 1:
            raise UsageError("warmup and ema lie in [0, 1), evaluations and patience are 1 or more")


class Task(Protocol):
    """What is learnt."""

    #: Of its checkpoint.
    name: str

    def start(self, forward: Callable[[Batch], tuple[Tensor, ...]], batches: list[Batch]) -> dict[str, Any]:
        """Measure what losses are weighed by, on a few batches of a new run; what it gives is kept in the checkpoint."""

    def resume(self, notes: Mapping[str, Any]) -> None:
        """Take what :meth:`start` gave in the run that goes on."""

    def loss(self, found: tuple[Tensor, ...], batch: Batch) -> Tensor:
        """What a step makes smaller."""

    def judge(self, found: tuple[Tensor, ...], batch: Batch) -> Tensor:
        """Sums over held-out samples, float64; they are added up over batches and processes."""

    def score(self, sums: Tensor) -> float:
        """One number of them; lower is better."""


@dataclass
class History:
    """What a run did.

    Attributes
    ----------
    first, best
        Score before training and at its best.
    at
        Step of the best; 0: the weights are as they were.
    scores
        (step, score) pairs.
    """

    steps: int = 0
    done: int = 0
    first: float = math.inf
    best: float = math.inf
    at: int = 0
    scores: list[tuple[int, float]] = field(default_factory=list)
    ended: str = ""
    resumed: int = 0
    evaluations: int = 0
    epochs: float = 0.0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    processes: int = 1
    device: str = ""

    def to_json(self) -> dict[str, Any]:
        """What a plan keeps of it."""
        return {
            "steps": self.done, "planned": self.steps, "epochs": self.epochs, "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds, "best_step": self.at, "ended": self.ended, "resumed_at": self.resumed,
            "scores": self.scores, "processes": self.processes, "device": self.device,
        }  # fmt: skip


class Trainer:
    """One run; ``module`` holds the best weights afterwards.

    Parameters
    ----------
    module
        What :func:`graphprune.backends.torch.to_module` made.
    identity
        What a checkpoint must agree with to be gone on with: plain numbers and texts.
    """

    def __init__(
        self, module: nn.Module, task: Task, data: Data, recipe: Recipe, identity: Mapping[str, Any],
        progress: Progress = lambda _what, _share: None,
    ) -> None:  # fmt: skip
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs

        precision = recipe.precision
        if precision == "auto":
            precision = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"
        wrapping = DistributedDataParallelKwargs(find_unused_parameters=True)
        try:
            self.accelerator = Accelerator(cpu=on_cpu(), mixed_precision=precision, kwargs_handlers=[wrapping])
        except ValueError as error:
            raise UsageError(f"Accelerate was set up otherwise in this process, or lacks this precision: {error}") from error
        self.task, self.data, self.recipe, self.identity, self.progress = task, data, recipe, dict(identity), progress
        self.names = list(module.meta["inputs"])
        self.module = module
        trained = [p for p in module.parameters() if p.requires_grad]
        if not trained:
            raise UsageError("the model has no floating-point weights that could be trained")
        many = [p for p in trained if p.ndim > 1]
        few = [p for p in trained if p.ndim < 2]
        groups = [{"params": many, "weight_decay": recipe.decay}, {"params": few, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
        kind: Any = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.SGD
        more: dict[str, Any] = {} if recipe.optimizer == "adamw" else {"momentum": 0.9, "nesterov": True}
        loader, self.order = data.loader()
        self.prepared, self.optimizer, self.loader = self.accelerator.prepare(
            module, kind(groups, lr=recipe.lr, **more), loader
        )
        if not len(self.loader):
            raise UsageError(
                f"{len(data.fit)} samples make no batch of {data.batch} for each of {self.accelerator.num_processes} processes: "
                "give more samples or a smaller batch"
            )
        self.module.to(self.accelerator.device)
        self.history = History(processes=self.accelerator.num_processes, device=str(self.accelerator.device))
        self.average: dict[str, Tensor] = {}
        self.best: dict[str, Tensor] = {}
        self.stale = 0
        self.notes: dict[str, Any] = {}

    # -- the run --------------------------------------------------------------------------------------
    def run(self) -> History:
        """Train until the steps are done, nothing is gained any more, or the loss is no number; put the best weights in place."""
        started, worked = time.monotonic(), time.process_time()
        devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            if not self._resume():
                self._begin(started)
            self._train()
        self.module.load_state_dict(self.best)
        self.module.eval()
        self.history.seconds, self.history.cpu_seconds = time.monotonic() - started, time.process_time() - worked
        self.history.epochs = self.history.done / len(self.loader)
        return self.history

    def _begin(self, started: float) -> None:
        self.average, self.best = self._state(), self._state()
        batches = self._first(4)
        self._mode()
        with torch.no_grad():
            self.notes = self.task.start(self._forward, batches)
        self.module.load_state_dict(self.best)
        clock = time.monotonic()
        self.history.first = self.history.best = self._judge()
        self.history.scores.append((0, self.history.first))
        self.history.evaluations = self.recipe.evaluations
        self.history.steps = self._length(started, time.monotonic() - clock)

    def _length(self, started: float, judging: float) -> int:
        """Steps of the run; minutes are turned into steps by what steps take now, the same number in every process."""
        recipe = self.recipe
        if recipe.steps is not None:
            return recipe.steps
        if recipe.epochs is not None:
            return max(1, round(recipe.epochs * len(self.loader)))
        assert recipe.minutes is not None
        from accelerate.utils import broadcast_object_list

        seconds: list[float] = []
        self._mode()
        clock = time.monotonic()
        while len(seconds) < WARM + TIMED or time.monotonic() - clock < MEASURING * 60 * recipe.minutes:
            self.progress("measuring a step", 0.0)
            for batch in self._first(WARM + TIMED):
                begun = time.monotonic()
                self.accelerator.backward(self.task.loss(self._forward(batch), batch))
                self.optimizer.zero_grad()
                seconds.append(time.monotonic() - begun)
        self.module.load_state_dict(self.best)
        step = sum(seconds[WARM:]) / len(seconds[WARM:])
        fitting = int(JUDGING * 60 * recipe.minutes / max(judging, 1e-9))
        evaluations = min(recipe.evaluations, max(FEWEST, fitting))
        left = 60 * recipe.minutes - (time.monotonic() - started) - evaluations * judging
        found = [max(1, int(left / step)), evaluations]
        broadcast_object_list(found)
        self.history.evaluations = found[1]
        return found[0]

    def _first(self, count: int) -> list[Batch]:
        """The first batches of the first epoch."""
        self.order.epoch = 0
        out = []
        for batch in self.loader:
            out.append(batch)
            if len(out) == count:
                break
        return out

    def _train(self) -> None:
        recipe, history = self.recipe, self.history
        saved, total = time.monotonic(), 0.0
        marks = {round(history.steps * (i + 1) / history.evaluations) for i in range(history.evaluations)} | {history.steps}
        self._mode()
        while history.done < history.steps and not history.ended:
            self.order.epoch, at = divmod(history.done, len(self.loader))
            for batch in self.accelerator.skip_first_batches(self.loader, at) if at else self.loader:
                total += self._step(batch)
                history.done += 1
                self.progress(self.task.name, history.done / history.steps)
                if history.done in marks:
                    self._evaluate(total)
                    total = 0.0
                if history.ended or history.done == history.steps:
                    break
                if recipe.checkpoint is not None and time.monotonic() - saved >= recipe.every:
                    self._save()
                    saved = time.monotonic()
        history.ended = history.ended or "all steps done"
        self._save()

    def _step(self, batch: Batch) -> float:
        recipe, step = self.recipe, self.history.done
        # A seed of each step's own: dropout and augmentation need no memory.
        torch.manual_seed(hash((recipe.seed, 2, step, self.accelerator.process_index)) % (1 << 62))
        if recipe.augment != "none":
            batch = augmented(batch, recipe.augment, torch.Generator().manual_seed(torch.initial_seed()))
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.lr * self._rate(step)
        loss = self.task.loss(self._forward(batch), batch)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.prepared.parameters(), recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._follow(step)
        return float(loss.detach())

    def _rate(self, step: int) -> float:
        """Share of the learning rate at a step: a rise, then a cosine down to 0."""
        rise = self.recipe.warmup * self.history.steps
        if step < rise:
            return (step + 1) / (rise + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(self.history.steps - rise, 1)))

    @torch.no_grad()
    def _follow(self, step: int) -> None:
        """Move the average towards the weights; it looks back over few steps at the start."""
        back = self.recipe.ema * self.history.steps
        share = 1.0 if back < 1 else max(1 / back, 1 / (1 + step / 2))
        for name, value in self.module.state_dict().items():
            mean = self.average[name]
            if mean.is_floating_point():
                mean.lerp_(value.to(mean.dtype), share)
            else:
                mean.copy_(value)

    def _forward(self, batch: Batch) -> tuple[Tensor, ...]:
        with self.accelerator.autocast():
            found = self.prepared(*(batch[name] for name in self.names))
        return found if isinstance(found, tuple) else (found,)

    def _mode(self) -> None:
        self.prepared.train(self.recipe.norms == "train")

    def _state(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.module.state_dict().items()}

    # -- judging --------------------------------------------------------------------------------------
    def _evaluate(self, total: float) -> None:
        """Judge the averaged weights, keep them if they are the best, and end a run that gains nothing."""
        own = self._state()
        self.module.load_state_dict(self.average)
        found = self._judge()
        self.module.load_state_dict(own)
        self._mode()
        history = self.history
        history.scores.append((history.done, found))
        if found < history.best:
            history.best, history.at, self.stale = found, history.done, 0
            self.best = {name: value.clone() for name, value in self.average.items()}
        else:
            self.stale += 1
        sums = self.accelerator.reduce(torch.tensor([total], dtype=torch.float64 if self._doubles() else torch.float32,
                                                    device=self.accelerator.device))  # fmt: skip
        if not math.isfinite(float(sums)):
            history.ended = f"the loss was no number before step {history.done}"
        elif self.stale >= self.recipe.patience:
            history.ended = f"no gain in {self.stale} judgements"

    @torch.no_grad()
    def _judge(self) -> float:
        """Score of the module as it is on the held-out samples, which the processes share among themselves."""
        self.prepared.eval()
        sums: Tensor | None = None
        index, count = self.accelerator.process_index, self.accelerator.num_processes
        for number, batch in enumerate(self.data.straight(self.data.held)):
            if number % count == index or sums is None:
                moved = {name: value.to(self.accelerator.device) for name, value in batch.items()}
                found = self.task.judge(self._whole(moved), moved)
                # A process that judges nothing adds zeros of the right shape.
                found = found if number % count == index else torch.zeros_like(found)
                sums = found if sums is None else sums + found
        assert sums is not None
        kind = torch.float64 if self._doubles() else torch.float32
        sums = self.accelerator.reduce(sums.to(self.accelerator.device, kind)).cpu()
        score = self.task.score(sums)
        return score if math.isfinite(score) else math.inf

    def _whole(self, batch: Batch) -> tuple[Tensor, ...]:
        """Outputs of the module itself: a data-parallel wrapper would wait for the other processes."""
        found = self.module(*(batch[name] for name in self.names))
        return found if isinstance(found, tuple) else (found,)

    def _doubles(self) -> bool:
        return self.accelerator.device.type != "mps"

    # -- checkpoints ------------------------------------------------------------------------------------
    @property
    def _path(self) -> Path | None:
        return None if self.recipe.checkpoint is None else self.recipe.checkpoint / f"{self.task.name}.safetensors"

    def _save(self) -> None:
        if self._path is None or not self.accelerator.is_main_process:
            return
        gathered, numbers = checkpoint.optimizer_tensors(self.optimizer)
        parts = {"module": self.module.state_dict(), "average": self.average, "best": self.best, "optimizer": gathered}
        scaler = self.accelerator.scaler
        history = self.history
        checkpoint.save(
            self._path, {f"{part}/{name}": value for part, found in parts.items() for name, value in found.items()},
            {"identity": self.identity, "numbers": numbers, "task": self.notes, "stale": self.stale,
             "scaler": None if scaler is None else scaler.state_dict(), "scores": history.scores, "steps": history.steps,
             "evaluations": history.evaluations, "done": history.done, "best": history.best, "first": history.first,
             "at": history.at, "ended": history.ended},
        )  # fmt: skip

    def _resume(self) -> bool:
        """Go on from the checkpoint; False where there is none."""
        found = None if self._path is None else checkpoint.load(self._path)
        if found is None:
            return False
        tensors, notes = found
        other = [key for key, value in self.identity.items() if notes["identity"].get(key) != value]
        if other:
            raise UsageError(
                f"the checkpoint {self._path} is of another run ({', '.join(other)} differs): remove it, or give another folder"
            )

        def part(name: str) -> dict[str, Tensor]:
            size = len(name) + 1
            device = self.accelerator.device
            return {key[size:]: value.to(device) for key, value in tensors.items() if key.startswith(f"{name}/")}

        self.module.load_state_dict(part("module"))
        self.average, self.best = part("average"), part("best")
        checkpoint.restore_optimizer(self.optimizer, part("optimizer"), notes["numbers"])
        if self.accelerator.scaler is not None and notes["scaler"]:
            self.accelerator.scaler.load_state_dict(notes["scaler"])
        self.notes, self.stale = notes["task"], notes["stale"]
        self.task.resume(self.notes)
        history = self.history
        history.scores = [(step, score) for step, score in notes["scores"]]
        history.steps, history.done, history.ended = notes["steps"], notes["done"], notes["ended"]
        history.evaluations = notes["evaluations"]
        history.best, history.first, history.at, history.resumed = notes["best"], notes["first"], notes["at"], notes["done"]
        return True

