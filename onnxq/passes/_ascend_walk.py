"""How a model for Ascend is rewritten: node by node, knowing which tensors hold codes and which sums of products."""

from __future__ import annotations

import abc
from typing import ClassVar

from onnxq.errors import GraphError
from onnxq.graph import GraphModel, Node, Tensor
from onnxq.passes._ascend_ops import ASCEND_OPS, has_half
from onnxq.passes._linear import describe, kind


class AscendWalk(abc.ABC):
    """Rewrites every Ascend operator, and every node that reads codes or sums, in the order of the graph.

    Args:
        graph: The model.

    Attributes:
        verb: What is done to the model, for messages.
    """

    verb: ClassVar[str]

    def __init__(self, graph: GraphModel) -> None:
        self._graph = graph
        self._half = has_half(graph)

    def run(self) -> int:
        """Rewrite all nodes in order; returns how many."""
        changed = sum(self._node(node) for node in self._graph.nodes())
        for tensor in self._graph.outputs:
            self._give(tensor)
        for node in self._graph.nodes("AscendWeightQuant"):
            if not self._graph.consumers(node.outputs[0]):
                self._graph.remove_node(node)
        self._graph.sort()
        return changed

    def _node(self, node: Node) -> bool:
        op = str(node.op)
        if op in ASCEND_OPS:
            handlers = {"AscendQuant": self._quant, "AscendDequant": self._dequant, "AscendAntiQuant": self._anti_quant}
            if op in handlers:  # an AscendWeightQuant is read with its layer, and dead then
                handlers[op](node)
            return True
        held = [t.name for t in node.inputs if self._holds(t.name)]
        if not held:
            self._check_untouched(node)
            return False
        if kind(node) != op:
            self._unexpected(node, held[0])
        self._between(node, held[0])
        return True

    def _unexpected(self, node: Node, held: str) -> None:
        raise GraphError(
            f"{describe(node)} reads {held!r}, which holds {self._holds(held)}; onnxq cannot {self.verb} it between a "
            "quantization and the AscendDequant or AscendAntiQuant that ends it"
        )

    def _take_over(self, tensor: Tensor, name: str, dtype: object) -> Tensor:
        """Give everything that makes and reads `tensor` a new tensor instead, so that it can be made anew."""
        graph = self._graph
        maker = graph.producer(tensor)
        index = next(i for i, t in enumerate(maker.outputs) if t is tensor)
        inner = graph.new_variable(name, dtype, graph.shape(tensor))
        uses = graph.consumers(tensor)
        graph.replace_output(maker, index, inner)
        graph.replace_uses(tensor, inner, uses)
        return inner

    def _check_untouched(self, node: Node) -> None:  # noqa: B027 - optional hook
        """Refuse a node that should have read codes and does not."""

    @abc.abstractmethod
    def _holds(self, name: str) -> str:
        """What a tensor holds: ``codes``, ``sums of products``, or nothing of the kind."""

    @abc.abstractmethod
    def _quant(self, node: Node) -> None:
        """Rewrite an AscendQuant."""

    @abc.abstractmethod
    def _dequant(self, node: Node) -> None:
        """Rewrite an AscendDequant."""

    @abc.abstractmethod
    def _anti_quant(self, node: Node) -> None:
        """Rewrite an AscendAntiQuant."""

    @abc.abstractmethod
    def _between(self, node: Node, held: str) -> None:
        """Rewrite a standard operator that reads codes or sums, of which `held` is the first."""

    @abc.abstractmethod
    def _give(self, tensor: Tensor) -> None:
        """Make an output of the model what it was."""


def check_rewritten(graph: GraphModel) -> None:
    """Raise `GraphError` if an Ascend operator is left."""
    for node in graph.nodes(*ASCEND_OPS):
        raise GraphError(f"{describe(node)} is still there")
