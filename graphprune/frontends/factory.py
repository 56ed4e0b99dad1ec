"""Torch modules as sources, seen from code that must work without torch: what they are, and ``package.module:factory``."""

from __future__ import annotations

import copy
import importlib
import re
import sys
from pathlib import Path
from typing import Any

from graphprune.errors import UsageError

INSTALL = "install torch support first: pip install 'graphprune[torch]'"
_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def is_torch(source: Any) -> bool:
    """Whether a source is a torch module; torch need not be installed, and is not imported to see that it is none."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "nn"):
        return False
    if isinstance(source, torch.nn.Module):
        return True
    programs = sys.modules.get("torch.export")
    return programs is not None and isinstance(source, programs.ExportedProgram)


def is_factory(source: Any) -> bool:
    """Whether it is text of the form ``package.module:factory``, and no file."""
    return isinstance(source, str) and _FACTORY.fullmatch(source) is not None and not Path(source).exists()


def stem_of(source: str) -> str:
    """What results of a source are named after: its file, or its factory."""
    return source.rpartition(":")[2] if is_factory(source) else Path(source).stem


def call(text: str) -> tuple[Any, Any]:
    """The module that a factory makes, and its example inputs (None where it gives none).

    Raises
    ------
    UsageError
        torch is not installed, or the factory is missing, fails, or gives something else.
    """
    path, _, name = text.partition(":")
    try:
        import torch
    except ImportError as error:
        raise UsageError(f"'{text}' is a torch factory, and torch cannot be imported ({error}): {INSTALL}") from error
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        function: Any = importlib.import_module(path)
    except (Exception, SystemExit) as error:
        raise UsageError(f"'{text}': the module '{path}' cannot be imported: {_told(error)}") from error
    for part in name.split("."):
        if not hasattr(function, part):
            raise UsageError(f"'{text}': '{path}' has no '{name}'")
        function = getattr(function, part)
    try:
        # A module that lies there ready serves as well as a function that makes it.
        made = function if is_torch(function) else function()
    except (Exception, SystemExit) as error:
        raise UsageError(f"'{text}' failed: {_told(error)}") from error
    example = None
    if isinstance(made, tuple) and len(made) == 2:
        made, example = made
    if not is_torch(made):
        what = f"a tuple of {len(made)}" if isinstance(made, tuple) else type(made).__name__
        raise UsageError(
            f"'{text}' gave {what}: it must give an nn.Module, or a tuple of an nn.Module and its example inputs"
        )
    assert torch is not None
    return made, example


def copy_of(module: Any) -> Any:
    """A deep copy of a torch module.

    Raises
    ------
    UsageError
        It cannot be copied.
    """
    parts = list(module.modules()) if hasattr(module, "modules") else []
    # What a hook computed from parameters (weight norm of the old kind) torch does not copy; it is computed anew anyway.
    held = [value for part in parts for value in vars(part).values() if getattr(value, "grad_fn", None) is not None]
    try:
        return copy.deepcopy(module, {id(value): value.detach().clone() for value in held})
    except Exception as error:
        raise UsageError(f"{type(module).__name__} cannot be copied ({_told(error)}): leave inplace=False out") from error


def _told(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
