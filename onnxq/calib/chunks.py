"""Samples and fixed batches, whatever batches the data came in."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxq.calib.feeds import Array, Batching, Feed, InputInfo, batching, sample_count
from onnxq.errors import DataError

logger = logging.getLogger("onnxq")


def split_rule(inputs: Sequence[InputInfo] | None, feed: Feed) -> Batching:
    """How feeds are split: as the model says, or, where it is not known, along axis 0 of every array."""
    return batching(inputs) if inputs is not None else Batching(frozenset(n for n, a in feed.items() if a.ndim))


@dataclass
class _Pending:
    """Rows of one kind that wait until there are enough of them for a batch."""

    feeds: list[Feed] = field(default_factory=list)
    rows: int = 0
    first: int = 0

    def add(self, feed: Feed, rows: int) -> None:
        self.feeds.append(feed)
        self.rows += rows

    def fits(self, feed: Feed, carried: frozenset[str]) -> bool:
        """Whether `feed` can be put behind the rows that wait: same shapes, types and constants."""
        if not self.feeds:
            return True
        last = self.feeds[-1]
        return all(
            last[name].dtype == array.dtype and last[name].shape[1:] == array.shape[1:]
            if name in carried
            else same_array(last[name], array)
            for name, array in feed.items()
        )

    def take(self, count: int, carried: frozenset[str]) -> tuple[int, Feed]:
        """Remove and return the first `count` rows, with the number of the first one."""
        parts: list[Feed] = []
        wanted = count
        while wanted:
            head = self.feeds[0]
            rows = next(head[name].shape[0] for name in carried)
            used = min(rows, wanted)
            parts.append(head if used == rows else rows_of(head, 0, used, carried))
            self.feeds[:1] = [] if used == rows else [rows_of(head, used, rows, carried)]
            wanted -= used
        start = self.first
        self.first += count
        self.rows -= count
        if len(parts) == 1:
            return start, parts[0]
        return start, {
            name: np.concatenate([part[name] for part in parts]) if name in carried else array
            for name, array in parts[0].items()
        }


def same_array(a: Array, b: Array) -> bool:
    """Whether two arrays have the same type, shape and values."""
    return a is b or (a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all()))


def rows_of(feed: Mapping[str, Array], start: int, stop: int, carried: frozenset[str]) -> Feed:
    """Samples `start` to `stop` of a feed, as views; what is the same for all samples stays."""
    return {name: array[start:stop] if name in carried else array for name, array in feed.items()}


def rechunk(feeds: Iterable[Feed], batch: int, inputs: Sequence[InputInfo] | None = None) -> Iterator[tuple[int, Feed]]:
    """Give the samples in batches of one fixed size, with the number of each batch's first sample.

    The batches depend on the order of the samples only, not on the feeds they came in. A batch is
    shorter at the end, and where the next sample has another shape. A feed that cannot be split
    (its inputs disagree on axis 0) is passed through whole and counts as one sample.

    Args:
        feeds: A reader, or any iterable of feeds.
        batch: How many samples; a batch that the model fixes takes precedence.
        inputs: The model's inputs; None takes axis 0 of every array for the samples.

    Raises:
        DataError: If the model fixes its batch and there are not enough samples for one.
    """
    if batch < 1:
        raise DataError(f"a batch must hold at least one sample, got {batch}")
    pending = _Pending()
    carried: frozenset[str] = frozenset()
    fixed: int | None = None
    for feed in feeds:
        rule = split_rule(inputs, feed)
        fixed, size = rule.fixed, rule.fixed or batch
        rows = sample_count(feed, rule.carried)
        if pending.rows and (rows is None or carried != rule.carried or not pending.fits(feed, carried)):
            yield from _rest(pending, carried, fixed)
        carried = rule.carried
        if rows is None:
            yield pending.first, feed
            pending.first += 1
            continue
        pending.add(feed, rows)
        while pending.rows >= size:
            yield pending.take(size, carried)
    if pending.rows:
        yield from _rest(pending, carried, fixed)


def _rest(pending: _Pending, carried: frozenset[str], fixed: int | None) -> Iterator[tuple[int, Feed]]:
    start, feed = pending.take(pending.rows, carried)
    rows = pending.first - start
    if fixed is None or rows == fixed:
        yield start, feed
    elif start == 0:
        raise DataError(
            f"the model's batch is fixed at {fixed}, but there are only {rows} samples; give {fixed} or more"
        )
    else:
        logger.warning("the last %d samples are not used: the model's batch is fixed at %d", rows, fixed)


def samples(feeds: Iterable[Feed], inputs: Sequence[InputInfo] | None = None) -> Iterator[Feed]:
    """Give the samples one at a time, each with axis 0 of length 1."""
    for _, feed in rechunk(feeds, 1, inputs):
        yield feed


def head(feed: Feed, count: int, carried: frozenset[str]) -> tuple[Feed, int]:
    """The first `count` samples of a feed, and how many these are."""
    rows = sample_count(feed, carried)
    if rows is None or rows <= count:
        return feed, rows or 1
    return rows_of(feed, 0, count, carried), count


def take(feeds: Iterable[Feed], count: int | None, inputs: Sequence[InputInfo] | None = None) -> Iterator[Feed]:
    """Give the first `count` samples in the feeds they came in; None gives all."""
    left = sys.maxsize if count is None else count
    for feed in feeds if left > 0 else ():
        part, used = head(feed, left, split_rule(inputs, feed).carried)
        yield part
        left -= used
        if left <= 0:
            return


def first_batches(feeds: Iterable[Feed], count: int, batch: int, inputs: Sequence[InputInfo]) -> list[Feed]:
    """The first `count` samples in batches of one size; whole batches, and one at least, where the model fixes it.

    Args:
        feeds: A reader, or any iterable of feeds.
        count: How many samples.
        batch: How many of them at a time; a batch that the model fixes takes precedence.
        inputs: The model's inputs.

    Raises:
        DataError: If the model fixes its batch and there are not enough samples for one.
    """
    fixed = batching(inputs).fixed
    if fixed is not None:
        count = max(count // fixed, 1) * fixed
    return [feed for _, feed in rechunk(take(feeds, count, inputs), batch, inputs)]


class ContentDigest:
    """sha256 over samples that does not depend on the feeds they came in: that of the samples' own, in their order.

    Args:
        inputs: The model's inputs; None takes axis 0 of every array for the samples.
    """

    def __init__(self, inputs: Sequence[InputInfo] | None = None) -> None:
        self._inputs = inputs
        self._hash = hashlib.sha256()

    def add(self, feed: Feed) -> None:
        """Take the samples of one more feed."""
        for digest in sample_digests(feed, split_rule(self._inputs, feed).carried):
            self._hash.update(digest)

    def hexdigest(self) -> str:
        """The digest of everything added so far."""
        return self._hash.hexdigest()


def sample_digests(feed: Feed, carried: frozenset[str]) -> Iterator[bytes]:
    """sha256 of each sample of a feed."""
    rows = sample_count(feed, carried)
    for row in range(rows or 1):
        digest = hashlib.sha256()
        for name in sorted(feed):
            array = feed[name] if rows is None or name not in carried else feed[name][row]
            digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
            digest.update(_content(array))
        yield digest.digest()


def _content(array: Array) -> bytes | memoryview:
    if array.dtype.hasobject:
        return repr(array.tolist()).encode()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
