"""How many samples run together, and which of them judge."""

from __future__ import annotations

from graphprune.costs import batch_is_dynamic
from graphprune.inputs import Feed
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


def fitting_feeds(n: int, holdout: float) -> int:
    """How many of ``n`` feeds fit; the rest judge. A single one does both."""
    return max(1, n - max(1, round(holdout * n)))


def samples_in(feed: Feed, batched: frozenset[str]) -> int:
    """Samples of one feed."""
    return next((len(feed[name]) for name in batched), 1)
