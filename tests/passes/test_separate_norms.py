"""SeparateNorms: which additions it touches, and that ONNX Runtime fuses them no more."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

import onnxq
from onnxq.passes.separate_norms import SeparateNorms
from onnxq.plan import Plan
from onnxq.runtime import optimized
from tests.graphs import apply, assert_same_function, build, context, graph_of, normal, ops, run
from tests.passes.test_insert_dynamic import cosine

NORM = "y = LayerNormalization <axis=-1> (s, G, B)"
CONSTANTS: dict[str, Any] = {"G": normal(8), "B": normal(8)}


def block(text: str, **constants: Any) -> onnx.ModelProto:
    body = f"g (float[2,5,8] x, float[2,5,8] z) => (float[2,5,8] y) {{ {text} }}"
    return build(body, **CONSTANTS, **constants)


def test_a_residual_addition_is_kept_from_being_fused() -> None:
    model = block(f"m = MatMul(x, W) a = Add(m, C) s = Add(a, z) {NORM}", W=normal(8, 8), C=normal(8, seed=1))
    assert "SkipLayerNormalization" in ops(optimized(model))
    quantized = onnxq.quantize(model, recipe={"scheme": "dynamic"}).model
    assert sorted(ops(optimized(quantized))) == ["DynamicQuantizeMatMul", "LayerNormalization", "Sum"]
    feed = {"x": normal(2, 5, 8), "z": normal(2, 5, 8, seed=1)}
    assert cosine(run(model, feed)["y"], run(quantized, feed)["y"]) > 0.999


def changed(model: onnx.ModelProto, *, plan: bool = True) -> list[str]:
    graph = onnxq.GraphModel.from_proto(onnx.shape_inference.infer_shapes(model))
    full = onnxq.plan_model(build("g (float[N,8] x) => (float[N,8] y) { y = MatMul(x, W) }", W=normal(8, 8)),
                            recipe={"scheme": "dynamic"}).plan  # fmt: skip
    apply(graph, SeparateNorms(), ctx=context(plan=full if plan else Plan()))
    assert_same_function(model, graph, rtol=1e-6)
    return [op for op in ops(graph) if op in ("Add", "Sum")]


def test_biases_other_additions_and_empty_plans_are_left() -> None:
    assert changed(block(f"s = Add(x, z) {NORM}")) == ["Sum"]
    assert changed(block(f"s = Add(x, z) {NORM}"), plan=False) == ["Add"]
    assert changed(block(f"s = Add(x, C) {NORM}", C=normal(8))) == ["Add"]
    assert changed(block("a = Add(x, z) r = Relu(a) s = Mul(r, G) y = Add(s, B)")) == ["Add", "Add"]


def test_a_normalization_in_single_steps_counts() -> None:
    text = """s = Add(x, z) m = ReduceMean <axes=[-1]> (s) d = Sub(s, m) q = Mul(d, d)
              v = ReduceMean <axes=[-1]> (q) e = Add(v, E) r = Sqrt(e) n = Div(d, r) g = Mul(n, G) y = Add(g, B)"""
    assert changed(block(text, E=np.float32(1e-5))) == ["Sum", "Add", "Add"]


def test_integers_are_left() -> None:
    graph = graph_of("g (int64[2,3] a, int64[2,3] b) => (int64[2,3] s) { s = Add(a, b) }")
    assert apply(graph, SeparateNorms(), ctx=context(plan=Plan())).changed == 0
