"""MinMax: the exact range of the data, nothing clipped."""

from __future__ import annotations

from dataclasses import dataclass

from onnxq.spec import QuantSpec
from onnxq.stats import TensorStats


@dataclass(frozen=True, slots=True)
class MinMaxConfig:
    """MinMax has no parameters."""


def find_range(stats: TensorStats, spec: QuantSpec, config: MinMaxConfig) -> tuple[float, float]:
    """Return the smallest and the largest value.

    Args:
        stats: Range of the tensor.
        spec: Not looked at.
        config: Not looked at.
    """
    del spec, config
    return stats.low, stats.high
