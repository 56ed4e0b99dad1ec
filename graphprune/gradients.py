"""The seam for criteria that look at gradients: what ``needs = "gradients"`` of a scoring pass asks for.

Gradients come with torch, which reads the same weights under the same names; this module will run the backward pass and hand out
``parameter name -> gradient``. Until then asking is one clear error, before any work.
"""

from __future__ import annotations

import importlib.util

from graphprune.errors import UsageError


def require(name: str) -> None:
    """Refuse a pass that needs gradients where none can be had.

    Raises
    ------
    UsageError
        torch is not installed; or it is, and gradients are not computed yet.
    """
    if importlib.util.find_spec("torch") is None:
        raise UsageError(
            f"pass '{name}' looks at gradients, and these need torch, which is not installed: 'pip install torch', "
            "or take a criterion that needs weights or data alone ('graphprune passes')"
        )
    raise UsageError(
        f"pass '{name}' looks at gradients: these are not computed yet; take a criterion that needs weights or data alone "
        "('graphprune passes')"
    )
