"""A layered drawing of a directed acyclic graph (Sugiyama's method): ranks, order within a rank, coordinates.

Every step is linear in what is drawn but for sorting: long edges are bent around boxes by way of dummies, and their
number is bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import networkx as nx
import numpy as np
from numpy.typing import NDArray

#: Size of a box and the distances between boxes, in pixels.
BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y = 196.0, 58.0, 26.0, 42.0
#: Width that a passing edge takes of a rank.
LANE = 14.0
#: Dummies altogether; edges that would need more go straight, the longest first.
MOST_DUMMIES = 6000
_SWEEPS = 8

Point = tuple[float, float]


@dataclass
class Layout:
    """Where things are: centres of the boxes, and for each edge the points between its ends."""

    width: float = 0.0
    height: float = 0.0
    centres: list[Point] = field(default_factory=list)
    bends: list[list[Point]] = field(default_factory=list)


def layered(n: int, edges: Sequence[tuple[int, int]]) -> Layout:
    """Lay out nodes 0 .. ``n`` - 1; the edges must form no cycle."""
    if n == 0:
        return Layout(bends=[[] for _ in edges])
    rank = _ranks(n, edges)
    chains, ranks = _with_dummies(n, edges, rank)
    total = len(ranks)
    links = [(a, b) for chain in chains for a, b in zip(chain, chain[1:], strict=False) if ranks[b] == ranks[a] + 1]
    above: list[list[int]] = [[] for _ in range(total)]
    below: list[list[int]] = [[] for _ in range(total)]
    for a, b in links:
        above[b].append(a)
        below[a].append(b)
    rows: list[list[int]] = [[] for _ in range(max(ranks) + 1)]
    for node in range(total):
        rows[ranks[node]].append(node)
    _order(rows, above, below)
    x = _coordinates(rows, above, below, n)
    step = BOX_HEIGHT + GAP_Y
    points = [(round(float(x[i]), 1), round(BOX_HEIGHT / 2 + ranks[i] * step, 1)) for i in range(total)]
    return Layout(
        width=round(max(p[0] for p in points) + BOX_WIDTH / 2, 1),
        height=round(max(ranks) * step + BOX_HEIGHT, 1),
        centres=points[:n],
        bends=[[points[i] for i in chain[1:-1]] for chain in chains],
    )


def _ranks(n: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """Longest path from above; what nothing leads to stands just above its first reader."""
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(n))
    graph.add_edges_from(edges)
    rank = [0] * n
    for level, nodes in enumerate(nx.topological_generations(graph)):
        for node in nodes:
            rank[node] = level
    for node in range(n):
        if graph.in_degree(node) == 0 and graph.out_degree(node):
            rank[node] = max(0, min(rank[other] for other in graph.successors(node)) - 1)
    return rank


def _with_dummies(
    n: int, edges: Sequence[tuple[int, int]], rank: Sequence[int]
) -> tuple[list[list[int]], list[int]]:
    """Each edge as a chain of nodes, one a rank; the ranks of nodes and dummies."""
    ranks = list(rank)
    chains: list[list[int]] = [[a, b] for a, b in edges]
    left = MOST_DUMMIES
    for i in sorted(range(len(edges)), key=lambda i: rank[edges[i][1]] - rank[edges[i][0]]):
        a, b = edges[i]
        need = rank[b] - rank[a] - 1
        if need <= 0 or need > left:
            continue
        left -= need
        chains[i] = [a, *range(len(ranks), len(ranks) + need), b]
        ranks.extend(range(rank[a] + 1, rank[b]))
    return chains, ranks


def _order(rows: list[list[int]], above: list[list[int]], below: list[list[int]]) -> None:
    """Fewer crossings: each row is sorted by the mean place of its neighbours, down and up in turn."""
    place = np.zeros(len(above))
    for row in rows:
        place[row] = np.arange(len(row))
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        near = above if down else below
        for row in rows if down else reversed(rows):
            row.sort(key=lambda i: float(np.mean(place[near[i]])) if near[i] else place[i])
            place[row] = np.arange(len(row)) - len(row) / 2


def _coordinates(
    rows: list[list[int]], above: list[list[int]], below: list[list[int]], n: int
) -> NDArray[np.float64]:
    """Centres along a row: as near to the neighbours' mean as the distances allow (least squares)."""
    from scipy.optimize import isotonic_regression

    total = len(above)
    width = np.where(np.arange(total) < n, BOX_WIDTH + GAP_X, LANE)
    offsets: list[NDArray[np.float64]] = []
    x = np.zeros(total)
    for row in rows:
        own = width[row]
        offsets.append(np.concatenate([[0.0], np.cumsum((own[1:] + own[:-1]) / 2)]))
        x[row] = offsets[-1] - offsets[-1][-1] / 2
    # A dummy that is out of line bends an edge: it counts more than a box.
    weights = np.where(np.arange(total) < n, 1.0, 4.0)
    for sweep in range(2 * _SWEEPS):
        down = sweep % 2 == 0
        for number in range(len(rows)) if down else range(len(rows) - 1, -1, -1):
            row = rows[number]
            near = above if down else below
            both = sweep >= _SWEEPS
            wanted = np.asarray(
                [float(np.mean(x[other])) if (other := [*near[i], *((below if down else above)[i] if both else [])]) else x[i]
                 for i in row]
            )  # fmt: skip
            if len(row) == 1:
                x[row] = wanted
                continue
            fitted = isotonic_regression(wanted - offsets[number], weights=weights[row]).x
            x[row] = fitted + offsets[number]
    left = float((x - np.where(np.arange(total) < n, BOX_WIDTH, LANE) / 2).min())
    return np.asarray(x - left, np.float64)
