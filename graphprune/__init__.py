"""graphprune: the compiler for making neural networks smaller."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphprune import _deferral

_deferral.install()

__version__ = "0.1.0"
__all__ = ["GraphPruneError", "Options", "Plan", "Result", "__version__", "bench", "finetune", "inspect", "load", "prune", "verify"]

if TYPE_CHECKING:
    from graphprune.benching import bench
    from graphprune.errors import GraphPruneError
    from graphprune.finetuning import finetune
    from graphprune.loading import load
    from graphprune.options import Options
    from graphprune.pipeline import Result, inspect, prune
    from graphprune.plan import Plan
    from graphprune.proving import verify

_HOMES = {
    "GraphPruneError": "errors", "Options": "options", "Plan": "plan", "Result": "pipeline", "bench": "benching",
    "finetune": "finetuning", "inspect": "pipeline", "load": "loading", "prune": "pipeline", "verify": "proving",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    # Imported on first use: `graphprune --help` must not wait for onnxruntime.
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(f"graphprune.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'graphprune' has no attribute '{name}'")
