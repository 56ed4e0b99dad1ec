"""Command line of the zoo: ``python -m benchmarks.zoo list | build``."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.zoo.registry import ENTRIES, Entry

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "benchmarks" / ".cache" / "zoo"
TIMEOUT = 600
FIRST = (
    "vgg16", "resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0", "densenet121", "shufflenet_v2",
    "resnext50",
    "regnet", "inception_v3", "res2net", "yolo_c3", "yolo_c2f", "unet", "vit", "swin", "bert", "llama",
    "qwen2",
)  # fmt: skip


def variants(entry: Entry, exporter: str | None, dynamic: bool) -> Iterator[tuple[str, bool, str]]:
    """Yield ``(exporter, dynamic, suffix)`` for each file to write of `entry`.

    Torchscript files leave the declared axes open, as real files of that exporter mostly do.
    """
    wanted = {
        "both": ("dynamo", "torchscript"),
        None: ("dynamo", "torchscript") if entry.torchscript else ("dynamo",),
    }
    for kind in wanted.get(exporter, (exporter,)):
        if kind == "torchscript":
            yield kind, True, ".ts"
        else:
            yield "dynamo", dynamic, ".dyn" if dynamic else ""


def run_worker(name: str, path: Path, exporter: str, dynamic: bool) -> dict[str, Any]:
    """Export in a process of its own: a crash, a leak or a hang of one export leaves the others alone."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.zoo",
        "one",
        name,
        str(path),
        exporter,
        "1" if dynamic else "0",
    ]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"no result after {TIMEOUT} s"}
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("{"):
            return dict(json.loads(line))
    last = done.stderr.strip().splitlines()[-1:] or ["no message"]
    return {"error": f"worker ended with code {done.returncode}: {last[0]}"}


def build(args: argparse.Namespace) -> int:
    """Write the files that were asked for, print a table, return 1 if any failed."""
    unknown = [name for name in args.names if name not in ENTRIES]
    if unknown:
        print(
            f"no zoo entry named {', '.join(unknown)}; `python -m benchmarks.zoo list` names them",
            file=sys.stderr,
        )
        return 2
    names = args.names or sorted(
        (n for n, e in ENTRIES.items() if args.family in (None, e.family)),
        key=lambda n: FIRST.index(n) if n in FIRST else len(FIRST),
    )
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, dict[str, Any]]] = []
    for name in names:
        for exporter, dynamic, suffix in variants(ENTRIES[name], args.exporter, args.dynamic):
            path = args.out / f"{name}{suffix}.onnx"
            if path.exists() and not args.force:
                continue
            facts = run_worker(name, path, exporter, dynamic)
            rows.append((path.name, facts))
            if "error" in facts:
                print(f"{path.name}: FAILED: {facts['error']}", flush=True)
            else:
                print(
                    f"{path.name}: {facts['mib']} MiB, {facts['nodes']} nodes, {facts['seconds']} s",
                    flush=True,
                )
                record(args.out / "index.json", {**facts, "name": name, "family": ENTRIES[name].family,
                                                 "exporter": exporter, "dynamic": dynamic})  # fmt: skip
    print(f"\n{'file':34} {'MiB':>8} {'nodes':>6} {'s':>6}  result")
    for file, facts in rows:
        if "error" in facts:
            print(f"{file:34} {'-':>8} {'-':>6} {'-':>6}  {facts['error']}")
        else:
            print(f"{file:34} {facts['mib']:8.2f} {facts['nodes']:6d} {facts['seconds']:6.1f}  ok")
    failed = sum("error" in facts for _, facts in rows)
    print(f"{len(rows) - failed} written, {failed} failed, in {args.out}")
    return 1 if failed else 0


def record(index: Path, facts: dict[str, Any]) -> None:
    """Put `facts` into the index under the file's name."""
    table = json.loads(index.read_text()) if index.exists() else {}
    table[facts["file"]] = facts
    part = index.with_suffix(".part")
    part.write_text(json.dumps(table, indent=1))
    part.replace(index)


def main() -> int:
    if sys.argv[1:2] == ["one"]:
        from benchmarks.zoo import export

        name, out, exporter, dynamic = sys.argv[2:6]
        return export.main(name, out, exporter, dynamic == "1")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="every entry with its family and default exporters")
    make = commands.add_parser("build", help="export entries to ONNX files and check them")
    make.add_argument("names", nargs="*", metavar="NAME", help="entries to build (all)")
    make.add_argument(
        "--exporter", choices=("dynamo", "torchscript", "both"), help="instead of the entry's own list"
    )
    make.add_argument("--dynamic", action="store_true", help="dynamo files with open axes, as NAME.dyn.onnx")
    make.add_argument("--family", choices=sorted({e.family for e in ENTRIES.values()}))
    make.add_argument("--force", action="store_true", help="rebuild files that exist")
    make.add_argument("--out", type=Path, default=CACHE)
    args = parser.parse_args()
    if args.command == "list":
        for entry in ENTRIES.values():
            print(
                f"{entry.name:28} {entry.family:9} {'dynamo, torchscript' if entry.torchscript else 'dynamo'}"
            )
        return 0
    return build(args)


if __name__ == "__main__":
    sys.exit(main())
