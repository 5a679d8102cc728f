"""Where calibration data come from: one protocol, and a reader for each kind of source.

A reader can be iterated any number of times and starts anew each time. What it gives are feeds of
one or more samples; `onnxq.calib.chunks.rechunk` makes fixed batches of them.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from onnxq.calib.arrays import MemoryColumn
from onnxq.calib.chunks import ContentDigest, head, rechunk, samples, take
from onnxq.calib.feeds import Feed, InputInfo, as_array, batching, check_feed
from onnxq.calib.files import Located, Source, TableSource
from onnxq.calib.folders import open_source
from onnxq.calib.images import prefetch
from onnxq.calib.live import IterableReader, OrtDataReader, RandomReader, ReaderFromOrt
from onnxq.errors import DataError

if TYPE_CHECKING:
    from onnxq.recipe import ImagePreprocess

__all__ = [
    "CheckedReader",
    "DataLike",
    "Feed",
    "InputInfo",
    "IterableReader",
    "OrtDataReader",
    "RandomReader",
    "Reader",
    "ReaderFromOrt",
    "as_reader",
    "open_data",
    "rechunk",
    "samples",
    "take",
]

logger = logging.getLogger("onnxq")

PREFETCHED = 4
"""How many feeds are read from files ahead of their use."""


@runtime_checkable
class Reader(Protocol):
    """Calibration data; iterating starts anew each time."""

    def __iter__(self) -> Iterator[Feed]:
        """Give one feed after the other."""
        ...

    def len_hint(self) -> int | None:
        """How many samples there are, where that is known without reading them."""
        ...

    def digest(self) -> str:
        """sha256 of the content; the same however the samples are batched."""
        ...

    def describe(self) -> str:
        """What the data are, in a few words."""
        ...


DataLike = str | Path | Reader | OrtDataReader | NDArray[Any] | Mapping[str, Any] | Iterable[object] | Callable[[], Any]
"""Everything `as_reader` takes."""


class _ReaderSource:
    """A reader as a source: what is known about a feed's place is its number."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.len_hint = reader.len_hint
        self.describe = reader.describe

    def located(self) -> Iterator[Located]:
        """Give the feeds and their numbers."""
        for index, feed in enumerate(self._reader):
            where = f"feed {index} of the data"
            yield Located(where, 0, {name: as_array(value, f"{where}: input {name!r}") for name, value in feed.items()})


class CheckedReader:
    """A source whose feeds are checked against the model's inputs as they are read.

    Args:
        source: Where the feeds come from.
        inputs: The model's inputs.
        samples: Give only the first so many samples.
        ahead: Read ahead in a thread.
    """

    def __init__(
        self, source: Source, inputs: Sequence[InputInfo], *, samples: int | None = None, ahead: bool = False
    ) -> None:
        self._source = source
        self._inputs = tuple(inputs)
        self._samples = samples
        self._ahead = ahead
        self._digest = ""
        self._notes: dict[str, None] = {}

    def __iter__(self) -> Iterator[Feed]:
        """Give the feeds, in the model's element types.

        Raises:
            DataError: If a feed does not fit the model, or there is none.
        """
        return prefetch(self._pass(), PREFETCHED) if self._ahead else self._pass()

    def _pass(self) -> Iterator[Feed]:
        carried = batching(self._inputs).carried
        content = None if self._digest else ContentDigest(self._inputs)
        left = sys.maxsize if self._samples is None else self._samples
        found = False
        for where, first, raw in self._source.located():
            part, used = head(raw, left, carried)
            feed, notes = check_feed(part, self._inputs, where=where, first=first)
            self._note(notes)
            if content is not None:
                content.add(feed)
            found = True
            left -= used
            if left == 0 and content is not None:
                self._digest = content.hexdigest()
            yield feed
            if left <= 0:
                return
        if not found:
            raise DataError(f"{self._source.describe()}: there is not a single sample")
        if content is not None:
            self._digest = content.hexdigest()

    def _note(self, notes: Sequence[str]) -> None:
        for note in notes:
            if note not in self._notes:
                self._notes[note] = None
                logger.info("%s: %s", self._source.describe(), note)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was converted in the feeds read so far."""
        return tuple(self._notes)

    def len_hint(self) -> int | None:
        """How many samples there are, where that is known without reading them."""
        known = self._source.len_hint()
        return known if self._samples is None or known is None else min(known, self._samples)

    def digest(self) -> str:
        """sha256 of the samples as the model is fed them; the same however they are batched.

        A complete pass finds it on the way; before one, all data are read for it.
        """
        if not self._digest:
            for _ in self:
                pass
        return self._digest

    def describe(self) -> str:
        """What the data are, in a few words."""
        text = self._source.describe()
        known = self._source.len_hint()
        limited = self._samples is not None and (known is None or known > self._samples)
        return f"the first {self._samples} samples of {text}" if limited else text


def open_data(
    path: str | Path,
    inputs: Sequence[InputInfo],
    *,
    preprocess: ImagePreprocess | None = None,
    samples: int | None = None,
) -> CheckedReader:
    """Open calibration or evaluation data.

    Args:
        path: One of these. (a) An .npz file whose arrays are named after the model's inputs, axis 0 the
            samples, 0-d arrays the same for all samples. (b) A folder of .npz files, each one complete
            feed. (c) For a model with one input, a folder of .npy files, of .bin files (little-endian, of
            the input's type and shape) or of images; or one .npy file, axis 0 the samples. Folders are
            searched with their subfolders, files taken in natural order: ``img2`` before ``img10``.
        inputs: The model's inputs.
        preprocess: How images become feeds. All other files are taken as they are.
        samples: Use only the first so many samples.

    Raises:
        DataError: If there is nothing usable, or it does not fit the model.
    """
    return CheckedReader(open_source(Path(path), inputs, preprocess), inputs, samples=samples, ahead=True)


def as_reader(
    data: DataLike,
    inputs: Sequence[InputInfo],
    *,
    preprocess: ImagePreprocess | None = None,
    samples: int | None = None,
) -> CheckedReader:
    """Make a reader of anything that can be one.

    Args:
        data: A path (see `open_data`), a reader, onnxruntime's CalibrationDataReader, arrays by input name
            or the array of the only input (axis 0 the samples), an iterable of feeds, or a function that
            returns one.
        inputs: The model's inputs.
        preprocess: How images become feeds.
        samples: Use only the first so many samples.

    Raises:
        DataError: If it is nothing of these, or does not fit the model.
    """
    if isinstance(data, (str, Path)):
        return open_data(data, inputs, preprocess=preprocess, samples=samples)
    if isinstance(data, CheckedReader) and samples is None:
        return data
    return CheckedReader(_source_of(data, inputs), inputs, samples=samples)


def _source_of(data: object, inputs: Sequence[InputInfo]) -> Source:
    if isinstance(data, Reader):
        return _ReaderSource(data)
    if isinstance(data, OrtDataReader):
        return _ReaderSource(ReaderFromOrt(data, inputs))
    if isinstance(data, np.ndarray):
        if len(inputs) != 1:
            raise DataError(f"one array is given, but the model has {len(inputs)} inputs; give arrays by input name")
        data = {inputs[0].name: data}
    if isinstance(data, Mapping):
        columns = {str(name): MemoryColumn(as_array(value, f"array {name!r}")) for name, value in data.items()}
        return TableSource("the arrays", columns, inputs)
    return _ReaderSource(IterableReader(cast(Iterable[object], data), inputs))
