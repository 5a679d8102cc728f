"""InferShapes: what is inferred, what stays dynamic, and models that onnx cannot infer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxq._graph.weights import DataFile
from onnxq.graph import GraphModel
from onnxq.modelio import load_model, save_model
from onnxq.passes.infer_shapes import InferShapes
from tests.graphs import apply, assert_same_function, build, graph_of, normal, run


def test_types_and_shapes_with_a_dynamic_batch() -> None:
    model = build(
        """g (float[N,3,8,8] x) => (float[N,D] y) {
            c = Conv(x, W) s = Shape(c) i = Constant <value_int = 0> () n = Gather(s, i)
            a = Constant <value_ints = [0]> () u = Unsqueeze(n, a) r = Constant <value_ints = [-1]> ()
            t = Concat <axis = 0> (u, r) y = Reshape(c, t) h = Cast <to = 10> (c) }""",
        W=normal(4, 3, 3, 3),
    )
    graph = GraphModel.from_proto(model)
    report = apply(graph, InferShapes())
    shapes = {name: graph.shape(t) for name, t in graph.tensors().items()}
    assert shapes["c"] == ("N", 4, 6, 6)
    assert shapes["s"] == (4,)
    assert shapes["h"] == ("N", 4, 6, 6)
    assert shapes["y"] in {("N", "D"), ("N", 144)}
    assert graph.dtype(graph.tensor("s")) == np.int64
    assert graph.dtype(graph.tensor("h")) == np.float16
    assert graph.is_float32(graph.tensor("c"))
    assert report.changed >= 9
    assert report.notes == ()
    assert_same_function(model, graph, rtol=0)
    before = graph.to_proto().SerializeToString(deterministic=True)
    assert apply(graph, InferShapes()).changed == 0
    assert graph.to_proto().SerializeToString(deterministic=True) == before


def test_unknown_dimensions_get_no_made_up_names() -> None:
    graph = graph_of("g (float[A,B] x, bool[A] c) => (float[C,B] y) { z = Compress <axis = 0> (x, c) y = Relu(z) }")
    apply(graph, InferShapes())
    assert graph.shape(graph.tensor("z")) == (None, "B")
    assert graph.shape(graph.tensor("y")) == ("C", "B")


def test_what_the_model_says_is_kept_behind_unknown_operators() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "c" : 1]> g (float[N,4] x) => (float[N,5] y)
        <float[N,4] a> { a = c.Mine(x) b = Relu(a) y = MatMul(b, W) d = c.Other(b) e = Relu(d) }"""
    graph = graph_of(text, W=normal(4, 5))
    report = apply(graph, InferShapes())
    assert graph.shape(graph.tensor("b")) == ("N", 4)
    assert graph.is_float32(graph.tensor("b"))
    assert graph.dtype(graph.tensor("d")) is None
    assert report.notes == ("the type of 2 tensors is not known: 'd', 'e'",)


def test_wrong_shapes_in_the_model_are_put_right() -> None:
    model = build("g (float[2,3] x) => (float[2,3] y) { a = Relu(x) y = Neg(a) }")
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, [7, 3, 1]))
    graph = GraphModel.from_proto(model)
    assert apply(graph, InferShapes()).changed == 1
    assert graph.shape(graph.tensor("a")) == (2, 3)
    run(graph)


@pytest.mark.parametrize("opset", [11, 17])
def test_a_model_onnx_cannot_infer_gets_a_note(opset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise onnx.shape_inference.InferenceError("broken\n  somewhere")

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", fail)
    graph = graph_of("g (float[2] x) => (float[2] y) { y = Relu(x) }", opset=opset)
    before = graph.to_proto().SerializeToString(deterministic=True)
    report = apply(graph, InferShapes())
    assert report.changed == 0
    assert report.notes == ("onnx cannot infer the shapes of this model: broken somewhere",)
    assert graph.to_proto().SerializeToString(deterministic=True) == before


def test_big_weights_take_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("g (float[N,200] x) => (float[N,100] y) { a = MatMul(x, W) y = Reshape(a, s) }",
                  W=normal(200, 100), s=np.array([-1, 100]))  # fmt: skip
    save_model(GraphModel.from_proto(model), tmp_path / "m.onnx", external_data=True)
    graph = load_model(tmp_path / "m.onnx")
    monkeypatch.setattr(DataFile, "map", lambda *_: pytest.fail("the weights were read"))
    apply(graph, InferShapes())
    assert graph.shape(graph.tensor("a")) == ("N", 100)


def test_sequences_and_bodies_are_left_alone() -> None:
    model = build(
        """g (float[2,3] x, bool c) => (float[2,3] y) {
            s = SplitToSequence <axis = 0, keepdims = 0> (x)
            i = Constant <value_int = 0> ()
            a = SequenceAt(s, i)
            y = If(c) <then_branch = t () => (float[2,3] p) { p = Add(x, a) },
                       else_branch = e () => (float[2,3] q) { q = Neg(x) }> }"""
    )
    graph = GraphModel.from_proto(model)
    apply(graph, InferShapes())
    assert graph.dtype(graph.tensor("s")) is None
    assert graph.shape(graph.tensor("a")) == (3,)
    assert_same_function(model, graph, rtol=0)


def test_operators_of_onnx_runtime_do_not_stop_inference() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
        g (float[N,3,8,8] x) => (float[N,4,6,6] y) {
            c = com.microsoft.FusedConv <activation = "Relu", kernel_shape = [3,3]> (x, W)
            d = com.microsoft.Gelu(c)
            e, m, v, s = com.microsoft.SkipLayerNormalization(d, c, G)
            f = com.microsoft.FusedMatMul <alpha = 0.5> (e, V)
            h = com.microsoft.FusedMatMul <transB = 1> (f, V)
            y = Relu(f) }"""
    model = build(text, W=normal(4, 3, 3, 3), G=normal(6), V=normal(6, 6))
    graph = GraphModel.from_proto(model)
    report = apply(graph, InferShapes())
    for name in "cdefy":
        assert graph.shape(graph.tensor(name)) == ("N", 4, 6, 6)
        assert graph.is_float32(graph.tensor(name))
    assert report.notes == ("the type of 4 tensors is not known: 'm', 'v', 's', 'h'",)
    assert [n.op for n in graph.nodes()][:2] == ["FusedConv", "Gelu"]
