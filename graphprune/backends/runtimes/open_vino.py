"""OpenVINO on the CPU (extra ``graphprune[openvino]``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from graphprune.backends.runtimes.base import Feed, LayerTime
from graphprune.errors import ModelError, UsageError

#: Runs of a compiled model that are not counted, and those that are before it is compiled anew.
_WARM, _RUNS = 1, 4
#: Share of the runs that are faster than what a step costs undisturbed.
_QUICK = 0.25
#: A node whose bias became a step of its own keeps its name with this behind it.
_SPLIT = "/WithoutBiases"
#: What a step of the compiled model tells of the nodes that it does.
_OF = "originalLayersNames"
#: Steps that only change how a tensor lies in memory.
_LAYOUT = frozenset({"Reorder"})
#: Entries of a profile that do nothing.
_IDLE = frozenset({"Parameter", "Result", "Constant", "Input", "Output"})


class OpenVinoEngine:
    """A compiled model with one request."""

    def __init__(self, request: Any) -> None:
        self._request = request

    def run(self, feed: Feed) -> None:
        self._request.infer(dict(feed))

    def close(self) -> None:
        self._request = None


class OpenVino:
    """OpenVINO's CPU plug-in, for latency, in float32: other types would compare roundings, not models."""

    name = "openvino"

    def __init__(self) -> None:
        try:
            import openvino
        except ImportError as error:
            raise UsageError("--runtime openvino: it is not installed; pip install 'graphprune[openvino]'") from error
        self._openvino: Any = openvino
        self._core = openvino.Core()

    @property
    def version(self) -> str:
        return str(self._openvino.__version__).split("-")[0]

    @property
    def device(self) -> str:
        return "cpu"

    def load(self, model: bytes | Path, threads: int) -> OpenVinoEngine:
        return OpenVinoEngine(self._compile(model, threads, profiled=False).create_infer_request())

    def profile(
        self, model: bytes | Path, feed: Feed, threads: int, runs: int, *, named: bool = True
    ) -> list[LayerTime]:
        # What a profile tells is the mean of all runs since the model was compiled, in whole microseconds: one run is the
        # difference of two sums, which is the coarser the more runs they hold. So the model is compiled again every few runs.
        steps: list[tuple[str, str]] = []
        taken: list[list[float]] = []
        for begun in range(0, max(runs, 1), _RUNS):
            compiled = self._compile(model, threads, profiled=True)
            request = compiled.create_infer_request()
            before: list[float] = []
            for n in range(1, _WARM + min(_RUNS, runs - begun) + 1):
                request.infer(dict(feed))
                told = request.profiling_info
                sums = [n * 1e3 * info.real_time.total_seconds() for info in told]
                if not steps:
                    origins = self._origins(compiled, model) if named else {}
                    steps = [(origins.get(i.node_name, i.node_name).removesuffix(_SPLIT), str(i.node_type)) for i in told]
                    taken = [[] for _ in steps]
                if n > _WARM:
                    for times, now, then in zip(taken, sums, before, strict=True):
                        times.append(max(now - then, 0.0))
                before = sums
        # The fastest run would be the one that rounding favours most.
        return [
            LayerTime(name, op, float(np.median(times)), float(np.quantile(times, _QUICK)), op in _LAYOUT)
            for (name, op), times in zip(steps, taken, strict=True) if op not in _IDLE and any(times)
        ]  # fmt: skip

    def _origins(self, compiled: Any, model: bytes | Path) -> dict[str, str]:
        """Steps of the compiled model -> the first of the model's own nodes that each does.

        A convolution that a normalisation is folded into gets a name that OpenVINO makes up; the plan still lists what it is of.
        """
        own = {op.get_friendly_name().removesuffix(_SPLIT) for op in self._read(model).get_ops()}
        found = {}
        for op in compiled.get_runtime_model().get_ops():
            info = op.get_rt_info()
            names = str(info[_OF].astype(str)).split(",") if _OF in info else []
            name = next((name for name in names if name.removesuffix(_SPLIT) in own), None)
            if name is not None:
                found[op.get_friendly_name()] = name
        return found

    def _read(self, model: bytes | Path) -> Any:
        return self._core.read_model(model if isinstance(model, bytes) else str(model))

    def _compile(self, model: bytes | Path, threads: int, *, profiled: bool) -> Any:
        hints = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
                 "INFERENCE_PRECISION_HINT": "f32", "PERF_COUNT": profiled}  # fmt: skip
        try:
            return self._core.compile_model(self._read(model), "CPU", hints)
        except RuntimeError as error:
            what = "the model" if isinstance(model, bytes) else f"'{model}'"
            raise ModelError(f"OpenVINO {self.version} cannot load {what}: {' '.join(str(error).split())[:400]}") from error
