"""Compiled local searches over roundings: flip one weight at a time, row by row.

Rows are output channels; row ``r`` belongs to group ``r // (rows / groups)``. Sums may be reordered to fill vector
registers, but never depend on which thread handles a row.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types
from numpy.typing import NDArray

from onnxq.algos._jit import f32, f32_in, f32_in2, f32_in3, i64, kernel
from onnxq.algos.weight._adaround_kernels import SIGMOID, SUMS, moved_loss, slope_at, value_at

_f32_out2 = types.Array(f32, 2, "C")
_flags = types.Array(types.uint8, 2, "C")
_order = types.Array(types.int32, 2, "C", readonly=True)


@numba.njit(error_model="numpy", fastmath=SUMS)
def _tabu(gram: Any, cross: Any, base: Any, step: Any, up: Any, moves: Any, seed: Any) -> None:  # noqa: ANN401
    """Tabu search for one row; see `search_gram`."""
    columns = base.size
    slope = -cross
    change, curve = np.empty(columns, np.float32), np.empty(columns, np.float32)
    score, free = np.empty(columns, np.float32), np.zeros(columns, np.int64)
    best = up.copy()
    for k in range(columns):
        w = base[k] + (step[k] if up[k] else np.float32(0.0))
        for i in range(columns):
            slope[i] += w * gram[k, i]
        change[k] = -step[k] if up[k] else step[k]
        curve[k] = step[k] * step[k] * gram[k, k]
    energy, lowest, since = 0.0, 0.0, 0
    number = np.uint64(seed * 2654435761 + 12345)
    for move in range(moves * columns):
        for i in range(columns):
            score[i] = np.float32(2.0) * change[i] * slope[i] + curve[i]
        limit = np.float32(lowest - energy)
        least, chosen = np.float32(3e38), -1
        for i in range(columns):
            if score[i] < least and change[i] != 0 and (free[i] <= move or score[i] < limit):
                least, chosen = score[i], i
        if chosen < 0:
            break
        d = change[chosen]
        for i in range(columns):
            slope[i] += d * gram[chosen, i]
        change[chosen] = -d
        up[chosen] = 1 - up[chosen]
        energy += float(least)
        number = number * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
        free[chosen] = move + 1 + columns // 50 + np.int64((number >> np.uint64(33)) % np.uint64(10))
        since += 1
        if energy < lowest - 1e-7 * abs(lowest):
            lowest, since = energy, 0
            best[:] = up
        if since > 2 * columns + 20:
            break
    up[:] = best


@kernel(types.void(f32_in3, f32_in2, f32_in2, f32_in2, _flags, i64, i64, i64))
def search_gram(
    gram: NDArray[np.float32],
    cross: NDArray[np.float32],
    base: NDArray[np.float32],
    step: NDArray[np.float32],
    up: NDArray[np.uint8],
    begin: int,
    end: int,
    moves: int,
) -> None:
    """Tabu search over single flips for the roundings with the least ``w G w - 2 c w``, row by row.

    The best flip is made even if it is for the worse, and stays forbidden for a while; the best roundings seen are
    kept. Source: Glover, Kochenberger, Alidaee, "Adaptive Memory Tabu Search for Binary Quadratic Programs", 1998.

    Args:
        gram: shape (G, K, K), symmetric.
        cross: shape (R, K).
        base: shape (R, K), weights rounded down.
        step: shape (R, K), what rounding up adds; 0 where there is no choice.
        up: shape (R, K), 1 where rounded up; start and result.
        begin: First row to search.
        end: Row after the last.
        moves: Flips per row and column.
    """
    per = base.shape[0] // gram.shape[0]
    for r in range(begin, end):
        _tabu(gram[r // per], cross[r], base[r], step[r], up[r], moves, r)


@numba.njit(error_model="numpy", fastmath=SUMS)
def _weighted_gram(x: Any, weight: Any, count: Any, packed: Any, gram: Any) -> None:  # noqa: ANN401
    """``X diag(weight) Xt / count`` over the samples whose weight is not 0."""
    used = 0
    for m in range(count):
        if weight[m] != 0:
            root = np.sqrt(weight[m])
            for k in range(x.shape[0]):
                packed[k, used] = x[k, m] * root
            used += 1
    share = np.float32(1.0) / np.float32(count)
    for i in range(x.shape[0]):
        a = packed[i, :used]
        for j in range(0, i + 1, 4):  # the last may pass the diagonal: these are written anew by their own rows
            last = x.shape[0] - 1
            b, c = packed[j, :used], packed[min(j + 1, last), :used]
            d, e = packed[min(j + 2, last), :used], packed[min(j + 3, last), :used]
            first = second = third = fourth = np.float32(0.0)
            for m in range(used):
                first += a[m] * b[m]
                second += a[m] * c[m]
                third += a[m] * d[m]
                fourth += a[m] * e[m]
            gram[i, j] = first * share
            gram[i, min(j + 1, last)] = second * share
            gram[i, min(j + 2, last)] = third * share
            gram[i, min(j + 3, last)] = fourth * share
    for i in range(x.shape[0]):
        for j in range(i):
            gram[j, i] = gram[i, j]


@kernel(types.void(f32_in3, f32_in2, f32_in2, f32_in2, f32_in2, f32_in2, f32_in2, _flags, i64, i64, i64), fastmath=SUMS)
def search_model(
    x: NDArray[np.float32],
    bend: NDArray[np.float32],
    slope: NDArray[np.float32],
    ridge: NDArray[np.float32],
    weight: NDArray[np.float32],
    base: NDArray[np.float32],
    step: NDArray[np.float32],
    up: NDArray[np.uint8],
    begin: int,
    end: int,
    moves: int,
) -> None:
    """As `search_gram`, where each row weighs the samples differently and so has a Gram matrix of its own.

    Args:
        x: shape (G, K, M).
        bend: shape (R, M), weights of the samples.
        slope: shape (R, K), half the gradient of the loss at `up`.
        ridge: shape (G, K), added to the diagonal.
        weight: shape (R, K), the weights at `up`.
        base: shape (R, K), weights rounded down.
        step: shape (R, K), what rounding up adds.
        up: shape (R, K), start and result.
        begin: First row to search.
        end: Row after the last.
        moves: Flips per row and column.
    """
    columns, count = x.shape[1], x.shape[2]
    per = base.shape[0] // x.shape[0]
    packed, gram = np.empty((columns, count), np.float32), np.empty((columns, columns), np.float32)
    for r in range(begin, end):
        _weighted_gram(x[r // per], bend[r], count, packed, gram)
        cross = -slope[r].copy()
        for k in range(columns):
            gram[k, k] += ridge[r // per, k]
            for i in range(columns):
                cross[i] += weight[r, k] * gram[k, i]
        _tabu(gram, cross, base[r], step[r], up[r], moves, r)


@numba.njit(error_model="numpy", fastmath=SUMS)
def _linearise(kind: Any, z: Any, target: Any, p: Any, q: Any, pull: Any, bend: Any) -> None:  # noqa: ANN401
    """Error times slope, and slope squared, of each output."""
    for i in range(z.size):
        slope = np.float32(slope_at(kind, z[i], p, q))
        pull[i] = (np.float32(value_at(kind, z[i], p, q)) - target[i]) * slope
        bend[i] = slope * slope


@numba.njit(inline="always", error_model="numpy", fastmath=SUMS)
def _predicted(pull: Any, bend: Any, x: Any, d: Any) -> Any:  # noqa: ANN401
    """What the quadratic model says a change of ``d * x`` adds to the squared error."""
    linear, square = np.float32(0.0), np.float32(0.0)
    for i in range(x.size):
        linear += pull[i] * x[i]
        square += bend[i] * x[i] * x[i]
    return np.float32(2.0) * d * linear + d * d * square


@kernel(
    types.void(f32_in3, f32_in2, f32_in2, f32_in2, f32_in2, f32_in2, _order, _flags, _f32_out2, i64, f32_in, f32_in,
               i64, i64, i64),
    fastmath=SUMS,
)  # fmt: skip
def search_rows(
    x: NDArray[np.float32],
    target: NDArray[np.float32],
    error: NDArray[np.float32],
    ridge: NDArray[np.float32],
    base: NDArray[np.float32],
    step: NDArray[np.float32],
    order: NDArray[np.int32],
    up: NDArray[np.uint8],
    z: NDArray[np.float32],
    kind: int,
    p: NDArray[np.float32],
    q: NDArray[np.float32],
    begin: int,
    end: int,
    sweeps: int,
) -> None:
    """Coordinate descent over single flips on the data themselves, row by row, with the activation.

    Args:
        x: shape (G, K, M), inputs.
        target: shape (R, M), activations wanted.
        error: shape (R, K), ``base`` minus the float weight.
        ridge: shape (G, K), weight of a column's squared weight error.
        base: shape (R, K), unused but for its shape.
        step: shape (R, K), what rounding up adds.
        order: shape (R, K), columns in the order they are tried.
        up: shape (R, K), start and result.
        z: shape (R, M), outputs before the activation for `up`; kept up to date.
        kind: The activation.
        p: shape (R,), its first parameter.
        q: shape (R,), its second parameter.
        begin: First row.
        end: Row after the last.
        sweeps: How often each column is tried at most.
    """
    columns = base.shape[1]
    per = base.shape[0] // x.shape[0]
    smooth = kind >= SIGMOID
    pull = np.empty(z.shape[1], np.float32)
    bend = np.empty(z.shape[1], np.float32)
    for r in range(begin, end):
        data, goal, zs = x[r // per], target[r], z[r]
        loss = moved_loss(kind, zs, zs, np.float32(0.0), goal, p[r], q[r])
        stale = True
        for _ in range(sweeps):
            flips = 0
            for j in range(columns):
                k = order[r, j]
                d = -step[r, k] if up[r, k] else step[r, k]
                if d == 0:
                    continue
                before = error[r, k] + (step[r, k] if up[r, k] else np.float32(0.0))
                extra = ridge[r // per, k] * d * (np.float32(2.0) * before + d)
                if smooth:  # exact evaluation is slow: ask the local quadratic model first
                    if stale:
                        _linearise(kind, zs, goal, p[r], q[r], pull, bend)
                        stale = False
                    if _predicted(pull, bend, data[k], d) + extra >= 0:
                        continue
                found = moved_loss(kind, zs, data[k], d, goal, p[r], q[r])
                if found + extra < loss - 1e-7 * abs(loss):
                    loss = found
                    up[r, k] = 1 - up[r, k]
                    for i in range(zs.size):
                        zs[i] += d * data[k, i]
                    stale = True
                    flips += 1
            if flips == 0:
                break


@kernel(types.void(f32_in3, f32_in2, f32_in2, _flags, _f32_out2, i64, f32_in, f32_in, i64, i64, i64), fastmath=SUMS)
def search_all(
    x: NDArray[np.float32],
    target: NDArray[np.float32],
    step: NDArray[np.float32],
    up: NDArray[np.uint8],
    z: NDArray[np.float32],
    kind: int,
    p: NDArray[np.float32],
    q: NDArray[np.float32],
    most: int,
    begin: int,
    end: int,
) -> None:
    """The best of all roundings of each row that has at most `most` choices, in Gray code: one flip at a time.

    Args:
        x: shape (G, K, M), inputs.
        target: shape (R, M), activations wanted.
        step: shape (R, K), what rounding up adds.
        up: shape (R, K), result; where it starts does not matter.
        z: shape (R, M), outputs before the activation for `up`; overwritten.
        kind: The activation.
        p: shape (R,), its first parameter.
        q: shape (R,), its second parameter.
        most: Largest number of choices.
        begin: First row.
        end: Row after the last.
    """
    per = step.shape[0] // x.shape[0]
    columns = np.empty(step.shape[1], np.int64)
    for r in range(begin, end):
        count = 0
        for k in range(step.shape[1]):
            if step[r, k] != 0:
                columns[count] = k
                count += 1
        if count > most:
            continue
        data, zs, best = x[r // per], z[r], up[r].copy()
        least = moved_loss(kind, zs, zs, np.float32(0.0), target[r], p[r], q[r])
        for number in range(1, 1 << count):
            bit = 0
            while not (number >> bit) & 1:
                bit += 1
            k = columns[bit]
            d = -step[r, k] if up[r, k] else step[r, k]
            for i in range(zs.size):
                zs[i] += d * data[k, i]
            up[r, k] = 1 - up[r, k]
            loss = moved_loss(kind, zs, zs, np.float32(0.0), target[r], p[r], q[r])
            if loss < least:
                least = loss
                best[:] = up[r]
        up[r] = best
