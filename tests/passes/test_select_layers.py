"""SelectLayers: which nodes get codes, and the reason of every one that does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.errors import RecipeError
from onnxq.plan import Plan
from tests.graphs import build, normal

W = normal(4, 4, 1, 1)
LAYERS = {"W": W, "V": normal(4, 4, 1, 1, seed=2)}


def plan_of(text: str, *, recipe: Any = None, target: str | None = None, opset: int = 17, **constants: Any) -> Plan:
    model = build(text, opset=opset, check=False, **constants)
    return onnxq.plan_model(onnx.shape_inference.infer_shapes(model), recipe=recipe, target=target).plan


def roles(plan: Plan) -> dict[str, str]:
    return {d.node: d.role for d in plan.decisions}


def reason(plan: Plan, node: str) -> str:
    return next(d.reason for d in plan.decisions if d.node == node)


def image(body: str) -> str:
    return f"g (float[N,4,8,8] x) => (float[N,p,q,r] y) {{ {body} }}"


# ---- what the recipe says -------------------------------------------------------------------------

TWO = image("[block_first] a = Conv(x, W) [block_second] b = Conv(a, V) [head] y = Conv(b, W)")


@pytest.mark.parametrize(
    ("entry", "floats"),
    [
        ("head", {"head"}),
        ("block_*", {"block_first", "block_second"}),
        ("Conv", {"head", "block_first", "block_second"}),
    ],
)
def test_skipped_by_name_glob_and_type(entry: str, floats: set[str]) -> None:
    plan = plan_of(TWO, recipe={"skip": [entry]}, **LAYERS)
    assert {d.node for d in plan.left_float()} == floats
    assert all(entry in d.reason for d in plan.left_float())
    assert bool(plan) == (entry != "Conv")


def test_a_name_that_matches_nothing_is_an_error_with_the_nearest_one() -> None:
    with pytest.raises(RecipeError, match="block_first"):
        plan_of(TWO, recipe={"skip": ["block_frist"]}, **LAYERS)


def test_a_rule_on_the_node_beats_one_on_its_type() -> None:
    rules = [{"match": {"op_type": "Conv"}, "skip": True}, {"match": {"node": "head"}, "skip": False}]
    plan = plan_of(TWO, recipe={"rules": rules}, **LAYERS)
    assert [d.node for d in plan.decisions if d.role == "quantized"] == ["head"]
    assert "rules[0]" in reason(plan, "block_first")


def test_forced_operators_get_codes() -> None:
    text = image("a = Conv(x, W) [t] b = Tanh(a) y = Conv(b, V)")
    assert "no int8 kernel for Tanh" in reason(plan_of(text, **LAYERS), "t")
    forced = plan_of(text, recipe={"rules": [{"match": {"node": "t"}, "quantize": True}]}, **LAYERS)
    assert roles(forced)["t"] == "quantized"
    assert forced.activations["b"].everywhere


# ---- models as a whole ----------------------------------------------------------------------------


def test_a_quantized_model_is_left_alone() -> None:
    text = image("q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Conv(d, W)")
    plan = plan_of(text, W=W, s=np.float32(0.1), z=np.uint8(0))
    assert not plan
    assert len(plan.decisions) == 3
    assert all("quantized already" in d.reason for d in plan.decisions)


def test_a_float16_model_is_told_to_be_converted() -> None:
    plan = plan_of("g (float16[N,4,8,8] x) => (float16[N,4,8,8] y) { [c] y = Conv(x, W) }", W=W.astype(np.float16))
    assert not plan
    assert "float16" in reason(plan, "c")
    assert "float32" in reason(plan, "c")


def test_nothing_to_quantize_gives_every_node_a_reason() -> None:
    plan = plan_of(image("a = Exp(x) b = Relu(a) y = Transpose(b)"))
    assert not plan
    assert [bool(d.reason) for d in plan.decisions] == [True] * 3


def test_old_opsets_have_one_scale_for_a_weight_and_say_so() -> None:
    model = build(image("y = Conv(x, W)"), opset=12, check=False, W=W)
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None))
    assert onnxq.plan_model(model).graph.opset == 13


# ---- single nodes ---------------------------------------------------------------------------------

FLOAT: dict[str, tuple[str, str]] = {
    "weight from a node": ("[n] y = Conv(x, E) ", "its weight 'E' is not a constant"),
    "Clip above zero": ("a = Conv(x, W) [n] b = Clip(a, one) y = Conv(b, V)", "saturation always keeps zero"),
    "Relu and another reader": (
        "a = Conv(x, W) [n] b = Relu(a) c = Add(a, b) y = Conv(c, V)",
        "is read elsewhere too, so saturation cannot replace it",
    ),
    "Relu behind MaxPool": (
        "a = Conv(x, W) m = MaxPool <kernel_shape=[2,2]> (a) [n] b = Relu(m) y = Conv(b, V)",
        "shares its scale",
    ),
    "cubic Resize": (
        'a = Conv(x, W) [n] b = Resize <mode="cubic"> (a, , scales) y = Conv(b, V)',
        "outside the range of its input",
    ),
    "Pad with ones": ("a = Conv(x, W) [n] b = Pad(a, pads, one) y = Conv(b, V)", "something else than zero"),
    "indices of MaxPool": (
        "a = Conv(x, W) [n] b, i = MaxPool <kernel_shape=[1,1]> (a) j = Cast <to=1> (i) k = Mul(j, b) y = Conv(k, V)",
        "its second output is read",
    ),
    "in front of the first layer": (
        "[n] b = Transpose <perm=[0,1,3,2]> (x) y = Conv(b, V)",
        "comes from a graph input",
    ),
    "behind a float node": ("a = Conv(x, W) e = Exp(a) [n] b = Add(a, e) y = Conv(b, V)", "comes from Exp"),
    "behind the last layer": ("a = Conv(x, W) [n] y = Sigmoid(a)", "nothing after it computes with codes"),
    "in front of a float node": ("a = Conv(x, W) [n] b = Sigmoid(a) e = Exp(b) y = Conv(e, V)", "nothing after it"),
}


@pytest.mark.parametrize("name", FLOAT)
def test_reasons_of_single_nodes(name: str) -> None:
    body, wanted = FLOAT[name]
    constants = {
        **LAYERS,
        "one": np.float32(1),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    }
    text = image(body) if "E)" not in body else image(body).replace("x)", "x, float[4,4,1,1] E)", 1)
    plan = plan_of(text, **{k: v for k, v in constants.items() if f"{k})" in body or f"{k}," in body})
    assert roles(plan)["n"] == "float"
    assert wanted in reason(plan, "n")


def test_operators_of_other_domains_are_not_taken_for_their_namesakes() -> None:
    text = f"""<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>
        {image("[n] a = com.microsoft.Gelu(x) y = Conv(a, W)")}"""
    assert "does not compute com.microsoft::Gelu" in reason(plan_of(text, W=W), "n")


def test_bodies_stay_float() -> None:
    text = """g (float[N,4,8,8] x, bool c) => (float[N,4,8,8] y) { a = Conv(x, W)
        [n] y = If (c) <then_branch = t () => (float[N,4,8,8] p) { p = Relu(a) },
                        else_branch = e () => (float[N,4,8,8] q) { q = Neg(a) }> }"""
    plan = plan_of(text, W=W)
    assert reason(plan, "n") == "the bodies of If nodes are left float"
    assert roles(plan)["conv_0"] == "quantized"


# ---- flow -----------------------------------------------------------------------------------------


def test_codes_do_not_go_where_they_end_in_floats() -> None:
    """The Reshape could pass codes on to the Mul, but that one's other input is float: nobody would gain."""
    body = "a = MatMul(x, P) [r] b = Reshape(a, R) [m] c = Mul(b, z) y = MatMul(c, P)"
    text = f"g (float[6,8] x, float[2,3,8] z) => (float[2,3,8] y) {{ {body} }}"
    plan = plan_of(text, P=normal(8, 8), R=np.array([2, 3, 8]))
    assert roles(plan)["r"] == roles(plan)["m"] == "float"
    assert set(plan.activations) == {"x", "c"}


def test_codes_reach_a_layer_through_what_passes_them_on() -> None:
    plan = plan_of(image("a = Conv(x, W) b = Relu(a) c = MaxPool <kernel_shape=[2,2]> (b) y = Conv(c, V)"), **LAYERS)
    assert list(roles(plan).values()) == ["quantized", "absorbed", "shared", "quantized"]
    assert plan.activations["b"].group == plan.activations["c"].group
    assert plan.absorbed == ("relu_1",)


@pytest.mark.parametrize("target", ["tensorrt", "qnn"])
def test_an_embedding_and_its_reader_get_codes(target: str) -> None:
    plan = plan_of(
        "g (int64[N] i) => (float[N,3] y) { [e] a = Gather(E, i) [m] y = MatMul(a, P) }",
        E=normal(9, 4),
        P=normal(4, 3),
        target=target,
    )
    assert roles(plan) == {"e": "quantized", "m": "quantized"}
    assert "a" not in plan.activations  # it has the codes of the table
