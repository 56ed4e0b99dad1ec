"""Arrays in ``.npy`` and ``.npz`` files, known by their headers and read a sample at a time.

Files are read, not memory-mapped: a mapped file that another program cuts short ends the process.
"""

from __future__ import annotations

import functools
import math
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from graphprune.errors import DataError
from graphprune.inputs import Array

T = TypeVar("T")

_FAILURES = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    zlib.error,
    zipfile.BadZipFile,
)


@dataclass(frozen=True)
class Stored:
    """An array in a file.

    Attributes
    ----------
    path, key
        The file, and the array's name in it; None in a ``.npy``.
    shape, dtype
        As the header has them.
    start
        Byte of a ``.npy`` at which row 0 starts, None where rows do not lie one after the other (a ``.npz``,
        or an array in Fortran order), which makes every read one of the whole array.
    """

    path: Path
    key: str | None
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int | None

    def __str__(self) -> str:
        return f"{self.path}" if self.key is None else f"'{self.key}' in {self.path}"

    def whole(self) -> Array:
        """All of it, with the shape and dtype of the header."""
        stamp = readable(self.path, lambda: (self.path.stat().st_mtime_ns, self.path.stat().st_size))
        array = _read(self.path, self.key, stamp)
        if array.shape != self.shape or array.dtype != self.dtype:
            raise self._changed()
        return array

    def row(self, index: int) -> Array:
        """Sample ``index`` along the first axis."""
        if self.start is None:
            return np.asarray(self.whole()[index])
        start, count = self.start, math.prod(self.shape[1:])

        def read() -> Array:
            with self.path.open("rb") as file:
                file.seek(start + index * count * self.dtype.itemsize)
                return np.fromfile(file, dtype=self.dtype, count=count)

        values = readable(self.path, read)
        if values.size != count:
            raise self._changed()
        return values.reshape(self.shape[1:])

    def _changed(self) -> DataError:
        return DataError(f"{self} has changed while it was in use: leave the data alone during a run")


@functools.lru_cache(maxsize=4)
def _read(path: Path, key: str | None, stamp: tuple[int, int]) -> Array:
    """The whole array; the last few are kept for the rows that follow, as long as the file's ``stamp`` is the same."""

    def read() -> Array:
        if key is None:
            return np.asarray(np.load(path, allow_pickle=False))
        with np.load(path, allow_pickle=False) as archive:
            return np.asarray(archive[key])

    return readable(path, read)


def readable(path: Path, read: Callable[[], T]) -> T:
    """What ``read`` returns, its failures turned into one message that names the file."""
    try:
        return read()
    except _FAILURES as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise DataError(f"{path} cannot be read: {lines[0]}") from error


def _header(path: Path, key: str | None, file: IO[bytes], size: int) -> Stored:
    """Read the header of an array of ``size`` bytes, header included; refuses one that promises more."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    start = file.tell()
    # Object arrays have no fixed size; they are refused by type, where one is asked for.
    promised = 0 if dtype.hasobject else math.prod(shape) * dtype.itemsize
    if promised > size - start:
        raise ValueError(f"it ends early, {size - start:,} bytes of data instead of {promised:,}")
    rows_follow = key is None and not (fortran and len(shape) > 1) and len(shape) > 0
    return Stored(path, key, shape, dtype, start if rows_follow else None)


def stored_arrays(path: Path) -> dict[str | None, Stored]:
    """The arrays of a file by name (None in a ``.npy``), their data not read.

    Raises
    ------
    DataError
        A file that is not what its suffix says, or is cut short.
    """

    def read() -> dict[str | None, Stored]:
        found: dict[str | None, Stored] = {}
        if path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                return {None: _header(path, None, file, path.stat().st_size)}
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.filename.endswith(".npy"):
                    with archive.open(member) as file:
                        key = member.filename.removesuffix(".npy")
                        found[key] = _header(path, key, file, member.file_size)
        return found

    return readable(path, read)
