"""A float model beside what has become of it, node by node and tensor by tensor: what reports are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from onnxq.graph import GraphModel, Node
from onnxq.opinfo import weight_axis
from onnxq.plan import Decision
from onnxq.report.distributions import Distribution
from onnxq.report.layers import LayerError
from onnxq.report.numbers import Numbers

WeightPlace = tuple[str, int]
"""Name of a node, and which of its inputs."""


@dataclass(frozen=True)
class Anatomy:
    """What is known of a quantized model.

    Attributes:
        graph: The float model.
        decisions: What becomes of each node, by its name.
        activations: How activations become codes, by their names in `graph`.
        weights: How weights become codes.
        spreads: How the values of activations are spread, by name.
        errors: How far each layer is from the float model's.
        samples: How many samples `errors` are over.
    """

    graph: GraphModel
    decisions: Mapping[str, Decision]
    activations: Mapping[str, Numbers] = field(default_factory=dict)
    weights: Mapping[WeightPlace, Numbers] = field(default_factory=dict)
    spreads: Mapping[str, Distribution] = field(default_factory=dict)
    errors: tuple[LayerError, ...] = ()
    samples: int = 0

    def nodes(self) -> list[Node]:
        """The nodes that compute something."""
        return [node for node in self.graph.nodes() if node.op != "Constant"]

    def decision(self, node: Node) -> Decision:
        """What becomes of a node; float where it is not known."""
        return self.decisions.get(name_of(node)) or Decision(name_of(node), node.op, "float")

    def errors_by_node(self) -> dict[str, LayerError]:
        """The worst error of each node's outputs, by its name."""
        found: dict[str, LayerError] = {}
        for error in self.errors:
            known = found.get(error.pair.node)
            if known is None or error.metrics.sqnr_db < known.metrics.sqnr_db:
                found[error.pair.node] = error
        return found


def name_of(node: Node) -> str:
    """Name of a node; that of its first output where it has none."""
    return str(node.name) or next((str(t.name) for t in node.outputs if t.name), "")


def channel_axis(graph: GraphModel, node: Node, index: int) -> int | None:
    """The axis of a weight that counts the outputs of its node, also where one scale must do for all of them.

    Args:
        graph: The model the node is in.
        node: The node.
        index: Which input the weight is.

    Returns:
        None where the weight is one number, or its rank is not known.
    """
    rank = graph.rank(node.inputs[index]) or 0
    if not rank:
        return None
    axis = weight_axis(node.op, rank, transposed=bool(node.attrs.get("transB")), groups=node.attrs.get("group", 1))
    if axis is not None and axis < rank:
        return axis
    return rank - 1 if node.op in ("MatMul", "Gather") else 0
