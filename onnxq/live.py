"""Calibration by the user's own loop: a model that is run as usual, and remembers what it was fed."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.calib.feeds import Feed, InputInfo
from onnxq.calib.readers import as_reader
from onnxq.errors import CalibrationError
from onnxq.pipeline import ModelLike, open_model
from onnxq.runtime import Session, make_session


@dataclass(frozen=True, slots=True)
class ValueInfo:
    """What a model says of an input or output, under the names onnxruntime uses.

    Attributes:
        name: Its name.
        shape: Its dimensions: a number, a name or None.
        type: Its element type, such as ``tensor(float)``; empty for outputs, whose type only a run tells.
    """

    name: str
    shape: list[int | str | None]
    type: str = ""


Finish = Callable[[Callable[[], Iterator[Feed]]], None]
"""Takes a function that gives the feeds, anew each time."""


class LiveCalibration:
    """Runs the float model for a loop that the user writes, and calibrates after the last batch.

    It can be used like an `onnxruntime.InferenceSession`: `run`, `get_inputs`, `get_outputs`. What is fed goes to
    files in a temporary folder, so the memory does not grow with the batches; activations are never kept. After
    `batches` runs `finish` is called with the data and calibration is over; further runs only run. Without a number of
    batches the caller decides when to take what was fed, with `feeds`.

    Args:
        model: The float model.
        batches: How many runs make up the calibration; None for as many as there are.
        finish: Is called with a function that gives the feeds, anew each time.
        threads: Threads of a run, 0 for all cores.
    """

    def __init__(
        self, model: ModelLike, batches: int | None, finish: Finish | None = None, *, threads: int = 0
    ) -> None:
        graph, source = open_model(model)
        self._session: Session = make_session(graph, threads=threads, source=str(source or "the model"))
        self._inputs = self._session.inputs
        self._batches = batches
        self._finish = finish
        self._fed = 0
        folder = tempfile.TemporaryDirectory(prefix="onnxq-")
        self._folder = Path(folder.name)
        self._cleanup = weakref.finalize(self, folder.cleanup)

    @property
    def finished(self) -> bool:
        """Whether calibration is over."""
        return self._batches is not None and self._fed >= self._batches

    @property
    def batches_left(self) -> int:
        """How many runs calibration still needs."""
        return 0 if self._batches is None else max(self._batches - self._fed, 0)

    @property
    def batches_fed(self) -> int:
        """How many runs were recorded."""
        return self._fed

    @property
    def inputs(self) -> tuple[InputInfo, ...]:
        """What the model says about its inputs."""
        return self._inputs

    def get_inputs(self) -> list[ValueInfo]:
        """What must be fed."""
        return [ValueInfo(i.name, list(i.shape or ()), _type_name(i)) for i in self._inputs]

    def get_outputs(self) -> list[ValueInfo]:
        """What `run` gives."""
        return [ValueInfo(name, []) for name in self._session.output_names]

    def run(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, NDArray[Any]], run_options: object = None
    ) -> list[Any]:
        """Run the float model on one batch, and calibrate if it was the last one that was needed.

        Args:
            output_names: The outputs that are wanted; None for all.
            input_feed: Arrays by input name.
            run_options: Taken for onnxruntime's sake; has no effect.

        Returns:
            The float model's outputs.

        Raises:
            DataError: If the feed does not fit the model.
            CalibrationError: If the activations cannot be calibrated.
        """
        results = self._session.run(output_names, input_feed)
        if self.finished:
            return results
        feed = next(iter(as_reader([dict(input_feed)], self._inputs)))
        for index, info in enumerate(self._inputs):
            np.save(self._file(self._fed, index), feed[info.name], allow_pickle=False)
        self._fed += 1
        if self.finished:
            try:
                if self._finish is not None:
                    self._finish(self.feeds)
            finally:
                self._cleanup()
        return results

    def require_finished(self) -> None:
        """Raise `CalibrationError` if there were not enough runs."""
        if self._batches is not None and not self.finished:
            raise CalibrationError(
                f"calibration needs {self._batches} batches and was run on {self._fed}; run the model on "
                f"{self.batches_left} more"
            )

    def _file(self, batch: int, index: int) -> Path:
        return self._folder / f"{batch:08}-{index:04}.npy"

    def feeds(self) -> Iterator[Feed]:
        """What was fed so far, a feed for each run; can be called any number of times until calibration is over."""
        for batch in range(self._fed):
            arrays = (np.load(self._file(batch, i), allow_pickle=False) for i in range(len(self._inputs)))
            yield {info.name: array for info, array in zip(self._inputs, arrays, strict=True)}


def _type_name(info: InputInfo) -> str:
    names = {"float32": "float", "float64": "double", "bool": "bool", "object": "string"}
    return f"tensor({names.get(info.dtype.name, info.dtype.name)})"
