"""What ``graphprune bench`` shows in the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from graphprune.benching import Bench, Timed
from graphprune.timing import busy

#: Rows of a profile; ``--json`` gives all.
_LAYERS = 30
#: Programs a processor above which times say little.
_BUSY = 1.2


def print_bench(found: Bench) -> None:
    """The table of models, how it was measured, and profiles."""
    console = Console()
    where = found.machine
    if found.threads is not None:
        kept = f" on processor{'s' if len(found.processors) > 1 else ''} {', '.join(map(str, found.processors))}"
        where += f"; {found.threads} thread{'s' if found.threads > 1 else ''}{kept if found.processors else ''}"
    console.print(f"{escape(found.runtime)} on {escape(found.device)}: {escape(where)}")
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("model", "median ms", "95 %", "least", "share", "95 %", "faster"):
        table.add_column(name, justify="left" if name == "model" else "right", overflow="fold")
    names = [Path(row.name).name for row in found.rows]
    for name, row in zip(names, found.rows, strict=True):
        table.add_row(escape(name if names.count(name) == 1 else row.name), *_cells(row))
    console.print(table)
    timed = [len(row.times) for row in found.rows if len(row.times)]
    if timed:
        how = "in turns, order drawn" if found.in_turns else "each file by itself, not in turns"
        clock = "; time of the processor" if found.clock == "cpu" else ""
        console.print(f"{min(timed)} runs of each, {how}{clock}; shares of the first model's median; intervals by bootstrap")
    if found.in_turns and found.clock == "wall" and busy() > _BUSY:
        console.print(f"[yellow]note[/]: other programs keep this machine busy ({busy():.1f} a processor): times are too long. "
                      "--threads 1 --clock cpu counts only what this program uses")  # fmt: skip
    for row in found.rows:
        if row.inputs and found.in_turns:
            sizes = ", ".join(f"{escape(name)} {'x'.join(map(str, shape))}" for name, shape in row.inputs.items())
            console.print(f"[dim]{escape(row.name)}: {sizes}[/]")
    for row in found.rows:
        if row.layers:
            _print_layers(console, row)


def _cells(row: Timed) -> list[str]:
    if not len(row.times):
        return [f"{row.median:.2f}", "sum of layers", "", "", "", ""]
    cells = [f"{row.median:.2f}", _span(row.interval, ".2f"), f"{row.times.min():.2f}"]
    if row.ratio is None or row.ratio_interval is None:
        return [*cells, "", "", ""]
    return [*cells, f"{row.ratio:.3f}", _span(row.ratio_interval, ".3f"), f"{1 / row.ratio:.2f}x"]


def _span(bounds: tuple[float, float], form: str) -> str:
    return f"{bounds[0]:{form}}..{bounds[1]:{form}}"


def _print_layers(console: Console, row: Timed) -> None:
    whole = sum(layer.ms for layer in row.layers)
    moved = sum(layer.ms for layer in row.layers if layer.layout)
    console.print(f"\n[bold]{escape(row.name)}[/]: {len(row.layers)} steps, {whole:.3f} ms, "
                  f"{moved / whole if whole else 0:.1%} of it in changes of layout")  # fmt: skip
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("step", "op", "ms", "share"):
        table.add_column(name, justify="right" if name in ("ms", "share") else "left")
    for layer in sorted(row.layers, key=lambda one: -one.ms)[:_LAYERS]:
        table.add_row(escape(layer.name), layer.op, f"{layer.ms:.4f}", f"{layer.ms / whole if whole else 0:.1%}")
    console.print(table)
    if len(row.layers) > _LAYERS:
        console.print(f"[dim]and {len(row.layers) - _LAYERS} more; --json lists all[/]")
