"""Runs a model over calibration data once and keeps statistics, never activations.

Each worker thread runs its own batch through a shared session on one core and folds what comes out
into accumulators of its own: nothing waits for anything else. Ranges, counts and histograms merge
exactly; sums of floats are added in the order of the samples. So neither the number of workers nor
the batches the data came in can change a bit of the result.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.algos import kernels
from onnxq.algos.ranks import order_statistics
from onnxq.calib.chunks import rechunk
from onnxq.calib.feeds import Feed, InputInfo, batching, sample_count
from onnxq.calib.points import StatisticPoint, StatKind
from onnxq.calib.reductions import LARGE, THINNING, Extremes, Reductions
from onnxq.errors import CalibrationError
from onnxq.observers import Observed
from onnxq.runtime import Session
from onnxq.stats import BINS, MIN_EXPONENT, Histogram, RoundPeaks, RoundQuantiles, TensorStats, exponent_for

BATCH_BYTES = 1 << 22
"""A batch grows until the tensors of interest take about this much: beyond, it no longer fits the caches."""
LARGEST_BATCH = 32

Sums = dict[str, tuple[NDArray[np.float64], int]]
"""Sums of each channel by tensor name, float64 of shape (C,), and of how many values."""

OnSamples = Callable[[int], None]
"""Is told the number of samples done so far."""


@dataclass
class _Counter:
    """The histogram of one tensor on one worker."""

    exponent: int = MIN_EXPONENT
    counts: NDArray[np.int64] | None = None

    def add(self, x: NDArray[np.float32], absmax: float, lanes: NDArray[np.uint32]) -> None:
        """Count values, none of which is larger than `absmax`."""
        needed = exponent_for(absmax)
        if self.counts is None:
            self.counts = np.zeros(BINS, np.int64)
            self.exponent = needed
        elif needed > self.exponent:
            self.counts = Histogram(self.exponent, self.counts).grow(needed).counts.copy()
            self.exponent = needed
        kernels.count_into(x, self.counts, self.exponent, lanes=lanes)

    def histogram(self) -> Histogram:
        """What was counted."""
        return Histogram.empty() if self.counts is None else Histogram(self.exponent, self.counts)


@dataclass
class _Accumulator:
    """Statistics of one tensor on one worker."""

    point: StatisticPoint
    low: float = math.inf
    high: float = -math.inf
    count: int = 0
    counter: _Counter = field(default_factory=_Counter)
    absmax: NDArray[np.float32] | None = None
    quantiles: RoundQuantiles | None = field(init=False)
    peaks: RoundPeaks | None = field(init=False)

    def __post_init__(self) -> None:
        wanted = StatKind.QUANTILES in self.point.kinds
        self.quantiles = RoundQuantiles.empty(self.point.shares) if wanted else None
        self.peaks = RoundPeaks() if StatKind.PEAKS in self.point.kinds else None

    def add(self, x: NDArray[np.float32], lanes: NDArray[np.uint32]) -> bool:
        """Take in one array; False if it holds NaN or infinity."""
        if StatKind.CHANNEL_ABSMAX in self.point.kinds and x.size:
            lows, highs = kernels.channel_range(by_channel(x, self.point.axis))
            if not (np.isfinite(lows).all() and np.isfinite(highs).all()):
                return False
            low, high = float(lows.min()) + 0.0, float(highs.max()) + 0.0
            found = np.maximum(np.abs(lows), np.abs(highs))
            self.absmax = found if self.absmax is None else np.maximum(self.absmax, found)
        else:
            low, high, finite = kernels.min_max(x)
            if not finite:
                return False
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.count += x.size
        if StatKind.HISTOGRAM in self.point.kinds and x.size:
            self.counter.add(_thinned(x), max(-low, high), lanes)
        if self.quantiles is not None and x.size:
            self.quantiles = self.quantiles.add(order_statistics(x, self.quantiles.ranks(x.size)))
        if self.peaks is not None and x.size:
            self.peaks = self.peaks.add(max(-low, high))
        return True

    def stats(self) -> TensorStats:
        """What was found."""
        histogram = None
        if StatKind.HISTOGRAM in self.point.kinds:
            histogram = self.counter.histogram()
        return TensorStats(
            self.low, self.high, self.count, histogram, self.absmax, quantiles=self.quantiles, peaks=self.peaks
        )


def _thinned(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every so many-th value of each sample of a large tensor, all values of a small one."""
    sample = x.size // max(len(x), 1) if x.ndim else x.size
    return x if sample < LARGE else np.ascontiguousarray(x.reshape(len(x), -1)[:, :: _step(x.shape[-1])])


def _step(length: int) -> int:
    """A step that meets every index of an axis of this length in turn: the last axis may be the channels."""
    return next(step for step in itertools.count(THINNING) if math.gcd(step, length) == 1)


def batch_for(sample_bytes: float) -> int:
    """How many samples to run at a time.

    Args:
        sample_bytes: Bytes of the tensors of interest of one sample.
    """
    batch = 1
    while batch < LARGEST_BATCH and 2 * batch * sample_bytes <= BATCH_BYTES:
        batch *= 2
    return batch


def by_channel(x: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """View an array as (outer, channels, inner); a vector or a scalar is one channel."""
    if x.ndim == 0 or x.ndim <= axis % max(x.ndim, 1):
        return x.reshape(1, 1, -1)
    axis %= x.ndim
    return x.reshape(math.prod(x.shape[:axis]), x.shape[axis], -1) if x.size else x.reshape(0, x.shape[axis], 1)


@dataclass
class _Worker:
    accumulators: dict[str, _Accumulator]
    extremes: Extremes
    lanes: NDArray[np.uint32] = field(default_factory=kernels.make_lanes)

    counters: dict[str, _Counter] = field(default_factory=dict)

    def count(self, rows: Mapping[str, NDArray[np.float32]]) -> None:
        """Add rows of tensors to the histograms."""
        for name, absmax in self.extremes.absmax().items():
            self.counters.setdefault(name, _Counter()).add(np.ascontiguousarray(rows[name]), absmax, self.lanes)

    def stats(self) -> dict[str, TensorStats]:
        """What was found, by name of the tensor."""
        found = self.extremes.stats()
        for name, counter in self.counters.items():
            found[name] = replace(found[name], histogram=counter.histogram())
        return found | {name: a.stats() for name, a in self.accumulators.items()}


@dataclass(frozen=True, slots=True)
class _Done:
    """What the main thread must know of one batch."""

    samples: int
    bad: tuple[str, ...]
    sums: Sums
    seen: dict[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What batches that follow each other have shown.

    Attributes:
        samples: Number behind the last sample; 0 where there was none.
        stats: Statistics by tensor name, without what follows.
        sums: Sums of channels: of each batch, or of all of them.
        observed: The user's observers by tensor name.
    """

    samples: int
    stats: Mapping[str, TensorStats]
    sums: tuple[Sums, ...]
    observed: Mapping[str, tuple[Observed, ...]]


class BadBatch(Exception):  # noqa: N818 - it is told as a CalibrationError
    """A batch on which a tensor holds NaN or infinity.

    Args:
        start: Number of its first sample.
        samples: How many it has.
        tensor: The first such tensor.
        feed: The batch.
    """

    def __init__(self, start: int, samples: int, tensor: str, feed: Feed) -> None:
        super().__init__(start, samples, tensor, feed)
        self.start = start
        self.samples = samples
        self.tensor = tensor
        self.feed = feed


@dataclass
class Collector:
    """Measures statistic points.

    Attributes:
        session: Runs on one thread; its outputs include every tensor of `points` that is not an input.
        points: What to measure.
        inputs: The model's inputs.
        workers: How many batches are run at the same time.
        batch: Samples of a batch; 0 chooses by the size of the tensors of one sample. Order statistics are those
            of a run, so with them it is one sample, or the batch that the model fixes; so it is for observers, unless
            these want the batches that the data come in.
        on_samples: Is told how many samples are done.
        reduced: Points whose extremes the session computes by itself.
        explain: Called with the feed of a batch with NaN or infinity; names the node that made it.
    """

    session: Session
    points: Sequence[StatisticPoint]
    inputs: Sequence[InputInfo]
    workers: int = 1
    batch: int = 0
    on_samples: OnSamples | None = None
    explain: Callable[[Feed], str] | None = None
    reduced: Reductions = field(default_factory=Reductions)

    def run(self, feeds: Iterable[Feed]) -> dict[str, TensorStats]:
        """Run all feeds and return the statistics by tensor name.

        Raises:
            CalibrationError: If a tensor holds NaN or infinity, or there are no samples.
            DataError: If a feed does not fit the model.
        """
        try:
            return self.total([self.part(self.batches(feeds))])
        except BadBatch as err:
            raise self.blame(err) from None

    @property
    def taps(self) -> tuple[str, ...]:
        """What the session is asked for."""
        inside = {i.name for i in self.inputs} | self.reduced.tensors
        return (*(p.tensor for p in self.points if p.tensor not in inside), *self.reduced.outputs)

    def part(self, batches: Iterable[tuple[int, Feed]], *, apart: bool = False) -> Part:
        """Run some batches that follow each other.

        Args:
            batches: With the number of each one's first sample.
            apart: Keep the sums of every batch by itself.

        Raises:
            BadBatch: If a tensor holds NaN or infinity.
            DataError: If a feed does not fit the model.
        """
        taps = self.taps
        free: SimpleQueue[_Worker] = SimpleQueue()
        crew = [self._worker() for _ in range(self.workers)]
        for worker in crew:
            free.put(worker)

        def work(feed: Feed) -> _Done:
            worker = free.get()
            try:
                return self._measure(worker, taps, feed)
            finally:
                free.put(worker)

        sums: list[Sums] = []
        samples = 0
        observers = {p.tensor: [Observed.start(p.tensor, request) for request in p.observers] for p in self.points}
        with ThreadPoolExecutor(self.workers) as pool:
            for start, feed, done in _ordered(pool, work, iter(batches), 2 * self.workers):
                if done.bad:
                    raise BadBatch(start, done.samples, done.bad[0], feed)
                if apart or not sums:
                    sums.append(done.sums)
                else:
                    sums[0] = _added(sums[0], done.sums)
                for name, x in done.seen.items():  # here, not on the workers: in the order of the data
                    for observer in observers[name]:
                        observer.see(x)
                samples = start + done.samples
                if self.on_samples is not None:
                    self.on_samples(samples)
        found = [worker.stats() for worker in crew]
        merged = {p.tensor: _merged([stats[p.tensor] for stats in found]) for p in self.points}
        return Part(samples, merged, tuple(sums), {name: tuple(seen) for name, seen in observers.items()})

    def total(self, parts: Iterable[Part]) -> dict[str, TensorStats]:
        """Put parts together, in the order of the samples.

        Raises:
            CalibrationError: If there are no samples, or observers do not merge.
        """
        stats: dict[str, TensorStats] = {}
        sums: Sums = {}
        observed: dict[str, tuple[Observed, ...]] = {}
        for part in parts:
            if not part.samples:
                continue
            for name, new in part.stats.items():
                stats[name] = _merged([stats[name], new]) if name in stats else new
            sums = _added(sums, *part.sums)
            for name, seen in part.observed.items():
                old = observed.get(name)
                observed[name] = seen if old is None else tuple(a.merge(b) for a, b in zip(old, seen, strict=True))
        if not stats:
            raise CalibrationError("there was not a single sample to calibrate with")
        for name, (values, count) in sums.items():
            stats[name] = replace(stats[name], channel_sum=values, channel_count=count)
        return {p.tensor: replace(stats[p.tensor], observed=observed.get(p.tensor) or None) for p in self.points}

    def _worker(self) -> _Worker:
        fetched = {p.tensor: _Accumulator(p) for p in self.points if p.tensor not in self.reduced.tensors}
        return _Worker(fetched, Extremes(self.reduced))

    def _sample_bytes(self, taps: Sequence[str], sample: Feed) -> int:
        if self.reduced.static and set(taps) <= set(self.reduced.outputs):
            return 4 * sum(item.count(1) for item in self.reduced.items) + sum(x.nbytes for x in sample.values())
        found = dict(zip(taps, self.session.run(taps, sample), strict=True))
        extremes = Extremes(self.reduced)
        extremes.add(found, 1)
        arrays = [x for x in (*found.values(), *sample.values()) if isinstance(x, np.ndarray)]
        return 4 * sum(extremes.counts) + sum(x.nbytes for x in arrays)

    def batches(self, feeds: Iterable[Feed]) -> Iterator[tuple[int, Feed]]:
        """The batches that are run, each with the number of its first sample.

        Raises:
            DataError: If a feed does not fit the model.
        """
        if self.as_given:
            yield from self._as_given(feeds)
            return
        rest = iter(feeds)
        for first in rest:  # one at the most
            yield from rechunk(_chain(first, rest), self.size(first), self.inputs)

    @property
    def as_given(self) -> bool:
        """Whether the batches are those that the data come in."""
        return any(point.batches for point in self.points) and not batching(self.inputs).fixed

    def size(self, first: Feed) -> int:
        """How many samples a batch has, unless it is `as_given`.

        It is judged by shapes or, where they are not known, by running a sample.

        Args:
            first: The first feed of the data.
        """
        fixed = batching(self.inputs).fixed
        if any(point.singly for point in self.points):
            return fixed or 1
        if self.batch or fixed:
            return self.batch or fixed or 1
        return batch_for(self._sample_bytes(self.taps, next(rechunk([first], 1, self.inputs))[1]))

    def _as_given(self, feeds: Iterable[Feed]) -> Iterator[tuple[int, Feed]]:
        start = 0
        for feed in feeds:
            yield start, feed
            start += _rows(feed, self.inputs)

    def _measure(self, worker: _Worker, taps: Sequence[str], feed: Feed) -> _Done:
        found: dict[str, Any] = dict(zip(taps, self.session.run(taps, feed), strict=True)) if taps else {}
        rows = _rows(feed, self.inputs)
        bad = set(worker.extremes.add(found, rows))
        if not bad:
            worker.count({name: found[output] for name, output in self.reduced.rows.items()})
        sums: Sums = {}
        seen: dict[str, NDArray[np.float32]] = {}
        for point in self.points:
            if point.tensor not in worker.accumulators:
                continue
            x = found.pop(point.tensor) if point.tensor in found else feed[point.tensor]
            if not isinstance(x, np.ndarray) or x.dtype != np.float32:
                raise CalibrationError(f"tensor {point.tensor!r} is no float32 tensor; it cannot be calibrated")
            if not worker.accumulators[point.tensor].add(x, worker.lanes):
                bad.add(point.tensor)
                continue
            if StatKind.CHANNEL_SUM in point.kinds:
                view = by_channel(x, point.axis)
                sums[point.tensor] = (kernels.channel_sum(view), view.shape[0] * view.shape[2])
            if point.observers and x.size:
                seen[point.tensor] = x
        return _Done(rows, tuple(p.tensor for p in self.points if p.tensor in bad), sums, seen)

    def blame(self, bad: BadBatch) -> CalibrationError:
        """What to tell a user about a batch."""
        stop = bad.start + bad.samples - 1
        where = f"sample {bad.start}" if stop == bad.start else f"samples {bad.start} to {stop}"
        origin = self.explain(bad.feed) if self.explain is not None else ""
        return CalibrationError(
            f"{where}: tensor {bad.tensor!r} holds NaN or infinity{origin}; "
            "remove the samples or mend the model, or leave the node out with --skip"
        )


def _chain(first: Feed, rest: Iterator[Feed]) -> Iterator[Feed]:
    yield first
    yield from rest


def _rows(feed: Mapping[str, NDArray[Any]], inputs: Sequence[InputInfo]) -> int:
    return sample_count(feed, batching(inputs).carried) or 1


def _ordered(
    pool: ThreadPoolExecutor, work: Callable[[Feed], _Done], batches: Iterator[tuple[int, Feed]], ahead: int
) -> Iterator[tuple[int, Feed, _Done]]:
    """Run `work` on the pool; give the results in the order of the batches, at most `ahead` of them waiting."""
    waiting: deque[tuple[int, Feed, Future[_Done]]] = deque()
    try:
        for start, feed in batches:
            waiting.append((start, feed, pool.submit(work, feed)))
            if len(waiting) >= ahead:
                first, its_feed, future = waiting.popleft()
                yield first, its_feed, future.result()
        while waiting:
            first, its_feed, future = waiting.popleft()
            yield first, its_feed, future.result()
    finally:
        for _, _, future in waiting:
            future.cancel()


def _added(*found: Sums) -> Sums:
    """The sums of batches, added from left to right."""
    total = dict(found[0])
    for new in found[1:]:
        for name, (values, count) in new.items():
            old = total.get(name)
            total[name] = (values, count) if old is None else (old[0] + values, old[1] + count)
    return total


def _merged(found: Sequence[TensorStats]) -> TensorStats:
    parts = [stats for stats in found if stats.count]
    if not parts:
        return found[0]
    total = parts[0]
    for part in parts[1:]:
        total = total.merge(part)
    return total
