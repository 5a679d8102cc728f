"""SearchRanges: a range is judged behind the Clip that follows, and left to the histogram where none does."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.algos import activation as methods
from onnxq.algos.affine import fake_quantize, params_from_range
from onnxq.passes.calibrate import Calibrate
from onnxq.passes.choose_params import ChooseParams
from onnxq.passes.search_ranges import SearchRanges
from tests.graphs import apply, build, normal, run
from tests.passes.ptq import planned

SIX = {"zero": np.float32(0), "six": np.float32(6)}


def clipped(tail: str = "r = Clip (b, zero, six)", **values: Any) -> onnx.ModelProto:
    """A first layer whose output goes through a second one into a Clip."""
    return build(
        f"""g (float[N,1,8,8] x) => (float[N,2,8,8] y) {{
            [c1] a = Conv (x, W1)
            [c2] b = Conv (a, W2)
            {tail}
            [c3] y = Conv (r, W3) }}""",
        **({"W1": np.ones((1, 1, 1, 1), np.float32), "W2": np.ones((1, 1, 1, 1), np.float32),
            "W3": normal(2, 1, 1, 1)} | SIX | values),
    )  # fmt: skip


def outliers(count: int = 8) -> Any:
    """Values of order one and a few that are huge: the Clip cuts whatever they become behind the next layer."""
    x = np.abs(normal(count, 1, 8, 8)) * 2
    x[:, 0, 0, :2] = 400
    return x.astype(np.float32)


def searched(model: onnx.ModelProto, x: Any, *, threads: int = 1, recipe: Any = None) -> Any:
    graph, ctx = planned(model, data={"x": x}, threads=threads, recipe=recipe)
    apply(graph, Calibrate(), ctx=ctx)
    report = apply(graph, SearchRanges(), ctx=ctx)
    return graph, ctx, report


def test_outliers_that_a_clip_cuts_off_do_not_widen_the_range() -> None:
    x = outliers()
    _graph, ctx, _ = searched(clipped(), x)
    low, high = ctx.ranges["a"]
    assert high < 0.5 * 400
    mse = methods.find_range(ctx.stats["a"], ctx.plan.activations["a"].spec, methods.mse.MseConfig())
    assert mse[1] > 300
    assert low < 0.01


def test_the_range_that_is_chosen_is_better_behind_the_clip() -> None:
    x = outliers()
    _, ctx, _ = searched(clipped(), x)
    spec = ctx.plan.activations["a"].spec

    def error(bounds: tuple[float, float]) -> float:
        rounded = fake_quantize(x, params_from_range(*bounds, spec))
        return float(((np.clip(rounded, 0, 6) - np.clip(x, 0, 6)) ** 2).sum())

    mse = methods.find_range(ctx.stats["a"], spec, methods.mse.MseConfig())
    assert error(ctx.ranges["a"]) < 0.5 * error(mse)
    assert error(ctx.ranges["a"]) <= min(error((0, 400 * f)) for f in (1, 0.8, 0.6)) * 1.001


def test_the_model_gets_more_accurate_by_it() -> None:
    model, x = clipped(), outliers(16)
    errors = {}
    for method in ("output_mse", "mse"):
        result = onnxq.quantize(
            model, {"x": x}, recipe={"activations": {"method": method}, "refine": [], "skip": ["c1"]}
        )
        found, wanted = run(result.model, {"x": x})["y"], run(model, {"x": x})["y"]
        errors[method] = float(((found - wanted) ** 2).mean())
    assert errors["output_mse"] < 0.7 * errors["mse"]


@pytest.mark.parametrize("tail", ["r = Relu (b)", "r = Identity (b)", "r = Clip (b, zero)"])
def test_without_a_clip_that_cuts_at_the_top_the_histogram_decides(tail: str) -> None:
    graph, ctx, _ = searched(clipped(tail), outliers())
    spec = ctx.plan.activations["a"].spec
    mse = methods.find_range(ctx.stats["a"], spec, methods.mse.MseConfig())
    apply(graph, ChooseParams(), ctx=ctx)
    if "Clip" not in tail:
        assert ctx.ranges == {}
    expected = params_from_range(*mse, spec)
    assert float(ctx.params["a"].high) == pytest.approx(float(expected.high), rel=0.25)
    assert float(ctx.params["a"].high) > 300


def test_only_tensors_in_front_of_a_clip_are_searched() -> None:
    _, ctx, _ = searched(clipped(), outliers())
    assert set(ctx.ranges) == {"a"}  # `x` goes into c1, whose result no Clip reads; `r` into the last layer


@pytest.mark.parametrize("method", ["mse", "minmax", "percentile"])
def test_another_method_is_not_touched(method: str) -> None:
    _, ctx, report = searched(clipped(), outliers(), recipe={"activations": {"method": method}})
    assert ctx.ranges == {}
    assert report.notes == ()


def test_rules_may_leave_one_tensor_out() -> None:
    rules = [{"match": {"node": "c1"}, "activations": {"method": "minmax"}}]
    _, ctx, _ = searched(clipped(), outliers(), recipe={"rules": rules})
    assert ctx.ranges == {}


def test_residual_adds_and_pools_are_looked_through() -> None:
    model = build(
        """g (float[N,1,8,8] x) => (float[N,2,4,4] y) {
            [c0] z = Conv (x, W0)
            [c1] a = Conv (x, W1)
            [add] s = Add (a, z)
            [pool] p = MaxPool <kernel_shape=[2,2], strides=[2,2]> (s)
            [c2] b = Conv (p, W1)
            r = Clip (b, zero, six)
            [c3] y = Conv (r, W3) }""",
        W0=np.full((1, 1, 1, 1), 0.25, np.float32), W1=np.ones((1, 1, 1, 1), np.float32), W3=normal(2, 1, 1, 1), **SIX,
    )  # fmt: skip
    x = np.abs(normal(8, 1, 8, 8)) * 2
    x[:, 0, :2, :2] = 400
    _, ctx, _ = searched(model, x)
    assert set(ctx.ranges) == {"a", "z", "s"}
    assert ctx.plan.activations["p"].group == "s"
    assert all(high < 300 for _, high in ctx.ranges.values())


def test_the_limits_of_an_absorbed_clip_are_kept() -> None:
    model = build(
        """g (float[N,1,8,8] x) => (float[N,2,8,8] y) {
            [c1] a = Conv (x, W1) q = Clip (a, zero, six)
            [c2] b = Conv (q, W1) r = Clip (b, zero, six)
            [c3] y = Conv (r, W3) }""",
        W1=np.ones((1, 1, 1, 1), np.float32), W3=normal(2, 1, 1, 1), **SIX,
    )  # fmt: skip
    _, ctx, _ = searched(model, outliers())
    low, high = ctx.ranges["q"]
    assert 0 <= low < high <= 6


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_bits_for_any_threads_and_batches(threads: int) -> None:
    x = outliers(24)
    reference = searched(clipped(), x)[1].ranges
    graph, ctx = planned(clipped(), data=[{"x": x[i : i + 3]} for i in range(0, 24, 3)], threads=threads)
    apply(graph, Calibrate(), SearchRanges(), ctx=ctx)
    assert {k: np.array(v).tobytes() for k, v in ctx.ranges.items()} == {
        k: np.array(v).tobytes() for k, v in reference.items()
    }


def test_only_as_many_samples_are_run_as_asked_for() -> None:
    first, rest = outliers(4), np.abs(normal(60, 1, 8, 8, seed=3))
    recipe = {"activations": {"method": {"name": "output_mse", "samples": 4}}}
    given: list[int] = []

    class Data:
        def __iter__(self) -> Any:
            for i, row in enumerate(np.concatenate([first, rest])):
                given.append(i)
                yield {"x": row[None]}

    graph, ctx = planned(clipped(), data=Data(), recipe=recipe)
    apply(graph, Calibrate(), ctx=ctx)
    given.clear()
    apply(graph, SearchRanges(), ctx=ctx)
    assert max(given) < 16
    assert ctx.ranges["a"][1] < 200


def test_the_graph_is_not_changed_and_progress_is_told() -> None:
    graph, ctx = planned(clipped(), data={"x": outliers()})
    apply(graph, Calibrate(), ctx=ctx)
    before = graph.to_proto().SerializeToString()
    told: list[tuple[str, int, int | None]] = []
    ctx.progress = lambda *values: told.append(values)
    apply(graph, SearchRanges(), ctx=ctx)
    assert graph.to_proto().SerializeToString() == before
    assert told
    assert told[-1][1] == told[-1][2]


def test_a_batch_that_the_model_fixes_may_be_larger_than_the_samples() -> None:
    model = clipped()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 16
    _, ctx, _ = searched(model, outliers(32))
    assert ctx.ranges["a"][1] < 200


def test_a_few_values_do_not_decide_about_large_ones_they_do_not_hold() -> None:
    """Eight samples of 64 values each lack the tails; what they say about a small range is not to be trusted."""
    rng = np.random.default_rng(0)
    weights = {f"W{i}": (rng.normal(size=(64, 64)) / 8 * 1.4).astype(np.float32) for i in range(4)}
    model = build(
        """g (float[N,64] x) => (float[N,64] y) {
            [fc1] a = Gemm (x, W0) ar = Clip (a, zero, six)
            [fc2] b = Gemm (ar, W1) br = Clip (b, zero, six)
            [fc3] c = Gemm (br, W2) cr = Clip (c, zero, six)
            [fc4] y = Gemm (cr, W3) }""",
        **weights, **SIX,
    )  # fmt: skip
    calibration, evaluation = (rng.standard_t(4, size=(512, 64)).astype(np.float32) for _ in range(2))
    assert np.abs(calibration[:8]).max() < 0.5 * np.abs(calibration).max()
    test = {"x": evaluation}
    wanted, noise = run(model, test)["y"], {}
    for method in ("output_mse", "mse"):
        result = onnxq.quantize(model, {"x": calibration}, recipe={"activations": {"method": method}})
        noise[method] = float(((run(result.model, test)["y"] - wanted) ** 2).mean())
    assert noise["output_mse"] < 1.3 * noise["mse"]
