"""Write ONNX files: whole or not at all, one tensor in memory at a time, never over the source.

The structure goes through protobuf without any weights; every tensor's bytes are then streamed into their
place, so a model larger than memory can be written. Files appear under their names only when all of them are
complete and on disk; see `Transaction`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import onnx
import onnx_ir as ir

from graphprune.errors import OutputError
from graphprune.frontends.mapped import MappedTensor, release_all
from graphprune.frontends.onnx import SOURCE_FILES
from graphprune.frontends.onnx_apart import holders, take_apart
from graphprune.frontends.onnx_wire import Bulk, flesh

INLINE_LIMIT = 1_800_000_000
"""Bytes of weights above which they go to an external data file; protobuf ends at 2 GB."""

_KEEP_EXTERNAL = 100_000_000
_EXTERNAL_MIN = 1024
_RELEASE_EVERY = 64 << 20
_ALIGN_LARGE, _ALIGN_SMALL, _LARGE = 65536, 64, 1 << 20


class Transaction:
    """Files that appear together or not at all.

    Files are written under temporary names in the folders they belong to. When the block ends, all are
    renamed; when it ends in an error, or a rename fails, every name is as it was before.

    Parameters
    ----------
    protect : iterable of Path
        Files that must not be overwritten: the source model and its data.
    """

    def __init__(self, protect: Iterable[str | os.PathLike[str]] = ()) -> None:
        self._protect = [Path(path) for path in protect]
        self._staged: dict[Path, Path] = {}
        self._shown: dict[Path, Path] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._commit()
        finally:
            for temporary in self._staged.values():
                temporary.unlink(missing_ok=True)
            self._staged.clear()

    @property
    def paths(self) -> list[Path]:
        """The files staged so far, by the names they were asked for."""
        return [self._shown[final] for final in self._staged]

    def protect(self, paths: Iterable[str | os.PathLike[str]]) -> None:
        """Add files that must not be overwritten."""
        self._protect.extend(Path(path) for path in paths)

    def check(self, path: str | os.PathLike[str]) -> Path:
        """Check that ``path`` can be written, without writing; return the file it leads to.

        Raises
        ------
        OutputError
            When it is the source, a folder, in no folder, or may not be written.
        """
        shown = Path(path)
        try:
            final = shown.resolve()
            for source in self._protect:
                if final == source.resolve() or (final.exists() and source.exists() and final.samefile(source)):
                    raise OutputError(
                        f"the output '{shown}' is the source file '{source}', which is never changed: "
                        "choose another name"
                    )
            folder = final.parent
            if not folder.is_dir():
                raise OutputError(f"cannot write '{shown}': the folder '{folder}' does not exist, create it first")
            if final.exists():
                mode = final.stat().st_mode
                if stat.S_ISDIR(mode):
                    raise OutputError(f"cannot write '{shown}': it is a folder, give a file name in it")
                if not stat.S_ISREG(mode):
                    raise OutputError(f"cannot write '{shown}': it is not a regular file")
                if not os.access(final, os.W_OK):
                    raise OutputError(f"cannot write '{shown}': the file is read-only")
            if not os.access(folder, os.W_OK | os.X_OK):
                raise OutputError(f"cannot write '{shown}': no permission to write in '{folder}'")
        except (OSError, RuntimeError, ValueError) as error:
            raise _output_error(shown, error) from error
        return final

    @contextlib.contextmanager
    def open(self, path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
        """Stage a file: what is written in the block becomes ``path`` when the transaction ends."""
        final = self.check(path)
        shown = Path(path)
        if final in self._staged:
            raise OutputError(f"two outputs have the same name '{shown}'")
        temporary = final.with_name(f".{final.name[:100]}.{secrets.token_hex(6)}.tmp")
        try:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
            # Noted before it exists: an interrupt in between must not leave it behind.
            self._staged[final] = temporary
            self._shown[final] = shown
            handle = os.open(temporary, flags, 0o666)
            with os.fdopen(handle, "wb", buffering=1 << 20) as file:
                if final.exists():
                    temporary.chmod(stat.S_IMODE(final.stat().st_mode))
                yield file
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _output_error(shown, error) from error

    def write(self, path: str | os.PathLike[str], data: bytes) -> None:
        """Stage a file with this content."""
        with self.open(path) as file:
            file.write(data)

    def _commit(self) -> None:
        backups: list[tuple[Path, Path | None]] = []
        try:
            for final, temporary in self._staged.items():
                shown = self._shown[final]
                backup = None
                try:
                    if final.exists() and len(self._staged) > 1:
                        backup = final.with_name(f".{final.name[:100]}.{secrets.token_hex(6)}.old")
                        _link(final, backup)
                    backups.append((final, backup))
                    temporary.replace(final)
                except OSError as error:
                    raise _output_error(shown, error) from error
        except BaseException:
            for final, backup in reversed(backups):
                with contextlib.suppress(OSError):
                    if backup is not None:
                        backup.replace(final)
                        # Renaming one name of a file to another name of the same file does nothing.
                        backup.unlink(missing_ok=True)
                    elif not self._staged[final].exists():
                        final.unlink(missing_ok=True)
            raise
        for _, backup in backups:
            if backup is not None:
                backup.unlink(missing_ok=True)
        for folder in {final.parent for final in self._staged}:
            _sync_folder(folder)


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:
        # No hard links on this file system: move it aside instead.
        source.replace(target)


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _output_error(path: Path, error: BaseException) -> OutputError:
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"cannot write '{path}': the disk is full; nothing was written")
    if number == errno.EFBIG:
        return OutputError(f"cannot write '{path}': the file would be larger than allowed here; nothing was written")
    reason = getattr(error, "strerror", None) or str(error)
    return OutputError(f"cannot write '{path}': {reason}; nothing was written")


def save(
    model: ir.Model,
    path: str | os.PathLike[str],
    *,
    external: bool | None = None,
    source: Iterable[str | os.PathLike[str]] = (),
) -> list[Path]:
    """Write a model; see `stage` for the parameters. Return the files written, the model first."""
    with Transaction() as transaction:
        return stage(model, path, transaction, external=external, source=source)


def stage(
    model: ir.Model,
    path: str | os.PathLike[str],
    transaction: Transaction,
    *,
    external: bool | None = None,
    source: Iterable[str | os.PathLike[str]] = (),
) -> list[Path]:
    """Write a model as part of a transaction.

    Parameters
    ----------
    model : ir.Model
        Not changed. Tensors are asked for their bytes one at a time.
    path : path
        The ``.onnx`` file to write.
    transaction : Transaction
        Commits this file together with others.
    external : bool, optional
        Weights in ``<path>.data`` instead of inside the file. Default: when they take over 1.8 GB, or when
        the source kept them outside and they take over 100 MB.
    source : iterable of path
        Files not to overwrite, besides those the model was loaded from.

    Returns
    -------
    list of Path
        The files staged, the model first.

    Raises
    ------
    OutputError
        When anything cannot be written; no file is left behind.
    """
    path = Path(path)
    sources = [Path(item) for item in model.meta.get(SOURCE_FILES, ())]
    transaction.protect([*sources, *source])
    final = transaction.check(path)
    if path.is_symlink():
        # External data goes beside the file itself, not beside a link to it.
        path = final
    places: dict[int, tuple[str, int, int]] = {}
    held = list(holders(model))
    weights = sum(holder.tensor.nbytes for holder in held)
    if external is None:
        external = weights > INLINE_LIMIT or (len(sources) > 1 and weights > _KEEP_EXTERNAL)
    written = [path]
    if external:
        data_path = path.with_name(path.name + ".data")
        with transaction.open(data_path) as file:
            writer = _TensorWriter(file)
            at = 0
            for index, holder in enumerate(held):
                size = holder.tensor.nbytes
                if size < _EXTERNAL_MIN:
                    continue
                align = _ALIGN_LARGE if size >= _LARGE else _ALIGN_SMALL
                start = -(-at // align) * align
                file.write(bytes(start - at))
                writer.write(holder.tensor)
                places[index] = (data_path.name, start, size)
                at = start + size
        written.append(data_path)
    message, tensors = take_apart(model, places)
    with transaction.open(path) as file:
        writer = _TensorWriter(file)
        for piece in flesh(message):
            if isinstance(piece, Bulk):
                writer.write(tensors[piece.number])
            else:
                file.write(piece)
    return written


class _TensorWriter:
    """Writes tensors to a file, and gives the memory of mapped sources back as it goes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._since = 0

    def write(self, tensor: ir.TensorProtocol) -> None:
        size = tensor.nbytes
        if isinstance(tensor, MappedTensor):
            tensor.tofile(self._file)
            return
        data: bytes | memoryview
        if tensor.dtype.bitwidth < 8:
            data = tensor.tobytes()
        else:
            array = np.ascontiguousarray(tensor.numpy())
            if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big"):
                array = array.byteswap()
            data = array.reshape(-1).view(np.uint8).data
        if len(data) != size:
            raise OutputError(f"tensor '{tensor.name}' gives {len(data)} bytes, its shape and data type need {size}")
        self._file.write(data)
        self._since += size
        if self._since > _RELEASE_EVERY:
            release_all()
            self._since = 0


def file_bytes(model: ir.Model) -> int:
    """Bytes of the model as a file, with all weights inside."""
    message, tensors = take_apart(model)
    return sum(tensors[piece.number].nbytes if isinstance(piece, Bulk) else len(piece) for piece in flesh(message))


def to_bytes(model: ir.Model) -> bytes:
    """The model as one serialized message with all weights inside.

    Raises
    ------
    OutputError
        When it would pass protobuf's limit of 2 GB.
    """
    message, tensors = take_apart(model)
    if len(message) + sum(tensor.nbytes for tensor in tensors) > 0x7FFFFFFF:
        raise OutputError("the model is over 2 GB, too large for one message: save it with external data")
    out = bytearray()
    for piece in flesh(message):
        out += tensors[piece.number].tobytes() if isinstance(piece, Bulk) else piece
    return bytes(out)


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The model as a ModelProto with all weights inside."""
    proto = onnx.ModelProto()
    proto.ParseFromString(to_bytes(model))
    return proto
