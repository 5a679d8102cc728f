"""Remembers in the model which tensors have other values than in the float model although nothing is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from onnxq.graph import GraphModel, Node

if TYPE_CHECKING:
    from onnxq.context import QuantContext

KEY = "onnxq.rescaled_tensors"
"""Key of the model's metadata: a JSON list of tensor names whose channels were scaled."""


def note_rescaled(ctx: QuantContext, names: Iterator[str] | list[str]) -> None:
    """Add tensors to those that Stamp writes into the model."""
    known = set(json.loads(ctx.metadata.get(KEY, "[]")))
    found = known | set(names)
    if found:
        ctx.metadata[KEY] = json.dumps(sorted(found))


def between(graph: GraphModel, first: Node, second: Node) -> Iterator[str]:
    """Names of the tensors on the way from one node to another, each of which has a single reader."""
    node = first
    while node is not second:
        tensor = node.outputs[0]
        yield tensor.name
        uses = graph.consumers(tensor)
        if len(uses) != 1:
            return
        node = uses[0].node
