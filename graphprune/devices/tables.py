"""The tables beside this file, read into typed rows; every row names where it is from."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib import resources
from typing import Any, TypeVar, get_type_hints

Version = tuple[int, ...]
Row = TypeVar("Row")


def version(text: str) -> Version:
    """``"8.2.1"`` as (8, 2, 1)."""
    return tuple(int(part) for part in text.split("."))


@dataclass(frozen=True)
class JetPack:
    """One JetPack release: what is on a device that runs it, none of which can be upgraded inside it."""

    jetpack: str
    l4t: str
    cuda: str
    cudnn: str
    tensorrt: Version
    opset: int
    python: Version
    source: str


@dataclass(frozen=True)
class Device:
    """One module.

    Attributes
    ----------
    sm
        Compute capability times ten.
    dla
        Number of deep learning accelerators; ``dla_last_jetpack`` is the last JetPack that drives them.
    bandwidth_gbs, memory_gb
        GB/s and GB; None where it depends on the machine.
    unread
        Columns that were taken over without reading the datasheet again.
    """

    name: str
    title: str
    module: str
    sm: int
    fp16: bool
    int8: bool
    fp8: bool
    dla: int
    dla_version: int | None
    bandwidth_gbs: float | None
    peak: str
    memory_gb: float
    power: str
    first_jetpack: str
    last_jetpack: str
    dla_last_jetpack: str
    unread: str
    source: str

    @property
    def shared_memory(self) -> bool:
        """CPU and GPU use one memory, as on every Jetson."""
        return bool(self.first_jetpack)


@dataclass(frozen=True)
class Operator:
    """What one range of TensorRT versions takes of one operator: ``since`` <= version < ``before``.

    ``types`` are TensorRT's names; ``rules`` are read by ``graphprune.backends.tensorrt.legality``.
    """

    op: str
    since: Version
    before: Version | None
    types: str
    rules: str
    note: str
    source: str


@dataclass(frozen=True)
class Typing:
    """Values whose element type an operator's ``types`` are about: numbers of inputs, ``out`` for the first output."""

    op: str
    values: str
    source: str


@dataclass(frozen=True)
class Lacking:
    """An operator that TensorRT-RTX lacks, though the TensorRT whose parser it shares has it."""

    op: str
    note: str
    source: str


@dataclass(frozen=True)
class Flag:
    """One option of trtexec: it is there for ``since`` <= version < ``before``, and best avoided from ``deprecated`` on."""

    flag: str
    since: Version
    deprecated: Version | None
    before: Version | None
    note: str
    source: str


@dataclass(frozen=True)
class DlaRow:
    """What the deep learning accelerator takes of one operator."""

    op: str
    rules: str
    note: str
    source: str


@dataclass(frozen=True)
class Alignment:
    """Multiples of channels that run at full speed, for ``sm_from`` <= sm < ``sm_before``."""

    sm_from: int
    sm_before: int | None
    precision: str
    dense: int
    grouped: int
    source: str


@dataclass(frozen=True)
class Workspace:
    """Builder workspace in MiB, and the share of a device's memory that a network may count on."""

    memory_gb_from: float
    memory_gb_before: float | None
    workspace_mib: int
    usable_share: float
    source: str


@dataclass(frozen=True)
class Peak:
    """What a device's GPU computes at most, without sparsity and without its DLAs.

    Attributes
    ----------
    fp32_tops, fp16_tops, int8_tops
        1e12 operations a second, two for a multiply-accumulate; None where it is refused that precision.
    unread
        Columns that were derived, or taken over without reading the datasheet again.
    """

    name: str
    fp32_tops: float
    fp16_tops: float
    int8_tops: float | None
    unread: str
    source: str


@dataclass(frozen=True)
class Reached:
    """How much of a roofline whole networks reach for ``sm_from`` <= sm < ``sm_before``, and microseconds of a kernel's launch."""

    sm_from: int
    sm_before: int | None
    share: float
    launch_us: float
    source: str


_READ: dict[Any, Callable[[str], Any]] = {
    str: str,
    int: int,
    float: float,
    bool: lambda text: {"yes": True, "no": False}[text],
    Version: version,
    int | None: lambda text: int(text) if text else None,
    float | None: lambda text: float(text) if text else None,
    Version | None: lambda text: version(text) if text else None,
}


def _rows(name: str, kind: type[Row]) -> Iterator[Row]:
    hints = get_type_hints(kind)
    with resources.files("graphprune.devices").joinpath(f"{name}.csv").open(encoding="utf-8") as file:
        reader = csv.DictReader(file)
        expected = [field.name for field in fields(kind)]  # type: ignore[arg-type]
        if reader.fieldnames != expected:
            raise ValueError(f"{name}.csv has columns {reader.fieldnames}, not {expected}")
        for line, row in enumerate(reader, 2):
            try:
                yield kind(**{key: _READ[hints[key]](text) for key, text in row.items()})
            except (KeyError, ValueError, TypeError) as error:
                raise ValueError(f"{name}.csv line {line}: {error}") from error


@lru_cache(None)
def jetpacks() -> dict[str, JetPack]:
    """Every JetPack by its number, oldest first."""
    return {row.jetpack: row for row in _rows("jetpack", JetPack)}


@lru_cache(None)
def devices() -> dict[str, Device]:
    """Every device by its name."""
    return {row.name: row for row in _rows("devices", Device)}


@lru_cache(None)
def flags() -> dict[str, Flag]:
    """Every option of trtexec that is used or known, by its name without dashes."""
    return {row.flag: row for row in _rows("trtexec", Flag)}


@lru_cache(None)
def operators() -> dict[str, tuple[Operator, ...]]:
    """Rows of each operator, oldest first."""
    found: dict[str, list[Operator]] = {}
    for row in _rows("operators", Operator):
        found.setdefault(row.op, []).append(row)
    return {op: tuple(rows) for op, rows in found.items()}


@lru_cache(None)
def typings() -> dict[str, Typing]:
    """Operators that are not typed by their first input, by name."""
    return {row.op: row for row in _rows("typing", Typing)}


@lru_cache(None)
def lacking_in_rtx() -> dict[str, Lacking]:
    """What TensorRT-RTX lacks, by operator."""
    return {row.op: row for row in _rows("rtx", Lacking)}


@lru_cache(None)
def dla_rows() -> dict[str, DlaRow]:
    """What a DLA takes, by operator."""
    return {row.op: row for row in _rows("dla", DlaRow)}


@lru_cache(None)
def alignments() -> tuple[Alignment, ...]:
    """Channel alignment by compute capability and precision."""
    return tuple(_rows("alignment", Alignment))


@lru_cache(None)
def workspaces() -> tuple[Workspace, ...]:
    """Workspace and usable share by memory."""
    return tuple(_rows("workspace", Workspace))


@lru_cache(None)
def _peaks() -> dict[str, Peak]:
    return {row.name: row for row in _rows("peaks", Peak)}


def peak_of(device: str) -> Peak | None:
    """What a device's GPU computes at most; None where that depends on the machine."""
    return _peaks().get(device)


@lru_cache(None)
def _reached() -> tuple[Reached, ...]:
    return tuple(_rows("reached", Reached))


def reached(sm: int) -> tuple[float, float]:
    """Share of a roofline that networks reach at a compute capability, and microseconds of a launch."""
    row = next(row for row in _reached() if row.sm_from <= sm and (row.sm_before is None or sm < row.sm_before))
    return row.share, row.launch_us


def _within(at: Version, since: Version, before: Version | None) -> bool:
    width = len(at)
    return at >= since[:width] and (before is None or at < before)


def operator(op: str, tensorrt: Version) -> Operator | None:
    """The row that holds for an operator in a TensorRT version, None where it does not take it."""
    return next((row for row in operators().get(op, ()) if _within(tensorrt, row.since, row.before)), None)


def typed_by(op: str) -> tuple[int, ...]:
    """Inputs whose element type counts for an operator, -1 for its first output; empty where any type does."""
    row = typings().get(op)
    return (0,) if row is None else tuple(-1 if value == "out" else int(value) for value in row.values.split())


def first_with(op: str) -> Version | None:
    """The first TensorRT version that takes an operator."""
    rows = operators().get(op)
    return rows[0].since if rows else None


def has_flag(flag: str, tensorrt: Version) -> bool:
    """Whether a TensorRT version's trtexec has an option and does not call it deprecated."""
    row = flags().get(flag)
    return (
        row is not None
        and _within(tensorrt, row.since, row.before)
        and (row.deprecated is None or tensorrt < row.deprecated or row.note == "")
    )
