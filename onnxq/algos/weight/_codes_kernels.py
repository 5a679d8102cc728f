"""Compiled loops of the codes of weights that are decoded to floats."""

from __future__ import annotations

import numpy as np
from numba import types
from numpy.typing import NDArray

from onnxq.algos._jit import f32, f32_in, f32_in2, f32_in3, f64, i64, i64_in, kernel

_f64_2 = types.Array(f64, 2, "C")


@kernel(f64(f64))
def _rounded(value: float) -> float:
    """The nearest integer, halves away from zero."""
    return np.trunc(value + np.copysign(0.5, value))  # type: ignore[no-any-return]


@kernel(types.void(f32_in3, f32_in, i64_in, i64, i64, types.Array(types.int32, 3, "C")))
def encode_view(
    x: NDArray[np.float32],
    scale: NDArray[np.float32],
    zero_point: NDArray[np.int64],
    low: int,
    high: int,
    out: NDArray[np.int32],
) -> None:
    """Write the codes of ``x`` of shape (outer, channels, inner), with one scale for each channel."""
    for o in range(x.shape[0]):
        for c in range(x.shape[1]):
            step, shift = np.float64(scale[c]), np.float64(zero_point[c])
            for i in range(x.shape[2]):
                code = _rounded(np.float64(x[o, c, i]) / step + shift)
                out[o, c, i] = np.int32(min(max(code, np.float64(low)), np.float64(high)))


@kernel(types.void(f32_in2, f32_in, i64_in, i64, i64, f32_in, _f64_2))
def code_sums(
    x: NDArray[np.float32],
    scale: NDArray[np.float32],
    zero_point: NDArray[np.int64],
    low: int,
    high: int,
    first: NDArray[np.float32],
    sums: NDArray[np.float64],
) -> None:
    """Add to ``sums[g]`` what means and variances of row ``g`` and of its codes follow from.

    With d a weight less ``first[g]`` and k its code less that of ``first[g]``: the sums of d, d², k and k². Taken so,
    a row of equal numbers has variance 0 exactly.
    """
    for g in range(x.shape[0]):
        step, shift = np.float64(scale[g]), np.float64(zero_point[g])
        lowest, highest = np.float64(low), np.float64(high)
        base = np.float64(first[g])
        base_code = min(max(_rounded(base / step + shift), lowest), highest)
        d1 = d2 = k1 = k2 = 0.0
        for i in range(x.shape[1]):
            value = np.float64(x[g, i])
            d = value - base
            k = min(max(_rounded(value / step + shift), lowest), highest) - base_code
            d1 += d
            d2 += d * d
            k1 += k
            k2 += k * k
        sums[g, 0] += d1
        sums[g, 1] += d2
        sums[g, 2] += k1
        sums[g, 3] += k2


@kernel(types.UniTuple(f64, 3)(f32_in, f32))  # type: ignore[no-untyped-call]
def step_sums(x: NDArray[np.float32], step: np.float32) -> tuple[float, float, float]:
    """The sums of k, k² and x·k over a weight, k being its codes ``round(x / step)``."""
    width = np.float64(step)
    k1 = k2 = xk = 0.0
    for i in range(x.size):
        value = np.float64(x[i])
        k = _rounded(value / width)
        k1 += k
        k2 += k * k
        xk += value * k
    return k1, k2, xk
