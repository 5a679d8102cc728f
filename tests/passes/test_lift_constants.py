"""LiftConstants: every form of a Constant node, in the main graph only."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxq._graph.weights import ProtoWeights
from onnxq.errors import GraphError
from onnxq.graph import GraphModel
from onnxq.passes.lift_constants import LiftConstants
from tests.graphs import apply, assert_same_function, build, graph_of, ops, run


@pytest.mark.parametrize(
    ("form", "values", "dtype"),
    [
        ("value = float[2] {1.5, 2}", [1.5, 2], np.float32),
        ("value = int64 {3}", 3, np.int64),
        ("value_float = 1.5", 1.5, np.float32),
        ("value_floats = [1.5, 2.5]", [1.5, 2.5], np.float32),
        ("value_int = 3", 3, np.int64),
        ("value_ints = [3, -4]", [3, -4], np.int64),
        ('value_string = "a"', "a", object),
        ('value_strings = ["a", "bc"]', ["a", "bc"], object),
    ],
)
def test_every_form(form: str, values: object, dtype: type) -> None:
    model = build(f"g (float[2] x) => (float[2] y) {{ c = Constant <{form}> () s = Shape(c) y = Relu(x) z = Size(s) }}")
    graph = GraphModel.from_proto(model)
    assert apply(graph, LiftConstants()).changed == 1
    constant = graph.tensor("c")
    value = graph.value(constant)
    assert value.dtype == dtype
    assert value.tolist() == values
    assert ops(graph) == ["Shape", "Relu", "Size"]
    (tensor,) = graph.to_proto().graph.initializer
    assert tensor.name == "c"
    assert onnx.numpy_helper.to_array(tensor).tolist() == values
    assert_same_function(model, graph, rtol=0)


def test_a_sparse_value() -> None:
    values = onnx.numpy_helper.from_array(np.array([5, 6], np.float32), "ignored")
    indices = onnx.numpy_helper.from_array(np.array([1, 3], np.int64))
    sparse = onnx.helper.make_sparse_tensor(values, indices, [2, 2])
    nodes = [
        onnx.helper.make_node("Constant", [], ["c"], sparse_value=sparse),
        onnx.helper.make_node("Add", ["x", "c"], ["y"]),
    ]
    infos = [onnx.helper.make_tensor_value_info(n, 1, [2, 2]) for n in ("x", "y")]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", infos[:1], infos[1:]), ir_version=8)
    graph = GraphModel.from_proto(model)
    apply(graph, LiftConstants())
    assert graph.value(graph.tensor("c")).tolist() == [[0, 5], [0, 6]]
    exported = graph.to_proto()
    assert exported.graph.sparse_initializer[0].values.name == "c"
    assert not exported.graph.initializer


def test_the_numbers_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_of("g (float[2] x) => (float[2] y) { c = Constant <value = float[2] {1, 2}> () y = Add(x, c) }")
    monkeypatch.setattr(ProtoWeights, "array", lambda _: pytest.fail("read"))
    apply(graph, LiftConstants())


def test_shared_constants_outputs_and_bodies() -> None:
    model = build(
        """g (float[2] x, bool b) => (float[2] y, float[2] c) {
            c = Constant <value = float[2] {1, 2}> ()
            a = Mul(c, c)
            d = Add(a, x)
            y = If(b) <then_branch = t () => (float[2] p) { p = Add(c, d) },
                       else_branch = e () => (float[2] q) { k = Constant <value_float = 2.0> () q = Mul(d, k) }> }"""
    )
    graph = GraphModel.from_proto(model)
    assert apply(graph, LiftConstants()).changed == 1
    assert ops(graph) == ["Mul", "Add", "If"], "the Constant in the body stays in it"
    constant = graph.tensor("c")
    assert graph.is_constant(constant)
    assert graph.is_output(constant)
    assert graph.read_by_subgraph(constant)
    assert_same_function(model, graph, rtol=0)
    assert graph.sweep() == 0
    assert run(graph, {"x": np.zeros(2, np.float32), "b": np.array(True)})["c"].tolist() == [1, 2]


def test_no_constants_no_change() -> None:
    graph = graph_of("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    before = graph.to_proto().SerializeToString(deterministic=True)
    assert apply(graph, LiftConstants()).changed == 0
    assert graph.to_proto().SerializeToString(deterministic=True) == before


def test_a_constant_without_a_value_is_refused() -> None:
    graph = graph_of("g (float[2] x) => (float[2] y) { [c] k = Constant() y = Add(x, k) }", check=False)
    with pytest.raises(GraphError, match="Constant node 'c' has no attribute; it must have exactly one"):
        apply(graph, LiftConstants())
