"""Codes of a fixed width for weights that are decoded to floats."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.affine import scale_shape
from onnxq.algos.weight._groups import pieces
from onnxq.algos.weight.absmax import AbsMaxConfig
from onnxq.algos.weight.codes import WeightCodes
from onnxq.algos.weight.mean_variance import with_correction
from onnxq.algos.weight.min_max import params_from_min_max
from onnxq.algos.weight.mse import MseConfig
from onnxq.errors import CalibrationError
from onnxq.spec import PerAxis, QuantSpec

Vector = NDArray[np.float32]
"""One number per channel, of the shape of the scales."""


def find_codes(
    weight: NDArray[np.float32], spec: QuantSpec, config: AbsMaxConfig | MseConfig, *, correction: bool = True
) -> WeightCodes:
    """Return the codes that cover the range of each channel, or the part of it with the least squared error.

    One bit has two codes, of which one would always stand for zero: with `correction` they are split at the mean of
    each channel instead, and decoded so that mean and variance come back.

    Args:
        weight: float32, any shape; a memmap is read in pieces.
        spec: Width, granularity (per tensor or per axis) and symmetry.
        config: How the range is chosen.
        correction: Give each channel back its mean and variance.

    Raises:
        CalibrationError: If the weight holds NaN or infinity.
    """
    low, high, mean = _extremes(weight, spec)
    if spec.bits == 1 and correction:
        one = _split(spec, low, high, mean)
        return with_correction(weight, one, largest=np.inf)
    codes = _covering(spec, low, high)
    if isinstance(config, MseConfig):
        share = _best_share(weight, spec, codes, config)
        codes = _covering(spec, (low * share).astype(np.float32), (high * share).astype(np.float32))
    return with_correction(weight, codes) if correction else codes


def _covering(spec: QuantSpec, low: Vector, high: Vector) -> WeightCodes:
    scale, zero_point = params_from_min_max(low, high, spec.bounds, symmetric=spec.symmetric)
    return _plain(spec, scale, zero_point)


def _plain(spec: QuantSpec, scale: Vector, zero_point: NDArray[np.int32]) -> WeightCodes:
    axis = spec.granularity.axis if isinstance(spec.granularity, PerAxis) else None
    ones, zeros = np.ones_like(scale), np.zeros_like(scale)
    return WeightCodes(spec.bits, spec.bounds[0], axis, scale, zero_point, ones, zeros)


def _split(spec: QuantSpec, low: Vector, high: Vector, mean: NDArray[np.float64]) -> WeightCodes:
    """Two codes that part at the mean: the edge lies half a scale from zero, on the side that the zero point says."""
    smallest = np.maximum(np.maximum(-low, high) * np.float32(2.0**-20), np.float32(1e-30))
    scale = np.maximum(np.abs(2 * mean).astype(np.float32), smallest)
    zero_point = np.where(mean > 0, spec.bounds[0], spec.bounds[1]).astype(np.int32)
    return _plain(spec, scale, zero_point)


def _extremes(weight: NDArray[np.float32], spec: QuantSpec) -> tuple[Vector, Vector, NDArray[np.float64]]:
    """The smallest, the largest and the mean weight of each channel."""
    shape = scale_shape(weight.shape, spec)
    low, high = np.full(shape, np.inf, np.float32), np.full(shape, -np.inf, np.float32)
    mean = np.zeros(shape)
    for own, matrix in pieces(weight, spec.granularity):
        region = ... if own is None else own
        low[region] = np.minimum(low[region], matrix.min(axis=1).reshape(low[region].shape))
        high[region] = np.maximum(high[region], matrix.max(axis=1).reshape(low[region].shape))
        mean[region] += matrix.sum(axis=1, dtype=np.float64).reshape(low[region].shape)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise CalibrationError("the weight holds NaN or infinity; repair or leave out this layer")
    return low, high, mean / (weight.size // max(low.size, 1))


def _best_share(
    weight: NDArray[np.float32], spec: QuantSpec, codes: WeightCodes, config: MseConfig
) -> NDArray[np.float64]:
    """The part of each channel's range with the least squared error; on a tie the larger one."""
    from onnxq.algos.weight._kernels import squared_errors

    shares = config.shares()
    bounds = [(bound - codes.zero_point).astype(np.float32) for bound in spec.bounds]
    errors = np.zeros((codes.scale.size, shares.size))
    for own, matrix in pieces(weight, spec.granularity):
        part = slice(None) if own is None else own
        scale, lowest, highest = (v.reshape(-1)[part] for v in (codes.scale, *bounds))
        squared_errors(matrix, scale, lowest, highest, shares.astype(np.float32), errors[part])
    best: NDArray[np.float64] = shares[np.argmin(errors, axis=1)].reshape(codes.scale.shape)
    return best
