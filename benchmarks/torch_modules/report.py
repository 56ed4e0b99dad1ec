"""The tables of docs/benchmarks.md from the results that were kept."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from pathlib import Path
from typing import Any


def tables(folder: Path) -> str:
    """Counts of both tools, and every case, as Markdown."""
    parts = []
    for kind in ("patterns", "transformers"):
        path = folder / f"{kind}.json"
        if path.exists():
            parts.append(table(kind, json.loads(path.read_text())))
    return "\n\n".join(parts)


def table(kind: str, results: dict[str, Any]) -> str:
    """One kind: what came of it in a line, then every case."""
    both = {name: r for name, r in results.items() if set(r) == {"graphprune", "torch-pruning"}}
    lines = []
    for tool in ("graphprune", "torch-pruning"):
        counts = Counter(r[tool]["verdict"] for r in both.values())
        said = ", ".join(f"{n} {verdict}" for verdict, n in counts.most_common())
        lines.append(f"- {tool}, {len(both)} {kind}: {said}.")
    kept = [r["graphprune"]["half"]["params"] for r in both.values() if "params" in r["graphprune"].get("half", {})]
    graphs = sum(bool(r["graphprune"].get("half", {}).get("graph")) for r in both.values())
    closed = sum(bool(r["graphprune"].get("half", {}).get("closed")) for r in both.values())
    if kept:
        lines.append(
            f"- graphprune: median share of parameters kept {statistics.median(kept):.3f}; {graphs} came back as a graph, "
            f"{closed} of them for the example's batch size only."
        )
    lines += [
        "",
        "| case | graphprune | parameters kept | form | Torch-Pruning | what it says |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*lines, *(row(name, r) for name, r in both.items())])


def row(name: str, result: dict[str, Any]) -> str:
    """One line of the table."""
    ours, theirs = result["graphprune"], result["torch-pruning"]
    half = ours.get("half", {})
    note = ""
    if ours["verdict"] != "exact":
        note = ours.get("why") or half.get("why") or ours.get("exact", {}).get("why", "")
        note = f": {short(note)}"
    kept = f"{half['params']:.3f}" if "params" in half else "-"
    form = ("graph" if half.get("graph") else "own") if "params" in half else "-"
    return (
        f"| {name} | {ours['verdict']}{note} | {kept} | {form} | {theirs['verdict']} | {short(theirs.get('why', ''))} |"
    )


def short(text: str) -> str:
    """Text that fits into a cell."""
    return text.replace("|", "/").replace("\n", " ")[:110]
