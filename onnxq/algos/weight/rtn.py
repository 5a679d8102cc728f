"""Blocks of weights that share a scale and a zero point, and rounding to the nearest code.

A weight is a matrix of N outputs (rows) and K inputs here, cut into blocks along its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import CalibrationError

Matrix = NDArray[np.float32]

PLAIN: tuple[float, ...] = (1.0,)
"""A block's codes cover all of its range."""
SEARCHED: tuple[float, ...] = tuple(1.0 - 0.025 * k for k in range(25))
"""The shares of the range that are tried where it is searched."""
_PIECE = 1 << 22
"""Weights that are worked on at a time."""


@dataclass(frozen=True, slots=True)
class BlockShape:
    """How the rows of a matrix become codes.

    Attributes:
        bits: Width of a code, 1 to 8.
        size: Weights that share a scale; at least as many as a row has for one block per row.
        symmetric: Whether the zero point is the middle code. Scales may be negative then: the largest magnitude of a
            block gets the lowest code, which no other could use as well.
        shares: Shares of a block's range that are tried; the one with the least squared error is taken.
    """

    bits: int
    size: int
    symmetric: bool = False
    shares: tuple[float, ...] = PLAIN

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8 or self.size < 1 or not self.shares:
            raise ValueError(f"{self.bits} bits in blocks of {self.size}; must be 1 to 8, and 1 or more")

    @property
    def top(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    def blocks(self, inputs: int) -> int:
        """How many blocks a row has."""
        return -(-inputs // self.size)


@dataclass(frozen=True, slots=True, eq=False)
class BlockMatrix:
    """A matrix as codes: ``real = (code - zero_point) * scale``.

    Attributes:
        shape: Width, size and symmetry of the blocks.
        codes: uint8, shape (N, K), from 0 to ``shape.top``.
        scale: float32, shape (N, blocks), never 0, negative where a symmetric block is turned around.
        zero_point: uint8, shape (N, blocks), from 0 to ``shape.top``.
    """

    shape: BlockShape
    codes: NDArray[np.uint8]
    scale: NDArray[np.float32]
    zero_point: NDArray[np.uint8]

    def decode(self) -> Matrix:
        """The matrix, float32, shape (N, K)."""
        inputs, result = self.codes.shape[1], np.empty(self.codes.shape, np.float32)
        for begin, block in zip(range(0, inputs, self.shape.size), range(self.scale.shape[1]), strict=True):
            part = slice(begin, begin + self.shape.size)
            steps = self.codes[:, part].astype(np.float32) - self.zero_point[:, block, None].astype(np.float32)
            result[:, part] = steps * self.scale[:, block, None]
        return result

    def in_blocks_of(self, size: int) -> BlockMatrix:
        """The same numbers with the scales of larger blocks repeated for smaller ones.

        Raises:
            ValueError: If a block would need two scales.
        """
        inputs = self.codes.shape[1]
        if self.shape.size % size and self.shape.size < inputs:
            raise ValueError(f"blocks of {self.shape.size} cannot be cut into blocks of {size}")
        owners = np.arange(0, inputs, size) // self.shape.size
        finer = BlockShape(self.shape.bits, size, self.shape.symmetric, self.shape.shares)
        return BlockMatrix(finer, self.codes, self.scale[:, owners], self.zero_point[:, owners])


def find_grid(
    matrix: Matrix, shape: BlockShape, importance: NDArray[np.floating] | None = None, *, workers: int = 1
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """The scales and zero points of all blocks, without codes.

    Args:
        matrix: float32, shape (N, K).
        shape: Width, size and symmetry of the blocks; of its shares the one with the least squared error is taken.
        importance: shape (K,), >= 0, what a squared error of each input costs; 1 where it is left out.
        workers: Threads; they do not change the result.

    Returns:
        Scales, float32, and zero points, uint8, both of shape (N, blocks).

    Raises:
        CalibrationError: If the matrix holds NaN or infinity.
    """
    from onnxq.algos.weight._grid_kernels import find_grids

    if not np.isfinite(matrix).all():
        raise CalibrationError("the weight holds NaN or infinity; repair or leave out this layer")
    rows, inputs = matrix.shape
    scale, zero = np.empty((rows, shape.blocks(inputs)), np.float32), np.empty((rows, shape.blocks(inputs)), np.uint8)
    cost = np.ones(inputs, np.float32) if importance is None else np.ascontiguousarray(importance, np.float32)
    args = (np.ascontiguousarray(matrix, np.float32), cost, shape.size, float(shape.top), shape.symmetric)
    shares = np.array(shape.shares)
    by_rows(lambda a, b: find_grids(*args, shares, scale, zero, a, b), rows, inputs, workers)
    return scale, zero


def nearest_codes(
    matrix: Matrix,
    shape: BlockShape,
    scale: NDArray[np.float32],
    zero_point: NDArray[np.uint8],
    *,
    workers: int = 1,
) -> NDArray[np.uint8]:
    """The codes nearest to each weight, uint8, shape (N, K).

    Args:
        matrix: float32, shape (N, K).
        shape: Width and size of the blocks.
        scale: shape (N, blocks).
        zero_point: shape (N, blocks).
        workers: Threads; they do not change the result.
    """
    from onnxq.algos.weight._grid_kernels import round_rows

    codes = np.empty(matrix.shape, np.uint8)
    args = (np.ascontiguousarray(matrix, np.float32), scale, zero_point, shape.size, float(shape.top), codes)
    by_rows(lambda a, b: round_rows(*args, a, b), matrix.shape[0], matrix.shape[1], workers)
    return codes


def round_to_nearest(
    matrix: Matrix, shape: BlockShape, importance: NDArray[np.floating] | None = None, *, workers: int = 1
) -> BlockMatrix:
    """Round every weight to the nearest code of its block.

    Args:
        matrix: float32, shape (N, K), finite.
        shape: Width, size and symmetry of the blocks.
        importance: As for `find_grid`.
        workers: Threads; they do not change the result.

    Raises:
        CalibrationError: If the matrix holds NaN or infinity.
    """
    scale, zero = find_grid(matrix, shape, importance, workers=workers)
    return BlockMatrix(shape, nearest_codes(matrix, shape, scale, zero, workers=workers), scale, zero)


def in_pieces(matrix: Matrix, work: Callable[[Matrix], BlockMatrix]) -> BlockMatrix:
    """What `work` makes of the rows of a matrix, a few rows at a time; they must not depend on each other.

    Args:
        matrix: shape (N, K), any strides; a memmap of it is read once.
        work: Gets some rows as a float32 array of its own.
    """
    step = max(1, _PIECE // max(matrix.shape[1], 1))
    found = [
        work(np.array(matrix[start : start + step], np.float32, order="C")) for start in range(0, len(matrix), step)
    ]
    if len(found) == 1:
        return found[0]
    codes, scale, zero = (np.concatenate([getattr(f, n) for f in found]) for n in ("codes", "scale", "zero_point"))
    return BlockMatrix(found[0].shape, codes, scale, zero)


def beside(parts: Sequence[BlockMatrix]) -> BlockMatrix:
    """Matrices with the same rows and blocks, joined along their inputs; all but the last have whole blocks."""
    codes, scale, zero = (
        np.concatenate([getattr(part, name) for part in parts], axis=1) for name in ("codes", "scale", "zero_point")
    )
    return BlockMatrix(parts[0].shape, codes, scale, zero)


def by_rows(work: Callable[[int, int], None], rows: int, inputs: int, workers: int) -> None:
    """Let threads handle pieces of the rows; a row's result must not depend on its piece."""
    step = max(1, min(_PIECE // max(inputs, 1), -(-rows // max(workers, 1))))
    starts = range(0, rows, step)
    if workers <= 1 or len(starts) == 1:
        for start in starts:
            work(start, min(start + step, rows))
        return
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(lambda start: work(start, min(start + step, rows)), starts):
            pass
