"""Models that take turns: the order, what the times mean, and what is refused."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import onnx
import pytest

from onnxq.errors import DataError, ModelError
from onnxq.graph import GraphModel
from onnxq.report.benchmark import REST, Benchmark, Clock, Interval, Timing, alternate, benchmark
from tests.graphs import build, normal

RELU = "g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }"


class FakeTime:
    """Time that passes only when something is run or waited for."""

    def __init__(self):
        self.seconds = 0.0
        self.calls = []
        self.rests = []

    @property
    def clock(self):
        return Clock(lambda: self.seconds, self.rest)

    def rest(self, seconds):
        self.rests.append(seconds)
        self.calls.append("rest")

    def task(self, name, *durations):
        """Something that takes the durations in turn."""
        left = itertools.cycle(durations)

        def run():
            self.calls.append(name)
            self.seconds += next(left)

        return run


def test_models_take_turns_after_a_warm_up_of_each_and_a_rest_in_front_of_each_turn():
    time = FakeTime()
    turns, repeats = alternate([[time.task("a", 1.0)], [time.task("b", 3.0)]], rounds=2, warm_up=2, clock=time.clock)
    # behind the warm-up one run says how many make a turn; in a turn the first run does not count
    assert "".join(c[0] for c in time.calls) == "aaabbb" + "raa" + "rbb" + "raa" + "rbb"
    assert turns == [[1000.0, 1000.0], [3000.0, 3000.0]]
    assert repeats == [1, 1]
    assert time.rests == [REST] * 4


def test_short_runs_are_repeated_until_a_turn_is_long_enough_to_be_measured():
    time = FakeTime()
    turns, repeats = alternate([[time.task("a", 0.001)]], rounds=3, warm_up=0, clock=time.clock)
    assert repeats == [5]
    assert turns[0] == pytest.approx([1.0, 1.0, 1.0])
    assert time.calls.count("a") == 1 + 3 * (1 + 5)


def test_feeds_are_taken_in_turn_and_are_the_same_for_all_models_of_a_round():
    time = FakeTime()
    runs = [[time.task(f"{name}{k}", 1.0) for k in range(2)] for name in "ab"]
    alternate(runs, rounds=3, warm_up=0, clock=time.clock)
    measured = [call for call in time.calls[2:] if call != "rest"]
    assert measured[::2] == ["a0", "b0", "a1", "b1", "a0", "b0"]


def test_progress_is_told_once_a_round():
    told = []
    time = FakeTime()
    alternate([[time.task("a", 1.0)]], rounds=3, clock=time.clock, progress=lambda *step: told.append(step))
    assert told == [("measuring", 0, 3), ("measuring", 1, 3), ("measuring", 2, 3)]


@pytest.mark.parametrize("count", [*range(1, 13), 30])
def test_the_interval_of_a_median_covers_it_as_often_as_it_says(count):
    """The median lies between two order statistics unless too few values lie on one side of it."""
    found = Interval.of_median([float(k) for k in range(count)])
    rank = int(found.low)
    assert found.high == count - 1 - rank
    coverage = sum(math.comb(count, k) for k in range(rank + 1, count - rank)) / 2**count
    assert found.coverage == pytest.approx(coverage)
    if count >= 6:
        assert found.coverage >= 0.95
        narrower = sum(math.comb(count, k) for k in range(rank + 2, count - rank - 1)) / 2**count
        assert narrower < 0.95
    else:
        assert rank == 0


def test_ratios_are_of_turns_in_the_same_round():
    """The machine gets slower from round to round, and one turn is disturbed: the median of ratios sees neither."""
    drift = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
    fast = (0.5, 1.0, 1.5, 20.0, 2.5, 3.0, 3.5)
    (ratio,) = Benchmark((Timing("a", drift, 1, 4), Timing("b", fast, 1, 4)), 1, 0).ratios
    assert (ratio.name, ratio.median) == ("b", 0.5)
    assert (ratio.interval.low, ratio.interval.high) == (0.5, 5.0)
    assert ratio.verdict == "unclear"


@pytest.mark.parametrize(
    ("turns", "verdict"),
    [
        ([2.0] * 10, "slower"),
        ([0.9] * 10, "faster"),
        ([0.9, 1.2] * 5, "unclear"),
        ([0.5] * 5, "unclear"),  # five turns cannot be sure of anything to 95 %
    ],
    ids=["slower", "faster", "both", "few"],
)
def test_a_verdict_needs_an_interval_that_does_not_hold_one(turns, verdict):
    first = Timing("a", (1.0,) * len(turns), 1, 1)
    (ratio,) = Benchmark((first, Timing("b", tuple(turns), 1, 1)), 1, 0).ratios
    assert ratio.verdict == verdict


def test_median_quartiles_spread_and_throughput():
    timing = Timing("a", (4.0, 1.0, 2.0, 3.0, 5.0), 7, 8)
    assert timing.median == 3.0
    assert timing.quartiles == (2.0, 4.0)
    assert timing.spread == pytest.approx(2 / 3)
    assert timing.throughput == pytest.approx(8 / 0.003)
    assert Timing("a", (4.0,), 1, 1).quartiles == (4.0, 4.0)


def test_models_and_files_are_measured_and_told_in_json(tmp_path):
    model = build(RELU)
    onnx.save(model, tmp_path / "m.onnx")
    feed = {"x": normal(3, 4)}
    found = benchmark([tmp_path / "m.onnx", GraphModel.from_proto(model)], [feed], threads=1, rounds=2, samples=3)
    content = json.loads(json.dumps(found.to_dict()))
    assert [m["name"] for m in content["models"]] == [str(tmp_path / "m.onnx"), "model 2"]
    assert all(len(m["turns_ms"]) == 2 and min(m["turns_ms"]) > 0 for m in content["models"])
    assert content["models"][0]["samples_per_second"] == pytest.approx(3000 / content["models"][0]["median_ms"])
    assert (content["rounds"], content["threads"], len(content["ratios"])) == (2, 1, 1)


def test_each_model_is_fed_its_own_element_type():
    half = "g (float16[N, 4] x) => (float16[N, 4] y) { y = Neg(x) }"
    models = [GraphModel.from_proto(build(text)) for text in (RELU, half)]
    found = benchmark(models, [{"x": normal(1, 4)}], threads=1, rounds=1, names=["float", "half"])
    assert [t.name for t in found.timings] == ["float", "half"]


def test_feeds_a_model_does_not_take_are_refused_with_its_name():
    other = build("g (float[N, 4] z) => (float[N, 4] y) { y = Relu(z) }")
    models = [GraphModel.from_proto(build(RELU)), GraphModel.from_proto(other)]
    with pytest.raises(DataError, match=r"^model 2 does not take what the first model takes: .*'x' is not an input"):
        benchmark(models, [{"x": normal(1, 4)}], rounds=1)


@pytest.mark.parametrize("what", ["models", "feeds", "rounds"])
def test_nothing_to_measure_is_refused(what):
    full = {"models": [GraphModel.from_proto(build(RELU))], "feeds": [{"x": np.zeros((1, 4), np.float32)}], "rounds": 1}
    given = full | {what: 0 if what == "rounds" else []}
    with pytest.raises(DataError, match="one model, one feed and one round at least"):
        benchmark(given["models"], given["feeds"], rounds=given["rounds"])


def test_a_file_that_is_no_model_is_refused_with_its_name(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match=r"bad\.onnx"):
        benchmark([tmp_path / "bad.onnx"], [{"x": normal(1, 4)}], rounds=1)
