"""SelectWeights: which weights are stored as codes, along which axis, and the reason of every one that is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.errors import RecipeError
from onnxq.passes._weight_only import gain_threshold
from onnxq.pipeline import Result
from onnxq.spec import PerAxis, PerTensor
from tests.graphs import build, normal


def planned(text: str, *, recipe: Any = None, opset: int = 17, scheme: Any = None, **constants: Any) -> Result:
    model = onnx.shape_inference.infer_shapes(build(text, opset=opset, check=False, **constants))
    content = {"scheme": {"kind": "weight_only", **(scheme or {})}, **(recipe or {})}
    return onnxq.plan_model(model, recipe=content)


def roles(result: Result) -> dict[str, str]:
    return {d.node: d.role for d in result.plan.decisions}


def reason(result: Result, node: str) -> str:
    return next(d.reason for d in result.plan.decisions if d.node == node)


def skipped(result: Result) -> list[tuple[str, str]]:
    report = next(r for r in result.reports if r.name == "SelectWeights")
    return [(s.node, s.reason) for s in report.skipped]


def axes(result: Result) -> dict[tuple[str, int], int | None]:
    found = {}
    for w in result.plan.weights:
        granularity = w.spec.granularity
        found[w.node, w.index] = granularity.axis if isinstance(granularity, PerAxis) else None
    return found


def image(body: str) -> str:
    return f"g (float[N,4,8,8] x) => (float[N,p,q,r] y) {{ {body} }}"


# ---- which axis ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "weight", "axis"),
    [
        (image("[n] y = Conv(x, W)"), (8, 4, 3, 3), 0),
        (image("[n] y = Conv <group=4> (x, W)"), (8, 1, 3, 3), 0),
        (image("[n] y = ConvTranspose(x, W)"), (4, 6, 3, 3), 1),
        (image("[n] y = ConvTranspose <group=4> (x, W)"), (4, 1, 3, 3), 0),
        (image("[n] y = ConvTranspose <group=2> (x, W)"), (4, 3, 3, 3), 0),
        ("g (float[N,4] x) => (float[N,6] y) { [n] y = Gemm(x, W) }", (4, 6), 1),
        ("g (float[N,4] x) => (float[N,6] y) { [n] y = Gemm <transB=1> (x, W) }", (6, 4), 0),
        ("g (float[4,6] x) => (float[5,6] y) { [n] y = Gemm(W, x) }", (5, 4), 0),
        ("g (float[4,6] x) => (float[5,6] y) { [n] y = Gemm <transA=1> (W, x) }", (4, 5), 1),
        ("g (float[N,4] x) => (float[N,6] y) { [n] y = MatMul(x, W) }", (4, 6), 1),
        ("g (float[N,2,4] x) => (float[N,2,6] y) { [n] y = MatMul(x, W) }", (2, 4, 6), 2),
        ("g (float[4,6] x) => (float[5,6] y) { [n] y = MatMul(W, x) }", (5, 4), 0),
        ("g (int64[N] i) => (float[N,4] y) { [n] y = Gather(W, i) }", (9, 4), 0),
        ("g (int64[N] i) => (float[9,N] y) { [n] y = Gather <axis=-1> (W, i) }", (9, 4), 1),
    ],
)
def test_channels_are_those_of_the_onnx_layout(text: str, weight: tuple[int, ...], axis: int) -> None:
    result = planned(text, W=normal(*weight))
    assert list(axes(result).values()) == [axis]
    assert roles(result) == {"n": "quantized"}
    assert not result.plan.activations


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
@pytest.mark.parametrize("directions", [1, 2])
def test_recurrent_layers_have_two_weights(op: str, gates: int, directions: int) -> None:
    way = "bidirectional" if directions == 2 else "forward"
    text = f'g (float[5,N,6] x) => (float[5,d,N,3] y) {{ [n] y = {op} <hidden_size=3, direction="{way}"> (x, W, R) }}'
    result = planned(text, W=normal(directions, gates * 3, 6), R=normal(directions, gates * 3, 3))
    assert axes(result) == {("n", 1): 1, ("n", 2): 1}


def test_everything_has_its_place_in_the_plan() -> None:
    """One decision for each node, in order; biases and what has no weight stay float."""
    text = image("[c] a = Conv(x, W, B) [r] b = Relu(a) [s] y = Add(b, C)")
    result = planned(text, W=normal(8, 4, 1, 1), B=normal(8), C=normal(1, 8, 1, 1))
    assert roles(result) == {"c": "quantized", "r": "float", "s": "float"}
    assert reason(result, "s") == "Add has no weight that could be stored as codes"
    assert [(w.node, w.index, w.tensor, w.key) for w in result.plan.weights] == [("c", 1, "W", "W")]


# ---- why not ------------------------------------------------------------------------------------

LINEAR = "g (float[N,4] x) => (float[N,6] y) { [n] y = MatMul(x, W) }"


@pytest.mark.parametrize(
    ("text", "constants", "wanted"),
    [
        ("g (float[N,4] x, float[4,6] W) => (float[N,6] y) { [n] y = MatMul(x, W) }", {}, "no constant weight"),
        ("g (float[N,4] x) => (float[N] y) { [n] y = MatMul(x, W) }", {"W": normal(4)}, "has 1 dimensions"),
        ("g (int64[N] i) => (int64[N,2] y) { [n] y = Gather(W, i) }", {"W": np.ones((5, 2), np.int64)}, "only float32"),
        ("g (float[N,4] x) => (float[N,0] y) { [n] y = MatMul(x, W) }", {"W": normal(4, 0)}, "is empty"),
        ("g (float[N,4] x) => (float[N,6] y, float[4,6] W) { [n] y = MatMul(x, W) }", {"W": normal(4, 6)}, "graph out"),
        (
            "g (float[N,4] x) => (float[N,6] y, float[4,6] z) { [n] y = MatMul(x, W) [e] z = Exp(W) }",
            {"W": normal(4, 6)},
            "Exp 'e' needs its weight 'W' as floats",
        ),
    ],
)
def test_reasons(text: str, constants: dict[str, Any], wanted: str) -> None:
    result = planned(text, **constants)
    assert wanted in reason(result, "n")
    assert not result.plan.weights
    assert "nothing in this model can be quantized" in result.notes[-1]


def test_bodies_stay_float_and_so_do_weights_they_read() -> None:
    text = """g (float[N,4] x, bool c) => (float[N,4] y) { [m] a = MatMul(x, W)
        [n] y = If (c) <then_branch = t () => (float[N,4] p) { p = MatMul(a, W) },
                        else_branch = e () => (float[N,4] q) { q = Neg(a) }> }"""
    result = planned(text, W=normal(4, 4))
    assert reason(result, "n") == "the bodies of If nodes are left float"
    assert "read inside the body" in reason(result, "m")


def test_thresholds_are_exceeded_strictly() -> None:
    text = image("[a] p = Conv(x, W) [b] y = Conv(p, V)")
    constants = {"W": normal(5, 4, 1, 1), "V": normal(6, 5, 1, 1)}
    for key, limit in (("min_size", 20), ("min_channels", 5)):
        found = planned(text, scheme={key: limit}, **constants)
        assert roles(found) == {"a": "float", "b": "quantized"}
        assert f"not more than {key} {limit}" in reason(found, "a")
        assert roles(planned(text, scheme={key: limit - 1}, **constants))["a"] == "quantized"


def test_only_convolutions_have_a_least_number_of_channels() -> None:
    assert roles(planned(LINEAR, scheme={"min_channels": 100}, W=normal(4, 6))) == {"n": "quantized"}
    text = image("[n] y = ConvTranspose(x, W)")
    assert roles(planned(text, scheme={"min_channels": 5}, W=normal(4, 6, 1, 1))) == {"n": "quantized"}
    assert roles(planned(text, scheme={"min_channels": 6}, W=normal(4, 6, 1, 1))) == {"n": "float"}


def test_the_gain_rule_by_width() -> None:
    limits = [8, 8, 8, 9, 9, 9, 10, 10, 11, 11, 12, 12, 13, 14, 15, 16]
    assert [gain_threshold(bits) for bits in range(1, 17)] == limits


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_channels_must_have_more_elements_than_the_gain_rule_says(bits: int) -> None:
    limit = gain_threshold(bits)
    for elements in (limit, limit + 1):
        text = f"g (float[N,{elements}] x) => (float[N,3] y) {{ [n] y = MatMul(x, W) }}"
        found = planned(text, scheme={"gain_rule": True}, recipe={"weights": {"bits": bits}}, W=normal(elements, 3))
        assert roles(found)["n"] == ("float" if elements == limit else "quantized")


@pytest.mark.parametrize(
    ("scheme", "recipe"),
    [
        ({"gain_rule": False}, {}),
        ({"correction": False}, {}),
        ({}, {"weights": {"granularity": "per_tensor"}}),
        ({"mixed": {}}, {}),
        ({}, {"rules": [{"match": {"node": "n"}, "quantize": True}]}),
    ],
)
def test_where_the_gain_rule_does_not_hold(scheme: dict[str, Any], recipe: dict[str, Any]) -> None:
    assert roles(planned(LINEAR, scheme={"gain_rule": True}, W=normal(4, 6))) == {"n": "float"}
    assert (
        roles(planned(LINEAR, scheme={"gain_rule": True, **scheme}, recipe=recipe, W=normal(4, 6)))["n"] == "quantized"
    )


def test_of_a_layer_with_two_weights_one_may_stay_float() -> None:
    text = "g (float[5,N,6] x) => (float[5,1,N,3] y) { [n] y = RNN <hidden_size=3> (x, W, R) }"
    result = planned(text, scheme={"min_size": 10}, W=normal(1, 3, 6), R=normal(1, 3, 3))
    assert roles(result) == {"n": "quantized"}
    assert axes(result) == {("n", 1): 1}
    assert skipped(result) == [("n", skipped(result)[0][1])]
    assert "has 9 elements" in skipped(result)[0][1]


# ---- what the recipe says -----------------------------------------------------------------------

TWO = image("[first] a = Conv(x, W) [second] y = Conv(a, V)")
WEIGHTS = {"W": normal(4, 4, 1, 1), "V": normal(4, 4, 1, 1, seed=2)}


@pytest.mark.parametrize("entry", ["first", "fir*"])
def test_what_the_recipe_skips_stays_float(entry: str) -> None:
    result = planned(TWO, recipe={"skip": [entry]}, **WEIGHTS)
    assert roles(result) == {"first": "float", "second": "quantized"}
    assert entry in reason(result, "first")


def test_a_name_that_matches_nothing_is_an_error_with_the_nearest_one() -> None:
    with pytest.raises(RecipeError, match="second"):
        planned(TWO, recipe={"skip": ["secnd"]}, **WEIGHTS)
    assert roles(planned(TWO, recipe={"skip": ["LSTM"]}, **WEIGHTS))["first"] == "quantized"  # a type that exists


def test_rules_change_width_symmetry_and_granularity() -> None:
    rules = [
        {"match": {"node": "first"}, "weights": {"bits": 5, "symmetric": True}},
        {"match": {"node": "second"}, "weights": {"granularity": "per_tensor", "type": "uint16"}},
    ]
    one, two = (w.spec for w in planned(TWO, recipe={"rules": rules}, **WEIGHTS).plan.weights)
    assert (one.bits, one.symmetric, one.granularity, one.bounds) == (5, True, PerAxis(0), (-16, 15))
    assert (two.bits, two.symmetric, two.granularity, two.bounds) == (16, False, PerTensor(), (0, 65535))


def test_by_default_eight_bits_asymmetric_per_channel() -> None:
    (spec,) = {w.spec for w in planned(TWO, **WEIGHTS).plan.weights}
    assert (spec.bits, spec.symmetric, spec.granularity, spec.bounds) == (8, False, PerAxis(0), (-128, 127))
    (one,) = {w.spec for w in planned(TWO, recipe={"weights": {"bits": 1}}, **WEIGHTS).plan.weights}
    assert (one.bits, one.bounds) == (1, (-1, 0))


# ---- weights with several readers ---------------------------------------------------------------


def test_readers_along_other_axes_share_one_scale() -> None:
    text = "g (float[N,4] x) => (float[N,4] y) { [a] p = MatMul(x, W) [b] y = Gemm <transB=1> (p, W) }"
    result = planned(text, W=normal(4, 4))
    assert axes(result) == {("a", 1): None, ("b", 1): None}
    assert {w.key for w in result.plan.weights} == {"W"}
    alike = text.replace("<transB=1>", "")
    assert axes(planned(alike, W=normal(4, 4))) == {("a", 1): 1, ("b", 1): 1}


def test_an_embedding_tied_to_the_last_layer_keeps_its_rows() -> None:
    text = "g (int64[N] i) => (float[N,9] y) { [a] p = Gather(W, i) [b] y = Gemm <transB=1> (p, W) }"
    assert axes(planned(text, W=normal(9, 4))) == {("a", 0): 0, ("b", 1): 0}


def test_readers_that_want_other_widths_have_codes_of_their_own() -> None:
    text = "g (float[N,4] x) => (float[N,4] y) { [a] p = MatMul(x, W) [b] q = MatMul(p, W) [c] y = MatMul(q, W) }"
    result = planned(text, recipe={"rules": [{"match": {"node": "b"}, "weights": {"bits": 4}}]}, W=normal(4, 4))
    assert [(w.node, w.key, w.spec.bits) for w in result.plan.weights] == [
        ("a", "W", 8),
        ("b", "W#2", 4),
        ("c", "W", 8),
    ]


def test_a_weight_that_one_reader_needs_as_floats_stays_float_for_all() -> None:
    """Codes beside the floats would only add to the file."""
    text = "g (float[N,4] x) => (float[N,4] y) { [a] p = MatMul(x, W) [b] y = MatMul(p, W) }"
    result = planned(text, recipe={"skip": ["a"]}, W=normal(4, 4))
    assert roles(result) == {"a": "float", "b": "float"}
    assert "MatMul 'a' needs its weight 'W' as floats" in reason(result, "b")
    forced = [{"match": {"node": "a"}, "quantize": True}]
    both = planned(text, scheme={"min_size": 99}, recipe={"rules": forced}, W=normal(4, 4))
    assert "stays float for MatMul 'b'" in reason(both, "a")


# ---- what has no meaning here -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "wanted"),
    [
        ({"activations": {"symmetric": True}}, "activations: activations stay float"),
        ({"balance": {}}, "balance: activations stay float"),
        ({"fp16_scales": True}, "fp16_scales"),
        ({"rules": [{"match": {"node": "first"}, "activations": {"bits": 4}}]}, r"rules\[0\].activations"),
        ({"rules": [{"match": {"node": "first"}, "inputs": [0]}]}, r"rules\[0\].inputs"),
        ({"refine": [{"kind": "bias_correction", "samples": 3}]}, "scheme.correction"),
        ({"weights": {"method": "nuq"}}, "weights.method: nuq needs a static scheme"),
        ({"weights": {"method": {"name": "absmax", "full_range": True}}}, "full_range"),
        ({"weights": {"narrow": True}}, "weights.narrow"),
        ({"weights": {"granularity": {"per_block": {"size": 32}}}}, "scheme.block_size"),
        ({"scheme": {"kind": "weight_only", "mixed": {}}, "weights": {"bits": 4}}, "weights: scheme.mixed searches"),
    ],
)
def test_what_has_no_effect_is_an_error_that_says_so(recipe: dict[str, Any], wanted: str) -> None:
    with pytest.raises(RecipeError, match=f"scheme weight_only: .*{wanted}"):
        planned(TWO, recipe=recipe, **WEIGHTS)


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(RecipeError, match=r"balance.*; .*weights\.narrow"):
        planned(TWO, recipe={"balance": {}, "weights": {"narrow": True}}, **WEIGHTS)


def test_defaults_written_out_are_no_demand() -> None:
    content = onnxq.Recipe.from_dict({"scheme": "weight_only"}).to_dict()
    assert (
        roles(planned(TWO, recipe={k: v for k, v in content.items() if k != "scheme"}, **WEIGHTS))["first"]
        == "quantized"
    )
    assert planned(TWO, recipe={"refine": []}, **WEIGHTS).plan
