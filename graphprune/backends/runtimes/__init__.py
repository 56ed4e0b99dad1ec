"""Runtimes that models are timed in, behind one small protocol; none is imported before it is asked for."""

from __future__ import annotations

import importlib

from graphprune.backends.runtimes.base import Engine, LayerTime, Runtime
from graphprune.errors import UsageError
from graphprune.spec import nearest

__all__ = ["NAMES", "Engine", "LayerTime", "Runtime", "find"]

#: Name on the command line -> where its class is.
_HOMES = {
    "onnxruntime": ("graphprune.backends.runtimes.onnx_runtime", "OnnxRuntime"),
    "openvino": ("graphprune.backends.runtimes.open_vino", "OpenVino"),
    "tensorrt": ("graphprune.backends.runtimes.tensor_rt", "TensorRt"),
}
NAMES = tuple(_HOMES)


def find(name: str) -> Runtime:
    """A runtime by name.

    Raises
    ------
    UsageError
        There is none of this name, or it is not installed here; the message says how to get it.
    """
    if name not in _HOMES:
        raise UsageError(f"no runtime is named '{name}'{nearest(name, NAMES)} (runtimes: {', '.join(NAMES)})")
    module, cls = _HOMES[name]
    runtime: Runtime = getattr(importlib.import_module(module), cls)()
    return runtime
