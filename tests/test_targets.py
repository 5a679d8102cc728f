"""Targets as data, and what quantizing for them makes of a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import onnxq
from onnxq.targets import TARGETS, get_target
from tests.graphs import build, normal, run

NET = """g (float[N,3,8,8] x) => (float[N,4] y, float[N,8,4] z) {
    [c1] a = Conv <pads=[1,1,1,1]> (x, W1, B1)
    r = Relu (a)
    [c2] b = Conv <pads=[1,1,1,1]> (r, W2)
    s = Add (b, r)
    m = MaxPool <kernel_shape=[2,2], strides=[2,2]> (s)
    f = Flatten (m)
    [fc] y = Gemm (f, W3, B3)
    t = Reshape (m, shape)
    [mm] u = MatMul (t, W4)
    v = Transpose <perm=[0,2,1]> (u)
    [product] w = MatMul (u, v)
    z = MatMul (w, W5) }"""


def data(count: int = 12) -> dict[str, Any]:
    return {"x": normal(count, 3, 8, 8)}


def net() -> onnx.ModelProto:
    return build(
        NET, W1=normal(4, 3, 3, 3), B1=normal(4), W2=normal(4, 4, 3, 3), W3=normal(64, 4), B3=normal(4),
        W4=normal(8, 6), W5=normal(8, 4), shape=np.array([0, 8, 8], np.int64),
    )  # fmt: skip


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {o: n for n in model.graph.node for o in n.output}


def weights(model: onnx.ModelProto) -> dict[str, Any]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_does_not_contradict_itself(name: str) -> None:
    target = get_target(name)
    assert target.name == name
    assert target.activation in target.activation_types
    assert target.weight in target.weight_types
    assert not target.compute & target.passive
    assert not (target.compute | target.passive) & set(target.slower)
    assert target.float_result <= target.compute


def test_kirin_has_codes_at_the_inputs_of_layers_only() -> None:
    model = onnxq.quantize(net(), data(), target="kirin", recipe={"refine": []}, threads=1).model
    made, numbers = producers(model), weights(model)
    layers = {n.name: n for n in model.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")}
    constant = {name for name in layers if name != "product"}
    for name in constant:
        inputs = [made.get(i) for i in layers[name].input]
        assert [n.op_type if n is not None else "" for n in inputs[:2]] == ["DequantizeLinear"] * 2
        assert numbers[inputs[0].input[2]].dtype == np.uint8
        codes = numbers[inputs[1].input[0]]
        assert codes.dtype == np.int8
        assert codes.min() >= -127
        assert not numbers[inputs[1].input[2]].any()
        assert (numbers[inputs[1].input[1]].ndim == 1) == (layers[name].op_type == "Conv")
        assert len(inputs) < 3 or inputs[2] is None  # the bias stays float
    assert [made[i].op_type for i in layers["product"].input] == ["MatMul", "Transpose"]
    for node in model.graph.node:
        if node.op_type in ("Relu", "Add", "MaxPool", "Flatten", "Reshape", "Transpose"):
            assert all(i not in made or made[i].op_type != "DequantizeLinear" for i in node.input)
    assert sum(n.op_type == "QuantizeLinear" for n in model.graph.node) == 5


def test_kirin_computes_what_the_float_model_does() -> None:
    result = onnxq.quantize(net(), data(), target="kirin", threads=1)
    x = data(4)
    expected, found = run(net(), x), run(result.model, x)
    for name, values in expected.items():
        assert np.square(found[name] - values).mean() < 1e-3 * np.square(values).mean()


def test_readers_that_want_one_tensor_differently_get_it_so() -> None:
    model = build(
        "g (float[N,8] x) => (float[N,4] y, float[N,4] z) { [a] y = Gemm (x, W1) [b] z = Gemm (x, W2) }",
        W1=normal(8, 4), W2=normal(8, 4),
    )  # fmt: skip
    rules = [{"match": {"node": "a"}, "activations": {"method": {"name": "percentile", "percentile": 70.0}}}]
    recipe = {"activations": {"method": "minmax"}, "rules": rules}
    x = {"x": normal(64, 8)}
    model = onnxq.quantize(model, x, target="kirin", recipe=recipe, threads=1).model
    made, numbers = producers(model), weights(model)
    scales = [float(numbers[made[n.input[0]].input[1]]) for n in model.graph.node if n.op_type == "Gemm"]
    assert scales[0] < 0.6 * scales[1]
    assert scales[1] == pytest.approx((x["x"].max() - x["x"].min()) / 255, rel=1e-5)


ASYMMETRIC = {
    "activations": {"method": "minmax"},
    "weights": {"granularity": "per_tensor", "symmetric": False},
    "refine": [],
}
LAYERS = {
    "Conv": ("g (float[N,32,12,12] x) => (float[N,16,10,10] y) { [l] y = Conv (x, W) }", (16, 32, 3, 3)),
    "Gemm": ("g (float[N,64] x) => (float[N,32] y) { [l] y = Gemm (x, W) }", (64, 32)),
    "MatMul": ("g (float[N,10,64] x) => (float[N,10,32] y) { [l] y = MatMul (x, W) }", (64, 32)),
}


def as_written(model: onnx.ModelProto, feed: dict[str, Any]) -> dict[str, Any]:
    """Without integer kernels: the codes are decoded and floats are multiplied."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    runner = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in model.graph.output], runner.run(None, feed), strict=True))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("low", [-1.0, 0.0, 2.0, -3.0])
def test_weights_with_a_zero_point_are_multiplied_exactly(layer: str, low: float) -> None:
    """All codes at one end of their range, and inputs with the largest codes: sums of pairs leave 16 bits."""
    text, shape = LAYERS[layer]
    rng = np.random.default_rng(0)
    model = build(text, W=rng.uniform(low, low + 2, shape).astype(np.float32))
    sizes = [d.dim_value or 4 for d in model.graph.input[0].type.tensor_type.shape.dim]
    feed = {"x": rng.uniform(0.5, 1, sizes).astype(np.float32)}
    coded = onnxq.quantize(model, feed, recipe=ASYMMETRIC, threads=1).model
    zero_point = next(v for name, v in weights(coded).items() if name == "W_zero_point")
    assert zero_point.dtype == np.uint8
    assert zero_point == {-1.0: 128, 0.0: 0, 2.0: 0, -3.0: 255}[low] or low == -1.0
    expected, found = as_written(coded, feed)["y"], run(coded, feed)["y"]
    float_result = run(model, feed)["y"]
    step = np.ptp([0.0, float_result.min(), float_result.max()]) / 250
    assert np.abs(found - expected).max() <= step
    assert np.square(found - float_result).mean() < 1e-4 * np.square(float_result).mean()


def test_weights_with_a_zero_point_keep_a_type_that_was_asked_for() -> None:
    model = build(LAYERS["Gemm"][0], W=normal(64, 32))
    recipe = {**ASYMMETRIC, "weights": {**ASYMMETRIC["weights"], "type": "int8"}}
    coded = onnxq.quantize(model, {"x": normal(4, 64)}, recipe=recipe, threads=1).model
    assert weights(coded)["W_zero_point"].dtype == np.int8
