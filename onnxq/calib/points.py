"""What calibration is asked to measure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Flag, auto

from onnxq.observers import ObserverRequest


class StatKind(Flag):
    """What to measure of a tensor."""

    RANGE = auto()
    """Smallest and largest value, and how many."""
    HISTOGRAM = auto()
    """Counts of the values; the range comes with it."""
    CHANNEL_ABSMAX = auto()
    """Largest magnitude of each channel."""
    CHANNEL_SUM = auto()
    """Sum of each channel, for means."""
    QUANTILES = auto()
    """Order statistics of every run; the model is run one sample at a time for that."""
    PEAKS = auto()
    """Largest magnitude of every run, likewise."""
    OBSERVED = auto()
    """What observers of the user's want to see."""


SINGLY = StatKind.QUANTILES | StatKind.PEAKS | StatKind.OBSERVED
"""What is asked of every sample by itself."""


@dataclass(frozen=True, slots=True)
class StatisticPoint:
    """One tensor and what to measure of it.

    Attributes:
        tensor: Its name.
        kinds: What to measure.
        axis: Where its channels are, counted as numpy does; only the channel kinds use it.
        shares: Which order statistics, see `onnxq.stats.RoundQuantiles`; only QUANTILES uses it.
        observers: Who is to see it; only OBSERVED uses it.
    """

    tensor: str
    kinds: StatKind
    axis: int = 1
    shares: tuple[float, ...] = ()
    observers: tuple[ObserverRequest, ...] = ()

    @property
    def batches(self) -> bool:
        """Whether observers want the batches that the data come in."""
        return any(request.batches for request in self.observers)

    @property
    def singly(self) -> bool:
        """Whether the model is run another way for it than for a histogram: one sample at a time, or as they come."""
        return bool(self.kinds & SINGLY)
