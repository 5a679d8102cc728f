"""Codes of a matrix in blocks along its inputs, each with a scale and a zero point, as MatMulNBits takes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.weight.rtn import BlockMatrix

_PIECE = 1 << 22
"""Weights that are worked on at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class BlockCodes:
    """A matrix of N outputs and K inputs in blocks of `size` inputs: ``real = (code - zero_point) * scale``.

    Attributes:
        bits: 2, 4 or 8.
        size: Weights of a block, a power of 2 from 16; the last block of an output is filled up with zero points.
        inputs: K.
        codes: uint8, shape (N, blocks, size * bits / 8); the first code of a byte is in its lowest bits.
        scale: float32, shape (N, blocks).
        zero_point: uint8, shape (N, blocks * bits / 8 rounded up), packed as the codes are.
    """

    bits: int
    size: int
    inputs: int
    codes: NDArray[np.uint8]
    scale: NDArray[np.float32]
    zero_point: NDArray[np.uint8]

    def decode(self) -> NDArray[np.float32]:
        """The matrix, shape (N, K)."""
        outputs, blocks = self.scale.shape
        codes = _unpacked(self.codes.reshape(outputs, -1), self.bits).reshape(outputs, blocks, self.size)
        zero = self.zero_points()
        steps = codes.astype(np.float32) - zero[..., None].astype(np.float32)
        return (steps * self.scale[..., None]).reshape(outputs, -1)[:, : self.inputs]

    def zero_points(self) -> NDArray[np.uint8]:
        """The zero points one by one, shape (N, blocks)."""
        return _unpacked(self.zero_point, self.bits)[:, : self.scale.shape[1]]


def encode_blocks(matrix: NDArray[np.floating], bits: int, size: int) -> BlockCodes:
    """Codes of a matrix; each block uses the range of its weights and zero.

    Args:
        matrix: float, finite, shape (N, K).
        bits: 4 or 8.
        size: Weights of a block, a power of 2 from 16.

    Raises:
        ValueError: If `bits` or `size` is another number.
    """
    if bits not in (4, 8) or size < 16 or size & (size - 1):
        raise ValueError(f"{bits} bits in blocks of {size}; must be 4 or 8, and a power of 2 from 16")
    outputs, inputs = matrix.shape
    blocks = -(-inputs // size)
    codes = np.empty((outputs, blocks, size * bits // 8), np.uint8)
    scale = np.empty((outputs, blocks), np.float32)
    zero = np.empty((outputs, blocks), np.uint8)
    rows = max(1, _PIECE // max(inputs, 1))
    for start in range(0, outputs, rows):
        part = slice(start, start + rows)
        values, scale[part], zero[part] = _encode(matrix[part], bits, size)
        codes[part] = _packed(values, bits)
    return BlockCodes(bits, size, inputs, codes, scale, _packed(zero, bits))


def _encode(
    matrix: NDArray[np.floating], bits: int, size: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    outputs, inputs = matrix.shape
    padded = np.zeros((outputs, -(-inputs // size) * size))
    padded[:, :inputs] = matrix
    blocks = padded.reshape(outputs, -1, size)
    top = (1 << bits) - 1
    low, high = np.minimum(blocks.min(-1), 0.0), np.maximum(blocks.max(-1), 0.0)
    smallest = float(np.finfo(np.float32).tiny)
    scale = np.maximum((high - low) / top, smallest).astype(np.float32)
    step = scale.astype(np.float64)
    zero = np.clip(np.rint(-low / step), 0, top)
    values = np.clip(np.rint(blocks / step[..., None]) + zero[..., None], 0, top)
    return values.astype(np.uint8), scale, zero.astype(np.uint8)


def pack_blocks(matrix: BlockMatrix, bits: int) -> BlockCodes:
    """Codes that were chosen elsewhere, as MatMulNBits takes them.

    Args:
        matrix: Codes, scales and zero points, in blocks of a power of 2 from 16.
        bits: 2, 4 or 8, at least the width of the codes.

    Raises:
        ValueError: If the codes or the blocks do not fit.
    """
    size, (outputs, inputs) = matrix.shape.size, matrix.codes.shape
    if bits not in (2, 4, 8) or bits < matrix.shape.bits or size < 16 or size & (size - 1):
        raise ValueError(f"codes of {matrix.shape.bits} bits in blocks of {size} as {bits} bits: no such MatMulNBits")
    blocks = matrix.scale.shape[1]
    padded = np.repeat(matrix.zero_point[:, -1:], blocks * size, axis=1)
    padded[:, :inputs] = matrix.codes
    codes = _packed(padded.reshape(outputs, blocks, size), bits)
    return BlockCodes(bits, size, inputs, codes, matrix.scale, pack_rows(matrix.zero_point, bits))


def pack_rows(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Codes along the last axis in bytes, the first one in the lowest bits; rows are filled up with zeros.

    Args:
        values: uint8, below ``2**bits``, any shape.
        bits: 2, 4 or 8.
    """
    return _packed(values, bits)


def unpack_rows(stored: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """The inverse of `pack_rows`, with what rows were filled up with."""
    return _unpacked(stored, bits)


def _packed(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Neighbours along the last axis in one byte each, where they have 2 or 4 bits."""
    if bits == 8:
        return values
    together = 8 // bits
    missing = -values.shape[-1] % together
    if missing:
        values = np.concatenate([values, np.zeros((*values.shape[:-1], missing), np.uint8)], -1)
    stored: NDArray[np.uint8] = values[..., ::together].copy()
    for place in range(1, together):
        stored |= values[..., place::together] << np.uint8(place * bits)
    return stored


def _unpacked(stored: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return stored
    mask = np.uint8((1 << bits) - 1)
    places = [stored >> np.uint8(place * bits) & mask for place in range(8 // bits)]
    return np.stack(places, -1).reshape(*stored.shape[:-1], -1)
