"""Data sources that are files or arrays: tables of samples, and folders of one feed per file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from onnxq.calib.arrays import Column, whole
from onnxq.calib.feeds import Feed, InputInfo, batching
from onnxq.calib.prefetch import in_order
from onnxq.errors import DataError, nearest

BLOCK_BYTES = 4 << 20
"""How much of an array is read at a time, at the most (but always one sample)."""
BLOCK_ROWS = 256
"""How many samples are read at a time, at the most."""


class Located(NamedTuple):
    """A feed and where it comes from.

    Attributes:
        where: File or data set.
        first: Number of the feed's first sample in it.
        feed: The arrays, not yet checked.
    """

    where: str
    first: int
    feed: Feed


class Source(Protocol):
    """Feeds from files or arrays, not yet checked; each call of `located` starts anew."""

    def located(self) -> Iterator[Located]:
        """Give the feeds and where they come from."""
        ...

    def len_hint(self) -> int | None:
        """How many samples there are, if known."""
        ...

    def describe(self) -> str:
        """What the data are, in a few words."""
        ...

    def remarks(self) -> tuple[str, ...]:
        """What is worth knowing about how they are read, a sentence each."""
        ...


@runtime_checkable
class Divisible(Protocol):
    """A source of files of which each is one sample, so that any of them can be read without those in front."""

    def part(self, first: int, count: int) -> Source | None:
        """Some of its samples as a source that can be read elsewhere; None where files hold any number of them.

        Args:
            first: Number of the first one.
            count: How many.
        """
        ...


class TableSource:
    """Arrays named after the model's inputs, axis 0 the samples.

    An array may have the input's rank (its rows are samples), one more (each item is one complete
    input), be 0-d (the same for all samples), or have exactly the fixed shape of an input that is not
    batched (likewise).

    Args:
        label: What to call the data in messages.
        columns: The arrays by name.
        inputs: The model's inputs.

    Raises:
        DataError: If names, ranks or lengths do not fit.
    """

    def __init__(self, label: str, columns: Mapping[str, Column], inputs: Sequence[InputInfo]) -> None:
        unknown = [name for name in columns if name not in {info.name for info in inputs}]
        missing = [info.name for info in inputs if info.name not in columns]
        if unknown or missing:
            raise DataError(_misnamed(label, unknown, missing, inputs))
        self._label = label
        self._carried = batching(inputs).carried
        self._constants: dict[str, Column] = {}
        self._sampled: dict[str, Column] = {}
        self._stacked: set[str] = set()
        for info in inputs:
            column = columns[info.name]
            if not column.shape or (info.name not in self._carried and info.shape == column.shape):
                self._constants[info.name] = column
                continue
            self._sampled[info.name] = column
            if info.shape is not None and len(column.shape) == len(info.shape) + 1:
                self._stacked.add(info.name)
        self._count = self._count_samples()

    def _count_samples(self) -> int:
        lengths = {name: column.shape[0] for name, column in self._sampled.items()}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{name!r} {length}" for name, length in lengths.items())
            raise DataError(
                f"{self._label}: the arrays hold different numbers of samples along axis 0: {counts}. "
                "Where an input's own axis 0 is something else, put the samples on a new axis before it"
            )
        return next(iter(lengths.values()), 1)

    def located(self) -> Iterator[Located]:
        """Give the feeds and where they come from."""
        constants = {name: whole(column) for name, column in self._constants.items()}
        rows = self._rows_at_a_time()
        with ExitStack() as stack:
            streams = {name: column.blocks(rows) for name, column in self._sampled.items()}
            for stream in streams.values():
                stack.callback(stream.close)
            for start in range(0, self._count, rows):
                feed = dict(constants)
                for name, stream in streams.items():
                    block = next(stream)
                    feed[name] = block[0] if name in self._stacked else block
                yield Located(self._label, start, feed)

    def _rows_at_a_time(self) -> int:
        if self._stacked or not self._carried:
            return 1
        size = sum(
            column.dtype.itemsize * int(np.prod(column.shape[1:], dtype=np.int64)) for column in self._sampled.values()
        )
        return max(1, min(BLOCK_ROWS, BLOCK_BYTES // max(1, size)))

    def len_hint(self) -> int | None:
        """How many samples there are."""
        return self._count

    def describe(self) -> str:
        """What the data are, in a few words."""
        return f"{self._count} samples from {self._label}"

    def remarks(self) -> tuple[str, ...]:
        """Nothing: the arrays are taken as they are."""
        return ()


def _misnamed(label: str, unknown: Sequence[str], missing: Sequence[str], inputs: Sequence[InputInfo]) -> str:
    names = [info.name for info in inputs]
    parts = [f"array {name!r} is not an input of the model{nearest(name, names)}" for name in unknown]
    parts += [f"input {name!r} has no array" for name in missing]
    return f"{label}: {'; '.join(parts)}. Name the arrays after the inputs: {', '.join(map(repr, names))}"


class FolderSource:
    """Files that are one feed each.

    Args:
        label: What to call the data in messages.
        kind: What to call the files.
        paths: The files, in order.
        load: Reads one of them.
        single: Whether each file is exactly one sample.
        workers: How many files are read at the same time.
        remarks: What is worth knowing about how they are read, a sentence each.
    """

    def __init__(
        self,
        label: str,
        kind: str,
        paths: Sequence[Path],
        load: Callable[[Path], Feed],
        *,
        single: bool,
        workers: int = 1,
        remarks: Sequence[str] = (),
    ) -> None:
        self._label = label
        self._kind = kind
        self._paths = tuple(paths)
        self._load = load
        self._single = single
        self._workers = workers
        self._remarks = tuple(remarks)

    def located(self) -> Iterator[Located]:
        """Give the feeds and where they come from."""
        return in_order(lambda path: Located(str(path), 0, self._load(path)), self._paths, self._workers)

    def len_hint(self) -> int | None:
        """How many samples there are, if known."""
        return len(self._paths) if self._single else None

    def part(self, first: int, count: int) -> FolderSource | None:
        """Some of its files, by absolute paths; see `Divisible`."""
        if not self._single:
            return None
        paths = [path.absolute() for path in self._paths[first : first + count]]
        return FolderSource(self._label, self._kind, paths, self._load, single=True)

    def describe(self) -> str:
        """What the data are, in a few words."""
        return f"{len(self._paths)} {self._kind} file{'s' if len(self._paths) > 1 else ''} from {self._label}"

    def remarks(self) -> tuple[str, ...]:
        """What is worth knowing about how they are read."""
        return self._remarks
