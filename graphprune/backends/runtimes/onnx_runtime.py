"""ONNX Runtime on the CPU, all optimisations on: as users run it."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from graphprune.backends.runtimes.base import Feed, LayerTime
from graphprune.errors import ModelError

#: Steps that only change how a tensor lies in memory.
LAYOUT = frozenset({"ReorderInput", "ReorderOutput"})
_KERNEL = "_kernel_time"
#: Runs that are not counted: the first allocate.
_WARM = 2


class OnnxEngine:
    """A session."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session: ort.InferenceSession | None = session

    def run(self, feed: Feed) -> None:
        assert self._session is not None
        self._session.run(None, dict(feed))

    def outputs(self, feed: Feed) -> dict[str, Any]:
        """One inference: output name to array."""
        assert self._session is not None
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, dict(feed)), strict=True))

    def close(self) -> None:
        self._session = None


class OnnxRuntime:
    """ONNX Runtime; threads of one operator are set, operators run one after the other."""

    name = "onnxruntime"
    providers: tuple[Any, ...] = ("CPUExecutionProvider",)

    @property
    def version(self) -> str:
        return str(ort.__version__)

    @property
    def device(self) -> str:
        return "cpu"

    def load(self, model: bytes | Path, threads: int) -> OnnxEngine:
        return OnnxEngine(self._session(model, self._options(threads)))

    def profile(
        self, model: bytes | Path, feed: Feed, threads: int, runs: int, *, named: bool = True
    ) -> list[LayerTime]:
        with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
            options = self._options(threads)
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            optimised = Path(folder) / "optimised.onnx"
            if named:
                options.optimized_model_filepath = str(optimised)
                options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
            session = self._session(model, options)
            for _ in range(_WARM + runs):
                session.run(None, dict(feed))
            events = json.loads(Path(session.end_profiling()).read_text())
            if not named:
                return _times(events, {})
            plan = onnx.load(optimised, load_external_data=False).graph
        source = onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(model, load_external_data=False)
        return _times(events, _origins(plan, source.graph))

    def _options(self, threads: int) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Workers that spin while they wait would take the processor from the model whose turn it is.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return options

    def _session(self, model: bytes | Path, options: ort.SessionOptions) -> ort.InferenceSession:
        try:
            return ort.InferenceSession(
                model if isinstance(model, bytes) else str(model), options, providers=list(self.providers)
            )
        except Exception as error:  # the runtime's exceptions share no base class
            what = "the model" if isinstance(model, bytes) else f"'{model}'"
            raise ModelError(f"ONNX Runtime {ort.__version__} cannot load {what}: {' '.join(str(error).split())}") from error


def _times(events: Iterable[dict[str, Any]], origins: dict[str, str]) -> list[LayerTime]:
    """Kernel times of a profile, a step each."""
    found: dict[str, tuple[str, list[float]]] = {}
    for event in events:
        if event.get("cat") == "Node" and str(event.get("name", "")).endswith(_KERNEL):
            name = str(event["name"])[: -len(_KERNEL)]
            found.setdefault(name, (str(event["args"].get("op_name", "")), []))[1].append(event["dur"] / 1000)
    out = []
    for name, (op, taken) in found.items():
        counted = taken[_WARM:] or taken
        out.append(LayerTime(origins.get(name, name), op, float(np.median(counted)), min(counted), op in LAYOUT))
    return out


def _origins(plan: onnx.GraphProto, source: onnx.GraphProto) -> dict[str, str]:
    """Steps of the optimised graph -> nodes of the source: by name, by what they write, by what the optimiser made of both."""
    names = {node.name for node in source.node if node.name}
    writers = {output: node.name or output for node in source.node for output in node.output}
    out = {}
    for node in plan.node:
        if node.op_type in LAYOUT:
            continue
        if node.name in names:
            out[node.name] = node.name
            continue
        written = next((writers[output] for output in node.output if output in writers), None)
        if written is None:
            # Fused steps are named after the node, blocked ones after the value: "fused conv1", "relu_1_nchwc".
            bare = re.sub(r"^fused |_nchwc(_token_\d+)?$|_token_\d+$|/[A-Za-z]*Fusion/?$", "", node.name)
            written = writers.get(bare, bare if bare in names else None)
        if written is not None:
            out[node.name] = written
    return out
