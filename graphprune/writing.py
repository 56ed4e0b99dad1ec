"""Checks that an output can be written, before the work that leads to it."""

from __future__ import annotations

from pathlib import Path

from graphprune.backends.onnx import Transaction
from graphprune.errors import OutputError
from graphprune.plan import plan_path
from graphprune.report import check_name


def check_output(source: str, output: Path, report: Path | None = None) -> None:
    """Raise :class:`OutputError` if ``output``, its plan or a report cannot be written, or is the source."""
    if output.suffix != ".onnx":
        raise OutputError(f"--output {output}: give a name that ends in .onnx")
    transaction = Transaction(protect=[source] if Path(source).exists() else [])
    transaction.check(output)
    transaction.check(plan_path(output))
    if report is not None:
        check_name(report)
        transaction.check(report)
