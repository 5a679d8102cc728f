"""ApplyBalance: a record's factors on a float model, on a balanced one, and on one they do not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxq.errors import GraphError, RecordError
from onnxq.factors import LayerFactors
from onnxq.graph import GraphModel
from onnxq.passes._base import Fact, PassManager
from onnxq.passes.apply_balance import ApplyBalance
from onnxq.passes.balance_dmq import BalanceDmq
from onnxq.passes.calibrate_channels import CalibrateChannels
from tests.graphs import apply, assert_same_function, build, context, normal, ops
from tests.passes.ptq import planned

BALANCE = np.array([4, 0.25, 1, 8, 0.5, 2], np.float32)
LAYERS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {
    "Conv": ("float[N,6,5,5] x", (4, 6, 3, 3), (1, 6, 1, 1)),
    "Conv<group=2>": ("float[N,6,5,5] x", (4, 3, 3, 3), (1, 6, 1, 1)),
    "Conv<group=6>": ("float[N,6,5] x", (6, 1, 3), (1, 6, 1)),
    "ConvTranspose<group=3>": ("float[N,6,5,5] x", (6, 2, 2, 2), (1, 6, 1, 1)),
    "Gemm": ("float[N,6] x", (6, 4), (1, 6)),
    "Gemm<transB=1>": ("float[N,6] x", (4, 6), (1, 6)),
    "MatMul": ("float[N,3,6] x", (6, 4), (1, 1, 6)),
}


def factors(balance: Any = BALANCE) -> LayerFactors:
    return LayerFactors(0.1, 0, np.ones(1, np.float32), balance=None if balance is None else np.asarray(balance))


def model_of(layer: str) -> onnx.ModelProto:
    source, shape, _ = LAYERS[layer]
    return build(f"g ({source}) => (float[A,B,C,D] y) {{ [layer] y = {layer}(x, W) }}", W=normal(*shape))


def prepared(model: onnx.ModelProto, **records: LayerFactors) -> tuple[GraphModel, Any]:
    graph, _ = planned(model)
    return graph, context(factors=records)


@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_gets_a_mul_and_another_weight(layer: str) -> None:
    source, shape, broadcast = LAYERS[layer]
    dims = ",".join("ABCD"[: len(broadcast)])
    model = build(f"g ({source}) => (float[{dims}] y) {{ [layer] y = {layer}(x, W) }}", W=normal(*shape))
    graph, ctx = prepared(model, layer=factors(), other=factors(None))
    report = apply(graph, ApplyBalance(), ctx=ctx)
    assert report.changed == 1
    assert list(ctx.balance) == ["layer"]
    mul = graph.node("layer.mul")
    assert graph.node("layer").inputs[0] is mul.outputs[0]
    constant = mul.inputs[1]
    assert constant.name == "layer.tensor_balance_factor"
    assert graph.shape(constant) == broadcast
    np.testing.assert_array_equal(graph.value(constant).reshape(-1), 1 / BALANCE)
    assert_same_function(model, graph, rtol=1e-5)
    assert not np.array_equal(graph.value(graph.node("layer").inputs[1]), normal(*shape))
    assert apply(graph, ApplyBalance(), ctx=ctx).changed == 0
    assert ops(graph).count("Mul") == 1


def test_what_balance_dmq_did_is_not_done_again() -> None:
    """Both ways: a Mul in front of `one`, the division folded for `two`."""
    model = build(
        """g (float[N,6,5,5] x) => (float[N,4,5,5] y) {
            [one] a = Conv(x, V) r = Relu(a) [two] y = Conv(r, W) }""",
        V=normal(6, 6, 1, 1) * BALANCE.reshape(6, 1, 1, 1), W=normal(4, 6, 1, 1),
    )  # fmt: skip
    graph, ctx = planned(model, data={"x": normal(8, 6, 5, 5)}, recipe={"balance": {}})
    apply(graph, CalibrateChannels(), BalanceDmq(), ctx=ctx)
    found = {name: factors(balance) for name, balance in ctx.balance.items()}
    assert list(found) == ["one", "two"]
    for again in (graph, GraphModel.from_proto(graph.to_proto())):  # as it is, and saved and read
        before = again.to_proto().SerializeToString()
        other = context(factors=found)
        assert apply(again, ApplyBalance(), ctx=other).changed == 0
        assert again.to_proto().SerializeToString() == before
        assert list(other.balance) == ["one", "two"]
    float_model, other = prepared(model, **found)
    assert apply(float_model, ApplyBalance(), ctx=other).changed == 2
    assert_same_function(model, float_model, rtol=1e-5)


def test_other_factors_than_the_graph_has() -> None:
    graph, ctx = prepared(model_of("Conv"), layer=factors())
    apply(graph, ApplyBalance(), ctx=ctx)
    for other in (BALANCE * 1.01, BALANCE[:3]):
        with pytest.raises(RecordError, match=r"layer 'layer': 'layer\.mul' in the model does not hold"):
            apply(graph, ApplyBalance(), ctx=context(factors={"layer": factors(other)}))


def test_factors_that_do_not_fit() -> None:
    graph, ctx = prepared(model_of("Conv<group=2>"), layer=factors(BALANCE[:3]))
    before = graph.to_proto().SerializeToString()
    with pytest.raises(RecordError, match="layer 'layer' has 3 numbers as tensor_balance_factor and 6 input channels"):
        apply(graph, ApplyBalance(), ctx=ctx)
    assert graph.to_proto().SerializeToString() == before
    with pytest.raises(GraphError, match="no node 'layr'; did you mean 'layer'"):
        apply(graph, ApplyBalance(), ctx=context(factors={"layr": factors()}))
    pool = build(
        "g (float[N,6,4,4] x) => (float[N,6,2,2] y) { [pool] y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(x) }"
    )
    graph, ctx = prepared(pool, pool=factors())
    with pytest.raises(
        RecordError, match="layer 'pool' has a tensor_balance_factor and cannot be balanced: an Average"
    ):
        apply(graph, ApplyBalance(), ctx=ctx)
    product = build("g (float[N,6] x, float[6,3] z) => (float[N,3] y) { [product] y = MatMul(x, z) }")
    graph, ctx = prepared(product, product=factors())
    with pytest.raises(RecordError, match="both factors of the MatMul are activations"):
        apply(graph, ApplyBalance(), ctx=ctx)


def test_weights_that_overflow() -> None:
    model = build("g (float[N,6] x) => (float[N,4] y) { [layer] y = Gemm(x, W) }", W=normal(6, 4, scale=1e38))
    graph, ctx = prepared(model, layer=factors(BALANCE * 1000))
    with pytest.raises(GraphError, match="Gemm 'layer': balancing makes its weight overflow"):
        apply(graph, ApplyBalance(), ctx=ctx)


def test_contract() -> None:
    held = frozenset({Fact.NAMED, Fact.CONSTANTS_LIFTED, Fact.FACTORS, Fact.PLAN})
    manager = PassManager([ApplyBalance()], initial=held)
    assert Fact.FACTORS in manager.provides
    assert Fact.PLAN not in manager.provides
    assert ApplyBalance.preserves_function
