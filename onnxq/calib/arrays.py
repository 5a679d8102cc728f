"""Arrays that are read a few rows at a time, from memory, .npy files and .npz archives.

Reading a compressed archive piece by piece is as good as an uncompressed one, so memory does not
grow with the number of samples. An array in Fortran order is the exception: it is read whole.
Nothing is ever unpickled.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from onnxq.calib.feeds import Array, InputInfo
from onnxq.errors import DataError


class Column(Protocol):
    """An array that can be read piece by piece."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its element type."""
        ...

    def blocks(self, rows: int) -> Generator[Array, None, None]:
        """Give it in pieces of `rows` along axis 0; a 0-d array as one piece."""
        ...


@dataclass(frozen=True, slots=True)
class MemoryColumn:
    """An array in memory."""

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its element type."""
        return self.array.dtype

    def blocks(self, rows: int) -> Generator[Array, None, None]:
        """Give it in pieces of `rows` along axis 0; a 0-d array as one piece."""
        if self.array.ndim == 0:
            yield self.array
            return
        for start in range(0, len(self.array), rows):
            yield self.array[start : start + rows]


@dataclass(frozen=True, slots=True)
class FileColumn:
    """An array in an .npy file or in a member of an .npz archive.

    Attributes:
        path: The file.
        member: Name of the archive's member; empty for an .npy file.
        shape: Shape of the array.
        dtype: Element type.
        fortran: Whether the last axis comes first in the file.
    """

    path: Path
    member: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool

    @staticmethod
    def probe(path: Path, member: str = "") -> FileColumn:
        """Read the header.

        Raises:
            DataError: If it cannot be read, or holds Python objects.
        """
        with _opened(path, member) as file:
            return FileColumn(path, member, *_header(file, path, member))

    def blocks(self, rows: int) -> Generator[Array, None, None]:
        """Give it in pieces of `rows` along axis 0; a 0-d array as one piece.

        Raises:
            DataError: If the file is damaged.
        """
        with _opened(self.path, self.member) as file:
            _header(file, self.path, self.member)
            if not self.shape:
                yield self._read(file, ())
            elif self.fortran:
                whole = self._read(file, self.shape[::-1]).transpose()
                yield from MemoryColumn(whole).blocks(rows)
            else:
                for start in range(0, self.shape[0], rows):
                    yield self._read(file, (min(rows, self.shape[0] - start), *self.shape[1:]))

    def _read(self, file: IO[bytes], shape: tuple[int, ...]) -> Array:
        size = self.dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        data = file.read(size)
        if len(data) != size:
            raise DataError(f"{self.path}: array {self.member or self.path.stem!r} ends too early; the file is damaged")
        return np.frombuffer(data, self.dtype).reshape(shape)


@contextmanager
def _opened(path: Path, member: str) -> Iterator[IO[bytes]]:
    try:
        with ExitStack() as stack:
            if member:
                yield stack.enter_context(stack.enter_context(zipfile.ZipFile(path)).open(member))
            else:
                yield stack.enter_context(path.open("rb"))
    except OSError as err:
        raise DataError(f"{path}: cannot be read: {err.strerror or err}") from err
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        RuntimeError,
    ) as err:  # RuntimeError: encrypted, or unknown compression
        raise DataError(f"{path}: is damaged or not a NumPy archive: {err}") from err


def _header(file: IO[bytes], path: Path, member: str) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    label = f"{path}: array {member.removesuffix('.npy')!r}" if member else str(path)
    try:
        version = np.lib.format.read_magic(file)  # type: ignore[no-untyped-call,unused-ignore]
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise DataError(f"{label}: has a field type that cannot be fed to a model")
        shape, fortran, dtype = readers[version](file)  # type: ignore[no-untyped-call,unused-ignore]
    except ValueError as err:
        raise DataError(f"{label}: is not a NumPy array file: {err}") from err
    if dtype.hasobject or dtype.names:
        raise DataError(f"{label}: holds Python objects; save plain numbers")
    return tuple(shape), dtype, bool(fortran)


def archive_columns(path: Path) -> dict[str, Column]:
    """The arrays of an .npz archive by name, not read yet.

    Raises:
        DataError: If the file is not such an archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if name.endswith(".npy")]
    except OSError as err:
        raise DataError(f"{path}: cannot be read: {err.strerror or err}") from err
    except zipfile.BadZipFile as err:
        raise DataError(f"{path}: is damaged or not a NumPy archive: {err}") from err
    return {member.removesuffix(".npy"): FileColumn.probe(path, member) for member in members}


def whole(column: Column) -> Array:
    """Read all of a column."""
    rows = max([1, *column.shape[:1]])
    return next(column.blocks(rows), np.empty(column.shape, column.dtype))


def load_array(path: Path, info: InputInfo) -> Array:
    """Read an .npy file that holds one feed of an input; a missing batch axis is put in front.

    Raises:
        DataError: If it cannot be read, or holds Python objects.
    """
    array = whole(FileColumn.probe(path))
    one_less = info.shape is not None and array.ndim == len(info.shape) - 1
    return array[np.newaxis] if one_less else array
