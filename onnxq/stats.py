"""What calibration knows about one tensor, in a form that merges without loss.

`Histogram` has linear bins whose width is a power of two and whose edges are multiples of that width. A histogram of
larger range therefore has bins that are unions of whole bins of the smaller one: growing adds integers, and `merge` is
associative, commutative and exact to the bit, whatever the batches, the threads or the workers were.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import CalibrationError
from onnxq.observers import Observed, ObserverRequest

T = TypeVar("T")

BINS = 16384
HALF = BINS // 2
#: 2**HALF_LOG2 == HALF: the number of times a histogram can be halved before one bin per sign is left.
HALF_LOG2 = 13
#: Exponents are clamped here: tensors smaller than 2**-100 count as zero for every 32-bit float consumer, and the
#: reciprocal of the bin width stays a normal float32.
MIN_EXPONENT = -100
MAX_EXPONENT = 128


def exponent_for(absmax: float) -> int:
    """Return the smallest exponent whose histogram holds magnitudes up to `absmax`.

    The range is half open, so ``absmax < 2**exponent``: a tensor whose largest magnitude is exactly ``2**k`` gets
    exponent ``k + 1``.

    Raises:
        CalibrationError: If `absmax` is negative, not finite, or not representable in float32.
    """
    if not (math.isfinite(absmax) and absmax >= 0):
        raise CalibrationError(f"a histogram needs a finite magnitude >= 0, got {absmax}")
    exponent = max(math.frexp(absmax)[1], MIN_EXPONENT) if absmax else MIN_EXPONENT
    if exponent > MAX_EXPONENT:
        raise CalibrationError(f"magnitude {absmax} does not fit into float32")
    return exponent


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """Counts of values in `BINS` linear bins over ``[-2**exponent, 2**exponent)``.

    Bin ``i`` covers ``[(i - HALF) * width, (i + 1 - HALF) * width)``; zero is the lower edge of bin `HALF`.

    Attributes:
        exponent: Binary logarithm of the range, `MIN_EXPONENT` to `MAX_EXPONENT`.
        counts: shape (BINS,), int64, >= 0; read-only.
    """

    exponent: int
    counts: NDArray[np.int64]

    def __post_init__(self) -> None:
        counts = np.array(self.counts, dtype=np.int64)
        if counts.shape != (BINS,):
            raise ValueError(f"a histogram has {BINS} bins, got counts of shape {counts.shape}")
        if not MIN_EXPONENT <= self.exponent <= MAX_EXPONENT:
            raise ValueError(f"exponent {self.exponent} outside [{MIN_EXPONENT}, {MAX_EXPONENT}]")
        counts.flags.writeable = False
        object.__setattr__(self, "counts", counts)

    @staticmethod
    def empty() -> Histogram:
        """Return the neutral element of `merge`."""
        return Histogram(MIN_EXPONENT, np.zeros(BINS, np.int64))

    @staticmethod
    def from_array(x: NDArray[np.floating], *, exponent: int | None = None) -> Histogram:
        """Count an array; the plain reference of `onnxq.algos.kernels.count_into`.

        Args:
            x: Any shape, finite.
            exponent: Range to use; the smallest that holds `x` by default.

        Raises:
            CalibrationError: If `x` holds NaN or infinity, or does not fit into the given range.
        """
        flat = np.asarray(x, dtype=np.float64).reshape(-1)
        absmax = float(np.abs(flat).max()) if flat.size else 0.0
        needed = exponent_for(absmax)
        exponent = needed if exponent is None else exponent
        if exponent < needed:
            raise CalibrationError(f"magnitude {absmax} is outside the histogram range 2**{exponent}")
        bins = np.floor(np.ldexp(flat, HALF_LOG2 - exponent)).astype(np.int64) + HALF
        return Histogram(exponent, np.bincount(bins, minlength=BINS))

    @property
    def width(self) -> float:
        """Width of one bin, a power of two."""
        return math.ldexp(1.0, self.exponent - HALF_LOG2)

    @property
    def total(self) -> int:
        """Number of counted values."""
        return int(self.counts.sum())

    def edges(self) -> NDArray[np.float64]:
        """Bin edges, shape (BINS + 1,), ascending, exact."""
        return np.arange(-HALF, HALF + 1, dtype=np.float64) * self.width

    def centers(self) -> NDArray[np.float64]:
        """Bin centres, shape (BINS,), ascending, exact."""
        return (np.arange(-HALF, HALF, dtype=np.float64) + 0.5) * self.width

    def nonzero(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return centres and counts of the bins that hold something, both shape (K,), ascending."""
        index = np.flatnonzero(self.counts)
        return self.centers()[index], self.counts[index]

    def grow(self, exponent: int) -> Histogram:
        """Return the same counts over the larger range ``2**exponent``; exact.

        Raises:
            ValueError: If `exponent` is smaller than the present one.
        """
        steps = exponent - self.exponent
        if steps < 0:
            raise ValueError(f"a histogram cannot shrink from exponent {self.exponent} to {exponent}")
        if steps == 0:
            return self
        run = 1 << min(steps, HALF_LOG2)
        merged = self.counts.reshape(-1, run).sum(axis=1)
        counts = np.zeros(BINS, np.int64)
        counts[HALF - merged.size // 2 : HALF + merged.size // 2] = merged
        return Histogram(exponent, counts)

    def merge(self, other: Histogram) -> Histogram:
        """Return the histogram of both data sets together; associative, commutative, exact."""
        exponent = max(self.exponent, other.exponent)
        return Histogram(exponent, self.grow(exponent).counts + other.grow(exponent).counts)

    def same_as(self, other: Histogram) -> bool:
        """Whether both hold the same counts over the same range."""
        return self.exponent == other.exponent and bool(np.array_equal(self.counts, other.counts))


#: Every finite float32 is a whole multiple of 2**-UNIT, so sums of them as whole numbers are exact.
UNIT = 149


@dataclass(frozen=True, slots=True)
class RoundQuantiles:
    """Order statistics of single rounds (runs of the model), added up over the rounds.

    The sums are whole numbers, so `merge` is associative, commutative and exact to the bit.

    Attributes:
        shares: Which order statistics: of n sorted values that at ``int(share * n)``, the last one at the most.
        sums: Sum over the rounds for each of `shares`, in units of ``2**-149``.
        rounds: How many rounds.
    """

    shares: tuple[float, ...]
    sums: tuple[int, ...]
    rounds: int = 0

    @staticmethod
    def empty(shares: tuple[float, ...]) -> RoundQuantiles:
        """Return the neutral element of `merge`."""
        return RoundQuantiles(shares, (0,) * len(shares))

    def ranks(self, count: int) -> tuple[int, ...]:
        """Positions, counted from 0, of the order statistics among so many ascending values."""
        return tuple(min(int(share * count), count - 1) for share in self.shares)

    def add(self, values: NDArray[np.float32]) -> RoundQuantiles:
        """Return the sums with one more round.

        Args:
            values: shape (len(shares),), the order statistics of the round, finite.
        """
        units = (int(math.ldexp(float(value), UNIT)) for value in values)
        return RoundQuantiles(self.shares, tuple(a + b for a, b in zip(self.sums, units, strict=True)), self.rounds + 1)

    def mean(self, share: float) -> float:
        """The order statistic for `share`, averaged over the rounds.

        Raises:
            CalibrationError: If it was not collected, or there was no round.
        """
        if share not in self.shares or not self.rounds:
            raise CalibrationError(f"no order statistics for the share {share:g} were collected; ask for QUANTILES")
        return float(Fraction(self.sums[self.shares.index(share)], self.rounds << UNIT))

    def merge(self, other: RoundQuantiles) -> RoundQuantiles:
        """Return the sums over the rounds of both; associative, commutative, exact.

        Raises:
            ValueError: If they are of other order statistics.
        """
        if self.shares != other.shares:
            raise ValueError(f"order statistics for {self.shares} and {other.shares} do not merge")
        sums = tuple(a + b for a, b in zip(self.sums, other.sums, strict=True))
        return RoundQuantiles(self.shares, sums, self.rounds + other.rounds)


@dataclass(frozen=True, slots=True)
class RoundPeaks:
    """Largest magnitudes of single rounds (runs of the model), added up over the rounds.

    The sum is a whole number, so `merge` is associative, commutative and exact to the bit.

    Attributes:
        sum: In units of ``2**-149``.
        rounds: How many rounds.
    """

    sum: int = 0
    rounds: int = 0

    def add(self, peak: float) -> RoundPeaks:
        """Return the sum with one more round; `peak` is a float32 number."""
        return RoundPeaks(self.sum + int(math.ldexp(peak, UNIT)), self.rounds + 1)

    @property
    def mean(self) -> float:
        """Mean over the rounds, of which there is one at least."""
        return float(Fraction(self.sum, self.rounds << UNIT))

    def merge(self, other: RoundPeaks) -> RoundPeaks:
        """Return the sum over the rounds of both; associative, commutative, exact."""
        return RoundPeaks(self.sum + other.sum, self.rounds + other.rounds)


@dataclass(frozen=True, slots=True, eq=False)
class TensorStats:
    """Statistics of one tensor over any number of samples.

    Optional parts are present in all the operands of a merge or in none. The neutral element has ``low = inf``,
    ``high = -inf`` and ``count = 0``.

    Attributes:
        low: Smallest value, exact.
        high: Largest value, exact.
        count: Number of values.
        histogram: Counts of the values.
        channel_absmax: shape (C,), float32, largest magnitude of each channel.
        channel_sum: shape (C,), float64. Its merge is a float addition: commutative, but associative only up to
            rounding, so whoever merges must do it in a fixed order (samples ascending).
        channel_count: Number of values behind each entry of `channel_sum`.
        quantiles: Order statistics of the rounds.
        peaks: Largest magnitudes of the rounds.
        observed: The user's observers that have seen it, each for a request of its own.
    """

    low: float
    high: float
    count: int
    histogram: Histogram | None = None
    channel_absmax: NDArray[np.float32] | None = None
    channel_sum: NDArray[np.float64] | None = None
    channel_count: int = 0
    quantiles: RoundQuantiles | None = None
    peaks: RoundPeaks | None = None
    observed: tuple[Observed, ...] | None = None

    def __post_init__(self) -> None:
        if self.count < 0 or self.channel_count < 0:
            raise ValueError(f"negative count: {self.count}, {self.channel_count}")
        if self.count and not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise CalibrationError(f"unusable range [{self.low}, {self.high}] of {self.count} values")
        # -0.0 becomes 0.0, otherwise min() and max() would depend on the order
        object.__setattr__(self, "low", self.low + 0.0)
        object.__setattr__(self, "high", self.high + 0.0)
        for name, dtype in (("channel_absmax", np.float32), ("channel_sum", np.float64)):
            value = getattr(self, name)
            if value is not None:
                value = np.array(value, dtype=dtype)
                value.flags.writeable = False
                object.__setattr__(self, name, value)

    @staticmethod
    def from_array(x: NDArray[np.floating]) -> TensorStats:
        """Range and histogram of one array.

        Raises:
            CalibrationError: If `x` is empty, or holds NaN or infinity.
        """
        flat = np.asarray(x).reshape(-1)
        if not flat.size:
            raise CalibrationError("an empty array has no statistics")
        return TensorStats(float(flat.min()), float(flat.max()), int(flat.size), Histogram.from_array(flat))

    @property
    def absmax(self) -> float:
        """Largest magnitude."""
        return max(abs(self.low), abs(self.high)) if self.count else 0.0

    @property
    def channel_mean(self) -> NDArray[np.float64]:
        """Mean of each channel, shape (C,).

        Raises:
            CalibrationError: If channel sums were not collected, or over no value.
        """
        if self.channel_sum is None or self.channel_count == 0:
            raise CalibrationError("no channel sums were collected for this tensor; ask for CHANNEL_MEAN")
        return self.channel_sum / self.channel_count

    def require_histogram(self) -> Histogram:
        """Return the histogram.

        Raises:
            CalibrationError: If none was collected or it is empty.
        """
        if self.histogram is None or self.count == 0:
            raise CalibrationError("this method needs a histogram and none was collected; ask for HISTOGRAM")
        return self.histogram

    def require_quantiles(self) -> RoundQuantiles:
        """Return the order statistics of the rounds.

        Raises:
            CalibrationError: If none were collected.
        """
        if self.quantiles is None or self.count == 0:
            raise CalibrationError("this method needs order statistics and none were collected; ask for QUANTILES")
        return self.quantiles

    def require_peaks(self) -> RoundPeaks:
        """Return the largest magnitudes of the rounds.

        Raises:
            CalibrationError: If none were collected.
        """
        if self.peaks is None or self.count == 0:
            raise CalibrationError("this method needs the magnitudes of all rounds; ask for PEAKS")
        return self.peaks

    def require_observed(self, request: ObserverRequest) -> Observed:
        """Return the observer that was asked for.

        Raises:
            CalibrationError: If there was none.
        """
        for observed in self.observed or ():
            if observed.request == request:
                return observed
        raise CalibrationError(f"observer {request.label} has not seen this tensor; ask for OBSERVED")

    def merge(self, other: TensorStats) -> TensorStats:
        """Return the statistics of both data sets together.

        Raises:
            ValueError: If only one side has an optional part, or the channel counts differ.
        """
        return TensorStats(
            low=min(self.low, other.low),
            high=max(self.high, other.high),
            count=self.count + other.count,
            histogram=_join("histogram", self.histogram, other.histogram, Histogram.merge),
            channel_absmax=_join("channel_absmax", self.channel_absmax, other.channel_absmax, _larger),
            channel_sum=_join("channel_sum", self.channel_sum, other.channel_sum, _sum),
            channel_count=self.channel_count + other.channel_count,
            quantiles=_join("quantiles", self.quantiles, other.quantiles, RoundQuantiles.merge),
            peaks=_join("peaks", self.peaks, other.peaks, RoundPeaks.merge),
            observed=_join("observed", self.observed, other.observed, _seen_by_both),
        )


def _join(name: str, left: T | None, right: T | None, merge: Callable[[T, T], T]) -> T | None:
    if left is None and right is None:
        return None
    if left is None or right is None:
        raise ValueError(f"only one side of the merge has {name}")
    return merge(left, right)


def _seen_by_both(left: tuple[Observed, ...], right: tuple[Observed, ...]) -> tuple[Observed, ...]:
    by_request = {observed.request: observed for observed in right}
    return tuple(one.merge(by_request[one.request]) for one in left if one.request in by_request)


def _larger(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    _check_shapes(left.shape, right.shape)
    return np.maximum(left, right)


def _sum(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    _check_shapes(left.shape, right.shape)
    return left + right


def _check_shapes(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    if left != right:
        raise ValueError(f"channel statistics of shapes {left} and {right} do not merge")
