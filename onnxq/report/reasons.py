"""What stayed float and why, grouped so that a person can read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from onnxq.plan import Decision


@dataclass(frozen=True, slots=True)
class ReasonGroup:
    """The nodes that stay float for one reason.

    Attributes:
        reason: Why.
        nodes: Which, in the order of the graph.
    """

    reason: str
    nodes: tuple[Decision, ...]

    @property
    def op_types(self) -> str:
        """Their operator types, the most frequent first: ``Add x12, Mul``."""
        counts = Counter(node.op_type for node in self.nodes).most_common()
        return ", ".join(name if count == 1 else f"{name} x{count}" for name, count in counts)

    def to_dict(self) -> dict[str, object]:
        """Content for JSON."""
        return {"reason": self.reason, "count": len(self.nodes), "nodes": [node.node for node in self.nodes]}


def group_reasons(decisions: Iterable[Decision]) -> tuple[ReasonGroup, ...]:
    """Group nodes by reason, the most frequent reason first, else in the order of the graph."""
    groups: dict[str, list[Decision]] = {}
    for decision in decisions:
        groups.setdefault(decision.reason or "no reason given", []).append(decision)
    found = [ReasonGroup(reason, tuple(nodes)) for reason, nodes in groups.items()]
    return tuple(sorted(found, key=lambda group: -len(group.nodes)))
