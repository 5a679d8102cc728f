"""Models with float8 codes: what is inserted, that ONNX Runtime executes it as it is written, what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

import onnxq
from onnxq.errors import OnnxqError
from onnxq.runtime import make_session, optimized
from tests.bundled import MODELS, samples
from tests.graphs import Feed, build, feeds_for, normal
from tests.tensorrt_rules import problems

E4M3 = {"activations": {"type": "float8e4m3fn"}}
E5M2 = {"activations": {"type": "float8e5m2"}, "weights": {"type": "float8e5m2"}}
MIXED = {"activations": {"type": "float8e5m2"}, "weights": {"type": "float8e4m3fn", "granularity": "per_tensor"}}
RECIPES: dict[str, dict[str, Any]] = {"e4m3": E4M3, "e5m2": E5M2, "both": MIXED}
SAME = 30.0
"""dB; kernels that add in another order let a number in many thousands round to its other neighbour."""
TYPES = {TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2}

CONSTANTS: dict[str, Any] = {
    "W": normal(4, 4, 1, 1), "B": normal(4), "D": normal(4, 1, 3, 3), "T": normal(4, 4, 2, 2), "K": normal(1, 4, 1, 1),
    "F": normal(4, 5), "C": normal(5), "V": normal(5, 5), "low": np.float32(0), "top": np.float32(6),
    "image": np.array([0, 4, 64]), "flat": np.array([-1, 4]),
}  # fmt: skip
IMAGE = "g (float[N,4,8,8] x) => (float[N,4,p,q] y)"
BODIES = {
    "Conv, Relu, Conv": f"{IMAGE} {{ a = Conv(x, W, B) b = Relu(a) y = Conv(b, W) }}",
    "Conv, Conv": f"{IMAGE} {{ a = Conv(x, W, B) y = Conv(a, W, B) }}",
    "ReLU6": f"{IMAGE} {{ a = Conv(x, W, B) b = Clip(a, low, top) y = Conv <group=4> (b, D, B) }}",
    "pool": f"{IMAGE} {{ a = Conv(x, W) b = MaxPool <kernel_shape=[2,2]> (a) y = Conv(b, W) }}",
    "residual": f"{IMAGE} {{ a = Conv(x, W) b = Conv(a, W) c = Add(a, b) d = Relu(c) y = Conv(d, W) }}",
    "ConvTranspose": f"{IMAGE} {{ a = ConvTranspose <strides=[2,2]> (x, T, B) y = Conv(a, W) }}",
    "Concat": f"{IMAGE} {{ a = Conv(x, W) c = Concat <axis=2> (a, a) y = Conv(c, W, B) }}",
    "shared weight": f"{IMAGE} {{ a = Conv(x, W) b = Sigmoid(a) c = Conv(b, W) y = Mul(c, K) }}",
    "moved": "g (float[N,4,8,8] x) => (float[N,p,5] y) "
    "{ a = Reshape(x, image) b = Transpose <perm=[0,2,1]> (a) y = MatMul(b, F) }",
    "MatMul, Add": "g (float[N,6,4] x) => (float[N,6,5] y) { a = MatMul(x, F) b = Add(a, C) y = MatMul(b, V) }",
    "MatMul, Add, static": "g (float[2,6,4] x) => (float[2,6,5] y) { a = MatMul(x, F) b = Add(a, C) y = MatMul(b, V) }",
    "two activations": "g (float[N,4,4] x) => (float[N,4,4] y) { a = Relu(x) y = MatMul(x, a) }",
    "x x": "g (float[4,4] x) => (float[4,4] y) { y = MatMul(x, x) }",
    "Gemm": "g (float[N,4] x) => (float[N,5] y) { a = Gemm(x, F, C) b = Relu(a) y = Gemm <transB=1> (b, V, C) }",
    "output read again": f"{IMAGE} {{ y = Conv(x, W, B) z = Conv(y, W) }}".replace("y)", "y, float[N,4,r,s] z)"),
}  # fmt: skip


def model_of(text: str) -> onnx.ModelProto:
    names = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    model = build(text, check=False, **{k: v for k, v in CONSTANTS.items() if k in names})
    return onnx.shape_inference.infer_shapes(model)


def run(model: onnx.ModelProto, feed: Feed, *, optimize: bool) -> Any:
    return make_session(model, threads=1, optimize=optimize).run(None, feed)[0].astype(np.float64)


def sqnr(wanted: Any, found: Any) -> float:
    return float(10 * np.log10(np.sum(wanted**2) / max(np.sum((wanted - found) ** 2), 1e-30)))


def coded(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """The constants of a float8 type that are weights."""
    return (t for t in model.graph.initializer if t.data_type in TYPES and t.name.endswith("_quantized"))


CASES = [(name, "e4m3") for name in BODIES]
CASES += [(name, types) for name in ("ReLU6", "MatMul, Add", "Gemm") for types in ("e5m2", "both")]


@pytest.mark.parametrize(("name", "types"), CASES)
def test_onnx_runtime_executes_what_is_written(name: str, types: str) -> None:
    """With its optimizer, which knows integer codes only, and without it: the same numbers."""
    model, recipe = model_of(BODIES[name]), RECIPES[types]
    feeds = [feeds_for(model, seed=s) for s in range(2)]
    result = onnxq.quantize(model, feeds, recipe=recipe, threads=1)
    onnx.checker.check_model(result.model, full_check=True)
    assert result.model.opset_import[0].version >= 19
    layers = [n.op_type for n in model.graph.node if n.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")]
    assert [d.op_type for d in result.plan.decisions if d.role == "quantized"] == layers
    wanted, plain = (run(m, feeds[0], optimize=False) for m in (model, result.model))
    fused = run(result.model, feeds[0], optimize=True)
    assert sqnr(plain, fused) > SAME
    assert sqnr(wanted, plain) > (22 if recipe is E4M3 else 15)


def test_biases_stay_float_and_scales_follow_channels() -> None:
    model = model_of(BODIES["Gemm"])
    result = onnxq.quantize(model, [feeds_for(model)], recipe=E4M3, threads=1)
    initializers = {t.name: t for t in result.model.graph.initializer}
    assert not [t for t in initializers.values() if t.data_type == TensorProto.INT32]
    first = next(t for t in coded(result.model) if t.name.startswith("F"))
    scale = numpy_helper.to_array(initializers["F_scale"])
    np.testing.assert_array_equal(scale, np.abs(CONSTANTS["F"]).max(axis=0) / np.float32(448))
    zero = initializers["F_zero_point"]
    assert zero.data_type == first.data_type == TensorProto.FLOAT8E4M3FN
    assert tuple(zero.dims) == (5,)


def test_codes_in_the_file_are_those_of_the_algorithm() -> None:
    model = model_of(BODIES["Conv, Conv"])
    result = onnxq.quantize(model, [feeds_for(model)], recipe=MIXED, threads=1)
    (first, *_) = coded(result.model)
    scale = np.abs(CONSTANTS["W"]).max() / np.float32(448)
    wanted = np.asarray(CONSTANTS["W"] / scale).astype(numpy_helper.to_array(first).dtype)
    np.testing.assert_array_equal(numpy_helper.to_array(first).view(np.uint8), wanted.view(np.uint8))


def test_biases_are_corrected_for_float8_weights() -> None:
    """The mean of each output channel comes closer to that of the float model."""
    weights = np.round(np.random.default_rng(3).uniform(1.0, 1.05, (4, 4, 1, 1)), 4).astype(np.float32)
    model = build("g (float[N,4,8,8] x) => (float[N,4,8,8] y) { y = Conv(x, W, B) }", W=weights, B=normal(4))
    feeds = [{"x": np.abs(normal(2, 4, 8, 8, seed=s))} for s in range(4)]

    def drift(refine: list[str]) -> float:
        coarse = {**E5M2, "refine": refine}
        quantized = onnxq.quantize(model, feeds, recipe=coarse, threads=1).model
        pairs = [(run(model, f, optimize=True), run(quantized, f, optimize=True)) for f in feeds]
        return float(np.abs(np.mean([(a - b).mean(axis=(0, 2, 3)) for a, b in pairs], axis=0)).max())

    assert drift(["bias_correction"]) < drift([]) / 3


def test_all_transformer_layers_run_and_fused_nodes_stay() -> None:
    path = MODELS / "digits_transformer_opset11.onnx"
    model, feed = onnx.load(path), samples(path, count=32)
    result = onnxq.quantize(model, feed, recipe=E4M3, threads=1)
    kernels = {n.op_type for n in optimized(result.model).graph.node}
    assert {"BiasGelu", "LayerNormalization"} <= kernels
    assert sqnr(run(model, feed, optimize=True), run(result.model, feed, optimize=True)) > 22


MIXTURES = {
    "float8 in front of codes": "a",
    "both kinds read one tensor": "b",
    "float8 behind codes": "c",
}


@pytest.mark.parametrize("name", MIXTURES)
def test_some_layers_of_a_model_have_float8_and_others_integer_codes(name: str) -> None:
    text = f"{IMAGE} {{ [a] u = Conv(x, W, B) v = Relu(u) [b] p = Conv(v, W) [c] q = Conv(v, W, B) y = Add(p, q) }}"
    model = model_of(text)
    feeds = [feeds_for(model, seed=s) for s in range(4)]
    rule = {"match": {"node": MIXTURES[name]}, "weights": {"type": "float8e4m3fn"}, **E4M3}
    result = onnxq.quantize(model, feeds, recipe={"rules": [rule]}, threads=1)
    onnx.checker.check_model(result.model, full_check=True)
    plain, fused = (run(result.model, feeds[0], optimize=o) for o in (False, True))
    assert sqnr(plain, fused) > SAME
    assert sqnr(run(model, feeds[0], optimize=True), plain) > 22
    assert len(list(coded(result.model))) == 1


def test_results_do_not_depend_on_batches_and_threads() -> None:
    model = model_of(BODIES["residual"])
    feeds = [feeds_for(model, seed=s) for s in range(3)]
    joined = {"x": np.concatenate([f["x"] for f in feeds])}
    one = onnxq.quantize(model, feeds, recipe=E4M3, threads=1).model.graph
    two = onnxq.quantize(model, joined, recipe=E4M3, threads=2).model.graph
    assert one.SerializeToString(deterministic=True) == two.SerializeToString(deterministic=True)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "integer weights": ({**E4M3, "weights": {"type": "int8"}}, r"weights\.type is an integer type"),
    "weights alone": ({"weights": {"type": "float8e4m3fn"}}, r"set activations\.type: float8e4m3fn"),
    "asymmetric": ({"activations": {"type": "float8e5m2", "symmetric": False}}, r"leave out symmetric"),
    "bits": ({"activations": {"type": "float8e5m2", "bits": 7}}, r"leave out bits"),
    "asymmetric weights": ({**E4M3, "weights": {"symmetric": False}}, r"leave out symmetric"),
    "narrow": ({**E4M3, "weights": {"type": "float8e4m3fn", "narrow": True}}, r"leave out narrow"),
    "kl": ({"activations": {"type": "float8e4m3fn", "method": "kl"}}, r"activations\.method: kl .* use minmax"),
    "adaround": ({**E4M3, "weights": {"method": "adaround"}}, r"weights\.method: adaround .* use absmax or mse"),
    "weight_only": ({"scheme": "weight_only", "weights": {"type": "float8e4m3fn"}}, r"scheme static"),
    "dynamic": ({"scheme": "dynamic", "weights": {"type": "float8e5m2"}}, r"scheme static"),
    "qnn": ({**E4M3, "target": "qnn"}, r"does not execute float8e4m3fn activations"),
    "ascend": ({**E4M3, "target": "ascend"}, r"does not execute float8e4m3fn activations"),
    "tensorrt e5m2": ({**E5M2, "target": "tensorrt"}, r"does not execute float8e5m2 activations"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused(name: str) -> None:
    recipe, message = REFUSED[name]
    model = model_of(BODIES["Conv, Relu, Conv"])
    with pytest.raises(OnnxqError, match=message):
        onnxq.quantize(model, [feeds_for(model)], recipe=recipe, threads=1)


def test_a_model_that_cannot_be_brought_to_opset_19_is_refused() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "my" : 1]>
        g (float[N,4,8,8] x) => (float[N,4,8,8] y) { a = Conv(x, W) y = my.Thing(a) }"""
    model = build(text, check=False, W=CONSTANTS["W"])
    older = onnx.ModelProto()
    older.CopyFrom(model)
    older.graph.node.append(onnx.helper.make_node("Upsample", ["a", "s"], ["u"]))
    older.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "s"))
    older.opset_import[0].version = 9
    with pytest.raises(OnnxqError, match=r"opset 9 and quantizing it needs 19"):
        onnxq.plan_model(older, recipe=E4M3)


def test_reasons_say_what_stays_float() -> None:
    model = model_of(BODIES["residual"])
    reasons = {d.op_type: d.reason for d in onnxq.plan_model(model, recipe=E4M3).plan.left_float()}
    assert reasons["Add"] == "ONNX Runtime (CPU) computes Add with floats where layers have float8 codes"
    forced = {**E4M3, "rules": [{"match": {"op_type": "Add"}, "quantize": True}]}
    assert {d.op_type for d in onnxq.plan_model(model, recipe=forced).plan.left_float()} == {"Add", "Relu"}


@pytest.mark.parametrize("name", ["Conv, Relu, Conv", "ReLU6", "Concat", "MatMul, Add", "Gemm"])
def test_tensorrt_gets_plain_pairs_by_its_rules(name: str) -> None:
    model = model_of(BODIES[name])
    result = onnxq.quantize(model, [feeds_for(model)], recipe=E4M3, target="tensorrt", threads=1)
    assert problems(result.model) == []
    made = {o: n for n in result.model.graph.node for o in n.output}
    for layer in (n for n in result.model.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")):
        pair = made[layer.input[0]]
        assert pair.op_type == "DequantizeLinear"
        assert made[pair.input[0]].op_type == "QuantizeLinear"
    assert not [n for n in result.model.graph.node if n.op_type == "Max"]
    zeros = {t.data_type for t in result.model.graph.initializer if t.name.endswith("zero_point")}
    assert zeros == {TensorProto.FLOAT8E4M3FN}
