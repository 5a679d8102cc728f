"""Cross-layer equalization: factors that give consecutive layers equal ranges per channel.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.1.
For layers with only positively homogeneous functions between them, ``W2 f(W1 x + b1) = (W2 S) f((W1 x + b1) / S)``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxq.errors import CalibrationError

#: Factors beyond this, or below its reciprocal, are clamped: a nearly dead channel must not blow up the other layer.
LIMIT = 1e4


def equalization_scales(range1: ArrayLike, range2: ArrayLike, *, limit: float = LIMIT) -> NDArray[np.float64]:
    """Return ``s = sqrt(r1 * r2) / r2``: divide the outputs of layer 1 by it, multiply the inputs of layer 2.

    Both ranges of a channel become ``sqrt(r1 * r2)``.

    Args:
        range1: shape (C,), largest absolute weight of each output channel of layer 1, >= 0.
        range2: shape (C,), largest absolute weight of each input channel of layer 2, >= 0.
        limit: Factors stay within ``1 / limit .. limit``.

    Returns:
        shape (C,), float64, > 0; 1 for channels that are all zero on either side.

    Raises:
        CalibrationError: If the shapes differ or a range is negative or not finite.
    """
    (first, second), alive = _checked(range1, range2)
    scale = np.sqrt(np.divide(first, second, out=np.ones_like(first), where=alive))
    return np.where(alive, np.clip(scale, 1 / limit, limit), 1.0)


def depthwise_equalization_scales(
    range1: ArrayLike, range2: ArrayLike, range3: ArrayLike, *, limit: float = LIMIT
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the factors ``(s12, s23)`` for a chain of convolution, depthwise convolution, convolution.

    Divide the outputs of layer 1 by ``s12``, multiply channel i of layer 2 by ``s12 / s23``, multiply the inputs of
    layer 3 by ``s23``; the bias of layer 1 is divided by ``s12``, that of layer 2 by ``s23``. All three ranges become
    ``m = cbrt(r1 * r2 * r3)``: ``s12 = r1 / m``, ``s23 = m / r3``.

    Args:
        range1: shape (C,), largest absolute weight of each output channel of layer 1, >= 0.
        range2: shape (C,), largest absolute weight of each channel of layer 2, >= 0.
        range3: shape (C,), largest absolute weight of each input channel of layer 3, >= 0.
        limit: Both factors stay within ``1 / limit .. limit``.

    Returns:
        Two arrays of shape (C,), float64, > 0; 1 for channels that are all zero in any layer.

    Raises:
        CalibrationError: If the shapes differ or a range is negative or not finite.
    """
    (first, second, third), alive = _checked(range1, range2, range3)
    safe = [np.where(alive, r, 1.0) for r in (first, second, third)]
    middle = np.cbrt(safe[0]) * np.cbrt(safe[1]) * np.cbrt(safe[2])  # the product itself could underflow
    s12 = np.clip(safe[0] / middle, 1 / limit, limit)
    s23 = np.clip(middle / safe[2], 1 / limit, limit)
    return s12, s23


def _checked(*ranges: ArrayLike) -> tuple[list[NDArray[np.float64]], NDArray[np.bool_]]:
    """Return the ranges as float64 and which channels are alive in all layers."""
    values = [np.asarray(r, np.float64) for r in ranges]
    shapes = [v.shape for v in values]
    if len(set(shapes)) != 1 or values[0].ndim != 1:
        raise CalibrationError(f"channel ranges of shapes {', '.join(map(str, shapes))} do not belong together")
    if not all(np.isfinite(v).all() and (v >= 0).all() for v in values):
        raise CalibrationError("a channel range is negative, NaN or infinite")
    return values, np.logical_and.reduce([v > 0 for v in values])
