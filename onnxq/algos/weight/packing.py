"""Codes of any width from 1 to 16 bits as bytes that standard ONNX operators take apart quickly.

A width is a sum of powers of two: 7 = 4 + 2 + 1, 13 = 8 + 4 + 1. A code is cut into *pieces* of these widths, the
highest bits first, and each piece is stored with those of other codes in bytes. All codes, padded to whole bytes in
every piece, are thought of as an array (2, ..., 2, m) with as many twos as it takes to fill a byte with the smallest
pieces. A piece of p bits is stored with 1 in place of the last of these twos, so many that the 8 / p codes that differ
in these places only share a byte, the first of them in its lowest bits. So the decoder needs no transposition:

    BitShift(LEFT, piece, one amount for each place in a byte)

gives (2, ..., 2, m) of every piece with its bits at the top, and

    Concat -> BitShift(RIGHT, 8 - p) -> Reshape to (k, n) -> Cast -> MatMul((1, k) powers of two)

puts k pieces together, exactly, as all numbers are integers below 2**16. 8 and 16 bits are plain uint8 and uint16
behind a Cast. ONNX Runtime runs all of it once, when it makes the session: it folds every operator whose inputs are
constants, except DequantizeLinear, which is why that is not used here.

Other ways that were measured, with 1.3 million codes of 1 to 16 bits: Cast and Gather from tables of 256 rows take
1 to 3 times as long, tables of 2 to 8 KB for each width, and int32 indexes; a Mul for each piece and a Sum instead of
the MatMul take 1 to 2.5 times as long, with more nodes; BitwiseAnd needs operator set 18 and saves nothing, as it takes
the place of one BitShift; BitShift is in operator set 11. While a session is made ONNX Runtime keeps what each operator
gives: 20 bytes per weight with 8 bits, 23 with 4 and 50 with 7; this memory is also what most of the time goes into.
"""

from __future__ import annotations

import math
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


def _twos(width: int) -> int:
    """How many twos the shape of an array of codes has for one byte of pieces of this width."""
    return (8 // width).bit_length() - 1


def stored_shape(count: int, bits: int, width: int) -> tuple[int, ...]:
    """The shape that a piece is stored in, with 1 in front, along which pieces are joined.

    Args:
        count: How many codes.
        bits: Their width; neither 8 nor 16.
        width: That of the piece, one of `piece_widths`.
    """
    dims, ones = _twos(piece_widths(bits)[-1]), _twos(width)
    return (1, *[2] * (dims - ones), *[1] * ones, padded_count(count, bits) >> dims)


def left_shifts(bits: int, width: int) -> NDArray[np.uint8]:
    """How far a byte is shifted to the left, so that each of its pieces in turn is at the top.

    Args:
        bits: Width of the codes.
        width: That of the piece: 1, 2 or 4.

    Returns:
        uint8, in a shape that broadcasts against `stored_shape`.
    """
    dims, ones = _twos(piece_widths(bits)[-1]), _twos(width)
    amounts = 8 - width - width * np.arange(8 // width)
    return amounts.astype(np.uint8).reshape(1, *[1] * (dims - ones), *[2] * ones, 1)


def right_shifts(bits: int) -> NDArray[np.uint8]:
    """How far joined pieces are shifted to the right after that.

    Returns:
        uint8, shape (pieces, 1, ..., 1), of the rank of `stored_shape`.
    """
    widths = piece_widths(bits)
    return np.array([8 - width for width in widths], np.uint8).reshape(-1, *[1] * (_twos(widths[-1]) + 1))


def pack(values: NDArray[np.integer], bits: int) -> tuple[Stored, ...]:
    """Store codes.

    Args:
        values: From 0 to ``2**bits - 1``, any shape.
        bits: Width of a code, 1 to 16.

    Returns:
        The pieces, one for each of `piece_widths`: uint8 in their `stored_shape`; of 8 and 16 bits, uint8 and uint16,
        shape (N,).

    Raises:
        ValueError: If a value does not fit.
    """
    flat = values.reshape(-1)
    if flat.size and (int(flat.min()) < 0 or int(flat.max()) >> bits):
        raise ValueError(f"codes from {flat.min()} to {flat.max()} do not fit into {bits} bits")
    padded = np.zeros(padded_count(flat.size, bits), np.uint16)
    padded[: flat.size] = flat
    if bits == 8:
        return (padded.astype(np.uint8),)
    if bits == 16:
        return (padded,)
    pieces: list[Stored] = []
    above = bits
    for width in piece_widths(bits):
        above -= width
        piece = ((padded >> np.uint16(above)) & np.uint16((1 << width) - 1)).astype(np.uint8)
        pieces.append(_join(piece, width, stored_shape(flat.size, bits, width)))
    return tuple(pieces)


def _join(piece: NDArray[np.uint8], width: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    together = piece.reshape(math.prod(shape[:-1]), 8 // width, shape[-1])
    stored: NDArray[np.uint8] = together[:, 0].copy()
    for place in range(1, 8 // width):
        stored |= together[:, place] << np.uint8(place * width)
    return stored.reshape(shape)


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
        values |= _split(piece, width, bits, count)
    return values[:count]


def _split(stored: Stored, width: int, bits: int, count: int) -> NDArray[np.uint16]:
    if width >= 8:
        return np.asarray(stored.reshape(-1), np.uint16)
    shaped = stored.reshape(stored_shape(count, bits, width))
    spread = np.left_shift(shaped, left_shifts(bits, width)) >> np.uint8(8 - width)
    return np.asarray(spread.reshape(-1), np.uint16)
