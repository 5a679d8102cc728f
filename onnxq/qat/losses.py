"""Losses, written behind a network in operators whose gradients the training runtime has right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxq.errors import TrainingError, nearest
from onnxq.recipe import (
    AbsoluteError,
    BinaryCrossEntropy,
    CrossEntropy,
    Distillation,
    LossModel,
    SquaredError,
    TrainingConfig,
)

LOSS = "loss"
LABELS = "labels"
TEACHER = "teacher"


@dataclass(frozen=True, slots=True)
class LossInput:
    """What a loss reads besides what the network gives.

    Attributes:
        name: Name of the input.
        dtype: ``int64`` for class indexes, else ``float32``.
        teacher: It is an output of the float model, which nobody has to give.
    """

    name: str
    dtype: str
    teacher: bool = False


class _Writer:
    def __init__(self, model: onnx.ModelProto, output: onnx.ValueInfoProto) -> None:
        self.model = model
        self.output = output
        self.inputs: list[LossInput] = []
        self._count = 0

    def op(self, op: str, *inputs: str, result: str = "", **attrs: Any) -> str:  # noqa: ANN401 - make_node checks them
        self._count += 1
        name = f"{LOSS}/{op.lower()}_{self._count}"
        out = result or f"{name}_out"
        self.model.graph.node.append(helper.make_node(op, list(inputs), [out], name=name, **attrs))
        return out

    def number(self, value: float) -> str:
        self._count += 1
        name = f"{LOSS}/number_{self._count}"
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name

    def input(self, name: str, element: int, *, teacher: bool = False) -> str:
        classes = element == TensorProto.INT64
        known = self.output.type.tensor_type.shape
        dims: list[int | str | None] = [d.dim_param or d.dim_value or None for d in known.dim]
        if classes and len(dims) > 1:
            del dims[1]
        self.model.graph.input.append(helper.make_tensor_value_info(name, element, dims))
        self.inputs.append(LossInput(name, "int64" if classes else "float32", teacher))
        return name

    def mean(self, values: str) -> str:
        return self.op("ReduceMean", values, result=LOSS, keepdims=0)


def add_loss(model: onnx.ModelProto, config: TrainingConfig) -> tuple[LossInput, ...]:
    """Let a model's first output be the loss, and add the inputs that it needs.

    The network's outputs follow.

    Args:
        model: The network; it is changed.
        config: Which loss, and of which output.

    Returns:
        The inputs that were added.

    Raises:
        TrainingError: If the output does not exist or does not fit, or a loss model cannot be used.
    """
    outputs = {value.name: value for value in model.graph.output}
    taken = {t.name for t in (*model.graph.input, *model.graph.output, *model.graph.initializer)}
    for name in (LOSS, LABELS, TEACHER):
        if name in taken:
            raise TrainingError(f"the model has a tensor called {name!r}, a name that training needs; rename it")
    wanted = config.output or model.graph.output[0].name
    if wanted not in outputs:
        raise TrainingError(f"training.output: the model has no output {wanted!r}{nearest(wanted, outputs)}")
    writer = _Writer(model, outputs[wanted])
    loss = config.loss
    match loss:
        case CrossEntropy():
            _cross_entropy(writer, wanted, LOSS)
        case SquaredError():
            difference = writer.op("Sub", wanted, writer.input(LABELS, TensorProto.FLOAT))
            writer.mean(writer.op("Mul", difference, difference))
        case AbsoluteError():
            writer.mean(writer.op("Abs", writer.op("Sub", wanted, writer.input(LABELS, TensorProto.FLOAT))))
        case BinaryCrossEntropy():
            _binary(writer, wanted)
        case Distillation():
            _distillation(writer, wanted, loss)
        case LossModel():
            return _merge(model, loss)
    _put_first(model, helper.make_tensor_value_info(LOSS, TensorProto.FLOAT, []))
    return tuple(writer.inputs)


def _put_first(model: onnx.ModelProto, value: onnx.ValueInfoProto) -> None:
    rest = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in model.graph.output]
    del model.graph.output[:]
    model.graph.output.extend([value, *rest])


def _cross_entropy(writer: _Writer, logits: str, result: str) -> str:
    dims = writer.output.type.tensor_type.shape.dim
    if len(dims) < 2:
        raise TrainingError(
            f"training.loss: cross_entropy needs an output of shape [N, classes, ...]; {logits!r} has {len(dims)} "
            "dimensions; name another one in training.output, or use mse, l1 or bce"
        )
    return writer.op("SoftmaxCrossEntropyLoss", logits, writer.input(LABELS, TensorProto.INT64), result=result)


def _binary(writer: _Writer, logits: str) -> None:
    """``x / 2 + abs(x) / 2 + log(1 + exp(-abs(x))) - x * t``: never overflows, and its derivative at 0 is right."""
    target = writer.input(LABELS, TensorProto.FLOAT)
    size, half = writer.op("Abs", logits), writer.number(0.5)
    small = writer.op("Exp", writer.op("Neg", size))
    tail = writer.op("Log", writer.op("Add", small, writer.number(1.0)))
    head = writer.op("Mul", logits, writer.op("Sub", half, target))
    writer.mean(writer.op("Add", head, writer.op("Add", writer.op("Mul", size, half), tail)))


def _distillation(writer: _Writer, logits: str, loss: Distillation) -> None:
    """Cross entropy of the teacher's softened distribution and the student's, times the temperature squared.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2.
    """
    rank = len(writer.output.type.tensor_type.shape.dim)
    axis = 1 if rank > 1 else 0
    softer = writer.number(1.0 / loss.temperature)
    teacher = writer.input(TEACHER, TensorProto.FLOAT, teacher=True)
    wanted = writer.op("Softmax", writer.op("Mul", teacher, softer), axis=axis)
    found = writer.op("LogSoftmax", writer.op("Mul", logits, softer), axis=axis)
    classes = writer.output.type.tensor_type.shape.dim[axis].dim_value
    if not classes:
        raise TrainingError(f"training.loss: distillation needs to know how many classes {logits!r} has")
    scale = -(1 - loss.labels) * loss.temperature**2 * classes  # the mean is over the classes as well
    products = writer.op("Mul", wanted, found)
    if not loss.labels:
        writer.mean(writer.op("Mul", products, writer.number(scale)))
        return
    soft = writer.op("ReduceMean", products, keepdims=0)
    soft = writer.op("Mul", soft, writer.number(scale))
    hard = writer.op("Mul", _cross_entropy(writer, logits, ""), writer.number(loss.labels))
    writer.op("Add", soft, hard, result=LOSS)


def _merge(model: onnx.ModelProto, loss: LossModel) -> tuple[LossInput, ...]:
    """Put the operators of a loss model behind the network."""
    path = Path(loss.path)
    try:
        other = onnx.load(path)
    except Exception as err:
        raise TrainingError(f"training.loss: {path} cannot be read as an ONNX model: {err}") from err
    if not other.graph.output:
        raise TrainingError(f"training.loss: {path} has no output")
    for value in other.opset_import:
        mine = next((o.version for o in model.opset_import if o.domain == value.domain), None)
        if mine is not None and mine != value.version:
            raise TrainingError(
                f"training.loss: {path} has opset {value.version}, the network {mine}; convert it with "
                "onnx.version_converter"
            )
    outputs = {value.name for value in model.graph.output}
    inputs = {value.name for value in model.graph.input}
    constants = {t.name for t in other.graph.initializer}
    found: list[LossInput] = []
    for value in other.graph.input:
        if value.name in outputs | constants:
            continue
        if value.name in inputs:
            raise TrainingError(f"training.loss: {path} reads {value.name!r}, which is an input of the network")
        element = value.type.tensor_type.elem_type
        if element not in (TensorProto.INT64, TensorProto.FLOAT):
            raise TrainingError(f"training.loss: input {value.name!r} of {path} must be int64 or float32")
        model.graph.input.append(value)
        found.append(LossInput(value.name, "int64" if element == TensorProto.INT64 else "float32"))
    if not outputs & {v.name for v in other.graph.input}:
        names = ", ".join(sorted(outputs))
        raise TrainingError(f"training.loss: {path} reads no output of the network ({names})")
    _append(model, other, outputs | {f.name for f in found})
    _put_first(model, helper.make_tensor_value_info(LOSS, TensorProto.FLOAT, []))
    return tuple(found)


def _append(model: onnx.ModelProto, other: onnx.ModelProto, given: set[str]) -> None:
    names = {other.graph.output[0].name: LOSS, "": ""} | {name: name for name in given}

    def renamed(name: str) -> str:
        return names.setdefault(name, f"{LOSS}/{name}")

    for tensor in other.graph.initializer:
        copy = onnx.TensorProto.FromString(tensor.SerializeToString())
        copy.name = renamed(tensor.name)
        model.graph.initializer.append(copy)
    for number, node in enumerate(other.graph.node):
        copy_ = onnx.NodeProto.FromString(node.SerializeToString())
        copy_.name = f"{LOSS}/{node.name or node.op_type}_{number}"
        copy_.input[:] = [renamed(name) for name in node.input]
        copy_.output[:] = [renamed(name) for name in node.output]
        model.graph.node.append(copy_)
