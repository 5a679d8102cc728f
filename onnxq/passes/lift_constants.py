"""Constant nodes become initializers, so that weights are found wherever an exporter put them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from onnxq.errors import GraphError
from onnxq.passes._base import Fact, Pass, PassReport

if TYPE_CHECKING:
    from onnxq.context import QuantContext
    from onnxq.graph import GraphModel


class LiftConstants(Pass):
    """A Constant node of the main graph becomes an initializer of the same name.

    Given:
        ``Constant(value=W) -> w``, ``Conv(x, w)``
    Result:
        ``Conv(x, w)`` with the initializer ``w``

    Every form of the node is known: `value`, `sparse_value`, `value_float(s)`, `value_int(s)` and
    `value_string(s)`. The numbers are not read. Bodies of If, Loop and Scan stay as they are.
    """

    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.CONSTANTS_LIFTED})
    preserves_function: ClassVar[bool] = True

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Lift all of them.

        Raises:
            GraphError: If the value of one has a form that ONNX does not define.
        """
        nodes = graph.nodes("Constant")
        for node in nodes:
            if graph.lift(node) is None:
                forms = ", ".join(map(repr, node.attrs)) or "no attribute"
                raise GraphError(f"Constant node {node.name!r} has {forms}; it must have exactly one value attribute")
        return PassReport(changed=len(nodes))

    def verify(self, graph: GraphModel, ctx: QuantContext) -> None:
        """No Constant node is left.

        Raises:
            GraphError: If there is one.
        """
        if left := graph.nodes("Constant"):
            raise GraphError(f"Constant node {left[0].name!r} is still there")
