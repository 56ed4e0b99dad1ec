"""The check by TensorRT-RTX: its parser and builder run without a GPU, and say what they make of a model.

They are newer than any Jetson's and know no Jetson's GPU: that a model parses and builds here says that its graph is sound
to a real TensorRT, not that an older parser takes it (the tables say that). What is built is thrown away.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx

from graphprune.backends.tensorrt.halving import to_half
from graphprune.errors import UsageError

#: Seconds after which a build is given up.
TIME_LIMIT = 600
_KERNEL = re.compile(
    r"^Name: (\S+), LayerType: \w+, Inputs: (\[.*?\]), Constants: (\[.*?\]), Outputs: (\[.*?\])(?:,|$)", re.M
)
_SIZES = re.compile(r"Dimensions: \[([\d,]*)\]")


@dataclass(frozen=True)
class Found:
    """What TensorRT-RTX said.

    Attributes
    ----------
    stage
        How far it came: ``parse``, ``build`` or ``done``.
    errors
        One line each, by node.
    kernels
        Kernels of the engine.
    pads
        Those among them that only bring a width to a multiple that the next kernel wants: ``63 -> 64``.
    bytes
        Size of the engine.
    """

    stage: str
    errors: list[str] = field(default_factory=list)
    kernels: int = 0
    pads: list[str] = field(default_factory=list)
    bytes: int = 0
    version: str = ""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Parsed and built."""
        return self.stage == "done"

    def told(self) -> str:
        """One line for people."""
        if self.ok:
            return (
                f"{self.version} parses and builds it in {self.seconds:.1f} s: {self.kernels} kernels, "
                + (
                    f"{len(self.pads)} of them only pad widths ({', '.join(dict.fromkeys(self.pads))})"
                    if self.pads
                    else "no pads"
                )
                + f", engine {self.bytes / 1e6:.1f} MB"
            )
        return f"{self.version} does not {self.stage} it"

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return {"ok": self.ok, **asdict(self)}


def installed() -> bool:
    """Whether the extra ``graphprune[trt-rtx]`` is there."""
    return importlib.util.find_spec("tensorrt_rtx") is not None


def check(
    model: str | Path,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    least: Mapping[str, Sequence[int]] | None = None,
    most: Mapping[str, Sequence[int]] | None = None,
    half: bool = False,
    engine: str | Path | None = None,
    time_limit: float = TIME_LIMIT,
) -> Found:
    """Parse and build a model, in a process of its own: the builder takes memory, and may crash.

    Parameters
    ----------
    model
        Path of an ``.onnx`` file.
    shapes
        Sizes of dynamic inputs; those left out get 1 for each dynamic axis.
    least, most
        The least and the most of them; default ``shapes``.
    half
        Convert to float16 first, inputs and outputs excepted: widths matter only there.
    engine
        Where to keep what is built: it runs on RTX GPUs, with this version of TensorRT-RTX.
    time_limit
        Seconds.

    Raises
    ------
    UsageError
        TensorRT-RTX is not installed.
    """
    if not installed():
        raise UsageError("TensorRT-RTX is not installed: pip install 'graphprune[trt-rtx]'")
    with tempfile.TemporaryDirectory(prefix="graphprune-rtx-") as folder:
        result, given = Path(folder) / "result.json", model
        if half:
            model = Path(folder) / "half.onnx"
            onnx.save(to_half(onnx.load(given)), model)
        sizes = [
            {name: list(shape) for name, shape in (one or {}).items()}
            for one in (shapes, least or shapes, most or shapes)
        ]
        task = {
            "model": str(Path(model).resolve()),
            "shapes": sizes,
            "engine": str(Path(engine).resolve()) if engine else "",
        }
        call = [sys.executable, "-m", "graphprune.backends.tensorrt_rtx", json.dumps(task), str(result)]
        try:
            done = subprocess.run(call, capture_output=True, text=True, timeout=time_limit, check=False, cwd=folder)
        except subprocess.TimeoutExpired:
            return Found("build", [f"not done after {time_limit:g} s"])
        if not result.is_file():
            words = done.stderr.strip().splitlines()
            return Found("build", [f"its process ended with {done.returncode}: {words[-1] if words else 'no words'}"])
        return Found(**json.loads(result.read_text()))


def _run(model: str, shapes: Sequence[Mapping[str, Sequence[int]]], engine: str) -> Found:
    """In the process of its own."""
    import time

    import tensorrt_rtx as trt

    started = time.monotonic()
    lines: list[str] = []

    class Logger(trt.ILogger):
        """Keeps what the builder says of its layers."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                errors.append(text)
            else:
                lines.append(text)

    errors: list[str] = []
    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    version = f"TensorRT-RTX {trt.__version__}"
    if not parser.parse_from_file(model):
        found = [parser.get_error(i) for i in range(parser.num_errors)]
        told = [f"{e.node_operator()} '{e.node_name()}': {e.desc()}" for e in found]
        return Found("parse", told or errors, version=version)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    profile = builder.create_optimization_profile()
    dynamic = False
    for i in range(network.num_inputs):
        value = network.get_input(i)
        if any(size < 0 for size in value.shape):
            dynamic = True
            ones = [max(int(size), 1) for size in value.shape]
            best, least, most = (tuple(one.get(value.name, ones)) for one in shapes)
            profile.set_shape(value.name, least, best, most)
    if dynamic:
        config.add_optimization_profile(profile)
    built = builder.build_serialized_network(network, config)
    seconds = round(time.monotonic() - started, 2)
    if built is None:
        return Found("build", errors, version=version, seconds=seconds)
    if engine:
        Path(engine).write_bytes(bytes(built))
    kernels, pads = read_kernels("\n".join(lines))
    return Found("done", errors, kernels, pads, built.nbytes, version, seconds)


def read_kernels(text: str) -> tuple[int, list[str]]:
    """Number of kernels, and the pads among them, from the builder's detailed log."""
    found = _KERNEL.findall(text)
    pads = []
    for name, inputs, constants, outputs in found:
        # One tensor joined with constants: nothing but a pad. Joins of several tensors are the network's own.
        if (
            not re.match(r"__myl_(Cast)?Conc_", name)
            or len(_SIZES.findall(inputs)) != 1
            or not _SIZES.search(constants)
        ):
            continue
        before, after = (_SIZES.findall(part)[0].split(",") for part in (inputs, outputs))
        pads += [f"{a} -> {b}" for a, b in zip(before, after, strict=False) if a != b][:1]
    return len(found), pads


if __name__ == "__main__":
    _found = _run(**json.loads(sys.argv[1]))
    Path(sys.argv[2]).write_text(json.dumps(asdict(_found)))
