"""Which nodes of a model a node of the graph that ONNX Runtime made of it stands for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx

from onnxq.graph import GraphModel, Node, Tensor

_SUFFIX = re.compile(r"(_nchwc|_token_\d+|/\w*Fusion\w*)$")
"""What ONNX Runtime puts behind the name of a node or tensor it replaces."""
_CARRIERS = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast", "Identity", "Constant"})
"""Nodes that are not what a fused node is there for."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a node that is run stands for.

    Attributes:
        layer: Name of the model's node that it is there for; None where there is none.
        covers: Names of all of the model's nodes that it does, in their order.
    """

    layer: str | None = None
    covers: tuple[str, ...] = ()


class Origins:
    """Finds the model's nodes by what they give, and by their names.

    Every node that is run takes the nodes of the model its outputs need and that no node in front of it has taken. A
    tensor has its name from the model, or one made of it or of its node's.

    Args:
        graph: The model.
        optimized: What ONNX Runtime made of it.
    """

    def __init__(self, graph: GraphModel, optimized: onnx.ModelProto) -> None:
        nodes = graph.nodes()
        self._position = {id(node): number for number, node in enumerate(nodes)}
        self._named = {node.name: node for node in nodes if node.name}
        self._makers = {tensor.name: node for node in nodes for tensor in node.outputs if tensor.name}
        self._free = set(self._position)
        self._found = {node.name: origin for node, origin in self._walk(optimized.graph.node) if node.name}

    def of(self, name: str) -> Origin:
        """What the node of this name stands for."""
        return self._found.get(name, Origin())

    def _walk(self, executed: Sequence[onnx.NodeProto]) -> Iterator[tuple[onnx.NodeProto, Origin]]:
        for node in executed:
            ends = list(self._ends(node))
            covered = sorted(self._take(ends), key=lambda n: self._position[id(n)])
            yield node, Origin(self._layer(node, covered), tuple(n.name for n in covered))

    def _ends(self, executed: onnx.NodeProto) -> Iterator[Node]:
        """The model's nodes whose outputs it gives, as far as names tell."""
        for output in executed.output:
            if output in self._makers:
                yield self._makers[output]
        name = _SUFFIX.sub("", executed.name)
        if name in self._named:
            yield self._named[name]
        elif name in self._makers:
            yield self._makers[name]

    def _take(self, ends: Sequence[Node]) -> list[Node]:
        """These nodes and all they need, except what is taken; it is taken then."""
        taken: list[Node] = []
        waiting = list(ends)
        while waiting:
            node = waiting.pop()
            if id(node) not in self._free:
                continue
            self._free.remove(id(node))
            taken.append(node)
            waiting += [self._makers[t.name] for t in _read(node) if t.name in self._makers]
        return taken

    def _layer(self, executed: onnx.NodeProto, covered: Sequence[Node]) -> str | None:
        if executed.name in self._named:
            return executed.name
        taken = {str(node.name) for node in covered}
        if (name := _SUFFIX.sub("", executed.name)) in taken:
            return name
        work = [node for node in covered if node.op not in _CARRIERS] or list(covered)
        same = [node for node in work if node.op in executed.op_type]
        return str((same or work)[-1].name) if work else None


def _read(node: Node) -> Iterator[Tensor]:
    yield from (tensor for tensor in node.inputs if tensor is not None)
