"""Pages of building blocks: one file, escaped, the same for the same page; and the data its script is given."""

from __future__ import annotations

import base64
import doctest
import hashlib
import html.parser
import json
import math
import re

import pytest

from onnxq.report import page as page_module
from onnxq.report.page import (
    Bar,
    BarPlot,
    Card,
    ChannelPlot,
    ChannelRanges,
    Column,
    Folded,
    GraphNode,
    GraphView,
    HistogramPlot,
    Page,
    Point,
    ScatterPlot,
    Section,
    Shares,
    Table,
    TensorHistogram,
    Text,
    render,
)

EVIL = "</script><script>alert(1)</script>&'\"\u2028"
VOID = {"meta", "br", "link", "img", "input"}


class Read(html.parser.HTMLParser):
    """Checks that elements are closed in order; collects tags, attributes and the texts of elements."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attrs, self.texts, self.plain = [], [], [], {}, []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attrs += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)
        if self.open and self.open[-1] not in ("script", "style"):
            self.plain.append(data.strip())


def data(text):
    """What the script of a page is given."""
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found)


def only(*blocks):
    return data(render(Page("t", sections=(Section("s", blocks),))))


def everything():
    nodes = (GraphNode(EVIL, "Conv", "quantized", ((EVIL, EVIL),)), GraphNode("b", "Relu", "float"))
    blocks = (
        Text(EVIL),
        Text(EVIL, "code"),
        Text(EVIL, "warning"),
        Shares((("quantized", 3), (EVIL, 1)), "nodes"),
        Table((Column(EVIL, "code", hint=EVIL), "b"), ((EVIL, 1),), note=EVIL, label=EVIL),
        BarPlot(EVIL, (Bar(EVIL, 1.0, EVIL, EVIL),), unit=EVIL, note=EVIL),
        ScatterPlot(EVIL, (Point(1, 2, EVIL, EVIL),), EVIL, EVIL, line=(EVIL,)),
        HistogramPlot(EVIL, (TensorHistogram(EVIL, 0, 1, (1, 2), (0, 1), EVIL),)),
        ChannelPlot(EVIL, (ChannelRanges(EVIL, (0,), (1,), clip=((-1, 1),), detail=EVIL),)),
        GraphView(EVIL, nodes, ((0, 1),)),
        Folded(EVIL, (Text(EVIL),)),
    )
    return Page(EVIL, EVIL, (Card(EVIL, EVIL, EVIL, "good"),), (Section(EVIL, blocks, EVIL),))


def test_a_page_is_one_file_well_formed_and_escaped():
    text = render(everything())
    read = Read(text)
    assert read.tags.count("script") == 2
    assert [v for k, v in read.attrs if k in ("src", "action")] == []
    assert {v for k, v in read.attrs if k == "href"} == {"#s1"}
    assert "url(" not in text
    assert "@import" not in text
    assert EVIL.rstrip("\u2028") not in text
    assert read.plain.count(EVIL.strip()) >= 12
    blocks = data(text)
    assert blocks[0]["rows"] == [[EVIL, 1]]
    assert blocks[-1]["nodes"][0][0] == EVIL


def test_the_policy_of_a_page_lets_its_own_script_run_and_no_other():
    read = Read(render(everything()))
    (policy,) = [v for k, v in read.attrs if k == "content" and "default-src" in v]
    assert "default-src 'none'" in policy
    script = read.texts["script"][-1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy


def test_the_same_page_gives_the_same_text():
    assert render(everything()) == render(everything())


def test_the_example_of_the_module_is_true():
    assert doctest.testmod(page_module).failed == 0
    assert doctest.testmod(page_module).attempted > 0


# ---- tables --------------------------------------------------------------------------------------


def test_cells_are_numbers_that_json_has():
    columns = (Column("a", "number", digits=3), "b")
    rows = ((1 / 3, "x"), (math.inf, None), (-math.inf, True), (math.nan, 2), (7, False), (4.0, ""))
    (table,) = only(Table(columns, rows, sort=0, descending=True))
    assert table["rows"] == [[0.33333, "x"], ["∞", None], ["-∞", "yes"], [None, 2], [7, "no"], [4, ""]]
    assert table["columns"] == [{"kind": "number", "digits": 3}, {"kind": "text", "digits": 4}]
    assert (table["sort"], table["descending"]) == (0, True)


def test_rows_have_a_cell_for_each_column():
    with pytest.raises(ValueError, match="row 1 of a table has 1 cells for 2 columns"):
        render(Page("t", sections=(Section("s", (Table(("a", "b"), ((1, 2), (3,))),)),)))


# ---- plots ---------------------------------------------------------------------------------------


def test_bars_without_a_place_are_left_out_and_counted():
    bars = [Bar("a", 1.0), Bar("b", math.inf), Bar("c", -1.0), Bar("d", math.nan)]
    linear, log = only(BarPlot("x", bars), BarPlot("y", bars, log=True))
    assert [bar[0] for bar in linear["bars"]] == ["a", "c"]
    assert [bar[0] for bar in log["bars"]] == ["a"]
    assert (linear["hidden"], log["hidden"]) == (2, 3)


def test_points_without_a_place_are_left_out_and_counted():
    points = [Point(1, 1, "a"), Point(0, 1, "b"), Point(1, 0, "c"), Point(math.nan, 1, "d")]
    linear, log_x, log_y = (
        only(ScatterPlot("x", points, "x", "y", log_x=x, log_y=y))[0] for x, y in [(0, 0), (1, 0), (0, 1)]
    )
    assert [p[2] for p in linear["points"]] == ["a", "b", "c"]
    assert [p[2] for p in log_x["points"]] == ["a", "c"]
    assert [p[2] for p in log_y["points"]] == ["a", "b"]
    assert (linear["hidden"], log_x["hidden"]) == (1, 2)


def test_histograms_and_channels():
    histogram = TensorHistogram("h", -1.0, 1.0, (0, 5), (-0.5, math.inf), "about")
    ranges = ChannelRanges("c", (-1.0, -2.0), (1.0, 2.0), 4, ((-1.5, 1.5), (-1.5, 1.5)))
    first, second = only(HistogramPlot("x", (histogram,)), ChannelPlot("y", (ranges,)))
    assert first["tensors"] == [
        {"name": "h", "range": [-1, 1], "counts": [0, 5], "clip": [-0.5, None], "detail": "about"}
    ]
    assert second["tensors"][0]["low"] == [-1, -2]
    assert second["tensors"][0]["step"] == 4
    assert second["tensors"][0]["clip"] == [[-1.5, 1.5], [-1.5, 1.5]]


def test_a_graph_has_its_nodes_and_edges():
    nodes = [GraphNode("a", "Conv", "quantized", (("scale", "0.1"),)), GraphNode("b", "Relu", "float")]
    (graph,) = only(GraphView("x", nodes, ((0, 1),)))
    assert graph["kinds"] == ["quantized", "float"]
    assert [(n[0], n[1], n[2], n[5]) for n in graph["nodes"]] == [
        ("a", "Conv", 0, [["scale", "0.1"]]),
        ("b", "Relu", 1, []),
    ]
    assert graph["edges"] == [[0, 1]]
