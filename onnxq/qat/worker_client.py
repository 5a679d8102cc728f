"""Training sessions, artifacts and gradients, computed by the worker process.

with Worker() as worker:
worker.generate(model, ArtifactRequest(requires_grad=("w", "b")), "artifacts")
worker.open("artifacts")
for feeds in batches:
print(worker.train_step(feeds, lr=1e-3).loss)
worker.save_checkpoint("artifacts/checkpoint.100", {"step": 100})
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from onnxq.errors import TrainingError, nearest
from onnxq.qat._overlay_store import find_overlay
from onnxq.qat._worker_process import Runtime, WorkerProcess
from onnxq.qat.protocol import Message

__all__ = ["ArtifactRequest", "SessionInfo", "Step", "Worker"]

Array = NDArray[Any]
Feeds = Mapping[str, Array]
Property = int | float | str
T = TypeVar("T", bound="Worker")

_TRAINING, _EVAL, _OPTIMIZER = "training_model.onnx", "eval_model.onnx", "optimizer_model.onnx"
_CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class ArtifactRequest:
    """What training artifacts are to be made of a model whose first output is the loss.

    Attributes:
        requires_grad: Initializers that are trained.
        frozen: Initializers that are kept in the checkpoint and can be set, but are not trained (masks, running
            statistics, which BatchNormalization in training mode updates itself). All others are constants.
        outputs: Tensors that the training and the eval model return after the loss; graph outputs or others.
        optimizer: AdamW or SGD.
        weight_decay: Of AdamW, for all trained parameters.
        clip_grad_norm: Largest norm of all gradients together; None does not clip.
        betas: Of AdamW.
        epsilon: Of AdamW.
    """

    requires_grad: tuple[str, ...]
    frozen: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 0.0
    clip_grad_norm: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        if self.optimizer not in ("adamw", "sgd"):
            raise TrainingError(f"there is no optimizer {self.optimizer!r}; use 'adamw' or 'sgd'")
        if not self.requires_grad:
            raise TrainingError("no parameter is to be trained; name at least one initializer in requires_grad")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise TrainingError(f"weight_decay is {self.weight_decay}; give 0 or a positive number")
        if self.optimizer == "sgd" and self.weight_decay:
            raise TrainingError("the training runtime's SGD has no weight decay; use 'adamw' or weight_decay=0")
        if self.clip_grad_norm is not None and not (math.isfinite(self.clip_grad_norm) and self.clip_grad_norm > 0):
            raise TrainingError(f"clip_grad_norm is {self.clip_grad_norm}; give a positive number or None")


@dataclass(frozen=True)
class SessionInfo:
    """What was opened.

    Attributes:
        inputs: Names of the inputs, data and labels.
        outputs: Names of the outputs, the loss first.
        trained: Names of the parameters with gradients, in the order of the checkpoint.
        frozen: Names of the other parameters.
        properties: What was saved with the checkpoint.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    trained: tuple[str, ...]
    frozen: tuple[str, ...]
    properties: Mapping[str, Property]


@dataclass(frozen=True)
class Step:
    """Result of one batch.

    Attributes:
        loss: The loss.
        outputs: The other outputs that were asked for.
    """

    loss: float
    outputs: Mapping[str, Array] = field(default_factory=dict)


class Worker:
    """The training worker. A context manager; not for several threads at once.

    It never outlives this process. When it dies, or an exception such as Ctrl-C interrupts a request, the next
    call says so. A request that it refuses raises and leaves it as it was.

    Args:
        overlay: The training runtime; found in the cache by default.
        log: File for what the training runtime prints; by default a temporary one, shown when the worker dies.
        timeout: Seconds after which a request is given up.

    Raises:
        TrainingError: If there is no training runtime, or the worker does not start.
    """

    def __init__(
        self, overlay: Runtime | None = None, *, log: str | os.PathLike[str] | None = None, timeout: float = 3600.0
    ) -> None:
        path = None if log is None else Path(log)
        self._process = WorkerProcess(overlay or find_overlay(), log=path, timeout=timeout)
        self._info: SessionInfo | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Number of the worker's process."""
        return self._process.pid

    @property
    def version(self) -> str:
        """Version of the training runtime."""
        return str(self._process.hello.fields["version"])

    @property
    def log(self) -> Path:
        """What the training runtime printed."""
        return self._process.log

    @property
    def closed(self) -> bool:
        """Whether the worker was closed or has died."""
        return self._process.closed

    @property
    def info(self) -> SessionInfo:
        """The session that is open.

        Raises:
            TrainingError: If none is.
        """
        if self._info is None:
            raise TrainingError("no training session is open; call open() first")
        return self._info

    def close(self) -> None:
        """End the worker."""
        self._process.close()

    # ---- models --------------------------------------------------------------------------------

    def generate(self, model: bytes, request: ArtifactRequest, directory: str | os.PathLike[str]) -> tuple[Path, ...]:
        """Write training_model.onnx, eval_model.onnx, optimizer_model.onnx and checkpoint.

        Args:
            model: A serialized model up to opset 21; its first output is the loss, a scalar.
            request: What is trained, and how.
            directory: Made if it does not exist; the files replace older ones when all of them are complete.

        Returns:
            The files.

        Raises:
            TrainingError: If a name is not in the model, or an operator has no gradient.
        """
        folder = Path(directory).absolute()
        fields = {"request": asdict(request), "directory": str(folder)}
        answer = self._process.ask(Message("generate", fields, {"model": _bytes(model)}))
        return tuple(folder / name for name in answer.fields["files"])

    def gradient(self, model: bytes, names: Sequence[str], feeds: Feeds, seed_output: str = "loss") -> dict[str, Array]:
        """Derive an output by initializers or inputs; see `value_and_gradient`."""
        return self.value_and_gradient(model, names, feeds, seed_output)[1]

    def value_and_gradient(
        self, model: bytes, names: Sequence[str], feeds: Feeds, seed_output: str = "loss", outputs: Sequence[str] = ()
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Run a model and derive an output.

        Args:
            model: A serialized model up to opset 21.
            names: Initializers or inputs to derive by, float32. A feed of that name replaces an initializer's value.
            feeds: The inputs.
            seed_output: The output that is derived, a scalar.
            outputs: Other outputs to return.

        Returns:
            The outputs by name, and the gradients by the names given.

        Raises:
            TrainingError: If a name is not in the model, or an operator has no gradient.
        """
        arrays = {"model": _bytes(model), **{f"feed:{name}": np.asarray(value) for name, value in feeds.items()}}
        fields = {"names": list(names), "output": seed_output, "outputs": list(outputs)}
        found = self._process.ask(Message("gradient", fields, arrays)).arrays
        values = {name: found[f"output:{name}"] for name in (seed_output, *outputs)}
        return values, {name: found[name] for name in names}

    # ---- session -------------------------------------------------------------------------------

    def open(
        self,
        directory: str | os.PathLike[str],
        checkpoint: str | os.PathLike[str] | None = None,
        threads: int = 1,
    ) -> SessionInfo:
        """Open artifacts for training; a session that is open is closed.

        Args:
            directory: What `generate` wrote into.
            checkpoint: A saved checkpoint; by default the one of the artifacts.
            threads: Of the training runtime; with one, results are the same every time.

        Raises:
            TrainingError: If a file is missing or does not fit.
        """
        folder = Path(directory).absolute()
        saved = folder / _CHECKPOINT if checkpoint is None else Path(checkpoint).absolute()
        for path in (folder / _TRAINING, folder / _EVAL, folder / _OPTIMIZER, saved):
            if not path.is_file():
                raise TrainingError(f"there is no file {path}; the folder is not one of training artifacts")
        self._info = None
        fields = {"directory": str(folder), "checkpoint": str(saved), "threads": threads}
        got = self._process.ask(Message("open", fields)).fields
        names = {key: tuple(got[key]) for key in ("inputs", "outputs", "trained", "frozen")}
        self._info = SessionInfo(**names, properties=dict(got["properties"]))
        return self._info

    def train_step(self, feeds: Feeds, lr: float, outputs: Sequence[str] | None = ()) -> Step:
        """Forward, backward and optimizer step of one batch, with gradients of this batch only.

        Args:
            feeds: The inputs.
            lr: The learning rate of this step. It is nowhere kept.
            outputs: Outputs to return besides the loss; None for all.

        Raises:
            TrainingError: If the feeds do not fit.
        """
        return self.train_steps([feeds], [lr], outputs)[0]

    def train_steps(
        self, batches: Sequence[Feeds], lrs: Sequence[float], outputs: Sequence[str] | None = ()
    ) -> list[Step]:
        """Several steps in one message; equal to `train_step` for each of them.

        Raises:
            TrainingError: If the feeds of a batch do not fit; the steps before it were made.
        """
        if len(batches) != len(lrs):
            raise TrainingError(f"there are {len(batches)} batches and {len(lrs)} learning rates")
        fields = {"rates": [float(lr) for lr in lrs], "outputs": _names(outputs)}
        return self._steps(Message("train_steps", fields, self._stacked(batches)), len(batches))

    def accumulate(self, feeds: Feeds, outputs: Sequence[str] | None = ()) -> Step:
        """Forward and backward of one batch; the gradients are added up until `reset_gradients`."""
        return self._steps(Message("accumulate", {"outputs": _names(outputs)}, self._stacked([feeds])), 1)[0]

    def optimizer_step(self, lr: float) -> None:
        """Step with the gradients as they are; they are kept until `reset_gradients`."""
        self._process.ask(Message("optimizer_step", {"rate": float(lr)}))

    def reset_gradients(self) -> None:
        """Let the next batch start its gradients anew; until then they can still be read."""
        self._process.ask(Message("reset_gradients"))

    def evaluate(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run the eval model.

        Args:
            feeds: The inputs, labels too.
            outputs: Outputs to return besides the loss; None for all.

        Returns:
            The outputs by name; the loss under its own name.
        """
        return self.evaluate_many([feeds], outputs)[0]

    def evaluate_many(self, batches: Sequence[Feeds], outputs: Sequence[str] | None = None) -> list[dict[str, Array]]:
        """Run the eval model on several batches in one message."""
        request = Message("evaluate", {"outputs": _names(outputs)}, self._stacked(batches))
        return _by_batch(self._process.ask(request).arrays, len(batches))

    # ---- state ---------------------------------------------------------------------------------

    def gradients(self, names: Iterable[str] | None = None) -> dict[str, Array]:
        """The accumulated gradients; by default of all trained parameters. Copies."""
        return dict(self._process.ask(Message("gradients", {"names": _names(names)})).arrays)

    def set_gradients(self, gradients: Mapping[str, Array]) -> None:
        """Overwrite gradients, for the next `optimizer_step`; float32 of the parameters' shapes."""
        self._process.ask(Message("set_gradients", {}, gradients))

    def parameters(self, names: Iterable[str] | None = None) -> dict[str, Array]:
        """The parameters; by default all, trained and frozen. Copies."""
        return dict(self._process.ask(Message("parameters", {"names": _names(names)})).arrays)

    def set_parameters(self, parameters: Mapping[str, Array]) -> None:
        """Overwrite parameters, trained or frozen; all of those given or none."""
        self._process.ask(Message("set_parameters", {}, parameters))

    def save_checkpoint(self, path: str | os.PathLike[str], properties: Mapping[str, Property] | None = None) -> Path:
        """Write parameters, the optimizer's state and properties, at once or not at all.

        Gradients and the learning rate are not part of it: save between steps, and keep what the schedule needs
        in the properties. Properties that were saved before stay unless they are given again.

        Args:
            path: The file; its folder has to exist.
            properties: Numbers and texts, returned by `open` as they are.

        Raises:
            TrainingError: If a property is something else, or the file cannot be written.
        """
        target = Path(path).absolute()
        if not target.parent.is_dir():
            raise TrainingError(f"there is no folder {target.parent} to write the checkpoint {target.name} into")
        checked = {name: _property(name, value) for name, value in (properties or {}).items()}
        self._process.ask(Message("save_checkpoint", {"path": str(target), "properties": checked}))
        return target

    # ---- messages ------------------------------------------------------------------------------

    def _steps(self, request: Message, count: int) -> list[Step]:
        loss = self.info.outputs[0]
        found = _by_batch(self._process.ask(request).arrays, count)
        return [Step(float(values.pop(loss).reshape(())), values) for values in found]

    def _stacked(self, batches: Sequence[Feeds]) -> dict[str, Array]:
        expected = self.info.inputs
        for feeds in batches:
            if set(feeds) != set(expected):
                raise TrainingError(_misfit(feeds, expected))
        return {f"{i}.{name}": np.asarray(feeds[name]) for i, feeds in enumerate(batches) for name in expected}


def _misfit(feeds: Feeds, expected: Sequence[str]) -> str:
    for name in feeds:
        if name not in expected:
            return f"the training model has no input {name!r}{nearest(name, expected)}"
    missing = ", ".join(repr(name) for name in expected if name not in feeds)
    return f"the training model needs {missing} too; the feeds hold {', '.join(map(repr, feeds)) or 'nothing'}"


def _by_batch(arrays: Mapping[str, Array], count: int) -> list[dict[str, Array]]:
    found: list[dict[str, Array]] = [{} for _ in range(count)]
    for key, array in arrays.items():
        index, _, name = key.partition(".")
        found[int(index)][name] = array
    return found


def _names(names: Iterable[str] | None) -> list[str] | None:
    return None if names is None else list(names)


def _bytes(model: bytes) -> Array:
    return np.frombuffer(model, np.uint8)


def _property(name: str, value: object) -> Property:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TrainingError(f"property {name!r} is of {type(value).__name__}; a checkpoint holds int, float and str")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise TrainingError(f"property {name!r} is {value}, more than 64 bits; save it as text")
    if isinstance(value, float) and not math.isfinite(value):
        raise TrainingError(f"property {name!r} is {value}; save it as text")
    return value
