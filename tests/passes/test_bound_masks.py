"""BoundMasks: which constants it bounds, and that attention with a mask keeps its worth in codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxq
from onnxq.passes.bound_masks import ENOUGH, BoundMasks
from tests.bundled import FILES, labels_of, metrics, samples
from tests.graphs import apply, assert_same_function, build, graph_of, ops, run

LOWEST = float(np.finfo(np.float32).min)
LATER = np.triu(np.ones((4, 4), bool), 1)
CHOSEN = "b = Where(later, low, zero)"


def scores(text: str, outputs: str = "float[N,4,4] y", **constants: Any) -> onnx.ModelProto:
    body = f"g (float[N,4,4] x) => ({outputs}) {{ {text} }}"
    return build(body, opset=17, later=LATER, zero=np.float32(0), **constants)


def bounded(model: onnx.ModelProto) -> int:
    graph = onnxq.GraphModel.from_proto(onnx.shape_inference.infer_shapes(model))
    changed = apply(graph, BoundMasks()).changed
    assert_same_function(model, graph, rtol=1e-6)
    return changed


@pytest.mark.parametrize("low", [LOWEST, -np.inf, -1e4], ids=["lowest", "infinity", "ten thousand"])
@pytest.mark.parametrize(
    "text",
    [
        f"{CHOSEN} s = Add(x, b) y = Softmax(s)",
        "s = Where(later, low, x) y = Softmax(s)",
        f"{CHOSEN} u = Unsqueeze(b, axes) e = Squeeze(u, axes) d = Mul(x, half) s = Add(e, d) y = Softmax(s)",
    ],
    ids=["added", "chosen", "carried"],
)
def test_what_masks_is_bounded(text: str, low: float) -> None:
    model = scores(text, low=np.float32(low), axes=np.int64([0]), half=np.float32(0.5))
    assert bounded(model) == 1


def test_a_mask_that_is_a_constant_is_bounded_where_it_masks() -> None:
    mask = np.where(LATER, np.float32(LOWEST), np.float32(-3))
    graph = graph_of("g (float[2,4,4] x) => (float[2,4,4] y) { s = Add(x, mask) y = Softmax(s) }", mask=mask)
    assert apply(graph, BoundMasks()).changed == 1
    found = graph.value(graph.nodes("Add")[0].inputs[1])
    np.testing.assert_array_equal(found, np.where(LATER, np.float32(ENOUGH), np.float32(-3)))


def test_a_constant_that_others_read_stays_for_them() -> None:
    text = f"{CHOSEN} s = Add(x, b) t = Softmax(s) l = Max(x, low) y = Add(t, l)"
    assert bounded(scores(text, low=np.float32(LOWEST))) == 1


@pytest.mark.parametrize(
    ("text", "outputs"),
    [
        (f"{CHOSEN} s = Add(x, b) y = Softmax(s)", "float[N,4,4] y, float[N,4,4] s"),
        (f"{CHOSEN} s = Add(x, b) p = Softmax(s) r = Relu(s) y = Add(p, r)", "float[N,4,4] y"),
        (f"{CHOSEN} s = Add(x, b) y = Relu(s)", "float[N,4,4] y"),
        (f"{CHOSEN} s = Sub(x, b) y = Softmax(s)", "float[N,4,4] y"),
    ],
    ids=["an output", "another reader", "no Softmax", "subtracted"],
)
def test_what_others_see_is_left(text: str, outputs: str) -> None:
    graph = onnxq.GraphModel.from_proto(scores(text, outputs, low=np.float32(-1e5)))
    assert apply(graph, BoundMasks()).changed == 0


def test_scores_that_are_no_masks_are_left() -> None:
    assert bounded(scores(f"{CHOSEN} s = Add(x, b) y = Softmax(s)", low=np.float32(-99))) == 0


@pytest.mark.parametrize("low", [LOWEST, -np.inf], ids=["lowest", "infinity"])
def test_a_decoder_keeps_its_worth_in_codes(low: float) -> None:
    path = next(p for p in FILES if p.stem == "sketch_decoder")
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == "positions/lowest":
            tensor.CopyFrom(numpy_helper.from_array(np.float32(low).reshape(()), tensor.name))
    quantized = onnxq.quantize(model, samples(path, count=32), target="qnn", threads=1).model
    assert "Softmax" in ops(quantized)
    feed, labels = samples(path, "test", 100), labels_of(path)[:100]
    before, after = (metrics().likelihood(run(m, feed), labels) for m in (model, quantized))
    assert after > before - 0.05


@pytest.mark.parametrize(("target", "low"), [("ort", LOWEST), ("qnn", ENOUGH)])
def test_where_scores_stay_float_masks_stay_as_they_are(target: str, low: float) -> None:
    model = scores(f"{CHOSEN} s = Add(x, b) y = Softmax(s)", low=np.float32(LOWEST))
    graph = onnxq.plan_model(model, recipe={"target": target}).graph
    assert [float(graph.value(node.inputs[1])) for node in graph.nodes("Where")] == [low]
