"""Compiled kernels that look at every element of an activation.

The public functions take any contiguous float32 array and release the interpreter lock, so a collector can run them on
several tensors at a time.
"""

from __future__ import annotations

import math

import numpy as np
from numba import types
from numpy.typing import NDArray

from onnxq.algos._jit import f32, f32_in, f32_in2, f32_in3, f64, i64, i64_pair, kernel, u32
from onnxq.stats import BINS, HALF, HALF_LOG2

#: Number of sub-tables of `count_into`, interleaved: equal neighbours (the zeros behind a Relu) then do not wait for
#: each other's store. Two are fastest: with more, the bins in use outgrow the first-level cache.
LANES = 2
#: Below this size draining the sub-tables costs more than the waiting they save.
_SMALL = 1 << 14
_CHUNK = 2048
_MAGNITUDE = np.int32(0x7FFFFFFF)
_INFINITY = np.int32(0x7F800000)

i32_in = types.Array(types.int32, 1, "C", readonly=True)
i32_in2 = types.Array(types.int32, 2, "C", readonly=True)
i32_in3 = types.Array(types.int32, 3, "C", readonly=True)
i32_out = types.Array(types.int32, 1, "C")
f64_out = types.Array(f64, 1, "C")
counts_t = types.Array(i64, 1, "C")
lanes_t = types.Array(u32, 2, "C")


def min_max(x: NDArray[np.float32]) -> tuple[float, float, bool]:
    """Return the smallest and the largest element, and whether all elements are finite, in one pass.

    Args:
        x: float32, C contiguous, any shape.

    Returns:
        ``(low, high, finite)``. If not finite, `low` and `high` say nothing. An empty array gives
        ``(inf, -inf, True)``, the neutral element of merging.
    """
    if x.size == 0:
        return math.inf, -math.inf, True
    low, high = _ordered_range(_flat(x).view(np.int32))
    finite = bool(high < 0x7F800000 and low > -0x7F800001)
    return _from_ordered(low), _from_ordered(high), finite


def count_into(
    x: NDArray[np.float32], counts: NDArray[np.int64], exponent: int, *, lanes: NDArray[np.uint32] | None = None
) -> None:
    """Add the elements of an array to the counts of a histogram, in place.

    Bit-equal to `onnxq.stats.Histogram.from_array`.

    Args:
        x: float32, C contiguous, any shape. Every magnitude must be < ``2**exponent``: checking is the business of the
            caller, who knows the range from `min_max`. What lies outside is counted in any bin.
        counts: shape (BINS,), int64, written.
        exponent: Range of the histogram.
        lanes: Scratch of shape (BINS, LANES), uint32, all zero before and after; made by `make_lanes`. Passing one
            saves its allocation. Not to be shared between threads.
    """
    flat = _flat(x)
    inverse = np.float32(math.ldexp(1.0, HALF_LOG2 - exponent))
    width = np.float32(math.ldexp(1.0, exponent - HALF_LOG2))
    if flat.size < _SMALL:
        _count_small(flat, counts, inverse, width)
        return
    lanes = make_lanes() if lanes is None else lanes
    for start in range(0, flat.size, 1 << 31):  # a lane is 32 bits wide
        _count_lanes(flat[start : start + (1 << 31)], lanes, inverse, width)
        _drain(lanes, counts)


def make_lanes() -> NDArray[np.uint32]:
    """Return scratch for `count_into`, shape (BINS, LANES), uint32, zero."""
    return np.zeros((BINS, LANES), np.uint32)


def channel_absmax(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the largest magnitude of each channel.

    Args:
        x: shape (N, C, inner), float32, C contiguous; channels last is ``(N * inner, C, 1)``.

    Returns:
        shape (C,), float32, >= 0; NaN counts as larger than infinity.
    """
    low, high = channel_range(x)
    magnitudes = np.maximum(low.view(np.int32) & _MAGNITUDE, high.view(np.int32) & _MAGNITUDE)
    return np.where(x.size, magnitudes, np.int32(0)).astype(np.int32).view(np.float32)


def channel_range(x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the smallest and the largest element of each channel, in one pass.

    Args:
        x: shape (N, C, inner), float32, C contiguous; channels last is ``(N * inner, C, 1)``.

    Returns:
        ``(low, high)``, shapes (C,), float32. A channel with NaN has NaN in one of them; without any
        element they say nothing.
    """
    low = np.full(x.shape[1], 0x7FFFFFFF, np.int32)
    high = np.full(x.shape[1], -0x80000000, np.int32)
    view = _aligned(x).view(np.int32)
    if x.shape[2] == 1:
        _range_rows(view.reshape(x.shape[0], x.shape[1]), low, high)
    else:
        _range_planes(view, low, high)
    return _all_from_ordered(low), _all_from_ordered(high)


def channel_sum(x: NDArray[np.float32], out: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Add the sum of each channel to `out`.

    Each (sample, channel) plane is summed in float64 in a fixed order, then added to `out`, samples ascending: cutting
    a batch in pieces does not change a bit of the result.

    Args:
        x: shape (N, C, inner), float32, C contiguous.
        out: shape (C,), float64, updated; zeros by default.

    Returns:
        `out`.
    """
    out = np.zeros(x.shape[1], np.float64) if out is None else out
    data = _aligned(x)
    if x.shape[2] == 1:
        _sum_rows(data.reshape(x.shape[0], x.shape[1]), out)
    else:
        _sum_planes(data, out)
    return out


def _aligned(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.require(np.asarray(x), np.float32, ("C", "A"))


def _flat(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return _aligned(x).reshape(-1)


def _from_ordered(key: int | np.int32) -> float:
    bits = np.int32(key if key >= 0 else key ^ 0x7FFFFFFF)
    return float(bits.view(np.float32)) + 0.0  # -0.0 becomes 0.0


def _all_from_ordered(keys: NDArray[np.int32]) -> NDArray[np.float32]:
    return np.where(keys >= 0, keys, keys ^ _MAGNITUDE).astype(np.int32).view(np.float32)


@kernel(i64_pair(i32_in))
def _ordered_range(bits: NDArray[np.int32]) -> tuple[np.int32, np.int32]:
    """Smallest and largest element as order-preserving integers: negative floats have their magnitude inverted.

    Integers have no NaN, so the loop vectorises without fast-math and a NaN ends up beyond the infinities.
    """
    low = np.int32(0x7FFFFFFF)
    high = np.int32(-0x80000000)
    for i in range(bits.size):
        b = bits[i]
        key = np.int32(b ^ ((b >> np.int32(31)) & _MAGNITUDE))
        low = min(low, key)
        high = max(high, key)
    return low, high


@kernel(types.void(f32_in, counts_t, f32, f32))
def _count_small(x: NDArray[np.float32], counts: NDArray[np.int64], inverse: np.float32, width: np.float32) -> None:
    for i in range(x.size):
        bin_ = np.int32(x[i] * inverse)
        bin_ -= np.int32(x[i] < np.float32(bin_) * width)
        counts[np.uint64((bin_ + HALF) & (BINS - 1))] += 1


@kernel(types.void(f32_in, lanes_t, f32, f32))
def _count_lanes(x: NDArray[np.float32], lanes: NDArray[np.uint32], inverse: np.float32, width: np.float32) -> None:
    """Find the bins of a chunk in vector registers, then count them; unsigned indices spare the test for negatives."""
    index = np.empty(_CHUNK, np.uint32)
    for start in range(0, x.size, _CHUNK):
        part = x[start : start + _CHUNK]
        if inverse >= 1:
            for i in range(part.size):
                index[i] = (np.int32(np.floor(part[i] * inverse)) + np.int32(HALF)) & np.int32(BINS - 1)
        else:  # the product may underflow to -0.0: truncate, then compare the lower edge with the value itself
            for i in range(part.size):
                bin_ = np.int32(part[i] * inverse)
                bin_ -= np.int32(part[i] < np.float32(bin_) * width)
                index[i] = (bin_ + np.int32(HALF)) & np.int32(BINS - 1)
        pairs = part.size // LANES
        for i in range(pairs):
            lanes[np.uint64(index[np.uint64(2 * i)]), np.uint64(0)] += np.uint32(1)
            lanes[np.uint64(index[np.uint64(2 * i + 1)]), np.uint64(1)] += np.uint32(1)
        for i in range(2 * pairs, part.size):
            lanes[np.uint64(index[i]), np.uint64(0)] += np.uint32(1)


@kernel(types.void(lanes_t, counts_t))
def _drain(lanes: NDArray[np.uint32], counts: NDArray[np.int64]) -> None:
    for i in range(lanes.shape[0]):
        counts[i] += np.int64(lanes[i, 0]) + np.int64(lanes[i, 1])
        lanes[i, 0] = np.uint32(0)
        lanes[i, 1] = np.uint32(0)


@kernel(types.void(i32_in3, i32_out, i32_out))
def _range_planes(bits: NDArray[np.int32], low: NDArray[np.int32], high: NDArray[np.int32]) -> None:
    """As `_ordered_range`, for each channel."""
    for n in range(bits.shape[0]):
        for c in range(bits.shape[1]):
            plane = bits[n, c]
            bottom = low[c]
            top = high[c]
            for i in range(plane.size):
                b = plane[i]
                key = np.int32(b ^ ((b >> np.int32(31)) & _MAGNITUDE))
                bottom = min(bottom, key)
                top = max(top, key)
            low[c] = bottom
            high[c] = top


@kernel(types.void(i32_in2, i32_out, i32_out))
def _range_rows(bits: NDArray[np.int32], low: NDArray[np.int32], high: NDArray[np.int32]) -> None:
    for n in range(bits.shape[0]):
        row = bits[n]
        for c in range(row.size):
            b = row[c]
            key = np.int32(b ^ ((b >> np.int32(31)) & _MAGNITUDE))
            low[c] = min(low[c], key)
            high[c] = max(high[c], key)


@kernel(types.void(f32_in3, f64_out))
def _sum_planes(x: NDArray[np.float32], out: NDArray[np.float64]) -> None:
    """Eight running sums per plane: a fixed order that needs no fast-math to fill the vector registers."""
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            plane = x[n, c]
            a = b = d = e = f = g = h = k = 0.0
            whole = plane.size - plane.size % 8
            for i in range(0, whole, 8):
                a += np.float64(plane[i])
                b += np.float64(plane[i + 1])
                d += np.float64(plane[i + 2])
                e += np.float64(plane[i + 3])
                f += np.float64(plane[i + 4])
                g += np.float64(plane[i + 5])
                h += np.float64(plane[i + 6])
                k += np.float64(plane[i + 7])
            for i in range(whole, plane.size):
                a += np.float64(plane[i])
            out[c] += ((a + b) + (d + e)) + ((f + g) + (h + k))


@kernel(types.void(f32_in2, f64_out))
def _sum_rows(x: NDArray[np.float32], out: NDArray[np.float64]) -> None:
    for n in range(x.shape[0]):
        row = x[n]
        for c in range(row.size):
            out[c] += np.float64(row[c])
