"""A layered drawing of a directed acyclic graph (Sugiyama's method): ranks, order within a rank, coordinates.

Every step is linear in what is drawn but for sorting: long edges are bent around boxes by way of dummies, and their
number is bounded.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import networkx as nx
import numpy as np
from numpy.typing import NDArray

#: Size of a box and the distances between boxes, in pixels.
BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y = 200.0, 62.0, 26.0, 40.0
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
    links = [(a, b) for chain in chains for a, b in itertools.pairwise(chain) if ranks[b] == ranks[a] + 1]
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


def _coordinates(rows: list[list[int]], above: list[list[int]], below: list[list[int]], n: int) -> NDArray[np.float64]:
    """Centres along a row, by Brandes and Koepf (2001), "Fast and simple horizontal coordinate assignment".

    Nodes are aligned with neighbours into straight columns, leaning to each of the four corners; the mean of the
    middle two of the four layouts keeps all distances. Here a line from box to box goes before one that only passes.
    """
    width = np.where(np.arange(len(above)) < n, BOX_WIDTH + GAP_X, LANE)
    unwanted = _conflicts(rows, above, n) | _weak(above, below, n)
    layouts = []
    for up in (True, False):
        for to_left in (True, False):
            turned = [row if to_left else row[::-1] for row in (rows if up else rows[::-1])]
            x = _compact(turned, _align(turned, above if up else below, unwanted), width)
            layouts.append(x if to_left else -x)
    extents = [(float((x - width / 2).min()), float((x + width / 2).max())) for x in layouts]
    low, high = min(extents, key=lambda extent: extent[1] - extent[0])
    for i, x in enumerate(layouts):
        x += low - extents[i][0] if i % 2 == 0 else high - extents[i][1]
    middle = np.sort(np.stack(layouts), axis=0)[1:3].mean(axis=0)
    return np.asarray(middle - (middle - (width - np.where(width > LANE, GAP_X, 0)) / 2).min(), np.float64)


def _weak(above: list[list[int]], below: list[list[int]], n: int) -> set[tuple[int, int]]:
    """Lines from a box to a dummy where the box has another box on that side to be in line with."""
    out: set[tuple[int, int]] = set()
    for box in range(n):
        for near in (above[box], below[box]):
            if any(other < n for other in near):
                out.update((min(box, other), max(box, other)) for other in near if other >= n)
    return out


def _conflicts(rows: list[list[int]], above: list[list[int]], n: int) -> set[tuple[int, int]]:
    """Lines that cross one between two dummies: the long edge stays straight."""
    out: set[tuple[int, int]] = set()
    for upper, row in itertools.pairwise(rows):
        place = {node: i for i, node in enumerate(upper)}
        low, since = 0, 0
        for i, node in enumerate(row):
            inner = next((other for other in above[node] if other >= n), None) if node >= n else None
            if inner is None and i < len(row) - 1:
                continue
            high = len(upper) if inner is None else place[inner]
            for other in row[since : i + 1]:
                for end in above[other]:
                    if (place[end] < low or place[end] > high) and not (other >= n and end >= n):
                        out.add((min(other, end), max(other, end)))
            since, low = i + 1, high
    return out


def _align(rows: list[list[int]], near: list[list[int]], unwanted: set[tuple[int, int]]) -> list[int]:
    """The root of the column that each node stands in; rows and their nodes in the order in which they are placed."""
    place = [0] * len(near)
    for row in rows:
        for i, node in enumerate(row):
            place[node] = i
    root = list(range(len(near)))
    for row in rows:
        last = -1
        for node in row:
            ends = [other for other in near[node] if (min(node, other), max(node, other)) not in unwanted]
            ends.sort(key=place.__getitem__)
            for other in ends[(len(ends) - 1) // 2 : len(ends) // 2 + 1]:
                if place[other] > last:
                    root[node], last = root[other], place[other]
                    break
    return root


def _compact(rows: list[list[int]], root: list[int], width: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centres: every column as far left as its neighbours allow, then towards its right neighbours."""
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(root)
    for row in rows:
        for a, b in itertools.pairwise(row):
            apart = max(float(width[a] + width[b]) / 2, graph.edges.get((root[a], root[b]), {}).get("apart", 0.0))
            graph.add_edge(root[a], root[b], apart=apart)
    x: dict[int, float] = {}
    order = list(nx.topological_sort(graph))
    for block in order:
        x[block] = max((x[other] + data["apart"] for other, _, data in graph.in_edges(block, data=True)), default=0.0)
    for block in reversed(order):
        rights = (x[other] - data["apart"] for _, other, data in graph.out_edges(block, data=True))
        x[block] = max(x[block], min(rights, default=x[block]))
    return np.asarray([x[block] for block in root])
