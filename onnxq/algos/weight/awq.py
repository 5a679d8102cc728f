"""AWQ: inputs that matter more are scaled up in the weights, and down in front of them, before rounding.

A weight that is scaled up loses less in steps of its block's scale. The factors are powers of the inputs' magnitudes,
with one exponent for a group of layers that read the same inputs; it is searched for the smallest output error.

Source: Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", MLSys 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.weight.gptq import Hessian, check_hessian, importance_of, output_errors
from onnxq.algos.weight.rtn import BlockShape, Matrix, round_to_nearest

_SAMPLED = 512
"""Rows of each matrix that the search looks at."""
_WIDEST = 1e4
"""Largest ratio of a factor to the middle of all factors."""


@dataclass(frozen=True, slots=True)
class AwqConfig:
    """Parameters of `search_factors`.

    Attributes:
        grid: How many exponents between 0 and 1 are tried.
    """

    grid: int = 20

    def __post_init__(self) -> None:
        if self.grid < 1:
            raise ValueError(f"grid {self.grid}; must be 1 or more")


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """What the inputs of a group of layers are divided by, and the weights multiplied with.

    Attributes:
        values: float32, > 0, shape (K,); powers of two would lose nothing, these are rounded once.
        exponent: Of the inputs' magnitudes; 0 where nothing helped: all factors are 1 then.
        before: Output error without factors, summed over the rows that were looked at.
        after: The same with them; never larger.
    """

    values: NDArray[np.float32]
    exponent: float
    before: float
    after: float


def search_factors(
    matrices: Sequence[Matrix],
    hessian: Hessian,
    shapes: Sequence[BlockShape],
    config: AwqConfig,
    *,
    workers: int = 1,
) -> Factors:
    """Search the factors of a group of layers.

    Args:
        matrices: Their weights, float32, each (N, K) with the same K.
        hessian: ``X X'`` of their inputs, shape (K, K); magnitudes are the roots of its diagonal.
        shapes: Width, size and symmetry of the blocks of each.
        config: Parameters.
        workers: Threads; they do not change the result.

    Raises:
        CalibrationError: If a matrix or the hessian holds NaN or infinity.
    """
    check_hessian(hessian, matrices[0].shape[1])
    rows = [np.ascontiguousarray(m[:: max(1, -(-len(m) // _SAMPLED))], np.float32) for m in matrices]
    before = _error(rows, hessian, shapes, np.ones(len(hessian), np.float32), workers)
    best = Factors(np.ones(len(hessian), np.float32), 0.0, before, before)
    for step in range(1, config.grid + 1):
        exponent = step / config.grid
        factors = factors_for(hessian, exponent)
        error = _error(rows, hessian, shapes, factors, workers)
        if error < best.after:
            best = Factors(factors, exponent, before, error)
    return best


def factors_for(hessian: Hessian, exponent: float) -> NDArray[np.float32]:
    """Magnitudes of the inputs to a power, their middle being 1; 1 for inputs that were never used."""
    magnitude = np.sqrt(np.maximum(np.diag(hessian), 0.0))
    used = magnitude > 0
    if not used.any():
        return np.ones(len(hessian), np.float32)
    factors = np.ones(len(hessian))
    factors[used] = magnitude[used] ** exponent
    middle = np.sqrt(factors[used].max() * factors[used].min())
    factors[used] = np.clip(factors[used] / middle, 1 / _WIDEST, _WIDEST)
    return factors.astype(np.float32)


def scaled_hessian(hessian: Hessian, factors: NDArray[np.float32]) -> Hessian:
    """``X X'`` of inputs that are divided by their factors."""
    inverse = 1.0 / factors.astype(np.float64)
    return hessian * inverse[:, None] * inverse[None, :]


def _error(
    rows: Sequence[Matrix], hessian: Hessian, shapes: Sequence[BlockShape], factors: NDArray[np.float32], workers: int
) -> float:
    scaled = scaled_hessian(hessian, factors)
    importance, total = importance_of(scaled), 0.0
    for matrix, shape in zip(rows, shapes, strict=True):
        wanted = matrix * factors
        found = round_to_nearest(wanted, shape, importance, workers=workers)
        total += float(output_errors(found.decode() - wanted, scaled).sum())
    return total
