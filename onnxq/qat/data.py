"""Training and evaluation data: arrays by input name, and labels."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import DataError, nearest
from onnxq.qat.losses import LABELS
from onnxq.qat.manifest import Manifest

Array = NDArray[Any]
Feed = dict[str, Array]


@dataclass(frozen=True)
class TrainingData:
    """Samples along axis 0 of every array.

    Attributes:
        arrays: By name of the input; labels under their own name.
        where: What to call the data in messages.
    """

    arrays: Mapping[str, Array]
    where: str = "the training data"
    _digest: list[str] = field(default_factory=list, repr=False, compare=False)

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def batches(self, order: NDArray[np.int64], size: int) -> Iterator[Feed]:
        """The samples of `order`, `size` at a time; the last batch may be smaller."""
        for start in range(0, len(order), size):
            yield self.take(order[start : start + size])

    def take(self, indexes: NDArray[np.int64]) -> Feed:
        """The samples with these numbers."""
        return {name: np.ascontiguousarray(array[indexes]) for name, array in self.arrays.items()}

    def digest(self) -> str:
        """sha256 of the content."""
        if not self._digest:
            found = hashlib.sha256()
            for name in sorted(self.arrays):
                array = np.ascontiguousarray(self.arrays[name])
                found.update(f"{name} {array.dtype} {array.shape} ".encode())
                found.update(array.data)
            self._digest.append(found.hexdigest())
        return self._digest[0]


DataLike = str | os.PathLike[str] | Mapping[str, Any] | TrainingData
"""An .npz file, arrays by name, or data that were checked before."""


def training_data(source: DataLike, manifest: Manifest, *, labels: object | None = None) -> TrainingData:
    """Read data, and check them against artifacts.

    Args:
        source: An .npz file or arrays by name: the model's inputs, and what the loss reads, mostly ``labels``.
        manifest: Of the artifacts.
        labels: A .npy file or an array, where the labels are not among `source`.

    Raises:
        DataError: If something is missing, does not fit the others, or a class does not exist.
    """
    if isinstance(source, TrainingData):
        return source
    arrays, where = _arrays(source)
    if labels is not None:
        arrays[LABELS] = _read(Path(labels)) if isinstance(labels, (str, os.PathLike)) else np.asarray(labels)
    wanted = dict(manifest.inputs) | {i.name: i.dtype for i in manifest.loss_inputs if not i.teacher}
    missing = [name for name in wanted if name not in arrays]
    if missing:
        hint = "; give labels with --labels FILE.npy, or put them in" if LABELS in missing else ""
        raise DataError(
            f"{where}: {', '.join(missing)} missing; found {', '.join(arrays)}{nearest(missing[0], arrays)}{hint}"
        )
    found = {name: _typed(arrays[name], dtype, name, where) for name, dtype in wanted.items()}
    counts = {name: len(array) for name, array in found.items()}
    if len(set(counts.values())) != 1 or not next(iter(counts.values())):
        told = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise DataError(f"{where}: every array needs the same number of samples, at least one; found {told}")
    _check_classes(found, manifest, where)
    return TrainingData(found, where)


def _arrays(source: str | os.PathLike[str] | Mapping[str, Any]) -> tuple[dict[str, Array], str]:
    if isinstance(source, Mapping):
        return {str(name): np.asarray(value) for name, value in source.items()}, "the training data"
    path = Path(source)
    try:
        with np.load(path, allow_pickle=False) as content:
            if not hasattr(content, "files"):
                raise DataError(f"{path} is no .npz file: it holds one array without a name")
            return {name: content[name] for name in content.files}, str(path)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (OSError, ValueError, AttributeError) as err:
        raise DataError(f"{path} cannot be read as an .npz file of arrays: {err}") from err


def _read(path: Path) -> Array:
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (OSError, ValueError) as err:
        raise DataError(f"{path} cannot be read as a .npy file: {err}") from err


def _typed(array: Array, dtype: str, name: str, where: str) -> Array:
    if array.ndim == 0:
        raise DataError(f"{where}: {name} is a single number; give one entry per sample")
    if np.dtype(dtype).kind in "iu" and array.dtype.kind not in "iub":
        raise DataError(f"{where}: {name} are {array.dtype.name}; must be whole numbers ({dtype})")
    found = array.astype(dtype, copy=False)
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        raise DataError(f"{where}: {name} holds NaN or infinity; clean the data")
    return found


def _check_classes(found: Mapping[str, Array], manifest: Manifest, where: str) -> None:
    for loss_input in manifest.loss_inputs:
        if loss_input.dtype != "int64" or not manifest.classes:
            continue
        labels = found[loss_input.name]
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= manifest.classes:
            raise DataError(
                f"{where}: {loss_input.name} go from {low} to {high}; the model has {manifest.classes} classes, "
                f"0 to {manifest.classes - 1}"
            )
