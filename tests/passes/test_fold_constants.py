"""FoldConstants: exact numbers, the node list, the count and every reason. Nothing is rounded, so rtol is 0."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxq.graph import GraphModel
from onnxq.passes._base import PassReport
from onnxq.passes.fold_constants import FoldConstants
from tests.graphs import apply, assert_same_function, build, graph_of, normal, ops, reasons


def folded(
    text: str, *, changed: int, left: list[str], opset: int = 17, **constants: Any
) -> tuple[PassReport, GraphModel, onnx.ModelProto]:
    """Run the pass; check function, node list and count; unchanged means unchanged bytes."""
    model = build(text, opset=opset, **constants)
    graph = GraphModel.from_proto(model)
    before = graph.to_proto().SerializeToString()
    report = apply(graph, FoldConstants())
    assert ops(graph) == left
    assert report.changed == changed
    assert (graph.to_proto().SerializeToString() == before) == (changed == 0)
    assert_same_function(model, graph, rtol=0)
    return report, graph, model


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    ("tail", "count", "shape", "more"),
    [
        ("w = Identity(W)", 1, (4, 6), {}),
        ("w = Transpose(W)", 1, (6, 4), {}),
        ("w = Transpose <perm=[1,0]> (W)", 1, (6, 4), {}),
        ("w1 = Transpose <perm=[2,0,1]> (W) w = Squeeze(w1, a)", 2, (4, 6, 1), {"a": ints(0)}),
        ("w = Reshape(W, a)", 1, (24,), {"a": ints(4, -1)}),
        ("w = Reshape(W, a)", 1, (4, 3, 2), {"a": ints(0, 6)}),
        ("w = Squeeze(W, a)", 1, (1, 4, 6, 1), {"a": ints(0, -1)}),
        ("w = Squeeze(W)", 1, (1, 4, 1, 6), {}),
        ("w1 = Unsqueeze(W, a) w = Squeeze(w1, a)", 2, (4, 6), {"a": ints(1, -1)}),
        ("w1 = Identity(W) w2 = Transpose(w1) w3 = Reshape(w2, a) w = Identity(w3)", 4, (3, 8), {"a": ints(4, 6)}),
        ("w1 = Cast <to=11> (W) w = Cast <to=1> (w1)", 2, (4, 6), {}),
    ],
)
def test_each_operator_and_chains_of_them(tail: str, count: int, shape: tuple[int, ...], more: dict[str, Any]) -> None:
    text = f"g (float[N,4] x) => (float[N,6] y) {{ {tail} y = MatMul(x, w) }}"
    report, graph, _ = folded(text, changed=count, left=["MatMul"], W=normal(*shape), **more)
    assert report.skipped == ()
    assert graph.is_constant(graph.nodes()[0].inputs[1])


def test_axes_are_attributes_before_opset_13() -> None:
    text = """g (float[N,4] x) => (float[N,6] y) {
        w1 = Unsqueeze <axes=[0,3]> (W) w = Squeeze <axes=[0,3]> (w1) y = MatMul(x, w) }"""
    folded(text, changed=2, left=["MatMul"], opset=11, W=normal(4, 6))


def test_allowzero_means_an_empty_dimension() -> None:
    text = """g (float[N,4] x) => (float[N,4] y, float[0,5] z) {
        w = Reshape <allowzero=1> (W, a) y = Relu(x) z = Neg(w) }"""
    folded(text, changed=1, left=["Relu", "Neg"], W=np.zeros((5, 0), np.float32), a=ints(0, 5))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.uint8, np.int32, np.int64, np.bool_])
def test_casts_to_float32(dtype: type) -> None:
    values = (normal(4, 6) * 20).astype(np.int8).astype(dtype)
    text = "g (float[N,4] x) => (float[N,6] y) { w = Cast <to=1> (W) y = MatMul(x, w) }"
    _, graph, _ = folded(text, changed=1, left=["MatMul"], W=values)
    assert graph.nodes()[0].inputs[1].name == "W_cast"
    assert graph.is_float32(graph.nodes()[0].inputs[1])


@pytest.mark.parametrize("to", [2, 3, 5, 6, 7, 9, 10, 11])
def test_casts_from_float32_round_as_the_runtime_does(to: int) -> None:
    """Fractions, both signs where the type has them, and 65520, which float16 makes infinite."""
    signed = [-0.5, -1.5, -3.99, 65520.0] if to in (6, 7, 10, 11) else []
    values = np.array([0.5, 1.5, 2.5, 0.3, 100.7, *signed], np.float32)
    text = f"g (float[N] x) => (float[A,B] y) {{ w = Cast <to={to}> (W) v = Flatten(w) y = Cast <to=1> (v) }}"
    folded(text, changed=1, left=["Flatten", "Cast"], W=values)


def test_a_shared_result_is_made_once() -> None:
    text = """g (float[N,4] x) => (float[N,6] y, float[N,6] z) {
        w = Transpose(W) y = MatMul(x, w) z = MatMul(x, w) }"""
    _, graph, _ = folded(text, changed=1, left=["MatMul", "MatMul"], W=normal(6, 4))
    assert graph.nodes()[0].inputs[1] is graph.nodes()[1].inputs[1]


def test_equal_views_share_one_constant() -> None:
    text = """g (float[N,4] x) => (float[N,6] y, float[N,6] z) {
        w1 = Transpose(W) y = MatMul(x, w1) w2 = Transpose(W) z = MatMul(x, w2) }"""
    _, graph, _ = folded(text, changed=2, left=["MatMul"] * 2, W=normal(6, 4))
    first, second = (n.inputs[1] for n in graph.nodes())
    assert first is second


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("Transpose(W)", "Reshape(W, a)"),
        ("Reshape(W, a)", "Reshape(W, b)"),
        ("Transpose <perm=[1,0]> (W)", "Transpose <perm=[0,1]> (W)"),
    ],
)
def test_different_views_of_one_constant_are_kept_apart(one: str, two: str) -> None:
    text = f"g (float[6] x) => (float[A,B] y, float[C,D] z) {{ w1 = {one} w2 = {two} y = Neg(w1) z = Neg(w2) }}"
    constants = {name: shape for name, shape in {"a": ints(2, 12), "b": ints(12, 2)}.items() if f" {name})" in text}
    folded(text, changed=2, left=["Neg"] * 2, W=normal(6, 4), **constants)


def test_identity_of_a_constant_makes_no_copy() -> None:
    text = "g (float[N,4] x) => (float[N,6] y) { w = Identity(W) y = MatMul(x, w) }"
    _, graph, _ = folded(text, changed=1, left=["MatMul"], W=normal(4, 6))
    assert graph.nodes()[0].inputs[1].name == "W"


def test_one_node_reading_a_result_twice() -> None:
    text = "g (float[4,4] x) => (float[4,4] y, float[4,4] z) { w = Transpose(W) y = Mul(w, w) z = Relu(x) }"
    folded(text, changed=1, left=["Mul", "Relu"], W=normal(4, 4))


def test_a_result_read_by_a_body() -> None:
    text = """g (float[4,4] x, bool p) => (float[4,4] y) {
        w = Transpose(W)
        y = If (p) <then_branch = t () => (float[4,4] t1) { t1 = Add(x, w) },
                    else_branch = e () => (float[4,4] e1) { e1 = Sub(x, w) }> }"""
    folded(text, changed=1, left=["If"], W=normal(4, 4))


# ---- what is left alone ------------------------------------------------------------------------


def test_a_graph_output_stays() -> None:
    text = "g (float[N,4] x) => (float[N,4] y, float[4,6] w) { [t] w = Transpose(W) y = Relu(x) }"
    report, _, _ = folded(text, changed=0, left=["Transpose", "Relu"], W=normal(6, 4))
    assert reasons(report) == {"t": "its result 'w' is a graph output"}


def test_a_shape_that_is_computed_at_run_time() -> None:
    text = """g (float[4,6] x) => (float[A,B] y) {
        [shape] s = Shape(x) [reshape] w = Reshape(W, s) y = Neg(w) }"""
    report, _, _ = folded(text, changed=0, left=["Shape", "Reshape", "Neg"], W=normal(6, 4))
    assert reasons(report) == {"reshape": "its second input 's' is computed at run time by Shape 'shape'"}


def test_axes_that_are_a_graph_input() -> None:
    text = "g (float[4,6] x, int64[1] a) => (float[A,B,C] y) { [u] w = Unsqueeze(W, a) y = Neg(w) }"
    report, _, _ = folded(text, changed=0, left=["Unsqueeze", "Neg"], W=normal(6, 4))
    assert reasons(report) == {"u": "its second input 'a' is a graph input"}


def test_a_cast_whose_result_depends_on_the_runtime() -> None:
    text = "g (float[4] x) => (int8[K] y) { [c] w = Cast <to=3> (W) y = Abs(w) }"
    graph = graph_of(text, W=np.float32([1, 300, np.nan]))
    report = apply(graph, FoldConstants())
    assert report.changed == 0
    assert reasons(report) == {"c": "a value does not fit into int8; what a Cast makes of it depends on the runtime"}


def test_a_cast_to_bfloat16_is_left_to_the_runtime() -> None:
    text = "g (float[4] x) => (float[4] y) { [c] w = Cast <to=16> (W) v = Cast <to=1> (w) y = Add(x, v) }"
    report = apply(graph_of(text, W=normal(4)), FoldConstants())
    assert report.changed == 0
    assert reasons(report) == {"c": "a Cast from float32 to bfloat16 is left to the runtime"}


def test_dequantizelinear_and_computed_tensors_are_not_touched() -> None:
    text = """g (float[N,4] x) => (float[N,4] y, float[1000,4] z) {
        w = DequantizeLinear(Q, K) y = MatMul(x, w) z = Expand(R, a) }"""
    report, _, _ = folded(
        text,
        changed=0,
        left=["DequantizeLinear", "MatMul", "Expand"],
        Q=np.ones((4, 4), np.int8),
        K=np.float32(0.5),
        R=normal(1, 4),
        a=ints(1000, 4),
    )
    assert report.skipped == ()


def test_activations_are_not_touched() -> None:
    text = "g (float[2,3] x) => (float[3,2] y) { a = Identity(x) y = Transpose(a) }"
    report, _, _ = folded(text, changed=0, left=["Identity", "Transpose"])
    assert report.skipped == ()


def test_a_dead_view_is_removed() -> None:
    text = "g (float[2,3] x) => (float[2,3] y) { w = Transpose(W) y = Relu(x) }"
    folded(text, changed=1, left=["Relu"], W=normal(2, 2))
