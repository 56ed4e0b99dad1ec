"""A target: a device, the TensorRT its JetPack brings, a precision; and what is refused, with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from graphprune.devices.tables import (
    Device,
    JetPack,
    Version,
    Workspace,
    alignments,
    devices,
    jetpacks,
    version,
    workspaces,
)
from graphprune.errors import UsageError
from graphprune.spec import nearest

Precision = Literal["fp32", "fp16", "int8", "best"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8", "best")
#: TensorRT where there is no JetPack, and the ONNX opset its parser takes.
X86_TENSORRT, RTX_TENSORRT = "10.13.3", "10.16.2"
OPSETS: tuple[tuple[Version, int], ...] = (((8, 0), 13), ((8, 4), 17), ((10, 0), 20), ((10, 13), 24))


@dataclass(frozen=True)
class Target:
    """What a network is lowered for.

    Attributes
    ----------
    device : Device
    jetpack : JetPack or None
        None for a PC.
    tensorrt : tuple of int
        Version; for TensorRT-RTX that of the TensorRT whose parser it shares.
    opset : int
        Highest ONNX opset that the parser takes.
    precision : str
    dla : int or None
        Number of the accelerator to run on, None for the GPU.
    memory_gb : float
        The device's memory, or what was given.
    """

    device: Device
    jetpack: JetPack | None
    tensorrt: Version
    opset: int
    precision: Precision
    dla: int | None
    memory_gb: float

    @property
    def rtx(self) -> bool:
        """TensorRT for RTX: strongly typed, built on the user's PC."""
        return self.device.name == "rtx"

    @property
    def strongly_typed(self) -> bool:
        """The runtime takes the precision from the model and has no options for it."""
        return self.rtx or self.tensorrt >= (11,)

    @property
    def workspace_mib(self) -> int:
        """Builder workspace."""
        return _workspace(self.memory_gb).workspace_mib

    @property
    def usable_bytes(self) -> float:
        """Memory that a network may count on."""
        return _workspace(self.memory_gb).usable_share * self.memory_gb * 1e9

    @property
    def width_precision(self) -> str:
        """The precision whose alignment counts: that of most layers."""
        if self.precision != "best":
            return self.precision
        return "int8" if self.device.int8 else "fp16"

    def __str__(self) -> str:
        trt = ".".join(map(str, self.tensorrt))
        where = f", JetPack {self.jetpack.jetpack}" if self.jetpack else ""
        dla = f", DLA {self.dla}" if self.dla is not None else ""
        kind = "TensorRT-RTX (parser as of TensorRT" if self.rtx else "TensorRT"
        return f"{self.device.title}{where}, {kind} {trt}{')' if self.rtx else ''}, {self.precision}{dla}"


def _workspace(memory_gb: float) -> Workspace:
    return next(
        row
        for row in workspaces()
        if row.memory_gb_from <= memory_gb and (row.memory_gb_before is None or memory_gb < row.memory_gb_before)
    )


def resolve(
    name: str,
    *,
    jetpack: str | None = None,
    precision: str | None = None,
    dla: int | None = None,
    tensorrt: str | None = None,
    memory_gb: float | None = None,
) -> Target:
    """Find a target by name and options.

    Parameters
    ----------
    name
        A device of the table, with or without ``jetson-`` before it.
    jetpack
        Default: the newest the device has; for a DLA the newest that drives it.
    precision
        Default: ``fp16``; ``fp32`` for TensorRT-RTX.
    dla
        Number of the accelerator.
    tensorrt
        Only for ``x86-gpu``, whose TensorRT is what is installed.
    memory_gb
        Instead of the table's.

    Raises
    ------
    UsageError
        No such device, or the device cannot do what is asked; the message says why and what to do.
    """
    device = _device(name)
    if precision is not None and precision not in PRECISIONS:
        raise UsageError(f"--precision {precision}: choose one of {', '.join(PRECISIONS)}")
    row = _jetpack(device, jetpack, dla)
    if row is not None and tensorrt is not None:
        raise UsageError(
            f"--tensorrt {tensorrt}: JetPack {row.jetpack} has TensorRT {_text(row.tensorrt)}, which cannot be "
            "changed inside it: give --jetpack instead"
        )
    if row is not None:
        trt, opset = row.tensorrt, row.opset
    else:
        trt = _tensorrt(tensorrt) if device.name == "x86-gpu" else version(RTX_TENSORRT)
        if device.name == "rtx" and tensorrt is not None:
            raise UsageError("--tensorrt is for x86-gpu: TensorRT-RTX has versions of its own")
        opset = next(opset for since, opset in reversed(OPSETS) if trt >= since)
    chosen = precision or ("fp32" if device.name == "rtx" or trt >= (11,) else "fp16")
    _check_precision(device, chosen, trt)
    _check_dla(device, row, dla, chosen)
    return Target(device, row, trt, opset, chosen, dla, memory_gb or device.memory_gb)


def named(text: str) -> Target:
    """A target as ``--device`` writes it: ``NAME`` or ``NAME:PRECISION``."""
    name, _, precision = text.partition(":")
    return resolve(name, precision=precision or None)


def _text(number: Version) -> str:
    return ".".join(map(str, number))


def _device(name: str) -> Device:
    plain = name.lower().removeprefix("jetson-")
    known = devices()
    if plain not in known:
        raise UsageError(
            f"no such device as '{name}'{nearest(plain, list(known))}; 'graphprune devices' lists them"
        )
    return known[plain]


def _jetpack(device: Device, asked: str | None, dla: int | None) -> JetPack | None:
    table = jetpacks()
    if not device.first_jetpack:
        if asked is not None:
            raise UsageError(f"--jetpack {asked}: {device.title} is no Jetson")
        return None
    order = list(table)
    first, last = order.index(device.first_jetpack), order.index(device.last_jetpack)
    if asked is None:
        newest = device.dla_last_jetpack if dla is not None and device.dla else device.last_jetpack
        return table[newest]
    if asked not in table:
        raise UsageError(f"--jetpack {asked}: not in the table{nearest(asked, order)}; known are {', '.join(order)}")
    if not first <= order.index(asked) <= last:
        why = "its last is" if order.index(asked) > last else "its first is"
        bound = device.last_jetpack if order.index(asked) > last else device.first_jetpack
        raise UsageError(f"--jetpack {asked}: {device.title} never got it, {why} JetPack {bound}")
    return table[asked]


def _tensorrt(text: str | None) -> Version:
    try:
        found = version(text or X86_TENSORRT)
    except ValueError:
        raise UsageError(f"--tensorrt {text}: write a version, as in 10.3.0") from None
    if found < (8, 0) or found >= (12,):
        raise UsageError(f"--tensorrt {text}: the tables hold TensorRT 8.0 to 11.1")
    return (*found, *(0,) * (3 - len(found)))


def _check_precision(device: Device, precision: str, tensorrt: Version) -> None:
    if precision == "int8" and not device.int8:
        raise UsageError(
            f"--precision int8: {device.title} (sm_{device.sm}) has no INT8 arithmetic worth the name, INT8 engines "
            "run slower than FP16 there: take --precision fp16"
        )
    if precision in ("int8", "best") and (device.name == "rtx" or tensorrt >= (11,)):
        name = "TensorRT-RTX" if device.name == "rtx" else f"TensorRT {_text(tensorrt)}"
        raise UsageError(
            f"--precision {precision}: {name} takes INT8 only from QuantizeLinear and DequantizeLinear in the model "
            "(strongly typed): quantise it first and build it as fp32"
        )


def _check_dla(device: Device, jetpack: JetPack | None, dla: int | None, precision: str) -> None:
    if dla is None:
        return
    if not device.dla:
        raise UsageError(
            f"--dla {dla}: {device.title} has no deep learning accelerator: leave it out, the GPU runs all"
        )
    if not 0 <= dla < device.dla:
        raise UsageError(f"--dla {dla}: {device.title} has {device.dla}, numbered from 0")
    order = list(jetpacks())
    if jetpack is not None and order.index(jetpack.jetpack) > order.index(device.dla_last_jetpack):
        raise UsageError(
            f"--dla {dla}: JetPack {jetpack.jetpack} is not known to drive it on {device.title}: the last that is, is "
            f"JetPack {device.dla_last_jetpack}"
        )
    if precision == "fp32":
        raise UsageError(f"--dla {dla}: the accelerator computes in FP16 and INT8 only: take --precision fp16 or int8")


def alignment(target: Target, precision: str | None = None, *, grouped: bool = False) -> int:
    """Multiple of channels that a target runs at full speed.

    Parameters
    ----------
    target
        A resolved target.
    precision
        ``fp32``, ``fp16``, ``int8`` or ``fp8``; default: that of most layers of the target.
    grouped
        Channels of one group of a grouped convolution.

    Returns
    -------
    int
        1 where nothing is known to matter.
    """
    wanted = precision or target.width_precision
    for row in alignments():
        if row.precision == wanted and row.sm_from <= target.device.sm and (row.sm_before or 10**9) > target.device.sm:
            return row.grouped if grouped else row.dense
    return 1
