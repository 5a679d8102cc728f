"""Places the nodes of a graph in layers, in time and size that grow linearly with the graph.

Nodes stand in rows, each below all it reads. Rows are ordered by the mean place of what their nodes are joined to (the
barycentre method of Sugiyama, Tagawa and Toda, 1981), and then moved sideways to the least sum of squared distances
from it that keeps them apart (isotonic regression). A graph of many rows is cut into columns, which are read from left
to right, so that the whole of it fits a screen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

WIDTH = 156
"""Width of a node, in pixels at a zoom of 1."""
HEIGHT = 40
PITCH = 72
"""From one row to the next."""
_GAP = 20
_LANE = 28
"""Room for an edge that passes a row."""
_GUTTER = 64
_ASPECT = 1.7
_LONGEST = 10
"""Edges over more rows than this are led beside the column."""
_SWEEPS = 4


@dataclass(frozen=True, slots=True)
class Route:
    """How an edge is drawn.

    Attributes:
        start: Position of the node it comes from.
        end: Position of the node it leads to.
        via: Horizontal places in the rows between them, one for each.
        gutter: Horizontal place of the way up or down beside a column, where it takes that; else None.
    """

    start: int
    end: int
    via: tuple[int, ...] = ()
    gutter: int | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything is.

    Attributes:
        x: Centre of each node.
        y: Top of each node.
        routes: One per edge.
        width: Width of all of it.
        height: Height of all of it.
    """

    x: tuple[int, ...]
    y: tuple[int, ...]
    routes: tuple[Route, ...]
    width: int
    height: int


def lay_out(count: int, edges: Sequence[tuple[int, int]]) -> Layout:
    """Place a graph.

    Args:
        count: How many nodes there are, in topological order.
        edges: From an earlier node to a later one; doubles are drawn once.

    Raises:
        ValueError: If an edge does not lead from an earlier node to a later one.
    """
    for start, end in edges:
        if not 0 <= start < end < count:
            raise ValueError(f"an edge leads from node {start} to node {end} of {count}")
    distinct = sorted(set(edges))
    net = _net(count, distinct)
    return _in_columns(count, distinct, net, _placed(net))


@dataclass(slots=True)
class _Net:
    """Rows of nodes and of the bends of edges that pass rows; bends are numbered after the nodes."""

    nodes: int
    row: list[int]
    rows: list[list[int]]
    above: list[list[int]]
    below: list[list[int]]
    chains: dict[tuple[int, int], list[int]] = field(default_factory=dict)


def _net(count: int, edges: Sequence[tuple[int, int]]) -> _Net:
    row = _rows(count, edges)
    net = _Net(count, row, [[] for _ in range(max(row, default=-1) + 1)], [[] for _ in row], [[] for _ in row])
    budget = 3 * (count + len(edges))
    for start, end in edges:
        span = row[end] - row[start]
        if span > _LONGEST or span - 1 > budget:
            continue
        budget -= span - 1
        chain = [start]
        for level in range(row[start] + 1, row[end]):
            chain.append(len(net.row))
            net.row.append(level)
            net.above.append([])
            net.below.append([])
        chain.append(end)
        net.chains[start, end] = chain
        for upper, lower in pairwise(chain):
            net.below[upper].append(lower)
            net.above[lower].append(upper)
    for item, level in enumerate(net.row):
        net.rows[level].append(item)
    return net


def _rows(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """The row of each node: below all it reads; what reads nothing stands right above its first reader."""
    row = [0] * count
    first = [count] * count
    for start, end in sorted(edges, key=lambda edge: edge[1]):
        row[end] = max(row[end], row[start] + 1)
    fed = {end for _, end in edges}
    for start, end in edges:
        first[start] = min(first[start], row[end])
    return [row[i] if i in fed or first[i] == count else first[i] - 1 for i in range(count)]


def _placed(net: _Net) -> list[float]:
    """Horizontal centres of nodes and bends, before they are cut into columns."""
    order = [0.0] * len(net.row)
    for members in net.rows:
        _number(order, members)
    for sweep in range(_SWEEPS):
        links = net.above if sweep % 2 == 0 else net.below
        for members in net.rows if sweep % 2 == 0 else reversed(net.rows):
            members.sort(key=lambda item: (_mean([order[i] for i in links[item]], order[item]), item))
            _number(order, members)
    x = [0.0] * len(net.row)
    for sweep in range(2 * _SWEEPS):
        links = net.above if sweep % 2 == 0 else net.below
        for members in net.rows if sweep % 2 == 0 else reversed(net.rows):
            wanted = [_mean([x[i] for i in links[item]], x[item]) for item in members]
            for item, place in zip(members, _apart(wanted, _offsets(net, members)), strict=True):
                x[item] = place
    return x


def _number(order: list[float], members: Sequence[int]) -> None:
    """Write the places of one row, relative to its middle, into `order`."""
    for number, item in enumerate(members):
        order[item] = number - (len(members) - 1) / 2


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _offsets(net: _Net, members: Sequence[int]) -> list[float]:
    """How far each member must at least be from the first one."""
    halves = [(WIDTH + _GAP) / 2 if item < net.nodes else _LANE / 2 for item in members]
    found, total = [], 0.0
    for number, half in enumerate(halves):
        total += halves[number - 1] + half if number else 0.0
        found.append(total)
    return found


def _apart(wanted: Sequence[float], offsets: Sequence[float]) -> list[float]:
    """The places nearest to `wanted` whose distances are at least those of `offsets`."""
    blocks: list[tuple[float, int]] = []
    for place, offset in zip(wanted, offsets, strict=True):
        total, size = place - offset, 1
        while blocks and blocks[-1][0] / blocks[-1][1] > total / size:
            before, number = blocks.pop()
            total, size = total + before, size + number
        blocks.append((total, size))
    level = [total / size for total, size in blocks for _ in range(size)]
    return [base + offset for base, offset in zip(level, offsets, strict=True)]


def _in_columns(count: int, edges: Sequence[tuple[int, int]], net: _Net, x: list[float]) -> Layout:
    """Cut the rows into columns beside each other, and lead the edges between them."""
    cuts = _cuts(edges, net, x)
    column: list[int] = [0] * len(net.row)
    gutters: list[float] = []
    left = 0.0
    for number, (top, bottom) in enumerate(pairwise(cuts)):
        members = [item for row in net.rows[top:bottom] for item in row]
        low, high = min(x[i] for i in members), max(x[i] for i in members)
        for item in members:
            column[item] = number
            x[item] += left - low + WIDTH / 2
        left += high - low + WIDTH + _GUTTER
        gutters.append(left - _GUTTER / 2)
    tops = tuple(PITCH * (net.row[i] - cuts[column[i]]) for i in range(count))
    routes = []
    for start, end in edges:
        chain = net.chains.get((start, end), ())
        if chain and len({column[item] for item in chain}) == 1:
            routes.append(Route(start, end, tuple(round(x[item]) for item in chain[1:-1])))
        else:
            routes.append(Route(start, end, gutter=round(gutters[column[start]])))
    width, height = max(0, round(left - _GUTTER)), max(tops, default=0) + HEIGHT
    return Layout(tuple(round(v) for v in x[:count]), tops, tuple(routes), width, height)


def _cuts(edges: Sequence[tuple[int, int]], net: _Net, x: Sequence[float]) -> list[int]:
    """First row of each column, and the number of rows: cut where few edges pass, at about equal heights."""
    rows = len(net.rows)
    width = max(x, default=0.0) - min(x, default=0.0) + WIDTH + _GUTTER
    columns = max(1, round(math.sqrt(_ASPECT * PITCH * rows / width)))
    passing = [0] * (rows + 1)
    for start, end in edges:
        passing[net.row[start] + 1] += 1
        passing[net.row[end] + 1] -= 1
    passing = list(accumulate(passing))
    cuts = [0]
    for number in range(1, columns):
        ideal = number * rows / columns
        slack = rows / columns / 6
        around = range(max(cuts[-1] + 1, math.ceil(ideal - slack)), min(rows - 1, math.floor(ideal + slack)) + 1)
        if around:
            cuts.append(min(around, key=lambda cut: (passing[cut], abs(cut - ideal))))
    return [*cuts, rows] if rows else [0]
