"""Small networks, each with one difficulty, and what pruning must make of them.

A pattern is a function that returns a model; ``PATTERNS`` maps its name to model, expectations and feeds.
"""

from tests.patterns import (
    attention,
    blocks,
    contrib,
    control,
    convnets,
    corners,
    crossings,
    detectors_yolo,
    movement,
    norms,
    opsets,
    quantised,
    recurrent,
    runtime_shapes,
    tails,
    transformers,
    weights,
)
from tests.patterns.build import REGISTRY as PATTERNS
from tests.patterns.build import Pattern

__all__ = [
    "PATTERNS",
    "Pattern",
    "attention",
    "blocks",
    "contrib",
    "control",
    "convnets",
    "corners",
    "crossings",
    "detectors_yolo",
    "movement",
    "norms",
    "opsets",
    "quantised",
    "recurrent",
    "runtime_shapes",
    "tails",
    "transformers",
    "weights",
]
