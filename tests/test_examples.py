"""The examples run as a user would run them, and do what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def output(name: str) -> str:
    done = subprocess.run([sys.executable, str(ROOT / "examples" / name)], capture_output=True, text=True, timeout=300, check=False,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_torch_loop() -> None:
    pytest.importorskip("torch")
    told = output("torch_loop.py")
    accuracies = re.search(r"trained (\S+), cut (\S+), trained on (\S+)", told)
    macs = re.search(r"MACs (\S+) -> (\S+), proved", told)
    assert accuracies and macs and int(macs[2].replace(",", "")) < 0.42 * int(macs[1].replace(",", ""))
    trained, cut, again = map(float, accuracies.groups())
    assert trained > 0.9 and again > max(cut, trained - 0.03)


def test_transformers_prune() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    told = output("transformers_prune.py")
    found = re.search(r"parameters (\S+) -> (\S+), proved to (\S+)", told)
    losses = [float(loss) for loss in re.findall(r"loss(?: at the end:)? ([0-9.]+)", told)]
    assert found and int(found[2].replace(",", "")) < 0.6 * int(found[1].replace(",", "")) and float(found[3]) < 1e-4
    assert losses[-1] < 0.5 * losses[0]
