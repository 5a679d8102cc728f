"""Going through a weight piece by piece: one row per scale, however the scales lie in the array."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.affine import normalized_axis, row_slices, scale_rows, scale_shape
from onnxq.errors import CalibrationError
from onnxq.spec import Granularity, PerAxis, PerBlock, PerTensor, QuantSpec


def pieces(weight: NDArray[np.generic], granularity: Granularity) -> Iterator[tuple[slice | None, NDArray[np.float32]]]:
    """Yield the weight in bounded pieces.

    Yields:
        Which scales a piece belongs to (along their first axis; None: to all of them, as do the other pieces), and the
        piece as shape (G, E) float32, C contiguous, one row per scale in C order. A last block that is not full is
        padded with zeros, which change neither a range that includes zero nor an error.
    """
    shape = weight.shape
    for rows in row_slices(shape, granularity) if shape else (slice(None),):
        part = np.asarray(weight[rows] if shape else weight, np.float32)
        yield scale_rows(rows, len(shape), granularity) if shape else None, _grouped(part, granularity)


def ranges(weight: NDArray[np.generic], spec: QuantSpec) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the smallest and largest weight of each scale, zero included; both of the shape of the scales.

    Args:
        weight: Any float type, any shape; a memmap is read once.
        spec: Its granularity counts.

    Raises:
        CalibrationError: If the weight holds NaN or infinity, or lacks the axis.
    """
    shape = scale_shape(weight.shape, spec)
    low, high = np.zeros(shape), np.zeros(shape)
    for own, matrix in pieces(weight, spec.granularity):
        least, most = (f(axis=1, initial=0) for f in (matrix.min, matrix.max))
        if not (np.isfinite(least).all() and np.isfinite(most).all()):
            raise CalibrationError("the weight holds NaN or infinity; repair or leave out this layer")
        region = ... if own is None else own
        low[region] = np.minimum(low[region], least.reshape(low[region].shape))
        high[region] = np.maximum(high[region], most.reshape(high[region].shape))
    return low, high


def _grouped(part: NDArray[np.float32], granularity: Granularity) -> NDArray[np.float32]:
    match granularity:
        case PerTensor():
            return np.ascontiguousarray(part).reshape(1, -1)
        case PerAxis(axis=axis):
            moved = np.moveaxis(part, axis, 0)
            return np.ascontiguousarray(moved).reshape(moved.shape[0], -1 if moved.size else 0)
        case PerBlock(axis=axis, size=size):
            axis = normalized_axis(axis, part.ndim)
            last = np.moveaxis(part, axis, -1)
            short = -last.shape[-1] % size
            if short:
                last = np.concatenate([last, np.zeros((*last.shape[:-1], short), np.float32)], axis=-1)
            blocks = last.reshape(*last.shape[:-1], -1, size)
            return np.ascontiguousarray(np.moveaxis(blocks, -2, axis)).reshape(-1, size)
