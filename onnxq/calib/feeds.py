"""What a model is fed, and the check that a feed fits the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from onnxq.errors import DataError, nearest

Array = NDArray[Any]
Feed = dict[str, Array]
"""Arrays by input name; one sample or several along axis 0."""

Dim = int | str | None
"""A dimension: fixed, free with a name, or free."""


@dataclass(frozen=True, slots=True)
class InputInfo:
    """What a model says about one of its inputs.

    Attributes:
        name: Its name.
        dtype: Its element type.
        shape: Its dimensions; None where not even the rank is known.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[Dim, ...] | None

    def __init__(self, name: str, dtype: DTypeLike, shape: Sequence[Dim] | None) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "dtype", np.dtype(dtype))
        object.__setattr__(self, "shape", None if shape is None else tuple(shape))

    def __str__(self) -> str:
        dims = "unknown rank" if self.shape is None else ", ".join("?" if d is None else str(d) for d in self.shape)
        return f"{self.dtype.name}[{dims}]"


@dataclass(frozen=True, slots=True)
class Batching:
    """Which inputs hold the samples along axis 0.

    Attributes:
        carried: Names of the inputs whose axis 0 is the batch; empty where a feed is one whole sample.
        fixed: The batch the model insists on; None where it is free.
    """

    carried: frozenset[str] = frozenset()
    fixed: int | None = None


def batching(inputs: Sequence[InputInfo]) -> Batching:
    """Find the batch axis of a model.

    It is axis 0 of every input where that is free, or where it has one fixed size in all inputs.
    An input of wholly fixed shape beside free ones is the same for all samples. If another free
    dimension ties inputs together in any other way, a feed cannot be split: nothing is carried.
    """
    ranked = [i for i in inputs if i.shape is None or len(i.shape) > 0]
    free = [i for i in ranked if i.shape is None or not isinstance(i.shape[0], int)]
    fixed = [(i, i.shape) for i in ranked if i.shape is not None and isinstance(i.shape[0], int)]
    if not free:
        sizes = {shape[0] for _, shape in fixed}
        size = sizes.pop() if len(sizes) == 1 else None
        return Batching(frozenset(i.name for i, _ in fixed), size) if isinstance(size, int) else Batching()
    if any(not isinstance(dim, int) for _, shape in fixed for dim in shape):
        return Batching()
    leading = {i.shape[0] for i in free if i.shape is not None} - {None}
    inner = {dim for i in ranked for dim in (i.shape or ())[1:] if isinstance(dim, str)}
    return Batching() if leading & inner else Batching(frozenset(i.name for i in free))


def sample_count(feed: Mapping[str, Array], carried: frozenset[str]) -> int | None:
    """How many samples a feed holds; None where it cannot be split and so counts as one."""
    lengths = {feed[name].shape[0] for name in carried if name in feed and feed[name].ndim}
    return lengths.pop() if len(lengths) == 1 else None


def check_feed(
    feed: Mapping[str, object], inputs: Sequence[InputInfo], *, where: str, first: int = 0
) -> tuple[Feed, tuple[str, ...]]:
    """Return a feed with the model's own element types, and notes on what was converted.

    Converted are whole numbers to any type that holds each of them exactly, and floats to floats of
    another width; nothing else.

    Args:
        feed: Anything `numpy.asarray` understands, by input name.
        inputs: The model's inputs.
        where: Where the feed comes from, for messages.
        first: Number of the feed's first sample there, for messages.

    Raises:
        DataError: If names, types or shapes do not fit, or a value is NaN.
    """
    known = {info.name: info for info in inputs}
    _check_names(feed, known, where)
    carried = batching(inputs).carried
    checked: Feed = {}
    notes: list[str] = []
    for info in inputs:
        at = f"{where}: input {info.name!r}"
        array = as_array(feed[info.name], at)
        _check_shape(array, info, at, carried=info.name in carried)
        checked[info.name] = convert(array, info, at, notes)
        _check_nan(checked[info.name], info, where, first)
    _check_lengths(checked, inputs, where)
    return checked, tuple(notes)


def as_array(value: object, at: str, *, copy: bool = False) -> Array:
    """Return what `numpy` makes of a value: a list, a tensor of a framework, an array.

    Args:
        value: Anything.
        at: Where it is, for messages.
        copy: Copy an array too.

    Raises:
        DataError: If it cannot be read as an array.
    """
    try:
        return np.array(value) if copy else np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as err:  # RuntimeError: a torch tensor that needs a gradient
        raise DataError(f"{at}: cannot be read as an array: {err}") from err


def _check_names(feed: Mapping[str, object], known: Mapping[str, InputInfo], where: str) -> None:
    problems = [f"{name!r} is not an input of the model{nearest(name, known)}" for name in feed if name not in known]
    missing = [name for name in known if name not in feed]
    if missing:
        problems.append(f"input{'s' if len(missing) > 1 else ''} {', '.join(map(repr, missing))} missing")
    if problems:
        needed = ", ".join(f"{info.name!r} {info}" for info in known.values())
        raise DataError(f"{where}: {'; '.join(problems)}. The model's inputs are {needed}")


def _check_shape(array: Array, info: InputInfo, at: str, *, carried: bool) -> None:
    if array.dtype != object and array.size == 0:
        raise DataError(f"{at}: shape {array.shape} holds nothing")
    if info.shape is None:
        return
    if array.ndim != len(info.shape):
        hint = " (is the axis of the samples missing?)" if array.ndim == len(info.shape) - 1 else ""
        raise DataError(f"{at}: shape {array.shape} has rank {array.ndim}; the model wants {info}{hint}")
    for axis, (size, dim) in enumerate(zip(array.shape, info.shape, strict=True)):
        if isinstance(dim, int) and size != dim and not (axis == 0 and carried):
            raise DataError(f"{at}: shape {array.shape} has {size} at axis {axis}; the model wants {info}")


def convert(array: Array, info: InputInfo, at: str, notes: list[str]) -> Array:
    """Return `array` in the element type of `info`, little-endian and contiguous.

    Args:
        array: Any array.
        info: The input it is for.
        at: Where it is, for messages.
        notes: Takes a sentence when the type was converted.

    Raises:
        DataError: If the conversion would change a value.
    """
    wanted = info.dtype
    if array.dtype == wanted:
        return np.ascontiguousarray(array).reshape(array.shape)
    found = array.dtype
    if wanted.kind == "f" and found.kind == "f":
        with np.errstate(over="ignore"):
            result = array.astype(wanted)
        if found.itemsize > wanted.itemsize and (np.isinf(result) & ~np.isinf(array)).any():
            raise DataError(f"{at}: a {found.name} value is too large for {wanted.name}")
    elif found.kind in "iub" and wanted.kind in "iubf":
        with np.errstate(over="ignore", invalid="ignore"):
            result = array.astype(wanted)
        if not _same_values(array, result):
            raise DataError(f"{at}: not every {found.name} value fits into {wanted.name}, which the model wants")
    elif found.kind in "US" and wanted.kind == "O":
        return array.astype(object)
    else:
        raise DataError(f"{at}: has type {found.name}; the model wants {wanted.name}. Convert the data")
    if found.newbyteorder("=") != wanted:
        notes.append(f"input {info.name!r}: converted from {found.name} to {wanted.name}")
    return result


def _same_values(whole: Array, result: Array) -> bool:
    if result.dtype.kind == "b":
        return bool(((whole == 0) | (whole == 1)).all())
    back = result.astype(np.float64) if result.dtype.kind == "f" else result
    if result.dtype.kind == "f" and whole.dtype.itemsize == 8:
        # float64 does not tell neighbouring 64-bit integers apart either: compare as integers.
        limit = 2 ** (np.finfo(result.dtype).nmant + 1)
        return bool((np.abs(whole.astype(np.float64)) <= limit).all())
    return bool((back == whole).all())


def _check_nan(array: Array, info: InputInfo, where: str, first: int) -> None:
    if array.dtype.kind != "f" or not np.isnan(array.min()):
        return
    position = tuple(int(i) for i in np.argwhere(np.isnan(array))[0])
    sample = first + (position[0] if position else 0)
    raise DataError(
        f"{where}: sample {sample}, input {info.name!r}: NaN at {list(position)}. Remove or mend the sample"
    )


def _check_lengths(feed: Feed, inputs: Sequence[InputInfo], where: str) -> None:
    """Refuse inputs whose axis 0 has one name but not one size."""
    by_symbol: dict[str, tuple[str, int]] = {}
    for info in inputs:
        symbol = info.shape[0] if info.shape else None
        if not isinstance(symbol, str):
            continue
        size = feed[info.name].shape[0]
        other, expected = by_symbol.setdefault(symbol, (info.name, size))
        if size != expected:
            raise DataError(
                f"{where}: inputs {other!r} and {info.name!r} have {expected} and {size} samples along axis 0 "
                f"({symbol!r}); they must have equally many"
            )
