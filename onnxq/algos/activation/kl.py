"""KL: the threshold whose clipped and quantized histogram diverges least from the original (TensorRT's calibrator).

Source: S. Migacz, "8-bit Inference with TensorRT", GTC 2017, slides 38 to 41; with `split_bins`, the published
behaviour of MindSpore Lite's KL. `find_range` works on the streaming histogram, `exact_range` on the values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.algos._fields import check_flag, check_whole
from onnxq.algos.activation._histogram import magnitudes
from onnxq.errors import CalibrationError
from onnxq.spec import QuantSpec
from onnxq.stats import HALF, TensorStats

_LEAST_KEPT = 0.5
"""Part of the counts that is kept at the least."""
_OCCUPIED = 1e-7
"""What every bin holds at the least where bins are split."""


@dataclass(frozen=True, slots=True)
class KlConfig:
    """Parameters of `find_range`.

    Attributes:
        num_bins: Number of bins between zero and the largest magnitude.
        ignore_zeros: Give the first bin the count of the second one. Zero has an exact code, so the zeros behind a Relu
            say nothing about where to clip, yet they would dominate the divergence.
        split_bins: Split a bin on the border of two levels between them, in proportion, and let all bins count as
            occupied, empty ones too. As published, each bin belongs to one level, and empty bins to none.
    """

    num_bins: int = 2048
    ignore_zeros: bool = True
    split_bins: bool = False

    def __post_init__(self) -> None:
        check_whole("num_bins", self.num_bins, 128, HALF)
        check_flag("ignore_zeros", self.ignore_zeros)
        check_flag("split_bins", self.split_bins)


def find_range(stats: TensorStats, spec: QuantSpec, config: KlConfig) -> tuple[float, float]:
    """Return the range clipped at the threshold of least divergence.

    The magnitudes are counted in `num_bins` bins up to the largest one, and the threshold clips both sides. A symmetric
    spec quantizes the magnitudes to ``2**(bits - 1)`` levels, as published. An asymmetric one to those of its
    ``2**bits`` levels that fall on the wider side of the clipped range: all of them for data on one side of zero, half
    for balanced data. Where no threshold has more bins than levels (from 12 bits on), nothing is clipped.

    Args:
        stats: Range and histogram of the tensor.
        spec: Decides the number of levels.
        config: Parameters.

    Raises:
        CalibrationError: If there is no histogram.
    """
    histogram = stats.require_histogram()
    if stats.absmax == 0:
        return stats.low, stats.high
    counts = _magnitude_bins(magnitudes(histogram), stats.absmax / histogram.width, config.num_bins)
    if config.ignore_zeros:
        counts[0] = counts[1]
    return _search(counts, stats.low, stats.high, spec, config)


def exact_range(x: NDArray[np.floating], spec: QuantSpec, config: KlConfig) -> tuple[float, float]:
    """Return the range for the values themselves: bins end where they should, and zeros alone are ignored.

    Args:
        x: All calibration values, any shape.
        spec: As for `find_range`.
        config: As for `find_range`.

    Raises:
        CalibrationError: If `x` is empty or holds NaN or infinity.
    """
    flat = np.asarray(x, np.float64).reshape(-1)
    if not flat.size or not np.isfinite(flat).all():
        raise CalibrationError("KL needs at least one value, and finite ones")
    low, high = float(flat.min()), float(flat.max())
    absmax = max(-low, high)
    if absmax == 0:
        return low, high
    counted = np.abs(flat[flat != 0] if config.ignore_zeros else flat)
    bins = np.minimum((counted / (absmax / config.num_bins)).astype(np.int64), config.num_bins - 1)
    counts = np.bincount(bins, minlength=config.num_bins).astype(np.float64)
    return _search(counts, low, high, spec, config)


def _search(
    counts: NDArray[np.float64], low: float, high: float, spec: QuantSpec, config: KlConfig
) -> tuple[float, float]:
    """The range for counts of the magnitudes up to the larger of ``-low`` and `high`."""
    absmax = max(-low, high)
    levels = _levels(low, high, spec, config.num_bins)
    if levels[-1] >= config.num_bins:
        return low, high
    kept = best_split_threshold(counts + _OCCUPIED, levels) if config.split_bins else best_threshold(counts, levels)
    clip = absmax * min((kept + 0.5) / config.num_bins, 1.0)
    return max(low, -clip), min(high, clip)


def best_threshold(counts: NDArray[np.float64], levels: NDArray[np.int64]) -> int:
    """Return how many bins to keep; of equal divergences the fewest.

    For ``i`` kept bins P is their histogram with everything beyond added to the last one, and Q spreads the counts of
    each of ``levels[i]`` runs of bins (run ``l`` starts at bin ``l * i // levels[i]``), without what lies beyond,
    evenly over the run's bins that are not empty in P. A run that is empty without the mass beyond has infinite
    divergence. What keeps less than half of the counts is no candidate: of values that are few and far apart the
    first alone, with all others clipped to it, would not diverge at all.

    Args:
        counts: shape (B,), float64, >= 0.
        levels: shape (B + 1,), int64, >= 1; fewer than ``levels[i]`` kept bins are no candidate.
    """
    from onnxq.algos.activation._kernels import divergences

    divergence = np.full(counts.size + 1, np.inf)
    divergences(np.ascontiguousarray(counts), levels, divergence)
    kept = np.concatenate([[0.0], np.cumsum(counts)])
    divergence[kept < _LEAST_KEPT * kept[-1]] = np.inf
    if not np.isfinite(divergence).any():
        return counts.size
    return int(np.argmin(divergence))


def best_split_threshold(counts: NDArray[np.float64], levels: NDArray[np.int64]) -> int:
    """Return how many bins to keep, fewer than all; of equal divergences the fewest.

    As `best_threshold`, but run ``l`` reaches from ``l * i / levels[i]`` to ``(l + 1) * i / levels[i]`` bins, with
    fractions: a bin on a border takes part in both runs, and its Q is the sum of its shares in both.

    Args:
        counts: shape (B,), float64, > 0.
        levels: shape (B + 1,), int64, >= 1; fewer than ``levels[i]`` kept bins are no candidate.
    """
    from onnxq.algos.activation._kernels import split_divergences

    divergence = np.full(counts.size + 1, np.inf)
    split_divergences(np.ascontiguousarray(counts), levels, divergence)
    return int(np.argmin(divergence))


def _levels(low: float, high: float, spec: QuantSpec, bins: int) -> NDArray[np.int64]:
    """Levels for the magnitudes if so many bins are kept, shape (bins + 1,)."""
    codes = 1 << spec.bits
    if spec.symmetric:
        return np.full(bins + 1, codes // 2)
    clip = max(-low, high) * np.arange(1, bins + 1) / bins
    span = np.minimum(clip, max(high, 0.0)) + np.minimum(clip, max(-low, 0.0))
    levels = np.clip(np.rint(codes * clip / span), codes // 2, codes).astype(np.int64)
    return np.concatenate([levels[:1], levels])


def _magnitude_bins(fine: NDArray[np.int64], absmax: float, bins: int) -> NDArray[np.float64]:
    """Count into `bins` equal bins over ``[0, absmax]``, lengths in fine bins; straddling bins are split."""
    edges = np.minimum(np.arange(fine.size + 1), absmax)
    last = int(np.ceil(absmax))
    running = np.concatenate([[0.0], np.cumsum(fine, dtype=np.float64)])
    running[last] = running[-1]  # a magnitude of exactly a power of two times the width sits in the bin above
    return np.diff(np.interp(np.linspace(0, absmax, bins + 1), edges[: last + 1], running[: last + 1]))
