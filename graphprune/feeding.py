"""How many samples run together."""

from __future__ import annotations

from graphprune.costs import batch_is_dynamic
from graphprune.passes.base import State

#: Bytes that all values of the network may take for one feed of several samples.
_FEED_BYTES = 256 << 20
_LARGEST_FEED = 32


def feed_size(state: State) -> int:
    """Samples that run together: more make better use of the machine, their outputs must fit into memory."""
    if not batch_is_dynamic(state.model):
        return 1
    facts = state.need_facts()
    total = 0
    for node in state.model.graph:
        for value in node.outputs:
            shape = facts.shape(value)
            if shape:
                size = 4
                for n in shape:
                    size *= max(n, 1)
                total += size
    return max(1, min(_LARGEST_FEED, _FEED_BYTES // max(total, 1)))
