"""Two of every four weights along the input channels are 0, in every kind of layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnxq
from onnxq.passes._base import Fact, PassManager
from onnxq.passes.assign_names import AssignNames
from onnxq.passes.infer_shapes import InferShapes
from onnxq.passes.insert_masks import InsertMasks
from onnxq.passes.lift_constants import LiftConstants
from onnxq.passes.mask_weights import MaskWeights
from onnxq.recipe import Recipe
from tests.graphs import apply, assert_same_function, build, context, graph_of, normal, reasons, run

TWO_OF_FOUR: dict[str, Any] = {"prune": "2:4"}
LAYERS = {
    "Conv": ("a = Conv(x, W)", normal(8, 12, 3, 3), 1),
    "grouped Conv": ("a = Conv <group=3> (x, W)", normal(6, 4, 1, 1), 1),
    "ConvTranspose": ("a = ConvTranspose(x, W)", normal(12, 4, 2, 2), 0),
    "grouped ConvTranspose": ("a = ConvTranspose <group=3> (x, W)", normal(12, 4, 2, 2), 0),
    "Gemm": ("f = GlobalAveragePool(x) v = Flatten(f) a = Gemm(v, W)", normal(12, 5), 0),
    "transposed Gemm": ("f = GlobalAveragePool(x) v = Flatten(f) a = Gemm <transB=1> (v, W)", normal(5, 12), 1),
    "MatMul": ("t = Transpose <perm=[0,2,3,1]> (x) a = MatMul(t, W)", normal(12, 5), 0),
}


def prepared(text: str, **constants: Any) -> Any:
    graph = graph_of(
        f"g (float[2,12,4,4] x) => (float y) {{ {text} s = ReduceSum <keepdims=0> (a) y = Relu(s) }}", **constants
    )
    ctx = context(recipe=Recipe.from_dict(TWO_OF_FOUR))
    apply(graph, AssignNames(), LiftConstants(), InferShapes(), ctx=ctx)
    return graph, ctx


@pytest.mark.parametrize("name", LAYERS)
def test_two_of_four_are_kept_the_largest(name: str) -> None:
    text, weight, axis = LAYERS[name]
    graph, ctx = prepared(text, W=weight)
    assert apply(graph, MaskWeights(), ctx=ctx).changed == 1
    rows = np.moveaxis(graph.value(graph.tensor("W")), axis, -1)
    old = np.moveaxis(weight, axis, -1)
    groups, before = (r.reshape(-1, r.shape[-1] // 4, 4).reshape(-1, 4) for r in (rows, old))
    assert ((groups != 0).sum(axis=1) == 2).all()
    for found, was in zip(groups, before, strict=True):
        order = np.argsort(-np.abs(was))
        expected = was.copy()
        expected[order[2:]] = 0
        np.testing.assert_array_equal(found, expected)
    assert [(m.weight, m.axis, m.update_freq, m.dense) for m in ctx.masked] == [("W", axis, 0, None)]


def test_channels_that_are_no_multiple_of_four() -> None:
    graph, ctx = prepared("s0 = Slice(x, zero, six, one) a = Conv(s0, W)", W=normal(3, 6, 1, 1),
                          zero=np.int64([0]), six=np.int64([6]), one=np.int64([1]))  # fmt: skip
    apply(graph, MaskWeights(), ctx=ctx)
    found = graph.value(graph.tensor("W"))[:, :, 0, 0] != 0
    assert (found[:, :4].sum(axis=1) == 2).all()
    assert found[:, 4:].all()


def test_what_cannot_be_sparse_is_told() -> None:
    graph, ctx = prepared(
        "a0 = Conv <group=12> (x, W) a = ConvTranspose <group=2> (a0, V)", W=normal(12, 1, 3, 3), V=normal(12, 2, 1, 1)
    )
    report = apply(graph, MaskWeights(), ctx=ctx)
    assert report.changed == 0
    assert list(reasons(report).values()) == [
        "it has 1 input channels; of 4 weights, 2 are kept",
        "6 input channels of each group are no multiple of 4",
    ]


@pytest.mark.parametrize("update_freq", [0, 5])
def test_masks_give_the_same_function_and_keep_what_may_come_back(update_freq: int) -> None:
    weight = normal(8, 12, 3, 3)
    graph, ctx = prepared("a = Conv(x, W)", W=weight)
    ctx.recipe = Recipe.from_dict({"prune": {"kind": "2:4", "update_freq": update_freq}})
    apply(graph, MaskWeights(), ctx=ctx)
    before = graph.to_proto()
    PassManager([InsertMasks()], initial=frozenset({Fact.MASKED, Fact.LEARNING})).run_each(graph, ctx)
    assert_same_function(before, graph, rtol=0)
    (masked,) = ctx.masked
    assert (masked.weight, masked.mask, masked.update_freq) == ("W", "W.mask", update_freq)
    mask = graph.value(graph.tensor("W.mask"))
    assert mask.mean() == 0.5
    expected = weight if update_freq else weight * mask
    np.testing.assert_array_equal(graph.value(graph.tensor("W")), expected)


def test_quantization_keeps_the_zeros() -> None:
    model = build(
        "g (float[N,12,4,4] x) => (float[N,8,2,2] y) { y = Conv(x, W, b) }", W=normal(8, 12, 3, 3), b=normal(8)
    )
    data = {"x": normal(16, 12, 4, 4, seed=4)}
    result = onnxq.quantize(model, data, recipe=TWO_OF_FOUR)
    codes = next(v for t in result.graph.constants() if (v := result.graph.value(t)).dtype == np.int8 and v.ndim == 4)
    assert ((codes.reshape(8, 3, 4, 9) != 0).sum(axis=2) <= 2).all()
    assert (codes != 0).mean() > 0.45
    dense = onnxq.quantize(model, data)
    gap = np.abs(run(result.model, data)["y"] - run(dense.model, data)["y"]).max()
    assert gap > 0.1
