"""Lets sparse weights stay sparse in training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from onnxq.algos.sparsity import two_of_four
from onnxq.learned import MaskedWeight
from onnxq.passes._base import Fact, Pass, PassReport

if TYPE_CHECKING:
    from onnxq.context import QuantContext
    from onnxq.graph import GraphModel

SUFFIX = ".mask"


@dataclass(frozen=True)
class InsertMasks(Pass):
    """Every sparse weight is multiplied by a mask of ones and zeros before anything reads it.

    The mask of weight ``w`` is the initializer ``w.mask``, which is not trained; ``w`` keeps its name. Weights whose
    mask training chooses anew get their numbers back: they take part in the choice, and the mask makes zeros of them.

    Given:
        a graph with quantizers, and `ctx.masked`.
    Result:
        ``Mul(w, w.mask)`` in front of the quantizer of ``w``; `ctx.masked` names the masks.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.MASKED, Fact.LEARNING})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.MASKED})

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Insert."""
        ctx.masked = tuple(_insert(graph, masked) for masked in ctx.masked)
        graph.sort()
        return PassReport(changed=len(ctx.masked))


def _insert(graph: GraphModel, masked: MaskedWeight) -> MaskedWeight:
    weight = graph.tensor(masked.weight)
    values = np.asarray(graph.value(weight), np.float32)
    # What keeps zeros as they are, balancing for one, may have changed the rest.
    mask = two_of_four(values, masked.axis)
    constant = graph.add_constant(f"{masked.weight}{SUFFIX}", mask)
    uses = graph.consumers(weight)
    product = graph.add_node(
        "Mul", [weight, constant], name=f"{masked.weight}/mask", outputs=[f"{masked.weight}/masked"],
        dtype=np.float32, shape=values.shape,
    ).outputs[0]  # fmt: skip
    graph.replace_uses(weight, product, uses)
    dense = masked.dense
    if dense is not None and np.array_equal(dense * mask, values):
        graph.rewrite_constant(weight, dense)
    return replace(masked, mask=str(constant.name), dense=None)
