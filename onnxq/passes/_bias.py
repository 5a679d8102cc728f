"""Where the bias of a layer is: its own input, or the constant that an Add behind it adds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxq.graph import GraphModel, Node
from onnxq.passes._linear import kind, optional_input


def bias_place(graph: GraphModel, node: Node) -> tuple[Node, int] | None:
    """The node that reads the bias of `node`, and which of its inputs it is; None where there is no bias.

    ONNX Runtime makes one Gemm of a MatMul and the Add behind it. That Gemm takes codes only if the bias
    comes as codes too, so the constant of such an Add counts as the bias of the MatMul.
    """
    if node.op != "MatMul":
        return None if optional_input(node, 2) is None else (node, 2)
    result, shape = node.outputs[0], graph.shape(node.inputs[1]) or ()
    if len(shape) != 2 or not graph.is_constant(node.inputs[1]) or not graph.is_private(result):
        return None
    add = graph.consumers(result)[0].node
    if kind(add) != "Add":
        return None
    index = 1 if add.inputs[0] is result else 0
    bias = add.inputs[index]
    fits = graph.is_constant(bias) and graph.is_float32(bias) and graph.shape(bias) == (shape[1],)
    return (add, index) if fits else None


def add_to_bias(graph: GraphModel, layer: str, place: tuple[Node, int], shift: NDArray[np.float32]) -> None:
    """Give a layer a bias of its own: what it has had, if anything, plus `shift`.

    Args:
        graph: The graph.
        layer: The name of the layer.
        place: The node that reads the bias, and which of its inputs it is.
        shift: shape (C,), float32.
    """
    node, index = place
    old = optional_input(node, index)
    values = shift if old is None else (graph.value(old).astype(np.float64) + shift).astype(np.float32)
    base = f"{layer}_bias" if old is None else f"{old.name}_corrected"
    graph.set_input(node, index, graph.add_constant(graph.unique_name(base), values))
