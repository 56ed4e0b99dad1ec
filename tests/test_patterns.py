"""Every pattern, in every mode: pruned, judged by the independent oracle, and held to what must have been cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

import graphprune as gp
from tests import oracle
from tests.patterns import PATTERNS, Pattern
from tests.patterns.weights import unknown_custom_operator

HALF = {"rate": 0.5, "scope": "group"}
MODES: dict[str, dict[str, Any]] = {
    "half": HALF,
    "exact": {**HALF, "exact": True},
    "global": {"rate": 0.3, "scope": "global"},
    "both": {**HALF, "grain": "both"},
    "fine": {**HALF, "grain": "fine"},
}
CASES = [
    pytest.param(pattern, mode, id=f"{name}-{mode}")
    for name, pattern in PATTERNS.items()
    for mode in MODES
    if mode not in ("both", "fine") or pattern.families
]


def prune(pattern: Pattern, options: dict[str, Any], folder: Path) -> tuple[onnx.ModelProto, Path, dict[str, Any]]:
    """The source, the written cut and the written plan."""
    source = pattern.build()
    gp.prune(source, passes=["l1"], seed=0, **options).save(folder / "out.onnx")
    return source, folder / "out.onnx", json.loads((folder / "out.plan.json").read_text())


def cut_inexact(plan: dict[str, Any]) -> bool:
    return any(g["kept"] < g["units"] and not g["exact"] for g in plan["groups"])


def largest_coarse_group(plan: dict[str, Any]) -> int:
    """Units of the largest group that every grain but fine may cut into."""
    return max((g["units"] for g in plan["groups"] if g["kind"] != "lane"), default=0)


@pytest.mark.parametrize(("pattern", "mode"), CASES)
def test_pattern(pattern: Pattern, mode: str, tmp_path: Path) -> None:
    options = MODES[mode]
    exact = bool(options.get("exact"))
    if pattern.nothing:
        with pytest.raises(gp.GraphPruneError, match="nothing is prunable"):
            prune(pattern, options, tmp_path)
        return
    source, cut, plan = prune(pattern, options, tmp_path)
    assert plan["verify"]["passed"]
    inexact = cut_inexact(plan)
    if exact or mode == "half":
        assert not inexact or (pattern.inexact and not exact), "cut inexact units where every one should be exact"

    report = oracle.check(
        source,
        cut,
        plan,
        rate=options["rate"] if options["scope"] == "group" and "grain" not in options else None,
        exact=exact,
        masked=not inexact,
        tolerance=pattern.tolerance,
        checker=pattern.checker,
        dims=pattern.dims,
        ranges=pattern.ranges,
        feeds=pattern.feeds,
    )
    assert not report.problems, "\n".join(report.problems)
    if largest_coarse_group(plan) * options["rate"] >= 1:
        assert report.cut_axes
    if report.cut_axes and not inexact:
        assert report.effect > 0, "masking changed no output: the comparison proves nothing"

    if mode == "half":
        assert gp.verify(source, cut)["passed"]
    kept = oracle.widths(plan)
    shapes = {name: entry["shape"] for name, entry in plan["tensors"].items()}
    if mode in ("half", "exact"):
        missing = [
            f"{name}:{axis}"
            for wanted in ([pattern.cut] if exact else [pattern.cut, pattern.inexact_cut])
            for name, axes in wanted.items()
            for axis in axes
            if not kept[name, axis] or kept[name, axis] == shapes[name][axis]
        ]
        assert not missing, f"not cut: {missing}"
    if mode == "half":
        for word, width in pattern.widths.items():
            name, _, axis = word.rpartition(":")
            assert kept[name, int(axis)] == width, f"{word} keeps {kept[name, int(axis)]}, not {width}"
    frozen = {(f["tensor"], f["axis"]) for f in plan["frozen"]}
    for name, axes in pattern.frozen.items():
        for axis in axes:
            assert (name, axis) in frozen
            assert not kept[name, axis] or kept[name, axis] == shapes[name][axis]


def test_unknown_operator_is_refused_and_explained() -> None:
    source = unknown_custom_operator()
    with pytest.raises(gp.GraphPruneError):
        gp.prune(source, rate=0.5)
    coupling = gp.inspect(source).coupling
    assert coupling is not None
    reasons = [f"{entry}" for entry in coupling.frozen]
    assert any("Wobble" in reason for reason in reasons)


def test_there_are_enough_patterns() -> None:
    assert len(PATTERNS) >= 120
    assert sum(bool(p.cuts) for p in PATTERNS.values()) >= 110
