"""Dividing the channels of an activation by factors, in the constants of what comes in front of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.graph import GraphModel, Node, Tensor
from onnxq.passes._block_layers import rescale
from onnxq.passes._linear import describe, optional_input
from onnxq.plan import StoredBlocks

_NORMS = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})
_DEPTH = 8


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """A constant whose last axis, or the output axis of a weight, has the channels.

    Attributes:
        node: The node that reads it.
        index: Which input.
        columns: Whether the channels lie along its last axis; otherwise along its first.
    """

    node: Node
    index: int
    columns: bool = True


def find_sites(graph: GraphModel, tensor: Tensor, readers: int, channels: int) -> list[Site] | str:
    """Where factors of an activation's last axis go, or why there is no place for them.

    Args:
        graph: The graph.
        tensor: The activation.
        readers: How many inputs of nodes take the factors into account; nothing else may read it.
        channels: Length of its last axis.
    """
    if graph.is_output(tensor) or graph.read_by_subgraph(tensor) or len(graph.consumers(tensor)) != readers:
        return f"{tensor.name!r} has readers that factors would disturb"
    return _sites(graph, tensor, channels, _DEPTH)


def _sites(graph: GraphModel, tensor: Tensor, channels: int, depth: int) -> list[Site] | str:
    node = graph.producer(tensor)
    if node is None:
        return f"{tensor.name!r} is a graph input"
    if depth == 0 or tensor is not node.outputs[0]:
        return f"there is nothing to put them into in front of {describe(node)}"
    if node.op in _NORMS:
        indexes = [i for i in (1, 2) if optional_input(node, i) is not None]
        return _constants(graph, node, indexes, channels)
    if node.op in ("MatMul", "Gemm"):
        return _of_layer(graph, node, channels)
    if node.op in ("Relu", "LeakyRelu", "Identity"):
        return _through(graph, node, 0, channels, depth)
    if node.op == "Add":
        return _of_sum(graph, node, channels, depth)
    if node.op == "Mul":
        return _of_product(graph, node, channels, depth)
    return f"its input comes from {describe(node)}, which they cannot be moved through"


def _constants(graph: GraphModel, node: Node, indexes: list[int], channels: int) -> list[Site] | str:
    for index in indexes:
        tensor = node.inputs[index]
        shape = graph.shape(tensor) or ()
        fits = graph.is_constant(tensor) and graph.is_float32(tensor) and tuple(shape)[-1:] == (channels,)
        if not fits or any(d != 1 for d in shape[:-1]):
            return f"{tensor.name!r} of {describe(node)} is not one number for each of {channels} channels"
    return [Site(node, index) for index in indexes]


def _of_layer(graph: GraphModel, node: Node, channels: int) -> list[Site] | str:
    weight, bias = node.inputs[1], optional_input(node, 2)
    shape = graph.shape(weight) or ()
    rows = bool(node.op == "Gemm" and node.attrs.get("transB", 0))
    if not graph.is_constant(weight) or not graph.is_float32(weight) or len(shape) != 2:
        return f"the weight of {describe(node)} is not a float32 constant matrix"
    if not graph.is_private(weight):
        return f"the weight of {describe(node)} has other readers"
    biases = [] if bias is None else _constants(graph, node, [2], channels)
    return biases if isinstance(biases, str) else [Site(node, 1, columns=not rows), *biases]


def _through(graph: GraphModel, node: Node, index: int, channels: int, depth: int) -> list[Site] | str:
    tensor = node.inputs[index]
    if not graph.is_private(tensor):
        return f"{tensor.name!r} has readers that factors would disturb"
    return _sites(graph, tensor, channels, depth - 1)


def _of_sum(graph: GraphModel, node: Node, channels: int, depth: int) -> list[Site] | str:
    constants = [i for i, t in enumerate(node.inputs) if graph.is_constant(t)]
    if len(constants) != 1:
        return f"its input comes from {describe(node)}, a sum of two activations"
    found = _constants(graph, node, constants, channels)
    if isinstance(found, str):
        return found
    rest = _through(graph, node, 1 - constants[0], channels, depth)
    return rest if isinstance(rest, str) else [*found, *rest]


def _of_product(graph: GraphModel, node: Node, channels: int, depth: int) -> list[Site] | str:
    constants = [i for i, t in enumerate(node.inputs) if graph.is_constant(t)]
    if constants:
        return _constants(graph, node, constants[:1], channels)
    reason = ""
    for index in (1, 0):
        if tuple(graph.shape(node.inputs[index]) or ())[-1:] == (1,):
            continue  # a number for each row, not for each channel
        found = _through(graph, node, index, channels, depth)
        if not isinstance(found, str):
            return found
        reason = reason or found
    return reason or f"{describe(node)} has no input with the channels"


def divide(
    graph: GraphModel,
    sites: list[Site],
    factors: NDArray[np.float32],
    stored: Mapping[tuple[str, int], StoredBlocks],
) -> None:
    """Divide an activation by factors.

    Args:
        graph: The graph.
        sites: As `find_sites` gives them.
        factors: shape (channels,), > 0.
        stored: Codes by node name and input: of weights that have some already the scales are divided.
    """
    for site in sites:
        codes = stored.get((site.node.name, site.index))
        if codes is not None:
            rescale(graph, codes, factors)
            continue
        old = site.node.inputs[site.index]
        values = graph.value(old).astype(np.float64) / (factors if site.columns else factors[:, None])
        name = graph.unique_name(f"{old.name}_balanced")
        graph.set_input(site.node, site.index, graph.add_constant(name, values.astype(np.float32)))
