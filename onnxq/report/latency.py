"""Latency of two models, measured in turn so that what else the machine does hits both alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from onnxq.calib.feeds import Feed
from onnxq.runtime import Session

_WARM_UP = 3
_ROUNDS = (7, 200)
_SHORTEST = 1e-3
_REST = 0.02
"""Seconds in front of each measurement: the threads of the other session spin for a while after its last run."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Median time of one run of each model.

    Attributes:
        reference_ms: Of the float model, in milliseconds.
        quantized_ms: Of the quantized model.
        rounds: How often each was measured.
        threads: Threads of ONNX Runtime; 0 means all cores.
    """

    reference_ms: float
    quantized_ms: float
    rounds: int
    threads: int

    @property
    def ratio(self) -> float:
        """Time of the quantized model over that of the float model: below 1 is faster."""
        return self.quantized_ms / self.reference_ms

    def to_dict(self) -> dict[str, object]:
        """Content for JSON."""
        times = {"reference_ms": self.reference_ms, "quantized_ms": self.quantized_ms, "ratio": self.ratio}
        return {**times, "rounds": self.rounds, "threads": self.threads}


def measure(reference: Session, quantized: Session, feed: Feed, *, threads: int = 0, seconds: float = 1.5) -> Latency:
    """Run both models in turn and take the medians.

    Args:
        reference: The float model.
        quantized: The quantized model.
        feed: One sample.
        threads: What the sessions were made with.
        seconds: About how long to measure.
    """
    runs = (partial(reference.run, None, feed), partial(quantized.run, None, feed))
    for _ in range(_WARM_UP):
        for run in runs:
            run()
    repeats = [max(1, round(_SHORTEST / max(1e-7, _seconds(run, 1)))) for run in runs]
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while len(times[0]) < _ROUNDS[0] or (time.perf_counter() < end and len(times[0]) < _ROUNDS[1]):
        for run, count, found in zip(runs, repeats, times, strict=True):
            time.sleep(_REST)
            run()
            found.append(_seconds(run, count) / count)
    first, second = (1e3 * statistics.median(found) for found in times)
    return Latency(first, second, len(times[0]), threads)


def _seconds(run: Callable[[], object], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        run()
    return time.perf_counter() - start
