"""Shared fixtures."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def digits() -> Path:
    """The example classifier."""
    return ROOT / "examples" / "digits" / "digits.onnx"


@pytest.fixture
def calibration() -> Path:
    """Its calibration images."""
    return ROOT / "examples" / "digits" / "digits_calibration.npz"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file with two convolutions, of 16 and 12 channels."""
    import onnx

    from tests.nets import two_convs

    path = tmp_path / "model.onnx"
    onnx.save(two_convs(16, 12), path)
    return path


# The same examples every time, however busy the machine: what CI says must not depend on luck.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")
