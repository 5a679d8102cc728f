"""Unique node names, since a name is the user's only handle for a node."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from onnxq.passes._base import Fact, Pass, PassReport

if TYPE_CHECKING:
    from onnxq.context import QuantContext
    from onnxq.graph import GraphModel


class AssignNames(Pass):
    """Every node gets a unique, non-empty name that depends on the graph only.

    Given:
        ``""`` (Conv), ``"a"`` (Relu), ``"a"`` (Relu)
    Result:
        ``"conv_0"``, ``"a"``, ``"a_1"``

    A node without a name is called after its operator and its position in topological order. Of
    several nodes with one name the first keeps it, the others get a number. Unique names stay.
    """

    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED})
    preserves_function: ClassVar[bool] = True

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Rename in topological order; the notes say which names changed to what."""
        notes: list[str] = []
        taken = {""}
        made = 0
        for position, node in enumerate(graph.nodes()):
            old = node.name
            if old not in taken:
                taken.add(old)
                continue
            new = graph.unique_name(old or f"{node.op.lower()}_{position}")
            graph.rename_node(node, new)
            taken.add(new)
            if old:
                notes.append(f"a node called {old!r} as another one is now {new!r}")
            else:
                made += 1
        if made:
            notes.append(f"{made} nodes had no name; they are now called after their operator and position")
        return PassReport(changed=made + len(notes) - bool(made), notes=tuple(notes))

    def verify(self, graph: GraphModel, ctx: QuantContext) -> None:
        """`GraphModel.validate` checks the names from now on.

        Raises:
            GraphError: If a node has no name, or that of another.
        """
        graph.check_names()
