"""What is said of each node of a model that is to be built for a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from graphprune.errors import GraphPruneError

Status = Literal["ok", "lowered", "unsupported"]


class UnsupportedError(GraphPruneError):
    """A model that a target cannot run as it is; nothing is written."""


@dataclass(frozen=True)
class Verdict:
    """One node (or ``(model)``, or an input) and what becomes of it.

    Attributes
    ----------
    status
        ``ok``, ``lowered`` or ``unsupported``.
    reason
        How it is lowered, or why it is not taken.
    advice
        What to do where it is unsupported.
    where
        ``GPU`` or ``DLA``.
    note
        What costs speed: widths that are not aligned, why a node leaves the DLA.
    """

    node: str
    op: str
    status: Status
    reason: str = ""
    advice: str = ""
    where: str = "GPU"
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Without what is empty."""
        return {key: value for key, value in asdict(self).items() if value}


def refuse_unsupported(verdicts: Sequence[Verdict], target: object) -> None:
    """Raise where any verdict is ``unsupported``.

    Raises
    ------
    UnsupportedError
        Names the first nodes, with what to do.
    """
    bad = [v for v in verdicts if v.status == "unsupported"]
    if not bad:
        return
    lines = [f"{v.op} '{v.node}': {v.reason}" + (f"; {v.advice}" if v.advice else "") for v in bad[:5]]
    more = f" (and {len(bad) - 5} more)" if len(bad) > 5 else ""
    raise UnsupportedError(f"{len(bad)} nodes cannot run on {target}: " + ". ".join(lines) + more)
