"""Pictures of ``graphprune bench``, by matplotlib (extra ``graphprune[plots]``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from graphprune.benching import Bench, Timed
from graphprune.plots import figure_of, save_figure

#: Steps of a profile that are drawn by name; the rest are one more.
_NAMED = 14


def plot_bench(found: Bench, path: Path) -> None:
    """Every run as a dot, the median and its interval over it; of profiles alone, where the time goes."""
    rows = [row for row in found.rows if len(row.times)]
    if rows:
        figure, axes = figure_of(8, 1.4 + 0.5 * len(rows))
        _draw_times(axes, rows)
    else:
        figure, axes = figure_of(8, 1.4 + 0.3 * _NAMED)
        _draw_layers(axes, found.rows)
    threads = "" if found.threads is None else f", {found.threads} thread{'s' if found.threads > 1 else ''}"
    axes.set_title(f"{found.runtime}, {found.machine}{threads}", fontsize=8, color="0.35", loc="left")
    axes.grid(axis="x", alpha=0.25)
    save_figure(figure, path)


def _draw_times(axes: Any, rows: list[Timed]) -> None:
    rng = np.random.default_rng(0)
    for at, row in enumerate(rows):
        spread = rng.uniform(-0.16, 0.16, len(row.times))
        axes.plot(row.times, at + spread, ".", color=f"C{at}", alpha=0.3, markersize=4)
        axes.plot(row.interval, [at, at], color="black", linewidth=4, solid_capstyle="butt")
    # Single runs that something else held up would push the rest together.
    axes.set_xlim(0, max(float(np.percentile(row.times, 95)) for row in rows) * 1.1)
    labels = [Path(row.name).name + ("" if row.ratio is None else f"\n{row.ratio:.2f} of the first") for row in rows]
    axes.set_yticks(range(len(rows)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds of one run; black: 95 % of the median")


def _draw_layers(axes: Any, rows: list[Timed]) -> None:
    """The longest steps of each profile side by side, by name."""
    sums = [{layer.name: 0.0 for layer in row.layers} for row in rows]
    for row, taken in zip(rows, sums, strict=True):
        for layer in row.layers:
            taken[layer.name] += layer.ms
    names = list(dict.fromkeys(name for taken in sums for name in taken))
    longest = sorted(names, key=lambda name: -max(taken.get(name, 0.0) for taken in sums))[:_NAMED]
    height = 0.8 / len(rows)
    for at, (row, taken) in enumerate(zip(rows, sums, strict=True)):
        y = np.arange(len(longest)) + height * (at - (len(rows) - 1) / 2)
        axes.barh(y, [taken.get(name, 0.0) for name in longest], height, color=f"C{at}", label=Path(row.name).name)
    axes.set_yticks(range(len(longest)), [name[-60:] for name in longest], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds of one run")
    axes.legend(frameon=False, fontsize=8)
