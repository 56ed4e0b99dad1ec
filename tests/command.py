"""The command line as a test types it."""

from __future__ import annotations

from click.testing import CliRunner, Result

from graphprune.cli import cli


def call(*args: object) -> Result:
    """Run ``graphprune`` in this process."""
    return CliRunner().invoke(cli, [str(arg) for arg in args], prog_name="graphprune")


def fails(*args: object, code: int = 2) -> str:
    """What ``graphprune`` prints, on one line, when it ends with an exit code and no traceback."""
    result = call(*args)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())
