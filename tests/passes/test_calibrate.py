"""Calibrate: which tensors are measured and what of them, who is blamed for NaN, what is told on the way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxq.errors import CalibrationError, DataError
from onnxq.passes.calibrate import Calibrate
from onnxq.passes.choose_params import ChooseParams
from onnxq.plan import Plan
from onnxq.stats import Histogram
from tests.graphs import apply, build, normal, run
from tests.passes.ptq import planned

NET = """g (float[N,3,8,8] x) => (float[N,4] y) {
    [c1] a = Conv (x, W1)
    [relu] r = Relu (a)
    [pool] m = MaxPool <kernel_shape=[2,2], strides=[2,2]> (r)
    [c2] b = Conv (m, W2)
    [flat] f = Flatten (b)
    [fc] y = Gemm (f, W3) }"""


def net() -> Any:
    return build(NET, W1=normal(4, 3, 3, 3), W2=normal(2, 4, 3, 3), W3=normal(2, 4))


def test_every_planned_tensor_that_has_numbers_of_its_own_is_measured() -> None:
    x = normal(20, 3, 8, 8)
    graph, ctx = planned(net(), data={"x": x}, recipe={"activations": {"method": "mse"}})
    apply(graph, Calibrate(), ctx=ctx)
    # `a` is absorbed by the Relu, `m` and `f` only pass on what `r` and `b` hold, `y` is read by nobody
    assert set(ctx.stats) == {"x", "r", "b"}
    assert set(ctx.stats) < {"y", *ctx.plan.activations}
    assert ctx.stats["x"].require_histogram().same_as(Histogram.from_array(x))
    assert ctx.samples == 20
    assert ctx.stats["r"].count == 20 * 4 * 6 * 6
    assert ctx.stats["r"].low == 0


def test_measured_is_what_the_model_computes() -> None:
    model, x = net(), normal(6, 3, 8, 8)
    graph, ctx = planned(model, data={"x": x}, recipe={"activations": {"method": "minmax"}})
    apply(graph, Calibrate(), ctx=ctx)
    wide = type(model)()
    wide.CopyFrom(model)
    wide.graph.output.extend(type(model.graph.output[0])(name=n) for n in ("r", "b"))
    found = run(wide, {"x": x})
    for name in ("r", "b"):
        assert ctx.stats[name].low == pytest.approx(float(found[name].min()), rel=1e-5)
        assert ctx.stats[name].high == pytest.approx(float(found[name].max()), rel=1e-5)


@pytest.mark.parametrize(
    ("method", "histogram"),
    [
        ("minmax", False), ("percentile", True), ("kl", True), ("mse", True), ("output_mse", True), ("ifmr", True),
        ("removal_outlier", False),
    ],
)  # fmt: skip
def test_a_histogram_is_made_where_the_method_needs_one(method: str, histogram: bool) -> None:
    graph, ctx = planned(net(), data={"x": normal(4, 3, 8, 8)}, recipe={"activations": {"method": method}})
    apply(graph, Calibrate(), ctx=ctx)
    assert {s.histogram is not None for s in ctx.stats.values()} == {histogram}


def test_each_tensor_follows_its_own_method() -> None:
    rules = [{"match": {"node": "c1"}, "activations": {"method": "minmax"}}]
    recipe = {"activations": {"method": "mse"}, "rules": rules}
    graph, ctx = planned(net(), data={"x": normal(4, 3, 8, 8)}, recipe=recipe)
    apply(graph, Calibrate(), ctx=ctx)
    assert {n: s.histogram is not None for n, s in ctx.stats.items()} == {"x": False, "r": False, "b": True}


def test_channels_are_measured_in_front_of_depthwise_convolutions() -> None:
    model = build(
        """g (float[N,3,8,8] x) => (float[N,2,4,4] y) {
            [c1] a = Conv (x, W1) [clip] r = Clip (a, zero, six) [dw] d = Conv <group=4> (r, D)
            [c2] y = Conv (d, W2) }""",
        W1=normal(4, 3, 3, 3), D=normal(4, 1, 3, 3), W2=normal(2, 4, 1, 1), zero=np.float32(0), six=np.float32(6),
    )  # fmt: skip
    for channels in (True, False):
        graph, ctx = planned(model, data={"x": normal(4, 3, 8, 8)})
        apply(graph, Calibrate(channels=channels), ctx=ctx)
        have = {n for n, s in ctx.stats.items() if s.channel_absmax is not None}
        assert have == ({"r"} if channels else set())
    assert ctx.stats["d"].histogram is not None


def test_inputs_alone() -> None:
    model = build("g (float[N,4] x) => (float[N,2] y) { y = MatMul (x, W) }", W=normal(4, 2))
    x = normal(7, 4)
    graph, ctx = planned(model, data={"x": x}, recipe={"activations": {"method": "minmax"}})
    apply(graph, Calibrate(), ctx=ctx)
    assert set(ctx.stats) == {"x"}
    assert (ctx.stats["x"].low, ctx.stats["x"].high) == (x.min(), x.max())


def test_nothing_planned_needs_no_data() -> None:
    graph, ctx = planned(build("g (float[N,4] x) => (float[N,4] y) { y = Erf (x) }"))
    assert not ctx.plan
    apply(graph, Calibrate(), ctx=ctx)
    assert ctx.stats == {}
    ctx.plan = None
    assert Plan() == Plan()
    apply(graph, Calibrate(), ctx=ctx)
    assert ctx.stats == {}


def test_missing_data() -> None:
    graph, ctx = planned(net())
    message = r"activations need calibration data and none were given; give samples \(--data\), or ask for random"
    with pytest.raises(DataError, match=message):
        apply(graph, Calibrate(), ctx=ctx)


def test_the_first_node_that_gives_nan_is_named() -> None:
    model = build(
        """g (float[N,4] x) => (float[N,2] y) {
            [fc] a = MatMul (x, W1) [root] r = Sqrt (a) [after] s = Relu (r) [out] y = MatMul (s, W2) }""",
        W1=np.eye(4, dtype=np.float32),
        W2=normal(4, 2),
    )
    x = np.abs(normal(10, 4))
    x[7, 2] = -1
    graph, ctx = planned(model, data={"x": x})
    with pytest.raises(CalibrationError) as caught:
        apply(graph, Calibrate(), ctx=ctx)
    message = str(caught.value)
    assert message.startswith(
        "samples 0 to 9: tensor 's' holds NaN or infinity; the first node that gives such a value"
    )
    assert "Sqrt 'root'" in message
    assert "--skip" in message
    assert len(message.splitlines()) == 1


def test_an_infinite_input_is_blamed_on_the_input() -> None:
    x = normal(3, 3, 8, 8)
    x[1, 0, 0, 0] = np.inf
    graph, ctx = planned(net(), data={"x": x})
    with pytest.raises(CalibrationError, match=r"tensor 'x' holds NaN or infinity \(already in its input: see Conv"):
        apply(graph, Calibrate(), ctx=ctx)


def test_progress_is_told_with_the_total() -> None:
    told: list[tuple[str, int, int | None]] = []
    graph, ctx = planned(net(), data={"x": normal(50, 3, 8, 8)})
    ctx.progress = lambda *values: told.append(values)
    apply(graph, Calibrate(), ctx=ctx)
    assert {(what, total) for what, _, total in told} == {("calibrating", 50)}
    assert told[-1][1] == 50
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_the_graph_is_not_changed() -> None:
    graph, ctx = planned(net(), data={"x": normal(4, 3, 8, 8)})
    before = graph.to_proto().SerializeToString()
    report = apply(graph, Calibrate(channels=True), ctx=ctx)
    assert report.changed == 0
    assert graph.to_proto().SerializeToString() == before


OUTLIERS = {"activations": {"method": "removal_outlier"}}


def test_outliers_are_removed_sample_by_sample_whatever_the_batches() -> None:
    model, x = net(), normal(7, 3, 8, 8)
    wide = type(model)()
    wide.CopyFrom(model)
    wide.graph.output.extend(type(model.graph.output[0])(name=n) for n in ("r", "b"))
    found = []
    for size, threads in ((1, 1), (3, 2), (7, 3)):
        feeds = [{"x": x[i : i + size]} for i in range(0, len(x), size)]
        graph, ctx = planned(model, data=feeds, recipe=OUTLIERS)
        ctx.threads = threads
        apply(graph, Calibrate(), ctx=ctx)
        found.append({name: (s.low, s.high, s.count, s.quantiles) for name, s in ctx.stats.items()})
    assert found[0] == found[1] == found[2]
    values = [{"x": x[i : i + 1], **run(wide, {"x": x[i : i + 1]})} for i in range(len(x))]
    for name in ("x", "r", "b"):
        ordered = [np.sort(v[name].reshape(-1)) for v in values]
        quantiles = ctx.stats[name].require_quantiles()
        for share in (0.0001, 0.9999):
            expected = np.mean([s[int(share * s.size)] for s in ordered])
            assert quantiles.mean(share) == pytest.approx(float(expected), rel=1e-5, abs=1e-7)


def test_joined_tensors_get_the_widest_of_their_ranges() -> None:
    model = build(
        """g (float[N,3,8,8] x) => (float[N,2,6,6] y) {
            [c1] a = Conv (x, W1) [c2] b = Conv (x, W2) [cat] c = Concat <axis=1> (a, b) [c3] y = Conv (c, W3) }""",
        W1=normal(4, 3, 3, 3), W2=normal(4, 3, 3, 3, scale=50), W3=normal(2, 8, 1, 1),
    )  # fmt: skip
    graph, ctx = planned(model, data={"x": normal(5, 3, 8, 8)}, recipe=OUTLIERS)
    apply(graph, Calibrate(), ChooseParams(), ctx=ctx)
    assert ctx.plan.activations["a"].group == ctx.plan.activations["b"].group
    bounds = [ctx.stats["b"].require_quantiles().mean(share) for share in (0.0001, 0.9999)]
    assert float(ctx.params["a"].scale) == pytest.approx((bounds[1] - bounds[0]) / 255, rel=1e-5)
