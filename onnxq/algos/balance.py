"""DMQ balancing: factors that move the difficulty of uneven activation channels into the weights.

``x W = (x / f) (f W)`` for one factor per input channel. A channel with large activations and small weights gets a
large factor, so that both sides end up about equally even.

Source: the published behaviour of AMCT's DMQBalancer; the idea is that of Xiao et al., "SmoothQuant", ICML 2023.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxq.algos._fields import check_number
from onnxq.errors import CalibrationError

EPS = float(np.finfo(np.float32).eps)
"""Factors lie between this and its reciprocal; a tensor that is nowhere larger counts as zero."""


def balance_factors(act_absmax: ArrayLike, weight_absmax: ArrayLike, strength: float = 0.5) -> NDArray[np.float32]:
    """Return ``f = a**s / w**(1 - s)``: divide the activation's channels by it, multiply the weight's.

    Where a channel is zero on one side, its factor brings the other side to the largest magnitude that the balanced
    channels have there, so that it decides nothing:

    * only the activation is zero: ``f = max(w * f) / w``;
    * only the weight is zero: ``f = a / max(a / f)``;
    * both are zero, or next to it, or the whole activation or the whole weight is, or no channel has both: 1.

    Args:
        act_absmax: shape (C,), largest magnitude of each channel of the activation, >= 0.
        weight_absmax: shape (C,), largest magnitude of the weights of each input channel, >= 0.
        strength: s, 0.2 to 0.8. 0.2 leaves most of the unevenness in the activation, 0.8 moves most of it.

    Returns:
        shape (C,), float32, > 0.

    Raises:
        CalibrationError: If the shapes differ, a magnitude is negative or not finite, or a factor is not between
            2**-23 and 2**23.
        RecipeError: If the strength is out of range.
    """
    check_number("strength", strength, 0.2, 0.8)
    act, weight = _checked(act_absmax, weight_absmax)
    dead = (act <= EPS) & (weight <= EPS)  # training leaves such weights behind; what they are divided by is no matter
    act, weight = np.where(dead, 0.0, act), np.where(dead, 0.0, weight)
    both = (act > 0) & (weight > 0)
    if act.max(initial=0.0) <= EPS or weight.max(initial=0.0) <= EPS or not both.any():
        return np.ones(act.shape, np.float32)
    factors = np.ones(act.shape)
    factors[both] = act[both] ** strength / weight[both] ** (1 - strength)
    act_outlier, weight_outlier = float((act / factors)[both].max()), float((weight * factors)[both].max())
    no_act, no_weight = (act == 0) & (weight > 0), (act > 0) & (weight == 0)
    factors[no_act] = weight_outlier / weight[no_act]
    factors[no_weight] = act[no_weight] / act_outlier
    return _within_bounds(factors, act, weight)


def _within_bounds(
    factors: NDArray[np.float64], act: NDArray[np.float64], weight: NDArray[np.float64]
) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        result = factors.astype(np.float32)
    wrong = np.flatnonzero(~((result > np.float32(EPS)) & (result < np.float32(1 / EPS))))
    if wrong.size:
        channel = int(wrong[0])
        raise CalibrationError(
            f"channel {channel}: the balance factor would be {factors[channel]:.3g}, which is not between {EPS:.3g} "
            f"and {1 / EPS:.3g}; its largest activation is {act[channel]:.3g}, its largest weight {weight[channel]:.3g}"
        )
    return result


def _checked(*magnitudes: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    act, weight = (np.asarray(m, np.float64) for m in magnitudes)
    if act.ndim != 1 or act.shape != weight.shape:
        raise CalibrationError(f"magnitudes of shapes {act.shape} and {weight.shape} do not belong together")
    for what, values in (("activation", act), ("weight", weight)):
        wrong = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
        if wrong.size:
            channel = int(wrong[0])
            raise CalibrationError(f"channel {channel}: the largest {what} is {values[channel]}; must be finite, >= 0")
    return act, weight
