"""The collector: the statistics of a slow loop in numpy, whatever the batches and the threads."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest

from onnxq.calib.engine import Collector
from onnxq.calib.feeds import Dim, InputInfo
from onnxq.calib.points import StatisticPoint, StatKind
from onnxq.calib.reductions import reductions_for
from onnxq.errors import CalibrationError, DataError
from onnxq.runtime import make_session
from onnxq.stats import Histogram, TensorStats
from tests.graphs import build, normal, session

EVERYTHING = StatKind.HISTOGRAM | StatKind.CHANNEL_ABSMAX | StatKind.CHANNEL_SUM

# Whole numbers everywhere: every sum is exact, so any order of additions gives the same bits.
WHOLE = """g (float[{batch},2,5,5] x) => (float[{batch},3,3,3] r) {{
    c = Conv (x, W, B)
    h = Mul (c, half)
    r = Relu (h) }}"""


def whole_model(batch: int | str = "N") -> Any:
    return build(
        WHOLE.format(batch=batch),
        W=np.rint(normal(3, 2, 3, 3, scale=3)),
        B=np.array([1, -40, 7], np.float32),
        half=np.float32(0.5),
    )


def whole_data(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(-9, 10, (count, 2, 5, 5)).astype(np.float32)


def chunked(x: Any, size: int) -> list[dict[str, Any]]:
    return [{"x": x[i : i + size]} for i in range(0, len(x), size)]


def collect(
    model: Any, feeds: Any, kinds: dict[str, StatKind], *, axis: int = 1, **options: Any
) -> dict[str, TensorStats]:
    names = {i.name for i in make_session(model, threads=1).inputs}
    taps = [n for n in kinds if n not in names]
    runner = make_session(model, threads=1, outputs=taps or None)
    points = [StatisticPoint(name, kind, axis) for name, kind in kinds.items()]
    return Collector(runner, points, runner.inputs, **options).run(feeds)


def reference(model: Any, x: Any, names: list[str]) -> dict[str, Any]:
    """All values of some tensors, from one sample after the other, every node as it is written."""
    wide = type(model)()
    wide.CopyFrom(model)
    del wide.graph.output[:]
    wide.graph.output.extend(type(model.graph.output[0])(name=n) for n in names)
    runner = session(wide)
    rows = [runner.run(names, {"x": x[i : i + 1]}) for i in range(len(x))]
    return {n: np.concatenate([row[k] for row in rows]) for k, n in enumerate(names)}


def bits(stats: dict[str, TensorStats]) -> dict[str, tuple[Any, ...]]:
    """Statistics in a form that compares bit by bit."""
    return {
        name: (
            np.float64(s.low).tobytes(),
            np.float64(s.high).tobytes(),
            s.count,
            None if s.histogram is None else (s.histogram.exponent, s.histogram.counts.tobytes()),
            None if s.channel_absmax is None else s.channel_absmax.tobytes(),
            None if s.channel_sum is None else s.channel_sum.tobytes(),
            s.channel_count,
        )
        for name, s in stats.items()
    }


# ---- numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "workers"), [("N", 1), ("N", 2), (1, 2), (4, 1)])
def test_statistics_equal_a_slow_reference(batch: int | str, workers: int) -> None:
    model, x = whole_model(batch), whole_data(44)
    found = collect(model, chunked(x, 11), {"x": EVERYTHING, "c": EVERYTHING, "r": EVERYTHING}, workers=workers)
    values = {"x": x, **reference(whole_model(), x, ["c", "r"])}
    assert list(found) == ["x", "c", "r"]
    for name, stats in found.items():
        v = values[name]
        assert (stats.low, stats.high, stats.count) == (v.min(), v.max(), v.size)
        expected = Histogram.from_array(v)
        assert stats.require_histogram().same_as(expected)
        assert stats.require_histogram().total == v.size
        np.testing.assert_array_equal(stats.channel_absmax, np.abs(v).max(axis=(0, 2, 3)))
        np.testing.assert_array_equal(stats.channel_sum, v.sum(axis=(0, 2, 3), dtype=np.float64))
        assert stats.channel_count == v.size // v.shape[1]
    assert found["r"].low == 0
    assert found["c"].low < -20


def test_a_histogram_grows_with_data_that_grow() -> None:
    x = whole_data(40) * np.float32(2.0) ** np.arange(-20, 20).reshape(-1, 1, 1, 1).astype(np.float32)
    stats = collect(whole_model(), chunked(x, 3), {"x": StatKind.HISTOGRAM}, workers=2, batch=1)["x"]
    assert stats.require_histogram().same_as(Histogram.from_array(x))
    assert stats.high == x.max()


def test_only_what_was_asked_for_is_collected() -> None:
    kinds = {"c": StatKind.RANGE, "h": StatKind.HISTOGRAM, "r": StatKind.CHANNEL_ABSMAX, "x": StatKind.CHANNEL_SUM}
    found = collect(whole_model(), chunked(whole_data(3), 1), kinds)
    have = {
        n: (s.histogram is not None, s.channel_absmax is not None, s.channel_sum is not None) for n, s in found.items()
    }
    assert have == {
        "c": (False, False, False),
        "h": (True, False, False),
        "r": (False, True, False),
        "x": (False, False, True),
    }
    assert all(s.count for s in found.values())


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1])
def test_channels_are_on_the_axis_that_is_named(axis: int) -> None:
    x = whole_data(4)
    model = whole_model(4)
    stats = collect(model, chunked(x, 4), {"x": StatKind.CHANNEL_ABSMAX | StatKind.CHANNEL_SUM}, axis=axis)["x"]
    others = tuple(i for i in range(4) if i != axis % 4)
    np.testing.assert_array_equal(stats.channel_absmax, np.abs(x).max(axis=others))
    np.testing.assert_array_equal(stats.channel_mean, x.mean(axis=others, dtype=np.float64))


def test_a_tensor_without_that_axis_is_one_channel() -> None:
    model = build("g (float[N,2] x) => (float s) { s = ReduceMax <keepdims=0> (x) }")
    stats = collect(model, [{"x": np.float32([[1, -3], [2, 0]])}], {"s": EVERYTHING})["s"]
    assert stats.channel_absmax is not None
    assert stats.channel_absmax.tolist() == [2]
    assert stats.count == 1


# ---- the same bits -----------------------------------------------------------------------------


ROUGH = """g (float[{batch},3,9,9] x) => (float[{batch},4] y) {{
    c = Conv <pads=[1,1,1,1]> (x, W)
    r = Relu (c)
    p = GlobalAveragePool (r)
    f = Flatten (p)
    y = Gemm <transB=1> (f, F) }}"""


def rough_model(batch: int | str) -> Any:
    return build(ROUGH.format(batch=batch), W=normal(5, 3, 3, 3), F=normal(4, 5))


@pytest.mark.parametrize("batch", ["N", 1, 8])
def test_batches_and_workers_do_not_change_a_bit(batch: int | str) -> None:
    model, x = rough_model(batch), normal(72, 3, 9, 9)
    kinds = {"x": EVERYTHING, "c": EVERYTHING, "r": EVERYTHING, "y": EVERYTHING}
    found = [
        bits(collect(model, chunked(x, size), kinds, workers=workers, axis=1))
        for workers, size in [(1, 1), (1, 8), (1, 32), (2, 1), (2, 8), (2, 72), (3, 32), (3, 5)]
    ]
    assert all(other == found[0] for other in found[1:])


def test_a_chosen_batch_does_not_depend_on_the_feeds_either() -> None:
    model, x = rough_model("N"), normal(40, 3, 9, 9)
    found = [
        bits(collect(model, chunked(x, size), {"y": EVERYTHING}, batch=7, workers=w))
        for size, w in ((1, 1), (8, 2), (40, 3))
    ]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("size", [1, 5, 12])
def test_a_batch_fixed_at_one_is_fed_one_sample_at_a_time(size: int) -> None:
    seen: list[tuple[int, ...]] = []
    runner = _Wrapped(make_session(rough_model(1), threads=1, outputs=["y"]), lambda feed: seen.append(feed["x"].shape))
    points = [StatisticPoint("y", StatKind.RANGE)]
    found = Collector(runner, points, runner.inputs, workers=2).run(chunked(normal(12, 3, 9, 9), size))
    assert set(seen) == {(1, 3, 9, 9)}
    assert found["y"].count == 12 * 4


def test_every_sample_counts_once_where_the_batch_is_free() -> None:
    found = collect(rough_model("N"), chunked(normal(101, 3, 9, 9), 17), {"y": StatKind.RANGE}, workers=3)
    assert found["y"].count == 101 * 4


# ---- inputs ------------------------------------------------------------------------------------


def test_models_with_several_inputs_and_one_that_is_the_same_for_all() -> None:
    model = build(
        """g (float[N,3] a, float[N,3] b, float[2,3] table, int64[N] pick) => (float[N,3] y) {
            s = Sub (a, b)
            t = Gather <axis=0> (table, pick)
            y = Mul (s, t) }"""
    )
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-9, 9, (10, 3)).astype(np.float32) for _ in range(2))
    table, pick = np.float32([[1, 2, 4], [0, -1, 8]]), rng.integers(0, 2, 10)
    feeds = [{"a": a[i : i + 5], "b": b[i : i + 5], "table": table, "pick": pick[i : i + 5]} for i in (0, 5)]
    kinds = {"a": StatKind.RANGE, "b": StatKind.HISTOGRAM, "s": StatKind.RANGE, "y": EVERYTHING}
    found = collect(model, feeds, kinds, workers=2)
    y = (a - b) * table[pick]
    assert (found["y"].low, found["y"].high, found["y"].count) == (y.min(), y.max(), y.size)
    assert (found["s"].low, found["s"].high) == ((a - b).min(), (a - b).max())
    assert found["b"].require_histogram().same_as(Histogram.from_array(b))
    assert found["a"].count == a.size


def test_graph_inputs_alone_need_no_run() -> None:
    x = whole_data(6)
    runner = _Wrapped(make_session(whole_model(), threads=1), lambda feed: pytest.fail("nothing had to be run"))
    points = [StatisticPoint("x", StatKind.RANGE)]
    stats = Collector(runner, points, runner.inputs).run(chunked(x, 2))["x"]
    assert (stats.low, stats.high, stats.count) == (x.min(), x.max(), x.size)


def test_samples_of_different_sizes() -> None:
    model = build("g (float[N,1,H,W] x) => (float[N,1,P,Q] y) { y = Relu (x) }")
    feeds = [{"x": normal(2, 1, s, s + 1, seed=s)} for s in (3, 5, 4, 5)]
    found = collect(model, feeds, {"y": EVERYTHING}, workers=2)["y"]
    assert found.count == sum(f["x"].size for f in feeds)
    assert found.high == max(f["x"].max() for f in feeds)


# ---- what goes wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("workers", [1, 2])
def test_nan_and_infinity_are_named(bad: float, workers: int) -> None:
    x = normal(20, 3, 9, 9)
    x[13, 1, 4, 4] = bad
    with pytest.raises(CalibrationError) as caught:
        collect(rough_model(1), chunked(x, 4), {"c": StatKind.HISTOGRAM, "y": StatKind.RANGE}, workers=workers)
    message = str(caught.value)
    assert message.startswith("sample 13: tensor 'c' holds NaN or infinity")
    assert "remove the samples or mend the model" in message


def test_the_range_of_samples_of_a_batch_is_named_and_the_feed_explained() -> None:
    x = normal(20, 3, 9, 9)
    x[13] = np.nan
    asked: list[tuple[int, ...]] = []

    def explain(feed: Any) -> str:
        asked.append(feed["x"].shape)
        return " (because)"

    with pytest.raises(CalibrationError, match=r"^samples 10 to 14: tensor 'x' holds NaN or infinity \(because\); "):
        collect(rough_model("N"), chunked(x, 3), {"x": StatKind.RANGE}, batch=5, explain=explain)
    assert asked == [(5, 3, 9, 9)]


def test_the_first_bad_sample_is_named_whoever_found_it() -> None:
    x = normal(64, 3, 9, 9)
    x[[9, 30, 31, 50]] = np.inf
    for _ in range(5):
        with pytest.raises(CalibrationError, match=r"^sample 9: tensor 'y'"):
            collect(rough_model(1), chunked(x, 16), {"y": StatKind.RANGE}, workers=3)


@pytest.mark.parametrize("feeds", [[], iter(())])
def test_no_data(feeds: Any) -> None:
    with pytest.raises(CalibrationError, match="not a single sample"):
        collect(rough_model("N"), feeds, {"y": StatKind.RANGE})


def test_a_tensor_that_is_no_float32() -> None:
    model = build("g (float[N,4] x) => (int64[N] y) { y = ArgMax <axis=1, keepdims=0> (x) }")
    with pytest.raises(CalibrationError, match="'y' is no float32 tensor"):
        collect(model, [{"x": normal(2, 4)}], {"y": StatKind.RANGE})


def test_a_feed_that_does_not_fit() -> None:
    with pytest.raises(DataError, match=r"ONNX Runtime failed on this feed \(.*\[.*\]\): "):
        collect(rough_model("N"), [{"x": normal(2, 4, 9, 9)}], {"y": StatKind.RANGE}, workers=2)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("after", [0, 1, 7])
def test_a_reader_that_fails_leaves_no_threads(workers: int, after: int) -> None:
    def feeds() -> Any:
        yield from chunked(normal(after, 3, 9, 9), 1)
        raise DataError("file 7 is broken")

    before = set(threading.enumerate())
    with pytest.raises(DataError, match=r"^file 7 is broken$"):
        collect(rough_model("N"), feeds(), {"y": StatKind.RANGE}, workers=workers, batch=2)
    assert set(threading.enumerate()) <= before


def test_a_bad_sample_leaves_no_threads_and_stops_the_reader() -> None:
    x = normal(400, 3, 9, 9)
    x[3] = np.nan
    given: list[int] = []

    def feeds() -> Any:
        for index, feed in enumerate(chunked(x, 1)):
            given.append(index)
            yield feed

    before = set(threading.enumerate())
    with pytest.raises(CalibrationError, match=r"^sample 3:"):
        collect(rough_model("N"), feeds(), {"y": StatKind.RANGE}, workers=2, batch=1)
    assert set(threading.enumerate()) <= before
    assert len(given) < 50


# ---- cost --------------------------------------------------------------------------------------


class _Wrapped:
    """A session that tells of each run."""

    def __init__(self, real: Any, before: Any, after: Any = None) -> None:
        self._real, self._before, self._after = real, before, after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def run(self, names: Any, feed: Any) -> Any:
        self._before(feed)
        found = self._real.run(names, feed)
        if self._after is not None:
            self._after(found)
        return found


@pytest.mark.parametrize("workers", [1, 2])
def test_activations_are_not_kept(workers: int) -> None:
    alive: weakref.WeakSet[_Held] = weakref.WeakSet()
    most: list[int] = []
    lock = threading.Lock()

    def after(found: list[Any]) -> None:
        with lock:
            for index, array in enumerate(found):
                found[index] = array.view(_Held)
                alive.add(found[index])
            gc.collect(0)
            most.append(len(alive))

    runner = _Wrapped(make_session(rough_model("N"), threads=1, outputs=["c", "r", "y"]), lambda feed: None, after)
    points = [StatisticPoint(n, EVERYTHING) for n in ("c", "r", "y")]
    found = Collector(runner, points, runner.inputs, workers=workers, batch=1).run(chunked(normal(80, 3, 9, 9), 8))
    assert found["y"].count == 320
    assert len(most) >= 80
    assert max(most) <= 3 * (workers + 1)
    assert not alive


class _Held(np.ndarray):
    """An array that can be told from any other."""

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)

    def __eq__(self, other: object) -> bool:  # type: ignore[override]
        return self is other


def test_the_reader_is_read_a_few_batches_ahead_only() -> None:
    given = 0
    ahead: list[int] = []

    def feeds() -> Any:
        nonlocal given
        for feed in chunked(normal(200, 3, 9, 9), 1):
            given += 1
            yield feed

    collect(
        rough_model("N"), feeds(), {"y": StatKind.RANGE}, workers=2, batch=1,
        on_samples=lambda done: ahead.append(given - done),
    )  # fmt: skip
    assert given == 200
    assert max(ahead) <= 8


def test_each_sample_is_run_once_but_for_the_first() -> None:
    rows: list[int] = []
    runner = _Wrapped(
        make_session(rough_model("N"), threads=1, outputs=["y"]), lambda feed: rows.append(len(feed["x"]))
    )
    points = [StatisticPoint("y", StatKind.RANGE)]
    Collector(runner, points, runner.inputs, workers=2).run(chunked(normal(100, 3, 9, 9), 10))
    assert 100 <= sum(rows) <= 101


@pytest.mark.parametrize(("workers", "batch"), [(1, 1), (2, 4), (3, 0)])
def test_progress_counts_the_samples_in_order(workers: int, batch: int) -> None:
    told: list[int] = []
    threads: set[int] = set()

    def report(done: int) -> None:
        told.append(done)
        threads.add(threading.get_ident())

    collect(
        rough_model("N"), chunked(normal(30, 3, 9, 9), 7), {"y": StatKind.RANGE},
        workers=workers, batch=batch, on_samples=report,
    )  # fmt: skip
    assert told == sorted(told)
    assert told[-1] == 30
    if batch:
        assert told == [min(30, batch * (i + 1)) for i in range(len(told))]
    assert threads == {threading.get_ident()}


def test_inputs_may_come_from_elsewhere() -> None:
    """What the graph says of its inputs decides about the batch, not what ONNX Runtime says."""
    model = rough_model("N")
    runner = make_session(model, threads=1, outputs=["y"])
    seen: list[int] = []
    wrapped = _Wrapped(runner, lambda feed: seen.append(len(feed["x"])))
    inputs = [InputInfo("x", np.float32, (2, 3, 9, 9))]
    Collector(wrapped, [StatisticPoint("y", StatKind.RANGE)], inputs).run(chunked(normal(8, 3, 9, 9), 8))
    assert set(seen) == {2}


@pytest.mark.parametrize("shape", [("N", 3, 5, 4), ("N", 3, "h", None), (None, 3, 5, 4), ("other", 3, 5, 4)])
@pytest.mark.parametrize("opset", [11, 13, 17, 18])
def test_extremes_found_in_the_graph_equal_those_of_the_values(opset: int, shape: tuple[Dim, ...]) -> None:
    model = build(
        "g (float[N,3,5,4] x) => (float[N,3,5,4] y) { a = Neg(x) b = Relu(x) y = Add(a, b) }", opset=opset, ir_version=6
    )
    points = [
        StatisticPoint("a", StatKind.RANGE),
        StatisticPoint("b", StatKind.CHANNEL_ABSMAX),
        StatisticPoint("y", StatKind.CHANNEL_ABSMAX),
    ]
    inputs = [InputInfo("x", np.float32, ("N", 3, 5, 4))]
    reduced = reductions_for(points, dict.fromkeys("aby", shape), inputs, {"b"})
    assert reduced.tensors == {"a", "b", "y"}
    session = make_session(model, threads=1, outputs=reduced.outputs, extra=list(reduced.nodes(opset)))
    x = normal(9, 3, 5, 4)
    found = Collector(session, points, inputs, workers=2, reduced=reduced).run([{"x": x[:4]}, {"x": x[4:]}])
    relu = np.maximum(x, 0)
    assert (found["a"].low, found["a"].high, found["a"].count) == (-x.max(), -x.min(), x.size)
    assert (found["b"].low, found["b"].high) == (0.0, relu.max())
    np.testing.assert_array_equal(found["b"].channel_absmax, relu.max(axis=(0, 2, 3)))
    np.testing.assert_array_equal(found["y"].channel_absmax, abs(relu - x).max(axis=(0, 2, 3)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_extremes_do_not_hide_what_is_not_finite(value: float) -> None:
    model = build("g (float[N,2,9,9] x) => (float[N,2,9,9] y) { y = Identity(x) a = Neg(y) }", check=False)
    points = [StatisticPoint("a", StatKind.RANGE)]
    inputs = [InputInfo("x", np.float32, ("N", 2, 9, 9))]
    reduced = reductions_for(points, {"a": ("N", 2, 9, 9)}, inputs)
    session = make_session(model, threads=1, outputs=reduced.outputs, extra=list(reduced.nodes(17)))
    for place in (0, 40, 161):
        x = normal(1, 2, 9, 9)
        x.reshape(-1)[place] = value
        with pytest.raises(CalibrationError, match="'a' holds NaN or infinity"):
            Collector(session, points, inputs, reduced=reduced).run([{"x": x}])


def test_histograms_of_large_tensors_count_some_values_of_each_sample() -> None:
    model = build("g (float[N,1,256,512] x) => (float[N,1,256,512] y) { y = Neg(x) }")
    session = make_session(model, threads=1)
    inputs = [InputInfo("x", np.float32, ("N", 1, 256, 512))]
    x = normal(3, 1, 256, 512)
    x[1, 0, 0, 1] = 99.0  # between two that are counted
    points = [StatisticPoint("y", StatKind.HISTOGRAM)]
    found = [Collector(session, points, inputs, batch=batch).run([{"x": x}])["y"] for batch in (1, 3)]
    for stats in found:
        assert (stats.low, stats.count) == (-99.0, x.size)
        assert abs(stats.require_histogram().total - x.size / 5) <= 3
    assert found[0].require_histogram().same_as(found[1].require_histogram())


@pytest.mark.parametrize("channels", [320, 768, 1001])
def test_thinned_histograms_see_every_channel_of_the_last_axis(channels: int) -> None:
    model = build(f"g (float[N,256,{channels}] x) => (float[N,256,{channels}] y) {{ y = Neg(x) }}")
    inputs = [InputInfo("x", np.float32, ("N", 256, channels))]
    points = [StatisticPoint("y", StatKind.HISTOGRAM)]
    session = make_session(model, threads=1)
    for channel in (0, 1, 3, channels - 1):
        x = np.zeros((1, 256, channels), np.float32)
        x[..., channel] = -1.0
        counts = Collector(session, points, inputs).run([{"x": x}])["y"].require_histogram().counts
        assert counts[counts.size // 2 :][1:].sum() >= 256 // 8


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_rows_given_out_by_the_graph_make_the_histogram(workers: int, nonnegative: bool) -> None:
    model = build("g (float[N,8,64,128] x) => (float[N,8,64,128] y) { y = Relu(x) }")
    inputs = [InputInfo("x", np.float32, ("N", 8, 64, 128))]
    points = [StatisticPoint("y", StatKind.HISTOGRAM)]
    reduced = reductions_for(points, {"y": ("N", 8, 64, 128)}, inputs, {"y"} if nonnegative else ())
    assert set(reduced.rows) == {"y"}
    session = make_session(model, threads=1, outputs=reduced.outputs, extra=list(reduced.nodes(17)))
    x = normal(5, 8, 64, 128) * np.array([1, 4, 0.1, 9, 2], np.float32).reshape(-1, 1, 1, 1)
    x[2, 3, 1, 7] = 77.0  # in a row that is not counted
    found = Collector(session, points, inputs, workers=workers, reduced=reduced, batch=1).run([{"x": x}])["y"]
    relu = np.maximum(x, 0)
    assert (found.low, found.high, found.count) == (0.0, 77.0, x.size)
    histogram = found.require_histogram()
    assert histogram.same_as(Histogram.from_array(relu[:, :, ::4], exponent=histogram.exponent))


def test_small_and_old_models_give_whole_tensors_out() -> None:
    inputs = [InputInfo("x", np.float32, ("N", 8, 64, 128))]
    points = [StatisticPoint("y", StatKind.HISTOGRAM)]
    assert not reductions_for(points, {"y": ("N", 8, 16, 127)}, inputs).items
    assert not reductions_for(points, {"y": ("N", 8, 64, 128)}, inputs, opset=9).items
    assert not reductions_for(points, {"y": ("N", 512, 4, 128)}, inputs).items
    assert not reductions_for(points, {"y": ("N", 8, "h", 128)}, inputs).items
