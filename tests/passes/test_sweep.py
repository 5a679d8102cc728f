"""Sweep: what nothing reads is gone, and nothing else."""

from __future__ import annotations

from onnxq.graph import GraphModel
from onnxq.passes.sweep import Sweep
from tests.graphs import apply, assert_same_function, build, graph_of, normal, ops


def test_dead_nodes_and_constants_are_removed() -> None:
    model = build(
        """g (float[4] x, float[4] ignored) => (float[4] y) {
            a = Relu(x) b = Add(a, V) c = Neg(b) y = Add(a, W) d = Identity(U) }""",
        W=normal(4), V=normal(4), U=normal(4), T=normal(4),
    )  # fmt: skip
    graph = GraphModel.from_proto(model)
    report = apply(graph, Sweep())
    assert ops(graph) == ["Relu", "Add"]
    assert report.changed == 6
    exported = graph.to_proto()
    assert [t.name for t in exported.graph.initializer] == ["W"]
    assert [i.name for i in exported.graph.input] == ["x", "ignored"]
    assert_same_function(model, graph, rtol=0)
    assert apply(graph, Sweep()).changed == 0


def test_what_bodies_read_is_kept() -> None:
    model = build(
        """g (float[2] x, bool c) => (float[2] y) {
            a = Relu(x) b = Neg(x)
            y = If(c) <then_branch = t () => (float[2] p) { p = Add(a, W) },
                       else_branch = e () => (float[2] q) { q = Identity(x) }> }""",
        W=normal(2), V=normal(2),
    )  # fmt: skip
    graph = GraphModel.from_proto(model)
    assert apply(graph, Sweep()).changed == 2
    assert ops(graph) == ["Relu", "If"]
    assert_same_function(model, graph, rtol=0)


def test_outputs_without_a_reader_keep_their_place() -> None:
    model = build("g (float[2,6] x) => (float[2,3] y) { a, y = Split <num_outputs = 2, axis = 1> (x) }", opset=18)
    graph = GraphModel.from_proto(model)
    before = graph.to_proto().SerializeToString(deterministic=True)
    assert apply(graph, Sweep()).changed == 0
    assert graph.to_proto().SerializeToString(deterministic=True) == before


def test_new_nodes_are_put_in_order() -> None:
    graph = graph_of("g (float[2] x) => (float[2] y) { a = Relu(x) y = Neg(a) }")
    late = graph.add_node("Abs", [graph.tensor("a")], name="late")
    graph.set_input(graph.nodes("Neg")[0], 0, late.outputs[0])
    apply(graph, Sweep())
    assert ops(graph) == ["Relu", "Abs", "Neg"]
