"""Views of a histogram that the range searches share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.algos import float8
from onnxq.spec import QType
from onnxq.stats import BINS, HALF, Histogram


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Running sums of the bin centres' powers; they make the squared error of a level one subtraction.

    All lengths are in units of the bin width, which keeps tiny and huge tensors inside float64.

    Attributes:
        width: The unit.
        count: shape (BINS + 1,), number of values in the bins before each edge.
        first: Same, sum of the centres.
        second: Same, sum of the squared centres.
    """

    width: float
    count: NDArray[np.float64]
    first: NDArray[np.float64]
    second: NDArray[np.float64]

    @staticmethod
    def of(histogram: Histogram) -> Moments:
        """Return the moments of a histogram."""
        center = np.arange(-HALF, HALF) + 0.5
        counts = histogram.counts.astype(np.float64)
        sums = np.zeros((3, BINS + 1))
        np.cumsum(counts, out=sums[0, 1:])
        np.cumsum(counts * center, out=sums[1, 1:])
        np.cumsum(counts * center * center, out=sums[2, 1:])
        return Moments(histogram.width, sums[0], sums[1], sums[2])

    def errors(
        self, scale: NDArray[np.float64], lowest: NDArray[np.int64], highest: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return the summed squared error of rounding to ``scale * m``, ``lowest <= m <= highest``.

        Args:
            scale: shape (N,), float64, > 0, one per candidate.
            lowest: shape (N,), int64, <= 0.
            highest: shape (N,), int64, >= 0.

        Returns:
            shape (N,), float64, in units of ``width ** 2``: good for comparing candidates.
        """
        from onnxq.algos.activation._kernels import level_errors

        out = np.empty(scale.shape, np.float64)
        level_errors(
            self.count, self.first, self.second, np.ascontiguousarray(scale / self.width), lowest, highest, out
        )
        return out

    def float8_errors(self, scale: NDArray[np.float64], qtype: QType) -> NDArray[np.float64]:
        """Return the summed squared error of rounding the bin centres to ``scale`` times a number of a float8 type.

        Args:
            scale: shape (N,), float64, > 0, one per candidate.
            qtype: The float8 type.

        Returns:
            As `errors`.
        """
        counts = np.diff(self.count)
        filled = np.flatnonzero(counts)
        center, weight = filled - HALF + 0.5, counts[filled]
        steps = (np.float64(one) for one in scale / self.width)
        rounded = (s * float8.round_to((center / s).astype(np.float32), qtype).astype(np.float64) for s in steps)
        return np.array([float(np.dot(weight, np.square(center - r))) for r in rounded])


def affine_levels(
    low: NDArray[np.float64], high: NDArray[np.float64], bounds: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return scale, lowest and highest level of asymmetric candidates, as `onnxq.algos.affine` would choose them.

    Args:
        low: shape (N,), <= 0.
        high: shape (N,), >= 0, ``high > low``.
        bounds: Smallest and largest code.
    """
    qmin, qmax = bounds
    scale = (high - low) / (qmax - qmin)
    zero_point = np.clip(np.rint(qmin - low / scale), qmin, qmax).astype(np.int64)
    return scale, qmin - zero_point, qmax - zero_point


def rebin(histogram: Histogram, low: float, high: float, bins: int) -> NDArray[np.float64]:
    """Count into `bins` equal bins over ``[low, high]``; a straddling bin is split in proportion.

    Args:
        histogram: Its values lie in ``[low, high]``.
        low: Exact smallest value.
        high: Exact largest value, > `low`.
        bins: How many bins to make.

    Returns:
        shape (bins,), float64, sums to ``histogram.total``.
    """
    edges = np.clip(histogram.edges(), low, high)
    running = np.concatenate([[0.0], np.cumsum(histogram.counts, dtype=np.float64)])
    # clipping makes the first and last occupied bins as wide as their data; drop the empty ones outside
    keep = np.flatnonzero(np.diff(edges) > 0)
    inner = slice(keep[0], keep[-1] + 2)
    running_inner = running[inner].copy()
    running_inner[0], running_inner[-1] = 0.0, running[-1]
    at = np.interp(np.linspace(low, high, bins + 1), edges[inner], running_inner)
    return np.diff(at)


def magnitudes(histogram: Histogram) -> NDArray[np.int64]:
    """Fold the negative half onto the positive one: counts of ``|x|``, shape (HALF,), bin ``i`` from ``i * width``."""
    return histogram.counts[HALF:] + histogram.counts[HALF - 1 :: -1]


def order_statistic(histogram: Histogram, rank: int) -> float:
    """Return the centre of the bin that holds the value of ascending `rank`, counted from 0."""
    index = int(np.searchsorted(np.cumsum(histogram.counts), rank, side="right"))
    return (min(index, BINS - 1) - HALF + 0.5) * histogram.width
