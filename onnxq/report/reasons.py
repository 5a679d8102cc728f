"""What stayed float and why, grouped so that a person can read it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from onnxq.plan import Decision

_QUOTED = re.compile(r"'[^']*'")
_WORD = re.compile(r"\b[A-Z]\w+\b")


@dataclass(frozen=True, slots=True)
class ReasonGroup:
    """The nodes that stay float for one reason.

    Attributes:
        reason: Why; what differs between the nodes (names, operator types) is an ellipsis.
        nodes: Which, in the order of the graph.
    """

    reason: str
    nodes: tuple[Decision, ...]

    @property
    def op_types(self) -> str:
        """Their operator types, the most frequent first: ``Add x12, Mul``."""
        counts = Counter(node.op_type for node in self.nodes).most_common()
        return ", ".join(name if count == 1 else f"{name} x{count}" for name, count in counts)


def group_reasons(decisions: Iterable[Decision]) -> tuple[ReasonGroup, ...]:
    """Group nodes by reason, the most frequent reason first, else in the order of the graph.

    Reasons that differ only in the names of nodes and tensors or in operator types are one, except those
    that name an entry of the recipe.
    """
    listed = list(decisions)
    types = {decision.op_type for decision in listed}
    groups: dict[str, list[Decision]] = {}
    for decision in listed:
        groups.setdefault(_pattern(decision.reason, types), []).append(decision)
    found = [ReasonGroup(_common(pattern, nodes), tuple(nodes)) for pattern, nodes in groups.items()]
    return tuple(sorted(found, key=lambda group: -len(group.nodes)))


def _pattern(reason: str, op_types: Collection[str]) -> str:
    """`reason` with an ellipsis for each name and operator type; what the user wrote in the recipe stays."""
    if "recipe" in reason:
        return reason
    text = _QUOTED.sub("…", reason or "no reason given")
    text = _WORD.sub(lambda word: "…" if word.group() in op_types else word.group(), text)
    return re.sub(r"…( …)+", "…", text)


def _common(pattern: str, nodes: list[Decision]) -> str:
    reasons = {node.reason for node in nodes}
    return nodes[0].reason or pattern if len(reasons) == 1 else pattern
