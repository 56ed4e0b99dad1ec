"""Element types: ONNX's, numpy's and torch's, and tensors from one to the other."""

from __future__ import annotations

import warnings
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from graphprune.errors import ModelError

Array = npt.NDArray[Any]

TORCH: dict[ir.DataType, torch.dtype] = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.UINT32: torch.uint32,
    ir.DataType.UINT64: torch.uint64,
    ir.DataType.BOOL: torch.bool,
    ir.DataType.COMPLEX64: torch.complex64,
    ir.DataType.COMPLEX128: torch.complex128,
    ir.DataType.FLOAT8E4M3FN: torch.float8_e4m3fn,
    ir.DataType.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    ir.DataType.FLOAT8E5M2: torch.float8_e5m2,
    ir.DataType.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
}
#: Types torch has no storage for -> a wider one that holds the same values.
_WIDER: dict[ir.DataType, tuple[torch.dtype, Any]] = {
    ir.DataType.INT4: (torch.int8, np.int8),
    ir.DataType.UINT4: (torch.uint8, np.uint8),
    ir.DataType.INT2: (torch.int8, np.int8),
    ir.DataType.UINT2: (torch.uint8, np.uint8),
}
_BITS: dict[Any, tuple[Any, torch.dtype]] = {
    np.dtype(ml_dtypes.bfloat16): (np.int16, torch.bfloat16),
    np.dtype(ml_dtypes.float8_e4m3fn): (np.uint8, torch.float8_e4m3fn),
    np.dtype(ml_dtypes.float8_e4m3fnuz): (np.uint8, torch.float8_e4m3fnuz),
    np.dtype(ml_dtypes.float8_e5m2): (np.uint8, torch.float8_e5m2),
    np.dtype(ml_dtypes.float8_e5m2fnuz): (np.uint8, torch.float8_e5m2fnuz),
}
#: numpy's types of a few bits -> those torch has.
_PACKED: dict[Any, Any] = {
    np.dtype(getattr(ml_dtypes, name)): np.int8 if name.startswith("i") else np.uint8
    for name in ("int4", "uint4", "int2", "uint2")
    if hasattr(ml_dtypes, name)
}
FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
"""Types a trainable weight may have."""


def torch_dtype(dtype: ir.DataType, where: str) -> torch.dtype:
    """Return torch's type for ONNX's.

    Raises
    ------
    ModelError
        For types torch cannot compute with (strings, 4-bit floats).
    """
    if dtype in TORCH:
        return TORCH[dtype]
    raise ModelError(f"{where}: torch has no element type for ONNX's {dtype.name}; cast the value in the model first")


def from_numpy(array: Array, *, copy: bool) -> torch.Tensor:
    """Return a tensor of the array's shape and values, sharing its memory unless ``copy``."""
    if array.dtype in _BITS:
        bits, dtype = _BITS[array.dtype]
        return from_numpy(array.view(bits), copy=copy).view(dtype)
    if array.dtype in _PACKED:
        array = array.astype(_PACKED[array.dtype])
    if copy or not array.dtype.isnative or any(stride < 0 for stride in array.strides):
        array = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    with warnings.catch_warnings():
        # Weights mapped from a file are read-only: sharing them is asked for by the caller.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.asarray(array))


def to_numpy(tensor: torch.Tensor) -> Array:
    """Return the tensor's values on the host, in numpy's (or ml_dtypes') type of the same width."""
    tensor = tensor.detach().cpu().contiguous()
    for numpy_dtype, (bits, dtype) in _BITS.items():
        if tensor.dtype == dtype:
            storage = torch.int16 if bits is np.int16 else torch.uint8
            return np.asarray(tensor.view(storage).numpy().view(bits).view(numpy_dtype))
    return np.asarray(tensor.numpy())


def readable(value: ir.Value) -> Array:
    """Return an initializer's contents as an array.

    Raises
    ------
    ModelError
        When it has none, or strings.
    """
    const = value.const_value
    if const is None:
        raise ModelError(f"the initializer '{value.name}' has no contents: load the model with its external data")
    if const.dtype not in TORCH and const.dtype not in _WIDER:
        torch_dtype(const.dtype, f"the initializer '{value.name}'")
    return const.numpy()


def is_writable(value: ir.Value) -> bool:
    """Whether an initializer's memory may be written."""
    return bool(readable(value).flags.writeable)


def tensor_of(value: ir.Value, *, copy: bool) -> torch.Tensor:
    """Return an initializer's contents as a tensor.

    Raises
    ------
    ModelError
        When it has no contents, or a type that torch has no room for.
    """
    array, const = readable(value), value.const_value
    if const is not None and const.dtype in _WIDER:
        array = array.astype(_WIDER[const.dtype][1])
    return from_numpy(array, copy=copy)
