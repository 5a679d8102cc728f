"""What a debug report says about one tensor, as MindSpore Lite's converter defines it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1 << 16
_EPS = float(np.finfo(np.float64).eps)

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Distribution:
    """How the values of a tensor are distributed.

    Attributes:
        low: The smallest value.
        q1: The value at place ``int(0.25 n)`` of the n values in order; nothing is interpolated.
        median: The value at place ``int(0.5 n)``.
        q3: The value at place ``int(0.75 n)``.
        high: The largest value.
        mean: Their mean.
        deviation: Their standard deviation, of all n values: the square root of the variance.
        sparsity: The share that is exactly zero.
    """

    low: float
    q1: float
    median: float
    q3: float
    high: float
    mean: float
    deviation: float
    sparsity: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """A tensor and what became of it.

    Attributes:
        origin: Of the float model; None where it has no such tensor.
        dequant: Of the quantized model, in floats.
        clip: The share of values of the float model outside the smallest and largest of the quantized one.
        cosine: Their cosine similarity.
    """

    origin: Distribution | None
    dequant: Distribution
    clip: float | None
    cosine: float | None


def compare_values(origin: Floats | None, dequant: Floats) -> Comparison:
    """Describe a tensor and what became of it.

    Args:
        origin: Values of the float model, at least one, as many as `dequant` has; None where it has no such tensor.
        dequant: Values of the quantized model.
    """
    ordered = np.sort(dequant, axis=None)
    found = _describe(dequant, ordered)
    if origin is None:
        return Comparison(None, found, None, None)
    reference = np.sort(origin, axis=None)
    below = np.searchsorted(reference, ordered[0], "left")
    above = reference.size - np.searchsorted(reference, ordered[-1], "right")
    clip = float(below + above) / reference.size
    return Comparison(_describe(origin, reference), found, clip, cosine_similarity(origin, dequant))


def _describe(values: Floats, ordered: Floats) -> Distribution:
    n = ordered.size
    with np.errstate(over="ignore", invalid="ignore"):
        mean = float(np.mean(ordered, dtype=np.float64))
        squares = sum(_dot(block, block) for block in (b.astype(np.float64) - mean for b in _blocks(values)))
    zero = ordered.dtype.type(0)
    zeros = np.searchsorted(ordered, zero, "right") - np.searchsorted(ordered, zero, "left")
    low, q1, median, q3, high = (float(ordered[k]) for k in (0, n // 4, n // 2, 3 * n // 4, n - 1))
    return Distribution(low, q1, median, q3, high, mean, float(np.sqrt(squares / n)), float(zeros) / n)


def cosine_similarity(a: NDArray[Any], b: NDArray[Any]) -> float:
    """The cosine of the angle between two arrays, in float64.

    Args:
        a: Numbers of any shape.
        b: As many.

    Returns:
        1 where both are zero throughout, 0 where one is or where something is not finite.
    """
    dot = first = second = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for x, y in zip(_blocks(a), _blocks(b), strict=True):
            x64, y64 = x.astype(np.float64), y.astype(np.float64)
            dot += _dot(x64, y64)
            first += _dot(x64, x64)
            second += _dot(y64, y64)
        if first < _EPS and second < _EPS:
            return 1.0
        if first * second < _EPS:
            return 0.0
        cosine = dot / (float(np.sqrt(first)) * float(np.sqrt(second)))
    return cosine if np.isfinite(cosine) else 0.0


def _dot(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The sum of products, on this thread: the library behind ``@`` starts its own, which costs more than it gives."""
    return float(np.einsum("i,i->", a, b))


def _blocks(values: NDArray[Any]) -> list[NDArray[Any]]:
    flat = values.reshape(-1)
    return [flat[start : start + _BLOCK] for start in range(0, flat.size, _BLOCK)]
