"""Comparisons of criteria and sensitivities of groups, as a person reads them in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from graphprune.compare import Comparison, headline, judge
from graphprune.printing import human
from graphprune.sensitivity import Sensitivity

#: Groups shown of a sensitivity; ``--json`` gives all.
_ROWS = 40
_BARS = " ▁▂▃▄▅▆▇█"


def _table(*columns: tuple[str, str], breaks: int = 0) -> Table:
    """A table whose column ``breaks``, of names, is what breaks where a terminal is narrow, not the figures."""
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for n, (name, justify) in enumerate(columns):
        table.add_column(name, justify=justify, no_wrap=n != breaks, overflow="fold")  # type: ignore[arg-type]
    return table


def _number(value: Any) -> str:
    return f"{headline(value):.4g}"


def _before_after(row: Mapping[str, Any]) -> list[str]:
    """The figure that rows are judged by, as cut and recovered."""
    values = row.get("evaluation") or {when: f["divergence"] for when, f in row.get("fidelity", {}).items()}
    if not values:
        return ["", ""]
    after = _number(values["after"])
    if "spread" in row:
        after += " ({:.3g}-{:.3g})".format(*row["spread"])
    return [_number(values["before"]), after]


def print_comparison(found: Comparison) -> None:
    """The table, best first within a budget, and how much the criteria agree."""
    console = Console()
    source = found.source
    known = [("MACs", "macs"), ("parameters", "params")]
    line = ", ".join(f"{human(source[key])} {name}" for name, key in known if key in source)
    line += f", {judge(found)} {_number(source['evaluation'])}" if "evaluation" in source else ""
    line += f", {source['latency']:.2f} ms" if "latency" in source else ""
    console.print(f"[bold]source[/]: {line}")
    for goal in dict.fromkeys(row["budget"] for row in found.rows):
        rows = [row for row in found.rows if row["budget"] == goal]
        judged = any(_judged(row) is not None for row in rows)
        timed = any("latency" in row for row in rows)
        columns = [("criterion", "left"), ("MACs", "right"), ("params", "right"), *([("latency", "right")] if timed else [])]
        table = _table(*columns, *([("as cut", "right"), ("recovered", "left")] if judged else []), ("s", "right"))
        for row in sorted(rows, key=lambda row: (_judged(row) is None, -(_judged(row) or 0))):
            name = escape(row["criterion"]) + (f" x{row['seeds']}" if row["seeds"] > 1 else "")
            if "failed" in row:
                table.add_row(name, f"[red]{escape(row['failed'][:80])}[/]")
                continue
            figures = [f"{row['macs']:.1%}", f"{row['params']:.1%}"]
            figures += [f"{row['latency']:.0%}" if "latency" in row else ""] if timed else []
            table.add_row(name, *figures, *(_before_after(row) if judged else []), f"{row['seconds']:.1f}")
        console.print()
        console.print(f"[bold]{escape(goal)}[/]" + (f", judged by {judge(found)}" if judged else ""))
        console.print(table)
    if len(found.correlation) > 1:
        names = list(found.correlation)
        table = _table(("rank correlation", "left"), *((str(n + 1), "right") for n in range(len(names))))
        for n, name in enumerate(names):
            table.add_row(f"{n + 1} {escape(name)}", *(f"{found.correlation[name][other]:.2f}" for other in names))
        console.print()
        console.print(table)
    console.print(f"\n{found.fresh} cuts computed, the others were known from before")


def _judged(row: Mapping[str, Any]) -> float | None:
    """The figure that rows are sorted by, higher is better."""
    if row.get("evaluation"):
        return headline(row["evaluation"]["after"])
    return -float(row["fidelity"]["after"]["divergence"]) if row.get("fidelity") else None


def print_sensitivity(found: Sensitivity) -> None:
    """One line a group, the most sensitive first."""
    console = Console()
    table = _table(("group", "right"), ("kind", "left"), ("units", "right"), ("member", "left"),
                   *((f"{level:.0%}", "right") for level in found.levels), ("", "left"), ("MACs", "right"), breaks=3)  # fmt: skip
    most = max((max(curve.error) for curve in found.curves), default=0.0) or 1.0
    for curve in sorted(found.curves, key=lambda curve: -curve.error[-1])[:_ROWS]:
        # Divergences span decades: the bars show their logarithm down to a ten-thousandth of the largest.
        heights = [1 + np.log10(max(e / most, 1e-4)) / 4 for e in curve.error]
        bars = "".join(_BARS[round(float(h) * (len(_BARS) - 1))] for h in heights)
        table.add_row(str(curve.id), curve.kind, str(curve.units), escape(curve.tensor), *(f"{e:.2g}" for e in curve.error),
                      bars, f"{curve.macs[-1]:.1%}")  # fmt: skip
    console.print(f"divergence of the outputs when one group alone loses that share of its units, by {escape(found.criterion)}, "
                  f"{found.samples} samples; MACs left at the last level")  # fmt: skip
    console.print(table)
    if len(found.curves) > _ROWS:
        console.print(f"... and {len(found.curves) - _ROWS} less sensitive groups (--json gives all)")
    known = "" if found.fresh else " (known from before)"
    console.print(f"{len(found.curves)} groups{known}")
