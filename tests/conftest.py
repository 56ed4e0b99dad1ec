"""Shared fixtures."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def digits() -> Path:
    """The example classifier."""
    return ROOT / "examples" / "digits" / "digits.onnx"


@pytest.fixture
def calibration() -> Path:
    """Its calibration images."""
    return ROOT / "examples" / "digits" / "digits_calibration.npz"
