"""How far two models' outputs are apart: streaming, in float64, so that memory does not grow with the samples."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import DataError

Array = NDArray[Any]

BLOCK = 1 << 18
"""How many elements are widened to float64 at a time."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """How far one tensor is from its reference.

    Attributes:
        count: How many elements were compared.
        sqnr_db: ``10 log10(sum(ref**2) / sum((ref - got)**2))``; infinite where both are equal, minus
            infinity where the reference is zero throughout or a value is not finite in one of them only.
        cosine: ``sum(ref * got) / sqrt(sum(ref**2) * sum(got**2))``; 1 where both are zero throughout, 0
            where one is, NaN where a value is not finite in one of them only.
        max_abs: Largest ``abs(ref - got)``.
        mean_abs: Mean of ``abs(ref - got)``.
        peak: Largest ``abs(ref)``.
        not_finite: How many elements are NaN or infinite in one and not the same in the other.
    """

    count: int
    sqnr_db: float
    cosine: float
    max_abs: float
    mean_abs: float
    peak: float
    not_finite: int = 0

    @property
    def identical(self) -> bool:
        """Whether there is no difference at all."""
        return self.max_abs == 0.0

    def to_dict(self) -> dict[str, object]:
        """Numbers for JSON; None where one is infinite or not defined."""
        values = ("sqnr_db", "cosine", "max_abs", "mean_abs", "peak")
        finite = {key: value if math.isfinite(value := getattr(self, key)) else None for key in values}
        return {"count": self.count, "identical": self.identical, **finite, "not_finite": self.not_finite}


class ErrorMeter:
    """Compares a tensor with its reference, batch after batch.

    NaN against NaN and an infinity against the same infinity count as equal and stay out of the sums.
    """

    def __init__(self) -> None:
        self._count = 0
        self._reference = 0.0
        self._got = 0.0
        self._product = 0.0
        self._noise = 0.0
        self._gap = 0.0
        self._worst = 0.0
        self._peak = 0.0
        self._not_finite = 0

    def add(self, reference: Array, got: Array) -> None:
        """Take one more batch.

        Args:
            reference: Numbers of any type and shape.
            got: As many of the same shape.

        Raises:
            DataError: If the shapes differ.
        """
        if reference.shape != got.shape:
            raise DataError(f"the shapes differ: {list(reference.shape)} and {list(got.shape)}")
        for a, b in _blocks(reference, got):
            self._add_block(a, b)

    def _add_block(self, a: NDArray[np.float64], b: NDArray[np.float64]) -> None:
        self._count += a.size
        finite = np.isfinite(a) & np.isfinite(b)
        if not finite.all():
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            self._not_finite += int((~finite & ~same).sum())
            a, b = a[finite], b[finite]
            if not a.size:
                return
        with np.errstate(over="ignore"):
            gap = np.abs(a - b)
            self._reference += float(a @ a)
            self._got += float(b @ b)
            self._product += float(a @ b)
            self._noise += float(gap @ gap)
            self._gap += float(gap.sum())
        self._worst = max(self._worst, float(gap.max()))
        self._peak = max(self._peak, float(np.abs(a).max()))

    def result(self) -> Metrics:
        """What was found so far."""
        if self._not_finite:
            inf = math.inf
            return Metrics(self._count, -inf, math.nan, inf, inf, self._peak, self._not_finite)
        return Metrics(
            count=self._count,
            sqnr_db=sqnr_db(self._reference, self._noise),
            cosine=self._cosine(),
            max_abs=self._worst,
            mean_abs=self._gap / self._count if self._count else 0.0,
            peak=self._peak,
        )

    def _cosine(self) -> float:
        if self._noise == 0.0:
            return 1.0
        if self._reference == 0.0 or self._got == 0.0:
            return 0.0
        return self._product / (math.sqrt(self._reference) * math.sqrt(self._got))


def sqnr_db(signal: float, noise: float) -> float:
    """Signal to noise ratio of two sums of squares in decibels; infinite where there is no noise."""
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0.0 else -math.inf


def _blocks(a: Array, b: Array) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    flat, other = a.reshape(-1), b.reshape(-1)
    for start in range(0, flat.size, BLOCK):
        yield (
            flat[start : start + BLOCK].astype(np.float64),
            other[start : start + BLOCK].astype(np.float64),
        )


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How well two classifiers do, and how often they say the same.

    All shares are fractions of 1. Without labels those that need them are None.

    Attributes:
        output: Name of the output with the scores.
        classes: How many classes it has.
        samples: How many samples were classified.
        agreement: Share of samples in which both have the same first class.
        reference: Top-1 accuracy of the float model.
        quantized: Top-1 accuracy of the quantized model.
        reference_top5: Top-5 accuracy; None also where there are not more than five classes.
        quantized_top5: Likewise.
    """

    output: str
    classes: int
    samples: int
    agreement: float
    reference: float | None = None
    quantized: float | None = None
    reference_top5: float | None = None
    quantized_top5: float | None = None

    @property
    def drop_points(self) -> float | None:
        """Top-1 accuracy lost, in percentage points; negative where it was gained."""
        if self.reference is None or self.quantized is None:
            return None
        return 100.0 * (self.reference - self.quantized)

    def to_dict(self) -> dict[str, object]:
        """Content for JSON."""
        values: dict[str, object] = {key: getattr(self, key) for key in self.__slots__}
        return {**values, "drop_points": self.drop_points}


class AccuracyMeter:
    """Compares the classes two models choose, batch after batch.

    Args:
        output: Name of the output with the scores.
        classes: How many classes it has.
        labels: shape (samples,), the true class of each sample; None where it is not known.
    """

    def __init__(self, output: str, classes: int, labels: NDArray[np.int64] | None = None) -> None:
        self._output = output
        self._classes = classes
        self._labels = labels
        self._samples = 0
        self._agreed = 0
        self._right = np.zeros(4, dtype=np.int64)

    def add(self, first: int, reference: Array, got: Array) -> None:
        """Take one more batch.

        Args:
            first: Number of its first sample.
            reference: Scores, shape (N, classes).
            got: Likewise.
        """
        mine, theirs = reference.argmax(axis=1), got.argmax(axis=1)
        self._samples += len(mine)
        self._agreed += int((mine == theirs).sum())
        if self._labels is None:
            return
        labels = self._labels[first : first + len(mine)]
        self._right[0] += (mine == labels).sum()
        self._right[1] += (theirs == labels).sum()
        if self._classes > 5:
            self._right[2] += in_top(reference, labels, 5).sum()
            self._right[3] += in_top(got, labels, 5).sum()

    def result(self) -> Accuracy:
        """What was found so far."""
        count = max(1, self._samples)
        shares: list[float | None] = [float(right) / count for right in self._right]
        if self._labels is None:
            shares = [None] * 4
        elif self._classes <= 5:
            shares[2:] = [None, None]
        return Accuracy(self._output, self._classes, self._samples, self._agreed / count, *shares)


def in_top(scores: Array, labels: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """Whether fewer than `count` classes have a better score than the label; of equals the first counts as better.

    Args:
        scores: shape (N, C).
        labels: shape (N,), in 0..C-1.
        count: How many classes may be named.

    Returns:
        shape (N,).
    """
    own = scores[np.arange(len(labels)), labels][:, np.newaxis]
    before = np.arange(scores.shape[1])[np.newaxis] < labels[:, np.newaxis]
    better = (scores > own) | ((scores == own) & before)
    found: NDArray[np.bool_] = better.sum(axis=1) < count
    result: NDArray[np.bool_] = found & ~np.isnan(own[:, 0])
    return result
