"""GPTQ: columns are rounded one after the other, and each error is compensated in the columns that follow.

The layer's output error is ``tr(E H E')`` with the weight error E and ``H = X X'`` of its inputs. Once a column is
rounded, the best change of the columns behind it is known in closed form from the inverse of H, whose Cholesky factor
holds what is needed of it for every column.

Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", ICLR 2023.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.weight.rtn import BlockMatrix, BlockShape, Matrix, by_rows, in_pieces, round_to_nearest
from onnxq.errors import CalibrationError

Hessian = NDArray[np.float64]
"""``X X'`` of the inputs of a layer, shape (K, K), symmetric, up to a factor."""


@dataclass(frozen=True, slots=True)
class GptqConfig:
    """Parameters of `compensate`.

    Attributes:
        damping: Part of the mean diagonal that is added to the diagonal of H.
        act_order: Round the columns with the largest inputs first; scales are those of the weights as they come then.
            Otherwise columns are rounded from left to right, and a block's scale is found when its turn comes.
        columns: How many columns are compensated at a time; it decides the speed only.
    """

    damping: float = 0.01
    act_order: bool = True
    columns: int = 128

    def __post_init__(self) -> None:
        if not (0 < self.damping < 1 and self.columns >= 1):
            raise ValueError(f"{self}: damping must be between 0 and 1, columns 1 or more")


def compensate(
    matrix: Matrix, hessian: Hessian, shape: BlockShape, config: GptqConfig, *, workers: int = 1
) -> BlockMatrix:
    """Choose codes with a small error of the layer's output.

    A row keeps the codes that are nearest to its weights where these have the smaller error, so that no row gets worse
    by it on the data that H was taken from.

    Args:
        matrix: float32, shape (N, K), finite; any strides, it is worked on a few rows at a time.
        hessian: ``X X'``, shape (K, K); inputs that were never used have a zero there and are rounded to nearest.
        shape: Width, size and symmetry of the blocks.
        config: Parameters.
        workers: Threads; they do not change the result.

    Raises:
        CalibrationError: If the matrix or the hessian holds NaN or infinity.
    """
    solver = _Solver(hessian, matrix.shape[1], config, workers)

    def work(rows: Matrix) -> BlockMatrix:
        nearest = round_to_nearest(rows, shape, solver.importance, workers=workers)
        return solver.improved(rows, nearest, fresh=not config.act_order)

    return in_pieces(matrix, work)


def compensate_fixed(
    matrix: Matrix, hessian: Hessian, start: BlockMatrix, config: GptqConfig, *, workers: int = 1
) -> BlockMatrix:
    """As `compensate`, for scales and zero points that are given.

    Args:
        matrix: float32, shape (N, K), finite.
        hessian: As for `compensate`.
        start: Scales and zero points; a row keeps these codes where they have the smaller error.
        config: Parameters.
        workers: Threads; they do not change the result.

    Raises:
        CalibrationError: If the hessian holds NaN or infinity.
    """
    return _Solver(hessian, matrix.shape[1], config, workers).improved(matrix, start, fresh=False)


def check_hessian(hessian: Hessian, inputs: int) -> None:
    """Refuse a matrix that is not of the layer's inputs.

    Raises:
        CalibrationError: If it holds NaN or infinity.
        ValueError: If it has another shape.
    """
    if hessian.shape != (inputs, inputs):
        raise ValueError(f"a hessian of shape {hessian.shape} for {inputs} inputs")
    if not np.isfinite(hessian).all():
        raise CalibrationError("the layer's inputs hold NaN or infinity; check the calibration data")


def importance_of(power: NDArray[np.float64]) -> NDArray[np.float32]:
    """What a squared error of each input costs, > 0, shape (K,): a little for inputs that were never used.

    Args:
        power: The diagonal of H, shape (K,).
    """
    power = np.maximum(power, 0.0)
    mean = float(power.mean()) or 1.0
    return (power / mean + 1e-3).astype(np.float32)


def output_errors(error: Matrix, hessian: Hessian) -> NDArray[np.float64]:
    """What weight errors, shape (N, K), do to each output: the diagonal of ``E H E'``, shape (N,)."""
    moved = error @ hessian.astype(np.float32)
    found: NDArray[np.float64] = np.einsum("nk,nk->n", moved, error, dtype=np.float64)
    return np.maximum(found, 0.0)


def better_rows(matrix: Matrix, hessian: Hessian, first: BlockMatrix, second: BlockMatrix) -> BlockMatrix:
    """Of two ways to round a matrix, for each row that with the smaller output error; the first on a tie."""
    errors = [output_errors(way.decode() - matrix, hessian) for way in (first, second)]
    better = (errors[1] < errors[0])[:, None]
    codes, scale, zero = (
        np.where(better, getattr(second, name), getattr(first, name)) for name in ("codes", "scale", "zero_point")
    )
    return BlockMatrix(first.shape, codes, scale, zero)


def inverse_factor(hessian: Hessian, damping: float) -> NDArray[np.float32]:
    """The upper triangular U with ``U' U = inverse(H)``, float32, shape (K, K).

    The damping grows tenfold until H can be factored; inputs that were never used get a diagonal of the mean.
    """
    power = np.diag(hessian)
    mean = float(power.mean()) or 1.0
    part = damping
    while True:
        damped = hessian.copy()
        damped[np.diag_indices_from(damped)] += part * mean + np.where(power <= 0, mean, 0.0)
        try:
            # with the columns turned around, the factor of H itself is that of its inverse, inverted
            lower: NDArray[np.float64] = np.linalg.cholesky(damped[::-1, ::-1]).astype(np.float64, copy=False)
            upper = _inverse_of_lower(lower)[::-1, ::-1].T
            return np.ascontiguousarray(upper.T, np.float32)
        except np.linalg.LinAlgError:
            part *= 10


def _inverse_of_lower(lower: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverse of a lower triangular matrix, by halves: no solver of its own in numpy."""
    count = len(lower)
    if count <= 64:
        inverse: NDArray[np.float64] = np.tril(np.linalg.inv(lower))
        return inverse
    half = count // 2
    result = np.zeros_like(lower)
    result[:half, :half] = _inverse_of_lower(lower[:half, :half])
    result[half:, half:] = _inverse_of_lower(lower[half:, half:])
    result[half:, :half] = -result[half:, half:] @ (lower[half:, :half] @ result[:half, :half])
    return result


class _Solver:
    """What all rows of a layer share, and the loop over chunks of columns."""

    def __init__(self, hessian: Hessian, inputs: int, config: GptqConfig, workers: int) -> None:
        check_hessian(hessian, inputs)
        self.importance = importance_of(np.diag(hessian))
        self._hessian = hessian
        self._workers = workers
        self._chunk = config.columns
        self._order = np.argsort(-np.diag(hessian), kind="stable") if config.act_order else np.arange(inputs)
        self._upper = inverse_factor(hessian[np.ix_(self._order, self._order)], config.damping)

    def improved(self, rows: Matrix, nearest: BlockMatrix, *, fresh: bool) -> BlockMatrix:
        """Codes with a smaller error; with `fresh`, with scales of their own."""
        return better_rows(rows, self._hessian, nearest, self._run(rows, nearest, fresh=fresh))

    def _run(self, rows: Matrix, nearest: BlockMatrix, *, fresh: bool) -> BlockMatrix:
        from onnxq.algos.weight._grid_kernels import gptq_columns

        shape, upper, (count, inputs) = nearest.shape, self._upper, rows.shape
        work = np.ascontiguousarray(rows[:, self._order], np.float32)
        codes = np.empty((count, inputs), np.uint8)
        block_of = (self._order // shape.size).astype(np.int64)
        scale, zero = np.array(nearest.scale, order="C"), np.array(nearest.zero_point, order="C")
        fixed = (shape.size, float(shape.top), shape.symmetric, np.array(shape.shares), fresh, scale, zero, codes)
        for begin, end in self._chunks(inputs, shape.size, fresh=fresh):
            errors = np.empty((count, end - begin), np.float32)
            args = (work, upper, block_of, self.importance, *fixed, errors, begin, end)
            by_rows(partial(gptq_columns, *args), count, end - begin, self._workers)
            work[:, end:] -= errors @ upper[begin:end, end:]
        placed = np.empty_like(codes)
        placed[:, self._order] = codes
        return BlockMatrix(shape, placed, scale, zero)

    def _chunks(self, inputs: int, size: int, *, fresh: bool) -> Iterator[tuple[int, int]]:
        """Spans of columns; whole blocks where these need all that is known of their weights."""
        size = min(size, inputs)
        step = -(-self._chunk // size) * size if fresh else self._chunk
        for begin in range(0, inputs, step):
            yield begin, min(begin + step, inputs)
