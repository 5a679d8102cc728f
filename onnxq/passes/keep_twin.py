"""Puts a copy of the float graph aside, from which a twin that runs here is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from onnxq.passes._base import Fact, Pass, PassReport

if TYPE_CHECKING:
    from onnxq.context import QuantContext
    from onnxq.graph import GraphModel


@dataclass(frozen=True)
class KeepTwin(Pass):
    """Writes ``ctx.twin``: the graph as it is now, for targets whose operators do not run here.

    Given:
        the factors of each layer.
    Result:
        the graph unchanged; `ctx.twin` a copy of it.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.FACTORS})
    preserves_function: ClassVar[bool] = True

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Copy."""
        ctx.twin = graph.copy()
        return PassReport()
