"""What a model costs: multiplications with additions, other operations, and parameters, node by node."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from onnxq.graph import GraphModel, Node, Tensor

__all__ = ["ModelCost", "NodeCost", "model_cost"]

_FREE = frozenset(
    {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Dropout", "Constant", "Shape", "Cast"}
    | {"Concat", "Split", "Slice", "Gather", "Pad", "Expand", "Tile", "ConstantOfShape", "Size", "Range"}
)
"""Operators that compute nothing: they move elements."""


@dataclass(frozen=True, slots=True)
class NodeCost:
    """What a node costs.

    Attributes:
        node: Its name.
        op_type: Its operator type.
        macs: Multiplications with an addition each; None where a shape is not known.
        elementwise: Other operations, about one for each element of the result.
        parameters: Numbers of its constants; those that several nodes read count for the first of them.
        channels: Output channels, of a layer with a weight; else 0.
    """

    node: str
    op_type: str
    macs: int | None
    elementwise: int
    parameters: int
    channels: int = 0


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What a model costs for one sample.

    Attributes:
        nodes: One entry for each node.
        parameters: Numbers of all constants of floats.
    """

    nodes: tuple[NodeCost, ...]
    parameters: int

    @property
    def macs(self) -> int:
        """Multiplications with an addition each."""
        return sum(n.macs or 0 for n in self.nodes)

    @property
    def elementwise(self) -> int:
        """Other operations."""
        return sum(n.elementwise for n in self.nodes)

    @property
    def flops(self) -> int:
        """Operations: two for each multiplication with an addition, and the others."""
        return 2 * self.macs + self.elementwise

    @property
    def unknown(self) -> tuple[str, ...]:
        """Names of layers whose cost is not known, since a shape is not."""
        return tuple(n.node for n in self.nodes if n.macs is None)

    def to_dict(self) -> dict[str, object]:
        """Content for JSON."""
        return {
            "parameters": self.parameters, "macs": self.macs, "elementwise": self.elementwise, "flops": self.flops,
            "unknown": list(self.unknown),
        }  # fmt: skip


def model_cost(graph: GraphModel, *, sizes: Mapping[str, int] | None = None) -> ModelCost:
    """Count what a model costs.

    Args:
        graph: With lifted constants and inferred shapes.
        sizes: Sizes of symbolic dimensions; 1 for all others, and for those without a name.
    """
    counter = _Counter(graph, dict(sizes or {}))
    nodes = tuple(counter.node(node) for node in graph.nodes())
    return ModelCost(nodes, sum(counter.seen.values()))


class _Counter:
    def __init__(self, graph: GraphModel, sizes: Mapping[str, int]) -> None:
        self._graph = graph
        self._sizes = sizes
        self.seen: dict[int, int] = {}

    def dims(self, tensor: Tensor) -> tuple[int, ...] | None:
        """The shape with numbers only; None if the rank is not known."""
        shape = self._graph.shape(tensor)
        if shape is None:
            return None
        return tuple(d if isinstance(d, int) else self._sizes.get(d or "", 1) for d in shape)

    def node(self, node: Node) -> NodeCost:
        name = str(node.name or node.outputs[0].name)
        count = _LAYERS.get(str(node.op)) if node.domain in (None, "", "ai.onnx") else None
        outputs = [d for t in node.outputs if t.name and (d := self.dims(t)) is not None]
        result = math.prod(outputs[0]) if outputs else 0
        macs: int | None = 0
        extra, channels = (0 if node.op in _FREE else result), 0
        if count is not None:
            inputs = [self.dims(t) if t.name else None for t in node.inputs]
            found = count(node, inputs, outputs[0] if outputs else None)
            macs, extra = found, result if len(node.inputs) > 2 and node.inputs[2].name else 0
            channels = _channels(node, inputs)
        return NodeCost(name, str(node.op), macs, extra, self._parameters(node), channels)

    def _parameters(self, node: Node) -> int:
        total = 0
        for tensor in node.inputs:
            dtype = self._graph.dtype(tensor) if tensor.name and self._graph.is_constant(tensor) else None
            if dtype is None or id(tensor) in self.seen or dtype.kind not in "fV":
                continue
            self.seen[id(tensor)] = math.prod(self.dims(tensor) or ())
            total += self.seen[id(tensor)]
        return total


_Dims = tuple[int, ...] | None


def _conv(node: Node, inputs: list[_Dims], output: _Dims) -> int | None:
    weight = inputs[1]
    return None if weight is None or output is None else math.prod(output) * math.prod(weight[1:])


def _conv_transpose(node: Node, inputs: list[_Dims], output: _Dims) -> int | None:
    data, weight = inputs[0], inputs[1]
    return None if data is None or weight is None else math.prod(data) * math.prod(weight[1:])


def _gemm(node: Node, inputs: list[_Dims], output: _Dims) -> int | None:
    first = inputs[0]
    if first is None or output is None:
        return None
    return math.prod(output) * (first[0] if node.attrs.get("transA", 0) else first[-1])


def _matmul(node: Node, inputs: list[_Dims], output: _Dims) -> int | None:
    return None if inputs[0] is None or output is None else math.prod(output) * inputs[0][-1]


def _recurrent(node: Node, inputs: list[_Dims], output: _Dims) -> int | None:
    """Both products of every gate in every step."""
    data, weight, recurrence = inputs[0], inputs[1], inputs[2]
    if data is None or weight is None or recurrence is None:
        return None
    steps = data[0] * data[1]
    return steps * (math.prod(weight) + math.prod(recurrence))


_LAYERS: dict[str, Callable[[Node, list[_Dims], _Dims], int | None]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
}


def _channels(node: Node, inputs: list[_Dims]) -> int:
    weight = inputs[1]
    if weight is None or len(weight) < 2:
        return 0
    match node.op:
        case "Conv":
            return weight[0]
        case "ConvTranspose":
            return weight[1] * int(node.attrs.get("group", 1))
        case "Gemm":
            return weight[0] if node.attrs.get("transB", 0) else weight[1]
        case "MatMul":
            return weight[-1]
    return 0
