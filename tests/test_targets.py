"""Targets as data, and what quantizing for them makes of a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
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
