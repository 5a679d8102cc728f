"""MSE: the clipping range with the smallest expected squared error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.algos._fields import check_number
from onnxq.algos.activation._histogram import Moments, affine_levels
from onnxq.spec import QuantSpec
from onnxq.stats import TensorStats

#: The search halves its step in these rounds: factors ``2**(-k/4)`` first, then steps of 2**(1/16) and 2**(1/64)
#: around the best one.
_COARSE = 4
_REFINE = (16, 64)
_REACH = 4


@dataclass(frozen=True, slots=True)
class MseConfig:
    """Parameters of `find_range`.

    Attributes:
        smallest: Smallest clip, as a share of the extreme value, that the search may choose.
    """

    smallest: float = 1 / 128

    def __post_init__(self) -> None:
        check_number("smallest", self.smallest, 0, 1, open_low=True)


def find_range(stats: TensorStats, spec: QuantSpec, config: MseConfig) -> tuple[float, float]:
    """Return the range that minimises the squared error of quantizing the histogram's bin centres.

    Both ends are searched, one alone where the data lie on one side of zero, the magnitude for a symmetric spec. The
    search is coarse to fine over factors of the extreme values; its last step is about one percent. On a tie the wider
    range wins.

    Args:
        stats: Range and histogram of the tensor.
        spec: Decides about symmetry and the number of levels.
        config: Parameters.

    Raises:
        CalibrationError: If there is no histogram.
    """
    histogram = stats.require_histogram()
    low, high = min(stats.low, 0.0), max(stats.high, 0.0)
    if low == high:
        return stats.low, stats.high
    moments = Moments.of(histogram)
    if spec.symmetric:
        low, high = -stats.absmax, stats.absmax
    two_sided = low < 0 < high and not spec.symmetric
    best: NDArray[np.float64] = np.zeros(2)  # binary logarithms of the factors, <= 0
    floor = np.log2(config.smallest)
    for step in (_COARSE, *_REFINE):
        first = step == _COARSE
        offsets = np.arange(0, floor - 1e-9, -1 / step) if first else np.arange(_REACH, -_REACH - 1, -1) / step
        ups, downs = np.meshgrid(offsets, offsets) if two_sided else (offsets, offsets)
        logs = np.stack([best[0] + downs.ravel(), best[1] + ups.ravel()])
        logs = logs[:, ((logs <= 0) & (logs >= floor - 1e-9)).all(axis=0)]
        errors = _candidate_errors(moments, low * np.exp2(logs[0]), high * np.exp2(logs[1]), spec)
        best = logs[:, int(np.argmin(errors))]
    return float(low * np.exp2(best[0])), float(high * np.exp2(best[1]))


def _candidate_errors(
    moments: Moments, low: NDArray[np.float64], high: NDArray[np.float64], spec: QuantSpec
) -> NDArray[np.float64]:
    qmin, qmax = spec.bounds
    if spec.qtype.floating:
        return moments.float8_errors(high / qmax, spec.qtype)
    if not spec.symmetric:
        return moments.errors(*affine_levels(low, high, spec.bounds))
    scale = high / max(qmax - spec.middle, 1)
    return moments.errors(scale, np.full(scale.shape, qmin - spec.middle), np.full(scale.shape, qmax - spec.middle))
