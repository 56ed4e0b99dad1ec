"""Every criterion on the trained networks, as cut, with batch norm re-estimated and with least squares, as a table and a plot.

    python -m benchmarks.recovery.criteria --nets resnet20 --plot docs/img/criteria.svg

By ``graphprune compare`` (512 unlabelled training images, top-1 on the 10,000 test images): what is known is not computed again.
One global threshold shares the budget among the layers, as the thesis and most papers do.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.recovery.files import CACHE, CALIBRATION, FORMS
from graphprune.compare import Comparison, compare
from graphprune.executor import executor

CRITERIA = (
    "entropy", "entropy+bn-scale", "similarity", "random", "l1", "l2", "bn-scale", "fpgm", "lamp", "hrank", "apoz", "variance",
    "wanda", "activation", "entropy-luo", "gram", "obs",
)  # fmt: skip
NETS = ("resnet20", "mobilenetv2", "vgg16_slim", "densenet22", "resnet56")


def measured(net: str, form: str, budgets: list[str], criteria: list[str], where: str) -> dict[str, Comparison]:
    """Comparisons by the mode of recovery."""
    out = {}
    for mode in ("bn", "ls"):
        print(f"{net}.{form}, recovery {mode}", flush=True)
        out[mode] = compare(
            CACHE / f"{net}.{form}.onnx", criteria, budgets=budgets, combine="parallel", recover=mode,  # type: ignore[arg-type]
            evaluate="benchmarks.recovery.judge:top1", latency=False, executor=executor(where), allocate="global",
            data=str(CACHE / f"train_{CALIBRATION}.npz"), samples=CALIBRATION,
        )  # fmt: skip
    return out


def figures(found: dict[str, Comparison]) -> list[dict[str, Any]]:
    """Rows of one network: accuracies in per cent as cut and with each recovery."""
    rows = []
    for row, other in zip(found["ls"].rows, found["bn"].rows, strict=True):
        if "failed" in row or "failed" in other:
            continue
        rows.append({
            "criterion": row["criterion"], "budget": row["budget"], "macs": row["macs"],
            "cut": 100 * row["evaluation"]["before"], "bn": 100 * other["evaluation"]["after"],
            "ls": 100 * row["evaluation"]["after"], "spread": [100 * v for v in row.get("spread", [])],
        })  # fmt: skip
    return rows


def table(net: str, source: float, rows: list[dict[str, Any]]) -> str:
    """Markdown, the best first within a budget."""
    lines = [f"{net}, source {source:.2f} %:", "", "| MACs kept | criterion | as cut | BN re-estimated | least squares |",
             "| --- | --- | --- | --- | --- |"]  # fmt: skip
    for budget in dict.fromkeys(row["budget"] for row in rows):
        for row in sorted((r for r in rows if r["budget"] == budget), key=lambda r: -r["ls"]):
            spread = " ({:.1f} to {:.1f})".format(*row["spread"]) if row["spread"] else ""
            lines.append(f"| {row['macs']:.2f} | {row['criterion']} | {row['cut']:.1f} | {row['bn']:.1f} | {row['ls']:.1f}{spread} |")
    return "\n".join(lines)


def plot(path: Path, found: dict[str, tuple[float, list[dict[str, Any]]]]) -> None:
    """A panel a network at its first budget: as cut, with batch norm re-estimated, with least squares."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(found), 5.2), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (net, (source, rows)) in zip(panels, found.items(), strict=True):
        first = [row for row in rows if row["budget"] == rows[0]["budget"]]
        first.sort(key=lambda row: row["ls"])
        for key, colour, label in (("cut", "tab:red", "as cut"), ("bn", "tab:orange", "BN re-estimated"), ("ls", "tab:green", "least squares")):
            axes.plot([row[key] for row in first], range(len(first)), "o", color=colour, label=label)
        axes.axvline(source, color="0.4", linestyle=":", label="source")
        axes.set_yticks(range(len(first)), [row["criterion"] for row in first], fontsize=8)
        axes.set_title(f"{net}, {first[0]['macs']:.0%} of MACs", fontsize=10)
        axes.set_xlabel("top-1, per cent")
        axes.grid(axis="x", alpha=0.25)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=9, loc="outside lower center", ncols=4)
    figure.savefig(path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=NETS)
    parser.add_argument("--form", default="bn", choices=FORMS)
    parser.add_argument("--budgets", nargs="+", default=["macs=0.5", "macs=0.35"])
    parser.add_argument("--criteria", nargs="+", default=list(CRITERIA))
    parser.add_argument("--executor", default="processes")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    found: dict[str, tuple[float, list[dict[str, Any]]]] = {}
    for net in options.nets:
        comparisons = measured(net, options.form, options.budgets, options.criteria, options.executor)
        source = 100 * float(comparisons["ls"].source["evaluation"])
        found[net] = source, figures(comparisons)
        print(table(net, *found[net]), flush=True)
    if options.plot is not None:
        plot(options.plot, found)


if __name__ == "__main__":
    main()
