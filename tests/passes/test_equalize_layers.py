"""EqualizeLayers: the function against ONNX Runtime, the ranges it promises, the count and every reason.

Tolerance: each weight is rounded once more (6e-8 of it); with sums of fewer than 200 products over three
layers 1e-5 of the output's range bounds the deviation, ten times below what the pass promises.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxq.errors import GraphError, RecipeError
from onnxq.graph import GraphModel
from onnxq.passes._base import PassReport
from onnxq.passes.equalize_layers import EqualizeLayers
from tests.graphs import apply, assert_same_function, build, feeds_for, graph_of, normal, ops, reasons, run

RTOL = 1e-5
LAST = "'y' is a graph output"


def spread_rows(*shape: int, seed: int = 0) -> np.ndarray:
    """Weights whose channels on axis 0 differ in size by up to 1000."""
    sizes = np.logspace(-1.5, 1.5, shape[0], dtype=np.float32)
    return normal(*shape, seed=seed) * sizes.reshape(-1, *[1] * (len(shape) - 1))


def equalized(
    model: onnx.ModelProto, *, changed: int, left: list[str] | None = None, **options: Any
) -> tuple[PassReport, GraphModel]:
    """Run the pass, check function, node list and count; unchanged means unchanged bytes."""
    graph = GraphModel.from_proto(model)
    before = graph.to_proto().SerializeToString()
    report = apply(graph, EqualizeLayers(**options))
    assert report.changed == changed
    assert ops(graph) == (ops(model) if left is None else left)
    assert (graph.to_proto().SerializeToString() == before) == (changed == 0)
    assert_same_function(model, graph, rtol=RTOL)
    return report, graph


def weight(graph: GraphModel, node: str) -> np.ndarray:
    return np.asarray(graph.value(graph.node(node).inputs[1]))


def per_axis(w: np.ndarray, axis: int) -> np.ndarray:
    return np.abs(np.moveaxis(w, axis, 0)).reshape(w.shape[axis], -1).max(axis=1)


# ---- what it promises --------------------------------------------------------------------------


def test_a_pair_gets_equal_ranges_channel_by_channel() -> None:
    w1, w2 = spread_rows(6, 3, 3, 3), normal(5, 6, 3, 3)
    model = build(
        """g (float[N,3,9,9] x) => (float[N,5,5,5] y) {
            [one] c = Conv(x, W1, B1) r = Relu(c) [two] y = Conv(r, W2) }""",
        W1=w1,
        B1=normal(6),
        W2=w2,
    )
    report, graph = equalized(model, changed=1)
    first, second = per_axis(weight(graph, "one"), 0), per_axis(weight(graph, "two"), 1)
    np.testing.assert_allclose(first, np.sqrt(per_axis(w1, 0) * per_axis(w2, 1)), rtol=1e-5)
    np.testing.assert_allclose(second, first, rtol=1e-5)
    assert reasons(report) == {"two": LAST}
    assert report.notes == ("equalized 1 pairs of layers in 2 rounds",)
    assert [t.name for t in graph.node("one").inputs] == ["x", "W1_equalized", "B1_equalized"]
    assert [t.name for t in graph.node("two").inputs] == ["r", "W2_equalized"]


def test_a_depthwise_triple_gets_equal_ranges_in_all_three() -> None:
    model = build(
        """g (float[N,3,9,9] x) => (float[N,5,7,7] y) {
            [one] c = Conv(x, W1, B1) r = Relu(c)
            [dw] d = Conv <group=6> (r, W2, B2) s = Relu(d)
            [two] y = Conv(s, W3, B3) }""",
        W1=spread_rows(6, 3, 1, 1),
        B1=normal(6),
        W2=spread_rows(6, 1, 3, 3)[::-1].copy(),
        B2=normal(6, seed=2),
        W3=normal(5, 6, 1, 1),
        B3=normal(5),
    )
    _, graph = equalized(model, changed=2, tolerance=1e-4)
    one, dw, two = (per_axis(weight(graph, n), a) for n, a in (("one", 0), ("dw", 0), ("two", 1)))
    np.testing.assert_allclose(dw, one, rtol=3e-4)
    np.testing.assert_allclose(two, one, rtol=3e-4)


def test_a_second_run_has_nothing_to_do_after_a_long_chain() -> None:
    layers = " ".join(f"c{i} = Conv(r{i - 1}, W{i}) r{i} = Relu(c{i})" for i in range(1, 8))
    model = build(
        f"g (float[N,4,5,5] x) => (float[N,4,5,5] y) {{ c0 = Conv(x, W0) r0 = Relu(c0) {layers} y = Identity(r7) }}",
        **{f"W{i}": spread_rows(4, 4, 1, 1, seed=i) for i in range(8)},
    )
    report, graph = equalized(model, changed=7)
    assert "not settled" not in report.notes[0]
    assert apply(graph, EqualizeLayers()).changed == 0


def test_too_few_iterations_are_said_in_a_note() -> None:
    model = build(
        "g (float[N,3,5,5] x) => (float[N,5,5,5] y) { c = Conv(x, W1) r = Relu(c) y = Conv(r, W2) }",
        W1=spread_rows(6, 3, 1, 1),
        W2=normal(5, 6, 1, 1),
    )
    report, _ = equalized(model, changed=1, iterations=1)
    assert "in 1 rounds; not settled yet, the largest last factor was" in report.notes[0]


def test_equal_layers_are_left_alone() -> None:
    model = build(
        "g (float[N,2,5,5] x) => (float[N,2,5,5] y) { [one] c = Conv(x, W) y = Conv(c, W) }",
        W=np.full((2, 2, 1, 1), 0.5, np.float32),
    )
    report, _ = equalized(model, changed=0)
    assert report.notes == ()


def test_dead_channels_are_left_alone() -> None:
    w1, w2 = spread_rows(4, 3, 1, 1), normal(5, 4, 1, 1)
    w1[1] = 0
    w2[:, 2] = 0
    model = build(
        "g (float[N,3,5,5] x) => (float[N,5,5,5] y) { [one] c = Conv(x, W1, B) r = Relu(c) [two] y = Conv(r, W2) }",
        W1=w1,
        W2=w2,
        B=normal(4),
    )
    _, graph = equalized(model, changed=1)
    np.testing.assert_array_equal(weight(graph, "one")[[1, 2]], w1[[1, 2]])
    np.testing.assert_array_equal(weight(graph, "two")[:, [1, 2]], w2[:, [1, 2]])


# ---- layers and what is between them -----------------------------------------------------------

BETWEEN = {
    "nothing": "m = Identity(c)",
    "relu": "m = Relu(c)",
    "leaky": "m = LeakyRelu <alpha=0.3> (c)",
    "prelu": "m = PRelu(c, S)",
    "clip without upper bound": "m = Clip(c, zero)",
    "clip at the largest float": "m = Clip(c, zero, huge)",
    "max pool": "r = Relu(c) m = MaxPool <kernel_shape=[2,2], pads=[1,1,1,1]> (r)",
    "average pool": "m = AveragePool <kernel_shape=[2,2], pads=[1,1,1,1], count_include_pad=1> (c)",
    "zero padding": "m = Pad(c, P)",
    "zero padding with value": "m = Pad(c, P, zero)",
    "edge padding": 'm = Pad <mode="edge"> (c, P)',
    "reflection": 'm = Pad <mode="reflect"> (c, P)',
    "padding of some axes": "m = Pad(c, P2, zero, A)",
    "dropout": "m = Dropout(c)",
    "two at once": "r = Relu(c) p = Pad(r, P) m = MaxPool <kernel_shape=[2,2]> (p)",
}
CONSTANTS: dict[str, Any] = {
    "S": np.abs(normal(6, 1, 1)),
    "zero": np.float32(0),
    "huge": np.float32(np.finfo(np.float32).max),
    "P": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
    "P2": np.array([2, 0, 1, 1], np.int64),
    "A": np.array([-1, 2], np.int64),
}


def used(text: str) -> dict[str, Any]:
    """Those of `CONSTANTS` that `text` reads."""
    words = text.replace("(", " ").replace(")", " ").replace(",", " ").split()
    return {k: v for k, v in CONSTANTS.items() if k in words}


@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
def test_operations_that_let_a_factor_pass(between: str) -> None:
    model = build(
        f"g (float[N,3,7,7] x) => (float[N,5,H,V] y) {{ [one] c = Conv(x, W1, B1) {between} [two] y = Conv(m, W2) }}",
        opset=18,
        W1=spread_rows(6, 3, 3, 3),
        B1=normal(6),
        W2=normal(5, 6, 2, 2),
        **used(between),
    )
    report, _ = equalized(model, changed=1)
    assert reasons(report) == {"two": LAST}


@pytest.mark.parametrize(
    "between",
    [
        "m = Clip <min=0.0> (c)",
        "m = Pad <pads=[0,0,1,1,0,0,1,1]> (c)",
        'm = Pad <pads=[0,0,1,1,0,0,1,1], value=0.0, mode="constant"> (c)',
    ],
)
def test_operations_whose_numbers_are_attributes_in_old_opsets(between: str) -> None:
    model = build(
        f"g (float[N,3,7,7] x) => (float[N,5,H,V] y) {{ c = Conv(x, W1) {between} y = Conv(m, W2) }}",
        opset=9,
        W1=spread_rows(6, 3, 3, 3),
        W2=normal(5, 6, 2, 2),
    )
    equalized(model, changed=1)


LAYERS = {
    "grouped to grouped": ("Conv <group=3> (x, W1)", (6, 1, 3, 3), "Conv <group=2> (r, W2)", (4, 3, 3, 3)),
    "transposed first": ("ConvTranspose(x, W1)", (3, 6, 2, 2), "Conv(r, W2)", (5, 6, 3, 3)),
    "grouped transposed first": ("ConvTranspose <group=3> (x, W1)", (3, 2, 2, 2), "Conv(r, W2)", (5, 6, 3, 3)),
    "transposed second": ("Conv(x, W1)", (6, 3, 3, 3), "ConvTranspose(r, W2)", (6, 5, 2, 2)),
    "grouped transposed second": ("Conv(x, W1)", (6, 3, 3, 3), "ConvTranspose <group=2> (r, W2)", (6, 2, 2, 2)),
}


@pytest.mark.parametrize(("one", "shape1", "two", "shape2"), LAYERS.values(), ids=LAYERS)
def test_groups_and_transposed_layouts(one: str, shape1: tuple[int, ...], two: str, shape2: tuple[int, ...]) -> None:
    sizes = np.logspace(-1, 1, shape1[0], dtype=np.float32).reshape(-1, 1, 1, 1)
    model = build(
        f"g (float[N,3,7,7] x) => (float[N,C,H,V] y) {{ c = {one} r = Relu(c) y = {two} }}",
        W1=normal(*shape1) * sizes,
        W2=normal(*shape2),
    )
    equalized(model, changed=1)


@pytest.mark.parametrize(("trans1", "trans2"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_gemm_to_gemm(trans1: int, trans2: int) -> None:
    w1, w2 = spread_rows(6, 4), normal(5, 6)
    model = build(
        f"""g (float[N,4] x) => (float[N,5] y) {{
            [one] c = Gemm <transB={trans1}, alpha=0.5, beta=3.0> (x, W1, B1) r = Relu(c)
            [two] y = Gemm <transB={trans2}> (r, W2) }}""",
        W1=w1 if trans1 else w1.T.copy(),
        B1=normal(6),
        W2=w2 if trans2 else w2.T.copy(),
    )
    _, graph = equalized(model, changed=1)
    np.testing.assert_allclose(
        per_axis(weight(graph, "one"), 1 - trans1), per_axis(weight(graph, "two"), trans2), rtol=1e-5
    )


@pytest.mark.parametrize("shape", ["N,4", "N,7,4"])
@pytest.mark.parametrize("add", ["a = Add(c, B1)", "a = Add(B1, c)", "a = Identity(c)"])
def test_matmul_with_the_add_behind_it(shape: str, add: str) -> None:
    constants = {"B1": normal(6)} if "B1" in add else {}
    model = build(
        f"""g (float[{shape}] x) => (float[{shape[:-1]}5] y) {{
            [one] c = MatMul(x, W1) [add] {add} r = Relu(a) [two] y = MatMul(r, W2) }}""",
        W1=spread_rows(6, 4).T.copy(),
        W2=normal(6, 5),
        **constants,
    )
    _, graph = equalized(model, changed=1)
    np.testing.assert_allclose(per_axis(weight(graph, "one"), 1), per_axis(weight(graph, "two"), 0), rtol=1e-5)
    if constants:
        assert "B1_equalized" in [t.name for t in graph.node("add").inputs]


HEADS = {
    "global average and flatten": ("p = GlobalAveragePool(r) f = Flatten(p)", 6),
    "global maximum and squeeze": ("p = GlobalMaxPool(r) f = Squeeze(p, SA)", 6),
    "mean without kept axes": ("f = ReduceMean <axes=[2,3], keepdims=0> (r)", 6),
    "mean with kept axes": ("p = ReduceMean <axes=[-1,-2]> (r) f = Flatten <axis=-3> (p)", 6),
    "flatten of a map": ("f = Flatten(r)", 6 * 25),
    "reshape of a map": ("f = Reshape(r, R0)", 6 * 25),
    "reshape with a free batch": ("f = Reshape(r, R1)", 6 * 25),
}


@pytest.mark.parametrize(("head", "features"), HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("last", ["y = Gemm <transB=1> (f, W2)", "y = MatMul(f, W2)"])
def test_convolution_to_classifier(head: str, features: int, last: str) -> None:
    w2 = normal(5, features)
    constants = {"SA": np.int64([2, 3]), "R0": np.int64([0, -1]), "R1": np.int64([-1, 150])}
    model = build(
        f"g (float[2,3,7,7] x) => (float[2,5] y) {{ [one] c = Conv(x, W1) r = Relu(c) {head} [fc] {last} }}",
        opset=17,
        W1=spread_rows(6, 3, 3, 3),
        W2=w2 if "transB" in last else w2.T.copy(),
        **{k: v for k, v in constants.items() if k in head},
    )
    model = onnx.shape_inference.infer_shapes(model)
    report, graph = equalized(model, changed=1)
    assert reasons(report) == {"fc": LAST}
    second = per_axis(weight(graph, "fc"), 1 if "transB" in last else 0).reshape(6, -1).max(axis=1)
    np.testing.assert_allclose(per_axis(weight(graph, "one"), 0), second, rtol=1e-5)


def test_shared_weights_get_constants_of_their_own() -> None:
    model = build(
        """g (float[N,4,5,5] x) => (float[N,4,5,5] y, float[N,4,5,5] z) {
            c = Conv(x, W, B) r = Relu(c) y = Conv(r, W, B) z = Conv(x, W, B) }""",
        W=spread_rows(4, 4, 1, 1),
        B=normal(4),
    )
    equalized(model, changed=1)


# ---- what is left alone ------------------------------------------------------------------------


BARRIER = "{} 'op' behind it does not let a factor per channel pass"
SIX = (
    "Clip 'op' behind it cuts off at 6, so no factor per channel passes; "
    "drop_clips=True makes it a Relu, which changes the function slightly"
)


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        ("[op] m = Sigmoid(c)", BARRIER.format("Sigmoid")),
        ("[op] m = HardSwish(c)", BARRIER.format("HardSwish")),
        ("[op] m = Add(c, S)", BARRIER.format("Add")),
        ("[op] m = Pad(c, P, one)", BARRIER.format("Pad")),
        ("[op] m = Pad(c, shift)", BARRIER.format("Pad")),
        ("[op] m = ReduceMean <axes=[1]> (c)", BARRIER.format("ReduceMean")),
        ("[op] m = Pad(c, p_in)", BARRIER.format("Pad")),
        ("[op] m = Transpose <perm=[0,1,3,2]> (c)", BARRIER.format("Transpose")),
        (
            "[op] m, i = MaxPool <kernel_shape=[2,2]> (c)",
            "MaxPool 'op' behind it does not let a factor per channel pass",
        ),
        ("[op] m = Clip(c, one)", BARRIER.format("Clip")),
        ("[op] m = Clip(c, zero, s_in)", BARRIER.format("Clip")),
        ("[op] m = PRelu(x6, c)", BARRIER.format("PRelu")),
        ("[a] m = Relu(c) [b] d = Abs(c)", "'c' is read 2 times, by Relu 'a', Abs 'b'"),
        ("[op] m = Mul(c, c)", "'c' is read 2 times, by Mul 'op'"),
        ("[op] m = Clip(c, zero, six)", SIX),
    ],
)
def test_refuses_with_the_reason(between: str, reason: str) -> None:
    words = between.replace("(", " ").replace(")", " ").replace(",", " ").split()
    more = {"one": np.float32(1), "six": np.float32(6), "shift": np.int64([0, 1, 0, 0, 0, -1, 0, 0])}
    constants = used(between) | {k: v for k, v in more.items() if k in words}
    inputs = "float[N,3,7,7] x"
    inputs += ", int64[8] p_in" if "p_in" in words else ""
    inputs += ", float s_in" if "s_in" in words else ""
    inputs += ", float[2,6,5,5] x6" if "x6" in words else ""
    model = build(
        f"g ({inputs}) => (float[A,5,H,V] y) {{ [one] c = Conv(x, W1) {between} [two] y = Conv(m, W2) }}",
        W1=spread_rows(6, 3, 3, 3),
        W2=normal(5, 1 if "ReduceMean" in between else 6, 1, 1),
        **constants,
    )
    graph = GraphModel.from_proto(model)
    before = graph.to_proto().SerializeToString()
    report = apply(graph, EqualizeLayers())
    assert report.changed == 0
    assert reasons(report) == {"one": reason, "two": LAST}
    assert graph.to_proto().SerializeToString() == before


def test_refuses_when_the_result_is_a_graph_output() -> None:
    model = build(
        """g (float[N,3,7,7] x) => (float[N,5,7,7] y, float[N,6,7,7] r) {
            [one] c = Conv(x, W1) r = Relu(c) [two] y = Conv(r, W2) }""",
        W1=spread_rows(6, 3, 1, 1),
        W2=normal(5, 6, 1, 1),
    )
    report, _ = equalized(model, changed=0)
    assert reasons(report) == {"one": "'r' is a graph output", "two": LAST}


def test_refuses_when_a_body_reads_the_result() -> None:
    model = build(
        """g (float[N,3,7,7] x, bool p) => (float[N,5,7,7] y, float[N,6,7,7] z) {
            [one] c = Conv(x, W1) r = Relu(c) [two] y = Conv(r, W2)
            z = If (p) <then_branch = t () => (float[N,6,7,7] t1) { t1 = Neg(r) },
                        else_branch = e () => (float[N,6,7,7] e1) { e1 = Abs(r) }> }""",
        W1=spread_rows(6, 3, 1, 1),
        W2=normal(5, 6, 1, 1),
    )
    report, _ = equalized(model, changed=0)
    assert reasons(report)["one"] == "'r' is read inside the body of an If, Loop or Scan"


@pytest.mark.parametrize(
    ("second", "constants", "reason"),
    [
        ("Conv(m, w_in)", {}, "Conv 'two' behind it: its weight 'w_in' is not a constant: it is a graph input"),
        ("Conv(x5, m)", {}, "Conv 'two' behind it reads it as its input 1, not as what its weight is applied to"),
        ("MatMul(m, W2)", {"W2": normal(7, 5)}, "its channels are not the input channels of MatMul 'two' behind it"),
    ],
)
def test_refuses_a_second_layer_that_does_not_fit(second: str, constants: dict[str, Any], reason: str) -> None:
    model = build(
        f"""g (float[5,3,7,7] x, float[2,6,1,1] w_in, float[1,6,9,9] x5) => (float[A,B,C,D] y) {{
            [one] c = Conv(x, W1) m = Relu(c) [two] y = {second} }}""",
        W1=spread_rows(6, 3, 1, 1),
        **constants,
    )
    report = apply(GraphModel.from_proto(model), EqualizeLayers())
    assert reasons(report)["one"] == reason


def test_refuses_a_transposed_first_operand_of_gemm() -> None:
    model = build(
        "g (float[6,4] x) => (float[6,5] y) { [one] c = Gemm(x, W1) [two] y = Gemm <transA=1> (c, W2) }",
        W1=spread_rows(4, 6),
        W2=normal(6, 5),
    )
    report, _ = equalized(model, changed=0)
    assert reasons(report)["one"] == "its channels are not the input channels of Gemm 'two' behind it"


@pytest.mark.parametrize("target", [(-1, 75), (1, -1)])
def test_refuses_a_reshape_that_is_not_a_flattening(target: tuple[int, int]) -> None:
    model = build(
        """g (float[2,3,7,7] x) => (float[A,B] y) {
            [one] c = Conv(x, W1) [op] f = Reshape(c, R) [two] y = MatMul(f, W2) }""",
        W1=spread_rows(6, 3, 3, 3),
        R=np.int64(target),
        W2=normal(75 if target[1] == 75 else 300, 5),
    )
    report, _ = equalized(onnx.shape_inference.infer_shapes(model), changed=0)
    assert reasons(report)["one"] == "Reshape 'op' behind it does not let a factor per channel pass"


def test_an_operator_of_another_domain_is_not_taken_for_the_standard_one() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "custom" : 1]>
        g (float[N,3,7,7] x) => (float[N,5,7,7] y) {
            [one] c = Conv(x, W1) [op] r = custom.Relu(c) [two] y = Conv(r, W2) }"""
    report = apply(graph_of(text, W1=spread_rows(6, 3, 1, 1), W2=normal(5, 6, 1, 1)), EqualizeLayers())
    assert reasons(report)["one"] == BARRIER.format("Relu")


def test_refuses_a_flattening_that_merges_samples_and_channels() -> None:
    model = build(
        """g (float[2,3,7,7] x) => (float[10,4] y) {
            [one] c = Conv(x, W1) [op] f = Flatten <axis=2> (c) [two] y = MatMul(f, W2) }""",
        W1=spread_rows(5, 3, 3, 3),
        W2=normal(25, 4),
    )
    report, _ = equalized(model, changed=0)
    assert reasons(report)["one"] == BARRIER.format("Flatten")


def test_refuses_pooling_over_the_channels_of_a_matmul() -> None:
    """MaxPool takes axis 1 for the channels; those of a MatMul are the last."""
    model = build(
        """g (float[2,7,4] x) => (float[2,7,5] y) {
            [one] c = MatMul(x, W1) [op] p = MaxPool <kernel_shape=[3], pads=[1,1]> (c) [two] y = MatMul(p, W2) }""",
        W1=spread_rows(6, 4).T.copy(),
        W2=normal(6, 5),
    )
    report, _ = equalized(onnx.shape_inference.infer_shapes(model), changed=0)
    assert reasons(report)["one"] == BARRIER.format("MaxPool")


def test_a_pair_within_the_tolerance_is_left_alone() -> None:
    """``ln s`` is at most 0.0099: more than where an equalization that runs would stop, but no reason to start one."""
    one = np.eye(2, dtype=np.float32).reshape(2, 2, 1, 1)
    model = build(
        "g (float[N,2,5,5] x) => (float[N,2,5,5] y) { c = Conv(x, W1) y = Conv(c, W2) }",
        W1=one * np.float32(np.exp(2 * 0.0099)),
        W2=one,
    )
    equalized(model, changed=0)


@pytest.mark.parametrize(("broken", "named"), [("W1", "one"), ("W2", "two")])
def test_refuses_weights_that_are_not_finite(broken: str, named: str) -> None:
    weights = {"W1": spread_rows(4, 3, 1, 1), "W2": normal(5, 4, 1, 1)}
    weights[broken][0, 0] = np.nan
    graph = graph_of(
        "g (float[N,3,5,5] x) => (float[N,5,5,5] y) { [one] c = Conv(x, W1) [two] y = Conv(c, W2) }", **weights
    )
    report = apply(graph, EqualizeLayers())
    assert report.changed == 0
    assert reasons(report)["one"] == f"the weight of Conv {named!r} holds NaN or infinity"


def test_refuses_float16() -> None:
    graph = graph_of(
        "g (float16[N,4] x) => (float16[N,5] y) { [fc] y = MatMul(x, W) }", W=normal(4, 5).astype(np.float16)
    )
    report = apply(graph, EqualizeLayers())
    assert reasons(report) == {"fc": "its weight 'W' is float16; only float32 is handled"}


def test_weights_that_would_overflow_are_an_error() -> None:
    """Channel 0 is nearly nothing before and huge behind; its bias, divided by the factor, leaves float32."""
    graph = graph_of(
        "g (float[N,1] x) => (float[N,1] y) { [one] c = Gemm(x, W1, B) [two] y = Gemm(c, W2) }",
        W1=np.float32([[1e-30]]),
        B=np.float32([1e20]),
        W2=np.float32([[1e30]]),
    )
    with pytest.raises(GraphError, match=r"Gemm 'one': equalizing makes its weight or bias overflow float32"):
        apply(graph, EqualizeLayers())


# ---- configuration -----------------------------------------------------------------------------


def test_dropping_clips_makes_them_relus_and_stops_claiming_the_function() -> None:
    step = EqualizeLayers(drop_clips=True)
    assert not step.preserves_function
    assert EqualizeLayers().preserves_function
    model = build(
        """g (float[N,3,7,7] x) => (float[N,5,7,7] y) {
            [one] c = Conv(x, W1) [act] r = Clip(c, zero, six) [two] y = Conv(r, W2) }""",
        W1=spread_rows(6, 3, 1, 1) * np.float32(0.01),
        W2=normal(5, 6, 1, 1),
        zero=np.float32(0),
        six=np.float32(6),
    )
    graph = GraphModel.from_proto(model)
    assert apply(graph, step).changed == 1
    assert ops(graph) == ["Conv", "Relu", "Conv"]
    assert [n.name for n in graph.nodes()] == ["one", "act_relu", "two"]
    feed = feeds_for(model)
    assert run(model, feed)["y"] == pytest.approx(run(graph, feed)["y"], rel=1e-4, abs=1e-5)
    assert apply(graph, step).changed == 0


@pytest.mark.parametrize("options", [{"iterations": 0}, {"tolerance": 0.0}, {"tolerance": float("nan")}])
def test_wrong_configuration_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(options))):
        EqualizeLayers(**options)
