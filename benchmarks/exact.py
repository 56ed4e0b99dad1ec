"""Every cut judged by the independent oracle of the tests, on real files: ``python -m benchmarks.exact [FILE.onnx ...]``.

Without files: all of the zoo (``python -m benchmarks.zoo build``) and rapidocr-onnxruntime's three, where installed. Each file
is cut in every mode of ``--modes`` by graphprune; then source, cut and plan go to ``tests/oracle.py``, which imports
nothing of graphprune. Results go to ``.cache/exact.json`` one by one: a sweep that was stopped goes on; ``--force`` starts anew.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import graphprune as gp
from tests.oracle import check

CACHE = Path(__file__).resolve().parent / ".cache"
#: Options of each mode.
MODES: dict[str, dict[str, Any]] = {
    "group": {"rate": 0.5, "scope": "group"},
    "global": {"rate": 0.4, "scope": "global"},
    "both": {"rate": 0.3, "scope": "group", "grain": "both"},
    "exact": {"rate": 0.5, "scope": "group", "exact": True},
}


def files() -> list[Path]:
    """The files that are judged by default."""
    found = sorted((CACHE / "zoo").glob("*.onnx"))
    spec = importlib.util.find_spec("rapidocr_onnxruntime")
    if spec is not None and spec.origin is not None:
        found += sorted(Path(spec.origin).parent.glob("models/*.onnx"))
    return found


def judge(path: Path, mode: str, folder: Path) -> dict[str, Any]:
    """Cut one file, and what the oracle says of it."""
    started = time.perf_counter()
    options = MODES[mode]
    try:
        result = gp.prune(path, passes=["l1"], **options)
    except gp.GraphPruneError as error:
        return {"refused": str(error)[:300]}
    cut = folder / "cut.onnx"
    result.save(cut)
    stored = path.with_name(path.name.split(".", maxsplit=1)[0] + ".npz")
    given: dict[str, Any] = {}
    if stored.is_file():
        with np.load(stored) as arrays:
            given = dict(arrays)

    def asked(own: bool) -> Any:
        return check(
            path, cut, result.plan.to_json(), exact=bool(options.get("exact")),
            feeds=(lambda _rng, _n: given) if own else None,
            # What norms look across is not zero in a masked source: there only the program's own proof speaks.
            masked=not result.plan.verify["inexact_units"],
        )  # fmt: skip

    # Files with open axes are judged at sizes of the oracle's, which not every network can take (strides that must divide).
    try:
        report = asked(own=bool(given) and path.name.count(".") == 1)
    except Exception:
        if not given:
            raise
        report = asked(own=True)
    return {
        "error": report.max_error, "problems": report.problems[:5], "effect": report.effect, "axes": report.cut_axes,
        "macs": result.plan.after["macs"] / max(result.plan.before["macs"], 1),
        "seconds": round(time.perf_counter() - started, 1),
    }  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--force", action="store_true")
    options = parser.parse_args()
    store = CACHE / "exact.json"
    found: dict[str, Any] = json.loads(store.read_text()) if store.is_file() and not options.force else {}
    for path in options.files or files():
        for mode in options.modes:
            key = f"{path.name}/{mode}"
            if key in found:
                continue
            with tempfile.TemporaryDirectory() as folder:
                entry = judge(path, mode, Path(folder))
            found[key] = entry
            partial = store.with_suffix(".part")
            partial.write_text(json.dumps(found, indent=1))
            partial.replace(store)
            if entry.get("problems") or "refused" in entry:
                print(key, json.dumps(entry), flush=True)
    judged = [entry for entry in found.values() if "error" in entry]
    bad = sum(bool(entry["problems"]) for entry in judged)
    worst = max((entry["error"] for entry in judged), default=0.0)
    print(f"{len(judged)} cuts judged, {bad} with problems, {len(found) - len(judged)} refused; largest error {worst:.1e}")


if __name__ == "__main__":
    main()
