"""What the worker does with models: training artifacts, and gradients of single graphs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxq.errors import TrainingError, nearest
from onnxq.qat import _worker_runtime as runtime

Arrays = dict[str, NDArray[Any]]
MODELS = ("training_model.onnx", "eval_model.onnx", "optimizer_model.onnx")
CHECKPOINT = "checkpoint"


def generate(model: bytes, request: Mapping[str, Any], directory: Path) -> list[str]:
    """Write the artifacts of a model whose first output is the loss; returns the names of the files.

    Raises:
        TrainingError: If the model or the request does not fit.
    """
    proto = _loaded(model)
    _check_parameters(proto, request)
    _outputs_become_values(proto, request["outputs"])
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".generating-", dir=directory) as scratch:
        runtime.artifacts().generate_artifacts(
            proto,
            requires_grad=list(request["requires_grad"]),
            frozen_params=list(request["frozen"]),
            loss=None,
            optimizer=_optimizer(request),
            artifact_directory=scratch,
            additional_output_names=list(request["outputs"]),
        )
        for name in MODELS:
            _mend(Path(scratch, name))
        names = [*MODELS, CHECKPOINT]
        for name in names:
            os.replace(Path(scratch, name), directory / name)  # noqa: PTH105 - overwrites on every system
    return names


def gradient(model: bytes, names: Sequence[str], feeds: Arrays, output: str, extra: Sequence[str]) -> Arrays:
    """Run a model and derive an output by initializers or inputs; see `Worker.gradient`.

    Raises:
        TrainingError: If a name is not one of the model, or an operator cannot be derived.
    """
    proto = _loaded(model)
    feeds = dict(feeds)
    _check_names("output", [output, *extra], [value.name for value in proto.graph.output])
    _parameters_become_inputs(proto, names, feeds)
    graph = onnx.load_from_string(runtime.gradient_graph(proto.SerializeToString(), list(names), output))
    graph.ir_version = min(graph.ir_version, runtime.NEWEST_IR)
    session = runtime.session(graph.SerializeToString(), 1)
    known = {value.name for value in session.get_inputs()}
    _check_names("input", list(feeds), known | {value.name for value in proto.graph.input})
    wanted = [f"{name}_grad" for name in names]
    found = {value.name for value in session.get_outputs()}
    if missing := [name for name, grad in zip(names, wanted, strict=True) if grad not in found]:
        raise TrainingError(f"{output!r} does not depend on {', '.join(map(repr, missing))} in a way that is derived")
    values = session.run([*wanted, output, *extra], {name: feeds[name] for name in feeds if name in known})
    keys = [*names, *(f"output:{name}" for name in [output, *extra])]
    return {key: np.asarray(value) for key, value in zip(keys, values, strict=True)}


def _loaded(model: bytes) -> onnx.ModelProto:
    proto = onnx.load_from_string(model)
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset > runtime.NEWEST_OPSET:
        raise TrainingError(
            f"the model is of opset {opset} and the training runtime knows {runtime.NEWEST_OPSET}; "
            f"export or convert it to opset {runtime.NEWEST_OPSET} or older"
        )
    proto.ir_version = min(proto.ir_version, runtime.NEWEST_IR)
    taken = {name for node in proto.graph.node for name in node.output}
    for node in proto.graph.node:
        # Its gradient is computed from its second output.
        if node.op_type == "SoftmaxCrossEntropyLoss" and (len(node.output) < 2 or not node.output[1]):
            name = f"{node.output[0]}.log_prob"
            while name in taken:
                name += "_"
            taken.add(name)
            node.output[:] = [node.output[0], name]
    return proto


def _check_parameters(proto: onnx.ModelProto, request: Mapping[str, Any]) -> None:
    trained, frozen = list(request["requires_grad"]), list(request["frozen"])
    if both := sorted(set(trained) & set(frozen)):
        raise TrainingError(f"{both[0]!r} cannot be trained and frozen; name it once")
    if not trained:
        raise TrainingError("no parameter is to be trained; name at least one initializer in requires_grad")
    _check_names("initializer", [*trained, *frozen], [tensor.name for tensor in proto.graph.initializer])
    if not proto.graph.output:
        raise TrainingError("the model has no output; the first one has to be the loss")


def _check_names(what: str, names: Sequence[str], known: Any) -> None:  # noqa: ANN401 - any iterable of names
    known = set(known)
    for name in names:
        if name not in known:
            raise TrainingError(f"the model has no {what} {name!r}{nearest(name, known)}")


def _outputs_become_values(proto: onnx.ModelProto, outputs: Sequence[str]) -> None:
    """Leave the loss as the only output; the generator makes the others again, and wants to know their types."""
    known = [*proto.graph.output, *proto.graph.value_info, *onnx.shape_inference.infer_shapes(proto).graph.value_info]
    values = {value.name: value for value in reversed(known)}
    _check_names("tensor of a known type", outputs, values)
    loss = proto.graph.output[0]
    if loss.name in outputs:
        raise TrainingError(f"{loss.name!r} is the loss, which is returned in any case; leave it out of outputs")
    listed = {value.name for value in proto.graph.value_info}
    proto.graph.value_info.extend(values[name] for name in outputs if name not in listed)
    del proto.graph.output[1:]


def _optimizer(request: Mapping[str, Any]) -> Any:  # noqa: ANN401 - of a package without types
    blocks = runtime.optimizers()
    norm = request["clip_grad_norm"]
    clip = None if norm is None else blocks.ClipGradNorm(float(norm))
    if request["optimizer"] == "sgd":
        return blocks.SGD(clip_grad=clip)
    betas = (float(request["betas"][0]), float(request["betas"][1]))
    decay, epsilon = float(request["weight_decay"]), float(request["epsilon"])
    return blocks.AdamW(betas=betas, eps=epsilon, weight_decay=decay, clip_grad=clip)


def _mend(path: Path) -> None:
    """Repair what the generator writes and its own runtime refuses."""
    proto = onnx.load(path)
    # The optimizer's graph gets the version of the installed onnx.
    proto.ir_version = min(proto.ir_version, runtime.NEWEST_IR)
    if path.name == "eval_model.onnx":
        # Outside of training, BatchNormalization has no outputs for its running statistics.
        for node in proto.graph.node:
            if node.op_type == "BatchNormalization":
                del node.output[1:]
    onnx.save(proto, path)


def _parameters_become_inputs(proto: onnx.ModelProto, names: Sequence[str], feeds: Arrays) -> None:
    """Make inputs of the named initializers, fed with their values unless others are given."""
    graph = proto.graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    inputs = {value.name for value in graph.input}
    _check_names("initializer or input", names, {*initializers, *inputs})
    for name in names:
        tensor = initializers.get(name)
        if tensor is None:
            continue
        feeds.setdefault(name, numpy_helper.to_array(tensor))
        graph.initializer.remove(tensor)
        if name not in inputs:
            graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
