"""Words, biases and reciprocals of Ascend's operators, byte by byte."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.algos.ascend_words import (
    bias_codes,
    dequant_scale,
    pack_words,
    quant_scale,
    read_words,
    truncate_s19,
)
from onnxq.errors import RecordError

POSITIVE = st.floats(2.0**-60, 2.0**60, width=32)


@pytest.mark.parametrize(
    ("scale_d", "scale_w", "word"),
    [
        (0.5, 0.25, "0000003e00000000"),  # 2^-3: exponent 124, 0x3E000000
        (1.0, 1.0, "0000803f00000000"),
        (0.1, 0.2, "0bd7a33c00000000"),  # float32(0.1) * float32(0.2) = 0x3CA3D70B, rounded once
        (3.0, 2.0**-20, "0000403600000000"),
    ],
)
def test_golden_bytes(scale_d: float, scale_w: float, word: str) -> None:
    words = pack_words(dequant_scale(scale_d, [scale_w]))
    assert words.dtype == np.uint64
    assert words.astype("<u8").tobytes().hex() == word


def test_one_word_for_each_channel() -> None:
    scale_w = np.array([0.1, 0.2, 0.3], np.float32)
    words = pack_words(dequant_scale(0.7, scale_w))
    assert words.shape == (3,)
    assert words.tolist() == [int((np.float32(0.7) * s).view(np.uint32)) for s in scale_w]


@given(POSITIVE)
def test_words_are_read_back(scale: float) -> None:
    found = read_words(pack_words(np.array([scale], np.float32)))
    assert found.scale.tolist() == [scale]
    assert found.shift.tolist() == [0]
    assert found.offset_w.tolist() == [0]


def test_the_other_fields_of_words() -> None:
    word = np.array([0x3F800000 | (5 << 32) | (0xFE << 40)], np.uint64)
    found = read_words(word)
    assert (found.scale[0], found.shift[0], found.offset_w[0]) == (1.0, 5, -2)
    assert read_words(word.astype(np.int64)).shift[0] == 5


@pytest.mark.parametrize("word", [0, 0x7F800000, 0x7FC00000, 0xBF800000])
def test_words_without_a_factor(word: int) -> None:
    with pytest.raises(RecordError, match="no float32 > 0"):
        read_words(np.array([word], np.uint64))


def test_words_of_another_type() -> None:
    with pytest.raises(RecordError, match="float32; must be uint64"):
        read_words(np.ones(1, np.float32))


def test_s19_cuts_thirteen_bits_towards_zero() -> None:
    assert truncate_s19(np.array([0x3CA3D70B], np.uint32).view(np.float32)).view(np.uint32).tolist() == [0x3CA3C000]
    assert dequant_scale(0.1, [0.2], s19=True).view(np.uint32).tolist() == [0x3CA3C000]
    assert truncate_s19(np.float32(1.5)) == 1.5


@given(POSITIVE)
def test_s19_loses_less_than_a_thousandth(scale: float) -> None:
    cut = float(truncate_s19(np.float32(scale)))
    assert scale * (1 - 2.0**-10) < cut <= scale


@pytest.mark.parametrize(("scale_d", "scale_w"), [(1e-30, 1e-30), (1e30, 1e30)])
def test_products_that_leave_float32(scale_d: float, scale_w: float) -> None:
    with pytest.raises(RecordError, match=r"leaves float32; .*skip it"):
        dequant_scale(scale_d, [scale_w])


def test_biases_round_half_to_even() -> None:
    scale = np.array([0.5], np.float32)
    codes = bias_codes([0.25, 0.75, 1.25, -0.25, -0.75, 0.3], scale)
    assert codes.tolist() == [0, 2, 2, 0, -2, 1]
    assert codes.dtype == np.int32


def test_biases_with_a_scale_for_each_channel() -> None:
    assert bias_codes([1.0, 1.0], np.array([0.5, 0.25], np.float32)).tolist() == [2, 4]


def test_biases_at_the_ends_of_int32() -> None:
    one = np.ones(1, np.float32)
    assert bias_codes([2.0**31 - 1, -(2.0**31)], one).tolist() == [2**31 - 1, -(2**31)]
    with pytest.raises(RecordError, match=r"bias 2.14748e\+09 \(number 1\) is 2147483648 .*skip the layer"):
        bias_codes([0.0, 2.0**31], one)
    with pytest.raises(RecordError, match="skip the layer"):
        bias_codes([-(2.0**31) - 1], one)


def test_biases_that_are_no_numbers() -> None:
    with pytest.raises(RecordError, match="NaN or infinity"):
        bias_codes([np.nan], np.ones(1, np.float32))


def test_reciprocals_are_float32() -> None:
    assert quant_scale(0.1) == np.float32(1) / np.float32(0.1)
    assert quant_scale(0.1).dtype == np.float32
    with pytest.raises(RecordError, match="reciprocal"):
        quant_scale(1e-45)
