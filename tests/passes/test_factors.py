"""CollectFactors and UseFactors: numbers by layer, and records that do not fit a model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from onnxq.errors import PassError
from onnxq.factors import LayerFactors
from onnxq.passes._base import PassManager
from onnxq.passes.collect_factors import CollectFactors
from onnxq.passes.use_factors import UseFactors
from onnxq.plan import ActivationPlan, Plan
from onnxq.recipe import Recipe
from onnxq.spec import PerTensor, QType, QuantParams, QuantSpec
from tests.graphs import apply, build, normal
from tests.passes.ascend import PREPARE, context, prepared, written

TEXT = """g (float[N,4,8,8] x, float[N,4,6,6] z) => (float[N,5] y, float[N,4,6,6] s, float[N,4,3,3] m)
{
    [conv] a = Conv(x, W, B)
    [pool] b = AveragePool<kernel_shape=[6,6]>(a)
    [flat] c = Flatten(b)
    [fc] y = Gemm(c, P)
    [product] s = MatMul(a, z)
    [max] m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a)
    [deep] t = ConvTranspose<group=2>(x, T)
}"""
MODEL = build(TEXT, W=normal(4, 4, 3, 3), B=normal(4), P=normal(4, 5), T=normal(4, 3, 2, 2))
FORCED = {"rules": [{"match": {"node": "max"}, "quantize": True}, {"match": {"node": "fc"}, "weights": {"bits": 6}}]}


def ones(count: int) -> Any:
    return np.full(count, 0.5, np.float32)


LAYER = LayerFactors(0.5, 0, ones(1))
INPUT = LayerFactors(0.5, 0, ones(0), tensor_quantize=True)


def used(record: dict[str, LayerFactors]) -> dict[str, LayerFactors]:
    ctx = context()
    graph = prepared(MODEL, ctx)
    apply(graph, UseFactors(record), ctx=ctx)
    return ctx.factors


def refused(record: dict[str, LayerFactors], message: str) -> None:
    ctx = context()
    graph = prepared(MODEL, ctx)
    step = PassManager((UseFactors(record),), initial=PassManager(PREPARE).provides)
    with pytest.raises(PassError, match=message):
        step.run(graph, ctx)
    assert not ctx.factors


# ---- from a plan ----------------------------------------------------------------------------------


def test_layers_are_collected_in_order_with_their_numbers() -> None:
    found = written(MODEL, recipe=FORCED)
    assert list(found.factors) == ["conv", "pool", "fc", "product:0", "product:1", "max:0", "deep"]
    params, factors = found.ctx.params, found.factors
    for layer, tensor in [("conv", "x"), ("pool", "a"), ("fc", "c"), ("product:1", "z"), ("max:0", "a")]:
        assert factors[layer].scale_d == float(params[tensor].scale)
        assert factors[layer].offset_d == int(params[tensor].zero_point)
    np.testing.assert_array_equal(factors["conv"].scale_w, params["W"].scale)
    assert factors["conv"].scale_w.shape == (4,)
    assert factors["fc"].scale_w.shape == (1,)
    assert factors["pool"].scale_w.tolist() == [1.0]
    assert (factors["fc"].wts_bits, factors["conv"].wts_bits) == (6, 8)
    assert [name for name, f in factors.items() if f.tensor_quantize] == ["product:0", "product:1", "max:0"]
    assert factors["product:0"].offset_d == factors["product:1"].offset_d == 0


def test_what_channels_were_divided_by_is_handed_on() -> None:
    ctx = context()
    graph = prepared(MODEL, ctx)
    params = QuantParams(QuantSpec(QType.INT8, symmetric=False), np.float32(0.5), np.int32(3))
    activation = ActivationPlan("x", params.spec, Recipe().activations.method, "x", False, (("pool", 0),))  # type: ignore[arg-type]
    ctx.plan, ctx.params = Plan(activations={"x": activation}), {"x": params}
    ctx.balance = {"pool": np.arange(1, 5, dtype=np.float32)}
    apply(graph, CollectFactors(), ctx=ctx)
    balance = ctx.factors["pool"].balance
    assert balance is not None
    assert balance.tolist() == [1, 2, 3, 4]


def test_widths_that_records_cannot_hold() -> None:
    ctx = context()
    graph = prepared(MODEL, ctx)
    params = QuantParams(QuantSpec(QType.INT8, PerTensor(), bits=5), np.float32(0.5), np.int32(0))
    activation = ActivationPlan("x", params.spec, Recipe().activations.method, "x", False, (("conv", 0),))  # type: ignore[arg-type]
    ctx.plan, ctx.params = Plan(activations={"x": activation}), {"x": params}
    with pytest.raises(PassError, match=r"layer 'conv.*: act_bits is 5"):
        PassManager((CollectFactors(),), initial=CollectFactors.requires).run(graph, ctx)


# ---- from a record --------------------------------------------------------------------------------


def test_a_record_of_its_own_fits() -> None:
    record = written(MODEL, recipe=FORCED).factors
    assert used(record) == record


@pytest.mark.parametrize(
    "factors",
    [LAYER, replace(LAYER, scale_w=ones(5)), replace(LAYER, wts_bits=7), replace(LAYER, balance=ones(4))],
)
def test_what_a_gemm_may_have(factors: LayerFactors) -> None:
    assert used({"fc": factors})


def test_a_grouped_conv_transpose_has_a_scale_for_each_output() -> None:
    assert used({"deep": replace(LAYER, scale_w=ones(6))})
    refused({"deep": replace(LAYER, scale_w=ones(3))}, "has 3 scale_w; must be 1 or 6")


@pytest.mark.parametrize(
    ("key", "factors", "message"),
    [
        ("conf", LAYER, "layer 'conf': the model has no such node; did you mean 'conv'"),
        ("maxx:0", INPUT, "layer 'maxx:0': .* did you mean 'max'"),
        ("max:3", INPUT, "layer 'max:3': MaxPool 'max' has no input 3"),
        ("flat", LAYER, "layer 'flat': Huawei Ascend does not compute Flatten"),
        ("conv", replace(LAYER, scale_w=ones(3)), "has 3 scale_w; must be 1 or 4, one for each output"),
        ("fc", replace(LAYER, scale_w=ones(4)), "has 4 scale_w; must be 1 or 5"),
        ("pool", replace(LAYER, scale_w=ones(2)), "single scale_w, 1.0"),
        ("pool", LAYER, "single scale_w, 1.0"),
        ("conv", INPUT, "must name an input: conv:0"),
        ("conv:0", INPUT, "a Conv is no layer for is_tensor_quantize"),
        ("conv:0", LAYER, "its key names an input; use 'conv'"),
        ("max", LAYER, "a MaxPool has no weight; use the key max:0"),
        ("product", LAYER, "'z' is not a constant"),
        ("product:0", INPUT, "an entry for each of its two inputs"),
        ("conv", replace(LAYER, balance=ones(3)), "has 3 tensor_balance_factor; must be 4"),
        ("conv", replace(LAYER, act_bits=4), "activations of 4 bits go with weights of 4 bits only"),
        ("fc", replace(LAYER, act_bits=16), "16 bit activations for a Gemm with a bias only"),
        ("pool", replace(LAYER, scale_w=np.ones(1), act_bits=16), "no 16 bit activations for this AveragePool"),
    ],
)
def test_entries_that_do_not_fit(key: str, factors: LayerFactors, message: str) -> None:
    refused({key: factors}, message)


def test_a_product_of_activations_is_symmetric() -> None:
    refused({"product:0": INPUT, "product:1": replace(INPUT, offset_d=2)}, "'product:1': offset_d is 2")


def test_all_problems_are_told_at_once() -> None:
    refused({"conf": LAYER, "flat": LAYER, "fc": LAYER}, r"(?s)'conf'.*'flat'")


def test_a_bias_that_overflows() -> None:
    refused({"conv": LayerFactors(1e-6, 0, np.full(1, 1e-6, np.float32))}, "'conv' .*int32; skip the layer")
