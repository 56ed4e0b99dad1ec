"""Gradients of a loss for criteria: ``parameter -> weight x gradient``, a sample at a time, from the network as a torch module.

Without labels the network judges itself. Its own outputs as targets would give nothing, as the gradient is zero there; and
gradients of targets drawn from its own output distribution, which make up its true Fisher information, have mean zero. So
targets are drawn (a class from the distribution of an output that holds classes, a normal number around the value of any other,
as wide as that output is spread), and criteria look at the gradient of each sample, whose size is what tells.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.errors import DataError, UsageError
from graphprune.frontends.onnx import plan_name
from graphprune.passes.base import Needs, Score, Scores, State, per_unit
from graphprune.weights import fill_missing

if TYPE_CHECKING:
    import torch

Array = NDArray[Any]


def need_torch(name: str, why: str) -> None:
    """Refuse a pass that needs torch where there is none.

    Raises
    ------
    UsageError
        torch is not installed.
    """
    for module in ("torch", "accelerate", "safetensors"):
        if importlib.util.find_spec(module) is None:
            raise UsageError(
                f"pass '{name}' {why}, and needs {module}, which is not installed: 'pip install graphprune[torch]', "
                "or take a pass that needs weights or data alone ('graphprune passes')"
            )


def require(name: str) -> None:
    """Refuse a criterion that looks at gradients where none can be had; see :func:`need_torch`."""
    need_torch(name, "looks at gradients")


@dataclass(frozen=True, eq=False)
class Member:
    """A trainable constant that loses indices, and its axes that do."""

    value: ir.Value
    axes: tuple[int, ...]

    def slices(self, product: Array, axis: int) -> Array:
        """Sum over everything but one axis, float64[n]."""
        others = tuple(a for a in range(product.ndim) if a != axis)
        return np.asarray(product.sum(axis=others, dtype=np.float64))


def products(state: State, name: str, labelled: bool) -> Iterator[list[tuple[Member, Array]]]:
    """Weight times gradient of every trainable constant that a cut could shorten, for one calibration sample after the other.

    Parameters
    ----------
    name
        Of the criterion, for the progress bar and errors.
    labelled
        Take the loss from the labels of the data; otherwise targets are drawn as the module says, by the run's seed.

    Yields
    ------
    list of (Member, float32 array of the constant's shape)
        Batch norms in evaluation mode, dropout off. A model of fixed batch size gives one list a batch. Empty where
        nothing can be trained.

    Raises
    ------
    DataError
        There are no labels, or they do not fit an output.
    """
    import torch

    from graphprune.backends.torch import to_module
    from graphprune.labels import class_counts, labels_of

    coupling = state.need_coupling()
    samples = state.samples
    labels = labels_of(samples, class_counts(state.model)) if labelled else None
    if labelled and labels is None:
        raise DataError(
            f"pass '{name}' is asked for labels, and the data have none: give a folder with one subfolder a class, or a .npz "
            "with an array 'labels' beside the inputs"
        )
    module = to_module(state.model)
    parameters = dict(module.named_parameters())
    paths: dict[str, str] = module.meta["names"]
    members: list[tuple[Member, torch.nn.Parameter]] = []
    for value in coupling.constants:
        axes = tuple(a for a in range(len(coupling.coupler.axes.get(value) or ())) if coupling.has_units(value, a))
        parameter = parameters.get(paths.get(plan_name(value), ""))
        if axes and parameter is not None:
            members.append((Member(value, axes), parameter))
    if not members:
        return
    own = {id(parameter) for _, parameter in members}
    for parameter in parameters.values():
        parameter.requires_grad_(id(parameter) in own)
    target = _Target(state.options.seed)
    for number, feed in enumerate(samples):
        state.progress(name, number / samples.feeds)
        found = module(*(torch.from_numpy(np.ascontiguousarray(feed[key])) for key in module.meta["inputs"]))
        outputs = found if isinstance(found, tuple) else (found,)
        if labels is None:
            loss = target.drawn(outputs, number)
        else:
            chosen = [i % len(labels) for i in range(number * samples.batch, number * samples.batch + _rows(outputs))]
            loss = target.given(outputs, labels[chosen], name)
        module.zero_grad()
        if loss.requires_grad:
            loss.backward()
        yield [(member, _product(parameter)) for member, parameter in members]


def _rows(outputs: tuple[torch.Tensor, ...]) -> int:
    return next((len(y) for y in outputs if y.ndim), 1)


def _product(parameter: torch.nn.Parameter) -> Array:
    if parameter.grad is None:
        return np.zeros(tuple(parameter.shape), np.float32)
    return np.asarray((parameter.detach() * parameter.grad).float().numpy())


class _Target:
    """Losses of a model's outputs."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def drawn(self, outputs: tuple[torch.Tensor, ...], number: int) -> torch.Tensor:
        """Negative log-likelihood of targets drawn from the outputs themselves.

        Each output's is divided by the root of its number of rows (of elements, where it holds no classes), so that the
        expected square of the gradient is the mean over these, and an output of many elements drowns no other.
        """
        import torch

        from graphprune.training.losses import kind_of, log_distribution

        generator = torch.Generator().manual_seed(hash((self.seed, 3, number)) % (1 << 62))
        total = torch.zeros(())
        for y in outputs:
            if not y.is_floating_point() or not y.numel():
                continue
            kind = kind_of(y.detach())
            if kind == "values":
                spread = y.detach().float().std(correction=0).clamp_min(1e-12)
                noise = torch.randn(y.shape, generator=generator)
                # The gradient of |y - target|^2 / (2 spread^2) at target = y + spread * noise.
                total = total - (noise * y.float() / spread).sum() / y.numel() ** 0.5
            else:
                logs = log_distribution(y, kind).flatten(0, -2)
                drawn = torch.multinomial(logs.detach().exp(), 1, generator=generator)
                total = total - logs.gather(1, drawn).sum() / len(logs) ** 0.5
        return total

    def given(self, outputs: tuple[torch.Tensor, ...], labels: NDArray[np.int64], name: str) -> torch.Tensor:
        """Cross-entropy of the first output whose last axis counts classes and whose other axes are those of the labels."""
        import torch

        from graphprune.training.losses import classified

        targets = torch.from_numpy(np.ascontiguousarray(labels))
        for y in outputs:
            loss = classified(y, targets)
            if loss is not None:
                return loss
        shapes = ", ".join(str(list(y.shape)) for y in outputs)
        raise DataError(
            f"pass '{name}': labels of shape {list(labels.shape)}, up to {int(labels.max(initial=0))}, fit no output "
            f"(shapes {shapes}): one must be [samples, classes] with more classes than the largest label"
        )


def summed(state: State, member: Member, axis: int, numbers: Array) -> tuple[Scores, NDArray[np.bool_]]:
    """Numbers of the indices of a member's axis as sums of units: see :func:`graphprune.passes.base.per_unit`."""
    coupling = state.need_coupling()
    return per_unit(coupling.rows(member.value, axis), numbers, coupling.n_units)


@dataclass(frozen=True)
class GradientScore(Score):
    """Base of the criteria that look at gradients.

    Parameters
    ----------
    labels
        Take the loss from labels: subfolders of --data, or its array ``labels``.
    """

    unit: ClassVar[str] = "loss"
    needs: ClassVar[Needs] = "gradients"
    labels: bool = False

    def mean(self, state: State, each: Callable[[Array], Array], whole: Callable[[Scores], Scores]) -> Scores:
        """Mean over samples, for units, of what is made of all trainable numbers that die with them; float64[n_units].

        Parameters
        ----------
        each
            What is summed up over a unit, of weight times gradient.
        whole
            What is made of the sums of one sample, float64[n_units].
        """
        n = state.need_coupling().n_units
        total, known, count = np.zeros(n), np.zeros(n, np.bool_), 0
        for found in products(state, self.name, self.labels):
            sample = np.zeros(n)
            for member, product in found:
                numbers = each(product)
                for axis in member.axes:
                    sums, touched = summed(state, member, axis, member.slices(numbers, axis))
                    sample += sums
                    known |= touched
            total += whole(sample)
            count += 1
        return self.filled(state, total / max(count, 1), ~known)

    def filled(self, state: State, scores: Scores, missing: NDArray[np.bool_]) -> Scores:
        """The scores, with those of ``l1`` for units none of whose constants can be trained."""
        return fill_missing(state, self.name, scores, missing, "have no weights that can be trained")
