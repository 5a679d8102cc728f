"""Codes of weights that are decoded to floats before anything computes with them.

Any width from 1 to 16 bits is possible, and each channel can have its mean and variance given back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True, slots=True, eq=False)
class WeightCodes:
    """The map ``real = (code - zero_point) * scale * variance + mean`` of one weight.

    Attributes:
        bits: Width of a stored code, 1 to 16.
        low: The smallest code; ``code - low`` is what is stored, from 0 to ``2**bits - 1``.
        axis: Axis of the weight that the numbers below belong to; None where there is one for the whole weight.
        scale: float32, > 0, shape () or (C,).
        zero_point: int32, the shape of `scale`.
        variance: float32, > 0, the shape of `scale`: gives the standard deviation back.
        mean: float32, the shape of `scale`: gives the mean back.
    """

    bits: int
    low: int
    axis: int | None
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int32]
    variance: NDArray[np.float32]
    mean: NDArray[np.float32]

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 16:
            raise ValueError(f"codes of {self.bits} bits; must be 1 to 16")
        if not self.scale.shape == self.zero_point.shape == self.variance.shape == self.mean.shape:
            raise ValueError("scale, zero_point, variance and mean differ in shape")
        for values in (self.scale, self.zero_point, self.variance, self.mean):
            values.flags.writeable = False

    @property
    def high(self) -> int:
        """The largest code."""
        return self.low + (1 << self.bits) - 1

    def along(self, values: NDArray[T], rank: int) -> NDArray[T]:
        """One of the numbers above in a shape that broadcasts against a weight of `rank` dimensions."""
        return values if self.axis is None else values.reshape(*(-1 if i == self.axis else 1 for i in range(rank)))


def encode(weight: NDArray[np.floating], codes: WeightCodes) -> NDArray[np.int32]:
    """The codes of a weight: rounded half away from zero, limited to the width.

    Args:
        weight: float32, finite, any shape.
        codes: How.

    Returns:
        int32, the shape of `weight`, each from `codes.low` to `codes.high`.
    """
    from onnxq.algos.weight._codes_kernels import encode_view

    x = np.require(weight, np.float32, ("C", "A"))
    view = (1, 1, x.size) if codes.axis is None else _around(x.shape, codes.axis)
    values = np.empty(x.shape, np.int32)
    scale, zero_point = codes.scale.reshape(-1), codes.zero_point.reshape(-1).astype(np.int64)
    encode_view(x.reshape(view), scale, zero_point, codes.low, codes.high, values.reshape(view))
    return values


def _around(shape: tuple[int, ...], axis: int) -> tuple[int, int, int]:
    """A shape as (before the axis, the axis, behind it)."""
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


def decode(values: NDArray[np.integer], codes: WeightCodes) -> NDArray[np.float32]:
    """The weight that codes stand for.

    Args:
        values: Codes, as `encode` gives them.
        codes: How.

    Returns:
        float32, the shape of `values`, computed in the order of the formula: one rounding for the product of scale
        and variance, one for the product with the code, one for the sum.
    """
    rank = values.ndim
    factor = codes.along(codes.scale * codes.variance, rank)
    return (values - codes.along(codes.zero_point, rank)).astype(np.float32) * factor + codes.along(codes.mean, rank)
