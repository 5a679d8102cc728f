"""Compiled loops over blocks of weights: scales, codes, and the columns of GPTQ."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types
from numpy.typing import NDArray

from onnxq.algos._jit import f32, f32_in, f32_in2, f64, f64_in, i64, i64_in, kernel
from onnxq.algos.weight._adaround_kernels import SUMS

_f32_out2 = types.Array(f32, 2, "C")
_u8_out2 = types.Array(types.uint8, 2, "C")
_u8_in2 = types.Array(types.uint8, 2, "C", readonly=True)


@numba.njit(error_model="numpy")
def _code(value: Any, step: Any, zero: Any, top: Any) -> Any:  # noqa: ANN401 - compiled
    return min(max(np.rint(value / step) + zero, 0.0), top)


@numba.njit(error_model="numpy", fastmath=SUMS)
def _squared_error(w: Any, importance: Any, step: Any, zero: Any, top: Any) -> Any:  # noqa: ANN401 - compiled
    """In float32, in vector registers: it only tells shares apart."""
    one, half = np.float32(1.0), np.float32(0.5)
    inverse, low, high = one / step, -zero, top - zero
    error = np.float32(0.0)
    for k in range(w.size):
        real = w[k] * inverse
        gap = min(max(np.floor(real + half), low), high) - real
        error += importance[k] * (gap * gap)
    return error * step * step


@numba.njit(error_model="numpy")
def _grid(w: Any, importance: Any, top: Any, symmetric: Any, shares: Any) -> Any:  # noqa: ANN401 - compiled
    """Scale and zero point of one block: of the shares of its range the one with the least weighted squared error."""
    low, high = 0.0, 0.0
    for k in range(w.size):
        low, high = min(low, np.float64(w[k])), max(high, np.float64(w[k]))
    middle = (top + 1.0) / 2.0
    if symmetric:
        zero = middle
        full = -low / middle if -low > high else -high / middle
    else:
        full = (high - low) / top
        zero = min(max(np.rint(-low / full), 0.0), top) if full > 0 else 0.0
    if abs(full) < 1.1754944e-38:
        return np.float32(1.1754944e-38), zero
    best, least = np.float32(full), np.float32(np.inf)
    if shares.size == 1:
        return np.float32(full * shares[0]), zero
    for share in shares:
        step = np.float32(full * share)
        if abs(step) < np.float32(1.1754944e-38):
            continue
        error = _squared_error(w, importance, step, np.float32(zero), np.float32(top))
        if error < least:
            best, least = step, error
    return best, zero


@kernel(types.void(f32_in2, f32_in, i64, f64, types.boolean, f64_in, _f32_out2, _u8_out2, i64, i64))
def find_grids(
    matrix: NDArray[np.float32],
    importance: NDArray[np.float32],
    size: int,
    top: float,
    symmetric: bool,
    shares: NDArray[np.float64],
    scale: NDArray[np.float32],
    zero: NDArray[np.uint8],
    first: int,
    last: int,
) -> None:
    """Write the scales and zero points of the rows from `first` to `last`."""
    for r in range(first, last):
        for b in range(scale.shape[1]):
            begin, end = b * size, min((b + 1) * size, matrix.shape[1])
            found, middle = _grid(matrix[r][begin:end], importance[begin:end], top, symmetric, shares)
            scale[r, b] = found
            zero[r, b] = np.uint8(middle)


@kernel(types.void(f32_in2, f32_in2, _u8_in2, i64, f64, _u8_out2, i64, i64))
def round_rows(
    matrix: NDArray[np.float32],
    scale: NDArray[np.float32],
    zero: NDArray[np.uint8],
    size: int,
    top: float,
    codes: NDArray[np.uint8],
    first: int,
    last: int,
) -> None:
    """Write the nearest codes of the rows from `first` to `last`."""
    for r in range(first, last):
        for k in range(matrix.shape[1]):
            b = k // size
            found = _code(np.float64(matrix[r, k]), np.float64(scale[r, b]), np.float64(zero[r, b]), top)
            codes[r, k] = np.uint8(found)


@kernel(
    types.void(
        _f32_out2, f32_in2, i64_in, f32_in, i64, f64, types.boolean, f64_in, types.boolean,
        _f32_out2, _u8_out2, _u8_out2, _f32_out2, i64, i64, i64, i64,
    )
)  # fmt: skip
def gptq_columns(
    work: NDArray[np.float32],
    upper: NDArray[np.float32],
    block_of: NDArray[np.int64],
    importance: NDArray[np.float32],
    size: int,
    top: float,
    symmetric: bool,
    shares: NDArray[np.float64],
    fresh: bool,
    scale: NDArray[np.float32],
    zero: NDArray[np.uint8],
    codes: NDArray[np.uint8],
    errors: NDArray[np.float32],
    begin: int,
    end: int,
    first: int,
    last: int,
) -> None:
    """Round the columns from `begin` to `end` of the rows from `first` to `last`, one after the other.

    What a column loses is taken from the columns behind it, up to `end`; ``errors[:, j - begin]`` is what those
    further on are to be told. With `fresh`, a block's scale is found when its first column's turn comes.
    """
    for r in range(first, last):
        for j in range(begin, end):
            b = block_of[j]
            if fresh and j % size == 0:
                stop = min(j + size, work.shape[1])
                found, middle = _grid(work[r][j:stop], importance[j:stop], top, symmetric, shares)
                scale[r, b] = found
                zero[r, b] = np.uint8(middle)
            step, shift = np.float64(scale[r, b]), np.float64(zero[r, b])
            code = _code(np.float64(work[r, j]), step, shift, top)
            codes[r, j] = np.uint8(code)
            lost = np.float32((np.float64(work[r, j]) - (code - shift) * step) / np.float64(upper[j, j]))
            errors[r, j - begin] = lost
            for k in range(j + 1, end):
                work[r, k] -= lost * upper[j, k]


@numba.njit(error_model="numpy")
def _lp_error(w: Any, step: Any, zero: Any, top: Any, power: Any) -> Any:  # noqa: ANN401 - compiled
    error = 0.0
    for k in range(w.size):
        value = np.float64(w[k])
        error += abs((_code(value, step, zero, top) - zero) * step - value) ** power
    return error


@kernel(types.void(f32_in2, i64, f64, types.boolean, f64, f64, f64, i64, _f32_out2, _u8_out2, i64, i64))
def hqq_rows(
    matrix: NDArray[np.float32],
    size: int,
    top: float,
    symmetric: bool,
    power: float,
    beta: float,
    kappa: float,
    iterations: int,
    scale: NDArray[np.float32],
    zero: NDArray[np.uint8],
    first: int,
    last: int,
) -> None:
    """Improve the scales and zero points of the rows from `first` to `last`; see `onnxq.algos.weight.hqq`."""
    for r in range(first, last):
        for b in range(scale.shape[1]):
            w = matrix[r][b * size : min((b + 1) * size, matrix.shape[1])]
            step, shift = np.float64(scale[r, b]), np.float64(zero[r, b])
            least = _lp_error(w, step, shift, top, power)
            sharpness, since = beta, 0
            for _ in range(iterations):
                if since >= 3:
                    break
                count, mean, cross, square = 0.0, 0.0, 0.0, 0.0
                for k in range(w.size):
                    value = np.float64(w[k])
                    code = _code(value, step, shift, top)
                    gap = value / step - (code - shift)
                    kept = max(abs(gap) - abs(gap) ** (power - 1.0) / sharpness, 0.0) if gap != 0 else 0.0
                    target = value / step - (kept if gap > 0 else -kept)
                    count += 1.0
                    mean += code - target
                    cross += (code - shift) * target
                    square += (code - shift) ** 2
                if not symmetric:
                    shift = min(max(np.rint(mean / count), 0.0), top)
                if cross > 0 and square > 0:
                    step = np.float64(np.float32(step * cross / square))
                sharpness *= kappa
                if abs(step) < 1.1754944e-38:
                    break
                error = _lp_error(w, step, shift, top, power)
                since += 1
                if error < least:
                    least, since = error, 0
                    scale[r, b] = np.float32(step)
                    zero[r, b] = np.uint8(shift)
