"""What reads a tensor: the nodes up to the next place where an error of it can be judged."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from onnxq.graph import GraphModel, Node
from onnxq.opinfo import OPS

_THROUGH = frozenset({"Add", "Sub", "Concat", "AveragePool", "GlobalAveragePool", "Mul"})
_MOST_NODES = 24
"""Beyond so many nodes an error is judged where it has got to."""


@dataclass(frozen=True, slots=True, eq=False)
class Effect:
    """A piece of a graph behind some tensors.

    Attributes:
        sources: The tensors.
        nodes: The nodes, in topological order.
        outputs: Tensors to judge an error by.
        saturates: Whether a bounded Clip is among the nodes.
    """

    sources: tuple[str, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    saturates: bool

    def reads(self, constants: set[str]) -> set[str]:
        """What the piece must be fed besides constants."""
        made = {t.name for n in self.nodes for t in n.outputs}
        return {t.name for n in self.nodes for t in n.inputs if t.name} - made - constants


def effect_of(
    graph: GraphModel, absorbed: frozenset[str], order: Mapping[str, int], sources: list[str], readers: list[Node]
) -> Effect:
    """The nodes behind `sources`, up to the outputs of the next layers and their clamps.

    Args:
        graph: The graph.
        absorbed: Names of the Relus and Clips that belong to the layer in front of them.
        order: Position of each node by name.
        sources: Names of the tensors.
        readers: The nodes that read them, directly or with the same codes.
    """
    members: dict[str, Node] = {}
    outputs: dict[str, None] = {}
    waiting = deque(readers)
    while waiting:
        node = waiting.popleft()
        if node.name in members or _has_body(node):
            continue
        members[node.name] = node
        info = OPS.get(node.op)
        following = [use.node for t in node.outputs for use in graph.consumers(t)]
        looked_through = (
            node.op in _THROUGH
            or (info is not None and info.kind == "passive")
            or (following and all(n.name in absorbed for n in following))
        )
        if looked_through and following and len(members) < _MOST_NODES:
            waiting.extend(following)
            outputs |= dict.fromkeys(t.name for t in node.outputs if graph.is_output(t))
        else:
            outputs |= dict.fromkeys(t.name for t in node.outputs if t.name and graph.is_float32(t))
    nodes = tuple(sorted(members.values(), key=lambda n: order[n.name]))
    return Effect(tuple(sources), nodes, tuple(outputs), any(map(_is_bounded, nodes)))


def _is_bounded(node: Node) -> bool:
    return node.op == "Clip" and ("max" in node.attrs or (len(node.inputs) > 2 and bool(node.inputs[2].name)))


def _has_body(node: Node) -> bool:
    return node.op in ("If", "Loop", "Scan", "SequenceMap")
