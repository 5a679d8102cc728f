"""Giving weights back the mean and the variance that rounding took from them, channel by channel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.weight._groups import pieces
from onnxq.algos.weight.codes import WeightCodes
from onnxq.algos.weight.min_max import round_half_away
from onnxq.spec import PerAxis, PerTensor

_SMALLEST = float(np.finfo(np.float64).eps)
LARGEST_RATIO = 10.0
"""Ratios of standard deviations from here on are taken for an accident."""


def variance_ratio(
    before: NDArray[np.float64], after: NDArray[np.float64], *, largest: float = LARGEST_RATIO
) -> NDArray[np.float64]:
    """What decoded weights are multiplied with: the ratio of the standard deviations, 1 where it means nothing.

    Args:
        before: Standard deviation of the weights, one per channel.
        after: That of the decoded weights.
        largest: Ratios must be below this.

    Source: MindSpore Lite's weight decoder (specs of MindSpore Lite, section A4).
    """
    usable = (before > _SMALLEST) & (after > _SMALLEST)
    ratio = np.divide(before, after, out=np.ones_like(before), where=usable)
    return np.where((ratio > 0) & (ratio < largest), ratio, 1.0)


def with_correction(weight: NDArray[np.float32], codes: WeightCodes, *, largest: float = LARGEST_RATIO) -> WeightCodes:
    """The same codes, decoded so that each channel has the mean and the standard deviation of its weights.

    Where the ratio of the standard deviations means nothing, the mean alone is given back.

    Args:
        weight: float32, finite; a memmap is read once, in pieces.
        codes: How it becomes codes; `variance` and `mean` are not looked at.
        largest: Ratios of standard deviations must be below this.
    """
    mean, deviation, code_mean, code_deviation = _moments(weight, codes)
    ratio = variance_ratio(deviation, code_deviation * codes.scale.reshape(-1), largest=largest).astype(np.float32)
    factor = codes.scale.reshape(-1) * ratio  # as `decode` multiplies
    centred = code_mean - codes.zero_point.reshape(-1)
    back = (mean - centred * factor).astype(np.float32)
    shape = codes.scale.shape
    return replace(codes, variance=ratio.reshape(shape), mean=back.reshape(shape))


def _moments(weight: NDArray[np.float32], codes: WeightCodes) -> tuple[NDArray[np.float64], ...]:
    """Mean and standard deviation of the weights and of their codes, shape (C,) each."""
    from onnxq.algos.weight._codes_kernels import code_sums

    granularity = PerTensor() if codes.axis is None else PerAxis(codes.axis)
    index = tuple(slice(None) if axis == codes.axis else 0 for axis in range(weight.ndim))
    first = np.array(weight[index], np.float32).reshape(-1)
    scale, zero_point = codes.scale.reshape(-1), codes.zero_point.reshape(-1).astype(np.int64)
    sums = np.zeros((scale.size, 4))
    for own, matrix in pieces(weight, granularity):
        part = slice(None) if own is None else own
        code_sums(matrix, scale[part], zero_point[part], codes.low, codes.high, first[part], sums[part])
    count = weight.size // scale.size
    d1, d2, k1, k2 = sums.T / count
    start = np.clip(round_half_away(first / scale.astype(np.float64) + zero_point), codes.low, codes.high)
    return first + d1, np.sqrt(np.maximum(d2 - d1 * d1, 0)), start + k1, np.sqrt(np.maximum(k2 - k1 * k1, 0))
