"""Means and standard deviations of channels, and what functions make of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
"""One number per channel."""

_GRID = np.linspace(-6.0, 6.0, 601)
_SHARE = np.exp(-0.5 * _GRID**2) / np.exp(-0.5 * _GRID**2).sum()


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Mean and standard deviation of a tensor's channels, shape (C,) each; the channels are on axis 1."""

    mean: Vector
    deviation: Vector

    def through(self, function: Callable[[Vector], Vector]) -> Moments:
        """Those of a function of it, as if it were normal."""
        values = function(self.mean[:, None] + self.deviation[:, None] * _GRID)
        mean = (values * _SHARE).sum(axis=1)
        square = (np.square(values - mean[:, None]) * _SHARE).sum(axis=1)
        return Moments(mean, np.sqrt(square))
