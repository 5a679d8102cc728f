"""Calibration in shards: what is sent to a worker, what it does, and what comes back.

A shard is a run of samples that begins and ends where a batch does, so that the same batches are run wherever that
is. What it gives are `Part`s, which merge exactly; sums of floats stay apart batch by batch and are added at home in
the order of the samples.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from onnxq._version import __version__
from onnxq.calib.chunks import rechunk, sample_digests, split_rule
from onnxq.calib.engine import BadBatch, Collector, Part
from onnxq.calib.feeds import Feed, InputInfo, batching
from onnxq.calib.points import StatisticPoint
from onnxq.calib.readers import CheckedReader
from onnxq.calib.reductions import Reductions
from onnxq.errors import CalibrationError, OnnxqError
from onnxq.observers import Observed
from onnxq.runtime import Session, make_session

SAMPLES = 16
"""Samples of a shard, at least, as long as there are not too many shards."""
MOST = 64
"""Shards, as far as the number of samples is known beforehand."""

Batch = tuple[int, Feed]
"""The number of its first sample, and the samples."""


@dataclass(eq=False)
class Job:
    """What all shards have in common; it is sent to a worker once.

    Attributes:
        model: The model with the tensors of interest as outputs, serialized.
        points: What to measure.
        inputs: The model's inputs.
        reduced: Points whose extremes the session computes by itself.
        version: Version of onnxq that made it.
    """

    model: bytes
    points: tuple[StatisticPoint, ...]
    inputs: tuple[InputInfo, ...]
    reduced: Reductions
    version: str = __version__

    @cached_property
    def session(self) -> Session:
        """Made where the job is done."""
        return make_session(self.model, threads=1)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "session"}

    @property
    def observed(self) -> bool:
        """Whether the user's observers take part."""
        return any(point.observers for point in self.points)

    def collector(self) -> Collector:
        """What runs the batches of a shard."""
        return Collector(self.session, self.points, self.inputs, reduced=self.reduced)


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """Samples that follow each other.

    Attributes:
        number: Its place among the shards.
        batches: The samples, where they are sent.
        reader: Where the worker reads them, else.
        start: With a reader: number of the first sample.
        batch: With a reader: samples of a batch.
        last: With a reader: there is nothing behind it, so its last batch may be shorter.
    """

    number: int
    batches: tuple[Batch, ...] = ()
    reader: CheckedReader | None = None
    start: int = 0
    batch: int = 0
    last: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What became of a shard.

    Attributes:
        part: What was measured; None where nothing could be.
        bad: A batch with NaN or infinity.
        error: Another problem with the user's input: the class of the error and what it says.
        uneven: The samples differ in shape, so that batches do not begin where they were thought to.
        digests: sha256 of each sample that the worker has read.
        notes: What was converted in them.
    """

    part: Part | None = None
    bad: BadBatch | None = None
    error: tuple[type[OnnxqError], str] | None = None
    uneven: bool = False
    digests: tuple[bytes, ...] = ()
    notes: tuple[str, ...] = ()


def shards_of(batches: Iterable[Batch]) -> Iterator[Shard]:
    """Shards that are sent with their samples.

    Args:
        batches: As they are to be run.
    """
    waiting: list[Batch] = []
    first, number = 0, 0
    for start, feed in batches:
        if waiting and start - first >= SAMPLES:
            yield Shard(number, tuple(waiting))
            number, waiting, first = number + 1, [], start
        waiting.append((start, feed))
    if waiting:
        yield Shard(number, tuple(waiting))


def shards_in(reader: CheckedReader, batch: int, inputs: Sequence[InputInfo]) -> list[Shard] | None:
    """Shards that workers read themselves; None where the samples have to be sent.

    Args:
        reader: The data.
        batch: Samples of a batch.
        inputs: The model's inputs.
    """
    total = reader.len_hint()
    rule = batching(inputs)
    if not total or (rule.fixed is not None and total % rule.fixed):
        return None
    batches = -(-total // batch)
    size = batch * max(-(-SAMPLES // batch), -(-batches // MOST))
    found = []
    for number, start in enumerate(range(0, total, size)):
        part = reader.part(start, min(size, total - start))
        if part is None:
            return None
        found.append(Shard(number, (), part, start, batch, start + size >= total))
    return found


def run_shard(job: Job, shard: Shard) -> Outcome:
    """Measure a shard; on a worker. What a user can mend comes back as an `Outcome`.

    Args:
        job: What all shards have in common.
        shard: The samples.
    """
    try:
        if job.version != __version__:
            raise CalibrationError(
                f"the worker has onnxq {__version__}, and {job.version} calibrates; install the same version everywhere"
            )
        return _measured(job, shard)
    except BadBatch as bad:
        return Outcome(bad=bad)
    except OnnxqError as err:
        return Outcome(error=(type(err), str(err)))


def _measured(job: Job, shard: Shard) -> Outcome:
    collector = job.collector()
    read = _Read(shard, job.inputs) if shard.reader is not None else None
    batches = shard.batches if read is None else read.batches()
    if read is not None and read.uneven:
        return Outcome(uneven=True)
    if shard.number == 0 and job.observed:
        _check_merging(job, batches)
    part = collector.part(batches, apart=True)
    return Outcome(part) if read is None else Outcome(part, digests=tuple(read.digests), notes=read.notes)


@dataclass(eq=False)
class _Read:
    """The samples of a shard that the worker reads itself."""

    shard: Shard
    inputs: tuple[InputInfo, ...]
    digests: list[bytes] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    uneven: bool = False

    def batches(self) -> tuple[Batch, ...]:
        """All of them."""
        reader = self.shard.reader or ()
        size, start = self.shard.batch, self.shard.start
        found = tuple((start + first, feed) for first, feed in rechunk(self._noted(reader), size, self.inputs))
        if self.shard.reader is not None:
            self.notes = self.shard.reader.notes
        self.uneven = any(first != start + number * size for number, (first, _) in enumerate(found))
        self.uneven |= not self.shard.last and len(found) * size != len(self.digests)
        return found

    def _noted(self, feeds: Iterable[Feed]) -> Iterator[Feed]:
        for feed in feeds:
            self.digests += sample_digests(feed, split_rule(self.inputs, feed).carried)
            yield feed


def _check_merging(job: Job, batches: Sequence[Batch]) -> None:
    """Refuse observers that choose another range after a merge than after seeing everything themselves.

    Raises:
        CalibrationError: If there is one.
    """
    half = len(batches) // 2
    if not half:
        return
    whole, left, right = (job.collector().part(part).observed for part in (batches, batches[:half], batches[half:]))
    for name, together in whole.items():
        for one, a, b in zip(together, left[name], right[name], strict=True):
            _check_same(one, merged(a, b))


def merged(left: Observed, right: Observed) -> Observed:
    """Both observers together.

    Raises:
        CalibrationError: If they do not merge.
    """
    try:
        return left.merge(right)
    except CalibrationError as err:
        raise CalibrationError(
            f"{err}; workers see a part of the data each, so observers have to merge. {_HOME}"
        ) from err


def _check_same(whole: Observed, both: Observed) -> None:
    wanted, found = whole.find_range(), both.find_range()
    if wanted != found:
        raise CalibrationError(
            f"tensor {whole.tensor!r}: observer {whole.request.label} does not merge exactly: two that have seen half "
            f"of some samples each choose {found} when they are merged, and one that has seen all chooses {wanted}; "
            f"workers see a part of the data each. {_HOME}"
        )


_HOME = "Mend merge, or calibrate without workers"


def digest_of(outcomes: Iterable[Sequence[bytes]]) -> str:
    """The digest of all samples from those of each; see `onnxq.calib.chunks.ContentDigest`."""
    digest = hashlib.sha256()
    for sample in itertools.chain.from_iterable(outcomes):
        digest.update(sample)
    return digest.hexdigest()
