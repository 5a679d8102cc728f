"""Biases: their int32 codes, what to do where those overflow, and the shift that repairs a mean error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxq.errors import CalibrationError

#: Largest magnitude of a bias code. Half of int32's range is left to the products the accumulator adds to it:
#: 2**15 of them with full 8-bit codes.
LIMIT = 1 << 30


@dataclass(frozen=True, slots=True, eq=False)
class BiasCodes:
    """A quantized bias and the scales it belongs to.

    Attributes:
        codes: shape (C,), int32, ``round(bias / scale)``.
        scale: shape (C,), float32, ``x_scale * w_scale``.
        w_scale: float32, the shape that was given; larger than given where `enlarged` says so.
        enlarged: shape (C,), bool, channels whose weight scale had to grow. Their weights must be quantized with the
            new scale. With one weight scale for all channels, all of them or none.
    """

    codes: NDArray[np.int32]
    scale: NDArray[np.float32]
    w_scale: NDArray[np.float32]
    enlarged: NDArray[np.bool_]


def quantize_bias(
    bias: NDArray[np.floating], x_scale: float, w_scale: NDArray[np.float32], *, limit: int = LIMIT
) -> BiasCodes:
    """Return int32 codes of a bias, ties to even, with weight scales enlarged where a code would exceed `limit`.

    That happens in channels with tiny weights and a normal bias, for example behind a folded BatchNormalization; there
    the weights hardly matter, so a coarser scale costs nothing.

    Args:
        bias: shape (C,), finite.
        x_scale: Scale of the layer's input, > 0.
        w_scale: Scale of the weights, shape () or (C,), > 0.
        limit: Largest magnitude of a code, at most 2**31 - 1.

    Raises:
        CalibrationError: If the bias is not finite, a scale is not > 0, or the shapes do not fit.
    """
    values = np.asarray(bias, np.float64)
    scales = np.asarray(w_scale, np.float32)
    if values.ndim != 1 or scales.shape not in ((), values.shape):
        raise CalibrationError(f"a bias of shape {values.shape} does not fit weight scales of shape {scales.shape}")
    if not np.isfinite(values).all():
        raise CalibrationError("the bias holds NaN or infinity; repair or leave out this layer")
    if not (x_scale > 0 and np.isfinite(x_scale) and (scales > 0).all() and np.isfinite(scales).all()):
        raise CalibrationError("the scales of the input and the weights must be finite and > 0")
    if not 0 < limit < 1 << 31:
        raise ValueError(f"limit must be within int32, got {limit}")
    factor = np.float32(x_scale)
    too_large = ~(np.abs(values) <= limit * (factor * scales).astype(np.float64))
    enlarged = too_large if scales.shape else np.full(values.shape, too_large.any())
    if too_large.any():
        # a relative margin of 2**-20 covers the float32 roundings of both the new scale and its product
        needed = np.abs(values) / limit / float(factor) * (1 + 2.0**-20)
        wanted = np.where(too_large, needed, scales) if scales.shape else np.max(needed)
        scales = np.maximum(wanted.astype(np.float32), scales)
    scale = np.broadcast_to(factor * scales, values.shape).astype(np.float32)
    if not ((scale > 0).all() and np.isfinite(scale).all()):
        raise CalibrationError(f"the product of input scale {x_scale:g} and a weight scale leaves float32")
    codes = np.rint(values / scale.astype(np.float64)).astype(np.int32)
    return BiasCodes(codes, scale, scales, enlarged)


def correction(mean_float: ArrayLike, mean_quant: ArrayLike) -> NDArray[np.float32]:
    """Return what to add to a bias so that the quantized layer's output has the mean of the float layer's.

    Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section
    4.2: quantized weights shift the expected output, and the bias can take the shift back.

    Args:
        mean_float: shape (C,), mean output of each channel of the float layer.
        mean_quant: shape (C,), the same of the quantized layer, over the same data.

    Returns:
        shape (C,), float32, ``mean_float - mean_quant``, subtracted in float64.

    Raises:
        CalibrationError: If the shapes differ or a mean is not finite.
    """
    expected, found = np.asarray(mean_float, np.float64), np.asarray(mean_quant, np.float64)
    if expected.shape != found.shape:
        raise CalibrationError(f"means of shapes {expected.shape} and {found.shape} cannot be compared")
    if not (np.isfinite(expected).all() and np.isfinite(found).all()):
        raise CalibrationError("a channel mean is NaN or infinite; check the calibration data")
    return (expected - found).astype(np.float32)
