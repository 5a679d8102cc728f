"""Makes room in the scales of weights, where these were not chosen here but learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from onnxq.passes._base import Fact, Pass, PassReport
from onnxq.passes._fitting import fit_bias, with_safe_pairs
from onnxq.plan import Plan

if TYPE_CHECKING:
    from onnxq.context import QuantContext
    from onnxq.graph import GraphModel


@dataclass(frozen=True)
class FitScales(Pass):
    """Enlarges scales of weights with which a processor would saturate sums, or an int32 bias would overflow.

    ChooseParams does the same for what it chooses.

    Given:
        a plan and its numbers.
    Result:
        the graph unchanged; larger scales in ``ctx.params``, and a note that says how many.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN, Fact.PARAMS})
    preserves_function: ClassVar[bool] = True

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Enlarge.

        Raises:
            GraphError: If a bias cannot be used.
        """
        notes: list[str] = []
        enlarged: dict[str, int] = {}
        for weight in (ctx.plan or Plan()).weights:
            old = ctx.params[weight.key]
            if ctx.target.safe_pairs:
                ctx.params[weight.key] = with_safe_pairs(graph, weight, old)
                count = int((ctx.params[weight.key].scale > old.scale).sum())
                if count:
                    enlarged[weight.key] = count
            notes += fit_bias(graph, weight, ctx.params)
        if enlarged:
            told = f"{sum(enlarged.values())} scales of {len(enlarged)} weights enlarged"
            notes.insert(0, f"{told}: some processors would saturate the sum of two of their products")
        return PassReport(notes=tuple(notes))
