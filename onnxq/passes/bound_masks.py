"""Keeps what masks out scores from taking the whole range of their codes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from onnxq.passes._base import Fact, Pass, PassReport
from onnxq.passes._linear import kind

if TYPE_CHECKING:
    from onnxq.context import QuantContext
    from onnxq.graph import GraphModel, Node, Tensor

MASKING = -1e4
"""A constant as low as this masks out what it is added to."""
ENOUGH = -50.0
"""What a Softmax gives for a score so far below the others is 0 in any codes, and 2e-22 of the rest in float."""

_DATA = {"Add": (0, 1), "Mul": (0, 1), "Where": (1, 2)}
_CARRY = ("Expand", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "Slice", "Gather", "Tile", "Identity", "Flatten")


class BoundMasks(Pass):
    """Very low constants on the way into a Softmax become -50.

    Exporters mask out scores by adding or choosing float32's lowest number or minus infinity. With scores in codes that
    number would be the range, and all other scores one code.

    Given:
        ``Add(scores, Where(later, -3.4e38, 0)) -> Softmax``, whose results nothing else reads.
    Result:
        ``Add(scores, Where(later, -50, 0)) -> Softmax``; new constants, the old ones stay for other readers.

    Source: ``attention_mask_min_clip`` of Qualcomm's models for its HTP.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CONSTANTS_LIFTED})
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.STATS, Fact.PARAMS})
    preserves_function: ClassVar[bool] = True

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Replace the constants."""
        bounded: dict[str, Tensor] = {}
        changed = 0
        for node in _in_front_of_softmax(graph):
            for index in _data_of(node):
                tensor = node.inputs[index]
                if not graph.is_constant(tensor) or not graph.is_float32(tensor):
                    continue
                values = np.asarray(graph.value(tensor))
                if not values.size or not values.min() <= MASKING:
                    continue
                if tensor.name not in bounded:
                    name = graph.unique_name(f"{tensor.name}_bounded")
                    bounded[tensor.name] = graph.add_constant(
                        name, np.where(values <= MASKING, ENOUGH, values).astype("f4")
                    )
                graph.set_input(node, index, bounded[tensor.name])
                changed += 1
        return PassReport(changed=changed)


def _data_of(node: Node) -> tuple[int, ...]:
    return _DATA.get(kind(node), (0,))


def _in_front_of_softmax(graph: GraphModel) -> list[Node]:
    """The nodes whose results only Softmaxes read, through each other."""
    found: dict[int, Node] = {}
    waiting = [t for softmax in graph.nodes("Softmax") for t in softmax.inputs[:1]]
    while waiting:
        node = graph.producer(waiting.pop())
        if node is None or id(node) in found or kind(node) not in (*_DATA, *_CARRY):
            continue
        found[id(node)] = node
        waiting += [node.inputs[index] for index in _data_of(node)]
    left: set[int] = set()
    while left != set(found):
        left = set(found)
        found = {key: node for key, node in found.items() if all(_leads_there(graph, node, found))}
    return list(found.values())


def _leads_there(graph: GraphModel, node: Node, found: dict[int, Node]) -> Iterator[bool]:
    result = node.outputs[0]
    yield not graph.is_output(result) and not graph.read_by_subgraph(result)
    for use in graph.consumers(result):
        yield kind(use.node) == "Softmax" or (id(use.node) in found and use.index in _data_of(use.node))
