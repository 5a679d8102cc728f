"""Transformers: quantization leaves ONNX Runtime every normalization, Gelu and attention that it fuses in floats."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.runtime import make_session, optimized
from tests.bundled import MODELS, samples
from tests.fusions import fused
from tests.graphs import Feed, build, feeds_for, normal, run

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import encoders
import transformers

TRANSFORMERS = sorted([*MODELS.glob("digits_transformer*.onnx"), *MODELS.glob("sketch_decoder*.onnx")])
NORMS = ("LayerNormalization", "SimplifiedLayerNormalization")

CONSTANTS: dict[str, Any] = {
    "W": normal(8, 8, 1, 1), "B": normal(8), "F": normal(8, 8), "E": normal(16, 8), "g": normal(8), "b": normal(8),
    "eps": np.float32(1e-5), "root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5),
    "two": np.float32(2),
}  # fmt: skip
GELU = "e1 = Div({x}, root) e2 = Erf(e1) e3 = Add(e2, one) e4 = Mul({x}, e3) z = Mul(e4, half)"
LAYER_NORM = (
    "m = ReduceMean <axes=[-1]> ({x}) d = Sub({x}, m) p = Pow(d, two) v = ReduceMean <axes=[-1]> (p) "
    "w = Add(v, eps) q = Sqrt(w) r = Div(d, q) u = Mul(r, g) z = Add(u, b)"
)
RMS_NORM = (
    "p = Pow({x}, two) v = ReduceMean <axes=[-1]> (p) w = Add(v, eps) q = Sqrt(w) i = Div(one, q) "
    "r = Mul({x}, i) z = Mul(r, g)"
)
IMAGE, WORDS, ROWS = (
    f"g ({what} x) => (float[N,{tail}] y)"
    for what, tail in (("float[N,8,8,8]", "8,8,8"), ("int64[N,6]", "6,8"), ("float[N,6,8]", "6,8"))
)
CODED = {
    "Gelu behind a convolution": (f"{IMAGE} {{ a = Conv(x, W, B) {GELU} y = Conv(z, W) }}", {"Gelu": 1}),
    "Gelu read as well": (f"{IMAGE} {{ a = Conv(x, W, B) {GELU} c = Conv(z, W) y = Add(c, a) }}", {"Gelu": 1}),
    "LayerNorm of an embedding": (
        f"{WORDS} {{ a = Gather(E, x) {LAYER_NORM} c = MatMul(z, F) y = Add(c, a) }}",
        {"LayerNormalization": 1},
    ),
    "RMSNorm of an embedding": (
        f"{WORDS} {{ a = Gather(E, x) {RMS_NORM} c = MatMul(z, F) y = Add(c, a) }}",
        {"SimplifiedLayerNormalization": 1},
    ),
    "Gelu behind a product": (
        f"{ROWS} {{ c = MatMul(x, F) a = Add(c, b) {GELU} y = MatMul(z, F) }}",
        {"BiasGelu": 1},
    ),
    "LayerNorm of an input": (f"{ROWS} {{ a = Identity(x) {LAYER_NORM} y = MatMul(z, F) }}", {"LayerNormalization": 1}),
}


def tiny(text: str, *, opset: int = 17) -> onnx.ModelProto:
    text = text.replace("{x}", "a")
    constants = {k: v for k, v in CONSTANTS.items() if re.search(rf"\b{k}\b", text.partition("=>")[2])}
    return onnx.shape_inference.infer_shapes(build(text, check=False, opset=opset, **constants))


def sqnr(model: onnx.ModelProto, other: onnx.ModelProto, feed: Feed) -> float:
    wanted, found = (make_session(m, threads=1).run(None, feed)[0].astype(np.float64) for m in (model, other))
    return float(10 * np.log10(np.sum(wanted**2) / np.sum((wanted - found) ** 2)))


@pytest.mark.parametrize("path", TRANSFORMERS, ids=[p.stem for p in TRANSFORMERS])
def test_as_many_fused_nodes_as_in_floats(path: Path) -> None:
    model = onnx.load(path)
    wanted = fused(model)
    assert sum(wanted.get(op, 0) for op in NORMS) >= 4
    feed = samples(path, count=12)
    for recipe in ({}, {"balance": {}}):
        result = onnxq.quantize(model, feed, recipe=recipe, threads=1)
        assert fused(result.model) == wanted, recipe


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("name", CODED)
def test_patterns_that_read_codes_are_still_known(name: str, opset: int) -> None:
    """ONNX Runtime gives every reader a DequantizeLinear of its own: two readers would not read one tensor then."""
    text, kernels = CODED[name]
    model = tiny(text, opset=opset)
    feeds = [feeds_for(model, seed=s) for s in range(3)]
    assert fused(model) == kernels
    result = onnxq.quantize(model, feeds, threads=1)
    assert fused(result.model) == kernels
    assert sqnr(model, result.model, feeds[0]) > 28


def test_decoded_values_that_no_pattern_reads_twice_have_nothing_behind_them() -> None:
    model = tiny(f"{IMAGE} {{ a = Conv(x, W, B) b1 = Conv(a, W) c = Erf(b1) d = Sub(b1, c) y = Conv(d, W) }}")
    result = onnxq.quantize(model, [feeds_for(model)], threads=1)
    assert not [n for n in result.model.graph.node if n.op_type == "Max"]


def test_other_targets_get_plain_pairs() -> None:
    model = tiny(CODED["Gelu behind a convolution"][0])
    for target in ("qnn", "tensorrt"):
        result = onnxq.quantize(model, [feeds_for(model)], target=target, threads=1)
        assert not [n for n in result.model.graph.node if n.op_type == "Max"]


def test_names_of_outputs_stay_where_a_pattern_reads_one() -> None:
    model = tiny(f"{IMAGE} {{ a = Conv(x, W, B) {GELU} y = Conv(z, W) }}".replace("y)", "y, float[N,8,8,8] a)", 1))
    feed = feeds_for(model)
    result = onnxq.quantize(model, [feed], threads=1)
    assert fused(result.model) == {"Gelu": 1}
    found, wanted = run(result.model, feed), run(model, feed)
    assert set(found) == {"y", "a"}
    np.testing.assert_allclose(found["a"], wanted["a"], atol=0.05 * np.abs(wanted["a"]).max())


# ---- caches of keys and values


def test_caches_of_a_decoder_stay_floats_and_nothing_in_front_of_them_has_codes() -> None:
    path = MODELS / "sketch_decoder_with_past.onnx"
    model = onnx.load(path)
    feed = samples(path, count=24)
    result = onnxq.quantize(model, feed, threads=1).model
    caches = [o.name for o in model.graph.output if o.name.startswith("present")]
    assert len(caches) == 4
    types = {o.name: o.type.tensor_type.elem_type for o in (*result.graph.input, *result.graph.output)}
    assert {types[n] for n in types if "present" in n or "past" in n} == {onnx.TensorProto.FLOAT}
    made = {o: n for n in result.graph.node for o in n.output}
    for name in caches:
        joined = made[name]
        assert joined.op_type == "Concat"
        assert {made[n].op_type for n in joined.input if n in made} <= {"Add", "Transpose"}
    float_run, coded_run = (make_session(m, threads=1).run(None, feed) for m in (model, result))
    for a, b in zip(float_run, coded_run, strict=True):
        noise = np.square(a.astype(np.float64) - b).sum()
        assert 10 * np.log10(np.square(a, dtype=np.float64).sum() / noise) > 28


# ---- attention


def test_attention_of_old_operator_sets_becomes_integer_products(tmp_path: Path) -> None:
    """At opset 12 ONNX Runtime makes an Attention of a float block with a mask; codes of its projections are faster."""
    size = encoders.Size(layers=1, hidden=24, intermediate=48, heads=2, words=16, tokens=8)
    encoders.write(tmp_path / "masked.onnx", size, masked=True)
    model = onnx.load(tmp_path / "masked.onnx")
    words = np.random.default_rng(0).integers(0, size.words, (8, size.tokens))
    result = onnxq.quantize(model, {"ids": words, "mask": np.ones_like(words)}, threads=1)
    before, after = fused(model), fused(result.model)
    assert before.pop("Attention") == 1
    assert (after.pop("FusedMatMul"), after.pop("Softmax")) == (1, 1)
    assert before == after
    assert Counter(n.op_type for n in optimized(result.model).graph.node)["MatMulIntegerToFloat"] == 6


def test_the_benchmark_counts_what_it_says(tmp_path: Path) -> None:
    size = encoders.Size(layers=1, hidden=24, intermediate=48, heads=2, words=16, tokens=8)
    encoders.write(tmp_path / "masked.onnx", size, masked=True)
    assert transformers.kernels(tmp_path / "masked.onnx") == 5
    assert len(transformers.projections_of(tmp_path / "masked.onnx")) == 3
    tokens = [{"tokens": np.array([[0, 1, 2], [3, 4, 5]])}]
    even = [np.zeros((2, 3, 7), np.float32)]
    assert transformers.perplexity()(even, tokens)["perplexity"] == pytest.approx(7)
    assert transformers.perplexity(tokens[0]["tokens"])(even, tokens)["perplexity"] == pytest.approx(7)
