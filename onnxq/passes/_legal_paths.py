"""Where gradients flow: from the loss back to trained parameters."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.graph import GraphModel, Node, Tensor
from onnxq.passes._legal_ops import STOPPED, op_of

BODIES = frozenset({"If", "Loop", "Scan"})
"""Operators with graphs of their own, which gradients cannot enter."""


@dataclass(frozen=True)
class Paths:
    """The nodes that gradients must pass, and the tensors around them.

    Attributes:
        nodes: In topological order.
        moved: Names of the tensors that depend on a trained parameter.
        wanted: Names of the tensors that the outputs depend on.
    """

    nodes: tuple[Node, ...]
    moved: frozenset[str]
    wanted: frozenset[str]


def find_paths(graph: GraphModel, trained: Collection[str], outputs: Sequence[str] = ()) -> Paths:
    """Which nodes gradients must pass.

    Args:
        graph: A graph.
        trained: Names of its trained parameters; inputs may be among them.
        outputs: What the loss is computed from: names of graph outputs; by default all.
    """
    moved = _moved(graph, frozenset(trained))
    wanted: set[str] = set()
    stack = [t for t in graph.outputs if not outputs or t.name in outputs]
    while stack:
        tensor = stack.pop()
        if tensor.name in wanted or tensor.name not in moved:
            continue
        wanted.add(str(tensor.name))
        maker = graph.producer(tensor)
        if maker is not None and not stops(graph, maker):
            stack.extend(maker.inputs)
            if op_of(maker) in BODIES:
                stack.extend(t for t in graph.tensors().values() if graph.read_by_subgraph(t))
    between = tuple(
        node
        for node in graph.nodes()
        if not stops(graph, node) and any(t.name in wanted for t in node.outputs) and _is_moved(graph, node, moved)
    )
    return Paths(between, frozenset(moved), frozenset(wanted))


def reached(graph: GraphModel, trained: Collection[str], outputs: Sequence[str] = ()) -> tuple[str, ...]:
    """The parameters, among `trained`, that outputs depend on; see `find_paths`."""
    wanted = find_paths(graph, trained, outputs).wanted
    return tuple(name for name in trained if name in wanted)


def _moved(graph: GraphModel, trained: frozenset[str]) -> set[str]:
    moved = {str(t.name) for t in (*graph.constants(), *graph.inputs) if t.name in trained}
    for node in graph.nodes():
        if not stops(graph, node) and _is_moved(graph, node, moved):
            moved |= {str(t.name) for t in node.outputs if t.name and _is_real(graph, t)}
    return moved


def _is_moved(graph: GraphModel, node: Node, moved: set[str]) -> bool:
    if any(t.name in moved for t in node.inputs):
        return True
    if op_of(node) not in BODIES:
        return False
    return any(t.name in moved for t in graph.tensors().values() if graph.read_by_subgraph(t))


def stops(graph: GraphModel, node: Node) -> bool:
    """Whether no gradient passes a node, by what it computes."""
    return op_of(node) in STOPPED or not any(_is_real(graph, t) for t in node.outputs if t.name)


def _is_real(graph: GraphModel, tensor: Tensor) -> bool:
    dtype = graph.dtype(tensor)
    return dtype is None or dtype.kind not in "iubSUO" or dtype == np.dtype(object)
