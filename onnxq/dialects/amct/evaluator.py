"""How a user tells what a model is worth: AMCT's evaluators."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import CalibrationError, DataError, nearest

_TYPES = (
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool",
)  # fmt: skip


class AutoCalibrationEvaluatorBase:
    """What accuracy-based calibration asks the user; derive from it and write the three functions.

    Source: AMCT's class of this name.
    """

    def calibration(self, model: Any) -> None:  # noqa: ANN401
        """Run the model on `batch_num` batches of calibration data.

        Args:
            model: What is to be run, as `accuracy_based_auto_calibration` gives it.
        """
        raise CalibrationError(f"{type(self).__name__} has no calibration(model); write one that runs the model")

    def evaluate(self, model: Any) -> Any:  # noqa: ANN401
        """Measure the model, the original or a quantized one.

        Args:
            model: What is to be measured, as `accuracy_based_auto_calibration` gives it.

        Returns:
            The metric, of any type that `metric_eval` understands.
        """
        raise CalibrationError(f"{type(self).__name__} has no evaluate(model); write one that returns the metric")

    def metric_eval(self, original_metric: Any, new_metric: Any) -> tuple[bool, float]:  # noqa: ANN401
        """Judge a quantized model.

        Args:
            original_metric: What `evaluate` gave for the original.
            new_metric: What it gave for another model.

        Returns:
            Whether the loss is acceptable, and the loss.
        """
        raise CalibrationError(
            f"{type(self).__name__} has no metric_eval(original_metric, new_metric); write one that returns "
            "(satisfied, loss)"
        )


@runtime_checkable
class Runnable(Protocol):
    """A model that can be run, such as onnxruntime's InferenceSession."""

    def run(self, output_names: None, feed: dict[str, NDArray[Any]], /) -> object:
        """Run it on one batch."""
        ...


class ModelEvaluator(AutoCalibrationEvaluatorBase):
    """The ready-made evaluator: it calibrates with binary files; it knows no labels, so it cannot tell accuracy.

    Source: AMCT's class of this name.

    Args:
        data_dir: A folder of ``.bin`` files per input, in the order of `input_shape`: ``"data/input1/;data/input2/"``.
            Each file is one batch, little-endian; files are taken in the order of their names.
        input_shape: Name and shape of each input: ``"input1:1,3,224,224;input2:1,10"``.
        data_types: The type of each input, or one for all: ``"float32;int64"``.

    Raises:
        DataError: If these do not go together, or a folder is missing or has no files.
    """

    def __init__(self, data_dir: str | os.PathLike[str], input_shape: str, data_types: str) -> None:
        self._shapes = _shapes(input_shape)
        names = list(self._shapes)
        types = _types(data_types, len(names))
        self._types = dict(zip(names, types, strict=True))
        folders = [Path(part) for part in _parts(os.fspath(data_dir))]
        if len(folders) != len(names):
            raise DataError(
                f"data_dir names {len(folders)} folders, input_shape {len(names)} inputs; give one for each"
            )
        self._files = {name: _files(folder) for name, folder in zip(names, folders, strict=True)}
        counts = {name: len(files) for name, files in self._files.items()}
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{name!r} {count}" for name, count in counts.items())
            raise DataError(f"data_dir: the inputs have different numbers of files: {told}")

    def feeds(self, batch_num: int | None = None) -> Iterator[dict[str, NDArray[Any]]]:
        """The batches, in the order of the files' names.

        Args:
            batch_num: Give only so many; all where it is None.

        Raises:
            DataError: If a file has not the size its input takes, or there are fewer than `batch_num`.
        """
        batches = list(zip(*self._files.values(), strict=True))
        if batch_num is not None and not 1 <= batch_num <= len(batches):
            raise DataError(f"batch_num is {batch_num}, but there are {len(batches)} files for each input")
        for paths in batches[:batch_num]:
            yield {name: self._read(name, path) for name, path in zip(self._files, paths, strict=True)}

    def calibration(self, model: Any, batch_num: int | None = None) -> None:  # noqa: ANN401
        """Run a model on the batches.

        Args:
            model: Anything with ``run(output_names, feed)``, such as onnxruntime's InferenceSession.
            batch_num: Run only so many; all where it is None.

        Raises:
            DataError: If the files do not fit, or `model` cannot be run.
        """
        if not isinstance(model, Runnable):
            kind = type(model).__name__
            raise DataError(f"calibration needs a model with run(output_names, feed), not {kind}; make a session of it")
        for feed in self.feeds(batch_num):
            model.run(None, feed)

    def evaluate(self, model: Any) -> Any:  # noqa: ANN401
        """There is nothing to measure accuracy with.

        Raises:
            CalibrationError: Always.
        """
        del model
        raise CalibrationError(
            "ModelEvaluator only calibrates, it has no labels; derive from it, or from AutoCalibrationEvaluatorBase, "
            "and write evaluate(model) and metric_eval(original_metric, new_metric)"
        )

    def _read(self, name: str, path: Path) -> NDArray[Any]:
        shape, dtype = self._shapes[name], self._types[name]
        expected = int(np.prod(shape)) * dtype.itemsize
        try:
            data = path.read_bytes()
        except OSError as err:
            raise DataError(f"{path} cannot be read: {err.strerror or err}") from err
        if len(data) != expected:
            wanted = f"{dtype.name} {list(shape)}"
            raise DataError(f"{path} has {len(data)} bytes, input {name!r} ({wanted}) takes {expected}")
        return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.strip().strip('"').split(";") if part.strip()]


def _shapes(text: str) -> Mapping[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for part in _parts(text):
        name, colon, sizes = part.rpartition(":")
        try:
            shape = tuple(int(size) for size in sizes.split(","))
        except ValueError:
            shape = ()
        if not colon or not name or not shape or min(shape) < 1:
            raise DataError(
                f"input_shape: {part!r} is not an input and its shape; write name:1,3,224,224, all sizes positive"
            )
        if name in found:
            raise DataError(f"input_shape names {name!r} twice")
        found[name] = shape
    if not found:
        raise DataError("input_shape is empty; write name:1,3,224,224, with semicolons between inputs")
    return found


def _types(text: str, count: int) -> list[np.dtype[Any]]:
    names = _parts(text)
    for name in names:
        if name not in _TYPES:
            raise DataError(f"data_types: unknown type {name!r}; known: {', '.join(_TYPES)}{nearest(name, _TYPES)}")
    if len(names) == 1:
        names *= count
    if len(names) != count:
        raise DataError(f"data_types names {len(names)} types, input_shape {count} inputs; give one each")
    return [np.dtype(name).newbyteorder("<") for name in names]


def _files(folder: Path) -> tuple[Path, ...]:
    if not folder.is_dir():
        raise DataError(f"data_dir: there is no folder {folder}")
    files = tuple(sorted((path for path in folder.iterdir() if path.suffix == ".bin"), key=lambda path: path.name))
    if not files:
        raise DataError(f"data_dir: there is no .bin file in {folder}")
    return files
