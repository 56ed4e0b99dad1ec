"""Tensors of a ModelProto: is each one what it says it is, and where do its bytes lie."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from graphprune.errors import ModelError
from graphprune.frontends.mapped import DataFile, MappedTensor
from graphprune.frontends.onnx_proto import NamedTensor, tensors
from graphprune.frontends.onnx_wire import BULK, HERE

DENSE_LIMIT = 1 << 29
"""Bytes a sparse tensor may take once written out dense."""

_LARGEST = 1 << 62
_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "raw_data", "double_data", "uint64_data")
_COMPLEX = {onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128}


def element_count(dims: list[int], label: str) -> int:
    """Product of ``dims``, which must be sizes that can exist."""
    if any(dim < 0 for dim in dims):
        raise ModelError(f"{label} has the shape {dims}: a size cannot be negative")
    count = math.prod(dims)
    if count > _LARGEST:
        raise ModelError(f"{label} has the shape {dims}: no tensor can have so many elements")
    return count


def data_type(value: int, label: str) -> ir.DataType:
    """The data type with this number."""
    try:
        dtype = ir.DataType(value)
    except ValueError:
        dtype = ir.DataType.UNDEFINED
    if dtype == ir.DataType.UNDEFINED:
        raise ModelError(f"{label} has the data type number {value}, which ONNX does not define")
    return dtype


def byte_count(dtype: ir.DataType, elements: int) -> int:
    """Bytes that ``elements`` take in raw_data; sub-byte types are packed."""
    return (elements * dtype.bitwidth + 7) // 8


class Store:
    """Where tensor bytes lie: the model's own buffer, and the external data files beside it.

    Parameters
    ----------
    path : Path or None
        The model file; None for a model in memory, which can have no external data.
    buffer : memoryview
        uint8[n], the serialized model.
    tensors : sequence of ir.TensorProtocol, optional
        For a model taken apart: its tensors, which places in the buffer then number.
    """

    def __init__(
        self,
        path: Path | None,
        buffer: memoryview,
        tensors: Sequence[ir.TensorProtocol] | None = None,
    ) -> None:
        self.path = path
        self.buffer = buffer
        self.tensors = tensors
        self.main = DataFile(path) if path is not None else None
        self.files: dict[str, DataFile] = {}

    def check(self, model: onnx.ModelProto) -> None:
        """Check every tensor of the skeleton; raise ModelError at the first that is not sound."""
        for named in tensors(model):
            _check_tensor(named, self)

    def external_file(self, location: str, label: str) -> DataFile:
        """The file that ``location`` names, inside the model's folder."""
        if location in self.files:
            return self.files[location]
        if self.path is None:
            raise ModelError(
                f"{label} lies in the external file '{location}', but the model was given in memory: "
                "give the path of the .onnx file instead"
            )
        if not location or "\x00" in location:
            raise ModelError(f"{label} is external but names no file")
        relative = Path(location)
        if relative.is_absolute() or ".." in relative.parts or "\\" in location:
            raise ModelError(
                f"{label} lies in '{location}', outside the model's folder: "
                "external data must be a relative path without '..'"
            )
        plain = self.path.parent / relative
        try:
            real = plain.resolve(strict=True)
            found = real.is_file()
        except (OSError, RuntimeError):
            found = False
        if not found:
            raise ModelError(
                f"{label} lies in the external file '{location}', which is not in '{self.path.parent}': "
                "put it beside the model"
            )
        # A store of links (a download cache) keeps model and data side by side where the links lead.
        homes = {self.path.parent.resolve(), self.path.resolve().parent}
        if not any(real.is_relative_to(home) for home in homes):
            raise ModelError(
                f"{label} lies in '{location}', a link that leads outside the model's folder, to '{real}': "
                "replace the link by the file"
            )
        self.files[location] = DataFile(real)
        return self.files[location]

    def place(self, tensor: onnx.TensorProto, label: str) -> tuple[DataFile | None, int, int | None]:
        """File (None: the buffer), offset, length (None: not said) of an external tensor."""
        entries = {entry.key: entry.value for entry in tensor.external_data}
        try:
            offset = int(entries.get("offset") or 0)
            length = int(entries["length"]) if entries.get("length") else None
        except ValueError:
            raise ModelError(
                f"{label} has external data with an offset or length that is not a number: {entries}"
            ) from None
        location = entries.get("location", "")
        if location == HERE and self.tensors is not None:
            return None, 0, self.tensors[offset].nbytes
        file = self.main if location == HERE else self.external_file(location, label)
        size = len(self.buffer) if file is None or location == HERE else file.size
        if offset < 0 or (length is not None and length < 0) or offset + (length or 0) > size:
            raise ModelError(
                f"{label} is said to lie at bytes {offset} to {offset + (length or 0)} of "
                f"'{location if location != HERE else 'the model file'}', which has {size} bytes: "
                "the file is truncated or does not belong to this model"
            )
        return file, offset, length

    def attach(self, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        """The tensor with its bytes: mapped where they lie in a file, else as the proto holds them."""
        if isinstance(tensor, ir.TensorProtoTensor):
            return _held(tensor)
        if not isinstance(tensor, ir.ExternalTensor):
            return tensor
        location = os.fspath(tensor.location)
        if location == HERE and self.tensors is not None:
            return self._kept(self.tensors[tensor.offset or 0])
        file = self.main if location == HERE else self.external_file(location, f"tensor '{tensor.name}'")
        dtype, offset = tensor.dtype, tensor.offset or 0
        length = byte_count(dtype, tensor.size)
        if file is not None:
            return MappedTensor(
                file,
                offset,
                length,
                dtype,
                ir.Shape(tensor.shape),
                name=tensor.name,
                doc_string=tensor.doc_string,
                metadata_props=dict(tensor.metadata_props),
            )
        raw = np.frombuffer(self.buffer[offset : offset + length], np.uint8)
        if dtype.bitwidth < 8:
            return ir.PackedTensor(raw, dtype, shape=ir.Shape(tensor.shape), name=tensor.name)
        return ir.Tensor(raw.view(dtype.numpy()).reshape(tensor.shape.numpy()), dtype, name=tensor.name)

    def _kept(self, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        """A tensor of a model that was taken apart, its file checked and mapped."""
        if not isinstance(tensor, ir.ExternalTensor) or isinstance(tensor, MappedTensor):
            return tensor
        label = f"tensor '{tensor.name}'"
        path = Path(tensor.path)
        if str(path) not in self.files:
            if not path.is_file():
                raise ModelError(f"{label} lies in the external file '{path}', which does not exist")
            self.files[str(path)] = DataFile(path)
        file = self.files[str(path)]
        offset, length = tensor.offset or 0, tensor.nbytes
        if offset < 0 or offset + length > file.size or tensor.length not in (None, length):
            raise ModelError(
                f"{label} of shape {list(tensor.shape)} needs {length} bytes at {offset} of '{path}', which "
                f"has {file.size} bytes, {tensor.length} of them said to be its own"
            )
        return MappedTensor(
            file,
            offset,
            length,
            tensor.dtype,
            ir.Shape(tensor.shape),
            name=tensor.name,
            doc_string=tensor.doc_string,
        )


def _held(tensor: ir.TensorProtoTensor) -> ir.TensorProtocol:
    proto = tensor.raw
    if proto.HasField("raw_data") or tensor.size < BULK:
        return tensor
    # Lists of numbers are slow to read; once is enough.
    if tensor.dtype.bitwidth < 8:
        packed = np.frombuffer(tensor.tobytes(), np.uint8)
        return ir.PackedTensor(packed, tensor.dtype, shape=ir.Shape(tensor.shape), name=tensor.name)
    return ir.Tensor(tensor.numpy(), tensor.dtype, name=tensor.name, doc_string=tensor.doc_string or None)


def _check_tensor(named: NamedTensor, store: Store) -> None:
    proto, label = named
    dims = list(proto.dims)
    dtype = data_type(proto.data_type, label)
    count = element_count(dims, label)
    if proto.HasField("segment"):
        raise ModelError(f"{label} is stored in segments, which no runtime reads")
    if dtype == ir.DataType.STRING:
        if proto.data_location == onnx.TensorProto.EXTERNAL or proto.HasField("raw_data"):
            raise ModelError(f"{label} holds strings, which cannot be stored as raw or external data")
        held = len(proto.string_data)
        if held != count:
            raise ModelError(f"{label} has the shape {dims} but {held} strings")
        return
    need = byte_count(dtype, count)
    if proto.data_location == onnx.TensorProto.EXTERNAL:
        file, offset, length = store.place(proto, label)
        if store.tensors is not None and file is None:
            size = need
        else:
            size = len(store.buffer) if file in (None, store.main) else file.size if file else 0
        if (length is not None and length != need) or offset + need > size:
            where = f"'{file.path.name}'" if file is not None else "the model"
            raise ModelError(
                f"{label} has {length if length is not None else size - offset} bytes in {where}, but its "
                f"shape {dims} and data type {dtype.name} need {need}"
            )
        return
    filled = [name for name in _FIELDS if len(getattr(proto, name))]
    if len(filled) > 1:
        raise ModelError(f"{label} holds its data twice, as {' and '.join(filled)}")
    if proto.HasField("raw_data"):
        if len(proto.raw_data) != need:
            raise ModelError(
                f"{label} has {len(proto.raw_data)} bytes of data, but its shape {dims} and data type "
                f"{dtype.name} need {need}"
            )
        return
    field = _field_of(proto.data_type)
    if filled and filled[0] != field:
        raise ModelError(f"{label} has data type {dtype.name} but its data in {filled[0]}")
    want = count * 2 if proto.data_type in _COMPLEX else count
    if dtype.bitwidth in (2, 4):
        want = need
    held = len(getattr(proto, field))
    if held != want:
        raise ModelError(f"{label} has the shape {dims} but {held} numbers of data, not {want}")


def _field_of(value: int) -> str:
    """Name of the TensorProto field that holds numbers of this data type when raw_data does not."""
    return str(onnx.helper.tensor_dtype_to_field(value))


def to_dense(sparse: onnx.SparseTensorProto, store: Store, name: str) -> onnx.TensorProto:
    """Write a sparse tensor out as a dense one, under ``name``."""
    label = f"sparse tensor '{name}'"
    dims = list(sparse.dims)
    count = element_count(dims, label)
    dtype = data_type(sparse.values.data_type, label)
    if dtype == ir.DataType.STRING or dtype.bitwidth < 8:
        raise ModelError(f"{label} holds {dtype.name}, which a sparse tensor cannot")
    if byte_count(dtype, count) > DENSE_LIMIT:
        raise ModelError(
            f"{label} of shape {dims} would take {byte_count(dtype, count):,} bytes as a dense tensor, over "
            f"the limit of {DENSE_LIMIT:,}: remove it from the model or make it dense in pieces"
        )
    values = store.attach(ir.serde.deserialize_tensor(sparse.values)).numpy().reshape(-1)
    if sparse.indices.data_type != onnx.TensorProto.INT64 and values.size:
        raise ModelError(f"{label} has indices that are not int64")
    index = store.attach(ir.serde.deserialize_tensor(sparse.indices)).numpy()
    dense = np.zeros(count, values.dtype)
    if values.size:
        if index.ndim == 2 and index.shape == (values.size, len(dims)):
            if (index < 0).any() or (index >= np.asarray(dims)).any():
                raise ModelError(f"{label} of shape {dims} has an index outside its shape")
            strides = np.cumprod([1, *dims[:0:-1]])[::-1].astype(np.int64)
            index = index @ strides
        elif index.shape != values.shape:
            raise ModelError(f"{label} has {values.size} values but indices of shape {list(index.shape)}")
        if (index < 0).any() or (index >= count).any():
            raise ModelError(f"{label} of shape {dims} has an index outside its shape")
        dense[index] = values
    proto = onnx.TensorProto(name=name, data_type=sparse.values.data_type, dims=dims)
    proto.raw_data = dense.astype(dense.dtype.newbyteorder("<"), copy=False).tobytes()
    return proto
