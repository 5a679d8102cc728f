"""Data that come from Python: iterables, onnxruntime's readers, random numbers."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from onnxq.calib.chunks import ContentDigest
from onnxq.calib.feeds import Array, Dim, Feed, InputInfo, as_array
from onnxq.errors import DataError, nearest

RECORD_BYTES = 512 << 20
"""How much of an iterator that can be used only once is recorded."""

Maker = Callable[[], Iterable[object]]


class _Tape:
    """An iterator that can be used once, made repeatable by recording what it gives, up to a limit."""

    def __init__(self, source: Iterator[Feed], limit: int) -> None:
        self._source = source
        self._limit = limit
        self._left = limit
        self._feeds: list[Feed] = []

    def __iter__(self) -> Iterator[Feed]:
        if self._left < 0:
            raise DataError(
                f"the data are an iterator that can be used only once, hold more than {self._limit >> 20} MB and are "
                "needed again; pass a list, a reader, or a function that returns a new iterator"
            )
        yield from self._feeds
        for feed in self._source:
            self._left -= sum(array.nbytes for array in feed.values())
            if self._left >= 0:
                self._feeds.append(feed)
            else:
                self._feeds.clear()
            yield feed


class IterableReader:
    """Feeds from a list, a data loader, a generator, or a function that returns one of these.

    A function is called anew for each pass. An iterator that can be used only once is recorded on its
    first pass. Arrays are copied, so a source may reuse its buffers, unless all feeds lie in a list or a tuple.

    Args:
        source: Gives mappings of arrays by input name. Where `inputs` is given, it may also give tuples
            or lists of arrays in the order of the inputs, or the array of the only input.
        inputs: The model's inputs.
        limit: How many bytes of a one-shot iterator are recorded.
    """

    def __init__(
        self,
        source: Iterable[object] | Maker,
        inputs: Sequence[InputInfo] | None = None,
        *,
        limit: int = RECORD_BYTES,
    ) -> None:
        if not callable(source) and not isinstance(source, Iterable):
            raise DataError(
                f"{type(source).__name__} is no source of feeds; pass an iterable or a function that returns one"
            )
        self._source = source
        self._copy = not isinstance(source, (list, tuple))
        self._names = None if inputs is None else tuple(info.name for info in inputs)
        self._inputs = inputs
        self._tape = _Tape(map(self._feed, source), limit) if isinstance(source, Iterator) else None

    def __iter__(self) -> Iterator[Feed]:
        """Give the feeds.

        Raises:
            DataError: If an item is no feed, or a large one-shot iterator is needed again.
        """
        if self._tape is not None:
            return iter(self._tape)
        source = self._source
        return map(self._feed, source() if callable(source) else source)

    def _feed(self, item: object) -> Feed:
        if isinstance(item, Mapping):
            return {str(name): as_array(value, f"input {name!r}", copy=self._copy) for name, value in item.items()}
        names = self._names or ()
        values = list(item) if isinstance(item, (tuple, list)) and len(names) > 1 else [item]
        if not names or len(values) != len(names):
            wanted = f"a mapping or {len(names)} arrays for {', '.join(names)}" if names else "a mapping"
            raise DataError(f"found {type(item).__name__} of {len(values)} as a feed; must be {wanted}")
        return {name: as_array(v, f"input {name!r}", copy=self._copy) for name, v in zip(names, values, strict=True)}

    def len_hint(self) -> int | None:
        """Not known."""
        return None

    def digest(self) -> str:
        """sha256 of the content; the same however the samples are batched. Reads all of it."""
        return content_digest(self, self._inputs)

    def describe(self) -> str:
        """What the data are, in a few words."""
        return f"feeds from {getattr(self._source, '__name__', type(self._source).__name__)}"


@runtime_checkable
class OrtDataReader(Protocol):
    """What onnxruntime.quantization calls a CalibrationDataReader."""

    def get_next(self) -> Mapping[str, object] | None:
        """The next feed, or None at the end."""
        ...


class ReaderFromOrt(IterableReader):
    """Feeds from onnxruntime's CalibrationDataReader.

    If it has a method ``rewind``, that is called before every pass but the first; otherwise its feeds are
    recorded on the first pass.

    Args:
        source: Has ``get_next``, which returns a feed or None at the end.
        inputs: The model's inputs.
        limit: How many bytes are recorded where there is no ``rewind``.
    """

    def __init__(
        self, source: OrtDataReader, inputs: Sequence[InputInfo] | None = None, *, limit: int = RECORD_BYTES
    ) -> None:
        self._reader = source
        self._started = False
        rewind = getattr(source, "rewind", None)
        self._rewind: Callable[[], object] | None = rewind if callable(rewind) else None
        super().__init__(self._pass if self._rewind else self._pass(), inputs, limit=limit)

    def _pass(self) -> Iterator[Mapping[str, object]]:
        if self._started and self._rewind is not None:
            self._rewind()
        self._started = True
        while (feed := self._reader.get_next()) is not None:
            yield feed

    def describe(self) -> str:
        """What the data are, in a few words."""
        return f"feeds from {type(self._reader).__name__}"


class RandomReader:
    """Random samples, each a function of the seed and its own number only. For trying things out.

    Floats are standard normal, whole numbers 0 or 1.

    Args:
        inputs: The model's inputs.
        count: How many feeds.
        seed: Seed.
        sizes: Sizes of free dimensions, by their name or, for any, as ``input[axis]``; a free axis 0 is 1
            unless given.

    Raises:
        DataError: If a free dimension has no size.
    """

    def __init__(
        self, inputs: Sequence[InputInfo], count: int, seed: int = 0, *, sizes: Mapping[str, int] | None = None
    ) -> None:
        self._inputs = tuple(inputs)
        self._count = count
        self._seed = seed
        self._shapes = resolve_shapes(inputs, sizes or {})

    def __iter__(self) -> Iterator[Feed]:
        """Give one sample after the other."""
        for index in range(self._count):
            yield {info.name: self._draw(info, index) for info in self._inputs}

    def _draw(self, info: InputInfo, index: int) -> Array:
        rng = np.random.default_rng([self._seed, index, zlib.crc32(info.name.encode())])
        shape = self._shapes[info.name]
        if info.dtype.kind == "f":
            return rng.standard_normal(shape, np.float32).astype(info.dtype)
        if info.dtype.kind in "iub":
            return rng.integers(0, 2, shape).astype(info.dtype)
        if info.dtype.kind == "O":
            return np.full(shape, "a", dtype=object)
        return rng.standard_normal(shape, np.float32).astype(info.dtype)

    def len_hint(self) -> int | None:
        """How many samples there are."""
        return self._count

    def digest(self) -> str:
        """sha256 of the content."""
        return content_digest(self, self._inputs)

    def describe(self) -> str:
        """What the data are, in a few words."""
        return f"{self._count} random samples (seed {self._seed})"


class UniformReader(RandomReader):
    """Random samples whose floats lie evenly between 0.1 and 1, as MindSpore Lite's converter draws them."""

    def _draw(self, info: InputInfo, index: int) -> Array:
        if info.dtype.kind != "f":
            return super()._draw(info, index)
        rng = np.random.default_rng([self._seed, index, zlib.crc32(info.name.encode())])
        return rng.uniform(0.1, 1.0, self._shapes[info.name]).astype(info.dtype)


def resolve_shapes(inputs: Sequence[InputInfo], sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The shape of every input with its free dimensions set.

    Args:
        inputs: The model's inputs.
        sizes: As for `RandomReader`.

    Raises:
        DataError: If a free dimension has no size, or a size is for no dimension.
    """
    leading: dict[Dim, int] = {i.shape[0]: 1 for i in inputs if i.shape and isinstance(i.shape[0], str)}
    keys: set[str] = set()
    missing: list[str] = []
    shapes: dict[str, tuple[int, ...]] = {}
    for info in inputs:
        if info.shape is None:
            raise DataError(f"input {info.name!r} has no known rank; random data cannot be made for it")
        dims = []
        for axis, dim in enumerate(info.shape):
            key = f"{info.name}[{axis}]"
            keys |= {key, str(dim)}
            size = dim if isinstance(dim, int) else sizes.get(key, sizes.get(str(dim), leading.get(dim)))
            if size is None and axis == 0:
                size = 1
            if size is None:
                missing.append(f"{key} ({dim or 'unnamed'})")
            dims.append(size or 0)
        shapes[info.name] = tuple(dims)
    unknown = [f"{key!r} is no dimension{nearest(key, keys)}" for key in sizes if key not in keys]
    if missing or unknown:
        needed = f"random data need a size for {', '.join(missing)}; give sizes by name" if missing else ""
        raise DataError("; ".join(filter(None, [needed, *unknown])))
    return shapes


def content_digest(feeds: Iterable[Feed], inputs: Sequence[InputInfo] | None) -> str:
    """sha256 of all samples, the same however they are batched."""
    digest = ContentDigest(inputs)
    for feed in feeds:
        digest.add(feed)
    return digest.hexdigest()
