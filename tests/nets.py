"""A few networks that several tests use, written with onnx.parser."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper, parser


def with_weights(text: str, seed: int = 0, **weights: np.ndarray | tuple[int, ...]) -> onnx.ModelProto:
    """A model in ONNX text, with initializers: arrays, or shapes that are filled at random."""
    model = parser.parse_model(text)
    rng = np.random.default_rng(seed)
    for name, value in weights.items():
        array = rng.standard_normal(value).astype(np.float32) if isinstance(value, tuple) else np.asarray(value)
        model.graph.initializer.append(numpy_helper.from_array(array, name.replace("__", ".")))
    onnx.checker.check_model(model, full_check=True)
    return model


def two_convs(first: int = 8, second: int = 6) -> onnx.ModelProto:
    """Conv - Relu - Conv - GlobalAveragePool - Flatten - Gemm with a dynamic batch."""
    return with_weights(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 3, 8, 8] x) => (float[N, 5] y) {
            a = Conv<pads=[1, 1, 1, 1]>(x, w1, b1)
            r = Relu(a)
            c = Conv<pads=[1, 1, 1, 1]>(r, w2)
            p = GlobalAveragePool(c)
            f = Flatten(p)
            y = Gemm<transB=1>(f, w3, b3)
        }""",
        w1=(first, 3, 3, 3), b1=(first,), w2=(second, first, 3, 3), w3=(5, second), b3=(5,),
    )  # fmt: skip


def folded_residual() -> onnx.ModelProto:
    """Two convolutions that meet in an addition."""
    return with_weights(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 3, 6, 6] x) => (float[N, 4] y) {
            a = Conv<pads=[1, 1, 1, 1]>(x, w1)
            r = Relu(a)
            c = Conv<pads=[1, 1, 1, 1]>(r, w2)
            s = Add(a, c)
            p = GlobalAveragePool(s)
            f = Flatten(p)
            y = Gemm<transB=1>(f, w3)
        }""",
        w1=(10, 3, 3, 3), w2=(10, 10, 3, 3), w3=(4, 10),
    )  # fmt: skip
