"""Removes what nothing reads and puts the nodes in order."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from onnxq.passes._base import Pass, PassReport

if TYPE_CHECKING:
    from onnxq.context import QuantContext
    from onnxq.graph import GraphModel


class Sweep(Pass):
    """Nodes that reach no graph output and initializers that nobody reads are removed.

    What a body of an If, Loop or Scan reads counts as read. Graph inputs and the unused outputs of a
    node that stays are kept, because callers and operators count them by position.
    """

    preserves_function: ClassVar[bool] = True

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Remove and sort."""
        removed = graph.sweep()
        graph.sort()
        return PassReport(changed=removed)
