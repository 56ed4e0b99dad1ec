"""Checks that an output can be written, before the work that leads to it."""

from __future__ import annotations

from pathlib import Path

from graphprune.backends.onnx import Transaction
from graphprune.backends.openvino import is_ir, need
from graphprune.errors import OutputError
from graphprune.plan import plan_path
from graphprune.report import check_name


def check_output(source: str, output: Path, report: Path | None = None, *, runtimes: bool = False) -> None:
    """Raise :class:`OutputError` if ``output``, its plan or a report cannot be written, or is the source.

    ``runtimes`` allows the formats of runtimes besides ONNX: OpenVINO's IR.
    """
    if output.suffix != ".onnx" and not (runtimes and is_ir(output)):
        raise OutputError(f"--output {output}: give a name that ends in .onnx" + (" (or .xml, for OpenVINO)" if runtimes else ""))
    transaction = Transaction(protect=[source] if Path(source).exists() else [])
    transaction.check(output)
    if is_ir(output):
        need(f"--output {output}")
        transaction.check(output.with_suffix(".bin"))
    transaction.check(plan_path(output))
    if report is not None:
        check_name(report)
        transaction.check(report)
