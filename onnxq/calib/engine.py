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
    sums: dict[str, tuple[NDArray[np.float64], int]]
    seen: dict[str, NDArray[np.float32]]


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
        names = [p.tensor for p in self.points]
        inside = {i.name for i in self.inputs} | self.reduced.tensors
        taps = [*(name for name in names if name not in inside), *self.reduced.outputs]
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

        sums: dict[str, tuple[NDArray[np.float64], int]] = {}
        samples = 0
        observers = {p.tensor: [Observed.start(p.tensor, request) for request in p.observers] for p in self.points}
        with ThreadPoolExecutor(self.workers) as pool:
            for start, feed, done in _ordered(pool, work, self._batches(feeds, taps), 2 * self.workers):
                if done.bad:
                    raise CalibrationError(self._blame(start, feed, done))
                _add_sums(sums, done.sums)
                for name, x in done.seen.items():  # here, not on the workers: in the order of the data
                    for observer in observers[name]:
                        observer.see(x)
                samples = start + done.samples
                if self.on_samples is not None:
                    self.on_samples(samples)
        if not samples:
            raise CalibrationError("there was not a single sample to calibrate with")
        found = [worker.stats() for worker in crew]
        total = {name: _merged([stats[name] for stats in found], sums.get(name)) for name in names}
        return {name: replace(total[name], observed=tuple(observers[name]) or None) for name in names}

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

    def _batches(self, feeds: Iterable[Feed], taps: Sequence[str]) -> Iterator[tuple[int, Feed]]:
        size = self.batch or batching(self.inputs).fixed
        if any(point.batches for point in self.points) and not batching(self.inputs).fixed:
            return self._as_given(feeds)
        if any(point.singly for point in self.points):
            size = batching(self.inputs).fixed or 1
        if size:
            return rechunk(feeds, size, self.inputs)
        return self._sized(iter(feeds), taps)

    def _as_given(self, feeds: Iterable[Feed]) -> Iterator[tuple[int, Feed]]:
        start = 0
        for feed in feeds:
            yield start, feed
            start += _rows(feed, self.inputs)

    def _sized(self, feeds: Iterator[Feed], taps: Sequence[str]) -> Iterator[tuple[int, Feed]]:
        """Choose the batch by the shapes or, where they are not known, by running the first sample."""
        first = next(feeds, None)
        if first is None:
            return
        sample = next(rechunk([first], 1, self.inputs))[1]
        yield from rechunk(_chain(first, feeds), batch_for(self._sample_bytes(taps, sample)), self.inputs)

    def _measure(self, worker: _Worker, taps: Sequence[str], feed: Feed) -> _Done:
        found: dict[str, Any] = dict(zip(taps, self.session.run(taps, feed), strict=True)) if taps else {}
        rows = _rows(feed, self.inputs)
        bad = set(worker.extremes.add(found, rows))
        if not bad:
            worker.count({name: found[output] for name, output in self.reduced.rows.items()})
        sums: dict[str, tuple[NDArray[np.float64], int]] = {}
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

    def _blame(self, start: int, feed: Feed, done: _Done) -> str:
        stop = start + done.samples - 1
        where = f"sample {start}" if stop == start else f"samples {start} to {stop}"
        origin = self.explain(feed) if self.explain is not None else ""
        return (
            f"{where}: tensor {done.bad[0]!r} holds NaN or infinity{origin}; "
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


def _add_sums(
    sums: dict[str, tuple[NDArray[np.float64], int]], new: dict[str, tuple[NDArray[np.float64], int]]
) -> None:
    for name, (values, count) in new.items():
        if name in sums:
            old, before = sums[name]
            sums[name] = (old + values, before + count)
        else:
            sums[name] = (values, count)


def _merged(found: Sequence[TensorStats], sums: tuple[NDArray[np.float64], int] | None) -> TensorStats:
    parts = [stats for stats in found if stats.count]
    if not parts:
        return found[0]
    total = parts[0]
    for part in parts[1:]:
        total = total.merge(part)
    if sums is None:
        return total
    values, count = sums
    return replace(total, channel_sum=values, channel_count=count)
