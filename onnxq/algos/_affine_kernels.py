"""Compiled loops of `onnxq.algos.affine`: one pass over the elements, one specialisation per code type, made when used.

Every granularity is one layout: elements (outer, length * inner), scales (outer or 1, blocks, inner or 1), where block
``b`` covers the indices ``b * size`` to ``(b + 1) * size`` of `length`. `low` and `high` are the bounds of
``code - zero_point``, as float32: they are integers, so clipping before rounding is the same as after it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
from numba import types
from numpy.typing import NDArray

from onnxq.algos._jit import f32_in2, f32_in3, i64, kernel

_codes: dict[int, types.Integer] = {1: types.int8, 2: types.int16}
_i32_in3 = types.Array(types.int32, 3, "C", readonly=True)
_f32_out2 = types.Array(types.float32, 2, "C")


@cache
def quantizer(width: int) -> Callable[..., None]:
    """Return ``f(x, scale, low, high, zero_point, size, inner, codes)`` writing codes of 1 or 2 bytes.

    A code is cut to the width of the type, so the unsigned types share the loop of the signed ones.
    """
    out = types.Array(_codes[width], 2, "C")
    signature = types.void(f32_in2, f32_in3, f32_in3, f32_in3, _i32_in3, i64, i64, out)
    compiled: Callable[..., None] = kernel(signature)(_quantize)
    return compiled


@cache
def fake_quantizer() -> Callable[..., None]:
    """Return ``f(x, scale, low, high, size, inner, reals)`` writing ``scale * clip(round(x / scale))`` as float32."""
    signature = types.void(f32_in2, f32_in3, f32_in3, f32_in3, i64, i64, _f32_out2)
    compiled: Callable[..., None] = kernel(signature)(_fake_quantize)
    return compiled


def _quantize(
    x: NDArray[np.float32],
    scale: NDArray[np.float32],
    low: NDArray[np.float32],
    high: NDArray[np.float32],
    zero_point: NDArray[np.int32],
    size: int,
    inner: int,
    codes: NDArray[np.integer],
) -> None:
    length = x.shape[1] // inner
    for o in range(x.shape[0]):
        s = o % scale.shape[0]
        for b in range(scale.shape[1]):
            start, stop = b * size, min((b + 1) * size, length)
            if scale.shape[2] == 1:
                row, out = x[o, start * inner : stop * inner], codes[o, start * inner : stop * inner]
                one, bottom, top, zero = scale[s, b, 0], low[s, b, 0], high[s, b, 0], zero_point[s, b, 0]
                for i in range(row.size):
                    out[i] = np.int32(_level(row[i], one, bottom, top)) + zero
            else:
                many, bottoms, tops, zeros = scale[s, b], low[s, b], high[s, b], zero_point[s, b]
                for d in range(start, stop):
                    row, out = x[o, d * inner : (d + 1) * inner], codes[o, d * inner : (d + 1) * inner]
                    for i in range(out.size):
                        out[i] = np.int32(_level(row[i], many[i], bottoms[i], tops[i])) + zeros[i]


def _fake_quantize(
    x: NDArray[np.float32],
    scale: NDArray[np.float32],
    low: NDArray[np.float32],
    high: NDArray[np.float32],
    size: int,
    inner: int,
    reals: NDArray[np.float32],
) -> None:
    length = x.shape[1] // inner
    for o in range(x.shape[0]):
        s = o % scale.shape[0]
        for b in range(scale.shape[1]):
            start, stop = b * size, min((b + 1) * size, length)
            if scale.shape[2] == 1:
                row, out = x[o, start * inner : stop * inner], reals[o, start * inner : stop * inner]
                one, bottom, top = scale[s, b, 0], low[s, b, 0], high[s, b, 0]
                for i in range(row.size):
                    out[i] = _level(row[i], one, bottom, top) * one + np.float32(0.0)
            else:
                many, bottoms, tops = scale[s, b], low[s, b], high[s, b]
                for d in range(start, stop):
                    row, out = x[o, d * inner : (d + 1) * inner], reals[o, d * inner : (d + 1) * inner]
                    for i in range(out.size):
                        out[i] = _level(row[i], many[i], bottoms[i], tops[i]) * many[i] + np.float32(0.0)


@numba.njit(inline="always", error_model="numpy")
def _level(x: Any, scale: Any, low: Any, high: Any) -> Any:  # noqa: ANN401 - float32, which Python cannot say
    """Round ``x / scale`` half to even and clip it."""
    return np.rint(min(max(x / scale, low), high))
