"""AssignNames: unique, deterministic, and unique names stay."""

from __future__ import annotations

import pytest

from onnxq.errors import GraphError
from onnxq.graph import GraphModel
from onnxq.passes.assign_names import AssignNames
from tests.graphs import apply, build, context, graph_of, run


def test_missing_and_double_names() -> None:
    model = build(
        "g (float[2] x) => (float[2] y) { a = Relu(x) [n] b = Neg(a) [n] c = Abs(b) [keep] d = Exp(c) [n] y = Neg(d) }"
    )
    graph = GraphModel.from_proto(model)
    report = apply(graph, AssignNames())
    assert [n.name for n in graph.nodes()] == ["relu_0", "n", "n_1", "keep", "n_2"]
    assert report.changed == 3
    assert report.notes == (
        "a node called 'n' as another one is now 'n_1'",
        "a node called 'n' as another one is now 'n_2'",
        "1 nodes had no name; they are now called after their operator and position",
    )
    assert graph.node("n_2") is graph.nodes()[4]
    assert run(graph)["y"].shape == (2,), "ONNX Runtime refuses double names"


def test_names_depend_on_the_order_of_the_graph_and_not_of_the_file() -> None:
    model = build("g (float[2] x) => (float[2] y) { a = Relu(x) b = Neg(a) y = Abs(b) }")
    backwards = build("g (float[2] x) => (float[2] y) { y = Abs(b) b = Neg(a) a = Relu(x) }", check=False)
    named = []
    for proto in (model, backwards):
        graph = GraphModel.from_proto(proto)
        apply(graph, AssignNames())
        named.append([n.name for n in graph.nodes()])
    assert named == [["relu_0", "neg_1", "abs_2"]] * 2


def test_a_new_name_avoids_all_others() -> None:
    graph = graph_of(
        "g (float[2] relu_0) => (float[2] y) { a = Relu(relu_0) [n_1] b = Neg(a) [n] c = Neg(b) [n] y = Neg(c) }"
    )
    apply(graph, AssignNames())
    assert [n.name for n in graph.nodes()] == ["relu_0_1", "n_1", "n", "n_2"]


def test_unique_names_are_left_and_bytes_too() -> None:
    graph = graph_of("g (float[2] x) => (float[2] y) { [x] a = Relu(x) [b] y = Neg(a) }")
    before = graph.to_proto().SerializeToString(deterministic=True)
    report = apply(graph, AssignNames())
    assert (report.changed, report.notes) == (0, ())
    assert graph.to_proto().SerializeToString(deterministic=True) == before


def test_twice_changes_nothing_more() -> None:
    graph = graph_of("g (float[2] x) => (float[2] y) { a = Relu(x) y = Neg(a) }")
    apply(graph, AssignNames())
    assert apply(graph, AssignNames()).changed == 0


def test_verify_finds_what_is_not_named() -> None:
    graph = graph_of("g (float[2] x) => (float[2] y) { [n] a = Relu(x) [n] y = Neg(a) }")
    with pytest.raises(GraphError, match=r"node 'n' \(Neg\) has the name 'n' of another one \(Relu\)"):
        AssignNames().verify(graph, context())
    graph = graph_of("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    with pytest.raises(GraphError, match=r"node '' \(Relu\) has no name"):
        AssignNames().verify(graph, context())
