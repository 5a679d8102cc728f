"""Reading a node as ``y = scale * x + shift`` with one scale and one shift per channel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.graph import GraphModel, Node, Tensor
from onnxq.passes._linear import Linear, Vector, kind, why_not_constant

AFFINE_OPS = ("BatchNormalization", "Mul", "Add", "Sub", "Div")


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """``y = scale * x + shift`` per channel.

    Attributes:
        scale: Shape (C,).
        shift: Shape (C,).
    """

    scale: Vector
    shift: Vector

    @staticmethod
    def identity(channels: int) -> Affine:
        """The map that changes nothing."""
        return Affine(np.ones(channels), np.zeros(channels))

    def then(self, after: Affine) -> Affine:
        """This map followed by `after`."""
        return Affine(self.scale * after.scale, self.shift * after.scale + after.shift)


def read_affine(graph: GraphModel, node: Node, source: Tensor, linear: Linear) -> Affine | str | None:
    """What `node` does to `source`, the output of `linear` or of an affine map behind it.

    Returns:
        The map; or why it cannot be merged; or None where `node` is another kind of operation.
    """
    if kind(node) == "BatchNormalization":
        return _batch_normalization(graph, node, linear)
    if kind(node) not in AFFINE_OPS or len(node.inputs) != 2:
        return None
    first = node.inputs[0] is source
    other = node.inputs[1 if first else 0]
    if not graph.is_constant(other) or (node.op == "Div" and not first):
        return None
    if (reason := why_not_constant(graph, other, "constant")) is not None:
        return reason
    values = _per_channel(np.asarray(graph.value(other)), linear)
    if values is None:
        return f"its constant {other.name!r} of shape {tuple(graph.value(other).shape)} is not one number per channel"
    return _arithmetic(node.op, values, source_first=first)


def _arithmetic(op: str, values: Vector, *, source_first: bool) -> Affine | str:
    ones, zeros = np.ones_like(values), np.zeros_like(values)
    if op == "Mul":
        return Affine(values, zeros)
    if op == "Add":
        return Affine(ones, values)
    if op == "Sub":
        return Affine(ones, -values) if source_first else Affine(-ones, values)
    return Affine(1.0 / values, zeros) if values.all() else "it divides by zero"


def _per_channel(values: NDArray[np.floating], linear: Linear) -> Vector | None:
    """`values` as shape (C,), or None if broadcasting them is anything but one number per channel."""
    channels, axis = linear.layout.out_channels, values.ndim - linear.from_right
    if values.size == 1 and values.ndim <= (linear.rank or 1):
        return np.full(channels, values.reshape(()), np.float64)
    if values.ndim > (linear.rank or 1) or axis < 0:
        return None
    plain = values.size == values.shape[axis] == channels
    return values.reshape(-1).astype(np.float64) if plain else None


def _batch_normalization(graph: GraphModel, node: Node, linear: Linear) -> Affine | str:
    """``(x - mean) / sqrt(var + epsilon) * gamma + beta``, in float64."""
    if node.attrs.get("training_mode", 0):
        return "it is in training mode: its statistics depend on the batch; export the model in evaluation mode"
    named = [o.name for o in node.outputs if o.name]
    if len(named) != 1:
        return f"it has {len(named)} outputs, so it is in training mode; export the model in evaluation mode"
    if linear.rank is None:
        return "the rank of its input is unknown; run InferShapes first"
    if linear.rank - linear.from_right != 1:
        return f"its channels are axis 1 of {linear.rank} axes, those of {linear.node.op} are the last"
    channels, vectors = linear.layout.out_channels, []
    for tensor, role in zip(node.inputs[1:5], ("scale", "bias", "mean", "variance"), strict=True):
        if (reason := why_not_constant(graph, tensor, role)) is not None:
            return reason
        values = np.asarray(graph.value(tensor), np.float64)
        if values.shape != (channels,):
            return f"its {role} {tensor.name!r} has shape {values.shape}, expected ({channels},)"
        vectors.append(values)
    gamma, beta, mean, variance = vectors
    spread = variance + float(node.attrs.get("epsilon", 1e-5))
    if not (spread > 0).all():
        return "its variance plus epsilon is not positive in every channel"
    scale = gamma / np.sqrt(spread)
    return Affine(scale, beta - mean * scale)
