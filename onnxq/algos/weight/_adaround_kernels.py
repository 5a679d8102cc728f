"""Compiled loops of AdaRound: activations, the gradients and the optimizer's step.

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
SUMS = {"reassoc", "nsz", "contract", "nnan"}
_LOG2E = np.float32(1.4426950408889634)
_f32_out = types.Array(f32, 1, "C")
_f32_out2 = types.Array(f32, 2, "C")
_f64_out = types.Array(f64, 1, "C")


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
def value_at(kind: Any, z: Any, p: Any, q: Any) -> Any:  # noqa: ANN401
    """The activation of a number."""
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
def slope_at(kind: Any, z: Any, p: Any, q: Any) -> Any:  # noqa: ANN401
    """Its derivative."""
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


@numba.njit(inline="always", error_model="numpy", fastmath=SUMS)
def moved_loss(kind: Any, z: Any, x: Any, d: Any, target: Any, p: Any, q: Any) -> Any:  # noqa: ANN401
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
                e = np.float32(value_at(kind, z[i] + d * x[i], p, q)) - target[i]
                part += e * e
        total += float(part)
    return total


@kernel(types.void(_f32_out2, i64, f32_in, f32_in))
def activate(z: NDArray[np.float32], kind: int, p: NDArray[np.float32], q: NDArray[np.float32]) -> None:
    """Replace every number of a row by its activation."""
    for r in range(z.shape[0]):
        for i in range(z.shape[1]):
            z[r, i] = np.float32(value_at(kind, z[r, i], p[r], q[r]))


@kernel(types.void(_f32_out2, f32_in2, i64, f32_in, f32_in, f32_in, f32), fastmath=SUMS)
def error_gradient(
    z: NDArray[np.float32],
    target: NDArray[np.float32],
    kind: int,
    p: NDArray[np.float32],
    q: NDArray[np.float32],
    bias: NDArray[np.float32],
    share: float,
) -> None:
    """Replace ``z`` by ``share`` times the gradient of half the squared error of the activation of ``z + bias``."""
    for r in range(z.shape[0]):
        b, low, high = bias[r], p[r], q[r]
        out, goal = z[r], target[r]
        if kind == CLIP:
            for i in range(out.size):
                v = out[i] + b
                d = share * (min(max(v, low), high) - goal[i])
                out[i] = d if (v > low) & (v < high) else np.float32(0.0)
        elif kind == IDENTITY:
            for i in range(out.size):
                out[i] = share * (out[i] + b - goal[i])
        else:
            for i in range(out.size):
                v = out[i] + b
                d = np.float32(value_at(kind, v, low, high)) - goal[i]
                out[i] = share * d * np.float32(slope_at(kind, v, low, high))


@kernel(types.void(f32_in2, f32_in2, i64, f32_in, f32_in, f32_in, _f64_out), fastmath=SUMS)
def add_errors(
    z: NDArray[np.float32],
    target: NDArray[np.float32],
    kind: int,
    p: NDArray[np.float32],
    q: NDArray[np.float32],
    bias: NDArray[np.float32],
    loss: NDArray[np.float64],
) -> None:
    """Add to each row's loss the squared error of the activation of ``z + bias``."""
    for r in range(z.shape[0]):
        out, goal, b, low, high = z[r], target[r], bias[r], p[r], q[r]
        for start in range(0, out.size, _TILE):
            part = np.float32(0.0)
            for i in range(start, min(start + _TILE, out.size)):
                e = np.float32(value_at(kind, out[i] + b, low, high)) - goal[i]
                part += e * e
            loss[r] += part


@kernel(types.void(_f32_out2, f32_in2, i64, f32_in, f32_in, _f32_out2))
def tangents(
    z: NDArray[np.float32],
    target: NDArray[np.float32],
    kind: int,
    p: NDArray[np.float32],
    q: NDArray[np.float32],
    bend: NDArray[np.float32],
) -> None:
    """Replace outputs by the error of their activation times its slope; write the slope squared."""
    for r in range(z.shape[0]):
        for i in range(z.shape[1]):
            slope = np.float32(slope_at(kind, z[r, i], p[r], q[r]))
            z[r, i] = (np.float32(value_at(kind, z[r, i], p[r], q[r])) - target[r, i]) * slope
            bend[r, i] = slope * slope


@kernel(types.void(f32_in3, f32_in2, _f32_out2, i64, i64))
def grouped_product(
    x: NDArray[np.float32], weight: NDArray[np.float32], z: NDArray[np.float32], per: int, first: int
) -> None:
    """``z = weight x`` for the small matrices of grouped layers.

    Args:
        x: shape (G, K, B).
        weight: shape (rows, K).
        z: shape (rows, B), written.
        per: Rows of a group.
        first: Number of the first row.
    """
    for r in range(weight.shape[0]):
        data, out = x[(first + r) // per], z[r]
        out[:] = np.float32(0.0)
        for k in range(weight.shape[1]):
            w, column = weight[r, k], data[k]
            for i in range(out.size):
                out[i] += w * column[i]


@kernel(types.void(f32_in3, f32_in2, _f32_out2, i64, i64), fastmath=SUMS)
def grouped_gradient(
    x: NDArray[np.float32], z: NDArray[np.float32], gradient: NDArray[np.float32], per: int, first: int
) -> None:
    """``gradient = z xT`` for the small matrices of grouped layers; arguments as for `grouped_product`."""
    for r in range(gradient.shape[0]):
        data, out = x[(first + r) // per], z[r]
        for k in range(gradient.shape[1]):
            total, column = np.float32(0.0), data[k]
            for i in range(out.size):
                total += out[i] * column[i]
            gradient[r, k] = total


@kernel(types.void(_f32_out, _f32_out, _f32_out, _f32_out, _f32_out, f32_in, f32_in, _f32_out, f32, f32, f32, f32, f32))
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
        gradient: Of the reconstruction error by the weight; overwritten.
        base: Weight rounded down.
        step: What rounding up adds.
        weight: ``base + h * step``.
        rate: Learning rate over the bias correction of `first`.
        correction: Reciprocal root of the bias correction of `second`.
        reg: Weight of the regulariser, 0 while it is off.
        beta: Its exponent.
        epsilon: Adam's.
    """
    one, zero = np.float32(1.0), np.float32(0.0)
    for start in range(0, alpha.size, _TILE):  # short loops over few arrays: these the compiler can vectorise
        end = min(start + _TILE, alpha.size)
        g, s, d = gradient[start:end], sigmoid[start:end], step[start:end]
        m, v, a, w = first[start:end], second[start:end], alpha[start:end], weight[start:end]
        b = base[start:end]
        for i in range(g.size):
            g[i] *= d[i]
        if reg > 0:
            for i in range(g.size):
                u = np.float32(2.0) * min(max(np.float32(1.2) * s[i] - np.float32(0.1), zero), one) - one
                power = _exp2((beta - np.float32(2.0)) * _log2(max(abs(u), np.float32(1e-12))))
                g[i] -= np.float32(2.0) * reg * beta * power * u
        for i in range(g.size):
            h = np.float32(1.2) * s[i] - np.float32(0.1)
            g[i] *= np.float32(1.2) * s[i] * (one - s[i]) if (h > zero) & (h < one) else zero
        for i in range(g.size):
            m[i] = np.float32(0.9) * m[i] + np.float32(0.1) * g[i]
        for i in range(g.size):
            v[i] = np.float32(0.999) * v[i] + np.float32(0.001) * g[i] * g[i]
        for i in range(g.size):
            a[i] -= rate * m[i] / (np.sqrt(v[i]) * correction + epsilon)
        for i in range(g.size):
            s[i] = one / (one + _exp2(-a[i] * _LOG2E))
        for i in range(g.size):
            w[i] = b[i] + min(max(np.float32(1.2) * s[i] - np.float32(0.1), zero), one) * d[i]
