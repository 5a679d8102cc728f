"""The affine map between reals and codes: from a range to `QuantParams`, and its application to arrays.

``code = clip(round(x / scale) + zero_point)``, ``x' = scale * (code - zero_point)``. The division is in float32 and
ties go to the even neighbour, as in ONNX's QuantizeLinear.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxq.errors import CalibrationError
from onnxq.spec import Granularity, PerAxis, PerBlock, PerTensor, QuantParams, QuantSpec

S = TypeVar("S", bound=np.generic)

#: Smallest scale given out: the smallest normal float32 times 2**24, so that neither a scale nor a bias scale
#: (a product of two) times a code loses bits, and 1/scale is finite.
MIN_SCALE = float(np.float32(2.0**-102))
#: Largest scale given out: a code of 16 bits times it is still a finite float32.
MAX_SCALE = float(np.float32(2.0**110))
#: Scale of a tensor that holds nothing but zeros.
ZERO_SCALE = 1.0
_CHUNK = 1 << 22


def params_from_range(low: ArrayLike, high: ArrayLike, spec: QuantSpec, *, full_range: bool = False) -> QuantParams:
    """Return the scale and zero point that cover ``[low, high]``.

    Zero is always inside the covered range and always has a code of its own.

    * asymmetric: ``scale = (high - low) / (qmax - qmin)``, ``zero_point = clip(round(qmin - low / scale))``;
    * symmetric: ``scale = max(-low, high) / (qmax - middle)``, ``zero_point = middle``;
    * symmetric with `full_range`: where ``-low > high`` the scale is ``-low / (middle - qmin)``, so that the lowest
      code is in use as well (AMCT's rule).

    The scale is computed in float64 and rounded to float32; the zero point is computed from the rounded scale.
    All-zero ranges give scale 1.

    Args:
        low: Smallest real, a number or one per scale.
        high: Largest real, same shape.
        spec: What is wanted; ``spec.granularity`` must fit the shape.
        full_range: See above; has no effect on asymmetric or narrow specs.

    Raises:
        CalibrationError: If a bound is not finite, ``low > high``, or the shape does not fit the granularity.
    """
    low_, high_ = _checked_range(low, high, spec)
    qmin, qmax = spec.bounds
    if spec.symmetric:
        raw = np.maximum(-low_, high_) / _levels_above(spec)
        if full_range:
            raw = np.where(-low_ > high_, -low_ / max(spec.middle - qmin, 1), raw)
        scale = safe_scale(raw)
        return QuantParams(spec, scale, np.full(scale.shape, spec.middle, np.int32))
    if qmax == qmin:
        raise CalibrationError(f"{spec.bits} bits hold a single code; use at least 2")
    scale = safe_scale((high_ - low_) / (qmax - qmin))
    zero_point = np.clip(np.rint(qmin - low_ / scale.astype(np.float64)), qmin, qmax)
    return QuantParams(spec, scale, zero_point.astype(np.int32))


def safe_scale(scale: ArrayLike) -> NDArray[np.float32]:
    """Return float32 scales > 0: zeros become `ZERO_SCALE`, the rest is clamped to `MIN_SCALE` .. `MAX_SCALE`.

    Raises:
        CalibrationError: If a scale is negative or NaN.
    """
    value = np.asarray(scale, np.float64)
    if not (value >= 0).all():
        raise CalibrationError("a scale is negative or NaN")
    value = np.where(value == 0, ZERO_SCALE, np.clip(value, MIN_SCALE, MAX_SCALE))
    return value.astype(np.float32)


def quantize(x: NDArray[np.floating], params: QuantParams) -> NDArray[np.integer]:
    """Return the codes of an array, bit-equal to ONNX Runtime's QuantizeLinear.

    Args:
        x: float16, float32 or float64 (rounded to float32 first), the shape the granularity of `params` describes.
        params: Scales of shape (), (x.shape[axis],) or blocked.

    Returns:
        Shape of `x`; the smallest numpy integer type that holds the container (int8 for int4).

    Raises:
        CalibrationError: If the shape of the scales does not fit `x`.
    """
    check_layout(x.shape, params)
    qmin, qmax = params.spec.bounds
    codes = np.empty(x.shape, code_dtype(params.spec))
    for part, scale, zero_point in _parts(x.shape, params):
        value = np.asarray(x[part], np.float32)
        with np.errstate(over="ignore"):  # an overflow to infinity saturates below
            value = value / scale
        np.rint(value, out=value)
        np.clip(value, (qmin - zero_point).astype(np.float32), (qmax - zero_point).astype(np.float32), out=value)
        codes[part] = value.astype(np.int32) + zero_point
    return codes


def dequantize(codes: NDArray[np.integer], params: QuantParams) -> NDArray[np.float32]:
    """Return ``scale * (code - zero_point)`` in float32, bit-equal to ONNX Runtime's DequantizeLinear.

    Args:
        codes: Any integer type; shape as for `quantize`.
        params: As for `quantize`.

    Raises:
        CalibrationError: If the shape of the scales does not fit `codes`.
    """
    check_layout(codes.shape, params)
    out = np.empty(codes.shape, np.float32)
    for part, scale, zero_point in _parts(codes.shape, params):
        out[part] = (codes[part].astype(np.int32) - zero_point).astype(np.float32) * scale
    return out


def fake_quantize(x: NDArray[np.floating], params: QuantParams) -> NDArray[np.float32]:
    """Return ``dequantize(quantize(x))``: what a quantized model computes with instead of `x`."""
    return dequantize(quantize(x, params), params)


def code_dtype(spec: QuantSpec) -> np.dtype[np.integer]:
    """Return the numpy type of codes: int8, uint8, int16, uint16 or int32; sub-byte containers use 8 bits."""
    bits = max(8, spec.qtype.bits)
    return np.dtype(f"{'int' if spec.qtype.signed else 'uint'}{bits}")


def scale_shape(shape: tuple[int, ...], spec: QuantSpec) -> tuple[int, ...]:
    """Return the shape of the scales of an array.

    Raises:
        CalibrationError: If the axis does not exist.
    """
    match spec.granularity:
        case PerTensor():
            return ()
        case PerAxis(axis=axis):
            return (shape[normalized_axis(axis, len(shape))],)
        case PerBlock(axis=axis, size=size):
            axis = normalized_axis(axis, len(shape))
            return (*shape[:axis], -(-shape[axis] // size), *shape[axis + 1 :])


def normalized_axis(axis: int, rank: int) -> int:
    """Return `axis` counted from the front.

    Raises:
        CalibrationError: If a tensor of this rank has no such axis.
    """
    if not -rank <= axis < rank:
        raise CalibrationError(f"axis {axis} does not exist in a tensor of rank {rank}; use {-rank} to {rank - 1}")
    return axis % rank


def check_layout(shape: tuple[int, ...], params: QuantParams) -> None:
    """Check that the scales fit an array of this shape.

    Raises:
        CalibrationError: If not.
    """
    expected = scale_shape(shape, params.spec)
    if params.scale.shape != expected:
        raise CalibrationError(
            f"{params.spec.granularity} of a tensor of shape {shape} needs scales of shape {expected}, "
            f"got {params.scale.shape}"
        )


def _checked_range(low: ArrayLike, high: ArrayLike, spec: QuantSpec) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    low_ = np.asarray(low, np.float64)
    high_ = np.asarray(high, np.float64)
    rank = {PerTensor: 0, PerAxis: 1}.get(type(spec.granularity))
    if low_.shape != high_.shape or (rank is not None and low_.ndim != rank):
        raise CalibrationError(f"ranges of shape {low_.shape} and {high_.shape} do not fit {spec.granularity}")
    if not (np.isfinite(low_).all() and np.isfinite(high_).all()):
        raise CalibrationError(f"the range [{low_.min()}, {high_.max()}] is not finite")
    if (low_ > high_).any():
        raise CalibrationError("a range has its lower bound above its upper bound")
    return np.minimum(low_, 0.0), np.maximum(high_, 0.0)


def _levels_above(spec: QuantSpec) -> int:
    """Number of codes above the middle; 1 for a single bit, whose codes are -1 and 0."""
    return max(spec.bounds[1] - spec.middle, 1)


def _parts(
    shape: tuple[int, ...], params: QuantParams
) -> Iterator[tuple[tuple[slice, ...], NDArray[np.float32], NDArray[np.int32]]]:
    """Cut an array along its first axis; yield the slice with scales and zero points that broadcast against it."""
    scale, zero_point = params.scale, params.zero_point
    if not shape:
        yield (), scale, zero_point
        return
    rows = max(1, _CHUNK // max(1, int(np.prod(shape[1:], dtype=np.int64))))
    granularity = params.spec.granularity
    if isinstance(granularity, PerBlock) and normalized_axis(granularity.axis, len(shape)) == 0:
        rows = -(-rows // granularity.size) * granularity.size
    for start in range(0, shape[0], rows):
        stop = min(start + rows, shape[0])
        part = (slice(start, stop),)
        yield (
            part,
            _spread(scale, shape, granularity, start, stop),
            _spread(zero_point, shape, granularity, start, stop),
        )


def _spread(values: NDArray[S], shape: tuple[int, ...], granularity: Granularity, start: int, stop: int) -> NDArray[S]:
    """Shape the scales (or zero points) of rows `start` to `stop` so that they broadcast against those rows."""
    match granularity:
        case PerTensor():
            return values
        case PerAxis(axis=axis):
            axis = normalized_axis(axis, len(shape))
            part = values[start:stop] if axis == 0 else values
            return part.reshape([-1 if i == axis else 1 for i in range(len(shape))])
        case PerBlock(axis=axis, size=size):
            axis = normalized_axis(axis, len(shape))
            if axis == 0:
                return np.repeat(values[start // size : -(-stop // size)], size, axis=0)[: stop - start]
            blocks = np.repeat(values[start:stop], size, axis=axis)
            return blocks[(slice(None),) * axis + (slice(shape[axis]),)]
