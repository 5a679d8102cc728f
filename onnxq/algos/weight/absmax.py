"""AbsMax: the largest magnitude of each scale's weights, nothing clipped; AMCT calls it ARQ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.algos._fields import check_flag
from onnxq.algos.affine import params_from_range
from onnxq.algos.weight._groups import ranges
from onnxq.spec import QuantParams, QuantSpec


@dataclass(frozen=True, slots=True)
class AbsMaxConfig:
    """Parameters of `find_params`.

    Attributes:
        full_range: Where the negative side is the wider one, use the lowest code for it (AMCT's rule). Gains half a
            percent of resolution at 8 bits; backends that assume -127..127 do not take it.
    """

    full_range: bool = False

    def __post_init__(self) -> None:
        check_flag("full_range", self.full_range)


def find_params(weight: NDArray[np.generic], spec: QuantSpec, config: AbsMaxConfig) -> QuantParams:
    """Return the scales that cover every weight; an all-zero slice gets scale 1.

    Args:
        weight: Any float type, any shape; a memmap is read once, in pieces.
        spec: Granularity, width and symmetry; 2 to 8 bits in AMCT.
        config: Parameters.

    Raises:
        CalibrationError: If the weight holds NaN or infinity, or lacks the axis.
    """
    low, high = ranges(weight, spec)
    return params_from_range(low, high, spec, full_range=config.full_range)
