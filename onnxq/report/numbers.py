"""The numbers of quantized tensors in the form in which reports show them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.weight.codes import WeightCodes
from onnxq.spec import PerAxis, PerBlock, QuantParams

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Numbers:
    """How one tensor becomes codes.

    Attributes:
        tensor: Its name.
        kind: What its codes are: ``uint8``, ``int8, symmetric``.
        scales: ``one``, or how many along which axis.
        scale: One number per scale, flat.
        zero_point: Likewise.
        low: Smallest real that has a code, likewise.
        high: Largest real that has a code, likewise.
        method: What chose the numbers; empty where it is not known.
        axis: Axis that the scales belong to; None for one scale, or blocks.
        shared: Names of other tensors that have the same numbers on purpose.
    """

    tensor: str
    kind: str
    scales: str
    scale: Array
    zero_point: Array
    low: Array
    high: Array
    method: str = ""
    axis: int | None = None
    shared: tuple[str, ...] = ()

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest real that has a code, over all scales."""
        return float(self.low.min()), float(self.high.max())

    @property
    def scale_text(self) -> str:
        """The scale, or the smallest and the largest one."""
        return span(float(self.scale.min()), float(self.scale.max()))

    @property
    def zero_text(self) -> str:
        """The zero point, or the smallest and the largest one."""
        return span(float(self.zero_point.min()), float(self.zero_point.max()))


def numbers_of(tensor: str, params: QuantParams, method: str = "", shared: tuple[str, ...] = ()) -> Numbers:
    """The numbers of a tensor with a scale and a zero point.

    Args:
        tensor: Its name.
        params: Its numbers.
        method: What chose them.
        shared: Names of other tensors that have the same numbers on purpose.
    """
    spec = params.spec
    width = "" if spec.bits == spec.qtype.bits else f", {spec.bits} bits"
    axis: int | None = None
    match spec.granularity:
        case PerAxis():
            axis = spec.granularity.axis
            scales = f"{params.scale.size} along axis {axis}"
        case PerBlock(axis=along, size=size):
            scales = f"{params.scale.size}, blocks of {size} along axis {along}"
        case _:
            scales = "one"
    scale, zero, low, high = (_flat(v) for v in (params.scale, params.zero_point, params.low, params.high))
    kind = f"{spec.qtype.label}{width}{', symmetric' if spec.symmetric else ''}"
    return Numbers(tensor, kind, scales, scale, zero, low, high, method, axis, shared)


def numbers_of_codes(tensor: str, codes: WeightCodes, method: str = "") -> Numbers:
    """The numbers of a weight that is stored as codes and decoded to floats.

    Args:
        tensor: Its name.
        codes: Its numbers.
        method: What chose them.
    """
    scale = codes.scale.astype(np.float64) * codes.variance
    low, high = (_flat((end - codes.zero_point) * scale + codes.mean) for end in (codes.low, codes.high))
    scales = "one" if codes.axis is None else f"{codes.scale.size} along axis {codes.axis}"
    kind = f"{codes.bits} bits"
    return Numbers(tensor, kind, scales, _flat(codes.scale), _flat(codes.zero_point), low, high, method, codes.axis)


def _flat(values: Array) -> Array:
    return np.asarray(values).reshape(-1)


def span(low: float, high: float) -> str:
    """One number, or the smallest and the largest of several."""
    return f"{low:.5g}" if low == high else f"{low:.5g} … {high:.5g}"
