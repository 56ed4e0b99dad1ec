"""Pictures of comparisons and sensitivities, by matplotlib (extra ``graphprune[plots]``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from graphprune.backends.onnx import Transaction
from graphprune.compare import Comparison, headline, judge
from graphprune.errors import UsageError
from graphprune.sensitivity import Sensitivity

KINDS = (".svg", ".png", ".pdf")


def figure_of(width: float, height: float) -> tuple[Any, Any]:
    """An empty figure of inches, and its axes.

    Raises
    ------
    UsageError
        matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("--plot needs matplotlib: pip install 'graphprune[plots]'") from error
    matplotlib.rcParams["svg.hashsalt"] = "graphprune"  # the same picture has the same bytes
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure, whole or not at all.

    Raises
    ------
    UsageError
        The name ends in no kind of picture.
    """
    import io

    if path.suffix.lower() not in KINDS:
        raise UsageError(f"--plot {path}: give a name that ends in {', '.join(KINDS)}")
    buffer = io.BytesIO()
    metadata = {"Date": None} if path.suffix.lower() == ".svg" else None
    figure.savefig(buffer, format=path.suffix[1:].lower(), dpi=150, metadata=metadata)
    with Transaction() as transaction:
        transaction.write(path, buffer.getvalue())


def plot_comparison(found: Comparison, path: Path) -> None:
    """Each criterion before (hollow) and after recovery (filled), a row of dots a budget."""
    rows = [row for row in found.rows if "failed" not in row]
    evaluated = any(row["evaluation"] for row in rows)
    names = list(dict.fromkeys(row["criterion"] for row in rows))
    goals = list(dict.fromkeys(row["budget"] for row in rows))
    figure, axes = figure_of(8, 1.2 + 0.38 * len(names))
    for at, goal in enumerate(goals):
        for row in rows:
            if row["budget"] != goal:
                continue
            y = names.index(row["criterion"]) + 0.22 * (at - (len(goals) - 1) / 2)
            pairs = row["evaluation"] if evaluated else {w: f["divergence"] for w, f in row["fidelity"].items()}
            if not pairs:
                continue
            before, after = (headline(pairs[when]) for when in ("before", "after"))
            axes.plot([before, after], [y, y], color=f"C{at}", linewidth=1, alpha=0.4)
            axes.plot(before, y, "o", markerfacecolor="white", color=f"C{at}")
            label = goal if not axes.get_legend_handles_labels()[1].count(goal) else None
            axes.plot(after, y, "o", color=f"C{at}", label=label)
            if "spread" in row:
                axes.plot(row["spread"], [y, y], color=f"C{at}", linewidth=3, alpha=0.5)
    if evaluated and "evaluation" in found.source:
        axes.axvline(headline(found.source["evaluation"]), color="0.4", linestyle=":", label="source")
    if not evaluated:
        axes.set_xscale("log")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(judge(found) if evaluated else "divergence of the outputs from the source's (left is better)")
    axes.set_title("hollow: as cut, filled: recovered", fontsize=9, color="0.35", loc="left")
    axes.grid(axis="x", alpha=0.25)
    figure.legend(frameon=False, loc="outside lower center", ncols=len(goals) + 1)
    save_figure(figure, path)


def plot_sensitivity(found: Sensitivity, path: Path) -> None:
    """Divergence over the share removed, a line a group; the five most sensitive by name."""
    figure, axes = figure_of(8, 4.5)
    ordered = sorted(found.curves, key=lambda curve: -curve.error[-1])
    for n, curve in enumerate(ordered):
        x = [count / curve.units for count in curve.removed]
        y = np.maximum(curve.error, 1e-9)
        named = n < 5
        axes.plot(x, y, marker=".", linewidth=1.6 if named else 0.8, color=f"C{n}" if named else "0.7",
                  alpha=1.0 if named else 0.6, zorder=2 if named else 1,
                  label=f"{curve.id}: {curve.tensor}" if named else None)  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlabel(f"share of the group's units removed, by {found.criterion}")
    axes.set_ylabel("divergence of the outputs")
    axes.grid(alpha=0.25)
    if ordered:
        axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)
