"""The command line that repeats a run, from the options that a plan holds."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from graphprune.options import Options

#: Options that are given under another name, once for each of their items.
_REPEATED = {"passes": "pass", "keep": "keep"}


def command_line(options: Mapping[str, Any], source: str | None) -> str:
    """``graphprune run ...`` with every option that is not at its default."""
    if options.get("rates"):  # they are given by a file: the recipe is one
        return shlex.join(["graphprune", "run", source or "MODEL.onnx", "--recipe", "recipe.yaml"])
    defaults = {f.name: f.default for f in fields(Options) if f.default is not MISSING}
    words = ["graphprune", "run", source or "MODEL.onnx"]
    for name, value in options.items():
        flag = "--" + _REPEATED.get(name, name).replace("_", "-")
        if value is None or (name != "passes" and value == defaults.get(name)):
            continue
        if name in _REPEATED:
            for item in value:
                words += [flag, str(item)]
        elif isinstance(value, bool):
            words += [flag] if value else []
        elif isinstance(value, Mapping):
            for key, item in value.items():
                text = "x".join(map(str, item)) if isinstance(item, (list, tuple)) else str(item)
                words += [flag.removesuffix("s"), f"{key}={text}"]
        elif isinstance(value, (list, tuple)):
            if value:
                words += [flag, ",".join(map(str, value))]
        else:
            words += [flag, str(value)]
    return shlex.join(words)
