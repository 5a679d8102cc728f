"""SelectLayers for Ascend: which layers get codes, how, and the reason of every one that does not."""

from __future__ import annotations

import re
from typing import Any

import onnx
import pytest

from onnxq.errors import RecipeError
from onnxq.pipeline import opsets
from onnxq.plan import Plan
from onnxq.recipe import Recipe
from onnxq.spec import PerAxis, PerTensor, QType
from onnxq.targets import get_target
from tests.graphs import build, normal
from tests.passes.ptq import planned

CONSTANTS: dict[str, Any] = {
    "W1": normal(4, 4, 3),
    "W": normal(4, 4, 3, 3),
    "W3": normal(4, 4, 3, 3, 3),
    "T1": normal(4, 3, 3),
    "T": normal(4, 3, 3, 3),
    "B": normal(4),
    "B6": normal(6),
    "P": normal(8, 6),
    "PP": normal(2, 8, 6),
    "R": normal(3, 5),
    "rows": normal(5, 6),
}


def plan_of(text: str, *, recipe: Any = None, opset: int = 17, **more: Any) -> Plan:
    known = CONSTANTS | more
    used = {k: v for k, v in known.items() if f"{k})" in text or f"{k}," in text}
    model = onnx.shape_inference.infer_shapes(build(text, opset=opset, check=False, **used))
    plan = planned(model, recipe={"target": "ascend"} | dict(recipe or {}))[1].plan
    assert plan is not None
    assert all(d.reason for d in plan.left_float())
    return plan


def image(body: str, shape: str = "N,4,8,8") -> str:
    return f"g (float[{shape}] x) => (float[p,q,r,s] y) {{ {body} }}"


def rows(body: str) -> str:
    return f"g (float[N,8] x) => (float[N,6] y) {{ {body} }}"


def roles(plan: Plan) -> dict[str, str]:
    return {d.node: d.role for d in plan.decisions}


def reason(plan: Plan, node: str = "n") -> str:
    return next(d.reason for d in plan.decisions if d.node == node)


def forced(node: str) -> dict[str, Any]:
    return {"rules": [{"match": {"node": node}, "quantize": True}]}


def test_every_layer_converts_its_own_input_and_gives_floats() -> None:
    plan = plan_of(
        image("[a] p = Conv(x, W) [r] q = Relu(p) [b] s = Conv(q, W) [m] y = MaxPool<kernel_shape=[2,2]>(s)")
    )
    assert roles(plan) == {"a": "quantized", "r": "float", "b": "quantized", "m": "float"}
    assert [(a.tensor, a.readers, a.everywhere) for a in plan.activations.values()] == [
        ("x", (("a", 0),), False),
        ("q", (("b", 0),), False),
    ]
    assert "fuses Relu into the layer in front" in reason(plan, "r")
    assert "tensor_quantize" in reason(plan, "m")
    assert "a rule with quantize: true" in reason(plan, "m")


@pytest.mark.parametrize(
    "text",
    [
        "g (float[N,4,9] x) => (float[N,4,M] y) { [n] y = Conv(x, W1, B) }",
        image("[n] y = Conv<dilations=[2,2]>(x, W, B)"),
        "g (float[N,4,8,8,8] x) => (float[N,4,p,q,r] y) { [n] y = Conv<dilations=[1,2,2]>(x, W3) }",
        image("[n] y = ConvTranspose(x, T)"),
        image("[n] y = AveragePool<kernel_shape=[2,2]>(x)"),
        rows("[n] y = Gemm(x, P, B6)"),
        rows("[n] y = MatMul(x, P)"),
        "g (float[N,3,8] x) => (float[N,3,6] y) { [n] y = MatMul(x, P) }",
        "g (float[N,3,8] x, float[N,8,5] z) => (float[N,3,5] y) { [n] y = MatMul(x, z) }",
    ],
)
def test_layers_that_are_quantized(text: str) -> None:
    assert roles(plan_of(text)) == {"n": "quantized"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "g (float[N,4,8,8,8] x) => (float[N,4,p,q,r] y) { [n] y = Conv<dilations=[2,1,1]>(x, W3) }",
            r"dilations are \[2, 1, 1\].* undilated",
        ),
        (image("[n] y = ConvTranspose<dilations=[1,2]>(x, T)"), r"dilations are \[1, 2\].* undilated"),
        ("g (float[N,4,9] x) => (float[N,3,M] y) { [n] y = ConvTranspose(x, T1) }", "'T1' has rank 3; .* rank 4 only"),
        ("g (float[8,N] x) => (float[N,6] y) { [n] y = Gemm<transA=1>(x, P) }", "transA is 1"),
        ("g (float[N,8] x) => (float[N,6] y) { [n] y = Gemm(x, P, rows) }", r"'rows' of shape \(5, 6\)"),
        ("g (float[N,8] x, float[8,6] w) => (float[N,6] y) { [n] y = Gemm(x, w) }", "'w' is not a constant"),
        ("g (float[2,3,8] x) => (float[2,3,6] y) { [n] y = MatMul(x, PP) }", "'PP' has rank 3; .* rank 2 only"),
        ("g (float[5,6] x) => (float[3,6] y) { [n] y = MatMul(R, x) }", "first input is the constant one"),
        ("g (float[N,4,9] x) => (float[N,4,M] y) { [n] y = AveragePool<kernel_shape=[2]>(x) }", "input 'x' has rank 3"),
        (image("[n] y = GlobalAveragePool(x)"), "does not compute GlobalAveragePool"),
        (image("[n] y = Softmax(x)"), "does not compute Softmax"),
        (image("[n] y = Concat<axis=1>(x, x)"), "does not compute Concat"),
        (image("[n] y = Add(x, x)"), "only where that is asked for"),
        ("g (float16[N,4,8,8] x) => (float16[N,4,8,8] y) { [n] y = MaxPool<kernel_shape=[1,1]>(x) }", "asked for"),
        ("g (float16[N,8] x, float16[8,6] w) => (float16[N,6] y) { [n] y = MatMul(x, w) }", "float16, not float32"),
    ],
)
def test_reasons(text: str, why: str) -> None:
    plan = plan_of(text)
    assert not plan
    found = reason(plan)
    assert re.search(why, found), found


@pytest.mark.parametrize("op", ["Relu", "Sigmoid", "Softmax", "GlobalAveragePool"])
def test_what_ascend_has_no_codes_for_cannot_be_forced(op: str) -> None:
    assert not plan_of(image(f"[n] y = {op}(x)"), recipe=forced("n"))


def test_max_pool_is_quantized_where_a_rule_says_so() -> None:
    plan = plan_of(
        image("[a] p = Conv(x, W) [n] q = MaxPool<kernel_shape=[2,2]>(p) [b] y = Conv(q, W)"), recipe=forced("n")
    )
    assert roles(plan) == dict.fromkeys("anb", "quantized")
    assert [(a.tensor, a.group) for a in plan.activations.values()] == [("x", "x"), ("p", "p"), ("q", "q")]


def test_an_add_has_codes_of_one_input() -> None:
    plan = plan_of("g (float[4] x, float[4] z) => (float[4] y) { [n] y = Add(x, z) }", recipe=forced("n"))
    assert [a.readers for a in plan.activations.values()] == [(("n", 0),)]
    plan = plan_of("g (float[4] x) => (float[4] y) { [n] y = Add(B, x) }", recipe=forced("n"))
    assert [a.readers for a in plan.activations.values()] == [(("n", 1),)]
    assert not plan.weights


def test_a_rule_says_which_input_of_an_add() -> None:
    text = "g (float[4] x, float[4] z) => (float[4] y) { [n] y = Add(x, z) }"
    rule: dict[str, Any] = {"match": {"node": "n"}, "quantize": True, "inputs": [1]}
    assert [a.readers for a in plan_of(text, recipe={"rules": [rule]}).activations.values()] == [(("n", 1),)]
    assert "wants codes of its inputs 2" in reason(plan_of(text, recipe={"rules": [rule | {"inputs": [2]}]}))


def test_types_and_granularity_by_default() -> None:
    text = image("[c] p = Conv(x, W, B) [t] q = ConvTranspose(p, T) y = Relu(q)")
    plan = plan_of(text, opset=9)  # one scale for each channel does not depend on the operator set
    assert [(w.spec.granularity, w.spec.bounds, w.bias) for w in plan.weights] == [
        (PerAxis(0), (-128, 127), True),
        (PerAxis(1), (-128, 127), True),
    ]
    spec = plan.activations["x"].spec
    assert (spec.qtype, spec.symmetric, spec.bounds) == (QType.INT8, False, (-128, 127))
    plan = plan_of(rows("y = Gemm(x, P, B6)"))
    assert plan.weights[0].spec.granularity == PerTensor()


def test_a_recipe_can_ask_for_a_scale_for_each_output_of_a_gemm() -> None:
    plan = plan_of(rows("y = Gemm(x, P, B6)"), recipe={"weights": {"granularity": "per_axis"}})
    assert plan.weights[0].spec.granularity == PerAxis(1)


@pytest.mark.parametrize(
    "text",
    [
        "g (float[N,4,8,8,8] x) => (float[N,4,p,q,r] y) { [n] y = Conv(x, W3) }",
        "g (float[N,3,8] x, float[N,8,5] z) => (float[N,3,5] y) { [n] y = MatMul(x, z) }",
    ],
)
def test_layers_that_take_symmetric_activations_only(text: str) -> None:
    plan = plan_of(text, recipe={"activations": {"symmetric": False}})
    assert all(a.spec.symmetric for a in plan.activations.values())


def test_layers_that_want_one_tensor_differently_have_it_in_different_ways() -> None:
    """What one layer takes, another may not be able to take."""
    rules = [
        {"match": {"node": "b"}, "activations": {"type": "int16"}},
        {"match": {"node": "c"}, "activations": {"symmetric": True}},
    ]
    layers = "[a] p = Conv(x, W) [b] q = Conv(x, W) [c] r = Conv(x, W) [d] s = AveragePool<kernel_shape=[3,3]>(x)"
    text = image(f"{layers} y = Sum(p, q, r, s)")
    plan = plan_of(text, recipe={"rules": rules})
    found = {a.key: ([name for name, _ in a.readers], a.spec.bits, a.spec.symmetric) for a in plan.activations.values()}
    assert found == {"x": (["a", "d"], 8, False), "x#2": (["b"], 16, False), "x#3": (["c"], 8, True)}
    assert {a.tensor for a in plan.activations.values()} == {"x"}
    assert [(w.node, w.input, w.input_key) for w in plan.weights] == [
        ("a", "x", "x"),
        ("b", "x", "x#2"),
        ("c", "x", "x#3"),
    ]


def test_an_attention_is_quantized_too() -> None:
    text = """g (float[N,3,8] q, float[N,8,3] k, float[N,3,8] v) => (float[N,3,8] y)
        { [s] p = MatMul(q, k) [soft] r = Softmax(p) [n] y = MatMul(r, v) }"""
    assert roles(plan_of(text)) == {"s": "quantized", "soft": "float", "n": "quantized"}


WIDE = {"activations": {"type": "int16"}}


@pytest.mark.parametrize(
    ("text", "role"),
    [
        (image("[n] y = Conv(x, W)"), "quantized"),
        (image("[n] y = ConvTranspose(x, T)"), "quantized"),
        (rows("[n] y = Gemm(x, P, B6)"), "quantized"),
        ("g (float[N,3,8] x) => (float[N,3,6] y) { [n] h = MatMul(x, P) [add] y = Add(h, B6) }", "quantized"),
        (rows("[n] y = Gemm(x, P)"), "float"),
        (rows("[n] y = MatMul(x, P)"), "float"),
        ("g (float[N,3,8] x, float[N,8,5] z) => (float[N,3,5] y) { [n] y = MatMul(x, z) }", "float"),
        (image("[n] y = AveragePool<kernel_shape=[2,2]>(x)"), "float"),
    ],
)
def test_sixteen_bit_activations(text: str, role: str) -> None:
    plan = plan_of(text, recipe=WIDE)
    assert roles(plan)["n"] == role
    if role == "float":
        assert "16 bit activations" in reason(plan)


@pytest.mark.parametrize(
    "weights", [{"symmetric": False}, {"narrow": True}, {"granularity": {"per_block": {"size": 2}}}]
)
def test_weights_that_ascend_does_not_take(weights: Any) -> None:
    with pytest.raises(RecipeError, match="symmetric ones with all codes"):
        plan_of(image("y = Conv(x, W)"), recipe={"weights": weights})


def test_no_operator_set_is_needed() -> None:
    recipe = Recipe.from_dict({"target": "ascend", "activations": {"type": "int16"}})
    assert opsets(recipe, get_target("ascend"))[0] == 8


def test_a_deploy_model_is_left_alone() -> None:
    model = build("g (float[4] x) => (float[4] y) { a = AscendQuant(x) y = Relu(a) }", check=False)
    assert "quantized already" in planned(model, recipe={"target": "ascend"})[1].plan.decisions[1].reason
