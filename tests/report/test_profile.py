"""What ONNX Runtime's profiler says, node by node, and which nodes of the model it is about."""

from __future__ import annotations

import json
import tempfile

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.errors import DataError
from onnxq.graph import GraphModel
from onnxq.report.profile import KernelKind, profile_model, profile_of
from onnxq.runtime import Trace
from tests.graphs import build, graph_of, normal

NET = """g (float[N, 3, 8, 8] x) => (float[N, 5] y) {
    c = Conv<pads=[1, 1, 1, 1]>(x, W, B)
    r = Relu(c)
    p = GlobalAveragePool(r)
    f = Flatten(p)
    y = Gemm(f, G)
}"""
NAMES = ("conv", "relu", "pool", "flat", "head")


def net():
    model = build(NET, W=normal(4, 3, 3, 3), B=normal(4), G=normal(4, 5))
    for node, name in zip(model.graph.node, NAMES, strict=True):
        node.name = name
    return model


def kernel(name, start, length, op="Relu", **args):
    facts = {"op_name": op, "provider": "CPUExecutionProvider", "node_index": "1", **args}
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": start, "dur": length, "args": facts}


def run(start, length):
    return {"cat": "Session", "name": "model_run", "ts": start, "dur": length, "args": {}}


def traced(*events, warm_up=0):
    return Trace(tuple(events), build("g (float[1] x) => (float[1] y) { y = Relu(x) }"), warm_up)


def of_trace(*events, warm_up=0):
    return profile_of(traced(*events, warm_up=warm_up), graph_of("g (float[1] x) => (float[1] y) { y = Relu(x) }"))


# ---- reading the events ------------------------------------------------------------------------


def test_times_are_medians_over_the_runs_behind_the_warm_up():
    spent = [900, 10, 30, 12]
    events = [e for k, us in enumerate(spent) for e in (kernel("a", 1000 * k + 5, us), run(1000 * k, us + 20))]
    found = of_trace(*events, warm_up=1)
    assert [(n.name, n.microseconds) for n in found.nodes] == [("a", 12.0)]
    assert (found.runs, found.run_microseconds, found.microseconds) == (3, 32.0, 12.0)


def test_the_time_of_a_node_with_a_body_is_without_that_of_the_body():
    events = [
        kernel("inner", 20, 30),
        kernel("deep", 62, 5, node_index="3"),
        kernel("branch", 60, 15, op="If", node_index="2"),
        kernel("loop", 10, 80, op="Loop", node_index="7"),
        kernel("after", 95, 4),
        run(0, 100),
    ]
    found = {n.name: n.microseconds for n in of_trace(*events).nodes}
    assert found == {"loop": 35.0, "inner": 30.0, "branch": 10.0, "deep": 5.0, "after": 4.0}


def test_a_node_that_runs_several_times_in_one_run_counts_every_time():
    events = [kernel("step", 10 * k, 4) for k in range(1, 4)]
    found = of_trace(*events, kernel("loop", 5, 60, op="Loop"), run(0, 80))
    assert {n.name: n.microseconds for n in found.nodes} == {"loop": 48.0, "step": 12.0}


def test_nodes_of_the_same_name_inside_and_outside_of_a_body_are_two():
    events = [kernel("a", 10, 20), kernel("if", 5, 30, op="If"), kernel("a", 40, 7), run(0, 60)]
    assert sorted(n.microseconds for n in of_trace(*events).nodes if n.name == "a") == [7.0, 20.0]


def test_a_node_that_is_not_run_every_time_has_its_median_over_all_runs():
    events = [kernel("a", 1, 8), run(0, 10), kernel("b", 11, 8), run(10, 10), kernel("a", 21, 8), run(20, 10)]
    assert {n.name: n.microseconds for n in of_trace(*events).nodes} == {"a": 8.0, "b": 0.0}


def test_events_of_the_session_are_no_nodes():
    other = {"cat": "Session", "name": "SequentialExecutor::Execute", "ts": 1, "dur": 5, "args": {}}
    assert of_trace(other, run(0, 10)).nodes == ()


@pytest.mark.parametrize(
    ("op", "types", "kind"),
    [
        ("QLinearConv", ["uint8"], KernelKind.INTEGER),
        ("QLinearAdd", ["uint8"], KernelKind.INTEGER),
        ("QGemm", ["uint8"], KernelKind.INTEGER),
        ("MatMulInteger", ["uint8"], KernelKind.INTEGER),
        ("ConvInteger", ["uint8"], KernelKind.INTEGER),
        ("MatMulIntegerToFloat", ["uint8"], KernelKind.INTEGER),
        ("DynamicQuantizeMatMul", ["float"], KernelKind.INTEGER),
        ("DynamicQuantizeLSTM", ["float"], KernelKind.INTEGER),
        ("QAttention", ["uint8"], KernelKind.INTEGER),
        ("MatMulNBits", ["float"], KernelKind.CODED_WEIGHTS),
        ("QuantizeLinear", ["float"], KernelKind.CONVERSION),
        ("DynamicQuantizeLinear", ["float"], KernelKind.CONVERSION),
        ("MaxPool", ["uint8"], KernelKind.CODES),
        ("Transpose", ["int8"], KernelKind.CODES),
        ("Conv", ["float"], KernelKind.FLOAT),
        ("Gather", ["float", "int64"], KernelKind.FLOAT),
        ("Shape", [], KernelKind.FLOAT),
    ],
)
def test_what_a_kernel_computes_with(op, types, kind):
    shapes = [{name: [1]} for name in types]
    (node,) = of_trace(kernel("a", 1, 5, op=op, input_type_shape=shapes), run(0, 10)).nodes
    assert node.kind is kind


def test_sums_by_operator_kind_and_layer():
    codes = [{"uint8": [1]}]
    events = [
        kernel("a", 1, 30, op="Conv"),
        kernel("b", 40, 20, op="Conv"),
        kernel("m", 70, 10, op="MaxPool", input_type_shape=codes),
        kernel("n", 90, 40, op="MaxPool"),
        run(0, 200),
    ]
    found = of_trace(*events)
    assert [(o.op_type, o.kind.value, o.nodes, o.microseconds, o.share) for o in found.by_op()] == [
        ("Conv", "float", 2, 50.0, 0.5),
        ("MaxPool", "float", 1, 40.0, 0.4),
        ("MaxPool", "moves codes", 1, 10.0, 0.1),
    ]
    assert found.by_kind()[KernelKind.FLOAT] == 90.0
    assert found.by_kind()[KernelKind.INTEGER] == 0.0
    assert json.loads(json.dumps(found.to_dict()))["by_kind"]["moves codes"] == 10.0


# ---- real models -------------------------------------------------------------------------------


def test_fused_nodes_of_a_float_model_are_mapped_to_its_layers():
    found = profile_model(GraphModel.from_proto(net()), [{"x": normal(1, 3, 8, 8)}], threads=1, runs=2)
    assert set(found.by_layer()) == {"conv", "pool", "flat", "head"}
    (conv,) = (n for n in found.nodes if n.layer == "conv")
    assert conv.covers == ("conv", "relu")
    assert "Conv" in conv.op_type
    covered = [name for n in found.nodes for name in n.covers]
    assert sorted(covered) == sorted(NAMES)
    assert all(n.kind is KernelKind.FLOAT and n.provider == "CPUExecutionProvider" for n in found.nodes)


def test_integer_kernels_of_a_quantized_model_are_mapped_to_the_same_layers(tmp_path):
    result = onnxq.quantize(net(), {"x": normal(16, 3, 8, 8)}, threads=1)
    result.save(tmp_path / "q.onnx")
    found = profile_model(tmp_path / "q.onnx", [{"x": normal(1, 3, 8, 8)}], threads=1, runs=2)
    kernels = {n.layer: (n.op_type, n.kind) for n in found.nodes}
    assert kernels["conv"] == ("QLinearConv", KernelKind.INTEGER)
    assert kernels["head"] == ("QGemm", KernelKind.INTEGER)
    assert next(n.domain for n in found.nodes if n.layer == "head") == "com.microsoft"
    names = {node.name for node in result.graph.nodes()}
    assert {name for n in found.nodes for name in n.covers} <= names
    assert {n.layer for n in found.nodes} - {None} <= names
    assert sum(n.microseconds for n in found.unmapped) + sum(found.by_layer().values()) == pytest.approx(
        found.microseconds
    )


def test_a_float_kernel_between_codes_is_told_from_one_that_has_nothing_to_do_with_them():
    text = """g (float[1, 4] x) => (float[1, 4] y) {
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        e = Erf(d)
        u = QuantizeLinear(e, s, z)
        v = DequantizeLinear(u, s, z)
        y = Reshape(v, shape)
    }"""
    model = build(text, s=np.float32(0.1), z=np.uint8(128), shape=np.array([1, 4]))
    found = profile_model(GraphModel.from_proto(model), [{"x": normal(1, 4)}], threads=1, runs=1)
    kinds = {n.op_type: n.kind for n in found.nodes}
    assert kinds["Erf"] is KernelKind.DEQUANTIZED
    assert kinds.get("Reshape", KernelKind.FLOAT) in (KernelKind.FLOAT, KernelKind.CODES)


def test_nodes_in_bodies_belong_to_the_node_around_them():
    then = onnx.parser.parse_graph("t () => (float[1, 4] a) { a = Erf(x) }")
    other = onnx.parser.parse_graph("e () => (float[1, 4] b) { b = Neg(x) }")
    model = build("g (float[1, 4] x, bool c) => (float[1, 4] y) { y = Identity(x) }")
    del model.graph.node[:]
    model.graph.node.append(onnx.helper.make_node("If", ["c"], ["y"], "choose", then_branch=then, else_branch=other))
    feed = {"x": normal(1, 4), "c": np.array(True)}
    found = profile_model(GraphModel.from_proto(model), [feed], threads=1, runs=2)
    assert {(n.op_type, n.layer) for n in found.nodes} == {("If", "choose"), ("Erf", "choose")}
    assert next(n for n in found.nodes if n.op_type == "Erf").covers == ()


def test_feeds_are_taken_in_turn_and_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    feeds = [{"x": normal(n, 3, 8, 8)} for n in (1, 2)]
    found = profile_model(GraphModel.from_proto(net()), feeds, threads=1, runs=3, warm_up=0)
    assert found.runs == 3
    assert list(scratch.iterdir()) == []
    assert [p.name for p in tmp_path.iterdir()] == ["scratch"]


def test_nothing_is_left_behind_when_a_feed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(DataError, match="the model"):
        profile_model(GraphModel.from_proto(net()), [{"x": normal(1, 3, 9, 9, 9)}], threads=1)
    assert list(tmp_path.iterdir()) == []


def test_no_feed_is_refused(tmp_path):
    onnx.save(net(), tmp_path / "m.onnx")
    with pytest.raises(DataError, match=r"m\.onnx: there is not a single feed"):
        profile_model(tmp_path / "m.onnx", [])


def test_nodes_without_names_are_called_as_in_reports():
    text = "g (float[1, 4] x) => (float[1, 4] y) { a = Erf(x) b = Neg(a) y = Erf(b) }"
    graph = GraphModel.from_proto(build(text))
    found = profile_model(graph, [{"x": normal(1, 4)}], threads=1, runs=1)
    assert [n.layer for n in found.nodes] == ["erf_0", "neg_1", "erf_2"]
    assert [node.name for node in graph.nodes()] == ["", "", ""]
