"""Quantization-aware training as in Paddle, through the artifacts of `onnxq.qat`.

qat = QAT(q_config)
model = qat.quantize(Model("net.onnx").train())
for images, labels in loader:
    loss = model.train_step((images, labels), learning_rate=1e-4)
model.eval()
model = qat.convert(model)
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq import save_model, stages
from onnxq.dialects.paddle.config import QuantConfig
from onnxq.dialects.paddle.convert import BASE, Prepared, prepare
from onnxq.dialects.paddle.network import Array, Converted, Feed, Float, Form, Model, opened
from onnxq.dialects.paddle.ptq import taken
from onnxq.errors import DataError, ModelError, TrainingError
from onnxq.qat.artifacts import create
from onnxq.qat.losses import TEACHER
from onnxq.qat.manifest import FLOAT_MODEL, Manifest
from onnxq.qat.save import newest_checkpoint, open_worker, quantized, trained_values
from onnxq.qat.trainer import BEST, HISTORY, LAST, OPTIONS, Progress, QatTrainer, TrainOptions
from onnxq.qat.worker_client import Worker
from onnxq.recipe import Recipe
from onnxq.runtime import Session, make_session

if TYPE_CHECKING:
    import onnx

    from onnxq.calib.readers import DataLike
    from onnxq.pipeline import ModelLike
    from onnxq.qat.data import DataLike as TrainingData
    from onnxq.qat.overlay import Overlay
    from onnxq.result import Result

_CALIBRATED = 64
"""How many samples of the training data calibrate where nobody gives others."""


class Trained:
    """A model with trainable quantizers in it.

    Args:
        prepared: The model and how to quantize it.
        directory: Where its artifacts go; None for a temporary folder.
        overlay: The training runtime; found in the cache by default.
    """

    form: Form = "trained"

    def __init__(self, prepared: Prepared, directory: Path | None, overlay: Overlay | None) -> None:
        self.prepared = prepared
        self._overlay = overlay
        self._float = Float(prepared.model)
        self._worker: Worker | None = None
        self._checkpoint: Path | None = None
        self._manifest: Manifest | None = None
        self._result: Result | None = None
        self._session: Session | None = None
        self._teacher: Session | None = None
        if directory is None:
            folder = tempfile.TemporaryDirectory(prefix="onnxq-")
            directory = Path(folder.name)
            self._cleanup = weakref.finalize(self, folder.cleanup)
        self.directory = directory

    # ---- as a stage of a model

    @property
    def inputs(self) -> Sequence[Any]:
        """What the model says about its inputs."""
        return self._float.inputs

    def run(self, feed: Feed) -> list[Array]:
        """The outputs of the quantized model as it is now; before calibration those of the float model."""
        if self._manifest is None:
            return self._float.run(feed)
        if self._session is None:
            self._session = make_session(self.result().twin or self.result().model)
        return self._session.run(None, feed)

    def proto(self) -> onnx.ModelProto:
        """The float model."""
        return stages.name_nodes(self.prepared.model).to_proto()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the float model."""
        return save_model(stages.name_nodes(self.prepared.model), path)[0]

    # ---- training

    def calibrate(self, data: DataLike) -> None:
        """Make the artifacts; scales begin with what these data give.

        Args:
            data: Samples of the inputs; see `onnxq.quantize`.
        """
        self.close()
        made = create(self.prepared.model, data, self.directory, recipe=self.prepared.recipe, overlay=self._overlay)
        for name in (LAST, BEST, HISTORY, OPTIONS):
            (self.directory / name).unlink(missing_ok=True)
        self._manifest, self._checkpoint = made.manifest, None
        self._forget()

    def fit(
        self, data: TrainingData | tuple[Array, ...], evaluation: TrainingData | tuple[Array, ...] | None = None,
        options: TrainOptions | None = None,
    ) -> list[Progress]:  # fmt: skip
        """Train for whole epochs; see `Model.fit`."""
        arrays = self._arrays(data)
        manifest = self._calibrated(arrays if isinstance(arrays, Mapping) else _read(Path(str(arrays))))
        held_out = None if evaluation is None else self._named(self._arrays(evaluation), manifest)
        self.close()
        current = self._current()
        if current is not None:  # what was learned so far is where it begins
            _copy(current, self.directory / _BEGINNING)
        trainer = QatTrainer(self.directory, options, overlay=self._overlay)
        rows = trainer.fit(self._named(arrays, manifest), evaluation=held_out)
        self._checkpoint = None
        self._forget()
        return rows

    def train_step(self, batch: Mapping[str, Array] | Sequence[Array], learning_rate: float) -> float:
        """One step with one batch; see `Model.train_step`."""
        arrays = self._arrays(batch)
        if not isinstance(arrays, Mapping):
            raise DataError(f"found {type(batch).__name__}; a batch is arrays by name, or inputs and labels in a tuple")
        manifest = self._calibrated(arrays)
        if manifest.masks:
            raise TrainingError("2:4 masks are chosen during training: use fit, which does it")
        feed = {name: np.asarray(value) for name, value in self._named(arrays, manifest).items()}
        if any(i.teacher for i in manifest.loss_inputs):
            feed[TEACHER] = self._taught(feed, manifest)
        for name, dtype in (*manifest.inputs.items(), *((i.name, i.dtype) for i in manifest.loss_inputs)):
            if name in feed:
                feed[name] = np.ascontiguousarray(feed[name], dtype)
        self._forget()
        return self._open().train_step(feed, learning_rate).loss

    def save_state(self, path: str | os.PathLike[str]) -> Path:
        """Write where training stands; see `Model.save_state`."""
        self._require()
        if self._worker is not None:
            return self._worker.save_checkpoint(path)
        return _copy(self._current() or self.directory / _BEGINNING, Path(path))

    def load_state(self, path: str | os.PathLike[str]) -> None:
        """Go on from what `save_state` has written; see `Model.load_state`."""
        self._require()
        self.close()
        source, last = Path(path), self.directory / LAST
        if not source.is_file():
            raise TrainingError(f"there is no checkpoint {source}")
        _copy(source, last)
        (self.directory / BEST).unlink(missing_ok=True)
        self._checkpoint = last
        self._forget()

    def result(self) -> Result:
        """The quantized model that the parameters make."""
        self._require()
        if self._result is None:
            values = (
                trained_values(self.directory, self._current(), overlay=self._overlay)
                if self._worker is None
                else self._worker.parameters()
            )
            self._result = quantized(self.directory, values)
        return self._result

    def close(self) -> None:
        """End the process of `train_step`, keeping where its training stands."""
        if self._worker is None:
            return
        if not self._worker.closed:
            self._checkpoint = self._worker.save_checkpoint(self.directory / LAST)
            (self.directory / BEST).unlink(missing_ok=True)
        self._worker.close()
        self._worker = None

    # ---- details

    def _require(self) -> Manifest:
        if self._manifest is None:
            raise TrainingError(
                "the quantizers have no scales yet: train the model (fit or train_step), or give QAT.quantize "
                "calibration data"
            )
        return self._manifest

    def _calibrated(self, arrays: Mapping[str, Any]) -> Manifest:
        """The manifest; the first data calibrate where nothing has yet."""
        if self._manifest is None:
            names = [info.name for info in self.inputs]
            missing = [name for name in names if name not in arrays]
            if missing:
                raise DataError(f"the data lack {', '.join(missing)}; found {', '.join(arrays)}")
            self.calibrate({name: np.asarray(arrays[name])[:_CALIBRATED] for name in names})
        return self._require()

    def _arrays(self, data: Any) -> Any:  # noqa: ANN401 - what training_data takes, and tuples
        """Arrays by name where they come in a tuple: inputs in their order, then what the loss reads."""
        if not isinstance(data, (tuple, list)):
            return data
        names = [info.name for info in self.inputs]
        if self._manifest is not None:
            names += [i.name for i in self._manifest.loss_inputs if not i.teacher]
        names += [f"{_LABELS}{n or ''}" for n in range(len(data) - len(names))]
        return dict(zip(names, data, strict=False))

    def _named(self, arrays: Any, manifest: Manifest) -> Any:  # noqa: ANN401 - as _arrays
        """The arrays, labels under the loss's name for them: in a tuple they came before it was known."""
        wanted = [i.name for i in manifest.loss_inputs if not i.teacher]
        if not isinstance(arrays, Mapping) or len(wanted) != 1 or wanted[0] in arrays or _LABELS not in arrays:
            return arrays
        return {wanted[0] if name == _LABELS else name: value for name, value in arrays.items()}

    def _taught(self, feed: Feed, manifest: Manifest) -> Array:
        if self._teacher is None:
            self._teacher = make_session(self.directory / FLOAT_MODEL)
        found = self._teacher.run([manifest.outputs[0]], {name: feed[name] for name in manifest.inputs})
        return np.asarray(found[0])

    def _current(self) -> Path | None:
        return newest_checkpoint(self.directory, self._checkpoint)

    def _open(self) -> Worker:
        if self._worker is None:
            self._worker = open_worker(self.directory, self._current(), self._overlay)
        return self._worker

    def _forget(self) -> None:
        self._result = self._session = None


_LABELS, _BEGINNING = "labels", "checkpoint"


def _copy(source: Path, path: Path) -> Path:
    """Copy a checkpoint, all of it or nothing."""
    if path.exists() and path.samefile(source):
        return path
    draft = path.with_name(f".{path.name}.draft")
    try:
        shutil.copyfile(source, draft)
        draft.replace(path)
    except OSError as err:
        draft.unlink(missing_ok=True)
        raise TrainingError(f"the checkpoint {path} cannot be written: {err.strerror or err}") from err
    return path


def _read(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except (OSError, ValueError, AttributeError) as err:
        raise DataError(f"{path} cannot be read as an .npz file of arrays: {err}") from err


class QAT:
    """Trains models with quantizers in them, as a configuration says.

    Args:
        config: The configuration; it is copied. Quanters say how scales are learned; after observers onnxq's own are.
        recipe: What holds for everything a `QuantConfig` has no words for: `Recipe.training`, the target.
        overlay: The training runtime; found in the cache by default.

    Raises:
        RecipeError: If it is no configuration.
    """

    def __init__(self, config: QuantConfig, *, recipe: Recipe | None = None, overlay: Overlay | None = None) -> None:
        self._config = taken(config)
        self._base = recipe or BASE
        self._overlay = overlay

    def quantize(
        self,
        model: Model | ModelLike,
        inplace: bool = False,
        *,
        data: DataLike | None = None,
        directory: str | os.PathLike[str] | None = None,
    ) -> Model:
        """Put trainable quantizers into a model.

        Args:
            model: The float model: a `Model` that is meant for training, a file, an `onnx.ModelProto`.
            inplace: Change the `Model` itself instead of making another one.
            data: Calibration samples, which scales begin with; without, the first training data do it.
            directory: Where the training artifacts go; by default into a temporary folder.

        Returns:
            A model with `Model.fit`, `Model.train_step`, `Model.save_state` and `Model.load_state`. Called, it gives
            what the quantized model gives as it is then.

        Raises:
            ModelError: If the model is not meant for training, or is not a float model.
            RecipeError: If the configuration does not fit the model.
            OnnxqError: If the model or the data cannot be used.
        """
        found, source = opened(model, inplace=inplace)
        if isinstance(model, Model) and not found.training:
            raise ModelError("the model is not meant for training; call its train() before QAT.quantize")
        stage = Trained(
            prepare(self._config, source, base=self._base),
            None if directory is None else Path(directory),
            self._overlay,
        )
        if data is not None:
            stage.calibrate(data)
        made = found.become(stage, inplace=inplace)
        made.training = True
        return made

    def convert(self, model: Model, inplace: bool = False, remain_weight: bool = False) -> Model:
        """Make a quantized model of what was trained.

        Args:
            model: What `quantize` gave.
            inplace: Change the `Model` itself instead of making another one; without, it can be trained on.
            remain_weight: Keep weights as floats in front of a QuantizeLinear, not as codes.

        Raises:
            ModelError: If the model does not come from `quantize`.
            TrainingError: If it has seen no data, or the training runtime fails.
        """
        stage = model.stage if isinstance(model, Model) else None
        if not isinstance(stage, Trained):
            found = f"a model that is {model.form}" if isinstance(model, Model) else type(model).__name__
            raise ModelError(f"QAT.convert found {found}; give what QAT.quantize returned")
        result = stage.result()
        if remain_weight:
            result = stages.keep_float_weights(result)
        if inplace:
            stage.close()
        made = model.become(Converted(result), inplace=inplace)
        return made.eval()
