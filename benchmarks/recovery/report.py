"""What was measured, as markdown tables and a plot: ``python -m benchmarks.recovery.report > table.md``.

    --plot docs/img/recovery.svg     accuracy lost against MACs kept, a panel a network (needs matplotlib)

Accuracies are per cent of the test split; losses are percentage points against the source file. Only measured cells
appear; a dash stands where none was, "refused" where graphprune or the peer declined.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.recovery.files import CACHE, FORMS, read
from benchmarks.recovery.run import ALLOCATIONS, BUDGETS, CRITERIA, NETS, RECOVERIES, RESULTS, SEEDS, Cell

#: How each recovery is drawn and named.
LABELS = {"none": "no recovery", "bias": "bias only", "bn": "batch norm only", "ls": "least squares"}
COLOURS = {"none": "tab:red", "bias": "tab:brown", "bn": "tab:orange", "ls": "tab:green"}


@dataclass(frozen=True)
class Point:
    """MACs kept (share of the source's) and accuracy lost (percentage points), over seeds if there are several."""

    macs: float
    lost: float


def ours(results: dict[str, Any], net: str, form: str, budget: float, criterion: str, recovery: str, allocate: str) -> Point | None:
    """graphprune's cell, the mean over the seeds that were measured; None where nothing was, or it refused."""
    base = results.get(f"{net}/{form}")
    cells = [Cell(net, form, budget, criterion, recovery, allocate, seed) for seed in SEEDS]
    found = [results[cell.key] for cell in cells if "accuracy" in results.get(cell.key, {})]
    if base is None or not found:
        return None
    lost = [100 * (base["accuracy"] - one["accuracy"]) for one in found]
    return Point(statistics.mean(one["macs"] for one in found), statistics.mean(lost))


def peer(results: dict[str, Any], base: float | None, net: str, budget: float, recovery: str, kind: str) -> Point | None:
    """Torch-Pruning's cell: ``recovery`` is ``none`` or ``bn``, ``base`` the source's accuracy in [0, 1]."""
    found = results.get(f"{net}/{kind}/{budget:g}")
    if found is None or base is None:
        return None
    return Point(found["macs"], 100 * (base - found[recovery]))


def _cell(point: Point | None, budget: float) -> str:
    """Points lost; the MACs kept beside it where they miss the budget by more than a hundredth."""
    if point is None:
        return "-"
    beside = "" if abs(point.macs - budget) <= 0.01 else f" (at {point.macs:.2f})"
    return f"{point.lost:.1f}{beside}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def networks(training: dict[str, Any], exports: dict[str, Any]) -> str:
    """What was trained here."""
    rows = []
    for net in NETS:
        if net not in training and net not in exports:
            continue
        trained, exported = training.get(net, {}), exports.get(net, {})
        accuracies = [f"{100 * exported[f'{form}.accuracy']:.2f}" if f"{form}.accuracy" in exported else "-" for form in FORMS]
        norms = [str(exported.get(f"{form}.batch_norms", "-")) for form in FORMS]
        rows.append([net, str(trained.get("epochs", "-")), f"{100 * trained.get('accuracy', 0):.2f}", *accuracies, " / ".join(norms)])
    return table(["network", "epochs", "torch, %", "bn file, %", "folded file, %", "batch norms kept"], rows)


def by_recovery(results: dict[str, Any], peers: dict[str, Any], criterion: str, allocate: str, form: str) -> str:
    """Points lost by one criterion with each recovery, Torch-Pruning beside it."""
    recoveries = list(RECOVERIES)
    rows = []
    for net in NETS:
        for budget in BUDGETS:
            points = [ours(results, net, form, budget, criterion, recovery, allocate) for recovery in recoveries]
            base = results.get(f"{net}/bn", {}).get("accuracy")
            theirs = [peer(peers, base, net, budget, r, s) for s in ("uniform", "global") for r in ("none", "bn")]
            if any(points) or any(theirs):
                rows.append([net, f"{budget:g}", *(_cell(point, budget) for point in [*points, *theirs])])
    header = ["network", "MACs", *(LABELS[r] for r in recoveries)]
    return table([*header, "TP uniform", "TP uniform + BN", "TP global", "TP global + BN"], rows)


def by_criterion(results: dict[str, Any], budget: float, allocate: str, form: str) -> str:
    """Points lost at one budget, a row a network and criterion, a column a recovery."""
    names = sorted({key.split("/")[3] for key in results if key.count("/") >= 5}, key=_order)
    rows = []
    for net in NETS:
        for criterion in names:
            points = [ours(results, net, form, budget, criterion, recovery, allocate) for recovery in RECOVERIES]
            if any(points):
                rows.append([net, criterion, *(_cell(point, budget) for point in points)])
    return table(["network", "criterion", *(LABELS[r] for r in RECOVERIES)], rows)


def _order(criterion: str) -> tuple[int, str]:
    return (CRITERIA.index(criterion) if criterion in CRITERIA else len(CRITERIA), criterion)


def plot(results: dict[str, Any], peers: dict[str, Any], criterion: str, allocate: str, path: Path) -> None:
    """A panel a network: solid lines for files with batch norm, dashed ones for folded files, black for the peer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    nets = [net for net in NETS if any(key.startswith(f"{net}/") and key.count("/") > 1 for key in results)]
    figure, axes = plt.subplots(1, max(len(nets), 1), figsize=(3.4 * max(len(nets), 1), 3.6), squeeze=False)
    for axis, net in zip(axes[0], nets, strict=True):
        for form, style in zip(FORMS, ("-", "--"), strict=True):
            for recovery, label in LABELS.items():
                points = [ours(results, net, form, b, criterion, recovery, allocate) for b in BUDGETS]
                _draw(axis, points, f"{label}, {form}", color=COLOURS[recovery], linestyle=style, marker="o")
        base = results.get(f"{net}/bn", {}).get("accuracy")
        for kind, style in (("uniform", "-"), ("global", ":")):
            points = [peer(peers, base, net, b, "bn", kind) for b in BUDGETS]
            _draw(axis, points, f"Torch-Pruning {kind} + BN", color="black", linestyle=style, marker="x")
        axis.set_title(net)
        axis.set_xlabel("MACs kept")
        axis.set_yscale("symlog", linthresh=1)
        axis.set_ylim(bottom=-0.5)
        axis.set_yticks([0, 1, 3, 10, 30, 80], ["0", "1", "3", "10", "30", "80"])
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel(f"accuracy lost, points ({criterion}, {allocate})")
    handles = {label: h for axis in axes[0] for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=5, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def _draw(axis: Any, points: list[Point | None], label: str, **style: Any) -> None:
    there = [point for point in points if point is not None]
    if there:
        axis.plot([p.macs for p in there], [p.lost for p in there], label=label, linewidth=1.4, markersize=4, **style)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--criterion", default="l1")
    parser.add_argument("--allocate", default="dp", choices=ALLOCATIONS)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    results, peers = read(RESULTS), read(CACHE / "torch_pruning.json")
    print("Networks\n\n" + networks(read(CACHE / "training.json"), read(CACHE / "exports.json")))
    for form in FORMS:
        print(f"\nPoints lost, {options.criterion}, allocation {options.allocate}, {form} files\n")
        print(by_recovery(results, peers, options.criterion, options.allocate, form))
        print(f"\nPoints lost at half of the MACs, allocation {options.allocate}, {form} files\n")
        print(by_criterion(results, 0.5, options.allocate, form))
    if options.plot is not None:
        plot(results, peers, options.criterion, options.allocate, options.plot)


if __name__ == "__main__":
    main()
