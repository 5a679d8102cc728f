"""SelectDynamic: what gets codes, what stays float and why, and what the recipe may ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.errors import RecipeError
from onnxq.spec import PerAxis, PerBlock, PerTensor, QType
from tests.graphs import build, normal

MODELS = Path(__file__).parents[2] / "models"


def plan(model: onnx.ModelProto, *, recipe: dict[str, Any] | None = None, **scheme: Any) -> onnxq.Result:
    return onnxq.plan_model(model, recipe={"scheme": {"kind": "dynamic", **scheme}, **(recipe or {})})


def why(result: onnxq.Result) -> dict[str, str]:
    return {d.node: d.reason for d in result.plan.decisions}


def matmul(*shape: int, text: str = "[mm] y = MatMul(x, W)") -> onnx.ModelProto:
    return build(f"g (float[N,8] x) => (float[N,K] y) {{ {text} }}", check=False, W=normal(*(shape or (8, 6))))


def test_a_product_with_a_weight_on_the_right_has_a_scale_per_column() -> None:
    result = plan(matmul())
    (weight,) = result.plan.weights
    assert (weight.node, weight.index, weight.tensor, weight.input) == ("mm", 1, "W", "x")
    assert (weight.spec.qtype, weight.spec.granularity) == (QType.INT8, PerAxis(1))
    assert weight.spec.bounds == (-127, 127)
    assert result.plan.activations == {}
    assert result.plan.counts()["quantized"] == 1
    assert why(result) == {"mm": ""}


def test_a_weight_on_the_left_has_a_scale_per_row() -> None:
    model = build("g (float[8,N] x) => (float[4,N] y) { [mm] y = MatMul(W, x) }", W=normal(4, 8))
    (weight,) = plan(model).plan.weights
    assert (weight.index, weight.spec.granularity) == (0, PerAxis(0))


@pytest.mark.parametrize(("attrs", "shape", "axis"), [("", (8, 6), 1), ("<transB=1>", (6, 8), 0)])
def test_gemm_has_a_scale_per_output(attrs: str, shape: tuple[int, int], axis: int) -> None:
    (weight,) = plan(matmul(*shape, text=f"[mm] y = Gemm {attrs} (x, W)")).plan.weights
    assert weight.spec.granularity == PerAxis(axis)


def test_a_vector_and_a_batch_of_matrices() -> None:
    (vector,) = plan(build("g (float[N,8] x) => (float[N] y) { y = MatMul(x, W) }", W=normal(8))).plan.weights
    assert vector.spec.granularity == PerTensor()
    text = "g (float[N,2,5,8] x) => (float[N,2,5,6] y) { y = MatMul(x, W) }"
    (batch,) = plan(build(text, W=normal(2, 8, 6))).plan.weights
    assert batch.spec.granularity == PerAxis(2)


def test_products_of_two_activations_need_to_be_asked_for() -> None:
    model = build("g (float[N,8,8] x) => (float[N,8,8] y) { [mm] y = MatMul(x, x) }")
    left = plan(model)
    assert not left.changed
    assert "scheme.variables: true" in why(left)["mm"]
    asked = plan(model, variables=True)
    assert asked.changed
    assert (asked.plan.weights, why(asked)) == ((), {"mm": ""})


def test_tables_have_a_scale_and_zero_point_for_each_row() -> None:
    model = build("g (int64[N] i) => (float[N,8] y) { y = Gather(T, i) }", T=normal(9, 8))
    (table,) = plan(model).plan.weights
    assert (table.index, table.input, table.spec.symmetric) == (0, "", False)
    assert table.spec.granularity == PerAxis(0)
    other = build("g (int64[N] i) => (float[9,N] y) { y = Gather <axis=-1> (T, i) }", T=normal(9, 8))
    assert plan(other).plan.weights[0].spec.granularity == PerAxis(1)


def test_tables_of_numbers_and_of_integers_stay() -> None:
    numbers = plan(build("g (int64[N] i) => (float[N] y) { [g] y = Gather(T, i) }", T=normal(9)))
    assert "takes as much as it saves" in why(numbers)["g"]
    model = build("g (int64[N] i) => (int64[N,8] y) { [g] y = Gather(T, i) }", T=np.ones((9, 8), np.int64))
    assert "int64" in why(plan(model))["g"]
    model = build("g (float[9,8] T, int64[N] i) => (float[N,8] y) { [g] y = Gather(T, i) }")
    assert "is not a constant" in why(plan(model))["g"]


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layers_have_a_scale_per_gate_output_and_direction(op: str, gates: int) -> None:
    layer = f'{op} <hidden_size=3, direction="bidirectional">'
    text = f"g (float[T,N,5] x) => (float[T,2,N,3] y) {{ [r] y = {layer} (x, W, R) }}"
    result = plan(build(text, W=normal(2, gates * 3, 5), R=normal(2, gates * 3, 3)))
    first, second = result.plan.weights
    assert (first.index, second.index) == (1, 2)
    assert (first.spec.granularity, second.spec.granularity) == (PerBlock(2, 5), PerBlock(2, 3))
    assert bool(first.input) == (op == "LSTM")  # the others decode their weights


def test_what_cannot_be_is_left_with_a_reason() -> None:
    text = """g (float[N,4,8,8] x, float[4,4,1,1] V, bool b) => (float[N,4,8,8] z) {
        [conv] a = Conv(x, C) [relu] r = Relu(a)
        [if] z = If (b) <
            then_branch = t () => (float[N,4,8,8] p) { p = MatMul(r, W) },
            else_branch = e () => (float[N,4,8,8] q) { q = Identity(r) }> }"""
    found = why(plan(build(text, C=normal(4, 4, 1, 1), W=normal(8, 8))))
    assert "ConvInteger" in found["conv"]
    assert "codes that come with the activations are for products" in found["relu"]
    assert "bodies of If" in found["if"]


def test_half_floats_unknown_and_empty_weights_stay() -> None:
    half = build("g (float16[N,8] x) => (float16[N,6] y) { [mm] y = MatMul(x, W) }", W=normal(8, 6).astype(np.float16))
    assert "convert the model to float32 first" in why(plan(half))["mm"]
    empty = build("g (float[N,0] x) => (float[N,6] y) { [mm] y = MatMul(x, W) }", W=normal(0, 6))
    assert "is empty" in why(plan(empty))["mm"]


def test_readers_with_the_same_wishes_share_a_weight_and_others_do_not() -> None:
    text = """g (float[N,8] x, int64[M] i) => (float[N,8] a, float[N,8] b, float[N,8] c, float[M,8] d) {
        [m] a = MatMul(x, W) [n] b = MatMul(x, W) [t] c = Gemm <transB=1> (x, W) [g] d = Gather(W, i) }"""
    result = plan(build(text, W=normal(8, 8)))
    keys = {w.node: w.key for w in result.plan.weights}
    assert keys["m"] == keys["n"] == "W"
    assert len({keys["m"], keys["t"], keys["g"]}) == 3


def test_skip_and_rules_by_node() -> None:
    text = "[one] a = MatMul(x, W) [two] y = MatMul(a, V)"
    model = build(f"g (float[N,8] x) => (float[N,8] y) {{ {text} }}", W=normal(8, 8), V=normal(8, 8, seed=2))
    rule = {"match": {"node": "two"}, "weights": {"granularity": "per_tensor", "method": "mse"}}
    result = plan(model, recipe={"skip": ["one"], "rules": [rule]})
    assert why(result) == {"one": "the recipe skips 'one'", "two": ""}
    (weight,) = result.plan.weights
    assert weight.spec.granularity == PerTensor()
    assert weight.method.name == "mse"


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"weights": {"bits": 4}}, "weights.bits: found 4"),
        ({"weights": {"type": "int16"}}, "weights.type: found int16"),
        ({"weights": {"symmetric": False}}, "weights.symmetric"),
        ({"weights": {"granularity": {"per_block": {"size": 4}}}}, "weights.granularity"),
        ({"weights": {"method": "adaround"}}, "weights.method: found adaround"),
        ({"activations": {"type": "int8"}}, "activations: codes of the scheme dynamic are uint8"),
        ({"activations": {"symmetric": True}}, "activations: codes of the scheme dynamic are asymmetric"),
        ({"activations": {"method": "kl"}}, "activations.method: found kl"),
        ({"skip": ["absent"]}, "'absent' matches nothing"),
        ({"target": "tensorrt"}, "has no dynamic quantization"),
    ],
)
def test_what_the_recipe_cannot_have_is_refused(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        plan(matmul(), recipe=recipe)


def test_a_quantized_model_is_left_alone() -> None:
    once = onnxq.quantize(matmul(), recipe={"scheme": "dynamic"}).model
    again = plan(once)
    assert not again.changed
    assert any("quantized already" in note for note in again.notes)


def test_no_data_are_needed_and_the_bundled_transformer_is_planned() -> None:
    result = onnxq.plan_model(MODELS / "digits_transformer.onnx", recipe={"scheme": "dynamic"})
    assert result.plan.counts()["quantized"] == 14
    assert result.samples == 0
    assert all(d.reason for d in result.plan.left_float())
