"""SpreadChannels: the function stays, the channels in front of a depthwise layer all use the whole range."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxq.algos.affine import params_from_range
from onnxq.algos.weight import quantize_weight
from onnxq.passes.calibrate import Calibrate
from onnxq.passes.choose_params import ChooseParams
from onnxq.passes.spread_channels import SpreadChannels
from onnxq.recipe import MinMax
from onnxq.spec import PerAxis, QType, QuantSpec
from tests.graphs import apply, build, deviation, normal, run
from tests.passes.ptq import planned

SCALES = np.array([1, 1e-2, 0.3, 3e-3, 0.05, 1], np.float32)
CLAMPS = {"relu": "r = Relu (a)", "relu6": "r = Clip (a, zero, six)", "none": "r = Identity (a)"}


def mobile(clamp: str = "relu", *, bias: bool = True, outputs: str = "", **changes: Any) -> onnx.ModelProto:
    """Conv, clamp, depthwise Conv, Conv; the channels between the first two differ by a factor of 300."""
    b = ", B1" if bias else ""
    values = {
        "W1": normal(6, 3, 1, 1) * SCALES.reshape(-1, 1, 1, 1),
        "D": normal(6, 1, 3, 3) / SCALES.reshape(-1, 1, 1, 1),
        "DB": normal(6, seed=5),
        "W2": normal(4, 6, 1, 1),
        "zero": np.float32(0),
        "six": np.float32(6),
    }
    if bias:
        values["B1"] = (normal(6, seed=9) * SCALES).astype(np.float32)
    body = "" if clamp == "none" else CLAMPS[clamp]
    source = "a" if clamp == "none" else "r"
    return build(
        f"""g (float[N,3,6,6] x) => (float[N,4,4,4] y{outputs}) {{
            [c1] a = Conv (x, W1{b}) {body}
            [dw] d = Conv <group=6> ({source}, D, DB)
            [c2] y = Conv (d, W2) }}""",
        **(values | changes),
    )


def spread(model: onnx.ModelProto, x: Any, recipe: Any = None) -> Any:
    graph, ctx = planned(model, data={"x": x}, recipe=recipe)
    apply(graph, Calibrate(channels=True), ctx=ctx)
    report = apply(graph, SpreadChannels(), ctx=ctx)
    return graph, ctx, report


def weight_of(graph: Any, node: str) -> Any:
    return graph.value(graph.node(node).inputs[1])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("clamp", ["relu", "none"])
def test_without_an_upper_limit_the_function_stays_for_all_data(clamp: str, bias: bool) -> None:
    model, x = mobile(clamp, bias=bias), normal(16, 3, 6, 6)
    graph, _, report = spread(model, x)
    assert report.changed == 1
    assert report.skipped == ()
    for data in (x, 100 * normal(4, 3, 6, 6, seed=3)):
        assert deviation(run(model, {"x": data}), run(graph, {"x": data})) < 1e-5


@pytest.mark.parametrize("target", ["tensorrt", "ascend"])
@pytest.mark.parametrize("clamp", CLAMPS)
def test_where_layers_give_floats_the_clamp_stays_and_channels_are_spread_all_the_same(target: str, clamp: str) -> None:
    model, x = mobile(clamp), normal(16, 3, 6, 6) * 3
    graph, ctx, report = spread(model, x, {"target": target})
    assert report.changed == 1
    assert deviation(run(model, {"x": x}), run(graph, {"x": x})) < 1e-5
    stats = ctx.stats["a" if clamp == "none" else "r"]
    assert stats.low == (0 if clamp != "none" else -stats.high)
    if clamp == "relu6":
        assert stats.high == 6.0
    assert len(graph.nodes("Relu", "Clip")) == (clamp != "none")


@pytest.mark.parametrize("node", ["c1", "dw"])
def test_a_float_layer_takes_part_as_long_as_the_tensor_has_codes(node: str) -> None:
    """Otherwise a layer that is left float would make its neighbour worse."""
    model, x = mobile("relu"), normal(16, 3, 6, 6)
    graph, ctx, report = spread(model, x, {"skip": [node]})
    assert report.changed == 1
    assert "r" in ctx.plan.activations
    assert deviation(run(model, {"x": x}), run(graph, {"x": x})) < 1e-5
    wanted = spread(model, x)[0]
    for layer in ("c1", "dw"):
        np.testing.assert_array_equal(weight_of(graph, layer), weight_of(wanted, layer))


def test_two_float_layers_are_left_alone() -> None:
    assert_untouched(mobile("relu"), {"skip": ["c1", "dw"]})


def test_a_float_clamp_that_others_read_ends_it() -> None:
    model = mobile("relu", outputs=", float[N,6,6,6] a")
    assert spread(model, normal(4, 3, 6, 6), {"target": "ascend"})[2].changed == 0


def test_behind_a_clip_the_function_stays_on_the_calibration_data() -> None:
    model, x = mobile("relu6"), normal(16, 3, 6, 6) * 3
    graph, ctx, report = spread(model, x)
    assert report.changed == 1
    assert deviation(run(model, {"x": x}), run(graph, {"x": x})) < 1e-5
    assert (ctx.stats["r"].low, ctx.stats["r"].high) == (0, 6)
    wide = {"x": normal(4, 3, 6, 6, seed=3) * 30}  # beyond what was measured, a channel is cut off at its maximum
    assert deviation(run(model, wide), run(graph, wide)) > 1e-3


@pytest.mark.parametrize("clamp", ["relu", "relu6", "none"])
def test_every_channel_uses_most_of_the_range(clamp: str) -> None:
    name = "a" if clamp == "none" else "r"
    x = normal(16, 3, 6, 6)
    graph, ctx, _ = spread(mobile(clamp), x)
    proto = graph.to_proto()
    proto.graph.output.extend([onnx.ValueInfoProto(name=name)])
    largest = np.abs(run(proto, {"x": x})[name]).max(axis=(0, 2, 3))
    top = ctx.stats[name].high
    assert largest.max() <= 1.0001 * top
    assert largest.min() > 0.5 * top  # some room is left for what 16 samples have not shown; they began 300 apart
    assert ctx.stats[name].low == (-top if clamp == "none" else 0)
    assert ctx.stats[name].count == 16 * 6 * 36
    assert isinstance(ctx.plan.activations[name].method, MinMax)
    apply(graph, ChooseParams(), ctx=ctx)
    assert float(ctx.params[name].high) == pytest.approx(top, rel=0.01)


def test_the_codes_of_both_weights_stay() -> None:
    model, x = mobile("relu"), normal(16, 3, 6, 6)
    graph, _ctx, _ = spread(model, x)
    spec = QuantSpec(QType.INT8, PerAxis(0), narrow=True)
    for node, name in (("c1", "W1"), ("dw", "D")):
        before = onnx.numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))
        after = weight_of(graph, node)
        assert not np.array_equal(before, after)
        codes = []
        for w in (before, after):
            flat = np.abs(w).reshape(len(w), -1).max(axis=1)
            codes.append(quantize_weight(w, params_from_range(-flat, flat, spec)).astype(int))
        assert np.abs(codes[0] - codes[1]).max() <= 1
        assert (codes[0] != codes[1]).mean() < 0.02
    assert np.array_equal(weight_of(graph, "c2"), normal(4, 6, 1, 1))


def test_the_plan_follows_the_new_weights() -> None:
    graph, ctx, _ = spread(mobile("relu"), normal(8, 3, 6, 6))
    for weight in ctx.plan.weights:
        assert weight.tensor == graph.node(weight.node).inputs[weight.index].name
        assert weight.key == weight.tensor
    assert [w.tensor for w in ctx.plan.weights][2] == "W2"


def test_a_channel_multiplier_above_one() -> None:
    model = mobile("relu", D=normal(12, 1, 3, 3) * 5, DB=normal(12), W2=normal(4, 12, 1, 1))
    x = normal(8, 3, 6, 6)
    graph, _, report = spread(model, x)
    assert report.changed == 1
    assert deviation(run(model, {"x": x}), run(graph, {"x": x})) < 1e-5


def test_dead_channels_are_left_as_they_are() -> None:
    w1, b1 = normal(6, 3, 1, 1), normal(6, seed=9)
    w1[2], b1[2] = 0, 0  # always zero
    w1[4] *= 1e-3
    b1[4] = -50  # never above zero
    w1[5], b1[5] = 1e-7 * w1[5], 1e-8  # as good as zero
    model, x = mobile("relu", W1=w1, B1=b1), normal(16, 3, 6, 6)
    graph, _ctx, report = spread(model, x)
    assert report.changed == 1
    after = weight_of(graph, "c1")
    assert np.isfinite(after).all()
    for dead in (2, 4, 5):
        np.testing.assert_array_equal(after[dead], w1[dead])
        np.testing.assert_array_equal(weight_of(graph, "dw")[dead], model_weight(model, "D")[dead])
    assert deviation(run(model, {"x": x}), run(graph, {"x": x})) < 1e-5


def model_weight(model: onnx.ModelProto, name: str) -> Any:
    return onnx.numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


def test_all_channels_dead() -> None:
    model = mobile("relu", W1=np.zeros((6, 3, 1, 1), np.float32), B1=np.full(6, -1, np.float32))
    x = normal(4, 3, 6, 6)
    graph, ctx, _ = spread(model, x)
    np.testing.assert_array_equal(weight_of(graph, "c1"), 0)
    assert deviation(run(model, {"x": x}), run(graph, {"x": x})) == 0
    apply(graph, ChooseParams(), ctx=ctx)
    assert ctx.params["r"].scale > 0


# ---- where it must not be done -----------------------------------------------------------------


def assert_untouched(model: onnx.ModelProto, recipe: Any = None) -> None:
    x = normal(8, 3, 6, 6)
    graph, ctx = planned(model, data={"x": x}, recipe=recipe)
    apply(graph, Calibrate(channels=True), ctx=ctx)
    before = graph.to_proto().SerializeToString()
    plan, stats = ctx.plan, dict(ctx.stats)
    report = apply(graph, SpreadChannels(), ctx=ctx)
    assert report.changed == 0
    assert graph.to_proto().SerializeToString() == before
    assert dict(ctx.plan.activations) == dict(plan.activations)
    assert ctx.stats == stats
    assert all(s.channel_absmax is None for s in ctx.stats.values())


def test_a_tensor_that_others_read() -> None:
    assert_untouched(mobile("relu", outputs=", float[N,6,6,6] r"))
    residual = build(
        """g (float[N,3,6,6] x) => (float[N,6,6,6] y) {
            [c1] a = Conv (x, W1) r = Relu (a) [dw] d = Conv <group=6, pads=[1,1,1,1]> (r, D) y = Add (d, r) }""",
        W1=normal(6, 3, 1, 1), D=normal(6, 1, 3, 3),
    )  # fmt: skip
    assert_untouched(residual)


@pytest.mark.parametrize("node", ["c1", "dw"])
def test_one_scale_for_the_whole_weight(node: str) -> None:
    rules = [{"match": {"node": node}, "weights": {"granularity": "per_tensor"}}]
    assert_untouched(mobile("relu"), {"rules": rules})


def test_a_clip_that_does_not_begin_at_zero() -> None:
    assert_untouched(mobile("relu6", zero=np.float32(-1)))


def test_a_layer_that_is_not_depthwise() -> None:
    model = mobile("relu", D=normal(6, 6, 3, 3))
    next(n for n in model.graph.node if n.name == "dw").attribute.pop()
    assert_untouched(model)


def test_a_weight_that_others_read_keeps_its_old_numbers_there() -> None:
    model = build(
        """g (float[N,3,6,6] x) => (float[N,4,4,4] y, float[N,6,6,6] z) {
            [c1] a = Conv (x, W1) r = Relu (a) [dw] d = Conv <group=6> (r, D) [c2] y = Conv (d, W2)
            [other] z = Conv (x, W1) }""",
        W1=normal(6, 3, 1, 1) * SCALES.reshape(-1, 1, 1, 1), D=normal(6, 1, 3, 3), W2=normal(4, 6, 1, 1),
    )  # fmt: skip
    x = normal(8, 3, 6, 6)
    graph, ctx, report = spread(model, x)
    assert report.changed == 1
    np.testing.assert_array_equal(weight_of(graph, "other"), model_weight(model, "W1"))
    assert deviation(run(model, {"x": x}), run(graph, {"x": x})) < 1e-5
    keys = {w.node: w.key for w in ctx.plan.weights}
    assert keys["other"] != keys["c1"]


def test_a_second_run_changes_nothing_that_matters() -> None:
    x = normal(8, 3, 6, 6)
    graph, ctx, _ = spread(mobile("relu"), x)
    before = graph.to_proto().SerializeToString()
    assert apply(graph, SpreadChannels(), ctx=ctx).changed == 0  # the statistics of channels are used up
    assert graph.to_proto().SerializeToString() == before
