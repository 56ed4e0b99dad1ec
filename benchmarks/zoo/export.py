"""Export one entry to a file and prove that the file runs."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import logging
import os
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.zoo.initialise import randomise, settle_statistics
from benchmarks.zoo.registry import Axes, Built, Entry

TORCHSCRIPT_OPSET = 13
CONSTANT = 1e-7


class BadExport(Exception):
    """The written file does not load, does not run, or says nothing."""


def prepare(entry: Entry) -> Built:
    """Build `entry` with its parameters drawn; the draw depends on the name alone."""
    torch.manual_seed(zlib.crc32(entry.name.encode()))
    built = entry.build()
    built.module.eval()
    if entry.sane_init:
        randomise(built.module)
    settle_statistics(built.module, built.inputs)
    return built


def export(entry: Entry, path: Path, exporter: str, dynamic: bool) -> dict[str, Any]:
    """Write `entry` to `path` with the example inputs beside it (``<name>.npz``).

    Parameters
    ----------
    exporter : {"dynamo", "torchscript"}
    dynamic : bool
        Leave open the axes that the entry declares.

    Returns
    -------
    dict
        ``file, seconds, mib, opset, nodes, ops, outputs`` of the written file.

    Raises
    ------
    BadExport
        Nothing is left at `path` then.
    """
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    start = time.perf_counter()
    built = prepare(entry)
    part = path.with_name(path.name + ".part")
    axes = built.dynamic if dynamic else None
    try:
        with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            if exporter == "dynamo":
                _dynamo(built, part, axes)
            else:
                _torchscript(built, part, axes, entry.keep_norm)
        feeds = {name: x.numpy() for name, x in zip(built.input_names, built.inputs, strict=True)}
        facts = check(part, feeds)
        if axes:
            check(part, _doubled(feeds, axes))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    np.savez(path.with_name(entry.name + ".npz"), **feeds)  # type: ignore[arg-type]
    seconds = round(time.perf_counter() - start, 1)
    return {"file": path.name, "seconds": seconds, "mib": round(path.stat().st_size / 2**20, 2), **facts}


def _dynamo(built: Built, path: Path, axes: Axes | None) -> None:
    shapes = None
    if axes is not None:
        shapes = tuple(
            dict.fromkeys(axes.get(name, {}), torch.export.Dim.DYNAMIC) or None for name in built.input_names
        )
        parameters = inspect.signature(built.module.forward).parameters.values()
        if any(p.kind is p.VAR_POSITIONAL for p in parameters):
            shapes = (shapes,)  # torch.export takes *args as one argument
    inputs = built.inputs
    if axes is not None:  # an axis of size 1 would be taken for a constant by torch.export
        arrays = _doubled(
            {n: x.numpy() for n, x in zip(built.input_names, inputs, strict=True)}, axes, batch_only=True
        )
        inputs = tuple(torch.from_numpy(arrays[name]) for name in built.input_names)
    torch.onnx.export(
        built.module, inputs, path, dynamo=True, input_names=built.input_names, dynamic_shapes=shapes,
        external_data=False, verbose=False,
    )  # fmt: skip


def _torchscript(built: Built, path: Path, axes: Axes | None, keep_norm: bool) -> None:
    mode = torch.onnx.TrainingMode
    torch.onnx.export(
        built.module, built.inputs, path, dynamo=False, input_names=built.input_names, dynamic_axes=axes,
        opset_version=TORCHSCRIPT_OPSET, training=mode.PRESERVE if keep_norm else mode.EVAL,
    )  # fmt: skip


def _doubled(feeds: dict[str, np.ndarray], axes: Axes, *, batch_only: bool = False) -> dict[str, np.ndarray]:
    """Repeat along open axes: a file that baked a size in fails on the result."""
    larger = {}
    for name, x in feeds.items():
        for axis, symbol in axes.get(name, {}).items():
            if symbol == "batch" or not batch_only:
                x = np.repeat(x, 2, axis)
        larger[name] = x
    return larger


def check(path: Path, feeds: dict[str, np.ndarray]) -> dict[str, Any]:
    """Load `path` in ONNX Runtime, run it; outputs must be finite and must vary."""
    import onnx
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
        known = {i.name for i in session.get_inputs()}
        outputs = session.run(None, {k: v for k, v in feeds.items() if k in known})
    except Exception as error:
        raise BadExport(f"ONNX Runtime: {one_line(error)}") from error
    missing = sorted(set(feeds) - known)
    if missing:
        raise BadExport(f"inputs {missing} are not in the exported graph: drop them from the builder")
    for info, value in zip(session.get_outputs(), outputs, strict=True):
        if value.dtype.kind != "f":
            continue
        if not np.isfinite(value).all():
            raise BadExport(f"output {info.name!r} has values that are not finite")
        if value.size > 1 and float(value.std()) <= CONSTANT * max(1.0, float(np.abs(value).max())):
            raise BadExport(f"output {info.name!r} of shape {value.shape} is constant")
    model = onnx.load(os.fspath(path), load_external_data=False)
    ops = sorted({node.op_type for node in model.graph.node})
    return {
        "opset": {o.domain or "ai.onnx": o.version for o in model.opset_import},
        "nodes": len(model.graph.node),
        "ops": ops,
        "outputs": {o.name: list(v.shape) for o, v in zip(session.get_outputs(), outputs, strict=True)},
    }


def one_line(error: BaseException, limit: int = 160) -> str:
    """First telling line of an error's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [
        x for x in lines if not x.startswith(("Failed to export", "-", "#", "This is step", "["))
    ] or lines
    return f"{type(error).__name__}: {telling[0] if telling else '(no message)'}"[:limit]


def main(name: str, out: str, exporter: str, dynamic: bool) -> int:
    """Body of one worker process: exports, prints one JSON line, returns the exit code."""
    from benchmarks.zoo import ENTRIES

    try:
        facts = export(ENTRIES[name], Path(out), exporter, dynamic)
    except Exception as error:
        cause = error
        while cause.__cause__ is not None and not isinstance(cause, BadExport):
            cause = cause.__cause__  # type: ignore[assignment]
        print(json.dumps({"error": one_line(cause)}))
        return 1
    print(json.dumps(facts))
    return 0
