"""Which kind of data a path holds, and how its files are read."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from onnxq.calib.arrays import FileColumn, archive_columns, load_array, whole
from onnxq.calib.feeds import Feed, InputInfo
from onnxq.calib.files import FolderSource, Source, TableSource
from onnxq.calib.image_input import ImageInput
from onnxq.calib.input_folders import Folders, raw_format
from onnxq.calib.layouts import Layout
from onnxq.calib.listing import data_files, kind_of, parse_folders
from onnxq.calib.prefetch import decode_workers
from onnxq.errors import DataError

if TYPE_CHECKING:
    from onnxq.recipe import ImagePreprocess

KINDS = "an .npz archive, a folder of .npz, .npy, .bin or image files, or input:folder,input:folder"


def open_source(
    path: Path, inputs: Sequence[InputInfo], preprocess: ImagePreprocess | None, layout: Layout | None = None
) -> Source:
    """Find out what `path` holds.

    Args:
        path: An .npz or .npy file with one array per input, axis 0 the samples; or a folder (with its
            subfolders) of .npz files, each one complete feed, or of .npy, .bin or image files for a
            model with one input, in natural order: ``img2`` before ``img10``. For a model with several
            inputs a folder with a sub-folder for each, named after it, or ``input:folder,input:folder``;
            see `onnxq.calib.input_folders.Folders`.
        inputs: The model's inputs.
        preprocess: How image files become feeds.
        layout: Layout of the numbers in .bin files of 4 dimensions; None: as the model has it.

    Raises:
        DataError: If there is nothing usable.
    """
    if path.is_dir():
        below = {info.name: path / info.name for info in inputs}
        if len(inputs) > 1 and all(folder.is_dir() for folder in below.values()):
            return Folders(below, preprocess=preprocess, layouts=layout).source(inputs)
        return _folder(path, inputs, preprocess, layout)
    if not path.exists():
        if ":" in str(path):
            return Folders(parse_folders(str(path)), preprocess=preprocess, layouts=layout).source(inputs)
        raise DataError(f"{path}: does not exist; the data are {KINDS}")
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return TableSource(str(path), archive_columns(path), inputs)
    if suffix == ".npy":
        return TableSource(str(path), {_only(inputs, path).name: FileColumn.probe(path)}, inputs)
    kind = kind_of(path)
    if kind:
        return _files(kind, [path], path, inputs, preprocess, layout)
    raise DataError(f"{path}: is no data file; the data are {KINDS}")


def _folder(
    path: Path, inputs: Sequence[InputInfo], preprocess: ImagePreprocess | None, layout: Layout | None
) -> Source:
    found: dict[str, list[Path]] = {}
    for file in data_files(path):
        found.setdefault(kind_of(file), []).append(file)
    if not found:
        raise DataError(f"{path}: holds no data files; the data are {KINDS}")
    if len(found) > 1:
        counts = ", ".join(f"{len(files)} {kind}" for kind, files in sorted(found.items()))
        raise DataError(f"{path}: holds several kinds of data files ({counts}); keep one kind in the folder")
    ((kind, files),) = found.items()
    return _files(kind, files, path, inputs, preprocess, layout)


def _files(
    kind: str,
    files: Sequence[Path],
    path: Path,
    inputs: Sequence[InputInfo],
    preprocess: ImagePreprocess | None,
    layout: Layout | None,
) -> Source:
    label = str(path)
    if kind == "npz":
        return FolderSource(label, kind, files, load_archive, single=False)
    info = _only(inputs, path)
    if kind == "npy":
        return FolderSource(label, kind, files, lambda file: {info.name: load_array(file, info)}, single=False)
    if kind == "bin":
        raw, note = raw_format(info, layout)
        remarks = [note] if note else []
        return FolderSource(label, kind, files, lambda file: {info.name: raw.load(file)}, single=False, remarks=remarks)
    image = ImageInput.of(path, info, preprocess)
    return FolderSource(
        label,
        kind,
        files,
        partial(_load_image, info.name, image),
        single=True,
        workers=decode_workers(),
        remarks=[image.note] if image.note else [],
    )


def _load_image(name: str, image: ImageInput, file: Path) -> Feed:
    return {name: image.load(file)}


def _only(inputs: Sequence[InputInfo], path: Path) -> InputInfo:
    if len(inputs) != 1:
        names = ", ".join(repr(info.name) for info in inputs)
        raise DataError(
            f"{path}: the model has {len(inputs)} inputs ({names}); give .npz files whose arrays are named after them, "
            "or a folder for each: input:folder,input:folder"
        )
    return inputs[0]


def load_archive(path: Path) -> Feed:
    """Read an .npz archive whole.

    Raises:
        DataError: If it is damaged or holds Python objects.
    """
    return {name: whole(column) for name, column in archive_columns(path).items()}
