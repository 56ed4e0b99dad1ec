"""A file's skeleton: the protobuf message without its bulk data.

Weights are 99 % of a model file. Parsing them through protobuf puts the file in memory twice over, so they
are left where they are: the bytes of the file are walked, every large ``raw_data`` is replaced by a reference
to its place in the file (in the form ONNX itself uses for external data, with `HERE` as the location), and
only what is left is parsed. What does not look like clean protobuf is handed on as it is, for the parser to
judge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

HERE = "\x00here"
"""Location of a tensor whose bytes lie in the model file itself; no file can have this name."""

BULK = 4096
"""Data of fewer bytes than this stays in the skeleton."""

_MAX_DEPTH = 200
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# Which fields of which message lead to tensors: message -> {field number: message}.
_PATHS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
}
# Fields of TensorProto whose bytes are the tensor's bytes: raw_data, and packed float_data or double_data.
_DTYPE, _RAW, _LOCATION, _EXTERNAL = 2, 9, 14, 13
_PACKED = {4: 1, 10: 11}  # field number -> the data type it is plain for
_DATA = {4, 5, 6, 7, 9, 10, 11}


class _Irregular(Exception):
    """Not clean protobuf."""


class _Field(NamedTuple):
    number: int
    wire: int
    start: int
    """Offset of the tag."""
    lo: int
    """Offset of the payload."""
    hi: int
    """Offset behind the payload."""


def skeleton(data: memoryview) -> bytes:
    """Return the bytes of the same ModelProto, large tensor data replaced by references into ``data``.

    Parameters
    ----------
    data : memoryview
        A serialized ModelProto, uint8[n].

    Returns
    -------
    bytes
        A serialized ModelProto. Replaced tensors have ``data_location`` EXTERNAL and location `HERE`.
    """
    try:
        chunks: list[memoryview | bytes] = []
        _replaced(data, 0, len(data), "model", lambda field: field.hi - field.lo >= BULK, _rewrite_tensor, chunks)
        return b"".join(chunks)
    except _Irregular:
        return bytes(data)


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """Value and the offset behind it."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise _Irregular


def _encode(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _next(data: memoryview, start: int, end: int) -> _Field:
    tag, at = _varint(data, start, end)
    wire = tag & 7
    if wire == _BYTES:
        size, at = _varint(data, at, end)
        hi = at + size
    elif wire == _VARINT:
        hi = _varint(data, at, end)[1]
    elif wire == _FIXED64:
        hi = at + 8
    elif wire == _FIXED32:
        hi = at + 4
    else:
        raise _Irregular
    if hi > end:
        raise _Irregular
    return _Field(tag >> 3, wire, start, at, hi)


def _replaced(
    data: memoryview, lo: int, hi: int, kind: str, wanted: Callable[[_Field], bool],
    tensor: Callable[[memoryview, int, int, list[Any]], int], out: list[Any], depth: int = 0,
) -> int:  # fmt: skip
    """Append the message ``data[lo:hi]`` to ``out``, its tensors as ``tensor`` writes them; return its new length.

    Parameters
    ----------
    kind
        Of the message, a key of `_PATHS`, or ``tensor``.
    wanted
        Whether a field that may hold tensors is looked into; the others are copied whole.
    """
    if depth > _MAX_DEPTH:
        raise _Irregular
    if kind == "tensor":
        return tensor(data, lo, hi, out)
    paths = _PATHS[kind]
    total = 0
    copied = at = lo
    while at < hi:
        field = _next(data, at, hi)
        at = field.hi
        if field.wire != _BYTES or field.number not in paths or not wanted(field):
            continue
        if copied < field.start:
            out.append(data[copied : field.start])
            total += field.start - copied
        inner: list[Any] = []
        size = _replaced(data, field.lo, field.hi, paths[field.number], wanted, tensor, inner, depth + 1)
        head = _encode(field.number << 3 | _BYTES) + _encode(size)
        out.append(head)
        out.extend(inner)
        total += len(head) + size
        copied = field.hi
    if copied < hi:
        out.append(data[copied:hi])
        total += hi - copied
    return total


def _rewrite_tensor(data: memoryview, lo: int, hi: int, out: list[memoryview | bytes]) -> int:
    bulk: list[_Field] = []
    keep: list[_Field] = []
    dtype = 0
    plain = True
    at = lo
    while at < hi:
        field = _next(data, at, hi)
        at = field.hi
        if field.number in _DATA:
            bulk.append(field)
        else:
            keep.append(field)
            if field.number == _DTYPE and field.wire == _VARINT:
                dtype = _varint(data, field.lo, field.hi)[0]
            elif field.number in (_LOCATION, _EXTERNAL):
                plain = False
    # One block of data in the form that is the tensor's own bytes, or none of our business.
    plain = plain and len(bulk) == 1 and bulk[0].wire == _BYTES and bulk[0].hi - bulk[0].lo >= BULK
    if not plain or (bulk[0].number != _RAW and _PACKED.get(bulk[0].number) != dtype):
        out.append(data[lo:hi])
        return hi - lo
    before = len(out)
    out.extend(data[field.start : field.hi] for field in keep)
    block = bulk[0]
    for key, value in (("location", HERE), ("offset", str(block.lo)), ("length", str(block.hi - block.lo))):
        entry = b"".join(
            _encode(number << 3 | _BYTES) + _encode(len(text)) + text
            for number, text in ((1, key.encode()), (2, value.encode()))
        )
        out.append(_encode(_EXTERNAL << 3 | _BYTES) + _encode(len(entry)) + entry)
    out.append(_encode(_LOCATION << 3 | _VARINT) + b"\x01")
    return sum(len(chunk) for chunk in out[before:])


class Bulk(NamedTuple):
    """A place in a fleshed-out message where the bytes of placeholder ``number`` belong."""

    number: int
    length: int


Piece = memoryview | bytes | Bulk


def flesh(message: bytes) -> list[Piece]:
    """The inverse of `skeleton`: the pieces of the same ModelProto with raw data in the place of references.

    Parameters
    ----------
    message : bytes
        A serialized ModelProto in which tensors are placeholders: external, at `HERE`, numbered by offset.

    Returns
    -------
    list
        Bytes as they are, and a `Bulk` where a tensor's bytes are to be put.
    """
    pieces: list[Piece] = []
    data = memoryview(message)
    _replaced(data, 0, len(data), "model", lambda field: message.find(_HERE, field.lo, field.hi) >= 0, _flesh_tensor, pieces)
    return pieces


_HERE = HERE.encode()


def _flesh_tensor(data: memoryview, lo: int, hi: int, out: list[Piece]) -> int:
    entries: dict[bytes, bytes] = {}
    before = len(out)
    total = 0
    at = lo
    while at < hi:
        field = _next(data, at, hi)
        at = field.hi
        if field.number == _EXTERNAL:
            parts: dict[int, bytes] = {}
            inner = field.lo
            while inner < field.hi:
                part = _next(data, inner, field.hi)
                inner = part.hi
                parts[part.number] = bytes(data[part.lo : part.hi])
            entries[parts.get(1, b"")] = parts.get(2, b"")
        elif field.number != _LOCATION:
            out.append(data[field.start : field.hi])
            total += field.hi - field.start
    if entries.get(b"location") != _HERE:
        # The marker is only somewhere in its bytes.
        del out[before:]
        out.append(data[lo:hi])
        return hi - lo
    length = int(entries[b"length"])
    head = _encode(_RAW << 3 | _BYTES) + _encode(length)
    out.append(head)
    out.append(Bulk(int(entries[b"offset"]), length))
    return total + len(head) + length
