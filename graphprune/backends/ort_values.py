"""Values of ONNX Runtime to and from numpy, and its errors in plain words."""

from __future__ import annotations

import ctypes
import mmap
import re
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort

from graphprune.backends.session_proto import tensor_type
from graphprune.frontends.mapped import MappedTensor, release_all

Array = npt.NDArray[Any]

_NAMES = {"float": ir.DataType.FLOAT, "double": ir.DataType.DOUBLE}


def ort_value(array: Array, dtype: ir.DataType) -> ort.OrtValue:
    """Wrap an array without a copy where its layout allows; numpy lacks some of the types."""
    if not array.flags.c_contiguous or not array.flags.aligned:
        array = np.array(array, order="C")
    if dtype.numpy().isbuiltin != 1:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, int(dtype))
    return ort.OrtValue.ortvalue_from_numpy(array)


def to_numpy(value: ort.OrtValue) -> Array:
    """Copy a tensor out, types that numpy lacks included."""
    dtype = ir.DataType(value.element_type())
    if dtype.numpy().isbuiltin == 1:
        return np.asarray(value.numpy())
    size = value.tensor_size_in_bytes()
    raw = np.frombuffer((ctypes.c_uint8 * size).from_address(value.data_ptr()), np.uint8).copy() if size else b""
    if dtype.bitwidth < 8:
        packed = np.frombuffer(raw, np.uint8)
        return np.asarray(ir.PackedTensor(packed, dtype, shape=ir.Shape(value.shape())).numpy())
    return np.frombuffer(raw, dtype.numpy()).reshape(value.shape())


def as_array(found: Any) -> Array:
    if isinstance(found, np.ndarray):
        return found
    items = found if isinstance(found, list) else [found]
    array = np.empty(len(items), object)
    array[:] = items
    return array


def parse_type(text: str) -> onnx.TypeProto:
    """Turn the runtime's name of a type, such as ``seq(tensor(float))``, into a proto."""
    kind, _, inner = text.partition("(")
    inner = inner[:-1]
    if kind == "tensor":
        return tensor_type(_NAMES.get(inner) or ir.DataType[inner.upper()], None)
    proto = onnx.TypeProto()
    target = proto.optional_type if kind == "optional" else proto.sequence_type
    target.elem_type.CopyFrom(parse_type(inner))
    return proto


_PLACE = re.compile(r"\S*\.(?:cc|h|cpp):\d+ (?:[^():]*::[^()]*\((?:[^()]|\([^()]*\))*\)(?: const)? )?")


def message(error: Exception, stage: str) -> str:
    """Turn the runtime's text into one sentence: without its source lines, with the node's name."""
    text = " ".join(str(error).split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    opset = re.search(r"Opset (\d+) is under development.*for domain (\S+) is till opset (\d+)", text)
    if opset:
        return (
            f"the model uses opset {opset[1]} of domain {opset[2]}, ONNX Runtime {ort.__version__} supports up to "
            f"opset {opset[3]}: export with a lower opset or install a newer onnxruntime"
        )
    lacking = re.search(r"Could not find an implementation for (\w+)\((\d+)\) node with name '([^']*)'", text)
    if lacking:
        return (
            f"ONNX Runtime has no implementation of {lacking[1]} (opset {lacking[2]}) for the types of node "
            f"'{lacking[3]}'"
        )
    foreign = re.search(r"Fatal error: (\S+)\(-?\d+\) is not a registered function/op", text)
    if foreign:
        return f"ONNX Runtime does not know the operator {foreign[1]}: it needs a custom operator library"
    failed = re.search(r"running (\w+) node\. Name:'([^']*)' Status Message: (.*)", text)
    if failed:
        return f"ONNX Runtime failed in {failed[1]} '{failed[2]}': {_PLACE.sub('', failed[3]).strip()}"
    return f"ONNX Runtime cannot {stage} the model: {_PLACE.sub('', text).strip()}"


def drop_pages(tensor: ir.TensorProtocol | None) -> None:
    """Let the system forget the pages of a mapped tensor; they are read from the file when next used."""
    if isinstance(tensor, MappedTensor):
        tensor.release()
        return
    if isinstance(tensor, ir.LazyTensor):
        release_all()  # what it was computed from is not to be seen
        return
    if not isinstance(tensor, ir.ExternalTensor) or tensor.raw is None or not hasattr(mmap, "MADV_DONTNEED"):
        return
    start = -(-(tensor.offset or 0) // mmap.PAGESIZE) * mmap.PAGESIZE
    stop = ((tensor.offset or 0) + int(tensor.nbytes)) // mmap.PAGESIZE * mmap.PAGESIZE
    if stop > start:
        tensor.raw.madvise(mmap.MADV_DONTNEED, start, stop - start)
