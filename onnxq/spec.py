"""What a quantized tensor is: its type, the shape of its scales, and the numbers themselves.

Everything here is frozen and validated when constructed, and knows numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import RecipeError


class QType(Enum):
    """A type of codes as ONNX names it, with its width and signedness.

    Widths without a container of their own (3, 5, 6, 7, 9..15 bits) are an integer container plus
    `QuantSpec.bits`. Codes of the float8 types are floating point numbers themselves, kept as their bits in uint8.
    """

    INT2 = ("int2", 2, True)
    UINT2 = ("uint2", 2, False)
    INT4 = ("int4", 4, True)
    UINT4 = ("uint4", 4, False)
    INT8 = ("int8", 8, True)
    UINT8 = ("uint8", 8, False)
    INT16 = ("int16", 16, True)
    UINT16 = ("uint16", 16, False)
    INT32 = ("int32", 32, True)
    FLOAT8E4M3FN = ("float8e4m3fn", 8, True)
    FLOAT8E5M2 = ("float8e5m2", 8, True)

    def __init__(self, label: str, bits: int, signed: bool) -> None:
        self.label = label
        self.bits = bits
        self.signed = signed

    @property
    def floating(self) -> bool:
        """Whether codes are floating point numbers."""
        return self in _FLOAT8_LARGEST

    @property
    def bounds(self) -> tuple[int, int]:
        """Smallest and largest code, both inclusive; of a float8 type the numbers that they stand for."""
        if self.floating:
            return (-_FLOAT8_LARGEST[self], _FLOAT8_LARGEST[self])
        return code_bounds(self.bits, signed=self.signed)

    @property
    def min_opset(self) -> int:
        """First opset whose QuantizeLinear and DequantizeLinear take this type."""
        if self.floating:
            return 19
        return {2: 25, 4: 21, 8: 10, 16: 21, 32: 10}[self.bits]

    @staticmethod
    def parse(label: str) -> QType:
        """Return the type called `label` (``"int8"``).

        Raises:
            RecipeError: If there is no such type.
        """
        for member in QType:
            if member.label == label.lower():
                return member
        names = ", ".join(m.label for m in QType)
        raise RecipeError(f"unknown type {label!r}; known: {names}")

    @staticmethod
    def container(bits: int, *, signed: bool) -> QType:
        """Return the narrowest integer container that holds `bits` wide codes.

        Raises:
            RecipeError: If `bits` is outside 2..16.
        """
        if not 2 <= bits <= 16:
            raise RecipeError(f"a width of {bits} bits is not supported; use 2 to 16")
        width = next(w for w in (2, 4, 8, 16) if w >= bits)
        return next(m for m in QType if m.bits == width and m.signed == signed and not m.floating)


_FLOAT8_LARGEST = {QType.FLOAT8E4M3FN: 448, QType.FLOAT8E5M2: 57344}


def code_bounds(bits: int, *, signed: bool) -> tuple[int, int]:
    """Smallest and largest code of a `bits` wide integer, both inclusive."""
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


@dataclass(frozen=True, slots=True)
class PerTensor:
    """One scale for the whole tensor; ``scale.shape == ()``."""


@dataclass(frozen=True, slots=True)
class PerAxis:
    """One scale per slice of `axis`; ``scale.shape == (x.shape[axis],)``."""

    axis: int


@dataclass(frozen=True, slots=True)
class PerBlock:
    """One scale per run of `size` elements along `axis`.

    ``scale.shape`` is ``x.shape`` with ``shape[axis]`` replaced by ``ceil(shape[axis] / size)``.
    """

    axis: int
    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise RecipeError(f"a block must hold at least one element, got size {self.size}")


Granularity = PerTensor | PerAxis | PerBlock


@dataclass(frozen=True, slots=True)
class QuantSpec:
    """How one tensor is to be quantized; says nothing about its data.

    Attributes:
        qtype: The container the codes are stored in.
        granularity: Which elements share a scale.
        symmetric: Whether the zero point is fixed in the middle of the code range
            (0 for signed containers, ``2**(bits-1)`` for unsigned ones).
        bits: Effective width; 0 means the container's own width.
        narrow: Leave out the lowest code, so that the range is symmetric around the zero point.
    """

    qtype: QType
    granularity: Granularity = field(default_factory=PerTensor)
    symmetric: bool = True
    bits: int = 0
    narrow: bool = False

    def __post_init__(self) -> None:
        if self.bits == 0:
            object.__setattr__(self, "bits", self.qtype.bits)
        if not 1 <= self.bits <= self.qtype.bits:
            raise RecipeError(f"{self.bits} bits do not fit into {self.qtype.label}")
        if self.qtype.floating and not (self.symmetric and self.bits == self.qtype.bits and not self.narrow):
            raise RecipeError(f"{self.qtype.label} is symmetric and has all its codes")

    @property
    def bounds(self) -> tuple[int, int]:
        """Smallest and largest code in use, both inclusive; see `QType.bounds`."""
        if self.qtype.floating:
            return self.qtype.bounds
        low, high = code_bounds(self.bits, signed=self.qtype.signed)
        return (low + 1, high) if self.narrow else (low, high)

    @property
    def middle(self) -> int:
        """The zero point of a symmetric tensor."""
        return 0 if self.qtype.signed else 1 << (self.bits - 1)


@dataclass(frozen=True, slots=True, eq=False)
class QuantParams:
    """The affine map ``real = scale * (code - zero_point)`` of one tensor.

    Attributes:
        spec: The specification these numbers fulfil.
        scale: float32, finite and > 0, of the shape `spec.granularity` says.
        zero_point: int32 codes of the same shape as `scale`; 0 for a float8 type.
    """

    spec: QuantSpec
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int32]

    def __post_init__(self) -> None:
        scale = np.array(self.scale, dtype=np.float32)
        zero_point = np.array(self.zero_point, dtype=np.int32)
        if scale.shape != zero_point.shape:
            raise ValueError(f"scale {scale.shape} and zero_point {zero_point.shape} differ")
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise ValueError("every scale must be finite and > 0")
        low, high = code_bounds(self.spec.bits, signed=self.spec.qtype.signed)
        if self.spec.qtype.floating:
            low = high = 0
        if ((zero_point < low) | (zero_point > high)).any():
            raise ValueError(f"zero_point outside [{low}, {high}]")
        scale.flags.writeable = False
        zero_point.flags.writeable = False
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "zero_point", zero_point)

    @property
    def low(self) -> NDArray[np.float64]:
        """Smallest representable real, shape of `scale`."""
        return self.scale.astype(np.float64) * (self.spec.bounds[0] - self.zero_point)

    @property
    def high(self) -> NDArray[np.float64]:
        """Largest representable real, shape of `scale`."""
        return self.scale.astype(np.float64) * (self.spec.bounds[1] - self.zero_point)

    def same_as(self, other: QuantParams) -> bool:
        """Whether both map every code to the same real."""
        return (
            self.spec.qtype is other.spec.qtype
            and self.scale.shape == other.scale.shape
            and bool((self.scale == other.scale).all())
            and bool((self.zero_point == other.zero_point).all())
        )
