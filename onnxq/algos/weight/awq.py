"""AWQ: inputs that matter more are scaled up in the weights, and down in front of them, before rounding.

A weight that is scaled up loses less in steps of its block's scale. The factors are powers of the inputs' magnitudes,
with one exponent for a group of layers that read the same inputs; it is searched for the smallest output error.

Source: Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", MLSys 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.weight.gptq import Hessian, check_hessian, importance_of, output_errors
from onnxq.algos.weight.rtn import BlockShape, Matrix, round_to_nearest

_SAMPLED = 512
"""Rows of each matrix that the search looks at."""
_EVERY = 4
"""Of the shares of a block's range that are tried, the search tries every so many-th."""
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
    hessians: Sequence[Hessian],
    shapes: Sequence[BlockShape],
    config: AwqConfig,
    *,
    workers: int = 1,
) -> Factors:
    """Search the factors of a group of layers.

    Args:
        matrices: Their weights, float32, each (N, K) with the same K.
        hessians: ``X X'`` of their inputs; magnitudes are the roots of its diagonal. Where it was taken of spans of
            inputs only, that of each span: each square, K rows together.
        shapes: Width, size and symmetry of the blocks of each.
        config: Parameters.
        workers: Threads; they do not change the result.

    Raises:
        CalibrationError: If a matrix or the hessian holds NaN or infinity.
    """
    inputs, power = matrices[0].shape[1], np.concatenate([np.diag(h) for h in hessians])
    if power.size != inputs:
        raise ValueError(f"hessians of {power.size} for {inputs} inputs")
    for hessian in hessians:
        check_hessian(hessian, len(hessian))
    shapes = [replace(shape, shares=shape.shares[::_EVERY]) for shape in shapes]
    rows = [np.array(m[:: max(1, -(-len(m) // _SAMPLED))], np.float32, order="C") for m in matrices]
    before = _error(rows, hessians, shapes, np.ones(inputs, np.float32), workers)
    best = Factors(np.ones(inputs, np.float32), 0.0, before, before)
    for step in range(1, config.grid + 1):
        exponent = step / config.grid
        factors = factors_for(power, exponent)
        error = _error(rows, hessians, shapes, factors, workers)
        if error < best.after:
            best = Factors(factors, exponent, before, error)
    return best


def factors_for(power: NDArray[np.float64], exponent: float) -> NDArray[np.float32]:
    """Magnitudes of the inputs to an exponent, their middle being 1; 1 for inputs that were never used.

    Args:
        power: Squared magnitudes, shape (K,).
        exponent: From 0 to 1.
    """
    magnitude = np.sqrt(np.maximum(power, 0.0))
    used = magnitude > 0
    factors = np.ones(len(power))
    if used.any():
        factors[used] = magnitude[used] ** exponent
        middle = np.sqrt(factors[used].max() * factors[used].min())
        factors[used] = np.clip(factors[used] / middle, 1 / _WIDEST, _WIDEST)
    return factors.astype(np.float32)


def scaled_hessian(hessian: Hessian, factors: NDArray[np.float32]) -> Hessian:
    """``X X'`` of inputs that are divided by their factors."""
    inverse = 1.0 / factors.astype(np.float64)
    return hessian * inverse[:, None] * inverse[None, :]


def _error(
    rows: Sequence[Matrix],
    hessians: Sequence[Hessian],
    shapes: Sequence[BlockShape],
    factors: NDArray[np.float32],
    workers: int,
) -> float:
    ends = np.cumsum([len(h) for h in hessians])
    spans = [slice(int(end) - len(h), int(end)) for end, h in zip(ends, hessians, strict=True)]
    squares = [scaled_hessian(h, factors[span]) for h, span in zip(hessians, spans, strict=True)]
    importance, total = importance_of(np.concatenate([np.diag(s) for s in squares])), 0.0
    for matrix, shape in zip(rows, shapes, strict=True):
        wanted = matrix * factors
        error = round_to_nearest(wanted, shape, importance, workers=workers).decode() - wanted
        total += sum(float(output_errors(error[:, n], h).sum()) for n, h in zip(spans, squares, strict=True))
    return total
