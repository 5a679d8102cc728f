"""Parts of transformers that stay in one piece: no codes inside, by their reason."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.passes._patterns import ATTENTION, GELU, HARD_SWISH, LAYER_NORM
from onnxq.plan import Plan
from tests.graphs import build, normal

NORM = """m = ReduceMean <axes=[-1]> (a) d = Sub(a, m) s = Pow(d, two) v = ReduceMean <axes=[-1]> (s) e = Add(v, eps)
          r = Sqrt(e) n = Div(d, r) g = Mul(n, gamma) b = Add(g, beta)"""
RMS = """s = Mul(a, a) v = ReduceMean <axes=[-1]> (s) e = Add(v, eps) r = Sqrt(e) n = Div(a, r) b = Mul(n, gamma)"""
ERF = "d = Div(a, root) f = Erf(d) p = Add(f, one) q = Mul(a, p) b = Mul(q, half)"
TANH = """c = Pow(a, three) k = Mul(c, small) l = Add(a, k) u = Mul(l, small) f = Tanh(u) p = Add(f, one)
          h = Mul(a, half) b = Mul(h, p)"""
SWISH = "t = Add(a, three) c = Clip(t, zero, six) p = Mul(a, c) b = Div(p, six)"
GATE = "c = HardSigmoid(a) b = Mul(a, c)"
CONSTANTS = {
    "two": np.float32(2), "eps": np.float32(1e-5), "gamma": normal(8), "beta": normal(8), "root": np.float32(2**0.5),
    "one": np.float32(1), "half": np.float32(0.5), "three": np.float32(3), "small": np.float32(0.1),
    "zero": np.float32(0), "six": np.float32(6), "P": normal(8, 8), "Q": normal(8, 8, seed=3),
}  # fmt: skip


def plan_of(body: str, target: str = "ort") -> Plan:
    text = f"g (float[2,6,8] x) => (float[p,q,r] y) {{ a = MatMul(x, P) {body} y = MatMul(b, Q) }}"
    used = {k: v for k, v in CONSTANTS.items() if f"{k})" in text or f"{k}," in text}
    return onnxq.plan_model(onnx.shape_inference.infer_shapes(build(text, check=False, **used)), target=target).plan


@pytest.mark.parametrize(
    ("body", "reason"),
    [(NORM, LAYER_NORM), (RMS, LAYER_NORM), (ERF, GELU), (TANH, GELU), (SWISH, HARD_SWISH), (GATE, HARD_SWISH)],
    ids=["LayerNorm", "RMSNorm", "Gelu", "Gelu with tanh", "HardSwish", "HardSwish of HardSigmoid"],
)
@pytest.mark.parametrize("target", ["ort", "tensorrt"])
def test_no_codes_inside(body: str, reason: str, target: str) -> None:
    plan = plan_of(body, target)
    inside = plan.decisions[1:-1]
    assert len(inside) == body.count("=") - body.count("<")
    assert {d.role for d in inside} == {"float"}
    assert target == "tensorrt" or reason in {d.reason for d in inside}  # which has no HardSigmoid anyway
    assert set(plan.activations) == {"x", "b"}  # what the two products read
    assert all(not a.everywhere for a in plan.activations.values())


ATTENTION_BODY = """k = MatMul(x, Q) t = Transpose <perm=[0,2,1]> (k) [scores] s = MatMul(a, t)
    [scale] u = Mul(s, small) [mask] w = Add(u, z) [softmax] o = Softmax <axis=-1> (w) [context] b = MatMul(o, v)"""


def attention(body: str, target: str = "ort") -> dict[str, tuple[str, str]]:
    text = f"""g (float[2,6,8] x, float[2,6,6] z) => (float[2,6,8] y) {{
        a = MatMul(x, P) v = MatMul(x, Q) {body} [out] y = MatMul(b, P) }}"""
    model = build(text, check=False, **{k: CONSTANTS[k] for k in ("P", "Q", "small")})
    plan = onnxq.plan_model(onnx.shape_inference.infer_shapes(model), target=target).plan
    return {d.node: (d.role, d.reason) for d in plan.decisions}


def test_the_products_and_the_softmax_of_an_attention_stay_float() -> None:
    found = attention(ATTENTION_BODY)
    assert {n for n, (_, reason) in found.items() if reason == ATTENTION} == {
        "scores", "scale", "mask", "softmax", "context"
    }  # fmt: skip
    assert [role for n, (role, _) in found.items() if n.startswith("matmul") or n == "out"] == ["quantized"] * 4


def test_qnn_has_no_floats_to_leave_it_in() -> None:
    assert {role for role, _ in attention(ATTENTION_BODY, "qnn").values()} <= {"quantized", "shared"}


def test_a_product_of_two_activations_that_is_no_attention_gets_codes() -> None:
    body = "k = MatMul(x, Q) t = Transpose <perm=[0,2,1]> (k) [scores] s = MatMul(a, t) [context] b = MatMul(s, v)"
    found = attention(body)
    assert found["scores"][0] == found["context"][0] == "quantized"


def test_a_softmax_between_layers_is_no_attention() -> None:
    plan = plan_of("[s] b = Softmax <axis=-1> (a)")
    assert all(d.reason != ATTENTION for d in plan.decisions)


@pytest.mark.parametrize(
    "body",
    [
        "t = Add(a, two) c = Clip(t, zero, six) p = Mul(a, c) b = Div(p, six)",
        "f = Erf(a) p = Add(f, two) b = Mul(a, p)",
    ],
    ids=["Clip behind + 2", "erf + 2"],
)
def test_near_misses_are_not_taken_for_the_pattern(body: str) -> None:
    assert {HARD_SWISH, GELU}.isdisjoint(d.reason for d in plan_of(body).decisions)
