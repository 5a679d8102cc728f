"""The scale that AMCT rounds adaptively with: of twenty windows of a histogram, the one that loses least."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.affine import params_from_range, safe_scale
from onnxq.algos.weight._groups import pieces, ranges
from onnxq.spec import QuantParams, QuantSpec

BINS = 512
WINDOWS = 20
_SMOOTHING = 1e-4


def find_params(weight: NDArray[np.generic], spec: QuantSpec) -> QuantParams:
    """Return the scales of the windows ``[-t, t]`` with the least Kullback-Leibler divergence.

    Windows leave out 0 to 19 of the 512 bins on each side of ``[-max|w|, max|w|]``; what lies outside is counted in the
    outermost bins. The scale is ``t`` over the number of codes below zero (``t / 128`` at 8 bits), so the largest
    weight may saturate by one code.

    Args:
        weight: Any float type, any shape; a memmap is read twice, in pieces.
        spec: Granularity and width; an asymmetric spec gets the zero point of ``[-t, t]``.

    Raises:
        CalibrationError: If the weight holds NaN or infinity, or lacks the axis.

    Source: AMCT's search, specs of AMCT, section 1.6.
    """
    low, high = ranges(weight, spec)
    largest = np.maximum(-low, high)
    counts = np.zeros((largest.size, BINS))
    for own, matrix in pieces(weight, spec.granularity):
        region = ... if own is None else own
        rows = np.arange(largest.size).reshape(largest.shape)[region].reshape(-1)
        for row, values, limit in zip(rows, matrix, largest[region].reshape(-1), strict=True):
            if limit > 0:
                counts[row] += np.histogram(values, BINS, (-limit, limit))[0]
    levels = (1 << spec.bits) - 1
    trimmed = np.array([best_window(row, levels) for row in counts]).reshape(largest.shape)
    threshold = largest * (1 - trimmed / (BINS // 2))
    if not spec.symmetric:
        return params_from_range(-threshold, threshold, spec)
    scale = safe_scale(threshold / (1 << (spec.bits - 1)))
    return QuantParams(spec, scale, np.full(scale.shape, spec.middle, np.int32))


def best_window(counts: NDArray[np.float64], levels: int) -> int:
    """How many bins to leave out on each side.

    Args:
        counts: shape (512,), the histogram.
        levels: How many codes a window is divided among.
    """
    if not counts.sum():
        return 0
    return int(np.argmin([divergence(counts, trim, levels) for trim in range(WINDOWS)]))


def divergence(counts: NDArray[np.float64], trim: int, levels: int) -> float:
    """Kullback-Leibler divergence of a window from what is left of it in `levels` codes.

    Args:
        counts: shape (512,).
        trim: How many bins are left out on each side.
        levels: How many codes.
    """
    window = counts[trim : BINS - trim]
    kept = window.copy()
    kept[0] += counts[:trim].sum()
    kept[-1] += counts[BINS - trim :].sum()
    owner = np.arange(window.size) * levels // window.size
    filled = window > 0
    sums = np.bincount(owner, window, levels)
    members = np.bincount(owner, filled, levels)
    spread = np.where(filled, (sums / np.maximum(members, 1))[owner], 0.0)
    p, q = _smooth(kept), _smooth(spread)
    return float(np.sum(p * np.log(p / q)))


def _smooth(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """A distribution without zeros: they get a little, taken from the others."""
    total = counts.sum()
    share = counts / total if total else np.full(counts.size, 1 / counts.size)
    empty = share == 0
    if empty.all() or not empty.any():
        return share
    taken = _SMOOTHING * empty.sum() / (~empty).sum()
    smoothed = np.where(empty, _SMOOTHING, np.maximum(share - taken, _SMOOTHING))
    result: NDArray[np.float64] = smoothed / smoothed.sum()
    return result
