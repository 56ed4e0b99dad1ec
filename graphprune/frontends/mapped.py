"""Tensors that stay in their file: one memory map per file, shared by all its tensors."""

from __future__ import annotations

import mmap
import weakref
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir

from graphprune.errors import ModelError

COPY_BLOCK = 16 << 20
"""Bytes written at a time when a tensor is copied to another file."""


_FILES: weakref.WeakSet[DataFile] = weakref.WeakSet()


class DataFile:
    """A read-only memory map of a file, opened on first use.

    Mapping once per file, not once per tensor, keeps the number of open file descriptors independent of the
    number of tensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size
        self._map: mmap.mmap | None = None
        _FILES.add(self)

    @property
    def map(self) -> mmap.mmap:
        """The bytes of the file."""
        if self._map is None:
            try:
                with self.path.open("rb") as file:
                    self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise ModelError(f"cannot read the tensor data in '{self.path}': {error}") from error
        return self._map

    def view(self, offset: int, length: int) -> memoryview:
        """The bytes ``[offset, offset + length)``, not copied."""
        return memoryview(self.map)[offset : offset + length] if length else memoryview(b"")

    def forget(self, offset: int, length: int) -> None:
        """Let the system drop these pages from memory. They are read again from the file when next used."""
        if self._map is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        start = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        stop = (offset + length) // mmap.PAGESIZE * mmap.PAGESIZE
        if stop > start:
            self._map.madvise(mmap.MADV_DONTNEED, start, stop - start)


def release_all() -> None:
    """Let the system drop every mapped page from memory; all tensors stay readable."""
    for file in _FILES:
        file.forget(0, file.size)


class MappedTensor(ir.ExternalTensor):
    """A tensor in a file: part of the model file itself, or external data.

    An ``ir.ExternalTensor`` in every respect, so that what knows those knows this; but all tensors of a file
    share its map, and ``release`` gives the memory back while arrays handed out earlier stay valid.
    """

    __slots__ = ("_file",)

    def __init__(
        self,
        file: DataFile,
        offset: int,
        length: int,
        dtype: ir.DataType,
        shape: ir.Shape,
        *,
        name: str,
        doc_string: str | None = None,
        metadata_props: dict[str, str] | None = None,
    ) -> None:
        super().__init__(
            file.path.name,
            offset,
            length,
            dtype,
            shape=shape,
            name=name,
            doc_string=doc_string,
            metadata_props=metadata_props,
            base_dir=file.path.parent,
        )
        self._file = file

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        array = self.numpy()
        if dtype is not None and array.dtype != np.dtype(dtype):
            return array.astype(dtype)
        return array.copy() if copy else array

    @property
    def data(self) -> memoryview:
        """uint8[length]: the bytes as they lie in the file."""
        assert self.offset is not None
        assert self.length is not None
        return self._file.view(self.offset, self.length)

    def numpy(self) -> np.ndarray[Any, Any]:
        """The tensor in its shape and dtype, read-only and not copied (sub-byte types: unpacked copy)."""
        shape = self.shape.numpy()
        if self.size == 0:
            return np.empty(shape, self.dtype.numpy())
        if self.dtype.bitwidth < 8:
            packed = np.frombuffer(self.data, np.uint8)
            return ir.PackedTensor(packed, self.dtype, shape=self.shape).numpy()
        return np.frombuffer(self.data, self.dtype.numpy().newbyteorder("<")).reshape(shape)

    def tobytes(self) -> bytes:
        """A copy of the bytes, little endian, as ``raw_data`` holds them."""
        return bytes(self.data)

    def tofile(self, file: BinaryIO) -> None:
        """Write the bytes to ``file`` in blocks, giving the memory of each back at once."""
        assert self.offset is not None
        assert self.length is not None
        for start in range(0, self.length, COPY_BLOCK):
            block = min(COPY_BLOCK, self.length - start)
            file.write(self._file.view(self.offset + start, block))
            self._file.forget(self.offset + start, block)

    def release(self) -> None:
        """Give the memory back; the tensor can be read again."""
        assert self.offset is not None
        assert self.length is not None
        self._file.forget(self.offset, self.length)
