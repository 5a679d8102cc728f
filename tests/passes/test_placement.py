"""Which tensors get codes, of which kind, and which share them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.errors import RecipeError
from onnxq.passes._placement import Groups
from onnxq.plan import Plan
from onnxq.spec import PerAxis, PerBlock, PerTensor, QType
from tests.graphs import build, normal

CONSTANTS: dict[str, Any] = {
    "W": normal(4, 4, 1, 1), "V": normal(4, 4, 1, 1, seed=2), "V8": normal(4, 8, 1, 1), "B": normal(4),
    "table": normal(6, 8),
    "zero": np.float32(0), "top": np.float32(1.5), "minus": np.float32(-1), "P": normal(8, 8), "C": normal(8),
    "P3": normal(2, 8, 8), "E": normal(9, 8), "T": normal(4, 4, 2, 2), "G": normal(4, 2, 2, 2), "K": normal(1, 4, 1, 8),
}  # fmt: skip


def plan_of(text: str, *, recipe: Any = None, target: str = "ort", opset: int = 17) -> Plan:
    used = {k: v for k, v in CONSTANTS.items() if f"{k})" in text or f"{k}," in text}
    model = onnx.shape_inference.infer_shapes(build(text, check=False, opset=opset, **used))
    return onnxq.plan_model(model, recipe=recipe, target=target).plan


def image(body: str) -> str:
    return f"g (float[N,4,8,8] x) => (float[N,p,q,r] y) {{ {body} }}"


# ---- groups ---------------------------------------------------------------------------------------


def test_groups_are_called_after_their_first_tensor_whatever_is_joined_first() -> None:
    groups = Groups()
    for name in "abcd":
        groups.find(name)
    groups.join("d", "c")
    groups.join("c", "b")
    assert [groups.find(n) for n in "abcd"] == ["a", "b", "b", "b"]


def test_passive_operators_share_the_scale_of_their_input() -> None:
    plan = plan_of(
        image("a = Conv(x, W) b = Transpose <perm=[0,1,3,2]> (a) c, d = Split <axis=2> (b, n) y = Conv(c, V)")
        .replace("(b, n)", "<num_outputs=2> (b)")
        .replace("<axis=2> <num_outputs=2>", "<axis=2, num_outputs=2>"),
        opset=18,
    )
    assert {n: a.group for n, a in plan.activations.items()} == dict.fromkeys("abcd", "a") | {"x": "x", "y": "y"}


def test_what_concat_joins_shares_a_scale_but_a_tensor_others_read_keeps_its_own() -> None:
    plan = plan_of(
        image("a = Conv(x, W) b = Conv(x, V) c = Concat <axis=1> (a, b) d = Conv(c, V8) e = Add(a, d) y = Conv(e, W)")
    )
    assert plan.activations["b"].group == plan.activations["c"].group != "a"
    assert plan.activations["a"].group == "a"


# ---- activations ----------------------------------------------------------------------------------


def test_every_reader_of_a_layer_gets_its_codes_and_a_float_input_only_its_layers() -> None:
    plan = plan_of(image("a = Conv(x, W) b = Exp(a) c = Exp(x) d = Add(b, c) e = Conv(a, V) y = Conv(d, W)"))
    assert plan.activations["a"].everywhere
    assert plan.activations["a"].readers == (("conv_4", 0),)
    assert not plan.activations["x"].everywhere
    assert not plan.activations["d"].everywhere
    assert set(plan.activations) == {"x", "a", "d", "e", "y"}


@pytest.mark.parametrize(
    ("clamps", "bounds"),
    [
        ("b = Relu(a)", (0.0, math.inf)),
        ("b = Clip(a, zero, top)", (0.0, 1.5)),
        ("b = Clip(a, minus, top)", (-1.0, 1.5)),
        ("c = Clip(a, minus, top) b = Relu(c)", (0.0, 1.5)),
        ("c = Relu(a) b = Clip(c, minus)", (0.0, math.inf)),
    ],
)
def test_bounds_of_absorbed_clamps(clamps: str, bounds: tuple[float, float]) -> None:
    plan = plan_of(image(f"a = Conv(x, W) {clamps} y = Conv(b, V)"))
    assert plan.activations["b"].bounds == bounds
    assert "a" not in plan.activations
    assert plan.counts()["absorbed"] == clamps.count("=")
    assert len(plan.absorbed) == clamps.count("=")


def test_symmetric_activations_absorb_nothing() -> None:
    recipe = {"activations": {"type": "int8", "symmetric": True}}
    plan = plan_of(image("a = Conv(x, W) [r] b = Relu(a) y = Conv(b, V)"), recipe=recipe)
    assert plan.absorbed == ()
    assert "below zero" in next(d.reason for d in plan.decisions if d.node == "r")


@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_a_tensor_read_twice_by_one_node_is_planned_once_with_both_uses(op: str) -> None:
    plan = plan_of(image(f"a = Conv(x, W) [n] b = {op}(a, a) y = Conv(b, V)"))
    assert plan.activations["a"].readers == (("n", 0), ("n", 1))


def test_products_give_floats_to_what_would_round_twice() -> None:
    text = "g (float[N,8] x) => (float[N,8] y) { a = MatMul(x, P) b = Add(a, a) y = MatMul(b, P) }"
    plan = plan_of(text)
    assert set(plan.activations) == {"x", "b"}
    chain = plan_of("g (float[N,8] x) => (float[N,8] y) { a = MatMul(x, P) b = Relu(a) y = MatMul(b, P) }")
    assert chain.activations["b"].everywhere
    assert "y" not in chain.activations  # nobody reads it as codes


def test_a_product_that_is_a_graph_output_is_not_rounded_for_its_readers() -> None:
    body = "a = MatMul(x, P) y = MatMul(a, P)"
    inner = plan_of(f"g (float[N,8] x) => (float[N,8] y) {{ {body} }}")
    outer = plan_of(f"g (float[N,8] x) => (float[N,8] y, float[N,8] a) {{ {body} }}")
    assert inner.activations["a"].everywhere
    assert not outer.activations["a"].everywhere


@pytest.mark.parametrize("node", ["maker", "reader"])
def test_an_exception_for_the_maker_or_a_reader_decides_about_a_tensor(node: str) -> None:
    recipe = {"rules": [{"match": {"node": node}, "activations": {"bits": 16}}]}
    plan = plan_of(image("[maker] a = Conv(x, W) [reader] y = Conv(a, V)"), recipe=recipe)
    assert plan.activations["a"].spec.qtype == QType.UINT16
    assert plan.activations["x"].spec.qtype == (QType.UINT16 if node == "maker" else QType.UINT8)


# ---- weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "index", "granularity"),
    [
        (image("y = Conv(x, W)"), 1, PerAxis(0)),
        ("g (float[N,8] x) => (float[N,8] y) { y = MatMul(x, P) }", 1, PerAxis(1)),
        ("g (float[N,8] x) => (float[N,8] y) { y = Gemm(x, P, C) }", 1, PerAxis(1)),
        ("g (float[N,8] x) => (float[N,8] y) { y = Gemm <transB=1> (x, P, C) }", 1, PerAxis(0)),
        ("g (float[2,6,8] x) => (float[2,6,8] y) { y = MatMul(x, P3) }", 1, PerTensor()),
        ("g (float[8,6] x) => (float[8,6] y) { y = MatMul(P, x) }", 0, PerTensor()),
    ],
)
def test_one_scale_for_each_output_where_that_is_possible(text: str, index: int, granularity: Any) -> None:
    (weight,) = plan_of(text).weights
    assert (weight.index, weight.spec.granularity) == (index, granularity)
    assert weight.spec.symmetric == weight.spec.qtype.signed == (index == 1)


@pytest.mark.parametrize(
    ("body", "axis"), [("y = ConvTranspose(x, T)", 1), ("y = ConvTranspose <group=2> (x, G)", None)]
)
def test_transposed_convolutions_have_their_outputs_on_axis_1(body: str, axis: int | None) -> None:
    rules = [{"match": {"op_type": "ConvTranspose"}, "quantize": True}]
    (weight,) = plan_of(image(body), recipe={"rules": rules}).weights
    assert weight.spec.granularity == (PerTensor() if axis is None else PerAxis(axis))


def test_rules_change_width_type_and_granularity() -> None:
    rules = [
        {"match": {"node": "wide"}, "activations": {"bits": 16}},
        {"match": {"node": "narrow"}, "weights": {"type": "int4"}},
        {"match": {"node": "blocks"}, "weights": {"type": "int4", "granularity": {"per_block": {"size": 4}}}},
    ]
    text = """g (float[N,8] x) => (float[N,8] y) {
        [wide] a = MatMul(x, P) [narrow] b = MatMul(a, P) [blocks] y = MatMul(b, P) }"""
    plan = plan_of(text, recipe={"rules": rules})
    weights = {w.node: w for w in plan.weights}
    assert plan.activations["x"].spec.qtype == QType.UINT16
    assert plan.activations["b"].spec.qtype == QType.UINT8
    assert weights["narrow"].spec.qtype == QType.INT4
    assert weights["narrow"].spec.granularity == PerAxis(1)
    assert weights["blocks"].spec.granularity == PerBlock(0, 4)
    assert len({w.key for w in plan.weights}) == 3  # one weight in three ways


def test_a_weight_read_twice_the_same_way_has_one_key() -> None:
    plan = plan_of("g (float[N,8] x) => (float[N,8] y) { a = MatMul(x, P) y = MatMul(a, P) }")
    assert [w.key for w in plan.weights] == ["P", "P"]


def test_constants_of_elementwise_operators_are_of_the_activations_kind() -> None:
    plan = plan_of(image("a = Conv(x, W) [n] b = Add(a, K) y = Conv(b, V)"))
    weight = next(w for w in plan.weights if w.node == "n")
    assert weight.spec == plan.activations["a"].spec


def test_types_the_target_lacks_are_refused() -> None:
    with pytest.raises(RecipeError, match="does not execute uint8 activations"):
        plan_of(image("y = Conv(x, W)"), recipe={"activations": {"type": "uint8"}}, target="tensorrt")


def test_biases_get_codes_where_the_target_wants_them_and_none_of_an_add_that_has_codes_itself() -> None:
    text = image("y = Conv(x, W, B)")
    assert [plan_of(text, target=t).weights[0].bias for t in ("ort", "qnn", "tensorrt")] == [True, True, False]
    product = "g (float[N,6,8] x) => (float[N,6,8] y) { a = MatMul(x, P) y = Add(a, C) }"
    assert [plan_of(product, target=t).weights[0].bias for t in ("ort", "qnn", "tensorrt")] == [True, False, False]
    table = product.replace("C)", "table)")
    assert not plan_of(table).weights[0].bias


def test_outliers_of_results_are_kept() -> None:
    model = build("g (float[N,4] x) => (float[N,4] y) { a = MatMul(x, W) y = Gemm(a, W) }", W=normal(4, 4))
    plan = onnxq.plan_model(model, recipe={"activations": {"method": "removal_outlier"}}).plan
    found = {name: a.method.name for name, a in plan.activations.items()}
    assert found["a"] == "removal_outlier"
    assert found.get("y", "minmax") == "minmax"
    conv = build("g (float[N,4,8,8] x) => (float[N,4,8,8] y) { a = Conv(x, V) y = Conv(a, V) }", V=normal(4, 4, 1, 1))
    plan = onnxq.plan_model(conv, recipe={"activations": {"method": "removal_outlier"}}).plan
    assert {name: a.method.name for name, a in plan.activations.items()} == {
        "x": "removal_outlier", "a": "removal_outlier", "y": "minmax",
    }  # fmt: skip
