"""What the worker answers: one method for each kind of request."""

from __future__ import annotations

import os
import platform
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import TrainingError, nearest
from onnxq.qat import _worker_runtime as runtime
from onnxq.qat.protocol import Message

Arrays = Mapping[str, NDArray[Any]]
DONE = Message("done")
_EXACT = "#exact"
_IN_ALL = "."


@dataclass
class _Session:
    """An opened training session."""

    state: Any
    module: Any
    optimizer: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    trained: tuple[str, ...]


class Service:
    """Holds at most one training session."""

    def __init__(self) -> None:
        self._session: _Session | None = None

    def hello(self) -> Message:
        """The first message, before any request."""
        return Message("hello", {"version": runtime.VERSION, "python": platform.python_version(), "pid": os.getpid()})

    # ---- models --------------------------------------------------------------------------------

    def do_generate(self, request: Message) -> Message:
        """Write training artifacts."""
        from onnxq.qat import _worker_artifacts as artifacts

        model = request.arrays["model"].tobytes()
        names = artifacts.generate(model, request.fields["request"], Path(request.fields["directory"]))
        return Message("done", {"files": names})

    def do_gradient(self, request: Message) -> Message:
        """Derive a graph."""
        from onnxq.qat import _worker_artifacts as artifacts

        arrays = dict(request.arrays)
        model = arrays.pop("model").tobytes()
        feeds = {name.removeprefix("feed:"): array for name, array in arrays.items()}
        fields = request.fields
        found = artifacts.gradient(model, fields["names"], feeds, fields["output"], fields["outputs"])
        return Message("done", {}, found)

    # ---- session -------------------------------------------------------------------------------

    def do_open(self, request: Message) -> Message:
        """Open artifacts; a session that is open is closed."""
        self._session = None
        folder, checkpoint = Path(request.fields["directory"]), Path(request.fields["checkpoint"])
        api = runtime.api()
        options = runtime.session_options(request.fields["threads"])
        state = api.CheckpointState.load_checkpoint(str(checkpoint))
        module = api.Module(
            str(folder / "training_model.onnx"), state, str(folder / "eval_model.onnx"), session_options=options
        )
        optimizer = api.Optimizer(str(folder / "optimizer_model.onnx"), module)
        module.train()
        trained = tuple(name for name, parameter in state.parameters if parameter.requires_grad)
        frozen = [name for name, parameter in state.parameters if not parameter.requires_grad]
        session = _Session(state, module, optimizer, tuple(module.input_names()), tuple(module.output_names()), trained)
        self._session = session
        fields = {"inputs": session.inputs, "outputs": session.outputs, "trained": trained, "frozen": frozen}
        return Message("done", {**fields, "properties": _properties(state)})

    def do_train_steps(self, request: Message) -> Message:
        """Forward, backward and a step of the optimizer for each of several batches."""
        session = self._opened()
        answer: dict[str, NDArray[Any]] = {}
        for index, (feeds, rate) in enumerate(zip(_unstacked(request.arrays), request.fields["rates"], strict=True)):
            session.module.lazy_reset_grad()
            _keep(answer, index, _run(session, feeds), request.fields["outputs"], session.outputs)
            session.optimizer.set_learning_rate(rate)
            session.optimizer.step()
        session.module.lazy_reset_grad()
        return Message("done", {}, answer)

    def do_accumulate(self, request: Message) -> Message:
        """Forward and backward; the gradients are added to what there is."""
        session = self._opened()
        answer: dict[str, NDArray[Any]] = {}
        for index, feeds in enumerate(_unstacked(request.arrays)):
            _keep(answer, index, _run(session, feeds), request.fields["outputs"], session.outputs)
        return Message("done", {}, answer)

    def do_optimizer_step(self, request: Message) -> Message:
        """Step with the gradients there are; they are kept until they are reset."""
        session = self._opened()
        session.optimizer.set_learning_rate(request.fields["rate"])
        session.optimizer.step()
        return DONE

    def do_reset_gradients(self, request: Message) -> Message:
        """Forget the gradients before the next batch."""
        self._opened().module.lazy_reset_grad()
        return DONE

    def do_evaluate(self, request: Message) -> Message:
        """Run the eval model."""
        session = self._opened()
        session.module.eval()
        answer: dict[str, NDArray[Any]] = {}
        try:
            for index, feeds in enumerate(_unstacked(request.arrays)):
                _keep(answer, index, _run(session, feeds), request.fields["outputs"], session.outputs)
        finally:
            session.module.train()
        return Message("done", {}, answer)

    # ---- state ---------------------------------------------------------------------------------

    def do_gradients(self, request: Message) -> Message:
        """Send the accumulated gradients."""
        session = self._opened()
        names = request.fields["names"]
        found = {name: _gradient(session, name) for name in (session.trained if names is None else names)}
        return Message("done", {}, found)

    def do_set_gradients(self, request: Message) -> Message:
        """Overwrite the accumulated gradients."""
        session = self._opened()
        views = [(_gradient(session, name), value, name) for name, value in request.arrays.items()]
        for view, value, name in views:
            _check_same("gradient", name, view, value)
        for view, value, _ in views:
            np.copyto(view, value)
        return DONE

    def do_parameters(self, request: Message) -> Message:
        """Send parameters, trained and frozen."""
        session = self._opened()
        names = request.fields["names"]
        wanted = [name for name, _ in session.state.parameters] if names is None else names
        return Message("done", {}, {name: _parameter(session, name) for name in wanted})

    def do_set_parameters(self, request: Message) -> Message:
        """Overwrite parameters; all or none."""
        session = self._opened()
        for name, value in request.arrays.items():
            _check_same("parameter", name, _parameter(session, name), value)
        for name, value in request.arrays.items():
            np.copyto(_parameter(session, name), value)
        return DONE

    def do_save_checkpoint(self, request: Message) -> Message:
        """Write the checkpoint, with the optimizer's state, at once or not at all."""
        session = self._opened()
        path = Path(request.fields["path"])
        for name, value in _exact(request.fields["properties"]).items():
            session.state.properties[name] = value
        temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
        try:
            runtime.api().CheckpointState.save_checkpoint(session.state, str(temporary), include_optimizer_state=True)
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(temporary, path)  # noqa: PTH105 - overwrites on every system
        finally:
            temporary.unlink(missing_ok=True)
        return DONE

    def _opened(self) -> _Session:
        if self._session is None:
            raise TrainingError("no training session is open; open artifacts first")
        return self._session


def _run(session: _Session, feeds: Arrays) -> tuple[NDArray[Any], ...]:
    results = session.module(*(feeds[name] for name in session.inputs))
    return results if isinstance(results, tuple) else (results,)


def _unstacked(arrays: Arrays) -> Iterable[dict[str, NDArray[Any]]]:
    """The feeds of each batch; the arrays are named ``<batch>.<input>``."""
    feeds: list[dict[str, NDArray[Any]]] = []
    for key, array in arrays.items():
        index, _, name = key.partition(_IN_ALL)
        while len(feeds) <= int(index):
            feeds.append({})
        feeds[int(index)][name] = array
    return feeds


def _keep(
    answer: dict[str, NDArray[Any]],
    index: int,
    values: tuple[NDArray[Any], ...],
    wanted: list[str] | None,
    names: tuple[str, ...],
) -> None:
    """Put results into the answer: the loss, which comes first, and the outputs that are wanted (None: all)."""
    for position, (name, value) in enumerate(zip(names, values, strict=True)):
        if position == 0 or wanted is None or name in wanted:
            answer[f"{index}{_IN_ALL}{name}"] = np.array(value)


def _parameter(session: _Session, name: str) -> NDArray[Any]:
    """A parameter's values, which can be written."""
    _check_known(session, name)
    value: NDArray[Any] = session.state.parameters[name].data
    return value


def _gradient(session: _Session, name: str) -> NDArray[Any]:
    """A parameter's gradient, which can be written."""
    _check_known(session, name)
    value = session.state.parameters[name].grad if name in session.trained else None
    if value is None:
        raise TrainingError(f"parameter {name!r} is not trained and has no gradient")
    gradient: NDArray[Any] = value
    return gradient


def _check_known(session: _Session, name: str) -> None:
    if name not in session.state.parameters:
        known = [known for known, _ in session.state.parameters]
        raise TrainingError(f"the checkpoint has no parameter {name!r}{nearest(name, known)}")


def _check_same(what: str, name: str, view: NDArray[Any], value: NDArray[Any]) -> None:
    if view.shape != value.shape or view.dtype != value.dtype:
        raise TrainingError(
            f"the {what} {name!r} is {view.dtype} {list(view.shape)}; found {value.dtype} {list(value.shape)}"
        )


def _exact(properties: Mapping[str, int | float | str]) -> dict[str, int | float | str]:
    """Properties as a checkpoint holds them: its floats have 32 bits, so longer ones are written in words too."""
    written: dict[str, int | float | str] = {}
    for name, value in properties.items():
        written[name] = value
        if isinstance(value, float):
            written[name + _EXACT] = value.hex()
    return written


def _properties(state: Any) -> dict[str, int | float | str]:  # noqa: ANN401 - of a package without types
    found = dict(state.properties)
    for name, value in found.items():
        words = found.get(name + _EXACT)
        if isinstance(value, float) and isinstance(words, str):
            exact = float.fromhex(words)
            # Another program may have changed the number and not the words.
            with np.errstate(over="ignore"):
                if np.float32(exact) == np.float32(value):
                    found[name] = exact
    return {name: value for name, value in found.items() if not name.endswith(_EXACT)}
