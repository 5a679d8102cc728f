"""The limits of Relus and Clips."""

from __future__ import annotations

import math

import numpy as np

from onnxq.graph import GraphModel, Node
from onnxq.passes._linear import kind, optional_input


def clamp_limits(graph: GraphModel, node: Node) -> tuple[float, float] | None:
    """Between which numbers a Relu or Clip keeps its input; None for other nodes and limits that are not known."""
    if kind(node) == "Relu":
        return 0.0, math.inf
    if kind(node) != "Clip":
        return None
    limits = [float(node.attrs.get("min", -math.inf)), float(node.attrs.get("max", math.inf))]
    for index in (1, 2):
        tensor = optional_input(node, index)
        if tensor is not None and not graph.is_constant(tensor):
            return None
        if tensor is not None:
            limits[index - 1] = float(np.asarray(graph.value(tensor)).reshape(-1)[0])
    return limits[0], limits[1]
