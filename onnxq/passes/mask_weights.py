"""2:4 sparsity: of every four weights along the input channels the two smallest become 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.sparsity import GROUP, KEPT, two_of_four, why_not_sparse
from onnxq.learned import MaskedWeight
from onnxq.passes._base import Fact, Pass, PassReport, Skip
from onnxq.passes._linear import LINEAR_OPS, describe, kind, label, why_not_constant
from onnxq.recipe import TwoOfFour

if TYPE_CHECKING:
    from onnxq.context import QuantContext
    from onnxq.graph import GraphModel, Node, Tensor


@dataclass(frozen=True)
class MaskWeights(Pass):
    """Makes weights of Conv, ConvTranspose, Gemm and MatMul sparse, as `Recipe.prune` and its rules say.

    Given:
        ``Conv`` with a weight of shape (8, 16, 3, 3), ``prune: 2:4``
    Result:
        the same with two zeros in every four weights along the second axis; `ctx.masked` names the weight.

    Where the number of input channels is no multiple of four, zeros are thought to follow. A weight of one or two
    input channels (all of a depthwise convolution) stays as it is.

    Source: AMCT's L1SelectivePruner (specs of AMCT, section 1.11).
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS_LIFTED, Fact.SHAPES})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.MASKED})
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.STATS, Fact.PARAMS})

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Mask."""
        found: dict[str, MaskedWeight] = {}
        skipped = []
        for node in graph.nodes(*LINEAR_OPS):
            prune = ctx.recipe.resolve(label(node), kind(node)).prune
            if not isinstance(prune, TwoOfFour):
                continue
            axis = sparse_axis(graph, node, found)
            if isinstance(axis, str):
                skipped.append(Skip(label(node), axis))
                continue
            weight = node.inputs[1]
            if weight.name not in found:
                dense = np.array(graph.value(weight)) if prune.update_freq else None
                found[weight.name] = MaskedWeight(str(weight.name), axis, label(node), prune.update_freq, dense)
                _mask(graph, weight, axis)
        ctx.masked = tuple(found.values())
        return PassReport(len(found), tuple(skipped))


def _mask(graph: GraphModel, weight: Tensor, axis: int) -> None:
    def make(array: NDArray[Any]) -> NDArray[Any]:
        return np.where(two_of_four(array, axis) > 0, array, np.zeros((), array.dtype))

    shape = [int(d) for d in graph.value(weight).shape]
    graph.rewrite_constant(weight, graph.derived(weight, make, shape=shape, dtype=graph.dtype(weight)))


def sparse_axis(graph: GraphModel, node: Node, found: dict[str, MaskedWeight]) -> int | str:
    """The axis of a layer's input channels, or why its weight cannot be made sparse.

    Args:
        graph: The graph.
        node: The layer.
        found: Weights that are masked already.
    """
    weight = node.inputs[1]
    reason = why_not_constant(graph, weight, "weight")
    if reason is not None:
        return reason
    shape = graph.value(weight).shape
    groups = int(node.attrs.get("group", 1))
    match node.op:
        case "Conv":
            axis = 1
        case "Gemm":
            axis = 1 if node.attrs.get("transB", 0) else 0
        case "MatMul":
            axis = max(len(shape) - 2, 0)
        case _:
            axis = 0
            if groups > 1 and (shape[0] // groups <= KEPT or shape[0] // groups % GROUP):
                return f"{shape[0] // groups} input channels of each group are no multiple of {GROUP}"
    if weight.name in found and found[weight.name].axis != axis:
        return f"its weight {weight.name!r} is sparse along axis {found[weight.name].axis} for another layer"
    others = [u.node for u in graph.consumers(weight) if kind(u.node) not in LINEAR_OPS or u.index != 1]
    if others:
        return f"its weight {weight.name!r} is read by {describe(others[0])} too"
    return why_not_sparse(tuple(shape), axis) or axis
