"""The torch backend on real files: ``python -m benchmarks.torch_backend [FILE.onnx ...]``.

Without files: all of the zoo (``python -m benchmarks.zoo build``) and rapidocr-onnxruntime's three, where installed. Every
file becomes a torch module, which runs on the file's example inputs (files with open axes also with every such axis doubled) and is
compared with ONNX Runtime as it comes: the largest difference of any output over that output's largest magnitude. Where that is above 3e-5,
the module in double precision tells how far each of the two is from the exact result. One backward pass tells how many
parameters get a gradient. Results go to ``.cache/torch_backend.json`` one by one: a sweep that was stopped
goes on; ``--force`` starts anew; ``--table`` prints what there is as Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from PIL import Image, ImageDraw, ImageFont

from benchmarks.exact import CACHE, files
from graphprune.backends.torch import to_module
from graphprune.errors import GraphPruneError
from graphprune.frontends.onnx import load

STORE = CACHE / "torch_backend.json"
LIMIT, CLOSE = 1e-4, 3e-5
#: Heights that are tried for images of files without example inputs.
HEIGHTS = (160, 48)


def runner(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def examples(path: Path, session: ort.InferenceSession) -> dict[str, np.ndarray]:
    """The example inputs beside a file, else images of text."""
    stored = path.with_name(path.name.split(".", maxsplit=1)[0] + ".npz")
    if stored.is_file():
        with np.load(stored) as arrays:
            return {value.name: arrays[value.name] for value in session.get_inputs()}
    feeds = {}
    for height in HEIGHTS:
        sizes = (2, 3, height, 320)
        for value in session.get_inputs():
            feeds[value.name] = written(*(s if isinstance(s, int) else sizes[axis] for axis, s in enumerate(value.shape)))
        with contextlib.suppress(Exception):  # some files take one height only, and leave it open all the same
            session.run(None, feeds)
            break
    return feeds


def written(count: int, channels: int, height: int, width: int) -> np.ndarray:
    """Lines of text as image models take them: noise would leave a text detector's output at 1e-6 all over."""
    image = Image.new("L", (width, height), 255)
    for line in range(max(height // 40, 1)):
        ImageDraw.Draw(image).text((8, 8 + 40 * line), "Graph 2041 prune", fill=20, font=ImageFont.load_default(26))
    pixels = np.asarray(image, np.float32) / 127.5 - 1
    return np.broadcast_to(pixels, (count, channels, height, width)).copy()


def doubled(
    session: ort.InferenceSession, feeds: dict[str, np.ndarray], axes: tuple[int, ...]
) -> dict[str, np.ndarray] | None:
    """The same inputs with every open axis among ``axes`` twice as long; None where none is open."""
    result, any_open = {}, False
    for value in session.get_inputs():
        array = feeds[value.name]
        for axis, size in enumerate(value.shape):
            if not isinstance(size, int) and axis in axes:
                array, any_open = np.concatenate([array, array], axis), True
        result[value.name] = array
    return result if any_open else None


def difference(want: list[Any], got: Any) -> float:
    got = [got] if isinstance(got, torch.Tensor) else list(got)
    worst = 0.0
    for a, b in zip(want, got, strict=True):
        b = b.detach().numpy()
        if a.shape != b.shape or a.dtype != b.dtype:
            raise ValueError(f"{a.dtype}{a.shape} in ONNX Runtime, {b.dtype}{b.shape} in torch")
        if a.size:
            a, b = a.astype(np.float64), b.astype(np.float64)
            finite = np.isfinite(a)
            if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
                return float("inf")
            scale = float(np.abs(a[finite]).max(initial=0)) or 1.0
            worst = max(worst, float(np.abs(a - b)[finite].max(initial=0)) / scale)
    return worst


def judge(path: Path) -> dict[str, Any]:
    """Build one file's module and compare it."""
    session = runner(path)
    feeds = examples(path, session)
    start = time.perf_counter()
    try:
        module = to_module(load(path).model)
    except GraphPruneError as error:
        return {"refused": str(error)[:300]}
    row: dict[str, Any] = {"build": round(time.perf_counter() - start, 2), "nodes": len(module.graph.nodes)}
    named = dict(module.named_parameters())
    row["parameters"] = len(named)
    try:
        inputs = [torch.from_numpy(np.ascontiguousarray(array)) for array in feeds.values()]
        start = time.perf_counter()
        want = session.run(None, feeds)
        row["ort"] = round(time.perf_counter() - start, 3)
        with torch.no_grad():
            start = time.perf_counter()
            got = module(*inputs)
            row["torch"] = round(time.perf_counter() - start, 3)
        row["error"] = difference(want, got)
        if row["error"] > CLOSE:
            exact = to_module(load(path).model).double()
            with torch.no_grad():
                best = exact(*[x.double() if x.is_floating_point() else x for x in inputs])
            numbers = [y.numpy() for y in (best if isinstance(best, tuple) else (best,))]
            row["ort_exact"] = difference([y.astype(a.dtype) for y, a in zip(numbers, want, strict=True)], [torch.from_numpy(a) for a in want])
            row["torch_exact"] = difference([y.astype(a.dtype) for y, a in zip(numbers, want, strict=True)], got)
        for axes in (tuple(range(9)), (0, 3), (0,)):  # fewer, where ONNX Runtime itself cannot run the file at these sizes
            larger = doubled(session, feeds, axes)
            if larger is None:
                break
            try:
                want = session.run(None, larger)
            except Exception:
                continue
            with torch.no_grad():
                row["doubled"] = difference(want, module(*[torch.from_numpy(a) for a in larger.values()]))
            break
        got = module(*inputs)
        parts = [y for y in (got if isinstance(got, tuple) else (got,)) if y.requires_grad]
        if parts:
            torch.stack([y.double().square().mean() for y in parts]).sum().backward()
        row["trained"] = sum(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in named.values())
    except Exception as error:  # whatever goes wrong is a result
        row["failed"] = f"{type(error).__name__}: {str(error)[:300]}"
    return row


def passed(row: dict[str, Any]) -> bool:
    return "failed" not in row and row.get("error", 1.0) <= LIMIT and (row.get("doubled") or 0.0) <= LIMIT


def summary(found: dict[str, dict[str, Any]]) -> str:
    rows = list(found.values())
    good = sum(passed(row) for row in rows)
    opened = [row["doubled"] for row in rows if row.get("doubled") is not None]
    worst = max(max(row.get("error", 0.0), row.get("doubled") or 0.0) for row in rows)
    grads = sum(row.get("trained", 0) for row in rows), sum(row.get("parameters", 0) for row in rows)
    return (
        f"{good} of {len(rows)} files within {LIMIT:g} (largest {worst:.1e}), {len(opened)} of them also with open axes doubled; "
        f"{sum('refused' in row for row in rows)} refused; {grads[0]} of {grads[1]} parameters get a finite gradient"
    )


def table(found: dict[str, dict[str, Any]]) -> str:
    lines = ["| file | difference | of it ORT / torch from exact | open axes doubled | fx nodes | parameters (with gradient) | build s | ORT s | torch s |", "|---|---|---|---|---|---|---|---|---|"]
    for name, row in sorted(found.items()):
        if "error" not in row:
            lines.append(f"| {name} | {row.get('refused') or row.get('failed')} | | | | | | | |")
            continue
        more = f"{row['doubled']:.1e}" if row.get("doubled") is not None else ""
        exact = f"{row['ort_exact']:.1e} / {row['torch_exact']:.1e}" if "ort_exact" in row else ""
        lines.append(
            f"| {name} | {row['error']:.1e} | {exact} | {more} | {row['nodes']} | {row['parameters']} ({row.get('trained', 'failed')}) | "
            f"{row['build']} | {row['ort']} | {row['torch']} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--force", action="store_true")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(STORE.read_text()) if STORE.is_file() and not options.force else {}
    if not options.table:
        for path in options.files or files():
            if path.name in found and not options.files:
                continue
            row = found[path.name] = judge(path)
            part = STORE.with_suffix(".part")
            part.write_text(json.dumps(found, indent=1))
            part.replace(STORE)
            if not passed(row):
                print(path.name, json.dumps(row), flush=True)
    else:
        print(table(found))
    print(summary(found))


if __name__ == "__main__":
    main()
