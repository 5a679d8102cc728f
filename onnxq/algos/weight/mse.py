"""MSE: for each scale the share of the largest magnitude that reconstructs its weights best."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.algos import float8
from onnxq.algos._fields import check_number
from onnxq.algos.affine import params_from_range
from onnxq.algos.weight._groups import pieces, ranges
from onnxq.errors import RecipeError
from onnxq.spec import QuantParams, QuantSpec


@dataclass(frozen=True, slots=True)
class MseConfig:
    """Parameters of `find_params`.

    Attributes:
        search_start: Smallest share of the range tried.
        search_end: Largest share tried.
        search_step: Distance of the shares.
    """

    search_start: float = 0.3
    search_end: float = 1.0
    search_step: float = 0.01

    def __post_init__(self) -> None:
        check_number("search_start", self.search_start, 0, 2, open_low=True)
        check_number("search_end", self.search_end, 0, 2, open_low=True)
        check_number("search_step", self.search_step, 0, 2, open_low=True)
        if self.search_start >= self.search_end:
            raise RecipeError(f"search_start {self.search_start} must be below search_end {self.search_end}")
        if self._count() > 1000:
            raise RecipeError(f"search_step {self.search_step} makes {self._count()} shares; use at most 1000")

    def _count(self) -> int:
        return math.floor((self.search_end - self.search_start) / self.search_step + 1e-9) + 1

    def shares(self) -> NDArray[np.float64]:
        """Shares tried, from `search_end` down to `search_start`."""
        return self.search_end - self.search_step * np.arange(self._count(), dtype=np.float64)


def find_params(weight: NDArray[np.generic], spec: QuantSpec, config: MseConfig) -> QuantParams:
    """Return the scales with the least squared error; on a tie the larger scale.

    Each scale is searched by itself over the shares of its range; both ends of an asymmetric range shrink alike, so its
    zero point stays. An all-zero slice gets scale 1.

    Args:
        weight: Any float type, any shape; a memmap is read twice, in pieces.
        spec: Granularity, width and symmetry.
        config: Parameters.

    Raises:
        CalibrationError: If the weight holds NaN or infinity, or lacks the axis.
    """
    if spec.qtype.floating:
        return _find_float8(weight, spec, config)
    from onnxq.algos.weight._kernels import squared_errors

    low, high = ranges(weight, spec)
    full = params_from_range(low, high, spec)
    shares = config.shares()
    bounds = [(bound - full.zero_point).astype(np.float32) for bound in spec.bounds]
    best = np.ones(low.shape)
    shared = np.zeros((low.size, shares.size))  # errors of scales whose weights come in several pieces
    for own, matrix in pieces(weight, spec.granularity):
        region = ... if own is None else own
        scale, lowest, highest = (np.ascontiguousarray(v[region]).reshape(-1) for v in (full.scale, *bounds))
        errors = shared if own is None else np.zeros((scale.size, shares.size))
        squared_errors(matrix, scale, lowest, highest, shares.astype(np.float32), errors)
        best[region] = shares[np.argmin(errors, axis=1)].reshape(best[region].shape)
    return params_from_range(low * best, high * best, spec)


def _find_float8(weight: NDArray[np.generic], spec: QuantSpec, config: MseConfig) -> QuantParams:
    """As `find_params` for numbers whose steps grow with them."""
    low, high = ranges(weight, spec)
    full = params_from_range(low, high, spec).scale
    shares = config.shares()
    best = np.ones(low.shape)
    shared = np.zeros((low.size, shares.size))
    for own, matrix in pieces(weight, spec.granularity):
        region = ... if own is None else own
        scale = np.ascontiguousarray(full[region]).reshape(-1, 1)
        errors = shared if own is None else np.zeros((scale.size, shares.size))
        for index, share in enumerate(shares):
            tried = scale * np.float32(share)
            difference = matrix - float8.round_to(matrix / tried, spec.qtype) * tried
            errors[:, index] += np.square(difference, dtype=np.float64).sum(axis=1)
        best[region] = shares[np.argmin(errors, axis=1)].reshape(best[region].shape)
    return params_from_range(low * best, high * best, spec)
