"""RoundWeights: outputs closer to the float model's than with rounding to nearest, whatever the layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxq.algos.affine import fake_quantize, quantize
from onnxq.passes import _compensate
from onnxq.passes._compensate import why_not_compensated
from onnxq.passes._fitting import saturating_outputs
from onnxq.passes._linear import read_linear
from onnxq.passes._rows import count_rows, from_rows, gather_rows, to_rows
from onnxq.passes.calibrate import Calibrate
from onnxq.passes.choose_params import ChooseParams
from onnxq.passes.round_weights import RoundWeights
from onnxq.recipe import WeightRounding
from onnxq.spec import PerBlock, PerTensor, QType, QuantParams, QuantSpec
from tests.graphs import apply, build, graph_of, normal, run
from tests.passes.ptq import planned

ADAROUND = {"bits": 4, "type": "int8", "method": {"name": "adaround", "num_iteration": 100}}
TWO = """g (float[N,4,8,8] x) => (float[N,5] y) {
    [c1] a = Conv <pads=[1,1,1,1]> (x, W1, B1)
    r = Relu (a)
    [c2] b = Conv <group=2, strides=[2,2]> (r, W2)
    s = LeakyRelu (b)
    [c3] t = ConvTranspose <strides=[2,2], group=2, pads=[1,0,0,1], output_padding=[1,0]> (s, W3)
    p = GlobalAveragePool (t)
    f = Flatten (p)
    [fc] y = Gemm <transB=1> (f, W4, B4) }"""


def two() -> onnx.ModelProto:
    return build(
        TWO, W1=normal(6, 4, 3, 3), B1=normal(6), W2=normal(8, 3, 3, 3), W3=normal(8, 4, 3, 3), W4=normal(5, 8),
        B4=normal(5),
    )  # fmt: skip


def mixed(count: int, *shape: int, seed: int = 0) -> Any:
    """Inputs whose channels depend on each other, as activations do."""
    x = normal(count, *shape, seed=seed)
    return x + 0.8 * x[:, ::-1] + 0.3


def prepared(model: onnx.ModelProto, x: Any, *, threads: int = 1, **weights: Any) -> Any:
    recipe = {"target": "tensorrt", "activations": {"method": "minmax"}, "weights": {**ADAROUND, **weights}}
    graph, ctx = planned(model, data={"x": x}, recipe=recipe, threads=threads)
    apply(graph, Calibrate(), ChooseParams(), ctx=ctx)
    return graph, ctx


def nearest(graph: Any, ctx: Any) -> onnx.ModelProto:
    """The model with weights rounded to nearest, everything else float."""
    proto = graph.to_proto()
    tensors = {t.name: t for t in proto.graph.initializer}
    for weight in ctx.plan.weights:
        old = onnx.numpy_helper.to_array(tensors[weight.tensor])
        tensors[weight.tensor].CopyFrom(
            onnx.numpy_helper.from_array(fake_quantize(old, ctx.params[weight.key]), weight.tensor)
        )
    return proto


def error(model: Any, reference: onnx.ModelProto, x: Any) -> float:
    expected, found = run(reference, {"x": x}), run(model, {"x": x})
    return float(sum(np.square(expected[k] - found[k]).sum() for k in expected))


def test_the_model_is_closer_to_the_float_model_on_other_data_too() -> None:
    model, x = two(), mixed(48, 4, 8, 8)
    graph, ctx = prepared(model, x)
    plain = nearest(graph, ctx)
    report = apply(graph, RoundWeights(), ctx=ctx)
    assert (report.changed, report.skipped) == (4, ())
    assert error(graph, model, x) < 0.5 * error(plain, model, x)
    other = mixed(48, 4, 8, 8, seed=9)
    assert error(graph, model, other) < 0.6 * error(plain, model, other)


def test_weights_are_codes_that_rounding_to_nearest_gives_again() -> None:
    model, x = two(), mixed(16, 4, 8, 8)
    graph, ctx = prepared(model, x)
    before = {w.node: graph.value(graph.node(w.node).inputs[1]).copy() for w in ctx.plan.weights}
    apply(graph, RoundWeights(), ctx=ctx)
    for weight in ctx.plan.weights:
        value, params = graph.value(graph.node(weight.node).inputs[1]), ctx.params[weight.key]
        np.testing.assert_array_equal(fake_quantize(value, params), value)
        moved = quantize(value, params).astype(int) - quantize(before[weight.node], params)
        assert set(np.unique(moved)) <= {-1, 0, 1}
        assert moved.any()
    assert {t.name for t in graph.constants()} >= {"W1_rounded", "W2_rounded", "W3_rounded", "W4_rounded"}


def test_no_iterations_round_to_nearest() -> None:
    graph, ctx = prepared(two(), mixed(8, 4, 8, 8), method={"name": "adaround", "num_iteration": 0})
    expected = nearest(graph, ctx)
    apply(graph, RoundWeights(), ctx=ctx)
    x = {"x": mixed(4, 4, 8, 8)}
    np.testing.assert_array_equal(run(graph, x)["y"], run(expected, x)["y"])


def test_threads_do_not_change_a_bit() -> None:
    model, x = two(), mixed(16, 4, 8, 8)
    found = []
    for threads in (1, 3):
        graph, ctx = prepared(model, x, threads=threads)
        apply(graph, RoundWeights(), ctx=ctx)
        found.append(graph.to_proto().SerializeToString())
    assert found[0] == found[1]


def test_a_shared_weight_is_rounded_once_for_all_its_readers() -> None:
    model = build(
        "g (float[N,4,8,8] x) => (float[N,4,8,8] y) { [a] p = Conv <pads=[1,1,1,1]> (x, W) "
        "[b] y = Conv <pads=[1,1,1,1]> (p, W) }", W=normal(4, 4, 3, 3),
    )  # fmt: skip
    graph, ctx = prepared(model, mixed(16, 4, 8, 8))
    apply(graph, RoundWeights(), ctx=ctx)
    values = [graph.value(graph.node(n).inputs[1]) for n in "ab"]
    np.testing.assert_array_equal(*values)
    assert not np.array_equal(values[0], fake_quantize(normal(4, 4, 3, 3), ctx.params["W"]))


def test_a_weight_that_another_node_reads_keeps_its_floats_there() -> None:
    weight = normal(4, 6)
    model = build(
        "g (float[N,4] x) => (float[N,6] y, float[4,6] z) { [m] y = MatMul (x, W) [n] z = Neg (W) }", W=weight
    )
    graph, ctx = prepared(model, mixed(64, 4))
    report = apply(graph, RoundWeights(), ctx=ctx)
    assert report.changed == 1
    found = run(graph, {"x": np.eye(4, dtype=np.float32)})
    np.testing.assert_array_equal(found["z"], -weight)
    np.testing.assert_array_equal(found["y"], graph.value(graph.node("m").inputs[1]))
    assert (found["y"] != weight).any()


def test_what_cannot_be_rounded_is_told() -> None:
    model = build(
        "g (float[N,4] x) => (float[N,6] y) { [g] y = Gemm <alpha=0.5> (x, W, B) }", W=normal(4, 6), B=normal(6)
    )
    graph, ctx = prepared(model, mixed(64, 4))
    ctx.reader = None
    report = apply(graph, RoundWeights(), ctx=ctx)
    assert report.changed == 0
    assert len(report.skipped) == 1
    assert "rounded to nearest" in report.skipped[0].reason


def test_progress_and_notes_name_every_layer() -> None:
    graph, ctx = prepared(two(), mixed(8, 4, 8, 8))
    told: list[tuple[str, int, int | None]] = []
    ctx.progress = lambda *args: told.append(args)
    report = apply(graph, RoundWeights(), ctx=ctx)
    assert told == [("rounding weights", n, 4) for n in (1, 2, 3, 4)]
    assert [n.split(":")[0] for n in report.notes[1:]] == ["c1", "c2", "c3", "fc"]


def test_nuq_leaves_as_many_codes_as_it_may() -> None:
    graph, ctx = prepared(two(), mixed(8, 4, 8, 8), bits=8, method={"name": "nuq", "num_steps": 16})
    report = apply(graph, RoundWeights(), ctx=ctx)
    assert report.changed == 4
    for weight in ctx.plan.weights:
        codes = quantize(graph.value(graph.node(weight.node).inputs[1]), ctx.params[weight.key])
        assert set(np.unique(codes)) <= set(ctx.clusters[weight.node])
        assert ctx.clusters[weight.node].shape == (16,)


# ---- GPTQ ------------------------------------------------------------------------------------------


def compensated(model: onnx.ModelProto, x: Any, *, threads: int = 1, step: Any = None, **weights: Any) -> Any:
    graph, ctx = prepared(model, x, threads=threads, method="absmax", **weights)
    plain = nearest(graph, ctx)
    report = apply(graph, RoundWeights(step or WeightRounding()), ctx=ctx)
    return graph, ctx, plain, report


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_gptq_comes_closer_to_the_float_model_on_other_data_too(bits: int) -> None:
    model, x, other = two(), mixed(48, 4, 8, 8), mixed(48, 4, 8, 8, seed=9)
    graph, _, plain, report = compensated(model, x, bits=bits)
    assert (report.changed, report.skipped) == (4, ())
    assert error(graph, model, x) < 0.7 * error(plain, model, x)
    assert error(graph, model, other) < 0.8 * error(plain, model, other)


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_axis"])
def test_gptq_stays_within_the_codes(granularity: str, narrow: bool) -> None:
    graph, ctx, _, _ = compensated(two(), mixed(16, 4, 8, 8), bits=3, narrow=narrow, granularity=granularity)
    for weight in ctx.plan.weights:
        value, params = graph.value(graph.node(weight.node).inputs[1]), ctx.params[weight.key]
        np.testing.assert_array_equal(fake_quantize(value, params), value)
        codes = quantize(value, params)
        assert (codes.min(), codes.max()) >= (params.spec.bounds[0], 0)
        assert codes.max() <= params.spec.bounds[1]


def test_gptq_is_the_same_whatever_the_threads() -> None:
    found = [compensated(two(), mixed(16, 4, 8, 8), threads=n)[0].to_proto().SerializeToString() for n in (1, 3)]
    assert found[0] == found[1]


def test_gptq_leaves_no_sum_of_two_products_to_saturate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs of which two neighbours add up to more than 128 codes keep the nearest codes."""
    model = build("g (float[N,64] x) => (float[N,8] y) { [m] y = MatMul (x, W) }", W=normal(64, 8))
    graph, ctx = planned(model, data={"x": mixed(64, 64)}, recipe={"activations": {"method": "minmax"}})
    apply(graph, Calibrate(), ChooseParams(), ctx=ctx)
    (plan,), params = ctx.plan.weights, ctx.params["W"]
    codes = np.zeros((64, 8), np.float32)
    codes[:4, :3] = [[64, 65, -64], [64, 64, -65], [0, 0, 0], [100, 100, 100]]
    found = saturating_outputs(graph.node("m"), plan, codes * params.scale, params)
    assert found is not None
    assert found.tolist() == [False, True, True, *[False] * 5]
    plain = fake_quantize(normal(64, 8), params)
    monkeypatch.setattr(_compensate, "saturating_outputs", lambda *_: np.arange(8) < 2)
    apply(graph, RoundWeights(WeightRounding()), ctx=ctx)
    kept = (graph.value(graph.node("m").inputs[1]) == plain).all(axis=0)
    assert kept[:2].all()
    assert not kept[2:].all()


def test_gptq_leaves_other_methods_and_types_alone() -> None:
    model, x = two(), mixed(16, 4, 8, 8)
    wide = QuantSpec(QType.INT16, PerTensor(), bits=12)
    one, zero = np.array(1, np.float32), np.array(0, np.int32)
    assert "up to 8 bits" in str(why_not_compensated(QuantParams(wide, one, zero)))
    blocks = QuantSpec(QType.INT8, PerBlock(0, 2))
    assert "one scale for each output" in str(why_not_compensated(QuantParams(blocks, one, zero)))
    graph, ctx = prepared(model, x)
    assert apply(graph, RoundWeights(WeightRounding()), ctx=ctx).changed == 0
    ctx.reader = None
    graph, ctx = prepared(model, x, method="absmax")
    ctx.reader = None
    report = apply(graph, RoundWeights(WeightRounding()), ctx=ctx)
    assert all("GPTQ needs calibration data" in skip.reason for skip in report.skipped)


# ---- rows --------------------------------------------------------------------------------------

LAYERS = {
    "plain": ("Conv", (2, 4, 9, 8), (6, 4, 3, 2), "pads=[1,0,2,1]"),
    "stride, dilation": ("Conv", (2, 4, 9, 11), (6, 4, 3, 2), "strides=[2,3], dilations=[1,2]"),
    "same upper": ("Conv", (1, 2, 9, 8), (3, 2, 4, 3), 'auto_pad="SAME_UPPER", strides=[2,2]'),
    "same lower": ("Conv", (1, 2, 9, 8), (3, 2, 4, 3), 'auto_pad="SAME_LOWER", strides=[2,1]'),
    "valid": ("Conv", (1, 2, 9, 8), (3, 2, 4, 3), 'auto_pad="VALID"'),
    "1-D": ("Conv", (2, 4, 9), (6, 4, 3), "strides=[2]"),
    "3-D": ("Conv", (1, 2, 5, 4, 6), (3, 2, 2, 3, 2), "pads=[0,1,0,1,0,0]"),
    "groups": ("Conv", (2, 4, 6, 6), (8, 2, 3, 3), "group=2"),
    "depthwise": ("Conv", (2, 4, 6, 6), (8, 1, 3, 3), "group=4"),
    "transpose": ("ConvTranspose", (2, 4, 5, 4), (4, 3, 3, 2), "strides=[2,3], pads=[1,0,2,1]"),
    "transpose, all": ("ConvTranspose", (2, 4, 5, 4), (4, 3, 3, 2),
                       "group=2, strides=[2,2], dilations=[2,1], pads=[2,1,0,1], output_padding=[1,0]"),
}  # fmt: skip


@pytest.mark.parametrize("case", LAYERS)
def test_rows_times_columns_is_what_the_operator_computes(case: str) -> None:
    op, shape, weight_shape, attrs = LAYERS[case]
    dims = ",".join(map(str, shape))
    free = ",".join("abcdef"[: len(shape)])
    text = f"g (float[{dims}] x) => (float[{free}] y) {{ [n] y = {op} <{attrs}> (x, W) }}"
    weight, x = normal(*weight_shape), normal(*shape)
    graph = graph_of(text, W=weight)
    linear = read_linear(graph, graph.node("n"))
    assert not isinstance(linear, str)
    expected = run(graph, {"x": x})["y"]
    rows = np.arange(count_rows(linear, shape))
    inputs = gather_rows(linear, x, rows)
    matrices = to_rows(linear, weight).reshape(linear.layout.groups, -1, inputs.shape[1])
    found = np.matmul(matrices, inputs).reshape(linear.layout.out_channels, -1)
    np.testing.assert_allclose(np.moveaxis(expected, 1, 0).reshape(found.shape), found, atol=1e-4)
    some = rows[::-3]
    np.testing.assert_array_equal(gather_rows(linear, x, some), inputs[:, :, some])
    np.testing.assert_array_equal(from_rows(linear, to_rows(linear, weight)), weight)
