"""Latency and throughput of models that take turns, so that whatever else the machine does hits all alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from onnxq.calib.feeds import Feed
from onnxq.errors import DataError
from onnxq.graph import GraphModel
from onnxq.report.benchmark_feeds import converted
from onnxq.runtime import make_session, thread_count

CONFIDENCE = 0.95
ROUNDS = 30
WARM_UP = 5
SHORTEST = 5e-3
"""Seconds that one turn of a model takes at least: shorter ones are repeated."""
REST = 0.02
"""Seconds in front of each turn: the threads of the other session spin for a while after its last run."""

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, slots=True)
class Interval:
    """Where a median lies.

    Attributes:
        low: Lower end.
        high: Upper end.
        coverage: With which probability the median of what was sampled lies between, at least.
    """

    low: float
    high: float
    coverage: float

    @staticmethod
    def of_median(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
        """The interval between two of the values that holds the median, whatever the distribution.

        Of n independent values, fewer than k lie below the median with the probability that n throws of a coin show
        fewer than k heads. With fewer than 6 values no two of them reach 95 %; then it is all values, and `coverage`
        says what they are worth.

        Args:
            values: One at least.
            confidence: The coverage wanted, below 1.
        """
        ordered = sorted(values)
        count = len(ordered)
        outside, rank = 2.0 * 0.5**count, 1
        while rank < count // 2:
            more = outside + 2.0 * math.comb(count, rank) * 0.5**count
            if more > 1.0 - confidence:
                break
            outside, rank = more, rank + 1
        return Interval(ordered[rank - 1], ordered[-rank], max(0.0, 1.0 - outside))


@dataclass(frozen=True, slots=True)
class Timing:
    """How long one model takes.

    Attributes:
        name: What the model is called.
        turns: Milliseconds of one inference, for each of its turns.
        repeats: Inferences of one turn.
        samples: Samples of one inference.
    """

    name: str
    turns: tuple[float, ...]
    repeats: int
    samples: int

    @property
    def median(self) -> float:
        """Milliseconds of one inference."""
        return statistics.median(self.turns)

    @property
    def quartiles(self) -> tuple[float, float]:
        """A quarter of the turns were faster than the first, a quarter slower than the second."""
        if len(self.turns) == 1:
            return self.turns[0], self.turns[0]
        low, _, high = statistics.quantiles(self.turns, n=4, method="inclusive")
        return low, high

    @property
    def spread(self) -> float:
        """Distance of the quartiles over the median: 0.02 is a calm machine."""
        low, high = self.quartiles
        return (high - low) / self.median if self.median else 0.0

    @property
    def throughput(self) -> float:
        """Samples in a second."""
        return 1e3 * self.samples / self.median if self.median else math.inf

    def to_dict(self) -> dict[str, object]:
        """Content for JSON."""
        low, high = self.quartiles
        return {
            "name": self.name,
            "median_ms": self.median,
            "quartiles_ms": [low, high],
            "best_ms": min(self.turns),
            "samples_per_second": self.throughput,
            "repeats": self.repeats,
            "turns_ms": list(self.turns),
        }


@dataclass(frozen=True, slots=True)
class Ratio:
    """Time of a model over that of the first one: below 1 is faster.

    Attributes:
        name: The model.
        median: Median of the ratios of the turns next to each other.
        interval: Where the median lies.
    """

    name: str
    median: float
    interval: Interval

    @property
    def verdict(self) -> str:
        """Whether the difference is more than chance: faster, slower or unclear."""
        if self.interval.coverage < CONFIDENCE or self.interval.low <= 1.0 <= self.interval.high:
            return "unclear"
        return "faster" if self.median < 1.0 else "slower"

    def to_dict(self) -> dict[str, object]:
        """Content for JSON."""
        interval = {"low": self.interval.low, "high": self.interval.high, "coverage": self.interval.coverage}
        return {"name": self.name, "ratio": self.median, "interval": interval, "verdict": self.verdict}


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Times of models that took turns.

    Attributes:
        timings: Of each model.
        threads: Threads of ONNX Runtime.
        warm_up: Inferences of each model before the first turn.
    """

    timings: tuple[Timing, ...]
    threads: int
    warm_up: int

    @property
    def ratios(self) -> tuple[Ratio, ...]:
        """Times of all models but the first over those of the first."""
        first = self.timings[0]
        found = []
        for timing in self.timings[1:]:
            pairs = [b / a for a, b in zip(first.turns, timing.turns, strict=True) if a]
            found.append(Ratio(timing.name, statistics.median(pairs), Interval.of_median(pairs)))
        return tuple(found)

    def to_dict(self) -> dict[str, object]:
        """Content for JSON."""
        return {
            "threads": self.threads,
            "warm_up": self.warm_up,
            "rounds": len(self.timings[0].turns),
            "models": [timing.to_dict() for timing in self.timings],
            "ratios": [ratio.to_dict() for ratio in self.ratios],
        }


@dataclass(frozen=True, slots=True)
class Clock:
    """Time as a benchmark sees it.

    Attributes:
        now: Seconds since any moment.
        rest: Waits for so many seconds.
    """

    now: Callable[[], float] = time.perf_counter
    rest: Callable[[float], None] = time.sleep


CLOCK = Clock()
"""The machine's."""


def benchmark(
    models: Sequence[Path | GraphModel],
    feeds: Sequence[Feed],
    *,
    threads: int = 0,
    rounds: int = ROUNDS,
    warm_up: int = WARM_UP,
    names: Sequence[str] = (),
    samples: int = 1,
    clock: Clock = CLOCK,
    progress: Progress = lambda what, done, total: None,
) -> Benchmark:
    """Run models in turn, A B A B, and time them.

    Args:
        models: Models with inputs of the same names.
        feeds: Taken in turn; in one round all models get the same ones.
        threads: Threads of ONNX Runtime; 0 for all cores.
        rounds: How many turns each model has.
        warm_up: How often each model is run before that.
        names: What the models are called; by default their paths.
        samples: How many samples a feed holds.
        clock: The time.
        progress: Told how it is going.

    Raises:
        ModelError: If ONNX Runtime cannot load a model.
        DataError: If it refuses a feed, or there is no model, no feed or no round.
    """
    if not (models and feeds and rounds > 0):
        raise DataError("a benchmark needs one model, one feed and one round at least")
    titles = list(names) or [str(m) if isinstance(m, Path) else f"model {k}" for k, m in enumerate(models, 1)]
    sessions = [make_session(m, threads=threads, source=t) for m, t in zip(models, titles, strict=True)]
    own = [converted(feeds, session.inputs, title) for session, title in zip(sessions, titles, strict=True)]
    runs = [[partial(session.run, None, feed) for feed in mine] for session, mine in zip(sessions, own, strict=True)]
    turns, repeats = alternate(runs, rounds=rounds, warm_up=warm_up, clock=clock, progress=progress)
    timings = [Timing(*facts, samples) for facts in zip(titles, map(tuple, turns), repeats, strict=True)]
    return Benchmark(tuple(timings), thread_count(threads), warm_up)


def alternate(
    runs: Sequence[Sequence[Callable[[], object]]],
    *,
    rounds: int,
    warm_up: int = WARM_UP,
    clock: Clock = CLOCK,
    progress: Progress = lambda what, done, total: None,
) -> tuple[list[list[float]], list[int]]:
    """Call functions in turn.

    Args:
        runs: For each contestant what it is to do, taken in turn from round to round.
        rounds: How many turns each has.
        warm_up: How often each is called before that.
        clock: The time.
        progress: Told how it is going.

    Returns:
        For each contestant the milliseconds of one call in each of its turns, and how many calls make a turn.
    """
    repeats: list[int] = []
    for choices in runs:
        for number in range(warm_up):
            choices[number % len(choices)]()
        repeats.append(max(1, math.ceil(SHORTEST / max(1e-7, _seconds(choices[0], 1, clock)))))
    turns: list[list[float]] = [[] for _ in runs]
    for number in range(rounds):
        progress("measuring", number, rounds)
        for choices, count, found in zip(runs, repeats, turns, strict=True):
            run = choices[number % len(choices)]
            clock.rest(REST)
            run()
            found.append(1e3 * _seconds(run, count, clock) / count)
    return turns, repeats


def _seconds(run: Callable[[], object], count: int, clock: Clock) -> float:
    start = clock.now()
    for _ in range(count):
        run()
    return clock.now() - start
