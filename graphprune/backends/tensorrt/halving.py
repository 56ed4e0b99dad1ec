"""Models in float16 for runtimes that take the precision from the model: TensorRT-RTX, and TensorRT from version 11."""

from __future__ import annotations

import warnings

import onnx

from graphprune.errors import ModelError


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in float16, inputs and outputs excepted, by ONNX Runtime's converter.

    Raises
    ------
    ModelError
        The converter does not know what to do with it.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numbers that float16 cannot hold are narrowed, and each is told
            found: onnx.ModelProto = convert_float_to_float16(model, keep_io_types=True)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"ONNX Runtime cannot convert the model to float16: {error}; build it as fp32") from error
    return found
