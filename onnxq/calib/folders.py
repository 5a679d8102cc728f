"""Which kind of data a path holds, and how its files are read."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnxq.calib import images
from onnxq.calib.arrays import FileColumn, archive_columns, whole
from onnxq.calib.feeds import Array, Feed, InputInfo
from onnxq.calib.files import FolderSource, Source, TableSource
from onnxq.errors import DataError

if TYPE_CHECKING:
    from onnxq.recipe import ImagePreprocess

KINDS = "an .npz archive, or a folder of .npz, .npy, .bin or image files"


def open_source(path: Path, inputs: Sequence[InputInfo], preprocess: ImagePreprocess | None) -> Source:
    """Find out what `path` holds.

    Args:
        path: An .npz or .npy file with one array per input, axis 0 the samples; or a folder (with its
            subfolders) of .npz files, each one complete feed, or of .npy, .bin or image files for a
            model with one input. Files are taken in natural order: ``img2`` before ``img10``.
        inputs: The model's inputs.
        preprocess: How image files become feeds; other files are taken as they are.

    Raises:
        DataError: If there is nothing usable.
    """
    if path.is_dir():
        return _folder(path, inputs, preprocess)
    if not path.exists():
        raise DataError(f"{path}: does not exist; the data are {KINDS}")
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return TableSource(str(path), archive_columns(path), inputs)
    if suffix == ".npy":
        return TableSource(str(path), {_only(inputs, path).name: FileColumn.probe(path)}, inputs)
    kind = kind_of(path)
    if kind:
        return _files(kind, [path], path, inputs, preprocess)
    raise DataError(f"{path}: is no data file; the data are {KINDS}")


def kind_of(path: Path) -> str:
    """``npz``, ``npy``, ``bin``, ``image``, or nothing for a file that holds no data."""
    suffix = path.suffix.lower()
    if path.name.startswith("."):
        return ""
    if suffix in images.SUFFIXES:
        return "image"
    return suffix[1:] if suffix in (".npz", ".npy", ".bin") else ""


def natural_key(path: Path) -> tuple[list[tuple[int, int, str]], str]:
    """Sorts digits by their value: ``img2.png`` before ``img10.png``; equal ones by their text."""
    parts = re.split(r"(\d+)", path.as_posix())
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts if p], path.as_posix()


def _folder(path: Path, inputs: Sequence[InputInfo], preprocess: ImagePreprocess | None) -> Source:
    found: dict[str, list[Path]] = {}
    for file in path.rglob("*"):
        kind = kind_of(file)
        if kind and file.is_file():
            found.setdefault(kind, []).append(file)
    if not found:
        raise DataError(f"{path}: holds no data files; the data are {KINDS}")
    if len(found) > 1:
        counts = ", ".join(f"{len(files)} {kind}" for kind, files in sorted(found.items()))
        raise DataError(f"{path}: holds several kinds of data files ({counts}); keep one kind in the folder")
    ((kind, files),) = found.items()
    files.sort(key=lambda file: natural_key(file.relative_to(path)))
    return _files(kind, files, path, inputs, preprocess)


def _files(
    kind: str, files: Sequence[Path], path: Path, inputs: Sequence[InputInfo], preprocess: ImagePreprocess | None
) -> Source:
    load = _loader(kind, path, inputs, preprocess)
    return FolderSource(str(path), kind, files, load, single=kind == "image")


def _loader(
    kind: str, path: Path, inputs: Sequence[InputInfo], preprocess: ImagePreprocess | None
) -> Callable[[Path], Feed]:
    if kind == "npz":
        return load_archive
    info = _only(inputs, path)
    if kind == "npy":
        return lambda file: {info.name: _with_batch_axis(whole(FileColumn.probe(file)), info)}
    if kind == "bin":
        return lambda file: {info.name: load_raw(file, info)}
    config = _image_config(path, info, preprocess)
    return lambda file: {info.name: _as_pixels(images.preprocess_file(file, config), file, info)}


def _only(inputs: Sequence[InputInfo], path: Path) -> InputInfo:
    if len(inputs) != 1:
        names = ", ".join(repr(info.name) for info in inputs)
        raise DataError(
            f"{path}: the model has {len(inputs)} inputs ({names}); give .npz files whose arrays are named after them"
        )
    return inputs[0]


def load_archive(path: Path) -> Feed:
    """Read an .npz archive whole.

    Raises:
        DataError: If it is damaged or holds Python objects.
    """
    return {name: whole(column) for name, column in archive_columns(path).items()}


def _with_batch_axis(array: Array, info: InputInfo) -> Array:
    one_less = info.shape is not None and array.ndim == len(info.shape) - 1
    return array[np.newaxis] if one_less else array


def load_raw(path: Path, info: InputInfo) -> Array:
    """Read numbers without any header: little-endian, of the input's type and shape.

    A free axis 0 is as long as the file says.

    Raises:
        DataError: If the size of the file does not fit, or the shape is not known.
    """
    inner = None if info.shape is None else info.shape[1:]
    if info.dtype.hasobject or inner is None or not all(isinstance(dim, int) for dim in inner):
        raise DataError(f"{path}: a .bin file needs an input of known type and shape, the model has {info}; use .npy")
    try:
        data = path.read_bytes()
    except OSError as err:
        raise DataError(f"{path}: cannot be read: {err.strerror or err}") from err
    dims = tuple(dim for dim in inner if isinstance(dim, int))
    size = info.dtype.itemsize * math.prod(dims)
    rows = len(data) // size if size else 0
    fixed = info.shape[0] if info.shape else 1
    if rows == 0 or rows * size != len(data) or (isinstance(fixed, int) and rows % fixed):
        raise DataError(f"{path}: holds {len(data)} bytes; one sample of {info} has {size}")
    array = np.frombuffer(data, info.dtype.newbyteorder("<"))
    return array.reshape((rows, *dims) if info.shape else ())


def _image_config(path: Path, info: InputInfo, preprocess: ImagePreprocess | None) -> ImagePreprocess:
    """The preprocessing, with a size that is left open taken from the model where that is fixed."""
    if preprocess is None:
        raise DataError(
            f"{path}: holds images, but nothing says how they become feeds; give calibration.preprocess in the recipe "
            "or --image-size, --mean, --std, --layout and --color"
        )
    if info.shape is None or len(info.shape) != 4:
        raise DataError(
            f"{path}: holds images, but the model's input {info.name!r} is {info}; images need 4 dimensions"
        )
    height, width = info.shape[2:] if preprocess.layout == "NCHW" else info.shape[1:3]
    if preprocess.size or preprocess.crop or not (isinstance(height, int) and isinstance(width, int)):
        return preprocess
    key = "crop" if preprocess.resize_short_side else "size"
    return preprocess.replace(**{key: (height, width)})


def _as_pixels(image: Array, path: Path, info: InputInfo) -> Array:
    """Whole numbers where the model wants them."""
    if info.dtype.kind not in "iu":
        return image
    whole_numbers = image.astype(info.dtype)
    if (whole_numbers != image).any():
        raise DataError(f"{path}: the model wants {info.dtype.name} pixels; set scale: 1 and leave mean and std out")
    return whole_numbers
