"""Codes of one weight in about as many bits as their entropy says, by the range coder of constriction.

The distribution is that of the weight itself: the symbols that occur and how often are stored with it. Where a table of
all symbols would cost more than it saves, as with 16 bits in a small weight, the lowest bits of the codes are stored as
they are and the distribution is that of the others.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.weight import packing
from onnxq.errors import ModelError

_CHUNK = 1 << 22
"""Symbols that are coded at a time; it bounds the memory of the coder."""
_TABLE_BITS = 12.0
"""What one symbol of the table takes, roughly; only the choice of how many bits are left alone depends on it."""


@dataclass(frozen=True, slots=True)
class Coded:
    """One weight, coded.

    Attributes:
        plain_bits: How many of the lowest bits of each code are stored as they are.
        table: The symbols above them and their counts, compressed.
        plain: The lowest bits, packed.
        chunks: The symbols, in words of 32 bits, a chunk of symbols after the other.
    """

    plain_bits: int
    table: bytes
    plain: bytes
    chunks: tuple[bytes, ...]

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return len(self.table) + len(self.plain) + sum(map(len, self.chunks))


def entropy(codes: NDArray[np.uint16]) -> float:
    """Shannon's entropy of codes, in bits for each."""
    return _entropy(np.bincount(codes)) if codes.size else 0.0


def _entropy(counts: NDArray[np.integer]) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(abs(-(shares * np.log2(shares)).sum()))


def encode(codes: NDArray[np.uint16], bits: int) -> Coded:
    """Code the codes of one weight.

    Args:
        codes: Shape (N,), N > 0, each below ``2**bits``.
        bits: Their width.

    Raises:
        ModelError: If constriction is not installed.
    """
    library = _constriction()
    left = _plain_bits(codes, bits)
    symbols, indexes, counts = np.unique(codes >> np.uint16(left), return_inverse=True, return_counts=True)
    chunks = []
    if symbols.size > 1:
        model = _model(library, counts)
        for start in range(0, codes.size, _CHUNK):
            coder = library.stream.stack.AnsCoder()
            coder.encode_reverse(indexes[start : start + _CHUNK].astype(np.int32), model)
            chunks.append(np.asarray(coder.get_compressed(), "<u4").tobytes())
    plain = b""
    if left:
        low = codes & np.uint16((1 << left) - 1)
        plain = b"".join(piece.astype(piece.dtype.newbyteorder("<")).tobytes() for piece in packing.pack(low, left))
    return Coded(left, _table(symbols, counts), plain, tuple(chunks))


def decode(coded: Coded, bits: int, count: int) -> NDArray[np.uint16]:
    """The codes that `encode` was given.

    Args:
        coded: What it returned.
        bits: Their width.
        count: How many.

    Raises:
        ModelError: If constriction is not installed, or the parts are not those of so many codes.
    """
    library = _constriction()
    try:
        symbols, counts = _read_table(coded.table)
        if int(counts.sum()) != count or coded.plain_bits >= bits or int(symbols.max()) >> (bits - coded.plain_bits):
            raise ValueError("the table belongs to other codes")
        indexes = np.zeros(count, np.int32)
        if symbols.size > 1:
            model = _model(library, counts)
            for start, chunk in zip(range(0, count, _CHUNK), coded.chunks, strict=True):
                coder = library.stream.stack.AnsCoder(np.frombuffer(chunk, "<u4").astype(np.uint32))
                indexes[start : start + _CHUNK] = coder.decode(model, min(_CHUNK, count - start))
        codes = (symbols[indexes] << np.uint16(coded.plain_bits)).astype(np.uint16)
        if coded.plain_bits:
            codes |= _read_plain(coded.plain, coded.plain_bits, count)
    except (ValueError, IndexError, zlib.error) as err:
        raise ModelError(f"its codes are damaged: {err}") from err
    return codes


def _read_plain(plain: bytes, bits: int, count: int) -> NDArray[np.uint16]:
    total = packing.padded_count(count, bits)
    sizes = [total * width // 8 for width in packing.piece_widths(bits)]
    pieces = np.split(np.frombuffer(plain, np.uint8), np.cumsum(sizes)[:-1])
    return packing.unpack(pieces, bits, count)


def _plain_bits(codes: NDArray[np.uint16], bits: int) -> int:
    """How many bits to leave alone, for the fewest bytes in all."""
    counts = np.zeros(1 << bits, np.int64)
    found = np.bincount(codes)
    counts[: found.size] = found
    costs = []
    for left in range(bits):
        costs.append(codes.size * (left + _entropy(counts)) + _TABLE_BITS * np.count_nonzero(counts))
        counts = counts.reshape(-1, 2).sum(1)
    return int(np.argmin(costs))


def _table(symbols: NDArray[np.uint16], counts: NDArray[np.integer]) -> bytes:
    """The distances between symbols and their counts: the first bytes of all numbers, then the second ones."""
    gaps = np.diff(symbols.astype(np.uint32), prepend=np.uint32(0))
    numbers = np.stack([gaps, counts.astype(np.uint32)]).astype("<u4")
    planes = numbers.view(np.uint8).reshape(2, -1, 4).transpose(0, 2, 1)
    return zlib.compress(np.ascontiguousarray(planes).tobytes(), 9)


def _read_table(table: bytes) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    stream = zlib.decompressobj()
    planes = np.frombuffer(stream.decompress(table, 8 << 16), np.uint8)
    if not stream.eof or not planes.size:
        raise ValueError("the table of symbols has no end")
    numbers = np.ascontiguousarray(planes.reshape(2, 4, -1).transpose(0, 2, 1)).view("<u4")[..., 0]
    symbols = np.cumsum(numbers[0], dtype=np.int64)
    if int(symbols.max()) >> 16:
        raise ValueError("the table of symbols has one of more than 16 bits")
    return symbols.astype(np.uint16), numbers[1].astype(np.int64)


def _model(library: Any, counts: NDArray[np.integer]) -> Any:  # noqa: ANN401 - constriction has no types
    return library.stream.model.Categorical(np.asarray(counts, np.float64), perfect=False)


def _constriction() -> Any:  # noqa: ANN401 - constriction has no types
    try:
        import constriction
    except ImportError as err:
        raise ModelError(
            "packing and unpacking need constriction, which is not installed; run: pip install 'onnxq[pack]'"
        ) from err
    return constriction


def parts(coded: Coded) -> Sequence[bytes]:
    """All bytes of a weight, in the order in which a file has them."""
    return (coded.table, coded.plain, *coded.chunks)
