"""The HTML report, the grouping of reasons, the facts of a model."""

from __future__ import annotations

import dataclasses
import itertools
import re

import numpy as np
import onnx
import pytest

from onnxq.errors import OnnxqError
from onnxq.plan import Decision
from onnxq.recipe import Recipe
from onnxq.report.checked import Demands, check_models, wanted_pair
from onnxq.report.compare import Options
from onnxq.report.facts import model_facts
from onnxq.report.files import write_text
from onnxq.report.job import Job, run_job
from onnxq.report.layers import compare_layers
from onnxq.report.numbers import numbers_of
from onnxq.report.reasons import group_reasons
from onnxq.spec import PerAxis, PerBlock, QType, QuantParams, QuantSpec
from tests.graphs import build, normal
from tests.report.test_page import data

EVIL = "<script>alert(1)</script>&'\""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with a name that must be escaped, its data and labels."""
    text = """g (float[N, 3, 8, 8] x) => (float[N, 4] y) {
        c = Conv<pads=[1, 1, 1, 1]>(x, W)
        r = Relu(c)
        e = Erf(r)
        p = GlobalAveragePool(e)
        f = Flatten(p)
        y = Gemm(f, G)
    }"""
    model = build(text, W=normal(4, 3, 3, 3), G=normal(4, 4))
    for node, name in zip(model.graph.node, ("conv", "relu", EVIL, "pool", "flat", "head"), strict=True):
        node.name = name
    found = tmp_path_factory.mktemp("report")
    onnx.save(model, found / "m.onnx")
    np.savez(found / "d.npz", x=normal(12, 3, 8, 8))
    np.save(found / "labels.npy", np.arange(12) % 4)
    return found


@pytest.fixture(scope="module")
def done(folder):
    job = Job(folder / "m.onnx", folder / "q.onnx", folder / "d.npz", Recipe(), folder / "r.html", threads=1)
    return run_job(job)


@pytest.fixture(scope="module")
def text(done):
    return done.job.report.read_text(encoding="utf-8")


def named(text):
    """The blocks that the script of a page draws, tables by their labels and plots by their titles."""
    labels = re.findall(r'<figcaption>(.*?)</figcaption>|role="region" aria-label="(.*?)"', text)
    return {a or b: block for (a, b), block in zip(labels, data(text), strict=True)}


def columns(text, label):
    """The rows of a table as mappings."""
    head = text[text.index(f'aria-label="{label}"') :].split("</thead>")[0]
    titles = re.findall(r"<button[^>]*>(.*?)</button>", head)
    return [dict(zip(titles, row, strict=True)) for row in named(text)[label]["rows"]]


def test_the_report_tells_what_there_is_to_tell(done, text):
    plain = re.sub(r"<[^>]+>", " ", text)
    assert done.groups[0].reason.split("'")[0] in plain
    assert [row["pass"] for row in columns(text, "passes")] == [r.name for r in done.result.reports]
    listed = {row["tensor"] for row in columns(text, "scales")}
    assert listed == {a.tensor for a in done.result.plan.activations.values()} | {
        w.tensor for w in done.result.plan.weights
    }
    assert [row["reason"] for row in columns(text, "float nodes")] == [d.reason for d in done.result.plan.left_float()]
    assert "version: 1" in plain
    assert "&lt;script&gt;" in plain or EVIL not in text


def test_the_layers_are_those_of_the_plan_with_their_ranges_and_errors(done, text):
    rows = {row["node"]: row for row in columns(text, "layers")}
    assert {name: row["is"] for name, row in rows.items()} == {d.node: d.role for d in done.result.plan.decisions}
    compared = compare_layers(
        done.result.prepared,
        done.result.graph,
        lambda: [{"x": normal(12, 3, 8, 8)[:8]}],
        {"x": normal(12, 3, 8, 8)[:1]},
        threads=1,
    )
    errors = {error.pair.node: error.metrics for error in compared}
    assert set(errors) >= {"relu", "head"}
    for name, metrics in errors.items():
        assert rows[name]["SQNR"] == pytest.approx(metrics.sqnr_db, abs=0.05)
        assert rows[name]["cosine"] == pytest.approx(metrics.cosine, abs=1e-6)
    params = done.result.params["r"]
    relu = rows["relu"]
    assert (relu["output"], relu["type"]) == ("r", "uint8")
    assert relu["scale"] == pytest.approx(float(params.scale), rel=1e-4)
    assert (relu["lowest"], relu["highest"]) == pytest.approx((params.low.min(), params.high.max()), rel=1e-4)
    assert relu["clipped"] < 5
    assert "int8" in rows["conv"]["weights"]
    assert rows[EVIL]["why float"]


def test_histograms_hold_all_values_and_the_range_that_has_codes(done, text):
    tensors = {t["name"]: t for t in named(text)["Activations"]["tensors"]}
    assert set(tensors) == {a.tensor for a in done.result.plan.activations.values()}
    x = normal(12, 3, 8, 8)
    found = tensors["x"]
    assert sum(found["counts"]) == x.size
    low, high = found["range"]
    assert low <= x.min() <= x.max() <= high
    expected, _ = np.histogram(x, bins=len(found["counts"]), range=(low, high))
    assert np.abs(np.array(found["counts"]) - expected).sum() <= 4
    params = done.result.params["x"]
    assert found["clip"] == pytest.approx([float(params.low), float(params.high)], rel=1e-3)


def test_weights_have_the_ranges_of_their_channels(done, text):
    (weights,) = [t for t in named(text)["Weights by channel"]["tensors"] if t["name"] == "W"]
    values = normal(4, 3, 3, 3)
    assert weights["low"] == pytest.approx(values.min(axis=(1, 2, 3)).tolist(), rel=1e-3)
    assert weights["high"] == pytest.approx(values.max(axis=(1, 2, 3)).tolist(), rel=1e-3)
    params = done.result.params[done.result.plan.weights[0].key]
    assert np.array(weights["clip"]) == pytest.approx(np.stack([params.low, params.high], 1), rel=1e-3)


def test_the_graph_is_the_float_model(done, text):
    graph = named(text)["The float model and what became of it"]
    names = [node[0] for node in graph["nodes"]]
    assert names == ["x", "conv", "relu", EVIL, "pool", "flat", "head", "y"]
    edges = {(names[start], names[end]) for start, end, *_ in graph["edges"]}
    assert edges == set(itertools.pairwise(names))
    assert graph["kinds"][graph["nodes"][3][2]] == "float"
    assert dict(map(tuple, graph["nodes"][1][5]))["weight"] == "W"


def test_the_same_job_gives_the_same_layers(done, text, folder):
    again = run_job(dataclasses.replace(done.job, output=folder / "again.onnx", report=folder / "again.html"))
    other = again.job.report.read_text(encoding="utf-8")
    for label in ("layers", "scales", "Activations", "Weights by channel"):
        assert named(other)[label] == named(text)[label]


def test_without_real_data_the_model_is_not_run_and_the_report_says_so(folder):
    recipe = Recipe.from_dict({"calibration": {"random": True, "samples": 4}})
    job = Job(folder / "m.onnx", folder / "random.onnx", None, recipe, folder / "random.html", threads=1)
    text = run_job(job).job.report.read_text(encoding="utf-8")
    assert "takes samples of real data" in text
    assert "SQNR" not in columns(text, "layers")[0]
    assert named(text)["Activations"]["tensors"]


def test_a_model_of_which_nothing_is_quantized_has_a_report(tmp_path):
    onnx.save(build("g (float[2] x) => (float[2] y) { y = Erf(x) }"), tmp_path / "m.onnx")
    job = Job(tmp_path / "m.onnx", tmp_path / "q.onnx", None, Recipe(), tmp_path / "r.html", threads=1)
    text = run_job(job).job.report.read_text(encoding="utf-8")
    assert "Nothing was quantized" in text
    assert len(columns(text, "float nodes")) == 1


# ---- two models ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(done, folder):
    options = Options(folder / "d.npz", labels=folder / "labels.npy", latency=False, threads=1)
    checked = check_models(done.job.model, done.job.output, options, Demands(min_sqnr=99), report=folder / "c.html")
    return checked, (folder / "c.html").read_text(encoding="utf-8")


def test_a_report_on_two_files_finds_what_the_plan_said(done, text, compared):
    _, other = compared
    mine, theirs = ({row["node"]: row for row in columns(t, "layers")} for t in (text, other))
    assert list(theirs) == list(mine)
    for name, row in theirs.items():
        assert (row["is"], row["operator"]) == (mine[name]["is"], mine[name]["operator"])
        for key in ("lowest", "highest", "scale", "zero point", "type"):
            assert row[key] == mine[name][key]
        if row["weights"]:
            assert mine[name]["weights"].startswith(row["weights"])
    tensors = [{t["name"]: t for t in named(page)["Activations"]["tensors"]} for page in (text, other)]
    assert set(tensors[0]) == set(tensors[1])
    assert tensors[0]["x"] == tensors[1]["x"] | {"detail": tensors[0]["x"]["detail"]}


def test_a_report_on_two_files_has_accuracy_and_what_failed(compared):
    checked, text = compared
    assert len(checked.failed) == 1
    assert checked.failed[0].replace("'", "&#39;") in text
    assert checked.found.layers == ()
    rows = {row["measure"]: row for row in columns(text, "before and after")}
    assert rows["top-1"]["float"] == pytest.approx(100 * checked.found.accuracy.reference, rel=1e-4)
    assert rows["size"]["ratio"] == pytest.approx(
        checked.found.bytes_quantized / checked.found.bytes_reference, rel=1e-4
    )
    assert [row["output"] for row in columns(text, "outputs")] == ["y"]


def test_without_a_report_the_comparison_is_the_same(done, folder, compared):
    options = Options(folder / "d.npz", labels=folder / "labels.npy", latency=False, threads=1)
    plain = check_models(done.job.model, done.job.output, options)
    assert plain.failed == ()
    assert plain.found == compared[0].found


@pytest.mark.parametrize(
    ("paths", "options", "message"),
    [
        (["m.onnx"], {}, "is a file: give the float and the quantized model"),
        (["m.onnx", "q.onnx"], {}, "give --data"),
        (["m.onnx", "q.onnx"], {"data": "d.npz"}, "name it with -o"),
        (["m.onnx", "q.onnx"], {"data": "d.npz", "report": "r.html", "advise": True}, "--advise is about the folder"),
        (["a", "b", "c"], {}, "3 paths"),
    ],
    ids=["one model", "no data", "no report", "advice", "three"],
)
def test_what_is_to_be_reported_on_must_be_clear(folder, done, paths, options, message):
    given = {key: folder / value if isinstance(value, str) else value for key, value in options.items()}
    arguments = {"data": None, "report": None, **given}
    with pytest.raises(OnnxqError, match=message):
        wanted_pair([folder / path for path in paths], **arguments)


def test_a_folder_is_a_debug_report(folder):
    assert wanted_pair([folder], None, None, advise=True) is None


def test_ranges_of_every_granularity():
    one = QuantParams(QuantSpec(QType.UINT8, symmetric=False), np.float32(0.5), np.int32(10))
    axis = QuantParams(QuantSpec(QType.INT8, PerAxis(0), bits=7, narrow=True), np.float32([0.5, 1.0]), np.int32([0, 0]))
    block = QuantParams(QuantSpec(QType.INT4, PerBlock(1, 32)), np.float32([[0.5]]), np.int32([[0]]))
    a, b, c = (numbers_of("t", params) for params in (one, axis, block))
    assert (a.kind, a.scales, a.range, a.scale_text, a.zero_text) == ("uint8", "one", (-5, 122.5), "0.5", "10")
    assert (b.kind, b.scales, b.range) == ("int8, 7 bits, symmetric", "2 along axis 0", (-63, 63))
    assert b.scale_text == "0.5 … 1"
    assert (c.kind, c.scales) == ("int4, symmetric", "1, blocks of 32 along axis 1")


def test_write_text_leaves_nothing_behind_when_it_fails(tmp_path):
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
