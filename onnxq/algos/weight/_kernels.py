"""Compiled loops of the weight searches."""

from __future__ import annotations

import numpy as np
from numba import types
from numpy.typing import NDArray

from onnxq.algos._jit import f32, f32_in, f32_in2, f64, i64, kernel

_TILE = 1024


@kernel(f64(types.Array(f32, 1, "C"), i64))
def _sum(values: NDArray[np.float32], size: int) -> float:
    a = b = c = d = 0.0
    whole = size - size % 4
    for i in range(0, whole, 4):
        a += np.float64(values[i])
        b += np.float64(values[i + 1])
        c += np.float64(values[i + 2])
        d += np.float64(values[i + 3])
    for i in range(whole, size):
        a += np.float64(values[i])
    return (a + b) + (c + d)


@kernel(types.void(f32_in2, f32_in, f32_in, f32_in, f32_in, types.Array(f64, 2, "C")))
def squared_errors(
    x: NDArray[np.float32],
    scale: NDArray[np.float32],
    lowest: NDArray[np.float32],
    highest: NDArray[np.float32],
    shares: NDArray[np.float32],
    errors: NDArray[np.float64],
) -> None:
    """Add to ``errors[g, k]`` the squared error of row ``g`` rounded to multiples of ``scale[g] * shares[k]``.

    The errors of a tile are folded in halves, then summed four at a time: a fixed order that fills the vector registers
    without fast-math, so every machine finds the same scales.
    """
    tile = np.empty(_TILE, np.float32)
    for g in range(x.shape[0]):
        low, high = lowest[g], highest[g]
        for start in range(0, x.shape[1], _TILE):
            part = x[g, start : start + _TILE]
            for k in range(shares.size):
                step = scale[g] * shares[k]
                inverse = np.float32(1.0) / step
                for i in range(part.size):
                    d = np.rint(min(max(part[i] * inverse, low), high)) * step - part[i]
                    tile[i] = d * d
                size = part.size
                if size == _TILE:  # constant bounds: the compiler then knows that the halves do not overlap
                    for i in range(512):
                        tile[i] += tile[i + 512]
                    for i in range(256):
                        tile[i] += tile[i + 256]
                    for i in range(128):
                        tile[i] += tile[i + 128]
                    size = 128
                errors[g, k] += _sum(tile, size)
