"""What every ONNX operator means in torch: one table, a family of operators a file.

Importing this package imports torch and fills `registry.LOWERINGS`.
"""

from graphprune.backends.torch_ops import (  # noqa: F401
    attention,
    contrib,
    contrib_quant,
    control,
    indexing,
    linear,
    loss,
    movement,
    norm,
    pointwise,
    quant,
    recurrent,
    reduce,
    resize,
    sequence,
    spatial,
    spectral,
)
