"""Removal of outliers: the extreme order statistics of every round, averaged over the rounds.

Source: the published behaviour of MindSpore Lite's REMOVAL_OUTLIER. A round is one run of the model over one sample;
what is cut off is the same share of each round, so a single odd round moves the range by its part of the mean only.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxq.algos._fields import check_number
from onnxq.errors import RecipeError
from onnxq.spec import QuantSpec
from onnxq.stats import TensorStats


@dataclass(frozen=True, slots=True)
class RemovalOutlierConfig:
    """Parameters of `find_range`.

    Attributes:
        low_quantile: Of n sorted values of a round, that at ``int(low_quantile * n)`` is its lower bound.
        high_quantile: The same for the upper bound.
    """

    low_quantile: float = 0.0001
    high_quantile: float = 0.9999

    def __post_init__(self) -> None:
        check_number("low_quantile", self.low_quantile, 0, 1)
        check_number("high_quantile", self.high_quantile, 0, 1)
        if not self.low_quantile < self.high_quantile:
            raise RecipeError(f"low_quantile {self.low_quantile} must be below high_quantile {self.high_quantile}")

    @property
    def shares(self) -> tuple[float, float]:
        """The order statistics that must be collected."""
        return self.low_quantile, self.high_quantile


def find_range(stats: TensorStats, spec: QuantSpec, config: RemovalOutlierConfig) -> tuple[float, float]:
    """Return the mean of the lower and the mean of the upper bounds of the rounds.

    Args:
        stats: Order statistics of the tensor.
        spec: Not looked at.
        config: Parameters.

    Raises:
        CalibrationError: If the order statistics were not collected.
    """
    del spec
    quantiles = stats.require_quantiles()
    return quantiles.mean(config.low_quantile), quantiles.mean(config.high_quantile)
