"""The task of a fine-tuning: cross-entropy with labels, beside a teacher's outputs where there is one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphprune.errors import DataError
from graphprune.training.batches import LABELS, Batch
from graphprune.training.losses import classified, divergence, kind_of, log_distribution
from graphprune.training.teaching import Teacher

#: What the cross-entropy counts at most where the shares of right answers are equal.
TIE = 1e-6


class Classifying:
    """Labels of the first output that they fit.

    Parameters
    ----------
    labels
        int64[n, ...].
    weight
        Of T^2 KL to the teacher, 0..1.
    """

    name = "finetune"

    def __init__(
        self, outputs: Sequence[str], labels: NDArray[np.int64], teacher: Teacher | None, temperature: float, weight: float
    ) -> None:
        self.names, self.labels, self.teacher, self.temperature, self.weight = outputs, labels, teacher, temperature, weight
        self.place = 0

    def start(self, forward: Callable[[Batch], tuple[Tensor, ...]], batches: list[Batch]) -> dict[str, Any]:
        found = forward(batches[0])
        rows = self.labels.shape[1:]
        fitting = [
            place
            for place, y in enumerate(found)
            if y.is_floating_point() and y.ndim >= 2 and y.shape[1:-1] == rows and y.shape[-1] > max(1, int(self.labels.max()))
        ]
        if not fitting or int(self.labels.min()) < 0:
            shapes = ", ".join(f"'{name}' {list(y.shape)}" for name, y in zip(self.names, found, strict=True))
            raise DataError(
                f"labels of shape {list(self.labels.shape)} in {int(self.labels.min())}..{int(self.labels.max())} fit no output "
                f"({shapes}): one must be [samples, classes] with more classes than the largest label"
            )
        self.place = fitting[0]
        return {"place": self.place}

    def resume(self, notes: Mapping[str, Any]) -> None:
        self.place = int(notes["place"])

    def _cross_entropy(self, found: tuple[Tensor, ...], batch: Batch) -> Tensor:
        loss = classified(found[self.place], batch[LABELS])
        assert loss is not None
        return loss

    def loss(self, found: tuple[Tensor, ...], batch: Batch) -> Tensor:
        total = self._cross_entropy(found, batch)
        if self.teacher is None or not self.weight:
            return total
        taught = self.teacher(batch)[self.place]
        return (1 - self.weight) * total + self.weight * divergence(
            found[self.place], taught, kind_of(taught), self.temperature
        )

    def judge(self, found: tuple[Tensor, ...], batch: Batch) -> Tensor:
        """Wrong answers, answers, and the sum of their cross-entropies, float64[3]."""
        y, labels = found[self.place], batch[LABELS]
        logs = log_distribution(y, kind_of(y))
        wrong = (logs.argmax(-1) != labels).sum().double()
        nats = -logs.gather(-1, labels[..., None]).sum().double()
        return torch.stack([wrong.cpu(), torch.tensor(float(labels.numel())).double(), nats.cpu()])

    def score(self, sums: Tensor) -> float:
        """Share of wrong answers; equal shares are told apart by the cross-entropy."""
        wrong, rows, nats = sums.tolist()
        nats /= max(rows, 1)
        return wrong / max(rows, 1) + TIE * nats / (1 + nats)

    @staticmethod
    def accuracy(score: float) -> float:
        """Share of right answers in a score, to five digits."""
        return round(1 - score, 5)
