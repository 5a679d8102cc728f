"""HFMG (Histogram Feature Map Glutton): shrink the range greedily, keep the step with the least expected error.

Source: the published behaviour of AMCT. `find_range` starts from the streaming histogram, re-binned once over the exact
range of the data; `HfmgExact` merges the batches' own histograms the published way, which depends on their order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.algos._fields import check_choice
from onnxq.algos.activation._histogram import rebin
from onnxq.errors import CalibrationError
from onnxq.spec import QuantSpec
from onnxq.stats import TensorStats


@dataclass(frozen=True, slots=True)
class HfmgConfig:
    """Parameters of `find_range`; the default is AMCT's.

    Attributes:
        num_of_bins: 1024, 2048, 4096 or 8192.
    """

    num_of_bins: int = 4096

    def __post_init__(self) -> None:
        check_choice("num_of_bins", self.num_of_bins, (1024, 2048, 4096, 8192))


@dataclass(frozen=True, slots=True, eq=False)
class HfmgExact:
    """Histogram over the range of the batches seen so far, merged as published.

    Attributes:
        config: Parameters.
        low: Smallest value.
        high: Largest value.
        counts: shape (num_of_bins,), int64, equal bins over ``[low, high]``.
    """

    config: HfmgConfig
    low: float
    high: float
    counts: NDArray[np.int64]

    @staticmethod
    def from_array(x: NDArray[np.floating], config: HfmgConfig) -> HfmgExact:
        """Count the first batch.

        Raises:
            CalibrationError: If `x` is empty or holds NaN or infinity.
        """
        flat = _checked(x)
        low, high = float(flat.min()), float(flat.max())
        return HfmgExact(config, low, high, _count(flat, low, high, config.num_of_bins))

    def merge_batch(self, x: NDArray[np.floating]) -> HfmgExact:
        """Return the histogram with one more batch.

        The new values are counted in the merged range. An old bin goes to the new bin that contains it; one that
        straddles two gives ``int(count * share of the lower)`` to the lower and the rest to the upper.

        Raises:
            CalibrationError: If `x` is empty or holds NaN or infinity.
        """
        flat = _checked(x)
        low, high = min(self.low, float(flat.min())), max(self.high, float(flat.max()))
        bins = self.config.num_of_bins
        counts = _count(flat, low, high, bins)
        if low == high:
            return HfmgExact(self.config, low, high, counts + self.counts)
        old_width, width = (self.high - self.low) / bins, (high - low) / bins
        for i in np.flatnonzero(self.counts):
            begin, end = self.low + i * old_width - low, self.low + (i + 1) * old_width - low
            first = min(int(begin / width), bins - 1)
            last = min(int(end / width), bins - 1)
            count = int(self.counts[i])
            lower = count if first == last else int(count * ((first + 1) * width - begin) / (end - begin))
            counts[first] += lower
            counts[last] += count - lower
        return HfmgExact(self.config, low, high, counts)

    def find_range(self, spec: QuantSpec) -> tuple[float, float]:
        """Return the range of least expected error."""
        return _shrink(self.counts.astype(np.float64), self.low, self.high, spec.bits)


def find_range(stats: TensorStats, spec: QuantSpec, config: HfmgConfig) -> tuple[float, float]:
    """Return the range that the greedy shrink finds.

    Args:
        stats: Range and histogram of the tensor.
        spec: Decides the width; the search itself is the same for symmetric and asymmetric ones.
        config: Parameters.

    Raises:
        CalibrationError: If there is no histogram.
    """
    histogram = stats.require_histogram()
    if stats.low == stats.high:
        return stats.low, stats.high
    counts = rebin(histogram, stats.low, stats.high, config.num_of_bins)
    return _shrink(counts, stats.low, stats.high, spec.bits)


def _shrink(counts: NDArray[np.float64], low: float, high: float, bits: int) -> tuple[float, float]:
    from onnxq.algos.activation._kernels import greedy_shrink

    width = (high - low) / counts.size
    if low == high:
        return low, high
    step = max(math.ceil(round(float(counts.sum())) / 100000), 1)
    left, right = greedy_shrink(np.ascontiguousarray(counts), float(step), 1 << bits, width)
    return low + left * width, low + (right + 1) * width


def _checked(x: NDArray[np.floating]) -> NDArray[np.float64]:
    flat = np.asarray(x, np.float64).reshape(-1)
    if not flat.size or not np.isfinite(flat).all():
        raise CalibrationError("HFMG needs at least one value per batch, and finite ones")
    return flat


def _count(flat: NDArray[np.float64], low: float, high: float, bins: int) -> NDArray[np.int64]:
    if low == high:
        counts = np.zeros(bins, np.int64)
        counts[0] = flat.size
        return counts
    return np.histogram(flat, bins=bins, range=(low, high))[0].astype(np.int64)
