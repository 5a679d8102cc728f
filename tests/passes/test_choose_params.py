"""ChooseParams: ranges of groups, limits of clamps, biases that fit int32, weights that cannot saturate a CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import onnxq
from onnxq.algos.weight import quantize_weight
from onnxq.errors import CalibrationError, GraphError
from onnxq.graph import GraphModel
from onnxq.passes.calibrate import Calibrate
from onnxq.passes.choose_params import ChooseParams
from onnxq.passes.insert_qdq import InsertQdq
from onnxq.stats import TensorStats
from tests.graphs import apply, build, normal, run
from tests.passes.ptq import planned, stats_of

MINMAX = {"activations": {"method": "minmax"}}


def chosen(model: onnx.ModelProto, data: Any, recipe: Any = None) -> tuple[GraphModel, Any]:
    graph, ctx = planned(model, data=data, recipe=recipe or MINMAX)
    apply(graph, Calibrate(), ChooseParams(), ctx=ctx)
    return graph, ctx


# ---- activations -------------------------------------------------------------------------------


def concat() -> onnx.ModelProto:
    return build(
        """g (float[N,2,4,4] x) => (float[N,3,4,4] y) {
            a = Conv (x, A)
            b = Conv (x, B)
            c = Concat <axis=1> (a, b)
            y = Conv (c, C) }""",
        A=normal(2, 2, 1, 1),
        B=normal(2, 2, 1, 1, seed=1) * 8,
        C=normal(3, 4, 1, 1),
    )


def test_the_members_of_a_group_share_what_their_statistics_give_together() -> None:
    _graph, ctx = chosen(concat(), {"x": normal(8, 2, 4, 4)})
    groups = {a.tensor: a.group for a in ctx.plan.activations.values()}
    assert groups["a"] == groups["b"] == groups["c"] != groups["x"]
    assert ctx.params["a"].same_as(ctx.params["b"])
    assert ctx.params["a"].same_as(ctx.params["c"])
    assert not ctx.params["a"].same_as(ctx.params["x"])
    low = min(ctx.stats["a"].low, ctx.stats["b"].low)
    high = max(ctx.stats["a"].high, ctx.stats["b"].high)
    assert ctx.params["a"].scale == pytest.approx((high - low) / 255, rel=1e-6)
    assert ctx.stats["b"].high > 2 * ctx.stats["a"].high
    assert "c" not in ctx.stats


@pytest.mark.parametrize("clamp", ["Relu(a)", "Clip(a, low, high)"])
def test_what_a_float_clamp_reads_has_the_numbers_of_what_it_gives(clamp: str) -> None:
    """Symmetric codes: far below zero lies nothing that is not cut off behind, so codes need not reach there."""
    text = f"g (float[N,2,4,4] x) => (float[N,3,4,4] y) {{ a = Conv(x, A, D) c = {clamp} y = Conv(c, B) }}"
    constants = {"A": normal(4, 2, 1, 1), "D": np.full(4, -5, np.float32), "B": normal(3, 4, 1, 1, seed=1)}
    limits = {"low": np.float32(0), "high": np.float32(6)} if "low" in text else {}
    recipe = {"activations": {"method": "minmax", "type": "int8", "symmetric": True}}
    _graph, ctx = chosen(build(text, **constants, **limits), {"x": normal(8, 2, 4, 4)}, recipe)
    assert ctx.plan.absorbed == ()
    assert ctx.stats["a"].low < -2 * ctx.stats["c"].high
    assert ctx.params["a"].scale == pytest.approx(ctx.stats["c"].high / 127, rel=1e-6)
    assert ctx.params["a"].same_as(ctx.params["c"])


def test_what_others_read_besides_a_clamp_keeps_its_own_numbers() -> None:
    text = "g (float[N,2,4,4] x) => (float[N,3,4,4] y, float[N,3,4,4] z) { a = Conv(x, A) c = Relu(a) y = Conv(c, B) "
    model = build(f"{text} z = Conv(a, B) }}", A=normal(4, 2, 1, 1), B=normal(3, 4, 1, 1, seed=1))
    recipe = {"activations": {"method": "minmax", "type": "int8", "symmetric": True}}
    _graph, ctx = chosen(model, {"x": normal(8, 2, 4, 4)}, recipe)
    assert ctx.params["a"].scale == pytest.approx(max(-ctx.stats["a"].low, ctx.stats["a"].high) / 127, rel=1e-6)


def test_the_graph_is_not_changed() -> None:
    graph, ctx = planned(concat(), data={"x": normal(4, 2, 4, 4)})
    apply(graph, Calibrate(), ctx=ctx)
    before = graph.to_proto().SerializeToString()
    apply(graph, ChooseParams(), ctx=ctx)
    assert graph.to_proto().SerializeToString() == before
    assert set(ctx.params) == {*ctx.plan.activations, "A", "B", "C"}


def clipped(low: float, high: float) -> Any:
    model = build(
        """g (float[N,2,4,4] x) => (float[N,3,4,4] y) { c = Conv (x, A) r = Clip (c, lo, hi) y = Conv (r, C) }""",
        A=normal(2, 2, 1, 1),
        C=normal(3, 2, 1, 1),
        lo=np.float32(low),
        hi=np.float32(high),
    )
    return planned(model, recipe=MINMAX)


def test_the_limits_of_an_absorbed_clip_cut_the_range() -> None:
    graph, ctx = clipped(0, 6)
    ctx.stats = {n: stats_of(-3, 11) for n in ctx.plan.activations}
    apply(graph, ChooseParams(), ctx=ctx)
    assert ctx.params["r"].scale == np.float32(6 / 255)
    assert ctx.params["r"].zero_point == 0
    assert ctx.params["x"].scale == np.float32(14 / 255)


def test_both_limits_may_be_inside() -> None:
    graph, ctx = clipped(-1, 1)
    ctx.stats = {n: stats_of(-3, 11) for n in ctx.plan.activations}
    apply(graph, ChooseParams(), ctx=ctx)
    assert (float(ctx.params["r"].low), float(ctx.params["r"].high)) == pytest.approx((-1, 1), abs=1.01 / 255)


def test_a_limit_outside_the_data_does_not_widen_the_range() -> None:
    graph, ctx = clipped(0, 6)
    ctx.stats = {n: stats_of(0, 2) for n in ctx.plan.activations}
    apply(graph, ChooseParams(), ctx=ctx)
    assert ctx.params["r"].scale == np.float32(2 / 255)


def test_a_range_that_another_pass_has_decided_is_taken() -> None:
    graph, ctx = clipped(0, 6)
    ctx.stats = {n: stats_of(-3, 11) for n in ctx.plan.activations}
    ctx.ranges = {"x": (-1.0, 1.0)}
    apply(graph, ChooseParams(), ctx=ctx)
    assert ctx.params["x"].scale == np.float32(2 / 255)


def test_output_mse_without_a_search_is_mse() -> None:
    data = {"x": np.concatenate([normal(16, 2, 4, 4).ravel()[:-1], [7]]).reshape(16, 2, 4, 4).astype(np.float32)}
    found = [
        chosen(concat(), data, {"activations": {"method": m, "bits": 4}})[1] for m in ("mse", "output_mse", "minmax")
    ]
    plain, search, minmax = found
    assert search.params["x"].same_as(plain.params["x"])
    assert not search.params["x"].same_as(minmax.params["x"])


def test_a_tensor_that_was_not_measured() -> None:
    graph, ctx = clipped(0, 6)
    with pytest.raises(CalibrationError, match="'x' was not measured; run Calibrate after SelectLayers"):
        apply(graph, ChooseParams(), ctx=ctx)
    ctx.stats = {n: TensorStats(np.inf, -np.inf, 0) for n in ctx.plan.activations}
    with pytest.raises(CalibrationError, match="'x' was empty for all samples; leave its nodes out with --skip"):
        apply(graph, ChooseParams(), ctx=ctx)


# ---- biases ------------------------------------------------------------------------------------


def test_a_bias_that_overflows_int32_enlarges_the_scale_of_its_channel() -> None:
    w = normal(3, 2, 1, 1)
    w[1] *= 1e-9
    bias = np.array([0.5, 1000, -0.25], np.float32)
    model = build("g (float[N,2,4,4] x) => (float[N,3,4,4] y) { [c] y = Conv (x, W, B) }", W=w, B=bias)
    data = {"x": normal(8, 2, 4, 4)}
    graph, ctx = planned(model, data=data, recipe=MINMAX)
    report = apply(graph, Calibrate(), ChooseParams(), ctx=ctx)
    assert report.notes == ("c: 1 weight scales enlarged so that the int32 bias does not overflow",)
    scale = ctx.params["W"].scale
    assert scale[1] > np.abs(w[1]).max() / 127 * 10
    assert bias[1] / (float(ctx.params["x"].scale) * float(scale[1])) < 2**31
    apply(graph, InsertQdq(), ctx=ctx)
    y = run(graph, data)["y"]
    np.testing.assert_allclose(y[:, 1], 1000, rtol=0.01)


def test_a_bias_that_is_not_finite_is_named() -> None:
    model = build(
        "g (float[N,2] x) => (float[N,3] y) { [fc] y = Gemm (x, W, B) }",
        W=normal(2, 3), B=np.array([0, np.nan, 1], np.float32),
    )  # fmt: skip
    graph, ctx = planned(model, recipe=MINMAX)
    ctx.stats = {n: stats_of(-1, 1) for n in ctx.plan.activations}
    with pytest.raises(GraphError, match=r"bias 'B.*' of node 'fc': the bias holds NaN"):
        apply(graph, ChooseParams(), ctx=ctx)


# ---- weights -----------------------------------------------------------------------------------


def test_a_weight_that_is_not_finite_is_named() -> None:
    model = build(
        "g (float[N,2] x) => (float[N,2] y) { [fc] y = MatMul (x, W) }", W=np.array([[1, np.inf], [0, 1]], np.float32)
    )
    graph, ctx = planned(model, recipe=MINMAX)
    ctx.stats = {n: stats_of(-1, 1) for n in ctx.plan.activations}
    with pytest.raises(GraphError, match=r"weight 'W' of node 'fc': .*mend it, or skip the node"):
        apply(graph, ChooseParams(), ctx=ctx)


def test_a_shared_weight_has_one_set_of_numbers_that_fits_all_its_biases() -> None:
    model = build(
        """g (float[N,2,4,4] x) => (float[N,2,4,4] y) { [c1] a = Conv (x, W, B) [c2] y = Conv (a, W, B2) }""",
        W=normal(2, 2, 1, 1) * 1e-7,
        B=normal(2),
        B2=normal(2, seed=3) + np.float32(900),
    )
    graph, ctx = planned(model, data={"x": normal(4, 2, 4, 4)}, recipe=MINMAX)
    apply(graph, Calibrate(), ChooseParams(), ctx=ctx)
    assert [w.key for w in ctx.plan.weights] == ["W", "W"]
    scale = ctx.params["W"].scale.astype(np.float64)
    assert (np.abs(graph.value(graph.tensor("B2"))) <= 2**31 * scale * float(ctx.params["a"].scale)).all()
    assert (np.abs(graph.value(graph.tensor("B"))) <= 2**31 * scale * float(ctx.params["x"].scale)).all()
    apply(graph, InsertQdq(), ctx=ctx)
    assert len([n for n in graph.nodes("DequantizeLinear") if n.name.startswith("W")]) == 1


def test_readers_that_want_a_weight_differently_get_their_own_numbers() -> None:
    model = build(
        """g (float[N,2,4,4] x) => (float[N,2,4,4] y) { [c1] a = Conv (x, W) [c2] y = Conv (a, W) }""",
        W=normal(2, 2, 1, 1),
    )
    recipe = {**MINMAX, "rules": [{"match": {"node": "c2"}, "weights": {"granularity": "per_tensor"}}]}
    _, ctx = chosen(model, {"x": normal(4, 2, 4, 4)}, recipe)
    assert [w.key for w in ctx.plan.weights] == ["W", "W#2"]
    assert ctx.params["W"].scale.shape == (2,)
    assert ctx.params["W#2"].scale.shape == ()
    assert ctx.params["W#2"].scale == pytest.approx(ctx.params["W"].scale.max())


# ---- pairs -------------------------------------------------------------------------------------

WEIGHT = st.one_of(st.sampled_from([1.0, -1.0, 0.0, 513 / 1024]), st.floats(-4, 4, width=32, allow_subnormal=False))


def weights(*shape: int) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(np.float32, shape, elements=WEIGHT)


LAYERS = {
    "conv": ("y = Conv (x, W)", "float[N,4,3,3]", (3, 4, 2, 2)),
    "grouped": ("y = Conv <group=2> (x, W)", "float[N,6,3,3]", (4, 3, 2, 2)),
    "one_axis": ("y = Conv (x, W)", "float[N,5,4]", (2, 5, 2)),
    "gemm": ("y = Gemm (x, W)", "float[N,5]", (5, 3)),
    "gemm_transposed": ("y = Gemm <transB=1> (x, W)", "float[N,5]", (3, 5)),
    "matmul": ("y = MatMul (x, W)", "float[N,2,6]", (6, 3)),
}


def as_sums(kind: str, codes: np.ndarray) -> np.ndarray:
    """Rows of codes in the order a kernel adds their products: kernel positions, then channels; plain loops."""
    if kind in ("gemm", "matmul"):
        return codes.T
    if kind == "gemm_transposed":
        return codes
    rows = []
    for kernel in codes:
        positions = [kernel[(slice(None), *where)] for where in np.ndindex(kernel.shape[1:])]
        rows.append(np.concatenate(positions))
    return np.array(rows)


def largest_pair(rows: np.ndarray) -> int:
    rows = rows.astype(int)
    worst = 0
    for k in range(0, rows.shape[1] - 1, 2):
        a, b = rows[:, k], rows[:, k + 1]
        worst = max(worst, int(np.abs(np.where(a * b > 0, a + b, 0)).max()))
    return worst


def codes_of(kind: str, w: np.ndarray, **recipe: Any) -> Any:
    text, x, _ = LAYERS[kind]
    rank = x.count(",") + 1
    model = build(f"g ({x} x) => (float[{','.join('?' * rank)}] y) {{ {text} }}", W=w)
    graph, ctx = planned(model, recipe={**MINMAX, **recipe})
    ctx.stats = {n: stats_of(-1, 1) for n in ctx.plan.activations}
    apply(graph, ChooseParams(), ctx=ctx)
    return quantize_weight(w, ctx.params["W"]), ctx.params["W"]


@pytest.mark.parametrize("kind", LAYERS)
@settings(max_examples=25, deadline=None)
@given(
    data=st.data(), granularity=st.sampled_from(["per_axis", "per_tensor"]), method=st.sampled_from(["absmax", "mse"])
)
def test_no_pair_of_rounded_weights_exceeds_128(kind: str, data: Any, granularity: str, method: str) -> None:
    w = data.draw(weights(*LAYERS[kind][2]))
    codes, _ = codes_of(kind, w, weights={"granularity": granularity, "method": method})
    assert largest_pair(as_sums(kind, codes)) <= 128


@pytest.mark.parametrize("kind", LAYERS)
def test_the_limit_is_not_stricter_than_needed(kind: str) -> None:
    w = np.ones(LAYERS[kind][2], np.float32)
    codes, params = codes_of(kind, w)
    assert set(codes.ravel().tolist()) <= {63, 64}
    assert params.scale == pytest.approx(2 / 127)


@pytest.mark.parametrize("kind", ["conv", "grouped", "gemm", "gemm_transposed", "matmul"])
def test_neighbours_of_different_sign_need_no_room(kind: str) -> None:
    w = np.ones(LAYERS[kind][2], np.float32)
    axis = 0 if kind in ("gemm", "matmul") else 1
    np.moveaxis(w, axis, 0)[1::2] = -1
    if kind == "grouped":  # three channels of a group: positions of the kernel are neighbours as well
        w[:, 2] = 0
    assert np.abs(codes_of(kind, w)[0]).max() == 127


def saturating(text: str, x: str, w: np.ndarray) -> tuple[onnx.ModelProto, Any]:
    rank = x.count(",") + 1
    model = build(f"g ({x} x) => (float[{','.join('?' * rank)}] y) {{ {text} }}", W=w)
    shape = [2 if d == "N" else int(d) for d in x[len("float[") : -1].split(",")]
    return model, np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("text", "x", "shape"),
    [
        ("y = Conv (x, W)", "float[N,16,5,5]", (16, 16, 3, 3)),
        ("y = Conv (x, W)", "float[N,3,5,5]", (8, 3, 3, 3)),
        ("y = Conv <group=2> (x, W)", "float[N,8,5,5]", (8, 4, 3, 3)),
        ("y = Gemm (x, W)", "float[N,32]", (32, 16)),
        ("y = Gemm <transB=1> (x, W)", "float[N,32]", (16, 32)),
        ("y = MatMul (x, W)", "float[N,4,32]", (32, 16)),
        ("c = Relu (x) y = Conv <group=16, pads=[1,1,1,1]> (c, W)", "float[N,16,5,5]", (16, 1, 3, 3)),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_fused_kernels_give_what_the_model_says_with_all_codes_at_255(
    text: str, x: str, shape: tuple[int, ...], sign: int
) -> None:
    """On CPUs that add two products in 16 bits the result would be half as large."""
    model, ones = saturating(text, x, np.full(shape, sign, np.float32))
    result = onnxq.quantize(model, {"x": np.concatenate([ones, 0 * ones])}, recipe={**MINMAX, "refine": []})
    proto = result.model
    feed = {"x": ones}
    plain = run(proto, feed)["y"]
    fused = run(proto, feed, optimize=True)["y"]
    step = float(np.abs(plain).max()) / 255
    np.testing.assert_allclose(fused, plain, atol=1.01 * step)
    np.testing.assert_allclose(fused, run(model, feed)["y"], atol=0.02 * 255 * step)


def test_depthwise_weights_have_no_neighbours() -> None:
    w = np.ones((4, 1, 3, 3), np.float32)
    model = build("g (float[N,4,5,5] x) => (float[N,4,3,3] y) { y = Conv <group=4> (x, W) }", W=w)
    _, ctx = chosen(model, {"x": normal(2, 4, 5, 5)})
    assert set(quantize_weight(w, ctx.params["W"]).ravel().tolist()) == {127}


def test_weights_on_the_left_are_activations_to_the_kernel() -> None:
    w = np.ones((4, 4), np.float32)
    graph, ctx = planned(build("g (float[2,4,4] x) => (float[2,4,4] y) { y = MatMul (W, x) }", W=w), recipe=MINMAX)
    ctx.stats = {n: stats_of(-1, 1) for n in ctx.plan.activations}
    apply(graph, ChooseParams(), ctx=ctx)
    assert set(quantize_weight(w, ctx.params["W"]).ravel().tolist()) == {255}


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("g (float[2,4,4] x) => (float[2,4,4] y) { y = MatMul (x, W) }", (2, 4, 4)),
        ("g (float[3,2,5,4] x) => (float[3,2,5,6] y) { y = MatMul (x, W) }", (3, 2, 4, 6)),
        ("g (float[4] x) => (float y) { y = MatMul (x, W) }", (4,)),
    ],
)
def test_batched_weights_and_vectors_are_safe(text: str, shape: tuple[int, ...]) -> None:
    w = normal(*shape)
    w[..., :2] = abs(w).max()
    if len(shape) > 2:
        w[..., :2, :] = abs(w).max()
    graph, ctx = planned(build(text, W=w), recipe=MINMAX)
    ctx.stats = {n: stats_of(-1, 1) for n in ctx.plan.activations}
    apply(graph, ChooseParams(), ctx=ctx)
    codes = quantize_weight(w, ctx.params["W"]).astype(np.int32)
    columns = codes.reshape(-1, 1) if len(shape) == 1 else np.moveaxis(codes, -2, 0).reshape(shape[-2], -1)
    pairs = columns.reshape(-1, 2, columns.shape[1])
    assert np.maximum(pairs, 0).sum(axis=1).max() <= 128
    assert np.minimum(pairs, 0).sum(axis=1).min() >= -128


@pytest.mark.parametrize("target", ["tensorrt", "qnn"])
@pytest.mark.parametrize("kind", ["conv", "gemm", "matmul"])
def test_other_targets_have_no_such_processors(kind: str, target: str) -> None:
    codes, _ = codes_of(kind, np.ones(LAYERS[kind][2], np.float32), target=target)
    assert set(codes.ravel().tolist()) == {127}


@pytest.mark.parametrize("width", [{"bits": 4}, {"bits": 7}, {"type": "int4"}, {"type": "uint8", "symmetric": False}])
def test_other_widths_do_not_need_it(width: Any) -> None:
    w = np.ones(LAYERS["conv"][2], np.float32)
    w[:, :2] = -1
    codes, params = codes_of("conv", w, weights=width)
    low, high = params.spec.bounds
    assert codes.max() >= high - 1  # a zero point is a whole number
    assert codes.min() == (low if not params.spec.symmetric else -high)


@pytest.mark.parametrize("first", ["depthwise", "plain"])
def test_a_weight_shared_with_a_depthwise_convolution_is_safe_for_the_plain_one(first: str) -> None:
    """W of shape (4, 1, 2, 2): for one of the two convolutions neighbours are added, for the other they are not."""
    depthwise = "[d] a = Conv <group=4> (x, W)"
    plain = "s = Slice (x, zero, one, one) [p] b = Conv (s, W)"
    body = f"{depthwise} {plain}" if first == "depthwise" else f"{plain} {depthwise}"
    model = build(
        f"g (float[N,4,5,5] x) => (float[N,4,4,4] a, float[N,4,4,4] b) {{ {body} }}",
        W=np.ones((4, 1, 2, 2), np.float32), zero=np.array([0]), one=np.array([1]),
    )  # fmt: skip
    graph, ctx = planned(model, recipe=MINMAX)
    ctx.stats = {n: stats_of(-1, 1) for n in ctx.plan.activations}
    apply(graph, ChooseParams(), ctx=ctx)
    assert len({w.key for w in ctx.plan.weights}) == 1
    codes = quantize_weight(np.ones((4, 1, 2, 2), np.float32), ctx.params["W"])
    assert largest_pair(as_sums("conv", codes)) <= 128


def test_a_weight_read_in_both_orientations_is_safe_in_both() -> None:
    w = np.zeros((4, 4), np.float32)
    w[0, 0] = w[1, 0] = 1  # neighbours as they are, not when transposed
    w[3, 2] = -0.2
    model = build("""g (float[N,4] x) => (float[N,4] y) { [t] a = Gemm <transB=1> (x, W) [n] y = Gemm (a, W) }""", W=w)
    graph, ctx = planned(model, recipe={**MINMAX, "weights": {"granularity": "per_tensor"}})
    ctx.stats = {n: stats_of(-1, 1) for n in ctx.plan.activations}
    apply(graph, ChooseParams(), ctx=ctx)
    assert [p.key for p in ctx.plan.weights] == ["W", "W"]
    codes = quantize_weight(w, ctx.params["W"])
    assert max(largest_pair(codes), largest_pair(codes.T)) <= 128
