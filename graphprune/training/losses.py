"""How far a student's outputs are from a teacher's: what distillation makes smaller, and what judges it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from graphprune.detection.nearness import distance
from graphprune.detection.reading import Reader

Kind = Literal["logits", "probabilities", "values", "detections"]

#: What is exactly 0 in float32 is not impossible, only small.
LEAST = 1e-12


@dataclass(frozen=True)
class Output:
    """One output that is compared.

    Attributes
    ----------
    place
        Its number among the outputs of teacher and student.
    kind
        ``logits`` and ``probabilities`` hold classes on their last axis and are compared as distributions; ``values`` are not.
        ``detections`` hold boxes and probabilities cell by cell.
    how
        For ``detections``: where.
    """

    name: str
    place: int
    kind: Kind
    how: Reader | None = None


def apart(one: Output, student: Sequence[Tensor], teacher: Sequence[Tensor], names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Error and weight of detections (:func:`graphprune.detection.nearness.distance`); ``names``: of the tensors."""
    assert one.how is not None
    places = [names.index(name) for name in one.how.names[:2]]
    s, t = ({names[place]: found[place].float() for place in places} for found in (student, teacher))
    error, weight = distance(one.how, t, s, torch)
    return error, weight


def kind_of(y: Tensor) -> Kind:
    """What an output holds, by its shape and contents; as :func:`graphprune.fidelity.classes` sees it."""
    if y.ndim >= 2 and y.shape[-1] >= 2:
        one = torch.ones((), dtype=torch.float32, device=y.device)
        if y.numel() and bool(y.min() >= 0) and torch.allclose(y.float().sum(-1), one, atol=1e-3):
            return "probabilities"
        if y.ndim == 2:
            return "logits"
    return "values"


def log_distribution(y: Tensor, kind: Kind, temperature: float = 1.0) -> Tensor:
    """Logarithms of the (softened) distributions of an output, float32 of its shape."""
    y = y.float()
    if kind == "probabilities":
        y = y.clamp_min(LEAST).log()
    return F.log_softmax(y / temperature, dim=-1)


def divergence(student: Tensor, teacher: Tensor, kind: Kind, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of the softened distributions, nats, mean over rows."""
    p, q = log_distribution(teacher, kind, temperature), log_distribution(student, kind, temperature)
    return temperature**2 * (p.exp() * (p - q)).sum(-1).mean()


def relative_error(student: Tensor, teacher: Tensor, variance: float) -> Tensor:
    """Mean squared difference as a share of the teacher's variance."""
    return F.mse_loss(student.float(), teacher.float()) / max(variance, LEAST)


def judged(outputs: Sequence[Output], student: Sequence[Tensor], teacher: Sequence[Tensor], names: Sequence[str]) -> Tensor:
    """Sums that :func:`score` makes one number of, float64[outputs, 4]: error, rows, and the teacher's first and second moment.

    They add up over batches and processes.
    """
    rows = []
    for one in outputs:
        s, t = student[one.place], teacher[one.place]
        zero = torch.zeros(())
        if one.kind == "detections":
            parts = (*apart(one, student, teacher, names), zero, zero)
        elif one.kind == "values":
            s, t = s.double(), t.double()
            parts = (s - t).square().sum(), torch.tensor(float(t.numel())), t.sum(), t.square().sum()
        else:
            p, q = log_distribution(t, one.kind).double(), log_distribution(s, one.kind).double()
            parts = (p.exp() * (p - q)).sum(), torch.tensor(float(t[..., 0].numel())), zero, zero
        rows.append(torch.stack([part.double().cpu() for part in parts]))
    return torch.stack(rows)


def score(outputs: Sequence[Output], sums: Tensor) -> float:
    """The divergence that :func:`graphprune.fidelity.compare_outputs` gives for these outputs; lower is nearer to the teacher."""
    found = []
    for one, (error, rows, first, second) in zip(outputs, sums.tolist(), strict=True):
        spread = second - first * first / max(rows, 1) if one.kind == "values" else rows
        found.append(error / max(spread, 1e-30))
    return sum(found) / max(len(found), 1)


def classified(y: Tensor, labels: Tensor) -> Tensor | None:
    """Cross-entropy with labels int64[...] of an output [..., classes], mean over them; None where they do not fit it."""
    if not y.is_floating_point() or y.ndim < 2 or y.shape[:-1] != labels.shape or y.shape[-1] < 2:
        return None
    if not labels.numel() or int(labels.min()) < 0 or int(labels.max()) >= y.shape[-1]:
        return None
    kind = kind_of(y.detach())
    return F.nll_loss(log_distribution(y, kind).flatten(0, -2), labels.flatten())
