"""The HTML report, the grouping of reasons, the facts of a model."""

from __future__ import annotations

import html.parser
import re

import numpy as np
import onnx
import pytest

from onnxq.plan import Decision
from onnxq.recipe import Recipe
from onnxq.report.facts import model_facts
from onnxq.report.files import write_text
from onnxq.report.html import range_rows
from onnxq.report.job import Job, run_job
from onnxq.report.reasons import group_reasons
from onnxq.spec import PerAxis, PerBlock, QType, QuantParams, QuantSpec
from tests.graphs import build, normal

EVIL = "<script>alert(1)</script>&'\""
VOID = {"meta", "br", "link", "img"}


class Page(html.parser.HTMLParser):
    """Checks that elements are closed in order; collects tags and links."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key in ("src", "href", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def done(tmp_path):
    text = """g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {
        c = Conv<pads=[1, 1, 1, 1]>(x, W)
        y = Erf(c)
    }"""
    model = build(text, W=normal(4, 3, 3, 3))
    model.graph.node[0].name = "conv"
    model.graph.node[1].name = EVIL
    onnx.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=normal(8, 3, 8, 8))
    job = Job(tmp_path / "m.onnx", tmp_path / "q.onnx", tmp_path / "d.npz", Recipe(), tmp_path / "r.html", threads=1)
    return run_job(job)


def test_report_is_one_file_well_formed_and_escaped(done):
    text = done.job.report.read_text(encoding="utf-8")
    page = Page(text)
    assert page.links == []
    assert "script" not in page.tags
    assert "url(" not in text
    assert "@import" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert EVIL not in text


def test_report_tells_what_there_is_to_tell(done):
    text = done.job.report.read_text(encoding="utf-8")
    plain = re.sub(r"<[^>]+>", " ", text)
    assert done.groups[0].reason.split("'")[0] in plain
    for report in done.result.reports:
        assert f"<td>{report.name}" in text
    for name in done.result.params:
        assert f"<code>{name}</code>" in text
    assert f"{done.bytes_before:,} → {done.bytes_after:,}" in plain
    assert "version: 1" in plain


def test_ranges_of_every_granularity():
    one = QuantParams(QuantSpec(QType.UINT8, symmetric=False), np.float32(0.5), np.int32(10))
    axis = QuantParams(QuantSpec(QType.INT8, PerAxis(0), bits=7, narrow=True), np.float32([0.5, 1.0]), np.int32([0, 0]))
    block = QuantParams(QuantSpec(QType.INT4, PerBlock(1, 32)), np.float32([[0.5]]), np.int32([[0]]))
    a, b, c = range_rows({"a": one, "b": axis, "c": block})
    assert (a.kind, a.scales, a.low, a.high, a.scale, a.zero_point) == ("uint8", "one", "-5", "122.5", "0.5", "10")
    assert (b.kind, b.scales, b.low, b.high) == ("int8, 7 bits, symmetric", "2 along axis 0", "-63", "63")
    assert b.scale == "0.5 … 1"
    assert (c.kind, c.scales) == ("int4, symmetric", "1, blocks of 32 along axis 1")


def test_write_text_leaves_nothing_behind_when_it_fails(tmp_path):
    from onnxq.errors import OnnxqError

    (tmp_path / "taken").mkdir()
    with pytest.raises(OnnxqError, match=r"cannot write .*taken"):
        write_text(tmp_path / "taken", "x")
    with pytest.raises(OnnxqError, match="cannot write"):
        write_text(tmp_path / "missing" / "file", "x")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


# ---- reasons -------------------------------------------------------------------------------------


def left(node, op, reason):
    return Decision(node, op, "float", reason)


def test_reasons_that_differ_in_names_only_are_one():
    groups = group_reasons(
        [
            left("a", "Erf", "it is odd"),
            left("b", "Reshape", "its input 'x/1' comes from Add 'p', which is float"),
            left("c", "Transpose", "its input 'y' comes from Reshape 'b', which is float"),
            left("d", "Add", "its input 'z' comes from MatMul 'q', which is float"),
        ]
    )
    assert [(g.reason, [n.node for n in g.nodes]) for g in groups] == [
        ("its input … comes from …, which is float", ["b", "c"]),
        ("it is odd", ["a"]),
        ("its input 'z' comes from MatMul 'q', which is float", ["d"]),
    ]
    assert groups[0].op_types == "Reshape, Transpose"


def test_one_reason_is_told_in_full_and_operators_are_counted():
    (group,) = group_reasons([left(str(i), op, "the recipe skips 'Add'") for i, op in enumerate(["Add", "Mul", "Add"])])
    assert group.reason == "the recipe skips 'Add'"
    assert group.op_types == "Add x2, Mul"


def test_entries_of_the_recipe_are_kept_apart():
    groups = group_reasons([left("a", "Add", "the recipe skips 'a'"), left("b", "Add", "the recipe skips 'b*'")])
    assert [g.reason for g in groups] == ["the recipe skips 'a'", "the recipe skips 'b*'"]


# ---- facts ---------------------------------------------------------------------------------------


def test_facts(tmp_path):
    text = """g (float[N, 4] x, int64[2] k) => (float[N, 2] y) {
        a = MatMul(x, W)
        b = Relu(a)
        y = Relu(b)
    }"""
    model = build(text, W=normal(4, 2))
    model.producer_name, model.producer_version = "maker", "1.2"
    model.opset_import.add(domain="com.other", version=3)
    onnx.save(model, tmp_path / "m.onnx")
    found = model_facts(tmp_path / "m.onnx")
    assert (found.opset, found.ir_version, found.producer, found.domains) == (17, 8, "maker 1.2", {"com.other": 3})
    assert found.op_types == {"Relu": 2, "MatMul": 1}
    assert (found.parameters, found.weight_bytes) == (8, 32)
    assert found.file_bytes == (tmp_path / "m.onnx").stat().st_size
    assert [str(v) for v in found.inputs] == ["float32 [N, 4]", "int64 [2]"]
    content = found.to_dict()
    assert content["nodes"] == 3
    assert content["outputs"] == [{"name": "y", "dtype": "float32", "shape": ["N", 2]}]


def test_numbers_of_constant_nodes_are_parameters_too(tmp_path):
    text = """g (float[N, 4] x) => (float[N, 4] y) {
        c = Constant<value = float[4] {1, 2, 3, 4}>()
        y = Add(x, c)
    }"""
    onnx.save(build(text), tmp_path / "m.onnx")
    found = model_facts(tmp_path / "m.onnx")
    assert (found.parameters, found.weight_bytes) == (4, 16)
    assert found.op_types == {"Constant": 1, "Add": 1}
