"""Labels of evaluation data: from a CSV or .npy file to one class per sample."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onnxq.calib.input_folders import Folders
from onnxq.calib.listing import data_files, parse_folders
from onnxq.errors import DataError, nearest

Labels = NDArray[np.int64]

_FORMS = "columns file,label or index,label, or one column of labels"


def read_labels(path: Path, data: Path | Folders) -> Labels:
    """Read the class of each sample.

    Args:
        path: A .npy file of whole numbers, shape (samples,); or a CSV file with the columns ``file,label``
            (paths relative to the data folder or to the folder of the CSV file, or bare file names),
            ``index,label``, or one column of labels in the order of the samples.
        data: What the samples come from; its files give the order for ``file,label``. Where there is one
            folder per input, these are the files of the first.

    Returns:
        shape (samples,).

    Raises:
        DataError: If the file cannot be read, or a sample has no label.
    """
    if path.suffix.lower() == ".npy":
        return _from_npy(path)
    rows = _rows(path)
    first = [cell.strip().lower() for cell in rows[0][1]]
    header = first if any(not _is_number(cell) for cell in first) and "label" in first else None
    body = rows[1:] if header else rows
    if header == ["label"] or (header is None and len(first) == 1):
        return _array([_number(path, line, cells[0]) for line, cells in body])
    if header is None or len(header) < 2 or not ({"file", "index"} & set(header)):
        raise DataError(f"{path}: its first line is {','.join(rows[0][1])!r}; labels need {_FORMS}")
    key = "file" if "file" in header else "index"
    at, label = header.index(key), header.index("label")
    pairs = [(line, cells[at].strip(), _number(path, line, cells[label])) for line, cells in body]
    return _by_file(path, data, pairs) if key == "file" else _by_index(path, pairs)


def check_range(labels: Labels, classes: int) -> None:
    """Refuse labels that are no class of the model.

    Args:
        labels: The labels.
        classes: How many classes the model tells apart.

    Raises:
        DataError: If there is none, or one is not in ``0..classes - 1``.
    """
    if not len(labels):
        raise DataError("there is not a single label; give one for each sample")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        hint = "; do they count from 1?" if low == 1 and high == classes else ""
        raise DataError(f"the labels go from {low} to {high}, the model has the classes 0 to {classes - 1}{hint}")


def _from_npy(path: Path) -> Labels:
    try:
        array = np.load(path, allow_pickle=False)
    except OSError as err:
        raise DataError(f"{path}: cannot be read: {err.strerror or err}") from err
    except (ValueError, EOFError) as err:
        raise DataError(f"{path}: is not a .npy file of numbers: {err}") from err
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu" or array.shape != (array.size,):
        found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "an archive"
        raise DataError(f"{path}: holds {found}; labels are whole numbers of shape [samples]")
    return array.astype(np.int64)


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Line number and cells of every line that is not empty."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except OSError as err:
        raise DataError(f"{path}: cannot be read: {err.strerror or err}") from err
    except (UnicodeDecodeError, csv.Error) as err:
        raise DataError(f"{path}: is not a CSV file: {err}") from err
    if not rows:
        raise DataError(f"{path}: is empty; labels need {_FORMS}")
    width = len(rows[0][1])
    for line, cells in rows:
        if len(cells) != width:
            raise DataError(f"{path}: line {line} has {len(cells)} columns, the first line has {width}")
    return rows


def _is_number(text: str) -> bool:
    return text.strip().removeprefix("-").isdecimal()


def _number(path: Path, line: int, text: str) -> int:
    if not _is_number(text):
        raise DataError(f"{path}: line {line}: label {text.strip()!r} is not a whole number")
    return int(text)


def _array(values: Sequence[int]) -> Labels:
    return np.array(values, dtype=np.int64)


def _by_index(path: Path, pairs: Sequence[tuple[int, str, int]]) -> Labels:
    found: dict[int, int] = {}
    for line, key, label in pairs:
        index = _number(path, line, key)
        if index in found or index < 0:
            raise DataError(f"{path}: line {line}: index {index} is {'given twice' if index in found else 'negative'}")
        found[index] = label
    missing = next((i for i in range(len(found)) if i not in found), None)
    if missing is not None:
        raise DataError(f"{path}: sample {missing} has no label; indexes count from 0")
    return _array([found[i] for i in range(len(found))])


def _files_of(path: Path, data: Path | Folders) -> tuple[Path, Sequence[Path]]:
    """The folder that the samples come from, and its files in the order of the samples."""
    if isinstance(data, Path) and not data.exists() and ":" in str(data):
        data = Folders(parse_folders(str(data)))
    if isinstance(data, Folders):
        name, folder = next(iter(data.folders.items()))
        return Path(folder), data.files(name)
    if not data.is_dir():
        raise DataError(f"{path}: names files, but the data {data} are no folder; use the columns index,label")
    return data, data_files(data)


def _by_file(path: Path, data: Path | Folders, pairs: Sequence[tuple[int, str, int]]) -> Labels:
    folder, files = _files_of(path, data)
    exact = {(path.parent / name).resolve(): label for _, name, label in pairs}
    exact |= {(folder / name).resolve(): label for _, name, label in pairs}
    bare = _unique_names(pairs)
    labels: list[int] = []
    for file in files:
        label = exact.get(file.resolve(), bare.get(file.name))
        if label is None:
            hint = nearest(file.name, bare, count=1)
            raise DataError(f"{path}: {file.relative_to(folder).as_posix()} of {folder} has no label{hint}")
        labels.append(label)
    return _array(labels)


def _unique_names(pairs: Sequence[tuple[int, str, int]]) -> Mapping[str, int]:
    """Labels by bare file name; names with different labels are left out."""
    found: dict[str, int] = {}
    ambiguous: set[str] = set()
    for _, name, label in pairs:
        short = name.replace("\\", "/").rsplit("/", 1)[-1]
        if found.setdefault(short, label) != label:
            ambiguous.add(short)
    return {name: label for name, label in found.items() if name not in ambiguous}
