"""The layers with weights, seen from their channels: which axis of a weight is what, and how to scale it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.graph import GraphModel, Node, Tensor

LINEAR_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

Vector = NDArray[np.float64]
"""One number per channel, shape (C,)."""


@dataclass(frozen=True, slots=True)
class WeightLayout:
    """How a weight of `shape` splits into groups, output channels, input channels and kernel taps.

    Every weight is a view of shape (groups, a, b, taps). With `out_first`, a counts the outputs of
    a group and b its inputs: Conv ``(Cout, Cin/g, *kernel)``, Gemm with transB ``(N, K)``. Without
    it, a counts the inputs: ConvTranspose ``(Cin, Cout/g, *kernel)``, MatMul and plain Gemm ``(K, N)``.

    Attributes:
        shape: Shape of the weight.
        groups: Number of groups.
        out_first: Whether output channels come before input channels.
    """

    shape: tuple[int, ...]
    groups: int
    out_first: bool

    @property
    def view(self) -> tuple[int, int, int, int]:
        """``(groups, a, b, taps)``."""
        return (self.groups, self.shape[0] // self.groups, self.shape[1], math.prod(self.shape[2:]))

    @property
    def out_channels(self) -> int:
        """Number of output channels, over all groups."""
        return self.groups * self.view[1 if self.out_first else 2]

    @property
    def in_channels(self) -> int:
        """Number of input channels, over all groups."""
        return self.groups * self.view[2 if self.out_first else 1]

    def per_output(self, factors: Vector) -> Vector:
        """`factors`, shape (out_channels,), so that they broadcast against `view`."""
        return factors.reshape((self.groups, -1, 1, 1) if self.out_first else (self.groups, 1, -1, 1))

    def per_input(self, factors: Vector) -> Vector:
        """`factors`, shape (in_channels,), so that they broadcast against `view`."""
        return factors.reshape((self.groups, 1, -1, 1) if self.out_first else (self.groups, -1, 1, 1))

    def scaled(
        self, weight: NDArray[np.float32], *, outputs: Vector | None = None, inputs: Vector | None = None
    ) -> NDArray[np.float32]:
        """`weight` times one factor per output and one per input channel, rounded to float32 once.

        An overflow gives infinity.
        """
        factor: Vector = np.ones((1, 1, 1, 1))
        if outputs is not None:
            factor = factor * self.per_output(outputs)
        if inputs is not None:
            factor = factor * self.per_input(inputs)
        result = np.empty(self.view, np.float32)
        with np.errstate(over="ignore"):  # computed in float64 piece by piece: no float64 copy of the weight
            np.multiply(weight.reshape(self.view), factor, out=result, dtype=np.float64, casting="same_kind")
        return result.reshape(self.shape)

    def absmax(self, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """Largest ``|weight|`` over the taps, shape (groups, a, b)."""
        view = weight.reshape(self.view)
        largest: NDArray[np.float32] = np.maximum(view.max(axis=3, initial=0.0), -view.min(axis=3, initial=0.0))
        return largest


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """A layer whose weight and bias are float32 constants.

    Attributes:
        node: The Conv, ConvTranspose, Gemm or MatMul.
        layout: How the weight is laid out.
        bias: What is added per output channel, float64 of shape (out_channels,), or None. The beta of
            a Gemm is already in it.
        rank: Rank of the output, or None where it is unknown (MatMul only).
    """

    node: Node
    layout: WeightLayout
    bias: Vector | None
    rank: int | None

    @property
    def weight(self) -> Tensor:
        """The weight tensor."""
        return self.node.inputs[1]

    @property
    def from_right(self) -> int:
        """Position of the output's channel axis, counted from the right: 1 is the last."""
        return 1 if self.rank is None or self.node.op == "MatMul" else self.rank - 1


def kind(node: Node) -> str:
    """The operator type of a standard operator; ``domain::type`` of any other, which may share a name with it."""
    return str(node.op) if node.domain in (None, "", "ai.onnx") else f"{node.domain}::{node.op}"


def describe(node: Node) -> str:
    """``Conv 'conv1'``."""
    return f"{node.op} {label(node)!r}"


def label(node: Node) -> str:
    """The node's name, or that of its first output where it has none."""
    return str(node.name or (node.outputs[0].name if node.outputs else ""))


def optional_input(node: Node, index: int) -> Tensor | None:
    """Input `index` of `node`, or None where it is left out."""
    if index >= len(node.inputs) or not node.inputs[index].name:
        return None
    return node.inputs[index]


def why_not_constant(graph: GraphModel, tensor: Tensor, role: str) -> str | None:
    """Why `tensor`, the `role` of a layer, cannot be changed; None if it is a float32 constant."""
    if not graph.is_constant(tensor):
        maker = graph.producer(tensor)
        origin = f"it comes from {describe(maker)}" if maker is not None else "it is a graph input"
        return f"its {role} {tensor.name!r} is not a constant: {origin}"
    if not graph.is_float32(tensor):
        return f"its {role} {tensor.name!r} is {graph.dtype(tensor)}; only float32 is handled"
    return None


def why_shared(graph: GraphModel, tensor: Tensor) -> str | None:
    """Why the values of `tensor` must stay as they are; None if exactly one node reads them."""
    if graph.is_output(tensor):
        return f"{tensor.name!r} is a graph output"
    if graph.read_by_subgraph(tensor):
        return f"{tensor.name!r} is read inside the body of an If, Loop or Scan"
    uses = graph.consumers(tensor)
    if len(uses) > 1:
        readers = ", ".join(dict.fromkeys(describe(u.node) for u in uses))
        return f"{tensor.name!r} is read {len(uses)} times, by {readers}"
    return None if uses else f"nothing reads {tensor.name!r}"


def read_linear(graph: GraphModel, node: Node) -> Linear | str:
    """The layer `node` is, or why it is not one whose weight can be changed."""
    if node.op == "MatMul" and graph.is_constant(node.inputs[0]):
        return "its first input is the constant one, so its channels are not on the last axis"
    bias = optional_input(node, 2)
    reason = why_not_constant(graph, node.inputs[1], "weight")
    if reason is None and bias is not None:
        reason = why_not_constant(graph, bias, "bias")
    if reason is not None:
        return reason
    shape = tuple(s for s in graph.shape(node.inputs[1]) or () if isinstance(s, int))  # without reading the weight
    layout = _layout(node, shape)
    if layout is None:
        return f"its weight has shape {shape}, which does not fit a {node.op}"
    values = None if bias is None else _bias_vector(node, graph.value(bias), layout.out_channels)
    if bias is not None and values is None:
        return f"its bias {bias.name!r} of shape {tuple(graph.value(bias).shape)} is not one number per output channel"
    return Linear(node, layout, values, graph.rank(node.inputs[0]) if node.op == "MatMul" else len(shape))


def _layout(node: Node, shape: tuple[int, ...]) -> WeightLayout | None:
    if node.op in ("Conv", "ConvTranspose"):
        groups = int(node.attrs.get("group", 1))
        fits = len(shape) >= 3 and groups > 0 and shape[0] % groups == 0
        return WeightLayout(shape, groups, out_first=node.op == "Conv") if fits else None
    if len(shape) != 2:
        return None
    return WeightLayout(shape, 1, out_first=node.op == "Gemm" and bool(node.attrs.get("transB", 0)))


def _bias_vector(node: Node, bias: NDArray[np.float32], channels: int) -> Vector | None:
    if node.op != "Gemm":
        return bias.astype(np.float64) if bias.shape == (channels,) else None
    if bias.ndim > 2 or bias.size not in (1, channels) or (bias.ndim and bias.shape[-1] != bias.size):
        return None  # (M, 1) and (M, N) differ from sample to sample
    beta = float(node.attrs.get("beta", 1.0))
    return np.broadcast_to(bias.astype(np.float64).reshape(-1) * beta, (channels,))


def write_weight(graph: GraphModel, linear: Linear, values: NDArray[np.float32], suffix: str) -> None:
    """Give `linear` the weight `values` as a constant of its own; the old one may be shared."""
    name = graph.unique_name(f"{linear.weight.name}_{suffix}")
    graph.set_input(linear.node, 1, graph.add_constant(name, values))


def write_bias(graph: GraphModel, linear: Linear, values: Vector, suffix: str) -> None:
    """Give a Conv, ConvTranspose or Gemm the bias `values`, shape (out_channels,), rounded to float32."""
    node, old = linear.node, optional_input(linear.node, 2)
    base = f"{label(node)}_bias" if old is None else f"{old.name}_{suffix}"
    graph.set_input(node, 2, graph.add_constant(graph.unique_name(base), values.astype(np.float32)))
    if node.op == "Gemm":
        node.attrs.pop("beta", None)
