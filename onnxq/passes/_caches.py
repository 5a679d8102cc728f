"""Keys and values that a decoder is given and gives back: an input, a Concat along the positions, an output."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from onnxq.graph import GraphModel, Node, Tensor
from onnxq.passes._linear import kind


@dataclass(frozen=True, slots=True, eq=False)
class Cache:
    """One of them.

    Attributes:
        past: The input of the model.
        index: Which input of the Concat it is.
        join: The Concat.
        present: The output of the model.
    """

    past: Tensor
    index: int
    join: Node
    present: Tensor


def find_caches(graph: GraphModel) -> Iterator[Cache]:
    """The caches of floats of a model, in topological order.

    A Concat of an input of the model, that nothing else computes with, and of what is not one, whose result is an
    output of the model.
    """
    inputs = {t.name for t in graph.inputs}
    for node in graph.nodes("Concat"):
        result = node.outputs[0]
        given = [i for i, t in enumerate(node.inputs) if t.name in inputs]
        if kind(node) != "Concat" or len(given) != 1 or len(node.inputs) < 2 or not graph.is_output(result):
            continue
        past = node.inputs[given[0]]
        if graph.is_float32(past) and graph.is_float32(result) and _only_joined(graph, past, node):
            yield Cache(past, given[0], node, result)


def _only_joined(graph: GraphModel, past: Tensor, join: Node) -> bool:
    """Whether nothing but a Shape reads it beside the Concat, so that it need not be floats."""
    if graph.is_output(past) or graph.read_by_subgraph(past):
        return False
    return all(use.node is join or use.node.op == "Shape" for use in graph.consumers(past))
