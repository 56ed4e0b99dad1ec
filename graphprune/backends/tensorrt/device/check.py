#!/usr/bin/env python3
"""Build the engine of this folder, time it, check its outputs, and write result.json. Needs trtexec and Python 3.6."""

import argparse
import array
import hashlib
import json
import math
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

HERE = Path(__file__).resolve().parent
RESULT = "result.json"
#: How values are stored, by element type: a type of Python's array module.
CODES = {"float32": "f", "float64": "d", "int32": "i", "int64": "q", "int8": "b", "uint8": "B", "bool": "B"}


def find_trtexec(given: Optional[str]) -> str:
    """trtexec: as given, of the environment, on the path, or where JetPack puts it."""
    for place in (given, os.environ.get("TRTEXEC"), shutil.which("trtexec"), "/usr/src/tensorrt/bin/trtexec"):
        if place and Path(place).is_file():
            return place
    sys.exit("error: trtexec was not found; it comes with JetPack (libnvinfer-bin): give --trtexec PATH")


def run(trtexec: str, arguments: List[str], log: Path) -> Tuple[bool, float, str]:
    """Run trtexec in this folder; whether it worked, its seconds, its last words."""
    started = time.time()
    with log.open("w") as file:
        file.write(" ".join([trtexec] + arguments) + "\n")
        file.flush()
        code = subprocess.call([trtexec] + arguments, cwd=str(HERE), stdout=file, stderr=subprocess.STDOUT)
    text = log.read_text(errors="replace")
    errors = [line.strip() for line in text.splitlines() if "[E]" in line]
    return code == 0, round(time.time() - started, 3), "; ".join(errors[:5]) or text.strip()[-300:]


def read_json(path: Path) -> Any:
    """JSON as trtexec writes it: numbers that are not finite are written as C++ prints them."""
    text = path.read_text(errors="replace")
    # Names of layers and tensors stand in quotes and are left alone.
    parts = re.split(r'("(?:[^"\\]|\\.)*")', text)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"-?\bnan\b", "NaN", parts[i])
        parts[i] = re.sub(r"\binf\b", "Infinity", parts[i])
    return json.loads("".join(parts))


def spread(values: List[float]) -> Dict[str, float]:
    """Statistics of times in milliseconds."""
    ordered = sorted(values)
    n = len(ordered)

    def at(share: float) -> float:
        return ordered[min(n - 1, int(share * n))]

    median = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    return {
        "min": ordered[0], "p5": at(0.05), "median": median, "mean": sum(ordered) / n, "p95": at(0.95), "p99": at(0.99),
        "max": ordered[-1],
    }  # fmt: skip


def read_times(path: Path) -> Dict[str, Any]:
    """Medians and spread of exportTimes."""
    rows = read_json(path)
    if not rows:
        return {"count": 0}
    found: Dict[str, Any] = {"count": len(rows)}
    for key, name in (("computeMs", "compute_ms"), ("latencyMs", "latency_ms")):
        values = [float(row[key]) for row in rows if key in row]
        if values:
            found[name] = spread(values)
    return found


def read_profile(path: Path) -> List[Dict[str, Any]]:
    """Layers of exportProfile, without its first entry, which counts runs."""
    keys = ("name", "averageMs", "medianMs", "percentage")
    return [{key: row[key] for key in keys if key in row} for row in read_json(path) if "name" in row]


def read_reference(entry: Dict[str, Any]) -> List[float]:
    """A stored output."""
    data = (HERE / str(entry["file"])).read_bytes()
    if entry["dtype"] == "float16":
        return [float(value) for value in struct.unpack("<%de" % (len(data) // 2), data)]
    values = array.array(CODES[str(entry["dtype"])])
    values.frombytes(data)
    if sys.byteorder == "big":
        values.byteswap()
    return [float(value) for value in values]


def compare(entry: Dict[str, Any], found: Optional[List[float]], tolerance: float) -> Dict[str, Any]:
    """How far an output is from its reference."""
    row: Dict[str, Any] = {"name": entry["name"], "ok": False}
    if found is None:
        row["problem"] = "trtexec gave no such output"
        return row
    wanted = read_reference(entry)
    if len(found) != len(wanted):
        row["problem"] = "%d values, the reference has %d" % (len(found), len(wanted))
        return row
    finite = [(a, b) for a, b in zip(wanted, found) if math.isfinite(a)]
    bad = sum(1 for a, b in finite if not math.isfinite(b))
    if bad:
        row["problem"] = "%d values are not finite" % bad
        return row
    largest = max([abs(a) for a, _ in finite] or [0.0])
    difference = max([abs(a - b) for a, b in finite] or [0.0])
    norms = math.sqrt(sum(a * a for a, _ in finite)) * math.sqrt(sum(b * b for _, b in finite))
    row["max_abs"] = difference
    row["max_rel"] = difference / largest if largest else difference
    row["cosine"] = sum(a * b for a, b in finite) / norms if norms else 1.0
    row["ok"] = row["max_rel"] <= tolerance or (row["cosine"] >= 1 - tolerance / 4 and row["max_rel"] <= 4 * tolerance)
    return row


def first_line(path: str) -> str:
    """First line of a system file, empty where there is none."""
    try:
        return Path(path).read_text(errors="replace").strip("\0\n ").splitlines()[0]
    except (OSError, IndexError):
        return ""


def power_mode() -> str:
    """What nvpmodel says."""
    tool = shutil.which("nvpmodel")
    if tool is None:
        return ""
    try:
        out = subprocess.check_output([tool, "-q"], stderr=subprocess.STDOUT, universal_newlines=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return " ".join(out.split())


def engine_is_ours(bundle: Dict[str, Any]) -> bool:
    """Whether the engine that lies here was built from this model with these options."""
    stamp = HERE / "model.engine.stamp"
    return (HERE / "model.engine").is_file() and stamp.is_file() and stamp.read_text() == stamp_of(bundle)


def stamp_of(bundle: Dict[str, Any]) -> str:
    """What an engine depends on."""
    text = json.dumps([bundle["model"]["sha256"], bundle["commands"]["build"], first_line("/etc/nv_tegra_release")])
    return hashlib.sha256(text.encode()).hexdigest()


def check_files(bundle: Dict[str, Any]) -> None:
    """End where the model did not arrive whole."""
    for entry in [bundle["model"]] + bundle["model"].get("data", []):
        digest = hashlib.sha256()
        with (HERE / entry["file"]).open("rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
        if digest.hexdigest() != entry["sha256"]:
            sys.exit("error: %s is not the file this bundle was made with: copy the folder again" % entry["file"])


def main(argv: Optional[List[str]] = None) -> int:
    """Build, time, profile, check; 0 where all of it worked and the outputs agree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trtexec", help="where it is, if not on the path or in /usr/src/tensorrt/bin")
    parser.add_argument("--rebuild", action="store_true", help="build even where an engine of this model is there")
    parser.add_argument("--build-only", action="store_true")
    parser.add_argument("--seconds", type=float, help="how long to time")
    options = parser.parse_args(argv)
    bundle = json.loads((HERE / "bundle.json").read_text())
    trtexec = find_trtexec(options.trtexec)
    check_files(bundle)
    commands = bundle["commands"]
    result: Dict[str, Any] = {
        "schema": 1, "model": bundle["model"], "target": bundle["target"], "trtexec": trtexec, "passed": False,
        "device": {"model": first_line("/proc/device-tree/model"), "l4t": first_line("/etc/nv_tegra_release"),
                   "power": power_mode(), "machine": platform.machine(), "python": platform.python_version()},
    }  # fmt: skip
    ok = True
    if options.rebuild or not engine_is_ours(bundle):
        print("building the engine; this takes minutes on a small device (log: build.log)")
        ok, seconds, words = run(trtexec, commands["build"], HERE / "build.log")
        result["build"] = {"ok": ok, "seconds": seconds, "command": commands["build"]}
        if ok:
            (HERE / "model.engine.stamp").write_text(stamp_of(bundle))
        else:
            result["build"]["problem"] = words
    if ok and not options.build_only:
        ok = measure(trtexec, bundle, options.seconds, result)
    result["passed"] = ok
    temporary = HERE / (RESULT + ".tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.rename(HERE / RESULT)
    report(result)
    return 0 if ok else 1


def measure(trtexec: str, bundle: Dict[str, Any], seconds: Optional[float], result: Dict[str, Any]) -> bool:
    """Time, profile and check; whether all of it worked."""
    ok = True
    for step in ("time", "profile", "outputs"):
        arguments = [str(a) for a in bundle["commands"][step]]
        if seconds is not None and step == "time":
            arguments = [("--duration=%g" % seconds) if a.startswith("--duration=") else a for a in arguments]
        worked, _, words = run(trtexec, arguments, HERE / (step + ".log"))
        if not worked:
            result.setdefault("problems", []).append("%s: %s" % (step, words))
            ok = False
        elif step == "time":
            result["times"] = read_times(HERE / "times.json")
        elif step == "profile":
            result["profile"] = read_profile(HERE / "profile.json")
        else:
            found = {row["name"]: [float(v) for v in row["values"]] for row in read_json(HERE / "outputs.json")}
            rows = [compare(entry, found.get(entry["name"]), bundle["tolerance"]) for entry in bundle["outputs"]]
            result["outputs"] = rows
            ok = ok and all(row["ok"] for row in rows)
    return ok


def report(result: Dict[str, Any]) -> None:
    """What a person reads."""
    if result.get("build", {}).get("problem"):
        print("the engine was not built: " + result["build"]["problem"])
    times = result.get("times", {}).get("compute_ms")
    if times:
        print(
            "median %.3f ms, %.1f a second (95 %% within %.3f ms)"
            % (times["median"], 1000 / times["median"], times["p95"])
        )
    for row in result.get("outputs", []):
        said = row.get("problem") or "largest difference %.2g of its maximum" % row["max_rel"]
        print("%s %s: %s" % ("ok  " if row["ok"] else "FAIL", row["name"], said))
    for text in result.get("problems", []):
        print("problem: " + text)
    print("written: " + str(HERE / RESULT))


if __name__ == "__main__":
    sys.exit(main())
