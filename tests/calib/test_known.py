"""Statistics that were measured before: what they can stand for, and that nothing more is given than was asked."""

from __future__ import annotations

import numpy as np

from onnxq.calib.known import KnownStats, unite
from onnxq.calib.points import StatisticPoint, StatKind
from onnxq.stats import Histogram, RoundPeaks, RoundQuantiles, TensorStats

BOTH = StatKind.HISTOGRAM | StatKind.CHANNEL_ABSMAX
X = np.linspace(-1, 2, 24, dtype=np.float32)


def stats(**more: object) -> TensorStats:
    return TensorStats(-1.0, 2.0, X.size, **more)  # type: ignore[arg-type]


def known(point: StatisticPoint, found: TensorStats, nonnegative: tuple[str, ...] = ()) -> KnownStats:
    result = KnownStats(3)
    result.add([point], {point.tensor: found}, nonnegative)
    return result


def test_no_more_is_given_than_was_asked_for() -> None:
    full = stats(histogram=Histogram.from_array(X), channel_absmax=np.ones(2, np.float32))
    memory = known(StatisticPoint("t", BOTH), full)
    only_range = memory.take(StatisticPoint("t", StatKind.RANGE))
    assert only_range is not None
    assert (only_range.low, only_range.high, only_range.count) == (-1, 2, 24)
    assert only_range.histogram is None and only_range.channel_absmax is None  # noqa: PT018
    counted = memory.take(StatisticPoint("t", StatKind.HISTOGRAM))
    assert counted is not None and counted.channel_absmax is None  # noqa: PT018
    assert counted.require_histogram().same_as(Histogram.from_array(X))


def test_what_was_not_measured_is_not_known() -> None:
    memory = known(StatisticPoint("t", StatKind.RANGE), stats())
    points = [
        StatisticPoint("t", StatKind.RANGE),
        StatisticPoint("t", StatKind.HISTOGRAM),
        StatisticPoint("u", StatKind.RANGE),
        StatisticPoint("t", StatKind.RANGE, axis=-1),
    ]
    assert memory.missing(points) == points[1:]


def test_a_smallest_value_that_nobody_looked_at_is_not_taken_for_one() -> None:
    point = StatisticPoint("t", StatKind.RANGE)
    assert known(point, stats(), ("t",)).take(point) is None
    assert known(point, stats(), ("t",)).take(point, ["t"]) is not None
    assert known(point, stats()).take(point, ["t"]) is None


def test_order_statistics_are_picked_out() -> None:
    found = stats(quantiles=RoundQuantiles((0.1, 0.5, 0.9), (1, 2, 3), 4), peaks=RoundPeaks(5, 4))
    memory = known(StatisticPoint("t", StatKind.QUANTILES | StatKind.PEAKS, shares=(0.1, 0.5, 0.9)), found)
    picked = memory.take(StatisticPoint("t", StatKind.QUANTILES, shares=(0.1, 0.9)))
    assert picked is not None
    assert picked.quantiles == RoundQuantiles((0.1, 0.9), (1, 3), 4)
    assert picked.peaks is None
    assert memory.take(StatisticPoint("t", StatKind.QUANTILES, shares=(0.2,))) is None


def test_points_of_one_tensor_are_united() -> None:
    points = [
        StatisticPoint("t", StatKind.QUANTILES, shares=(0.5,)),
        StatisticPoint("u", StatKind.RANGE),
        StatisticPoint("t", StatKind.QUANTILES | StatKind.HISTOGRAM, shares=(0.1,)),
        StatisticPoint("u", StatKind.CHANNEL_SUM, axis=-1),
    ]
    assert unite(points) == [
        StatisticPoint("t", StatKind.QUANTILES | StatKind.HISTOGRAM, shares=(0.1, 0.5)),
        StatisticPoint("u", StatKind.RANGE),
    ]
