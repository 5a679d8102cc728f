"""Percentile: cut the same share of values off each end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxq.algos._fields import check_flag, check_number
from onnxq.algos.activation._histogram import magnitudes, order_statistic
from onnxq.spec import QuantSpec
from onnxq.stats import TensorStats


@dataclass(frozen=True, slots=True)
class PercentileConfig:
    """Parameters of `find_range`.

    Attributes:
        percentile: Share of the values, in percent, kept at each end: 99.99 lets one value in 10,000 lie above the
            range and one in 10,000 below it. For a symmetric spec it is the share of the magnitudes.
        both_ends: For a symmetric spec too, cut each end by itself; the larger magnitude of the two then decides, as
            in PaddleSlim's HistObserver.
    """

    percentile: float = 99.99
    both_ends: bool = False

    def __post_init__(self) -> None:
        check_number("percentile", self.percentile, 50, 100, open_low=True)
        check_flag("both_ends", self.both_ends)


def find_range(stats: TensorStats, spec: QuantSpec, config: PercentileConfig) -> tuple[float, float]:
    """Return the range between two order statistics, exact to one bin width.

    With N values and ``k = floor(N * (1 - percentile / 100))`` values cut off an end, the bound is the (k+1)-th
    outermost value. Without anything to cut it is the exact minimum or maximum, and so is the inner end of data on one
    side of zero: cutting there gains nothing, because zero belongs to every range.

    Args:
        stats: Range and histogram of the tensor.
        spec: Decides between two ends and one magnitude.
        config: Parameters.

    Raises:
        CalibrationError: If there is no histogram.
    """
    histogram = stats.require_histogram()
    total = histogram.total
    cut = int(np.floor(total * (1 - config.percentile / 100) + 1e-9))
    if cut == 0:
        return stats.low, stats.high
    if spec.symmetric and not config.both_ends:
        index = int(np.searchsorted(np.cumsum(magnitudes(histogram)), total - 1 - cut, side="right"))
        clip = min((index + 0.5) * histogram.width, stats.absmax)
        return max(stats.low, -clip), min(stats.high, clip)
    low, high = stats.low, stats.high
    if stats.low < 0:
        low = min(max(order_statistic(histogram, cut), stats.low), stats.high)
    if stats.high > 0:
        high = max(min(order_statistic(histogram, total - 1 - cut), stats.high), stats.low)
    return low, high
