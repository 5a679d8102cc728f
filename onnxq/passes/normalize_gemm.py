"""Gemm with plain factors and one bias, and MatMul with its bias as such a Gemm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from onnxq.graph import GraphModel, Node
from onnxq.passes._base import Fact, Pass, PassReport
from onnxq.passes._linear import kind, label, optional_input

if TYPE_CHECKING:
    from onnxq.context import QuantContext
    from onnxq.recipe import Recipe


@dataclass(frozen=True)
class NormalizeGemm(Pass):
    """``alpha * A B + beta * C`` becomes ``A (alpha B) + (beta C)`` with C of shape (N,), ``A B + C`` too.

    Given:
        a Gemm whose B, and C if it has one, are float32 constants; a MatMul of a matrix and a constant one
        whose result only an Add of a constant reads.
    Result:
        a Gemm with alpha and beta 1 and a bias with one number per output; new constants, the old ones
        stay for their other readers. The Gemm that a MatMul and its Add become has the name of the MatMul.
        A bias that differs from row to row is left as it is, and so is a MatMul or Add the recipe skips.

    Codes need this: the scale of an int32 bias is the product of two scales and of nothing else. And ONNX
    Runtime would make a float Gemm of the MatMul and the Add, which then takes no codes.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CONSTANTS_LIFTED, Fact.SHAPES})
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.PARAMS})
    preserves_function: ClassVar[bool] = True

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Rewrite every Gemm that can be."""
        merged = sum(_merge_bias(graph, node, ctx.recipe) for node in graph.nodes("MatMul"))
        if merged:
            graph.sort()
        return PassReport(changed=merged + sum(_normalize(graph, node) for node in graph.nodes("Gemm")))


def _merge_bias(graph: GraphModel, node: Node, recipe: Recipe | None) -> bool:
    """Make one Gemm of a MatMul and the Add behind it."""
    result, weight = node.outputs[0], node.inputs[1]
    if not graph.is_private(result) or graph.rank(node.inputs[0]) != 2 or graph.rank(weight) != 2:
        return False
    add = graph.consumers(result)[0].node
    if kind(add) != "Add" or any(recipe is not None and recipe.resolve(label(n), kind(n)).skip for n in (node, add)):
        return False
    bias = add.inputs[1] if add.inputs[0] is result else add.inputs[0]
    if any(not graph.is_constant(t) or not graph.is_float32(t) for t in (weight, bias)):
        return False
    outputs = (graph.shape(weight) or ())[1]
    if not isinstance(outputs, int):
        return False
    values = graph.value(bias)
    if values.ndim > 2 or values.shape not in ((), (1,), (1, 1), (outputs,), (1, outputs)):
        return False
    flat = np.broadcast_to(values.reshape(-1), (outputs,))
    if values.shape != flat.shape:
        bias = graph.add_constant(graph.unique_name(f"{bias.name}_flat"), np.ascontiguousarray(flat))
    final = add.outputs[0]
    graph.remove_node(add)
    node.op = "Gemm"
    graph.set_input(node, 2, bias)
    graph.replace_output(node, 0, final)
    return True


def _normalize(graph: GraphModel, node: Node) -> bool:
    weight, bias = node.inputs[1], optional_input(node, 2)
    if any(not graph.is_constant(t) or not graph.is_float32(t) for t in (weight, bias) if t is not None):
        return False
    alpha, beta = float(node.attrs.get("alpha", 1.0)), float(node.attrs.get("beta", 1.0))
    changed = False
    if alpha != 1.0:
        scaled = (graph.value(weight).astype(np.float64) * alpha).astype(np.float32)
        graph.set_input(node, 1, graph.add_constant(graph.unique_name(f"{weight.name}_alpha"), scaled))
        node.attrs.pop("alpha")
        changed = True
    if bias is not None:
        changed |= _normalize_bias(graph, node, bias, beta)
    elif "beta" in node.attrs and beta != 1.0:
        node.attrs.pop("beta")
        changed = True
    return changed


def _normalize_bias(graph: GraphModel, node: Node, bias: object, beta: float) -> bool:
    values = graph.value(bias)
    shape = graph.value(node.inputs[1]).shape
    outputs = shape[0] if node.attrs.get("transB", 0) else shape[-1]
    per_output = (
        values.ndim <= 2 and values.size in (1, outputs) and (values.ndim < 1 or values.shape[-1] == values.size)
    )
    if not per_output:
        return False
    if beta == 1.0 and values.shape == (outputs,):
        return False
    flat = np.broadcast_to(values.reshape(-1).astype(np.float64) * beta, (outputs,)).astype(np.float32)
    name = graph.unique_name(f"{node.inputs[2].name}_beta")
    graph.set_input(node, 2, graph.add_constant(name, flat))
    node.attrs.pop("beta", None)
    return True
