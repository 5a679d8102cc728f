"""PaddleSlim's observers to the letter, with what is odd about them, batch by batch in the order of the data.

They are observers as any user can write them (see `onnxq.observers`), and a recipe names them so:
``onnxq.dialects.paddle.strict:MSE``. None keeps activations. A threshold t stands for the range (-t, t): a step of
``t / 127`` at 8 bits. Where tensors share a scale, the widest of their ranges is taken.

Source: PaddleSlim, paddleslim/quant/observers; Paddle, python/paddle/quantization.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Counts = NDArray[np.float64]

_UPSAMPLED = 64
_TINY = 1e-8


class Ranged(Protocol):
    """Anything that has a range."""

    def range(self) -> tuple[float, float]:
        """Its lower and its upper end."""
        ...


@dataclass(frozen=True)
class Widest:
    """The union of several observers' ranges."""

    parts: tuple[Ranged, ...]

    def range(self) -> tuple[float, float]:
        """The lowest and the highest end."""
        ends = [part.range() for part in self.parts]
        return min(low for low, _ in ends), max(high for _, high in ends)

    def merge(self, other: Ranged) -> Widest:
        """With one more."""
        return Widest((*self.parts, other))


class Joined(ABC):
    """Base of observers that are merged by taking the wider range."""

    @abstractmethod
    def range(self) -> tuple[float, float]:
        """The lower and the upper end."""

    def merge(self, other: Ranged) -> Widest:
        """Both."""
        return Widest((self, other))


class Threshold(Joined):
    """Base of observers that choose a threshold."""

    threshold = _TINY

    def range(self) -> tuple[float, float]:
        """Both ends."""
        clip = abs(self.threshold) or _TINY
        return -clip, clip


def top_code(quant_bits: int) -> int:
    """The largest code: a threshold over this is the step."""
    return int((1 << (quant_bits - 1)) - 1)


class AbsMax(Threshold):
    """The largest magnitude; it begins at 1e-7."""

    threshold = 1e-7

    def observe(self, x: Array) -> None:
        """See a batch."""
        self.threshold = max(self.threshold, float(np.abs(x).max()))


class AVG(Threshold):
    """Mean over batches of the mean over samples of their largest magnitudes: in short batches a sample counts more."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._batches = 0

    def observe(self, x: Array) -> None:
        """See a batch, samples along axis 0."""
        peaks = np.abs(x.reshape(len(x), -1)).max(axis=1) if x.ndim else np.abs(x)
        self._sum += float(peaks.mean(dtype=np.float64))
        self._batches += 1
        self.threshold = self._sum / self._batches


class Searched(Threshold):
    """Base of MSE and EMD: 35 candidates in every batch. The least loss is kept, the threshold it belongs to is not.

    A batch whose candidates are all worse than an earlier batch's best leaves its own largest value behind.
    """

    def __init__(self, quant_bits: int = 8) -> None:
        self._top = top_code(quant_bits)
        self._least = math.inf

    def observe(self, x: Array) -> None:
        """See a batch."""
        largest = self.largest(x) or _TINY
        self.threshold = largest
        for part in parts():
            step = np.float32(part * largest / self._top)
            rounded = np.clip(np.rint(x / step), -self._top - 1, self._top) * step
            loss = self.loss(x, rounded)
            if loss <= self._least:
                self._least, self.threshold = loss, part * largest

    @abstractmethod
    def largest(self, x: Array) -> float:
        """What candidates are parts of."""

    @abstractmethod
    def loss(self, x: Array, rounded: Array) -> float:
        """What is made small."""


def parts() -> Iterator[float]:
    """0.3, 0.32 and so on up to 0.98: by rounding, the last sum lies above 1."""
    part = 0.3
    while part <= 1.0:
        yield part
        part += 0.02


class MSE(Searched):
    """The threshold of least mean squared error."""

    def largest(self, x: Array) -> float:
        """The largest magnitude."""
        return float(np.abs(x).max())

    def loss(self, x: Array, rounded: Array) -> float:
        """Mean of the squared differences."""
        return float(np.square(x - rounded).mean(dtype=np.float64))


class EMD(Searched):
    """The threshold of the closest mean and standard deviation, sought below the largest value: no negative is seen."""

    def largest(self, x: Array) -> float:
        """The largest value."""
        return float(x.max())

    def loss(self, x: Array, rounded: Array) -> float:
        """Difference of the means plus that of the standard deviations."""
        unbiased = 1 if x.size > 1 else 0
        mean = abs(float(x.mean(dtype=np.float64)) - float(rounded.mean(dtype=np.float64)))
        spread = (float(v.std(dtype=np.float64, ddof=unbiased)) for v in (x, rounded))
        return mean + abs(next(spread) - next(spread))


class Bins(Joined):
    """Base of Hist and KL: counts between the smallest and the largest value, spread anew where the range grows.

    A batch of equal values is ignored. Growing splits each bin into 64 and joins as many of these as the new range
    takes, whose upper end is moved so that this comes out even: counts become fractions.
    """

    def __init__(self, bins_count: int) -> None:
        self._bins = bins_count
        self.counts: Counts = np.zeros(bins_count)
        self.low = self.high = 0.0
        self._empty = True

    @property
    def width(self) -> float:
        """Width of a bin."""
        return (self.high - self.low) / self._bins

    def observe(self, x: Array) -> None:
        """See a batch."""
        low, high = float(x.min()), float(x.max())
        if low == high:
            return
        if self._empty:
            self.low, self.high, self._empty = low, high, False
        elif low < self.low or high > self.high:
            self._grow(min(low, self.low), max(high, self.high))
        self.counts = self.counts + np.histogram(x, self._bins, (self.low, self.high))[0]

    def _grow(self, low: float, high: float) -> None:
        fine = self.width / _UPSAMPLED
        joined = math.ceil((high - low) / (self._bins * fine))
        start = round((self.low - low) / fine)
        grid = np.zeros(max(self._bins * joined, start + self._bins * _UPSAMPLED))
        grid[start : start + self._bins * _UPSAMPLED] = np.repeat(self.counts, _UPSAMPLED)
        self.counts = grid[: self._bins * joined].reshape(self._bins, joined).sum(axis=1) / _UPSAMPLED
        self.low, self.high = low, low + joined * self._bins * fine


class Hist(Bins):
    """Both ends cut where the counts, added up, reach the wanted share; half a bin below the edge.

    Unsigned and asymmetric, the range has 256 steps at 8 bits, one more than there are between the codes.
    """

    def __init__(
        self,
        quant_bits: int = 8,
        bins_count: int = 2048,
        percent: float = 0.999,
        sign: bool = True,
        symmetric: bool = True,
    ) -> None:
        super().__init__(bins_count)
        self._percent = percent
        self._symmetric = symmetric
        self._missing = 0 if sign else 1
        self._steps = (1 << quant_bits) - 1

    def range(self) -> tuple[float, float]:
        """Both ends, zero between them."""
        if self._empty:
            return -_TINY, _TINY
        reached = np.cumsum(self.counts) / self.counts.sum()
        shares = (1 - self._percent, self._percent)
        low, high = (self.low + (int(np.argmax(reached >= share)) - 0.5) * self.width for share in shares)
        low, high = min(low, 0.0), max(high, 0.0)
        if self._symmetric:
            return -max(-low, high), max(-low, high)
        return low, low + (high - low) * self._steps / (self._steps + self._missing)


class KL(Bins):
    """The threshold of least divergence between signed counts and their rounding, measured from the smallest value.

    It means something for values from 0 on only. Half of the bins at the least are kept.
    """

    def __init__(self, quant_bits: int = 8, bins_count: int = 2048) -> None:
        super().__init__(bins_count)
        self._levels = top_code(quant_bits)

    def range(self) -> tuple[float, float]:
        """Both ends."""
        if self._empty:
            return -_TINY, _TINY
        first = int((self._bins - 1) * 0.5)
        candidates = [kept for kept in range(first, self._bins) if self.counts[kept - 1] > 0]
        if candidates:
            kept = min(candidates, key=self._divergence)
        else:
            kept = next((bin_ for bin_ in range(first, 0, -1) if self.counts[bin_] > 0), 0)
        clip = (kept + 0.5) * self.width
        return -clip, clip

    def _divergence(self, kept: int) -> float:
        own = self.counts[:kept].copy()
        own[-1] += self.counts[kept:].sum()
        starts = np.arange(self._levels) * (kept // self._levels)
        sizes = np.diff(np.append(starts, kept))
        inside = np.add.reduceat(self.counts[:kept], starts)
        places = np.add.reduceat((own > 0).astype(np.float64), starts)
        level = np.repeat(np.divide(inside, places, out=np.zeros_like(inside), where=places > 0), sizes)
        found = own > 0
        p, q = own[found], level[found]
        total = float(own.sum())
        return float((p * (np.log(q.sum() * p) - np.log(total * q))).sum()) / total
