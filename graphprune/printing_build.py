"""What a person sees of builds, verdicts and devices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from graphprune.devices import Device, devices, jetpacks, resolve
from graphprune.errors import UsageError

if TYPE_CHECKING:
    from graphprune.backends.tensorrt import Built, Verdict
    from graphprune.backends.tensorrt_rtx import Found

_COLOURS = {"ok": "green", "lowered": "yellow", "unsupported": "red"}
#: Rows shown of a long table; ``--json`` and ``--all`` give more.
_ROWS = 60


def _table(*columns: str) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def print_verdicts(
    verdicts: Sequence[Verdict], target: str, everything: bool = False, found: Found | None = None
) -> None:
    """What is not simply fine, nodes of one fate on one line, then the counts; everything: a line a node."""
    console = Console()
    console.print(f"[bold]{escape(target)}[/]")
    shown = [v for v in verdicts if everything or v.status != "ok" or v.note or v.node == "(model)"]
    table = _table("node", "op", "verdict", "why and how")
    alike: dict[tuple[object, ...], list[Verdict]] = {}
    for verdict in shown:
        own = verdict.node if everything else ""
        key = (own, verdict.op, verdict.status, verdict.where, verdict.reason, verdict.advice, verdict.note)
        alike.setdefault(key, []).append(verdict)
    rows = list(alike.values())
    for first, *others in rows if everything else rows[:_ROWS]:
        told = "; ".join(text for text in (first.reason, first.advice, first.note) if text)
        status = f"[{_COLOURS[first.status]}]{first.status}[/]" + (f" ({first.where})" if first.where != "GPU" else "")
        name = escape(first.node) + (f" and {len(others)} more" if others else "")
        table.add_row(name, escape(first.op), status, escape(told))
    console.print(table)
    if not everything and len(rows) > _ROWS:
        console.print(f"... and {len(rows) - _ROWS} more lines; --all shows every node")
    counts = Counter[str](v.status for v in verdicts)
    console.print(", ".join(f"[bold]{counts[status]}[/] {status}" for status in _COLOURS))
    if found is not None:
        print_found(console, found)


def print_found(console: Console, found: Found) -> None:
    """What TensorRT-RTX said."""
    colour = "green" if found.ok else "red"
    console.print(f"[bold {colour}]TensorRT-RTX[/]: {escape(found.told())}")
    for error in found.errors[:10]:
        console.print(f"  {escape(error)}")


def print_built(built: Built, found: Found | None, everything: bool) -> None:
    """Verdicts, the proof, and what to do next."""
    console = Console()
    print_verdicts(built.verdicts, str(built.target), everything, found)
    proof = built.proof
    console.print(
        f"[bold green]proved[/]: the lowered model equals its source, largest difference {proof['max_rel_error']:.1e} of an "
        f"output's maximum (allowed {proof['tolerance']:g})"
    )
    for note in built.notes:
        console.print(f"[yellow]note[/]: {escape(note)}")
    console.print(escape(built.engine))
    told = "" if built.target.rtx else ": copy it to the device and run run.sh there"
    console.print(f"written: {escape(str(built.folder))}{told}")


def _chosen(names: Sequence[str]) -> list[Device]:
    return [resolve(name).device for name in names] if names else list(devices().values())


def _tensorrt(jetpack: str) -> str:
    return ".".join(map(str, jetpacks()[jetpack].tensorrt)) if jetpack else ""


def _precisions(device: Device) -> str:
    return " ".join(
        ["FP32", *(n for n, has in (("FP16", device.fp16), ("INT8", device.int8), ("FP8", device.fp8)) if has)]
    )


def print_devices(names: Sequence[str]) -> None:
    """The table of devices."""
    console = Console()
    table = _table("target", "device", "sm", "precisions", "DLA", "GB", "GB/s", "peak", "JetPack", "TensorRT")
    for d in _chosen(names):
        dla = f"{d.dla} x v{d.dla_version}" if d.dla else "-"
        span = f"{d.first_jetpack} - {d.last_jetpack}" if d.first_jetpack else "-"
        trt = f"{_tensorrt(d.first_jetpack)} - {_tensorrt(d.last_jetpack)}" if d.first_jetpack else "as installed"
        width = "" if d.bandwidth_gbs is None else f"{d.bandwidth_gbs:g}"
        table.add_row(d.name, d.title, str(d.sm), _precisions(d), dla, f"{d.memory_gb:g}", width, d.peak, span, trt)
    console.print(table)
    console.print("'graphprune build MODEL --target NAME'; figures and their sources: 'graphprune devices --json'")


def devices_json(names: Sequence[str]) -> dict[str, Any]:
    """Devices and JetPacks, each row with its source."""
    chosen = _chosen(names)
    if not chosen:
        raise UsageError("no device")
    return {
        "devices": [asdict(device) for device in chosen],
        "jetpacks": [{**asdict(row), "tensorrt": ".".join(map(str, row.tensorrt))} for row in jetpacks().values()],
    }
