"""Compiled loops of AdaRound: activations, the optimizer's step, and the two local searches.

Rows are output channels; row ``r`` belongs to group ``r // (rows / groups)``. Sums may be reordered to fill vector
registers, but never depend on which thread handles a row.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numba import types
from numpy.typing import NDArray

from onnxq.algos._jit import f32, f32_in, f32_in2, f32_in3, f64, i64, kernel

IDENTITY, LEAKY, CLIP, SIGMOID, TANH, GELU, GELU_TANH = range(7)

_TILE = 512
_SUMS = {"reassoc", "nsz", "contract", "nnan"}
_LOG2E = np.float32(1.4426950408889634)
_f32_out = types.Array(f32, 1, "C")
_f32_out2 = types.Array(f32, 2, "C")
_f64_out = types.Array(f64, 1, "C")
_flags = types.Array(types.uint8, 2, "C")
_order = types.Array(types.int32, 2, "C", readonly=True)
_rows_in = types.Array(f32, 2, "A", readonly=True)


@numba.njit(inline="always", error_model="numpy")
def _exp2(x: Any) -> Any:  # noqa: ANN401 - float32, which Python cannot say
    """``2**x`` with a relative error below 3e-6, for x within -126..126, in vector registers."""
    x = min(max(x, np.float32(-126.0)), np.float32(126.0))
    whole = np.floor(x + np.float32(0.5))
    f = x - whole
    p = np.float32(0.0013333558)
    p = p * f + np.float32(0.0096181291)
    p = p * f + np.float32(0.0555041087)
    p = p * f + np.float32(0.2402265070)
    p = p * f + np.float32(0.6931471806)
    p = p * f + np.float32(1.0)
    bits = (np.int32(whole) + np.int32(127)) << np.int32(23)
    return np.int32(bits).view(np.float32) * p


@numba.njit(inline="always", error_model="numpy")
def _log2(x: Any) -> Any:  # noqa: ANN401
    """``log2(x)`` of a positive normal x, absolute error below 1e-4."""
    bits = np.float32(x).view(np.int32)
    exponent = np.float32((bits >> np.int32(23)) - np.int32(127))
    m = np.int32((bits & np.int32(0x007FFFFF)) | np.int32(0x3F800000)).view(np.float32)
    p = np.float32(-0.0821343)
    p = p * m + np.float32(0.6490693)
    p = p * m + np.float32(-2.1349986)
    p = p * m + np.float32(4.0700908)
    p = p * m + np.float32(-2.5015893)
    return exponent + p


@numba.njit(inline="always", error_model="numpy")
def _value(kind: Any, z: Any, p: Any, q: Any) -> Any:  # noqa: ANN401
    if kind == LEAKY:
        return z if z >= 0 else p * z
    if kind == CLIP:
        return min(max(z, p), q)
    if kind == SIGMOID:
        return np.float32(1.0) / (np.float32(1.0) + math.exp(-z))
    if kind == TANH:
        return math.tanh(z)
    if kind == GELU:
        return np.float32(0.5) * z * (np.float32(1.0) + math.erf(z * np.float32(0.7071067811865476)))
    if kind == GELU_TANH:
        inner = np.float32(0.7978845608028654) * (z + np.float32(0.044715) * z * z * z)
        return np.float32(0.5) * z * (np.float32(1.0) + math.tanh(inner))
    return z


@numba.njit(inline="always", error_model="numpy")
def _slope(kind: Any, z: Any, p: Any, q: Any) -> Any:  # noqa: ANN401
    if kind == LEAKY:
        return np.float32(1.0) if z >= 0 else p
    if kind == CLIP:
        return np.float32(1.0) if p < z < q else np.float32(0.0)
    if kind == SIGMOID:
        s = np.float32(1.0) / (np.float32(1.0) + math.exp(-z))
        return s * (np.float32(1.0) - s)
    if kind == TANH:
        h = math.tanh(z)
        return np.float32(1.0) - h * h
    if kind == GELU:
        density = np.float32(0.3989422804014327) * math.exp(np.float32(-0.5) * z * z)
        return np.float32(0.5) * (np.float32(1.0) + math.erf(z * np.float32(0.7071067811865476))) + z * density
    if kind == GELU_TANH:
        h = math.tanh(np.float32(0.7978845608028654) * (z + np.float32(0.044715) * z * z * z))
        inner = np.float32(0.7978845608028654) * (np.float32(1.0) + np.float32(0.134145) * z * z)
        return np.float32(0.5) * (np.float32(1.0) + h) + np.float32(0.5) * z * (np.float32(1.0) - h * h) * inner
    return np.float32(1.0)


@kernel(types.void(_f32_out2, i64, f32_in, f32_in))
def activate(z: NDArray[np.float32], kind: int, p: NDArray[np.float32], q: NDArray[np.float32]) -> None:
    """Replace every number of a row by its activation."""
    for r in range(z.shape[0]):
        for i in range(z.shape[1]):
            z[r, i] = np.float32(_value(kind, z[r, i], p[r], q[r]))


@kernel(types.void(_f32_out2, _rows_in, i64, f32_in, f32_in, _f64_out), fastmath=_SUMS)
def residuals(
    z: NDArray[np.float32],
    target: NDArray[np.float32],
    kind: int,
    p: NDArray[np.float32],
    q: NDArray[np.float32],
    loss: NDArray[np.float64],
) -> None:
    """Replace ``z`` by the gradient of the squared error of its activation; write each row's squared error."""
    for r in range(z.shape[0]):
        total = 0.0
        for start in range(0, z.shape[1], _TILE):
            part = np.float32(0.0)
            for i in range(start, min(start + _TILE, z.shape[1])):
                d = np.float32(_value(kind, z[r, i], p[r], q[r])) - target[r, i]
                part += d * d
                z[r, i] = np.float32(2.0) * d * np.float32(_slope(kind, z[r, i], p[r], q[r]))
            total += part
        loss[r] = total


@kernel(
    types.void(f32_in3, i64, i64, f32_in2, f32_in, _rows_in, i64, f32_in, f32_in, _f32_out2),
    fastmath=_SUMS,
)
def grouped_gradient(
    x: NDArray[np.float32],
    start: int,
    count: int,
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    target: NDArray[np.float32],
    kind: int,
    p: NDArray[np.float32],
    q: NDArray[np.float32],
    gradient: NDArray[np.float32],
) -> None:
    """Gradient of the mean squared error over some samples, for the small matrices of grouped layers."""
    per = weight.shape[0] // x.shape[0]
    z = np.empty(count, np.float32)
    share = np.float32(2.0) / np.float32(count)
    for r in range(weight.shape[0]):
        data = x[r // per]
        z[:] = bias[r]
        for k in range(weight.shape[1]):
            w = weight[r, k]
            for i in range(count):
                z[i] += w * data[k, start + i]
        for i in range(count):
            d = np.float32(_value(kind, z[i], p[r], q[r])) - target[r, i]
            z[i] = share * d * np.float32(_slope(kind, z[i], p[r], q[r]))
        for k in range(weight.shape[1]):
            total = np.float32(0.0)
            for i in range(count):
                total += z[i] * data[k, start + i]
            gradient[r, k] = total


@kernel(types.void(_f32_out, _f32_out, _f32_out, _f32_out, f32_in, f32_in, f32_in, _f32_out, f32, f32, f32, f32, f32))
def adam_step(
    alpha: NDArray[np.float32],
    first: NDArray[np.float32],
    second: NDArray[np.float32],
    sigmoid: NDArray[np.float32],
    gradient: NDArray[np.float32],
    base: NDArray[np.float32],
    step: NDArray[np.float32],
    weight: NDArray[np.float32],
    rate: float,
    correction: float,
    reg: float,
    beta: float,
    epsilon: float,
) -> None:
    """One step of Adam on the rounding variables; writes the softly rounded weight.

    Args:
        alpha: The variables.
        first: Running mean of the gradient.
        second: Running mean of its square.
        sigmoid: ``sigmoid(alpha)``, kept between steps.
        gradient: Of the reconstruction error by the weight.
        base: Weight rounded down.
        step: What rounding up adds.
        weight: ``base + h * step``.
        rate: Learning rate over the bias correction of `first`.
        correction: Reciprocal root of the bias correction of `second`.
        reg: Weight of the regulariser, 0 while it is off.
        beta: Its exponent.
        epsilon: Adam's.
    """
    one, half = np.float32(1.0), np.float32(0.5)
    for i in range(alpha.size):
        s = sigmoid[i]
        h = np.float32(1.2) * s - np.float32(0.1)
        inside = np.float32(1.2) * s * (one - s) if (h > 0 and h < one) else np.float32(0.0)
        u = np.float32(2.0) * min(max(h, np.float32(0.0)), one) - one
        size = max(abs(u), np.float32(1e-12))
        pull = reg * np.float32(2.0) * beta * _exp2((beta - one) * _log2(size))
        g = (gradient[i] * step[i] - (pull if u >= 0 else -pull)) * inside
        m = np.float32(0.9) * first[i] + np.float32(0.1) * g
        v = np.float32(0.999) * second[i] + np.float32(0.001) * g * g
        first[i] = m
        second[i] = v
        a = alpha[i] - rate * m / (np.sqrt(v) * correction + epsilon)
        alpha[i] = a
        s = one / (one + _exp2(-a * _LOG2E))
        sigmoid[i] = s
        h = min(max(np.float32(1.2) * s - np.float32(0.1), np.float32(0.0)), one)
        weight[i] = base[i] + (h if step[i] > 0 else half) * step[i]


@kernel(types.void(f32_in3, f32_in2, f32_in2, f32_in2, _flags, i64, i64, i64), fastmath=_SUMS)
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
    columns = base.shape[1]
    per = base.shape[0] // gram.shape[0]
    slope = np.empty(columns, np.float32)
    change = np.empty(columns, np.float32)
    curve = np.empty(columns, np.float32)
    score = np.empty(columns, np.float32)
    free = np.empty(columns, np.int64)
    best = np.empty(columns, np.uint8)
    huge = np.float32(3e38)
    for r in range(begin, end):
        g = gram[r // per]
        slope[:] = -cross[r]
        for k in range(columns):
            w = base[r, k] + (step[r, k] if up[r, k] else np.float32(0.0))
            for i in range(columns):
                slope[i] += w * g[k, i]
        for k in range(columns):
            change[k] = -step[r, k] if up[r, k] else step[r, k]
            curve[k] = step[r, k] * step[r, k] * g[k, k]
            free[k] = 0
            best[k] = up[r, k]
        energy, lowest = 0.0, 0.0
        number = np.uint64(r * 2654435761 + 12345)
        since = 0
        for move in range(moves * columns):
            for i in range(columns):
                score[i] = np.float32(2.0) * change[i] * slope[i] + curve[i]
            limit = np.float32(lowest - energy)
            least, chosen = huge, -1
            for i in range(columns):
                if score[i] < least and change[i] != 0 and (free[i] <= move or score[i] < limit):
                    least, chosen = score[i], i
            if chosen < 0:
                break
            d = change[chosen]
            for i in range(columns):
                slope[i] += d * g[chosen, i]
            change[chosen] = -d
            up[r, chosen] = 1 - up[r, chosen]
            energy += least
            number = number * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
            free[chosen] = move + 1 + columns // 50 + np.int64((number >> np.uint64(33)) % np.uint64(10))
            since += 1
            if energy < lowest - 1e-7 * abs(lowest):
                lowest, since = energy, 0
                best[:] = up[r]
            if since > 2 * columns + 20:
                break
        up[r] = best


@numba.njit(inline="always", error_model="numpy", fastmath=_SUMS)
def _moved_loss(
    kind: Any,
    z: Any,
    x: Any,
    d: Any,
    target: Any,
    p: Any,
    q: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """Squared error of the activation of ``z + d * x``; a loop of its own where the compiler can vectorise it."""
    total = 0.0
    for start in range(0, z.size, _TILE):
        part = np.float32(0.0)
        end = min(start + _TILE, z.size)
        if kind == CLIP:
            for i in range(start, end):
                e = min(max(z[i] + d * x[i], p), q) - target[i]
                part += e * e
        elif kind == LEAKY:
            for i in range(start, end):
                v = z[i] + d * x[i]
                e = (v if v >= 0 else p * v) - target[i]
                part += e * e
        else:
            for i in range(start, end):
                e = np.float32(_value(kind, z[i] + d * x[i], p, q)) - target[i]
                part += e * e
        total += part
    return total


@kernel(
    types.void(f32_in3, f32_in2, f32_in2, f32_in2, f32_in2, f32_in2, _order, _flags, _f32_out2, i64, f32_in, f32_in,
               i64, i64, i64),
    fastmath=_SUMS,
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
        loss = _moved_loss(kind, zs, zs, np.float32(0.0), goal, p[r], q[r])
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
                        for i in range(zs.size):
                            pull[i] = np.float32(_value(kind, zs[i], p[r], q[r])) - goal[i]
                            bend[i] = np.float32(_slope(kind, zs[i], p[r], q[r]))
                            pull[i] *= bend[i]
                            bend[i] *= bend[i]
                        stale = False
                    linear, square = np.float32(0.0), np.float32(0.0)
                    for i in range(zs.size):
                        linear += pull[i] * data[k, i]
                        square += bend[i] * data[k, i] * data[k, i]
                    if np.float32(2.0) * d * linear + d * d * square + extra >= 0:
                        continue
                found = _moved_loss(kind, zs, data[k], d, goal, p[r], q[r])
                if found + extra < loss - 1e-7 * abs(loss):
                    loss = found
                    up[r, k] = 1 - up[r, k]
                    for i in range(zs.size):
                        zs[i] += d * data[k, i]
                    stale = True
                    flips += 1
            if flips == 0:
                break
