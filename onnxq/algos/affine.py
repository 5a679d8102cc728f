"""The affine map between reals and codes: from a range to `QuantParams`, and its application to arrays.

``code = clip(round(x / scale) + zero_point)``, ``x' = scale * (code - zero_point)``. The division is in float32 and
ties go to the even neighbour, as in ONNX's QuantizeLinear. Codes of a float8 type are its bits, as uint8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxq.algos import float8
from onnxq.errors import CalibrationError
from onnxq.spec import Granularity, PerAxis, PerBlock, PerTensor, QType, QuantParams, QuantSpec

S = TypeVar("S", bound=np.generic)
T = TypeVar("T", np.uint8, np.float32)

#: Smallest scale given out: the product of two (a bias scale) is still a normal float32, and the reciprocal is finite.
MIN_SCALE = 2.0**-63
#: Scale of a tensor that holds nothing but zeros.
ZERO_SCALE = 1.0
_LARGEST = float(np.finfo(np.float32).max)
_CHUNK = 1 << 16


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


def fp16_scale(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the nearest scales that hardware with float16 factors holds exactly.

    A scale outside float16's normal range becomes the square of a float16: the hardware multiplies twice.

    Args:
        scale: float32, > 0.

    Source: AMCT's FORCE_FP16_QUANT (specs of AMCT, section 3.7).
    """
    value = np.asarray(scale, np.float32)
    direct = (value <= np.float32(65504)) & (value >= np.float32(2.0**-14))
    root = np.square(np.sqrt(value).astype(np.float16).astype(np.float32))
    with np.errstate(over="ignore"):
        return np.where(direct, value.astype(np.float16).astype(np.float32), root)


def safe_scale(scale: ArrayLike) -> NDArray[np.float32]:
    """Return float32 scales > 0: zeros become `ZERO_SCALE`, the rest is clamped to at least `MIN_SCALE`.

    Raises:
        CalibrationError: If a scale is negative or NaN.
    """
    value = np.asarray(scale, np.float64)
    if not (value >= 0).all():
        raise CalibrationError("a scale is negative or NaN")
    value = np.where(value == 0, ZERO_SCALE, np.clip(value, MIN_SCALE, _LARGEST))
    return value.astype(np.float32)


def quantize(x: NDArray[np.floating], params: QuantParams) -> NDArray[np.integer]:
    """Return the codes of an array, bit-equal to ONNX Runtime's QuantizeLinear.

    Args:
        x: float16, float32 or float64 (rounded to float32 first), finite, the shape the granularity of `params`
            describes.
        params: Scales of shape (), (x.shape[axis],) or blocked; containers of up to 16 bits.

    Returns:
        Shape of `x`; the smallest numpy integer type that holds the container (int8 for int4); uint8 for float8.

    Raises:
        CalibrationError: If the shape of the scales does not fit `x`, or the container is int32.
    """
    if params.spec.qtype.floating:
        return _on_float8(x, params, float8.encode, np.dtype(np.uint8))
    dtype = code_dtype(params.spec)
    if dtype.itemsize > 2:
        raise CalibrationError("reals are not quantized to int32; see onnxq.algos.bias_correct for biases")
    from onnxq.algos._affine_kernels import quantizer

    layout = _Layout.of(x.shape, params)
    codes = np.empty(x.shape, dtype)
    if codes.size:
        out = codes.reshape(layout.matrix).view(f"i{dtype.itemsize}")
        zero_point = layout.per_scale(params.zero_point)
        quantizer(dtype.itemsize)(
            _matrix(x, layout), *layout.scale_and_bounds(params), zero_point, layout.size, layout.inner, out
        )
    return codes


def dequantize(codes: NDArray[np.integer], params: QuantParams) -> NDArray[np.float32]:
    """Return ``scale * (code - zero_point)`` in float32, bit-equal to ONNX Runtime's DequantizeLinear.

    Args:
        codes: Any integer type; shape as for `quantize`.
        params: As for `quantize`; int32 containers are allowed.

    Raises:
        CalibrationError: If the shape of the scales does not fit `codes`.
    """
    check_layout(codes.shape, params)
    out = np.empty(codes.shape, np.float32)
    qtype = params.spec.qtype
    for part, scale, zero_point in broadcast_parts(codes.shape, params):
        if qtype.floating:
            out[part] = float8.decode(codes[part].astype(np.uint8), qtype) * scale
            continue
        out[part] = (codes[part].astype(np.int32) - zero_point).astype(np.float32) * scale
    return out


def fake_quantize(x: NDArray[np.floating], params: QuantParams) -> NDArray[np.float32]:
    """Return ``dequantize(quantize(x))``, in one pass: what a quantized model computes with instead of `x`.

    Args:
        x: As for `quantize`.
        params: As for `quantize`.

    Raises:
        CalibrationError: As for `quantize`.
    """
    if params.spec.qtype.floating:
        reals = _on_float8(x, params, float8.round_to, np.dtype(np.float32))
        for part, scale, _ in broadcast_parts(reals.shape, params):
            reals[part] *= scale
        return reals
    from onnxq.algos._affine_kernels import fake_quantizer

    layout = _Layout.of(x.shape, params)
    out = np.empty(x.shape, np.float32)
    if out.size:
        matrix = out.reshape(layout.matrix)
        fake_quantizer()(_matrix(x, layout), *layout.scale_and_bounds(params), layout.size, layout.inner, matrix)
    return out


def _on_float8(
    x: NDArray[np.floating],
    params: QuantParams,
    function: Callable[[NDArray[np.float32], QType], NDArray[T]],
    dtype: np.dtype[T],
) -> NDArray[T]:
    """What `function` makes of ``x / scale``, piece by piece."""
    check_layout(x.shape, params)
    out = np.empty(x.shape, dtype)
    with np.errstate(over="ignore"):  # infinity is cut off like all that is too large
        for part, scale, _ in broadcast_parts(x.shape, params):
            out[part] = function(np.asarray(x[part], np.float32) / scale, params.spec.qtype)
    return out


def code_dtype(spec: QuantSpec) -> np.dtype[np.integer]:
    """Return the numpy type of codes: int8, uint8, int16, uint16 or int32.

    Sub-byte containers use 8 bits, float8 types the bits of a uint8.
    """
    if spec.qtype.floating:
        return np.dtype(np.uint8)
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


@dataclass(frozen=True, slots=True)
class _Layout:
    """How the kernels see an array: elements (outer, length * inner), scales (outer or 1, blocks, inner or 1)."""

    outer: int
    length: int
    inner: int
    size: int
    scales: tuple[int, int, int]

    @property
    def matrix(self) -> tuple[int, int]:
        return self.outer, self.length * self.inner

    @staticmethod
    def of(shape: tuple[int, ...], params: QuantParams) -> _Layout:
        check_layout(shape, params)
        match params.spec.granularity:
            case PerTensor():
                return _Layout(1, math.prod(shape), 1, max(1, math.prod(shape)), (1, 1, 1))
            case PerAxis(axis=axis):
                axis = normalized_axis(axis, len(shape))
                outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
                if inner == 1:  # a whole row of scales at a time
                    return _Layout(1, outer, shape[axis], max(1, outer), (1, 1, shape[axis]))
                return _Layout(outer, shape[axis], inner, 1, (1, shape[axis], 1))
            case PerBlock(axis=axis, size=size):
                axis = normalized_axis(axis, len(shape))
                outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
                return _Layout(outer, shape[axis], inner, size, (outer, params.scale.shape[axis], inner))

    def per_scale(self, values: NDArray[S]) -> NDArray[S]:
        return np.ascontiguousarray(values).reshape(self.scales)

    def scale_and_bounds(
        self, params: QuantParams
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        qmin, qmax = params.spec.bounds
        low = (qmin - params.zero_point).astype(np.float32)
        high = (qmax - params.zero_point).astype(np.float32)
        return self.per_scale(params.scale), self.per_scale(low), self.per_scale(high)


def _matrix(x: NDArray[np.floating], layout: _Layout) -> NDArray[np.float32]:
    return np.require(np.asarray(x), np.float32, ("C", "A")).reshape(layout.matrix)


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


def row_slices(shape: tuple[int, ...], granularity: Granularity, *, elements: int = 1 << 22) -> Iterator[slice]:
    """Cut an array along its first axis in pieces of about so many elements, never through a block.

    Args:
        shape: Of the array, at least one axis.
        granularity: Which elements share a scale.
        elements: Wanted size of a piece; a single row may be larger.
    """
    rows = max(1, elements // max(1, math.prod(shape[1:])))
    if isinstance(granularity, PerBlock) and normalized_axis(granularity.axis, len(shape)) == 0:
        rows = -(-rows // granularity.size) * granularity.size
    for start in range(0, shape[0], rows):
        yield slice(start, min(start + rows, shape[0]))


def scale_rows(rows: slice, rank: int, granularity: Granularity) -> slice | None:
    """Return which scales, along their first axis, belong to these rows of the array; None if the rows share them."""
    match granularity:
        case PerAxis(axis=axis) if normalized_axis(axis, rank) == 0:
            return rows
        case PerBlock(axis=axis, size=size):
            if normalized_axis(axis, rank) == 0:
                return slice(rows.start // size, -(-rows.stop // size))
            return rows
    return None


def broadcast_parts(
    shape: tuple[int, ...], params: QuantParams
) -> Iterator[tuple[tuple[slice, ...], NDArray[np.float32], NDArray[np.int32]]]:
    """Cut an array along its first axis; yield the slice with scales and zero points that broadcast against it."""
    granularity = params.spec.granularity
    if not shape:
        yield (), params.scale, params.zero_point
        return
    for rows in row_slices(shape, granularity, elements=_CHUNK):
        scale, zero_point = (
            _spread(v, shape, params.spec.granularity, rows) for v in (params.scale, params.zero_point)
        )
        yield (rows,), scale, zero_point


def _spread(values: NDArray[Any], shape: tuple[int, ...], granularity: Granularity, rows: slice) -> NDArray[Any]:
    """Shape the scales (or zero points) of some rows so that they broadcast against those rows."""
    own = scale_rows(rows, len(shape), granularity)
    part = values if own is None else values[own]
    match granularity:
        case PerTensor():
            return part
        case PerAxis(axis=axis):
            axis = normalized_axis(axis, len(shape))
            return part.reshape([-1 if i == axis else 1 for i in range(len(shape))])
        case PerBlock(axis=axis, size=size):
            axis = normalized_axis(axis, len(shape))
            length = rows.stop - rows.start if axis == 0 else shape[axis]
            return np.repeat(part, size, axis=axis)[(slice(None),) * axis + (slice(length),)]
