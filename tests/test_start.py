"""What a start of the program imports, and what it leaves alone."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_sympy_is_deferred_and_still_works() -> None:
    out = run(
        "import sys, graphprune.pipeline, onnx_ir as ir\n"
        "print('sympy.core' in sys.modules)\n"
        "print(ir.SymbolicDim('N') + 1, 'sympy.core' in sys.modules)\n"
        "import sympy; print(sympy.Symbol('x') * 2)\n"
        "print([type(f).__name__ for f in sys.meta_path if 'graphprune' in type(f).__module__])\n"
        "print(type(ir.__spec__.loader).__name__, type(ir.__loader__).__name__)"
    )
    assert out.splitlines() == ["False", "N + 1 True", "2*x", "[]", "SourceFileLoader SourceFileLoader"]


@pytest.mark.parametrize("first", ["import sympy", "import onnx_ir"])
def test_what_was_imported_before_stays(first: str) -> None:
    assert run(f"{first}\nimport graphprune.pipeline, sympy\nprint(sympy.Integer(3) + 1)") == "4"


def test_a_missing_onnx_ir_is_reported_as_such() -> None:
    out = run(
        "import sys\nsys.path = [p for p in sys.path if 'packages' not in p]\n"
        "try:\n    import graphprune, onnx_ir\nexcept ModuleNotFoundError as error:\n    print(error)"
    )
    assert out in ("No module named 'onnx_ir'", "No module named 'graphprune'")


def test_module_form_of_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "graphprune", "--version"], capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0
    assert "graphprune" in done.stdout
