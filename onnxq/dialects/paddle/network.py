"""A model that is called with numpy arrays: float, observed, trained or converted.

model = Model("mobilenet_v1.onnx")
logits = model(images)
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq import save_model, stages
from onnxq.calib.readers import as_reader
from onnxq.errors import DataError, ModelError, nearest
from onnxq.runtime import Session, make_session

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Self

    from onnxq.pipeline import ModelLike
    from onnxq.qat.data import DataLike as TrainingData
    from onnxq.qat.trainer import Progress, TrainOptions
    from onnxq.result import Result

Array = NDArray[Any]
Feed = dict[str, Array]
Data = Array | Sequence[Array] | Mapping[str, Array]
"""The array of the only input, arrays in the order of the inputs, or arrays by name."""
Form = Literal["float", "observed", "trained", "converted"]


class Stage(Protocol):
    """What a `Model` is at a time."""

    @property
    def form(self) -> Form:
        """Which one."""
        ...

    @property
    def inputs(self) -> Sequence[Any]:
        """What the model says about its inputs."""
        ...

    def run(self, feed: Feed) -> list[Array]:
        """The outputs for a feed."""
        ...

    def proto(self) -> onnx.ModelProto:
        """The model with all weights inside."""
        ...

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the model."""
        ...


@runtime_checkable
class Trainable(Protocol):
    """What a `Model` is while it is trained; the methods of `Model` say what these do."""

    def fit(
        self,
        data: TrainingData | tuple[Array, ...],
        evaluation: TrainingData | tuple[Array, ...] | None,
        options: TrainOptions | None,
    ) -> list[Progress]:
        """Train for whole epochs."""
        ...

    def train_step(self, batch: Mapping[str, Array] | Sequence[Array], learning_rate: float) -> float:
        """Make one step."""
        ...

    def save_state(self, path: str | os.PathLike[str]) -> Path:
        """Write where training stands."""
        ...

    def load_state(self, path: str | os.PathLike[str]) -> None:
        """Go on from there."""
        ...


@dataclass
class Float:
    """The float model.

    Attributes:
        source: The model.
        threads: Threads of a run, 0 for all cores.
    """

    source: ModelLike
    threads: int = 0
    form: Form = field(default="float", init=False)
    _session: Session | None = field(default=None, repr=False)

    def session(self) -> Session:
        """A session of it, opened when it is first needed."""
        if self._session is None:
            self._session = make_session(stages.name_nodes(self.source), threads=self.threads)
        return self._session

    @property
    def inputs(self) -> Sequence[Any]:
        """What the model says about its inputs."""
        return self.session().inputs

    def run(self, feed: Feed) -> list[Array]:
        """The outputs for a feed."""
        return self.session().run(None, feed)

    def proto(self) -> onnx.ModelProto:
        """The model with all weights inside."""
        return stages.name_nodes(self.source).to_proto()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the model."""
        return save_model(stages.name_nodes(self.source), path)[0]


@dataclass
class Converted:
    """The quantized model.

    Attributes:
        result: What quantizing has given.
        threads: Threads of a run, 0 for all cores.
    """

    result: Result
    threads: int = 0
    form: Form = field(default="converted", init=False)
    _session: Session | None = field(default=None, repr=False)

    def session(self) -> Session:
        """A session of it, or of its twin where its operators do not run here."""
        if self._session is None:
            self._session = make_session(self.result.twin or self.result.model, threads=self.threads)
        return self._session

    @property
    def inputs(self) -> Sequence[Any]:
        """What the model says about its inputs."""
        return self.session().inputs

    def run(self, feed: Feed) -> list[Array]:
        """The outputs for a feed."""
        return self.session().run(None, feed)

    def proto(self) -> onnx.ModelProto:
        """The model with all weights inside."""
        return self.result.model

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the model, and its twin where it has one."""
        return self.result.save(path)


class Model:
    """A model that is called with numpy arrays, as Paddle's layers are called with tensors.

    `PTQ` and `QAT` make it observe, train and convert; with ``inplace=True`` this very object, else another one.

    Args:
        source: A file, an `onnx.ModelProto` or an `onnxq.GraphModel`.
        threads: Threads of a run, 0 for all cores.

    Attributes:
        training: Whether it is meant for training; a fresh one is not. See `train` and `eval`.
    """

    def __init__(self, source: ModelLike, *, threads: int = 0) -> None:
        self.training = False
        self._stage: Stage = Float(source, threads)

    def __call__(self, *data: Data) -> Array | tuple[Array, ...]:
        """Run the model.

        Args:
            data: The array of the only input, arrays in the order of the inputs, in one sequence or one by one, or
                arrays by name.

        Returns:
            The output, or a tuple of all of them where there are several.

        Raises:
            DataError: If the data do not fit.
        """
        feed = feed_of(data, self._stage.inputs)
        outputs = self._stage.run(feed)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def eval(self) -> Self:
        """Say that it is not meant for training."""
        self.training = False
        return self

    def train(self) -> Self:
        """Say that it is meant for training, as `QAT.quantize` wants it."""
        self.training = True
        return self

    @property
    def form(self) -> Form:
        """What it is at the moment."""
        return self._stage.form

    @property
    def stage(self) -> Stage:
        """What does the work at the moment."""
        return self._stage

    @property
    def model(self) -> onnx.ModelProto:
        """The ONNX model with all weights inside; while it observes or trains, the float model.

        Raises:
            GraphError: If it is not valid.
        """
        return self._stage.proto()

    @property
    def result(self) -> Result:
        """What quantizing has given: plan, parameters, reports.

        Raises:
            ModelError: If the model is not converted yet.
        """
        if not isinstance(self._stage, Converted):
            raise ModelError(f"the model is {self.form}, not converted; call PTQ.convert or QAT.convert first")
        return self._stage.result

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the ONNX model, all of it or nothing.

        Args:
            path: The file; its folder must exist.

        Returns:
            The file.

        Raises:
            ModelError: If it cannot be written.
        """
        return self._stage.save(path)

    # ---- training

    def fit(
        self,
        data: TrainingData | tuple[Array, ...],
        evaluation: TrainingData | tuple[Array, ...] | None = None,
        options: TrainOptions | None = None,
    ) -> list[Progress]:
        """Train for whole epochs.

        Args:
            data: An .npz file, arrays by name (inputs and ``labels``), or these in a tuple, inputs first.
            evaluation: The same for a figure after each epoch; the best parameters are kept by it.
            options: How to train.

        Returns:
            What was reported for each epoch.

        Raises:
            ModelError: If the model does not come from `QAT.quantize`, or `eval` was called.
            OnnxqError: If the data do not fit, or there is no training runtime.
        """
        return self._trained(training=True).fit(data, evaluation, options)

    def train_step(self, batch: Mapping[str, Array] | Sequence[Array], learning_rate: float = 1e-3) -> float:
        """Make one step with one batch: for training loops of one's own.

        Args:
            batch: Inputs and ``labels`` by name, or in a tuple, inputs first.
            learning_rate: Of this step.

        Returns:
            The loss.

        Raises:
            ModelError: If the model does not come from `QAT.quantize`, or `eval` was called.
            OnnxqError: If the batch does not fit, or there is no training runtime.
        """
        return self._trained(training=True).train_step(batch, learning_rate)

    def save_state(self, path: str | os.PathLike[str]) -> Path:
        """Write where training stands: parameters, those of quantizers included, and the optimizer's state.

        Args:
            path: The file; its folder must exist.

        Raises:
            ModelError: If the model does not come from `QAT.quantize`.
            TrainingError: If there is nothing yet, or the file cannot be written.
        """
        return self._trained().save_state(path)

    def load_state(self, path: str | os.PathLike[str]) -> None:
        """Go on from what `save_state` has written for the same model and configuration.

        Args:
            path: The file.

        Raises:
            ModelError: If the model does not come from `QAT.quantize`.
            TrainingError: If there are no artifacts yet, or the file cannot be read.
        """
        self._trained().load_state(path)

    def _trained(self, *, training: bool = False) -> Trainable:
        stage = self._stage
        if not isinstance(stage, Trainable):
            raise ModelError(f"the model is {self.form} and is not trained; use what QAT.quantize returns")
        if training and not self.training:
            raise ModelError("the model is in eval mode; call its train() first")
        return stage

    def become(self, stage: Stage, *, inplace: bool) -> Model:
        """This model, or another one, at another stage.

        Args:
            stage: The stage.
            inplace: Whether it shall be this one.
        """
        other = self if inplace else Model.__new__(type(self))
        other.training = self.training
        other._stage = stage
        return other


def opened(model: Model | ModelLike, *, inplace: bool) -> tuple[Model, ModelLike]:
    """A float model as a `Model`, and where it comes from: the very object, or a copy that nobody else can change.

    Args:
        model: The model.
        inplace: Whether it may be the very object.

    Raises:
        ModelError: If it is not a float model any more.
    """
    found = model if isinstance(model, Model) else Model(model)
    if not isinstance(found.stage, Float):
        raise ModelError(f"the model is {found.form} already; give the float model")
    source = found.stage.source
    if not inplace and isinstance(source, onnx.ModelProto):
        copied = onnx.ModelProto()
        copied.CopyFrom(source)
        source = copied
    elif not inplace and not isinstance(source, (str, os.PathLike)):
        source = stages.name_nodes(source)
    return found, source


def feed_of(data: tuple[Data, ...], inputs: Sequence[Any]) -> Feed:
    """What a model was called with, by the names of its inputs and in their element types.

    Args:
        data: See `Model.__call__`.
        inputs: What the model says about its inputs.

    Raises:
        DataError: If it does not fit.
    """
    names = [info.name for info in inputs]
    first = data[0] if len(data) == 1 else data
    if isinstance(first, Mapping):
        feed: dict[str, object] = {str(name): value for name, value in first.items()}
        unknown = [name for name in feed if name not in names]
        if unknown:
            raise DataError(f"the model has no input {unknown[0]!r}{nearest(unknown[0], names)}; it has {names}")
    else:
        values = list(first) if _several(first, len(names)) else [first]
        if len(values) != len(names):
            told = ", ".join(map(repr, names))
            hint = "; where a loader gives labels too, call the model with the inputs only"
            more = hint if len(values) > len(names) else ""
            raise DataError(f"found {len(values)} arrays; the inputs are {told}{more}")
        feed = dict(zip(names, values, strict=True))
    return next(iter(as_reader([feed], tuple(inputs))))


def _several(value: object, count: int) -> bool:
    """Whether a sequence holds arrays of inputs, and is not one array written as a list."""
    if not isinstance(value, (tuple, list)):
        return False
    return count > 1 or isinstance(value, tuple) or all(isinstance(item, np.ndarray) for item in value)
