"""Small torch modules, each with one difficulty, and what pruning must make of them.

Needs torch: import it behind ``pytest.importorskip("torch")``.
"""

from tests.torch_patterns import (
    attention,
    convnets,
    generators,
    graphs,
    interfaces,
    movement,
    norms,
    reductions,
    sequences,
    shared,
    vision,
    weights,
)
from tests.torch_patterns.base import PATTERNS, TorchPattern

__all__ = [
    "PATTERNS",
    "TorchPattern",
    "attention",
    "convnets",
    "generators",
    "graphs",
    "interfaces",
    "movement",
    "norms",
    "reductions",
    "sequences",
    "shared",
    "vision",
    "weights",
]
