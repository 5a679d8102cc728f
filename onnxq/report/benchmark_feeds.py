"""What models are fed when their time is measured: samples of the user's, or random numbers of the right shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnxq.calib.chunks import first_batches
from onnxq.calib.feeds import Dim, Feed, InputInfo, batching
from onnxq.calib.live import RandomReader
from onnxq.calib.readers import CheckedReader, IterableReader, as_reader
from onnxq.errors import DataError, nearest

FEEDS = 8
"""How many feeds are kept; the rounds take them in turn."""
PIXELS = 224
"""Size of a free dimension of an image."""
STEPS = 128
"""Size of any other free dimension."""
_CHANNELS = (1, 3, 4)

Shapes = Mapping[str, Sequence[int]]
"""Shapes by input name."""


@dataclass(frozen=True, slots=True)
class Fed:
    """The feeds of a benchmark.

    Attributes:
        feeds: One at least; all models take them.
        samples: How many samples each of them holds.
        text: What they are, in a few words.
        notes: What was chosen without being asked, a sentence each.
    """

    feeds: tuple[Feed, ...]
    samples: int
    text: str
    notes: tuple[str, ...] = ()

    def for_model(self, inputs: Sequence[InputInfo], source: str) -> tuple[Feed, ...]:
        """The feeds in a model's own element types; see `converted`."""
        return converted(self.feeds, inputs, source)


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Read ``input:1,3,224,224``; the name may hold colons.

    Raises:
        DataError: If it is nothing of the kind.
    """
    name, colon, dims = text.rpartition(":")
    sizes = [part.strip() for part in dims.replace("x", ",").split(",")] if dims.strip() else []
    if not (colon and name and all(size.isdecimal() and int(size) > 0 for size in sizes)):
        raise DataError(f"--shape {text!r}: must be the input's name and its sizes, such as input:1,3,224,224")
    return name, tuple(int(size) for size in sizes)


def random_feeds(inputs: Sequence[InputInfo], *, shapes: Shapes, batch: int | None, count: int = FEEDS) -> Fed:
    """Random feeds of the right shape; see `RandomReader` for the numbers.

    Free dimensions get the batch along axis 0, `PIXELS` in images and `STEPS` elsewhere.

    Args:
        inputs: The model's inputs.
        shapes: Shapes that are wanted.
        batch: Samples of a feed; None for 1, or for what the model or the shapes say.
        count: How many feeds.

    Raises:
        DataError: If a shape does not fit, or an input has no known rank and no shape is given.
    """
    _check(inputs, shapes)
    known = {info.name: info for info in inputs}
    sizes = _Sizes(batch, shapes, known)
    infos = [InputInfo(info.name, info.dtype, sizes.shape(info)) for info in inputs]
    feeds = tuple(RandomReader(infos, count))
    samples = _samples(infos, batching(inputs).carried, batch)
    text = f"random numbers, {', '.join(f'{i.name} {_dims(i.shape)}' for i in infos)}"
    return Fed(feeds, samples, text, sizes.notes(infos))


def data_feeds(reader: CheckedReader, inputs: Sequence[InputInfo], batch: int | None, count: int = FEEDS) -> Fed:
    """The first samples of the user's data in batches of one size.

    Args:
        reader: The data.
        inputs: The model's inputs.
        batch: Samples of a feed; None for 1, or for what the model fixes.
        count: How many feeds at the most.

    Raises:
        DataError: If the data do not fit, there are too few samples, or the model fixes another batch.
    """
    rule = batching(inputs)
    size = rule.fixed or batch or 1
    if batch is not None and rule.fixed not in (None, batch):
        raise DataError(f"--batch {batch}: the model's batch is fixed at {rule.fixed}; leave it out")
    if batch not in (None, 1) and not rule.carried:
        raise DataError(f"--batch {batch}: the model's inputs have no axis of samples in common; leave it out")
    found = first_batches(reader, size * count, size, inputs)
    whole = [feed for feed in found if all(feed[name].shape[0] == size for name in rule.carried)]
    if not whole:
        raise DataError(f"--batch {size}: {reader.describe()} has fewer samples; give more data or a smaller batch")
    return Fed(tuple(whole), size, f"{len(whole)} feeds of {reader.describe()}", reader.notes)


def converted(feeds: Sequence[Feed], inputs: Sequence[InputInfo], source: str) -> tuple[Feed, ...]:
    """The feeds as another model takes them: the same names, each in the model's own element type.

    Raises:
        DataError: If they do not fit.
    """
    try:
        return tuple(as_reader(IterableReader(list(feeds)), inputs))
    except DataError as err:
        raise DataError(f"{source} does not take what the first model takes: {err}") from err


def common_inputs(models: Sequence[tuple[str, Sequence[InputInfo]]]) -> tuple[InputInfo, ...]:
    """The first model's inputs, with the dimensions that another model fixes.

    Args:
        models: Name and inputs of each.

    Raises:
        DataError: If the models' inputs have other names, ranks or sizes.
    """
    first, inputs = models[0]
    found = {info.name: info for info in inputs}
    for source, others in models[1:]:
        if {info.name for info in others} != set(found):
            names = ", ".join(repr(info.name) for info in others)
            raise DataError(
                f"{source} has the inputs {names}, and {first} has {', '.join(map(repr, found))}; models take turns on "
                "the same data and must have the same inputs"
            )
        for info in others:
            mine = found[info.name]
            found[info.name] = InputInfo(mine.name, mine.dtype, _meet(mine, info, first, source))
    return tuple(found.values())


def _meet(mine: InputInfo, other: InputInfo, first: str, source: str) -> tuple[Dim, ...] | None:
    if mine.shape is None or other.shape is None:
        return mine.shape or other.shape
    pairs = list(zip(mine.shape, other.shape, strict=False))
    clash = any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs)
    if len(mine.shape) != len(other.shape) or clash:
        raise DataError(f"input {mine.name!r} is {mine} in {first} and {other} in {source}; nothing fits both")
    return tuple(b if isinstance(b, int) else a for a, b in pairs)


class _Sizes:
    """Sizes for free dimensions: the same name means the same size."""

    def __init__(self, batch: int | None, shapes: Shapes, inputs: Mapping[str, InputInfo]) -> None:
        self._batch = batch or 1
        self._shapes = shapes
        self._named: dict[str, int] = {}
        self._chosen: dict[str, None] = {}
        for name, sizes in shapes.items():
            for dim, size in zip(inputs[name].shape or (), sizes, strict=False):
                if isinstance(dim, str) and self._named.setdefault(dim, size) != size:
                    raise DataError(f"--shape: dimension {dim!r} is {self._named[dim]} in one input and {size} here")

    def shape(self, info: InputInfo) -> tuple[int, ...]:
        """The shape of an input."""
        if info.name in self._shapes:
            return tuple(self._shapes[info.name])
        if info.shape is None:
            raise DataError(f"input {info.name!r} has no known rank; give --shape {info.name}:SIZE,SIZE,…")
        spatial = _spatial(info.shape)
        return tuple(self._size(info, axis, dim, spatial) for axis, dim in enumerate(info.shape))

    def _size(self, info: InputInfo, axis: int, dim: Dim, spatial: range) -> int:
        if isinstance(dim, int):
            return dim
        default = self._batch if axis == 0 else PIXELS if axis in spatial else STEPS
        if axis and dim not in self._named:
            self._chosen[info.name] = None
        return self._named.setdefault(dim, default) if dim is not None else default

    def notes(self, infos: Sequence[InputInfo]) -> tuple[str, ...]:
        """A sentence for each input with a size that nobody has given."""
        return tuple(
            f"input {i.name!r} has free dimensions; measured with {_dims(i.shape)}, --shape {i.name}:… for another"
            for i in infos
            if i.name in self._chosen
        )


def _spatial(shape: Sequence[Dim]) -> range:
    """Axes of height and width, where it looks like images."""
    if len(shape) != 4:
        return range(0)
    return range(1, 3) if shape[3] in _CHANNELS and shape[1] not in _CHANNELS else range(2, 4)


def _samples(infos: Sequence[InputInfo], carried: frozenset[str], batch: int | None) -> int:
    sizes = {info.shape[0] for info in infos if info.name in carried and info.shape}
    size = sizes.pop() if len(sizes) == 1 else 1
    samples = size if isinstance(size, int) else 1
    if batch is not None and samples != batch:
        raise DataError(f"--batch {batch}: the models' inputs hold {samples} samples; leave it out, or give --shape")
    return samples


def _check(inputs: Sequence[InputInfo], shapes: Shapes) -> None:
    known = {info.name: info for info in inputs}
    for name, sizes in shapes.items():
        if name not in known:
            raise DataError(f"--shape: {name!r} is no input of the model{nearest(name, known)}")
        wanted = known[name].shape
        fits = wanted is None or (
            len(wanted) == len(sizes)
            and all(not isinstance(d, int) or d == s for d, s in zip(wanted, sizes, strict=True))
        )
        if not fits:
            raise DataError(f"--shape {name}:{','.join(map(str, sizes))}: the model wants {known[name]}")


def _dims(shape: Sequence[Dim] | None) -> str:
    return "x".join(map(str, shape or ())) or "a scalar"
