"""Every criterion on the trained networks, as cut, with batch norm re-estimated and with least squares, as a table and a plot.

    python -m benchmarks.recovery.criteria --nets resnet20 --plot docs/img/criteria.svg
    python -m benchmarks.recovery.criteria --show           # tables of what is measured so far

By ``graphprune compare`` (512 unlabelled training images, top-1 on the 10,000 test images): what is known is not computed again.
One global threshold shares the budget among the layers, as the thesis and most papers do.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

from benchmarks.recovery.files import CACHE, CALIBRATION, FORMS, note, read
from graphprune.compare import compare
from graphprune.executor import executor

CRITERIA = (
    "entropy", "entropy+bn-scale", "similarity", "random", "l1", "l2", "bn-scale", "fpgm", "lamp", "hrank", "apoz", "variance",
    "wanda", "activation", "entropy-luo", "gram", "obs", "chip", "taylor", "group-taylor", "fisher",
)  # fmt: skip
NETS = ("resnet20", "mobilenetv2", "vgg16_slim", "densenet22", "resnet56")


#: What is measured, the cheapest to do without last: recovery by least squares gives the figure as cut too.
MODES = ("ls", "bn")
RESULTS = CACHE / "criteria.json"


def measure(net: str, form: str, mode: str, budget: str, criteria: list[str], where: str) -> None:
    """One network, budget and recovery by every criterion, noted in :data:`RESULTS` beside what is there."""
    found = compare(
        CACHE / f"{net}.{form}.onnx", criteria, budgets=[budget], combine="parallel", recover=mode,  # type: ignore[arg-type]
        evaluate="benchmarks.recovery.judge:top1", latency=False, executor=executor(where), allocate="global",
        data=str(CACHE / f"train_{CALIBRATION}.npz"), samples=CALIBRATION,
    )  # fmt: skip
    key = f"{net}/{form}/{budget}/{mode}"
    rows = read(RESULTS).get(key, {}).get("rows", {})
    for row in found.rows:
        if "failed" not in row:
            rows[row["criterion"]] = {
                "macs": row["macs"], "cut": 100 * row["evaluation"]["before"], mode: 100 * row["evaluation"]["after"],
                "spread": [100 * v for v in row.get("spread", [])], "seconds": round(row["seconds"], 1),
            }  # fmt: skip
    note(RESULTS, key, {"source": 100 * float(found.source["evaluation"]), "rows": rows})


def figures(results: dict[str, Any], net: str, form: str, budget: str) -> tuple[float, list[dict[str, Any]]]:
    """The source's accuracy, and rows of one network and budget: per cent as cut and with each recovery that was measured."""
    source, rows = 0.0, {}
    for mode in MODES:
        entry = results.get(f"{net}/{form}/{budget}/{mode}")
        if entry is not None:
            source = entry["source"]
            for criterion, row in entry["rows"].items():
                kept = {key: value for key, value in row.items() if mode == "ls" or key != "spread"}
                rows.setdefault(criterion, {"criterion": criterion}).update(kept)
    return source, sorted(rows.values(), key=lambda row: -row.get("ls", row.get("bn", 0)))


def table(net: str, form: str, source: float, rows: list[dict[str, Any]]) -> str:
    """Markdown, the best first; a dash for what was not measured."""
    kept = "batch norm kept" if form == "bn" else "batch norm folded"
    lines = [f"{net}, {kept}, source {source:.2f} %:", "", "| MACs kept | criterion | as cut | BN re-estimated | least squares |",
             "| --- | --- | --- | --- | --- |"]  # fmt: skip
    for row in rows:
        cells = [f"{row[key]:.1f}" if key in row else "-" for key in ("cut", "bn", "ls")]
        spread = " ({:.1f} to {:.1f})".format(*row["spread"]) if row.get("spread") else ""
        lines.append(f"| {row['macs']:.2f} | {row['criterion']} | {' | '.join(cells)}{spread} |")
    return "\n".join(lines)


def plot(path: Path, panels: dict[str, tuple[float, list[dict[str, Any]]]]) -> None:
    """A panel a network: as cut, with batch norm re-estimated, with least squares."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(panels), 5.2), layout="constrained")
    drawn = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, (source, rows)) in zip(drawn, panels.items(), strict=True):
        rows = rows[::-1]
        for key, colour, label in (("cut", "tab:red", "as cut"), ("bn", "tab:orange", "BN re-estimated"), ("ls", "tab:green", "least squares")):
            points = [(row[key], at) for at, row in enumerate(rows) if key in row]
            axes.plot([x for x, _ in points], [y for _, y in points], "o", color=colour, label=label)
        axes.axvline(source, color="0.4", linestyle=":", label="source")
        axes.set_yticks(range(len(rows)), [row["criterion"] for row in rows], fontsize=8)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("top-1, per cent")
        axes.grid(axis="x", alpha=0.25)
    handles, labels = drawn[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=9, loc="outside lower center", ncols=4)
    figure.savefig(path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=NETS)
    parser.add_argument("--form", default="bn", choices=FORMS)
    parser.add_argument("--budgets", nargs="+", default=["macs=0.5", "macs=0.35"])
    parser.add_argument("--criteria", nargs="+", default=list(CRITERIA))
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--executor", default="processes")
    parser.add_argument("--show", action="store_true", help="only show what is measured")
    parser.add_argument("--plot", type=Path, help="draw the first budget")
    options = parser.parse_args()
    for net, budget, mode in [] if options.show else itertools.product(options.nets, options.budgets, options.modes):
        print(f"{net}.{options.form} {budget}, recovery {mode}", flush=True)
        measure(net, options.form, mode, budget, options.criteria, options.executor)
    results, panels = read(RESULTS), {}
    for net, budget in itertools.product(options.nets, options.budgets):
        source, rows = figures(results, net, options.form, budget)
        if rows:
            print(f"{table(net, options.form, source, rows)}\n", flush=True)
            if budget == options.budgets[0]:
                panels[f"{net}, {budget.partition('=')[2]} of the MACs"] = source, rows
    if options.plot is not None:
        plot(options.plot, panels)


if __name__ == "__main__":
    main()
