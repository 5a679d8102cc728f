"""Gemm with plain factors: alpha and beta merged into the constants they multiply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from onnxq.graph import GraphModel, Node
from onnxq.passes._base import Fact, Pass, PassReport
from onnxq.passes._linear import optional_input

if TYPE_CHECKING:
    from onnxq.context import QuantContext


@dataclass(frozen=True)
class NormalizeGemm(Pass):
    """``alpha * A B + beta * C`` becomes ``A (alpha B) + (beta C)`` with C of shape (N,).

    Given:
        a Gemm whose B, and C if it has one, are float32 constants.
    Result:
        the same Gemm with alpha and beta 1 and a bias with one number per output; new constants, the
        old ones stay for their other readers. A bias that differs from row to row is left as it is.

    Codes need this: the scale of an int32 bias is the product of two scales and of nothing else.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CONSTANTS_LIFTED})
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.PARAMS})
    preserves_function: ClassVar[bool] = True

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Rewrite every Gemm that can be."""
        return PassReport(changed=sum(_normalize(graph, node) for node in graph.nodes("Gemm")))


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
