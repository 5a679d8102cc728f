"""Turns planned weights into codes of a fixed width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from onnxq.passes._base import Fact, Pass, PassReport
from onnxq.passes._weight_only import fixed_codes
from onnxq.plan import Plan

if TYPE_CHECKING:
    from onnxq.context import QuantContext
    from onnxq.graph import GraphModel


@dataclass(frozen=True)
class ChooseWeightCodes(Pass):
    """Writes ``ctx.weight_codes``: how every weight of the plan becomes codes of the width the plan says.

    Those of ``ctx.blocks`` have codes already.

    Given:
        a plan of weights.
    Result:
        the graph unchanged; `ctx.weight_codes` by the keys of the plan.

    Attributes:
        correction: Give each channel back its mean and variance.
    """

    correction: bool = True

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.CODES})
    preserves_function: ClassVar[bool] = True

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Choose.

        Raises:
            GraphError: If a weight holds NaN or infinity.
        """
        planned = (ctx.plan or Plan()).weights
        weights = {w.key: w for w in planned if (w.node, w.index) not in ctx.blocks}
        ctx.weight_codes = {
            key: fixed_codes(graph, weight, correction=self.correction) for key, weight in weights.items()
        }
        return PassReport()
