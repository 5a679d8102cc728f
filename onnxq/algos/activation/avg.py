"""AVG: the largest magnitude of every sample, averaged over the samples.

Source: PaddleSlim, AVGObserver. A single sample with odd values moves the range by its part of the mean only.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxq.spec import QuantSpec
from onnxq.stats import TensorStats


@dataclass(frozen=True, slots=True)
class AvgConfig:
    """AVG has no parameters."""


def find_range(stats: TensorStats, spec: QuantSpec, config: AvgConfig) -> tuple[float, float]:
    """Return the range cut at the mean of the magnitudes on both sides.

    Args:
        stats: Largest magnitudes of the samples.
        spec: Not looked at.
        config: Not looked at.

    Raises:
        CalibrationError: If they were not collected.
    """
    del spec, config
    clip = stats.require_peaks().mean
    return max(stats.low, -clip), min(stats.high, clip)
