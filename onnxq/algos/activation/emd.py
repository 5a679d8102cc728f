"""EMD: the part of the range whose rounded values have the mean and the standard deviation closest to the true ones.

Source: PaddleSlim, EMDObserver: ``|mean x - mean q| + |std x - std q|``. Here it is taken over all data together, and
from both sides of zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.algos._fields import check_number
from onnxq.algos.affine import params_from_range
from onnxq.errors import RecipeError
from onnxq.spec import QuantSpec
from onnxq.stats import TensorStats


@dataclass(frozen=True, slots=True)
class EmdConfig:
    """Parameters of `find_range`.

    Attributes:
        search_start: Smallest part of the range tried.
        search_end: Largest part tried.
        search_step: Distance of the parts.
    """

    search_start: float = 0.3
    search_end: float = 1.0
    search_step: float = 0.02

    def __post_init__(self) -> None:
        check_number("search_start", self.search_start, 0, 2, open_low=True)
        check_number("search_end", self.search_end, 0, 2, open_low=True)
        check_number("search_step", self.search_step, 0.001, 2)
        if self.search_start >= self.search_end:
            raise RecipeError(f"search_start {self.search_start} must be below search_end {self.search_end}")

    def parts(self) -> NDArray[np.float64]:
        """Parts tried, from `search_end` down."""
        count = math.floor((self.search_end - self.search_start) / self.search_step + 1e-9) + 1
        return self.search_end - self.search_step * np.arange(count, dtype=np.float64)


def find_range(stats: TensorStats, spec: QuantSpec, config: EmdConfig) -> tuple[float, float]:
    """Return the range of least distance; of equal ones the widest.

    Both ends shrink alike; for a symmetric spec they are those of the largest magnitude.

    Args:
        stats: Range and histogram of the tensor.
        spec: The codes.
        config: Parameters.

    Raises:
        CalibrationError: If there is no histogram.
    """
    values, counts = stats.require_histogram().nonzero()
    low, high = min(stats.low, 0.0), max(stats.high, 0.0)
    if low == high:
        return stats.low, stats.high
    if spec.symmetric:
        low, high = -stats.absmax, stats.absmax
    values = np.clip(values, stats.low, stats.high)  # centres of bins may lie beyond
    parts = config.parts()
    distances = [_distance(values, counts, low * part, high * part, spec) for part in parts]
    best = float(parts[int(np.argmin(distances))])
    return low * best, high * best


def _distance(
    values: NDArray[np.float64], counts: NDArray[np.int64], low: float, high: float, spec: QuantSpec
) -> float:
    params = params_from_range(low, high, spec)
    scale, zero = float(params.scale), int(params.zero_point)
    codes = np.clip(np.rint(values / scale) + zero, *spec.bounds)
    (mean, deviation), (coded_mean, coded_deviation) = (_moments(v, counts) for v in (values, (codes - zero) * scale))
    return abs(mean - coded_mean) + abs(deviation - coded_deviation)


def _moments(values: NDArray[np.float64], counts: NDArray[np.int64]) -> tuple[float, float]:
    total = float(counts.sum())
    mean = float((values * counts).sum()) / total
    return mean, math.sqrt(float(((values - mean) ** 2 * counts).sum()) / total)
