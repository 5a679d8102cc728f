"""Keeps what batch normalizations say of activations before they are folded into weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from onnxq.passes._base import Fact, Pass, PassReport
from onnxq.passes._moments import read_moments

if TYPE_CHECKING:
    from onnxq.context import QuantContext
    from onnxq.graph import GraphModel


class NoteMoments(Pass):
    """Writes ``ctx.moments``: mean and standard deviation of each channel behind a BatchNormalization.

    Given:
        a graph with lifted constants whose BatchNormalizations are still there.
    Result:
        the graph unchanged; `ctx.moments` by the names of their outputs, which the layers they are folded into keep.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CONSTANTS_LIFTED})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.MOMENTS})
    preserves_function: ClassVar[bool] = True

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Read them."""
        ctx.moments = read_moments(graph)
        return PassReport()
