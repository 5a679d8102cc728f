"""HQQ: scales and zero points by half-quadratic splitting, from the weights alone.

The errors of a block are split into those that are to be kept, few and large, and the rest, which a quadratic step
makes small: it minimizes the sum of ``|error|**power`` with a power below 1, so that outliers do not stretch the scale
of all others. In the original the zero point is a float and the scale stays; here zero points are codes, as the
operators want them, and the quadratic step also fits the scale.

Source: Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.weight.rtn import BlockMatrix, BlockShape, Matrix, by_rows, find_grid, nearest_codes


@dataclass(frozen=True, slots=True)
class HqqConfig:
    """Parameters of `half_quadratic`.

    Attributes:
        power: Exponent of the errors, above 0 and up to 2.
        iterations: Half-quadratic steps, at the most: three in a row that gain nothing end them.
        beta: How much of an error is quadratic at first; errors are counted in steps of the scale.
        kappa: Factor of beta after each step.
    """

    power: float = 0.7
    iterations: int = 20
    beta: float = 1.0
    kappa: float = 1.2

    def __post_init__(self) -> None:
        if not (0 < self.power <= 2 and self.iterations >= 1 and self.beta > 0 and self.kappa >= 1):
            raise ValueError(f"{self}: power must be above 0 and up to 2, iterations, beta and kappa positive")


def half_quadratic(matrix: Matrix, shape: BlockShape, config: HqqConfig, *, workers: int = 1) -> BlockMatrix:
    """Round to the nearest code of scales and zero points with a small sum of ``|error|**power``.

    Of all steps each block keeps the best, the first of which is rounding with the whole range: a block is never worse
    than that.

    Args:
        matrix: float32, shape (N, K), finite.
        shape: Width, size and symmetry of the blocks.
        config: Parameters.
        workers: Threads; they do not change the result.

    Raises:
        CalibrationError: If the matrix holds NaN or infinity.
    """
    from onnxq.algos.weight._grid_kernels import hqq_rows

    matrix = np.ascontiguousarray(matrix, np.float32)
    scale, zero = find_grid(matrix, shape, workers=workers)
    args = (matrix, shape.size, float(shape.top), shape.symmetric, config.power, config.beta, config.kappa)
    rows, inputs = matrix.shape
    by_rows(lambda a, b: hqq_rows(*args, config.iterations, scale, zero, a, b), rows, inputs, workers)
    return BlockMatrix(shape, nearest_codes(matrix, shape, scale, zero, workers=workers), scale, zero)


def lp_errors(matrix: Matrix, rounded: BlockMatrix, power: float) -> NDArray[np.float64]:
    """The sum of ``|error|**power`` of each block, shape (N, blocks)."""
    errors = np.abs(rounded.decode().astype(np.float64) - matrix) ** power
    return np.add.reduceat(errors, range(0, matrix.shape[1], rounded.shape.size), axis=1)
