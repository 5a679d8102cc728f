"""The activation function behind a layer, where nothing else reads the layer's output."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.weight.rounding import Activation, ActivationName
from onnxq.graph import GraphModel, Node
from onnxq.passes._linear import Linear, kind, optional_input

_CURVES: dict[str, ActivationName] = {"Sigmoid": "sigmoid", "Tanh": "tanh"}


def following_activation(graph: GraphModel, linear: Linear) -> Activation:
    """What the only reader of a layer does to its output; nothing where that is no activation function.

    Known are Relu, LeakyRelu, PRelu, Gelu, Clip, Sigmoid and Tanh, with constant parameters.
    """
    rows = linear.layout.out_channels
    none = Activation.none(rows)
    result = linear.node.outputs[0]
    if not graph.is_private(result):
        return none
    node = graph.consumers(result)[0].node
    op = kind(node)
    if node.inputs[0] is not result:
        return none
    if op in _CURVES:
        return Activation(_CURVES[op], none.p, none.q)
    if op == "Gelu":
        tanh = node.attrs.get("approximate", "none") in ("tanh", b"tanh")
        return Activation("gelu_tanh" if tanh else "gelu", none.p, none.q)
    if op == "LeakyRelu":
        return Activation("leaky", np.full(rows, node.attrs.get("alpha", 0.01), np.float32), none.q)
    if op == "PRelu":
        slope = _per_channel(graph, node, linear, rows)
        return none if slope is None else Activation("leaky", slope, none.q)
    bounds = _bounds(graph, node, op)
    if bounds is None:
        return none
    return Activation("clip", np.full(rows, bounds[0], np.float32), np.full(rows, bounds[1], np.float32))


def _bounds(graph: GraphModel, node: Node, op: str) -> tuple[float, float] | None:
    if op == "Relu":
        return 0.0, math.inf
    if op != "Clip":
        return None
    found = []
    for index, key, default in ((1, "min", -math.inf), (2, "max", math.inf)):
        tensor = optional_input(node, index)
        if tensor is not None and not graph.is_constant(tensor):
            return None
        number = node.attrs.get(key, default) if tensor is None else graph.value(tensor).reshape(-1)[0]
        found.append(float(number))
    return found[0], found[1]


def _per_channel(graph: GraphModel, node: Node, linear: Linear, rows: int) -> NDArray[np.float32] | None:
    """The slope of a PRelu as one number per output channel."""
    slope = node.inputs[1]
    if not graph.is_constant(slope):
        return None
    values = graph.value(slope)
    if values.size == 1:
        return np.full(rows, values.reshape(-1)[0], np.float32)
    behind = linear.from_right - 1  # axes behind the channels
    fits = values.size == rows and values.ndim > behind and values.shape[values.ndim - 1 - behind] == rows
    return np.ascontiguousarray(values.reshape(-1), np.float32) if fits else None
