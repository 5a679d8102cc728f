"""NoteMoments and RestoreMeans: what batch normalization says of activations, and means that come back without data."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.algos.moments import Moments
from onnxq.algos.weight.codes import decode, encode
from onnxq.passes._moments import follow, read_moments
from tests.graphs import build, graph_of, normal, positive, run

C = 24
NORM = "BatchNormalization"


def net(body: str, **constants: Any) -> onnx.ModelProto:
    known = {
        "W1": normal(C, 3, 3, 3), "W2": normal(C, C, 1, 1), "D": normal(C, 1, 3, 3),
        "g": positive(C), "b": normal(C), "m": normal(C), "v": positive(C), "six": np.float32(6), "zero": np.float32(0),
    } | constants  # fmt: skip
    text = f"g (float[N,3,16,16] x) => (float[N,{C},p,q] y) {{ {body} }}"
    return build(text, check=False, **{k: v for k, v in known.items() if f"{k}," in body or f"{k})" in body})


BLOCK = f"""[first] a = Conv(x, W1) n = {NORM}(a, g, b, m, v) r = Clip(n, zero, six) [second] y = Conv(r, W2)"""


def calibrated(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the statistics that its batch normalization really sees, as training leaves them."""
    shapes = onnx.shape_inference.infer_shapes(model)
    shapes.graph.output.append(next(v for v in shapes.graph.value_info if v.name == "a"))
    seen = run(shapes, {"x": normal(64, 3, 16, 16, seed=9)})["a"]
    for tensor in model.graph.initializer:
        if tensor.name in ("m", "v"):
            values = seen.mean((0, 2, 3)) if tensor.name == "m" else seen.var((0, 2, 3))
            tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), tensor.name))
    return model


def recipe(bits: int = 3, **scheme: Any) -> dict[str, Any]:
    return {"scheme": {"kind": "weight_only", **scheme}, "weights": {"bits": bits}}


def shift(model: onnx.ModelProto, **scheme: Any) -> float:
    """How far the means of the output's channels are off, relative to their spread, with the second layer rounded."""
    content = recipe(**scheme) | {"rules": [{"match": {"node": "first"}, "weights": {"bits": 16}}]}
    result = onnxq.quantize(model, recipe=content)
    feed = {"x": normal(64, 3, 16, 16, seed=3)}
    before, after = run(model, feed)["y"], run(result.model, feed)["y"]
    return float((np.abs((after - before).mean((0, 2, 3))) / before.std((0, 2, 3))).mean())


def test_the_mean_of_the_output_comes_back() -> None:
    model = calibrated(net(BLOCK))
    with_equal_means, plain = shift(model), shift(model, correction=False)
    assert with_equal_means < 0.02
    assert plain > 0.06


def test_only_biases_behind_known_activations_change() -> None:
    result = onnxq.quantize(net(BLOCK), recipe=recipe())
    assert result.prepared is not None
    biases = {n.name: result.graph.value(n.inputs[2]) for n in result.graph.nodes("Conv") if len(n.inputs) > 2}
    folded = result.prepared.value(result.prepared.node("first").inputs[2])
    assert np.array_equal(biases["first"], folded)
    assert len(result.prepared.node("second").inputs) == 2
    assert np.abs(biases["second"]).min() > 0
    assert next(r for r in result.reports if r.name == "RestoreMeans").changed == 1


@pytest.mark.parametrize(
    ("body", "scheme", "extra"),
    [
        ("[first] a = Conv(x, W1) r = Relu(a) [second] y = Conv(r, W2)", {}, {}),
        (BLOCK, {"correction": False}, {}),
        (BLOCK, {}, {"equalize": {"enabled": True}}),
        (BLOCK.replace("r = Clip(n, zero, six)", "r = MaxPool <kernel_shape=[2,2]> (n)"), {}, {}),
    ],
)
def test_where_nothing_is_known_nothing_changes(body: str, scheme: dict[str, Any], extra: dict[str, Any]) -> None:
    result = onnxq.quantize(net(body), recipe=recipe(**scheme) | extra)
    assert len(result.graph.node("second").inputs) == 2
    assert not [r for r in result.reports if r.name == "RestoreMeans" and r.changed]


def test_groups_take_their_own_inputs() -> None:
    """The shift of a depthwise convolution is that of its own channel."""
    result = onnxq.quantize(net(BLOCK.replace("Conv(r, W2)", f"Conv <group={C}> (r, D)")), recipe=recipe(2))
    moments = follow_all(net(BLOCK))["r"]
    codes = result.weight_codes["D"]
    gap = (decode(encode(normal(C, 1, 3, 3), codes), codes) - normal(C, 1, 3, 3)).sum((1, 2, 3))
    found = result.graph.value(result.graph.node("second").inputs[2])
    np.testing.assert_allclose(found, -gap * moments.mean, rtol=1e-4, atol=1e-6)


# ---- what follows from a batch normalization ----------------------------------------------------


def follow_all(model: onnx.ModelProto) -> dict[str, Moments]:
    graph = onnxq.GraphModel.from_proto(model)
    return follow(graph, read_moments(graph))


def sampled(moments: Moments, function: Any) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(1).normal(size=(200_000, 1)) * moments.deviation + moments.mean
    y = function(x)
    return y.mean(axis=0), y.std(axis=0)


FUNCTIONS = {
    "Relu(n)": lambda x: np.maximum(x, 0),
    "Clip(n, zero, six)": lambda x: np.clip(x, 0, 6),
    "Clip(n, zero)": lambda x: np.maximum(x, 0),
    "Sigmoid(n)": lambda x: 1 / (1 + np.exp(-x)),
    "Tanh(n)": np.tanh,
    "HardSwish(n)": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "GlobalAveragePool(n)": lambda x: x,
    "Add(n, n)": None,
}


@pytest.mark.parametrize("text", FUNCTIONS)
def test_functions_of_a_normal_variable(text: str) -> None:
    found = follow_all(net(f"[first] a = Conv(x, W1) n = {NORM}(a, g, b, m, v) y = {text}"))
    assert np.array_equal(found["n"].mean, normal(C))
    assert np.array_equal(found["n"].deviation, positive(C))
    if FUNCTIONS[text] is None:
        np.testing.assert_allclose(found["y"].mean, 2 * normal(C), rtol=1e-6)
        return
    mean, deviation = sampled(found["n"], FUNCTIONS[text])
    np.testing.assert_allclose(found["y"].mean, mean, atol=0.02)
    np.testing.assert_allclose(found["y"].deviation, deviation, atol=0.02)


def test_joins_and_unknown_operators() -> None:
    norm = f"a = Conv(x, W1) n = {NORM}(a, g, b, m, v) r = Relu(n)"
    body = f"{norm} c = Concat <axis=1> (n, r) e = Exp(n) f = Add(n, e) y = Neg(f)"
    found = follow_all(net(body))
    assert found["c"].mean.shape == (2 * C,)
    assert set(found) == {"n", "r", "c"}


def test_a_graph_without_batch_normalization_says_nothing() -> None:
    graph = graph_of("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    assert follow(graph, read_moments(graph)) == {}
