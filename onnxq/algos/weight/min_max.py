"""From the smallest and the largest weight to codes of any width, zero always exact; MindSpore Lite calls it MAX_MIN.

The range is widened to hold zero and then shifted, its width unchanged, until zero falls on a code.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxq.errors import CalibrationError

_LEAST = np.float32(1e-10)
"""Smallest width of a range."""


def round_half_away(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """Round to the nearest integer, halves away from zero, as C's ``round`` does."""
    rounded: NDArray[np.floating] = np.trunc(values + np.copysign(values.dtype.type(0.5), values))
    return rounded


def params_from_min_max(
    low: ArrayLike, high: ArrayLike, bounds: tuple[int, int], *, symmetric: bool = False
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Return the scale and the zero point of ranges, in float32 arithmetic.

    Args:
        low: Smallest real, a number or one per channel.
        high: Largest real, the same shape.
        bounds: Smallest and largest code.
        symmetric: Widen the shorter side, so that the zero point is in the middle.

    Returns:
        Scale, > 0, and zero point, both of the shape of `low`. A range of width 0 at zero has a scale of about
        ``1e-10 / (largest - smallest code)``.

    Raises:
        CalibrationError: If a bound is not finite, or a range is wider than float32 can say.

    Source: MindSpore Lite's EncodeMinMax (specs of MindSpore Lite, section A2).
    """
    low_, high_ = np.asarray(low, np.float32), np.asarray(high, np.float32)
    qmin, qmax = (np.float32(bound) for bound in bounds)
    high_ = np.maximum(high_, low_ + _LEAST)
    if symmetric:
        high_ = np.maximum(np.abs(low_), np.abs(high_))
        low_ = -high_
    low_, high_ = np.minimum(low_, np.float32(0)), np.maximum(high_, np.float32(0))
    levels = qmax - qmin
    with np.errstate(over="ignore"):
        step = (high_ - low_) / levels
    if not np.isfinite(step).all():
        raise CalibrationError(
            "the weight holds NaN, infinity or numbers too far apart; repair or leave out this layer"
        )
    offset = round_half_away(-low_ / step)
    encoded_low, encoded_high = -offset * step, (levels - offset) * step
    scale = (encoded_high - encoded_low) / levels
    zero_point = round_half_away(qmin - encoded_low / scale)
    return np.asarray(scale, np.float32), np.asarray(zero_point).astype(np.int32)
