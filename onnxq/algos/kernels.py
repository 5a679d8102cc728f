"""Compiled kernels that look at every element of an activation.

The public functions take any contiguous float32 array and release the interpreter lock, so a collector can run them on
several tensors at a time.
"""

from __future__ import annotations

import math

import numpy as np
from numba import types
from numpy.typing import NDArray

from onnxq.algos._jit import f32, f32_in, f32_in3, f64, i64, i64_pair, kernel, u32
from onnxq.stats import BINS, HALF, HALF_LOG2

#: Number of interleaved sub-tables of `count_into`: equal neighbours (the zeros behind a Relu) then do not wait for
#: each other's store. Four tables of the bins in use still fit into the first- and second-level caches.
LANES = 4
#: Below this size the reduction of the sub-tables costs more than the waiting they save.
_SMALL = 1 << 15
_MAGNITUDE = np.int32(0x7FFFFFFF)
_INFINITY = np.int32(0x7F800000)

i32_in = types.Array(types.int32, 1, "C", readonly=True)
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
    finite = high < 0x7F800000 and low > -0x7F800001
    return _from_ordered(low), _from_ordered(high), finite


def count_into(
    x: NDArray[np.float32], counts: NDArray[np.int64], exponent: int, *, lanes: NDArray[np.uint32] | None = None
) -> None:
    """Add the elements of an array to the counts of a histogram, in place.

    Bit-equal to `onnxq.stats.Histogram.from_array`.

    Args:
        x: float32, C contiguous, any shape. Every magnitude must be < ``2**exponent``: checking is the business of the
            caller, who knows the range from `min_max`. What lies outside is counted in the outermost bin.
        counts: shape (BINS,), int64, written.
        exponent: Range of the histogram.
        lanes: Scratch of shape (LANES, BINS), uint32, all zero before and after; made by `make_lanes`. Passing one
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
    """Return scratch for `count_into`, shape (LANES, BINS), uint32, zero."""
    return np.zeros((LANES, BINS), np.uint32)


def channel_absmax(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the largest magnitude of each channel.

    Args:
        x: shape (N, C, inner), float32, C contiguous; channels last is ``(N * inner, C, 1)``.

    Returns:
        shape (C,), float32, >= 0; NaN counts as larger than infinity.
    """
    out = np.zeros(x.shape[1], np.int32)
    view = _aligned(x).view(np.int32)
    if x.shape[2] == 1:
        _absmax_rows(view.reshape(x.shape[0], x.shape[1]), out)
    else:
        _absmax_planes(view, out)
    return out.view(np.float32)


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


def _from_ordered(key: int) -> float:
    bits = np.int32(key if key >= 0 else key ^ 0x7FFFFFFF)
    return float(bits.view(np.float32)) + 0.0  # -0.0 becomes 0.0


@kernel(i64_pair(i32_in))
def _ordered_range(bits: NDArray[np.int32]) -> tuple[int, int]:
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
def _count_small(x: NDArray[np.float32], counts: NDArray[np.int64], inverse: float, width: float) -> None:
    for i in range(x.size):
        v = x[i]
        bin_ = np.int32(v * inverse)
        bin_ -= np.int32(v < np.float32(bin_) * width)
        counts[min(max(bin_ + HALF, 0), BINS - 1)] += 1


@kernel(types.void(f32_in, lanes_t, f32, f32))
def _count_lanes(x: NDArray[np.float32], lanes: NDArray[np.uint32], inverse: float, width: float) -> None:
    chunk = 1024
    index = np.empty(chunk, np.int32)
    for start in range(0, x.size, chunk):
        size = min(chunk, x.size - start)
        for i in range(size):  # vectorised: no branch, no table
            v = x[start + i]
            bin_ = np.int32(v * inverse)
            # truncation to floor; compared with v itself, because v * inverse may have underflowed to zero
            bin_ -= np.int32(v < np.float32(bin_) * width)
            index[i] = min(max(bin_ + np.int32(HALF), np.int32(0)), np.int32(BINS - 1))
        quads = size // 4
        for q in range(quads):
            lanes[0, index[4 * q]] += np.uint32(1)
            lanes[1, index[4 * q + 1]] += np.uint32(1)
            lanes[2, index[4 * q + 2]] += np.uint32(1)
            lanes[3, index[4 * q + 3]] += np.uint32(1)
        for i in range(4 * quads, size):
            lanes[0, index[i]] += np.uint32(1)


@kernel(types.void(lanes_t, counts_t))
def _drain(lanes: NDArray[np.uint32], counts: NDArray[np.int64]) -> None:
    for lane in range(lanes.shape[0]):
        for i in range(lanes.shape[1]):
            counts[i] += np.int64(lanes[lane, i])
            lanes[lane, i] = np.uint32(0)


@kernel(types.void(types.Array(types.int32, 3, "C", readonly=True), types.Array(types.int32, 1, "C")))
def _absmax_planes(bits: NDArray[np.int32], out: NDArray[np.int32]) -> None:
    for n in range(bits.shape[0]):
        for c in range(bits.shape[1]):
            top = out[c]
            for i in range(bits.shape[2]):
                top = max(top, np.int32(bits[n, c, i] & _MAGNITUDE))
            out[c] = top


@kernel(types.void(types.Array(types.int32, 2, "C", readonly=True), types.Array(types.int32, 1, "C")))
def _absmax_rows(bits: NDArray[np.int32], out: NDArray[np.int32]) -> None:
    for n in range(bits.shape[0]):
        for c in range(bits.shape[1]):
            out[c] = max(out[c], np.int32(bits[n, c] & _MAGNITUDE))


@kernel(types.void(f32_in3, types.Array(f64, 1, "C")))
def _sum_planes(x: NDArray[np.float32], out: NDArray[np.float64]) -> None:
    inner = x.shape[2]
    partial = np.empty(8, np.float64)
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            partial[:] = 0.0
            for start in range(0, inner - inner % 8, 8):
                for lane in range(8):
                    partial[lane] += x[n, c, start + lane]
            for i in range(inner - inner % 8, inner):
                partial[i % 8] += x[n, c, i]
            total = 0.0
            for lane in range(8):
                total += partial[lane]
            out[c] += total


@kernel(types.void(types.Array(f32, 2, "C", readonly=True), types.Array(f64, 1, "C")))
def _sum_rows(x: NDArray[np.float32], out: NDArray[np.float64]) -> None:
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            out[c] += x[n, c]
