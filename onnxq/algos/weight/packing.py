"""Codes of any width from 1 to 16 bits as bytes that standard ONNX operators take apart quickly.

A width is a sum of powers of two: 7 = 4 + 2 + 1, 13 = 8 + 4 + 1. A code is cut into *pieces* of these widths, the
highest bits first, and each piece is stored with those of other codes in bytes. With n codes, padded to a whole number
of bytes in every piece, a piece of p < 8 bits is a row of ``n * p / 8`` bytes; byte m holds the pieces of the codes
``m, m + n * p / 8, m + 2 * n * p / 8, ...``, the first in its lowest bits. So the decoder needs no transposition:

    BitShift(LEFT, row, column of 8/p amounts) -> BitShift(RIGHT, 8 - p) -> Reshape to (1, n)

gives the pieces in the order of the codes; ``Concat -> Cast -> MatMul((1, k) powers of two)`` puts k pieces together,
exactly, as all numbers are integers below 2**16. 8 and 16 bits are plain uint8 and uint16 behind a Cast. ONNX Runtime
runs all of it once, when it makes the session: it folds every operator whose inputs are constants, except
DequantizeLinear, which is why that is not used here.

Other ways that were measured, with 1.3 million codes of 1 to 16 bits: Cast and Gather from tables of 256 rows take
1 to 3 times as long, tables of 2 to 8 KB for each width, and int32 indexes; a Mul for each piece and a Sum instead of
the MatMul take 1 to 2.5 times as long, with more nodes; BitwiseAnd needs operator set 18 and saves nothing, as it takes
the place of one BitShift; BitShift is in operator set 11. Making a session takes 10 to 20 ns and at most 40 bytes
of memory per weight more than with floats.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Stored = NDArray[np.uint8] | NDArray[np.uint16]
"""One piece of all codes, as it is stored."""


def piece_widths(bits: int) -> tuple[int, ...]:
    """The widths a code is cut into, that of its highest bits first.

    Raises:
        ValueError: If `bits` is not 1 to 16.
    """
    if not 1 <= bits <= 16:
        raise ValueError(f"codes of {bits} bits; must be 1 to 16")
    return tuple(width for width in (16, 8, 4, 2, 1) if bits & width)


def padded_count(count: int, bits: int) -> int:
    """How many codes are stored for `count` codes: as many as fill the bytes of every piece; at most 7 more."""
    together = max(8 // piece_widths(bits)[-1], 1)
    return -(-count // together) * together


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of `count` codes; at most ``7 * bits / 8`` more than ``count * bits / 8``."""
    return padded_count(count, bits) * bits // 8


def left_shifts(width: int) -> NDArray[np.uint8]:
    """How far a byte is shifted to the left, so that each piece in turn has its highest bit at the top.

    Args:
        width: 1, 2 or 4.

    Returns:
        uint8, shape (8 / width, 1).
    """
    return (8 - width - width * np.arange(8 // width, dtype=np.uint8))[:, None].astype(np.uint8)


def pack(values: NDArray[np.integer], bits: int) -> tuple[Stored, ...]:
    """Store codes.

    Args:
        values: From 0 to ``2**bits - 1``, any shape.
        bits: Width of a code, 1 to 16.

    Returns:
        The pieces, one for each of `piece_widths`: uint8 (of 16 bits: uint16), shape (1, bytes of the piece).

    Raises:
        ValueError: If a value does not fit.
    """
    flat = values.reshape(-1)
    if flat.size and (int(flat.min()) < 0 or int(flat.max()) >> bits):
        raise ValueError(f"codes from {flat.min()} to {flat.max()} do not fit into {bits} bits")
    padded = np.zeros(padded_count(flat.size, bits), np.uint16)
    padded[: flat.size] = flat
    if bits == 16:
        return (padded[None],)
    pieces: list[Stored] = []
    above = bits
    for width in piece_widths(bits):
        above -= width
        piece = ((padded >> np.uint16(above)) & np.uint16((1 << width) - 1)).astype(np.uint8)
        pieces.append(_join(piece, width)[None])
    return tuple(pieces)


def _join(piece: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    rows = piece.reshape(8 // width, -1)
    stored: NDArray[np.uint8] = rows[0].copy()
    for position, row in enumerate(rows[1:], 1):
        stored |= row << np.uint8(position * width)
    return stored


def unpack(pieces: Sequence[Stored], bits: int, count: int) -> NDArray[np.uint16]:
    """The codes that `pack` has stored.

    Args:
        pieces: As `pack` gives them; their shapes do not matter.
        bits: Width of a code.
        count: How many codes.

    Returns:
        uint16, shape (count,).

    Raises:
        ValueError: If the pieces are not those of so many codes.
    """
    widths, total = piece_widths(bits), padded_count(count, bits)
    sizes = [total * width // 8 for width in widths]
    if [piece.nbytes for piece in pieces] != sizes:
        found = [piece.nbytes for piece in pieces]
        raise ValueError(f"{count} codes of {bits} bits take {sizes} bytes, found {found}")
    values = np.zeros(total, np.uint16)
    for width, piece in zip(widths, pieces, strict=True):
        values <<= np.uint16(width % 16)
        values |= _split(piece.reshape(-1), width)
    return values[:count]


def _split(stored: Stored, width: int) -> NDArray[np.uint16]:
    if width >= 8:
        return np.asarray(stored, np.uint16)
    spread = np.left_shift(stored[None], left_shifts(width)) >> np.uint8(8 - width)
    return np.asarray(spread.reshape(-1), np.uint16)
