"""Calibration samples as batches of tensors, in an order that follows from seed and epoch alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from graphprune.errors import UsageError
from graphprune.inputs import Samples

Batch = dict[str, Tensor]
#: Keys of a batch beside the inputs; no input of an ONNX file can have an empty name.
INDEX, LABELS = "", " labels"


class Examples(Dataset[dict[str, Any]]):
    """Samples by their number, with their labels where there are any.

    Parameters
    ----------
    labels
        int64[n, ...], or None.
    """

    def __init__(self, samples: Samples, labels: NDArray[np.int64] | None = None) -> None:
        self.samples, self.labels = samples, labels

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        found: dict[str, Any] = {**self.samples.source.sample(index), INDEX: index}
        if self.labels is not None:
            found[LABELS] = self.labels[index]
        return found

    def collate(self, items: Sequence[Mapping[str, Any]]) -> Batch:
        """Items side by side; inputs that have no axis for samples are those of the first."""
        out = {}
        for name, first in items[0].items():
            many = name in (INDEX, LABELS) or name in self.samples.batched
            array = np.stack([item[name] for item in items]) if many else np.asarray(first)
            out[name] = torch.from_numpy(np.ascontiguousarray(array))
        return out


class Order(Sampler[list[int]]):
    """Which samples make up each batch of an epoch: a permutation drawn anew for each epoch.

    Nothing of the order needs keeping: it is the same whenever it is asked for.
    """

    def __init__(self, indices: NDArray[np.int64], batch: int, seed: int) -> None:
        if len(indices) < batch:  # what is left of a small set still fills batches of a fixed size
            indices = np.resize(indices, batch)
        self.indices, self.batch_size, self.seed, self.epoch = indices, batch, seed, 0
        self.drop_last = True

    def __len__(self) -> int:
        return len(self.indices) // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self.seed, 1, self.epoch)).permutation(self.indices)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield order[start : start + self.batch_size].tolist()


class Straight(Sampler[list[int]]):
    """Batches in order; the last one is filled up with the first samples where the model takes no smaller one."""

    def __init__(self, indices: NDArray[np.int64], batch: int, static: bool) -> None:
        self.indices, self.batch, self.static = indices, batch, static

    def __len__(self) -> int:
        return (len(self.indices) + self.batch - 1) // self.batch

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, len(self.indices), self.batch):
            part = self.indices[start : start + self.batch]
            if self.static and len(part) < self.batch:
                part = np.resize(np.concatenate([part, self.indices]), self.batch)
            yield part.tolist()


class Data:
    """Samples divided into those that train and those that judge.

    Parameters
    ----------
    holdout
        Share that judges; at least one sample, at most ``most``.
    batch
        Samples of a step; the model's own number where that is fixed.
    """

    def __init__(
        self, samples: Samples, *, batch: int, holdout: float, seed: int, labels: NDArray[np.int64] | None = None,
        most: int = 256,
    ) -> None:  # fmt: skip
        if not 0 < holdout < 1 or batch < 1:
            raise UsageError(f"holdout lies in (0, 1) and batch is 1 or more, not {holdout:g} and {batch}")
        self.samples, self.examples, self.seed = samples, Examples(samples, labels), seed
        single = not samples.batched
        n = len(samples)
        self.batch = samples.batch if samples.static else 1 if single else max(1, min(batch, n))
        order = np.random.default_rng((seed, 0)).permutation(n)
        count = min(max(1, round(holdout * n)), most)
        # A single sample does both.
        self.held, self.fit = np.sort(order[:count]), np.sort(order[count:] if n > 1 else order)

    def loader(self) -> tuple[DataLoader[Any], Order]:
        """Batches to train on, and the order that they follow."""
        order = Order(self.fit, self.batch, self.seed)
        return DataLoader(self.examples, batch_sampler=order, collate_fn=self.examples.collate), order

    def straight(self, indices: NDArray[np.int64], batch: int | None = None) -> Iterator[Batch]:
        """Samples in order."""
        size = self.batch if batch is None or self.samples.static else batch
        for chosen in Straight(indices, size, self.samples.static):
            yield self.examples.collate([self.examples[i] for i in chosen])

    def feeds(self, indices: NDArray[np.int64], batch: int | None = None) -> Iterator[dict[str, NDArray[Any]]]:
        """The same as arrays for ONNX Runtime."""
        for found in self.straight(indices, batch):
            yield {name: tensor.numpy() for name, tensor in found.items() if name not in (INDEX, LABELS)}


def inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the model takes of a batch."""
    return {name: tensor for name, tensor in batch.items() if name not in (INDEX, LABELS)}


def augmented(batch: Mapping[str, Tensor], how: str, generator: torch.Generator) -> Batch:
    """A batch changed at random, its floating inputs alone.

    Parameters
    ----------
    how
        ``none``; ``noise``: Gaussian noise of 5 % of each input's spread; ``mix``: every sample is blended with another one, by
        a share drawn from 0..0.5.
    """
    if how == "none":
        return dict(batch)
    out = dict(batch)
    size = len(batch[INDEX])
    partner = torch.randperm(size, generator=generator)
    share = torch.rand(size, generator=generator) * 0.5
    for name, tensor in inputs(batch).items():
        if not tensor.is_floating_point() or len(tensor) != size:
            continue
        if how == "noise":
            noise = torch.randn(tensor.shape, generator=generator).to(tensor)
            out[name] = tensor + 0.05 * tensor.std() * noise
        else:
            part = share.to(tensor).reshape(-1, *[1] * (tensor.ndim - 1))
            out[name] = (1 - part) * tensor + part * tensor[partner.to(tensor.device)]
    return out
