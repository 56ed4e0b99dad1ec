"""One lowering each for what older or other parsers do not take; importing this package registers them."""

from graphprune.backends.tensorrt.lowerings import (
    activations,
    arithmetic,
    convolutions,
    einsum,
    functions,
    movement,
    norms,
    quantised,
    reductions,
    resize,
    sampling,
    scatter,
    types,
)

__all__ = [
    "activations",
    "arithmetic",
    "convolutions",
    "einsum",
    "functions",
    "movement",
    "norms",
    "quantised",
    "reductions",
    "resize",
    "sampling",
    "scatter",
    "types",
]
