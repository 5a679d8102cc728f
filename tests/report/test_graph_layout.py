"""Layered layout: rows follow the edges, nothing overlaps, work grows linearly with the graph."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.report import graph_layout
from onnxq.report.graph_layout import HEIGHT, PITCH, WIDTH, lay_out


def overlapping(layout):
    """Pairs of nodes that share room; only those of one height can."""
    by_row = {}
    for x, y in zip(layout.x, layout.y, strict=True):
        by_row.setdefault(y, []).append(x)
    return [
        (a, b)
        for places in by_row.values()
        for a, b in itertools.pairwise(sorted(places))
        if b - a < WIDTH
    ]  # fmt: skip


@st.composite
def graphs(draw):
    count = draw(st.integers(1, 40))
    pairs = st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)).filter(lambda p: p[0] < p[1])
    return count, draw(st.lists(pairs, max_size=80)) if count > 1 else []


@given(graphs())
def test_nodes_are_apart_and_inside_and_every_edge_is_drawn_once(graph):
    count, edges = graph
    layout = lay_out(count, edges)
    assert overlapping(layout) == []
    assert all(WIDTH / 2 - 1 <= x <= layout.width - WIDTH / 2 + 1 for x in layout.x)
    assert all(0 <= y <= layout.height - HEIGHT for y in layout.y)
    assert [(r.start, r.end) for r in layout.routes] == sorted(set(edges))
    assert lay_out(count, edges) == layout


@given(graphs())
def test_edges_lead_down_or_beside(graph):
    for route in (layout := lay_out(*graph)).routes:
        if route.gutter is None:
            rows = (layout.y[route.end] - layout.y[route.start]) // PITCH
            assert rows == len(route.via) + 1
        else:
            assert all(abs(route.gutter - x) >= WIDTH / 2 for x in layout.x)


def test_a_chain_is_straight_and_folded_to_the_shape_of_a_screen():
    layout = lay_out(1000, list(itertools.pairwise(range(1000))))
    assert 1 < layout.width / layout.height < 3
    columns = set(layout.x)
    assert len(columns) == 24
    assert sum(r.gutter is not None for r in layout.routes) == len(columns) - 1


def test_branches_stand_beside_each_other_and_meet_in_the_middle():
    layout = lay_out(4, [(0, 1), (0, 2), (1, 3), (2, 3)])
    assert layout.y == (0, PITCH, PITCH, 2 * PITCH)
    assert layout.x[0] == layout.x[3] == (layout.x[1] + layout.x[2]) / 2


def test_an_edge_past_a_row_has_room_there():
    layout = lay_out(3, [(0, 1), (1, 2), (0, 2)])
    (via,) = next(r.via for r in layout.routes if (r.start, r.end) == (0, 2))
    assert abs(via - layout.x[1]) > WIDTH / 2


def test_what_reads_nothing_stands_above_its_reader():
    layout = lay_out(5, [(0, 1), (1, 2), (2, 4), (3, 4)])
    assert layout.y[3] == layout.y[2]


def test_many_long_edges_cost_no_more_than_short_ones(monkeypatch):
    """A shared input of every layer must not make the layout quadratic."""
    asked = []
    placed = graph_layout._placed
    monkeypatch.setattr(graph_layout, "_placed", lambda net: asked.append(len(net.row)) or placed(net))
    for count in (100, 800):
        chain = list(itertools.pairwise(range(count)))
        lay_out(count, chain + [(max(0, i - k), i) for i in range(2, count) for k in (5, 9, i) if i - k >= 0])
    assert asked[1] < 10 * asked[0]


@pytest.mark.parametrize("edge", [(1, 0), (0, 0), (-1, 0), (0, 2)], ids=str)
def test_edges_lead_from_earlier_to_later_nodes(edge):
    with pytest.raises(ValueError, match="an edge leads from node"):
        lay_out(2, [edge])


def test_nothing():
    assert lay_out(0, []).x == ()
