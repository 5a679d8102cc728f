"""Puts a second copy of each layer beside it, to quantize one and compare the two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from onnxq.passes._base import Fact, Pass, PassReport

if TYPE_CHECKING:
    from onnxq.context import QuantContext
    from onnxq.graph import GraphModel


@dataclass(frozen=True)
class DuplicateLayers(Pass):
    """Lets ``ctx.factors`` hold for copies of the layers: what follows quantizes the copies only.

    So a single run of the model gives what each layer makes of float inputs, in float and quantized.

    Given:
        the factors of each layer.
    Result:
        for each layer with a weight, and each AveragePool, a node ``<layer>.copy`` that reads the same and gives
        ``<layer>.copy_output``; `ctx.factors` by the names of the copies. Entries of single tensors are gone.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.FACTORS})
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN, Fact.STATS, Fact.PARAMS})

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Copy."""
        copies = {}
        for name, factors in ctx.factors.items():
            if factors.tensor_quantize:
                continue
            node = graph.node(name)
            result = node.outputs[0]
            copy = graph.add_node(
                str(node.op), list(node.inputs), name=copy_name(name), outputs=[f"{copy_name(name)}_output"],
                attrs=dict(node.attrs), dtype=graph.dtype(result), shape=graph.shape(result),
            )  # fmt: skip
            copies[copy.name] = factors
        graph.sort()
        ctx.factors = copies
        return PassReport(changed=len(copies))


def copy_name(layer: str) -> str:
    """What the copy of a layer is called."""
    return f"{layer}.copy"
