"""Packing: exact inverse for every width, the size it promises, and the layout its decoder relies on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.algos.weight import packing


@given(bits=st.integers(1, 16), count=st.integers(0, 300), seed=st.integers(0, 99))
def test_codes_come_back(bits: int, count: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << bits, count)
    pieces = packing.pack(codes, bits)
    found = packing.unpack(pieces, bits, count)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, codes)


@given(bits=st.integers(1, 16), count=st.integers(0, 300))
def test_bytes_are_the_bits_and_a_few_more(bits: int, count: int) -> None:
    pieces = packing.pack(np.zeros(count, np.int32), bits)
    stored = sum(piece.nbytes for piece in pieces)
    assert stored == packing.packed_bytes(count, bits)
    assert count * bits <= 8 * stored <= (count + 7) * bits


@pytest.mark.parametrize("bits", range(1, 17))
def test_widths_are_powers_of_two_that_make_the_width(bits: int) -> None:
    widths = packing.piece_widths(bits)
    assert sum(widths) == bits
    assert list(widths) == sorted(set(widths), reverse=True)
    assert all(w & (w - 1) == 0 for w in widths)


def test_the_extremes_of_every_width_survive() -> None:
    for bits in range(1, 17):
        codes = np.array([[0, (1 << bits) - 1, 0], [(1 << bits) - 1, 1 % (1 << bits), 0]])
        np.testing.assert_array_equal(packing.unpack(packing.pack(codes, bits), bits, 6), codes.reshape(-1))


def test_the_layout_in_full() -> None:
    (nibbles,) = packing.pack(np.arange(8), 4)
    assert nibbles.tolist() == [[[0x40, 0x51, 0x62, 0x73]]]  # code m, and code m + 4 above it
    four, two = packing.pack(np.array([0b101101, 0b000011, 0b111100, 0b010110]), 6)
    assert four.tolist() == [[[[0b0000_1011]], [[0b0101_1111]]]]
    assert two.tolist() == [[[[0b10_00_11_01]]]]
    (words,) = packing.pack(np.array([65535, 1]), 16)
    assert words.dtype == np.uint16
    assert words.tolist() == [65535, 1]


@given(bits=st.integers(1, 15).filter(lambda b: b != 8), count=st.integers(1, 100))
def test_shifts_to_the_left_and_right_give_the_pieces(bits: int, count: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 1 << bits, count)
    widths = packing.piece_widths(bits)
    tops = [
        piece if width == 8 else piece << packing.left_shifts(bits, width)
        for piece, width in zip(packing.pack(codes, bits), widths, strict=True)
    ]
    rows = (np.concatenate(tops) >> packing.right_shifts(bits)).reshape(len(widths), -1)
    powers = [1 << sum(widths[i + 1 :]) for i in range(len(widths))]
    np.testing.assert_array_equal((powers @ rows.astype(np.int64))[:count], codes)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit into 3 bits"):
        packing.pack(np.array([0, 8]), 3)
    with pytest.raises(ValueError, match="do not fit into 3 bits"):
        packing.pack(np.array([-1, 0]), 3)
    with pytest.raises(ValueError, match="17 bits"):
        packing.pack(np.array([0]), 17)
    with pytest.raises(ValueError, match="9 codes of 4 bits take"):
        packing.unpack(packing.pack(np.arange(8), 4), 4, 9)
