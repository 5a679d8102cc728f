"""Where calibration data come from: one protocol, and a reader for each kind of source.

A reader can be iterated any number of times and starts anew each time. What it gives are feeds of
one or more samples; `onnxq.calib.chunks.rechunk` makes fixed batches of them.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from onnxq.calib.arrays import MemoryColumn
from onnxq.calib.chunks import ContentDigest, head, rechunk, samples, take
from onnxq.calib.feeds import Feed, InputInfo, as_array, batching, check_feed
from onnxq.calib.files import Divisible, Located, Source, TableSource
from onnxq.calib.folders import open_source
from onnxq.calib.input_folders import FileKind, Folders
from onnxq.calib.layouts import Layout
from onnxq.calib.listing import parse_folders
from onnxq.calib.live import IterableReader, OrtDataReader, RandomReader, ReaderFromOrt
from onnxq.calib.prefetch import prefetch
from onnxq.errors import DataError

if TYPE_CHECKING:
    from onnxq.recipe import ImagePreprocess

__all__ = [
    "CheckedReader",
    "DataLike",
    "Feed",
    "FileKind",
    "Folders",
    "InputInfo",
    "IterableReader",
    "Layout",
    "OrtDataReader",
    "RandomReader",
    "Reader",
    "ReaderFromOrt",
    "as_reader",
    "folders_reader",
    "open_data",
    "parse_folders",
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


DataLike = (
    str
    | Path
    | Folders
    | Reader
    | OrtDataReader
    | NDArray[Any]
    | Mapping[str, Any]
    | Iterable[object]
    | Callable[[], Any]
)
"""Everything `as_reader` takes."""


class _ReaderSource:
    """A reader as a source: what is known about a feed's place is its number."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.len_hint = reader.len_hint
        self.describe = reader.describe

    def remarks(self) -> tuple[str, ...]:
        """What the reader itself has to say so far."""
        return tuple(getattr(self._reader, "notes", ()))

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
        """How the data are read, and what was converted in the feeds read so far."""
        return tuple(dict.fromkeys([*self._source.remarks(), *self._notes]))

    def part(self, first: int, count: int) -> CheckedReader | None:
        """Some of the samples, to be read where this reader is sent to; None where files are not one sample each.

        Args:
            first: Number of the first one.
            count: How many.
        """
        found = self._source.part(first, count) if isinstance(self._source, Divisible) else None
        return None if found is None else CheckedReader(found, self._inputs)

    def adopt(self, digest: str, notes: Sequence[str]) -> None:
        """Take over what a complete pass elsewhere has found.

        Args:
            digest: That of all samples; see `digest`.
            notes: What was converted.
        """
        self._digest = digest
        self._note(notes)

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
    layout: Layout | None = None,
    samples: int | None = None,
) -> CheckedReader:
    """Open calibration or evaluation data.

    Args:
        path: One of these. (a) An .npz file whose arrays are named after the model's inputs, axis 0 the
            samples, 0-d arrays the same for all samples. (b) A folder of .npz files, each one complete
            feed. (c) For a model with one input, a folder of .npy files, of .bin files (little-endian, of
            the input's type and shape) or of images; or one .npy file, axis 0 the samples. Folders are
            searched with their subfolders, files taken in natural order: ``img2`` before ``img10``.
            (d) For a model with several inputs, ``input:folder,input:folder``, or a folder with a
            sub-folder for each input that is named after it; see `Folders`.
        inputs: The model's inputs.
        preprocess: How images become feeds.
        layout: Layout of the numbers in .bin files of 4 dimensions; None: as the model has it.
        samples: Use only the first so many samples.

    Raises:
        DataError: If there is nothing usable, or it does not fit the model.
    """
    return CheckedReader(open_source(Path(path), inputs, preprocess, layout), inputs, samples=samples, ahead=True)


def folders_reader(
    folders: Mapping[str, str | Path],
    inputs: Sequence[InputInfo],
    *,
    kind: FileKind | Mapping[str, FileKind] = "auto",
    preprocess: ImagePreprocess | Mapping[str, ImagePreprocess] | None = None,
    layouts: Layout | Mapping[str, Layout] | None = None,
    model_layouts: Layout | Mapping[str, Layout] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    samples: int | None = None,
) -> CheckedReader:
    """Open data for several inputs, one folder each; the n-th files of all folders make the n-th feed.

    Args:
        folders: See `Folders`, as all that follows.
        inputs: The model's inputs.
        kind: What the files are, for all inputs or by input.
        preprocess: How images become feeds, for all inputs or by input.
        layouts: Layout of the numbers in .bin files.
        model_layouts: Layout of the model's inputs.
        shapes: Shapes of inputs with free dimensions, for .bin files.
        samples: How many files of each folder are used; fewer are an error.

    Raises:
        DataError: If the folders do not fit the model or each other.
    """
    wanted = Folders(folders, kind, preprocess, layouts, model_layouts, shapes, samples)
    return CheckedReader(wanted.source(inputs), inputs, ahead=True)


def as_reader(
    data: DataLike,
    inputs: Sequence[InputInfo],
    *,
    preprocess: ImagePreprocess | None = None,
    layout: Layout | None = None,
    samples: int | None = None,
) -> CheckedReader:
    """Make a reader of anything that can be one.

    Args:
        data: A path (see `open_data`), a folder by input name, `Folders`, a reader, onnxruntime's
            CalibrationDataReader, arrays by input name or the array of the only input (axis 0 the samples),
            an iterable of feeds, or a function that returns one.
        inputs: The model's inputs.
        preprocess: How images become feeds, where `Folders` do not say it.
        layout: Layout of the numbers in .bin files of 4 dimensions, likewise; None: as the model has it.
        samples: Use only the first so many samples.

    Raises:
        DataError: If it is nothing of these, or does not fit the model.
    """
    if isinstance(data, (str, Path)):
        return open_data(data, inputs, preprocess=preprocess, layout=layout, samples=samples)
    if isinstance(data, Mapping) and data and all(isinstance(value, (str, Path)) for value in data.values()):
        data = Folders(data)
    if isinstance(data, Folders):
        data = replace(data, preprocess=data.preprocess or preprocess, layouts=data.layouts or layout)
        return CheckedReader(data.source(inputs), inputs, samples=samples, ahead=True)
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
