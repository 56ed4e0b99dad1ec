"""What a run keeps of the torch module that it was given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SCOPE = "graphprune.torch_scope"
"""Key in ``Node.meta``: names of the modules around a node, outermost first, then the node's own, as text of a list."""

TRACE = "graphprune.torch_trace"
"""Key in ``Node.meta``: the lines of the user's code that a node was made from, innermost last."""


@dataclass(frozen=True)
class TorchSource:
    """A torch model as it was given, and what its export says of names.

    Attributes
    ----------
    module
        The user's ``nn.Module`` or ``torch.fx.GraphModule``; None for an ``ExportedProgram``.
    args, kwargs
        What the module is called with: the example inputs.
    aliases
        Initializer name -> every ``state_dict`` name that holds this very tensor, the initializer's own first.
    parameters, buffers
        Initializers that are parameters and buffers of the module. All others were made by the export.
    feed
        Graph input name -> example array.
    exported
        The ``torch.export.ExportedProgram``, whose names have ``prefix`` before the module's own; None where the module
        came through TorchScript.
    prefix
        What stands before the module's own names in ``exported``.
    notes
        What the user should know of the export.
    """

    module: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    aliases: Mapping[str, tuple[str, ...]] = field(repr=False)
    parameters: frozenset[str] = field(repr=False)
    buffers: frozenset[str] = field(repr=False)
    feed: Mapping[str, np.ndarray[Any, Any]] = field(repr=False)
    exported: Any = field(default=None, repr=False)
    prefix: str = ""
    notes: tuple[str, ...] = ()

    def is_computed_from(self, name: str) -> bool:
        """Whether torch's own weight norm or a parametrization computes a weight from it, as the names tell that torch gives."""
        return "parametrizations." in name or name.endswith(("_v", "_g"))

    def names(self, name: str) -> tuple[str, ...]:
        """Every name in the module's ``state_dict`` of the initializer ``name``."""
        return self.aliases.get(name, (name,))
