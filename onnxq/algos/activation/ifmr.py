"""IFMR (Input Feature Map Reconstruction): search the clip that reconstructs the activation best.

Source: the published behaviour of AMCT, Ascend's model compression toolkit. A percentile gives the initial range, then
ratios of its upper end are tried and the one with the least mean squared error wins. AMCT keeps every calibration batch
in memory for that; `find_range` works on the histogram, `exact_range` on the values and is the reference for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.algos._fields import check_flag, check_number
from onnxq.algos.activation._histogram import Moments, order_statistic
from onnxq.errors import CalibrationError, RecipeError
from onnxq.spec import QuantSpec
from onnxq.stats import TensorStats

#: Summed squared error of candidates: ``f(scale, lowest level, highest level)``, arrays of shape (N,).
ErrorOf = Callable[[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class IfmrConfig:
    """Parameters of `find_range`; the defaults are AMCT's.

    Attributes:
        max_percentile: Share of the values not above the initial upper end, in (0.5, 1].
        min_percentile: Share of the values not below the initial lower end, in (0.5, 1].
        search_start: First ratio tried.
        search_end: Ratios stay below this.
        search_step: Distance of the ratios.
        two_sided: Search the lower end of an asymmetric range as well; AMCT's code does not, its manual says so.
    """

    max_percentile: float = 0.999999
    min_percentile: float = 0.999999
    search_start: float = 0.7
    search_end: float = 1.3
    search_step: float = 0.01
    two_sided: bool = False

    def __post_init__(self) -> None:
        check_number("max_percentile", self.max_percentile, 0.5, 1, open_low=True)
        check_number("min_percentile", self.min_percentile, 0.5, 1, open_low=True)
        check_number("search_start", self.search_start, 0, 1e6, open_low=True)
        check_number("search_end", self.search_end, 0, 1e6, open_low=True)
        check_number("search_step", self.search_step, 0, 1e6, open_low=True)
        check_flag("two_sided", self.two_sided)
        if self.search_start >= self.search_end:
            raise RecipeError(f"search_start {self.search_start} must be below search_end {self.search_end}")
        if self.search_step > self.search_end - self.search_start + 1e-12:
            raise RecipeError(f"search_step {self.search_step} is wider than the search range")
        if self._count() > 10_000:
            raise RecipeError(f"search_step {self.search_step} makes {self._count()} ratios; use at most 10000")

    def _count(self) -> int:
        return math.ceil((self.search_end - self.search_start) / self.search_step - 1e-9)

    def ratios(self) -> NDArray[np.float64]:
        """Ratios tried, ascending, the end excluded: 60 values 0.70 to 1.29 by default."""
        return self.search_start + self.search_step * np.arange(self._count(), dtype=np.float64)


def find_range(stats: TensorStats, spec: QuantSpec, config: IfmrConfig) -> tuple[float, float]:
    """Return the range with the least squared error on the histogram.

    The result is the range the codes cover, so its asymmetric ends are multiples of the scale. For a symmetric spec
    whose data reach farther below zero, ``high`` is a little smaller than ``-low``: `params_from_range` with
    `full_range` then uses the lowest code, as AMCT does.

    Args:
        stats: Range and histogram of the tensor.
        spec: Decides about symmetry and width.
        config: Parameters.

    Raises:
        CalibrationError: If there is no histogram.
    """
    histogram = stats.require_histogram()
    total = histogram.total
    from_top, from_bottom = _rank(config.max_percentile, total), _rank(config.min_percentile, total)
    high, low = stats.high, stats.low
    if from_top > 1:
        high = min(order_statistic(histogram, total - from_top), stats.high)
    if from_bottom > 1:
        low = max(order_statistic(histogram, from_bottom - 1), stats.low)
    return _search(min(low, 0.0), max(high, 0.0), Moments.of(histogram).errors, spec, config)


def exact_range(x: NDArray[np.floating], spec: QuantSpec, config: IfmrConfig) -> tuple[float, float]:
    """Return the range with the least squared error on the values themselves, as published.

    Args:
        x: All calibration values, any shape.
        spec: As for `find_range`.
        config: As for `find_range`.

    Raises:
        CalibrationError: If `x` is empty or holds NaN or infinity.
    """
    flat = np.asarray(x, np.float64).reshape(-1)
    if not flat.size or not np.isfinite(flat).all():
        raise CalibrationError("IFMR needs at least one value, and finite ones")
    ordered = np.sort(flat)
    high = float(ordered[flat.size - _rank(config.max_percentile, flat.size)])
    low = float(ordered[_rank(config.min_percentile, flat.size) - 1])

    def errors(
        scale: NDArray[np.float64], lowest: NDArray[np.int64], highest: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        candidates = zip(scale, lowest, highest, strict=True)
        return np.array([np.square(np.clip(np.rint(flat / s), a, b) * s - flat).sum() for s, a, b in candidates])

    return _search(min(low, 0.0), max(high, 0.0), errors, spec, config)


def _rank(percentile: float, total: int) -> int:
    """Position, counted from 1 at the outer end, of the value that is the initial clip."""
    return 1 if percentile == 1 else max(total - int(percentile * total), 1)


def _search(low: float, high: float, errors: ErrorOf, spec: QuantSpec, config: IfmrConfig) -> tuple[float, float]:
    if low == high:
        return low, high
    ratios = config.ratios()
    if spec.symmetric:
        return _search_symmetric(low, high, errors, spec, ratios)
    lows = low * ratios if config.two_sided and low < 0 else np.array([low])
    highs = high * ratios if high > 0 else np.array([high])
    lows, highs = (grid.ravel() for grid in np.meshgrid(lows, highs, indexing="ij"))
    scale = (highs - lows) / ((1 << spec.bits) - 1)
    lowest = np.rint(lows / scale).astype(np.int64)
    best = int(np.argmin(errors(scale, lowest, np.rint(highs / scale).astype(np.int64))))
    start = int(lowest[best])
    return start * float(scale[best]), (start + (1 << spec.bits) - 1) * float(scale[best])


def _search_symmetric(
    low: float, high: float, errors: ErrorOf, spec: QuantSpec, ratios: NDArray[np.float64]
) -> tuple[float, float]:
    half = 1 << (spec.bits - 1)
    below = high < -low
    clip = max(high, -low) * ratios
    top = half if below else half - 1
    scale = clip / top
    limit = np.full(ratios.shape, top, np.int64)
    best = int(np.argmin(errors(scale, -limit, limit)))
    reach = float(clip[best])  # equal ends to the last bit: a wider lower one would ask for the lowest code
    return -reach, float(scale[best]) * (half - 1) if below else reach
