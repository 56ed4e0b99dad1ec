"""``gp.load``: a saved torch module made again from its source."""

from __future__ import annotations

import os
from typing import Any

from graphprune.errors import UsageError
from graphprune.frontends.factory import INSTALL, is_torch


def load(path: str | os.PathLike[str], module: Any, example_inputs: Any = None) -> Any:
    """Make a fresh source module what a saved one was: cut by its plan, attributes mended, weights loaded.

    Parameters
    ----------
    path
        The ``.safetensors`` file that ``result.save`` wrote; its plan lies beside it.
    module
        A ``torch.nn.Module`` as it was before the cut, made by the same code; its own weights do not matter. It is cut
        in place.
    example_inputs
        As for :func:`graphprune.prune`; only needed where the saved module is a graph.

    Returns
    -------
    torch.nn.Module
        ``module`` itself, or a graph where its own code did not allow the cut.

    Raises
    ------
    UsageError
        The module or the plan is another one's; ``module`` is as it was then.
    ModelError
        The file is damaged, or lacks weights.
    """
    if not is_torch(module) or not hasattr(module, "named_modules"):
        raise UsageError(f"gp.load(path, module) takes the source torch.nn.Module, not {type(module).__name__}")
    try:
        from graphprune.backends import inplace
    except ImportError as error:
        raise UsageError(f"torch modules cannot be loaded here ({error}): {INSTALL}") from error
    return inplace.load(path, module, example_inputs)
