"""Numbers of 8 bits with an exponent: float32 to E4M3FN and E5M2 and back, with their bits as codes.

Rounding is to nearest, ties to the even mantissa; what is too large becomes the largest finite number, as
QuantizeLinear has it. Neither infinity nor NaN is ever given.

Source: ONNX, "Float stored in 8 bits"; Micikevicius et al., "FP8 Formats for Deep Learning", 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from onnxq.spec import QType

_MANTISSA = 23
"""Bits of float32's mantissa."""
_BIAS = 127
"""Of float32's exponent."""


@dataclass(frozen=True, slots=True)
class Format:
    """The layout of one of the types.

    Attributes:
        mantissa: Bits of the mantissa.
        smallest_exponent: Of a normal number; below it, steps stay the same.
        largest: The largest finite number.
    """

    mantissa: int
    smallest_exponent: int
    largest: float


_FORMATS = {
    QType.FLOAT8E4M3FN: Format(3, -6, float(QType.FLOAT8E4M3FN.bounds[1])),
    QType.FLOAT8E5M2: Format(2, -14, float(QType.FLOAT8E5M2.bounds[1])),
}


def round_to(x: NDArray[np.float32], qtype: QType) -> NDArray[np.float32]:
    """Return the nearest number of a float8 type for each element.

    Args:
        x: float32, no NaN, any shape; infinities become the largest finite numbers.
        qtype: One of the float8 types.

    Returns:
        float32, shape of `x`; a negative number that rounds to zero gives -0.0.
    """
    layout = _FORMATS[qtype]
    clipped = np.clip(np.asarray(x, np.float32), np.float32(-layout.largest), np.float32(layout.largest))
    shift = np.uint32(_MANTISSA - layout.mantissa)
    bits = clipped.view(np.uint32)
    odd = (bits >> shift) & np.uint32(1)
    bits = (bits + (np.uint32((1 << (int(shift) - 1)) - 1) + odd)) >> shift << shift
    smallest = np.float32(2.0**layout.smallest_exponent)
    step = np.float32(2.0 ** (layout.smallest_exponent - layout.mantissa))
    return np.where(np.abs(clipped) < smallest, np.rint(clipped / step) * step, bits.view(np.float32))


def encode(x: NDArray[np.float32], qtype: QType) -> NDArray[np.uint8]:
    """Return the bits of the nearest number of a float8 type for each element.

    Args:
        x: As for `round_to`.
        qtype: One of the float8 types.

    Returns:
        uint8, shape of `x`.
    """
    layout = _FORMATS[qtype]
    rounded = round_to(x, qtype)
    bits = rounded.view(np.uint32)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    # float32's exponent of a number whose exponent field is 1 here
    offset = np.uint32((_BIAS + layout.smallest_exponent - 1) << layout.mantissa)
    normal = (magnitude >> np.uint32(_MANTISSA - layout.mantissa)) - offset
    steps = np.abs(rounded) * np.float32(2.0 ** (layout.mantissa - layout.smallest_exponent))
    small = magnitude < np.float32(2.0**layout.smallest_exponent).view(np.uint32)
    low = np.where(small, np.where(small, steps, 0).astype(np.uint32), normal)
    codes: NDArray[np.uint8] = (low | (bits >> np.uint32(24)) & np.uint32(0x80)).astype(np.uint8)
    return codes


def decode(codes: NDArray[np.uint8], qtype: QType) -> NDArray[np.float32]:
    """Return the numbers that bits of a float8 type stand for.

    Args:
        codes: uint8, any shape.
        qtype: One of the float8 types.

    Returns:
        float32, shape of `codes`; NaN and infinities where the bits stand for them.
    """
    numbers: NDArray[np.float32] = _table(qtype)[codes]
    return numbers


@cache
def _table(qtype: QType) -> NDArray[np.float32]:
    """All 256 numbers, float32."""
    layout = _FORMATS[qtype]
    codes = np.arange(256)
    fraction = (codes & ((1 << layout.mantissa) - 1)) / (1 << layout.mantissa)
    exponent = (codes & 0x7F) >> layout.mantissa
    normal = (1.0 + fraction) * np.exp2(exponent - 1.0 + layout.smallest_exponent)
    values = np.where(exponent == 0, fraction * 2.0**layout.smallest_exponent, normal)
    if qtype is QType.FLOAT8E4M3FN:  # no infinities: only all ones are no number
        values[(codes & 0x7F) == 0x7F] = np.nan
    else:
        top = exponent == exponent.max()
        values[top] = np.where(fraction[top] == 0, np.inf, np.nan)
    table = np.where(codes & 0x80, -values, values).astype(np.float32)
    table.flags.writeable = False
    return table
