"""Which types of activations and weights ONNX Runtime executes together, over all operators that get codes."""

from __future__ import annotations

import re
from collections import Counter
from itertools import product
from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.runtime import make_session, optimized
from onnxq.targets import get_target
from tests.graphs import build, feeds_for, normal

ACTIVATIONS = ("uint8", "int8", "uint16", "int16")
WEIGHTS = ("int8", "uint8", "int4", "uint4", "int16")

CONSTANTS: dict[str, Any] = {
    "W": normal(4, 4, 1, 1), "B": normal(4), "D": normal(4, 1, 3, 3), "T": normal(4, 4, 2, 2), "G": normal(144, 5),
    "C": normal(5), "V": normal(5, 5), "E": normal(16, 4), "F": normal(4, 5), "K": normal(1, 4, 1, 1),
    "low": np.float32(-4), "top": np.float32(4), "flat": np.array([0, 4, 64]), "image": np.array([0, 4, 8, 8]),
    "axis": np.array([2]), "first": np.array([0]), "last": np.array([8]), "halves": np.array([2, 2]),
    "twice": np.array([1, 1, 2, 1]), "pads": np.array([0, 0, 0, 0, 0, 0, 1, 1]), "same": np.array([1, 4, 8, 8]),
    "scales": np.array([1, 1, 2, 2], np.float32), "order": np.array([3, 1, 0, 2]),
}  # fmt: skip
LAYERS = """g (float[N,4,8,8] x, int64[N,6] i) => (float[N,4,12,12] y, float[N,5] u, float[N,6,5] v) {
    a = Conv(x, W, B) r = Relu(a) d = Conv <group=4> (r, D, B) y = ConvTranspose <strides=[2,2]> (d, T, B)
    f = Flatten(d) h = Gemm(f, G, C) u = Gemm <transB=1> (h, V, C)
    e = Gather(E, i) m = MatMul(e, F) n = Add(m, C) t = Transpose <perm=[0,2,1]> (n) s = MatMul(n, t)
    w = MatMul(s, n) v = MatMul(w, V) }"""
BETWEEN = """g (float[N,4,8,8] x) => (float[N,4,p,q] y, float[N,4,1,1] z) {
    k0 = Conv(x, W) k = Clip(k0, low, top) a0 = Conv(k, W, B)
    a1 = Add(a0, k) a2 = Mul(a1, k) a3 = LeakyRelu(a2) c0, c1 = Split <axis=1> (a3, halves)
    a4 = Concat <axis=1> (c1, c0) a5 = Reshape(a4, flat) a6 = Reshape(a5, image) a7 = Transpose <perm=[0,1,3,2]> (a6)
    a8 = Unsqueeze(a7, axis) a9 = Squeeze(a8, axis) b0 = Slice(a9, first, last) b1 = Gather <axis=1> (b0, order)
    b2 = Expand(b1, same) b3 = DepthToSpace <blocksize=2> (b2) b4 = SpaceToDepth <blocksize=2> (b3)
    b6 = Resize <mode="nearest"> (b4, , scales) b7 = MaxPool <kernel_shape=[2,2]> (b6)
    b8 = Pad(b7, pads) b9 = Tile(b8, twice) d0 = AveragePool <kernel_shape=[2,2]> (b9) d1 = Conv(d0, W)
    d2 = Relu(d1) d3 = Identity(d2) d4 = Sigmoid(d3) d5 = Softmax <axis=1> (d4) y = Conv(d5, W, B)
    d6 = GlobalAveragePool(d3) z = Conv(d6, W, B) }"""
DECIBELS = {4: 8.0, 8: 24.0, 16: 55.0}
INTEGER = re.compile(r"QLinear(Conv|MatMul)|QGemm|MatMulIntegerToFloat|ConvInteger")


def model_of(text: str) -> onnx.ModelProto:
    constants = {k: v for k, v in CONSTANTS.items() if re.search(rf"\b{k}\b", text)}
    return onnx.shape_inference.infer_shapes(build(text, check=False, **constants))


def measured(text: str, activations: str, weights: str) -> tuple[onnxq.Result, float, Counter[str]]:
    """The result, the SQNR of its worst output, and the integer kernels it runs with."""
    model = model_of(text)
    feeds = [feeds_for(model, seed=s) for s in range(3)]
    rules = [{"match": {"op_type": "ConvTranspose"}, "quantize": True}]
    recipe = {"activations": {"type": activations}, "weights": {"type": weights}, "rules": rules}
    result = onnxq.quantize(model, feeds, recipe=recipe, threads=1)
    onnx.checker.check_model(result.model, full_check=True)
    wanted, plain, found = (
        [y.astype(np.float64) for y in make_session(m, threads=1, optimize=o).run(None, feeds[0])]
        for m, o in ((model, True), (result.model, False), (result.model, True))
    )
    for a, b in zip(plain, found, strict=True):  # a kernel may round the other way, by one code of a few in a row
        np.testing.assert_allclose(a, b, atol=4 * np.ptp(a) / 255)
    noise = [np.sum(a**2) / np.sum((a - b) ** 2) for a, b in zip(wanted, found, strict=True)]
    kernels = Counter(n.op_type for n in optimized(result.model).graph.node)
    return result, float(10 * np.log10(min(noise))), Counter({k: v for k, v in kernels.items() if INTEGER.search(k)})


def bits(name: str) -> int:
    return int(re.sub(r"\D", "", name))


@pytest.mark.parametrize(("activations", "weights"), list(product(ACTIVATIONS, WEIGHTS)))
def test_every_type_of_activations_with_every_type_of_weights(activations: str, weights: str) -> None:
    result, decibels, kernels = measured(LAYERS, activations, weights)
    layers = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Gather")
    floats = [d for d in result.plan.left_float() if d.op_type in layers]
    assert len(floats) == (2 if activations == "int8" else 0)  # the products of two activations
    assert all("saturate" in d.reason for d in floats)
    assert decibels > DECIBELS[min(bits(activations), bits(weights))]
    if bits(activations) == 16:  # no kernel computes with 16 bits: codes are decoded in front of each layer
        assert not [k for k in kernels if k != "MatMulIntegerToFloat"]
    elif bits(weights) == 8:
        # of int8 codes it makes uint8 ones, but not where several nodes read them
        assert kernels["QLinearConv"] >= (2 if activations == "uint8" else 1)
        assert sum(kernels.values()) >= (6 if activations == "uint8" else 5)


@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_all_operators_between_layers_take_codes_of_every_integer_type(activations: str) -> None:
    result, decibels, _ = measured(BETWEEN, activations, "int16" if bits(activations) == 16 else "int8")
    assert result.plan.left_float() == ()
    assert decibels > DECIBELS[bits(activations)] - 6  # a product of two tensors of codes, and a chain of many


@pytest.mark.parametrize("values", [1, 2, 7, 64])
def test_flat_softmaxes_do_not_overflow(values: int) -> None:
    """QLinearSoftmax gives 0 in place of the largest probability where a scale is below ``exp(-5) / values``."""
    model = build(
        f"g (float[N,{values},4] x) => (float[N,{values},5] y) "
        "{ t = MatMul(x, S) s = Softmax <axis=1> (t) y = MatMul(s, F) }",
        S=normal(4, 4, scale=0.01), F=normal(4, 5),
    )  # fmt: skip
    model = onnx.shape_inference.infer_shapes(model)
    feeds = [feeds_for(model, seed=s) for s in range(3)]
    forced = {"rules": [{"match": {"op_type": op}, "quantize": True} for op in ("Softmax", "MatMul")]}
    result = onnxq.quantize(model, feeds, recipe=forced, threads=1)
    assert "QLinearSoftmax" in {n.op_type for n in optimized(result.model).graph.node}
    wanted, found = (make_session(m, threads=1).run(None, feeds[0])[0] for m in (model, result.model))
    np.testing.assert_allclose(found, wanted, atol=0.03 * np.abs(wanted).max())


def test_products_of_two_int8_activations_stay_float_and_those_of_uint8_do_not() -> None:
    """Without VNNI the sum of two products of 8 bits saturates, and no scale makes room for activations."""
    model = model_of(LAYERS)
    roles = {}
    for name in ("uint8", "int8"):
        plan = onnxq.plan_model(model, recipe={"activations": {"type": name}}).plan
        roles[name] = [d.role for d in plan.decisions if d.op_type == "MatMul"]
    assert roles == {"uint8": ["quantized"] * 4, "int8": ["quantized", "float", "float", "quantized"]}


def test_these_are_all_types_that_the_target_has() -> None:
    target = get_target("ort")
    assert {t.label for t in target.activation_types if not t.floating} == set(ACTIVATIONS)
    assert {t.label for t in target.weight_types if not t.floating} == set(WEIGHTS)
    tested = {n.op_type for text in (LAYERS, BETWEEN) for n in model_of(text).graph.node}
    assert target.compute | target.passive <= tested
