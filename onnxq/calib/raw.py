"""Files that hold nothing but the numbers of one input: the layout, the shape and the type come from the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxq.calib.feeds import Array, Dim, InputInfo
from onnxq.calib.layouts import InputLayout, Layout, permuted, transposed
from onnxq.errors import DataError


@dataclass(frozen=True, slots=True)
class RawFormat:
    """What the files of one input hold.

    Attributes:
        info: The input.
        shape: Its dimensions in the model's order, where more is known than the model says.
        layout: Layout of the numbers in the files; None where it is the model's.
        model: Layout of the model's input; only looked at when `layout` is given.
        exact: Whether each file holds exactly what the model takes at a time; else it may hold several
            batches of that.
    """

    info: InputInfo
    shape: tuple[Dim, ...] | None = None
    layout: Layout | None = None
    model: InputLayout | None = None
    exact: bool = False

    @property
    def dims(self) -> tuple[Dim, ...] | None:
        """The dimensions in the model's order, as far as they are known."""
        return self.info.shape if self.shape is None else self.shape

    def load(self, path: Path) -> Array:
        """Read a file: little-endian numbers of the input's type, in the layout of the files.

        One dimension that is free is as long as the file says; if several are, axis 0 is 1.

        Returns:
            In the model's layout.

        Raises:
            DataError: If the file cannot be read, its size does not fit, or too many dimensions are free.
        """
        if self.info.dtype.hasobject or self.dims is None:
            raise DataError(
                f"{path}: a .bin file needs an input of known type and rank, the model has {self.info}; use .npy"
            )
        try:
            data = path.read_bytes()
        except OSError as err:
            raise DataError(f"{path}: cannot be read: {err.strerror or err}") from err
        shape = self._shape(path, len(data), self.dims)
        array = np.frombuffer(data, self.info.dtype.newbyteorder("<"))
        if self.layout is None or self.model is None:
            return array.reshape(shape)
        stored = array.reshape(permuted(shape, self.model.layout, self.layout))
        return np.ascontiguousarray(transposed(stored, self.layout, self.model.layout))

    def _shape(self, path: Path, size: int, dims: Sequence[Dim]) -> tuple[int, ...]:
        """The shape of a file of `size` bytes, in the model's order."""
        free = [axis for axis, dim in enumerate(dims) if not isinstance(dim, int)]
        known = list(dims)
        if len(free) > 1 and free[0] == 0:
            known[0] = 1
            free = free[1:]
        if len(free) > 1:
            raise DataError(
                f"{path}: holds {size} bytes, but dimensions {free} of input {self.info.name!r} "
                f"({self.info}) are all free; use .npy files, which know their shape, or say the input's shape"
            )
        lengths = [dim if isinstance(dim, int) else 1 for dim in known]
        unit = self.info.dtype.itemsize * math.prod(lengths)
        count = size // unit if unit else 0
        spare = free or ([] if self.exact else [0])
        if count == 0 or count * unit != size or (count > 1 and not (spare and lengths)):
            raise DataError(self._misfit(path, size, known, unit))
        if count > 1:
            lengths[spare[0]] *= count
        return tuple(lengths)

    def _misfit(self, path: Path, size: int, dims: Sequence[Dim], unit: int) -> str:
        item = self.info.dtype.itemsize
        numbers = f"{size / item:.10g} {self.info.dtype.name} numbers"
        shape = "x".join("?" if not isinstance(dim, int) else str(dim) for dim in dims) or "scalar"
        one = "a multiple of " if any(not isinstance(dim, int) for dim in dims) or not self.exact else ""
        return (
            f"{path}: holds {size} bytes ({numbers}); input {self.info.name!r} ({self.info}) "
            f"takes {one}{unit} bytes, shape {shape}"
        )
