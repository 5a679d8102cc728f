"""What each layer costs in float and in integers, and which layers are to be which for the whole to cost least.

A node computes in float or with codes; wherever one hands a tensor to one of the other kind, a conversion is due. That
is a labelling with costs of nodes and of pairs, whose least sum is a minimal cut.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import cast

OUTSIDE = ""
"""What an edge names in the place of a node where the tensor is an input or output of the model, which are float."""
_SCALE = 1000
"""Costs are compared in thousandths, as whole numbers: sums of floats would depend on their order."""


@dataclass(frozen=True, slots=True)
class Edge:
    """A tensor that one node gives and another one reads.

    Attributes:
        producer: The node that gives it.
        consumer: The node that reads it.
        conversion: What it costs to make codes of it, or floats again.
    """

    producer: str
    consumer: str
    conversion: float


@dataclass(frozen=True, slots=True)
class LayerCosts:
    """What the nodes of a model cost.

    Attributes:
        float_cost: Of each node that can have codes, what it costs in float.
        integer_cost: What it costs with 8-bit codes.
        edges: What it costs to hand on tensors between nodes of different kinds.
        rest: What all other nodes cost.
        unit: What the numbers are: microseconds, or operations where the backend does not run here.
        wide: How many times as much as with 8-bit codes a node costs with codes of 16 bits; None where it is computed
            in float between conversions.
    """

    float_cost: Mapping[str, float]
    integer_cost: Mapping[str, float]
    edges: tuple[Edge, ...] = ()
    rest: float = 0.0
    unit: str = "µs"
    wide: float | None = None
    _near: Mapping[str, tuple[Edge, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        near: dict[str, list[Edge]] = {}
        for edge in self.edges:
            for name in {edge.producer, edge.consumer}:
                near.setdefault(name, []).append(edge)
        object.__setattr__(self, "_near", MappingProxyType({k: tuple(v) for k, v in near.items()}))

    def total(self, floats: Collection[str], wide: Collection[str] = ()) -> float:
        """What the model costs.

        Args:
            floats: Nodes left float.
            wide: Nodes whose activations have 16 bits.
        """
        left = frozenset(floats)
        cost = self.rest
        for name, integer in self.integer_cost.items():
            if name in left:
                cost += self.float_cost[name]
            elif name in wide:
                cost += self._wide_cost(name)
            else:
                cost += integer
        for edge in self.edges:
            if self._is_float(edge.producer, left) != self._is_float(edge.consumer, left):
                cost += edge.conversion
        return cost

    def _wide_cost(self, name: str) -> float:
        if self.wide is not None:
            return self.wide * self.integer_cost[name]
        return self.float_cost[name] + sum(edge.conversion for edge in self._near.get(name, ()))

    def wide_pays(self, name: str) -> bool:
        """Whether a node costs less with codes of 16 bits than in float."""
        return self._wide_cost(name) < self.float_cost[name]

    def extra(self, name: str, floats: Collection[str]) -> float:
        """What it adds to the cost of the model to leave one more node float; negative where that saves.

        Args:
            name: The node.
            floats: Nodes left float already.
        """
        left = frozenset(floats)
        cost = self.float_cost[name] - self.integer_cost[name]
        for edge in self._near.get(name, ()):
            other = edge.consumer if edge.producer == name else edge.producer
            if other != name:
                cost += edge.conversion if not self._is_float(other, left) else -edge.conversion
        return cost

    def _is_float(self, name: str, floats: frozenset[str]) -> bool:
        return name in floats or name not in self.integer_cost

    def cheapest(self, floats: Iterable[str] = ()) -> frozenset[str]:
        """The nodes to leave float for the model to cost least.

        Args:
            floats: Nodes that must be among them.

        Returns:
            Of several such sets the smallest.
        """
        forced = frozenset(floats)
        cut = _Cut()
        for name, integer in self.integer_cost.items():
            cut.add(name, in_float=self.float_cost[name], in_codes=integer, forced=name in forced)
        for edge in self.edges:
            if edge.producer != edge.consumer:
                cut.join(edge.producer, edge.consumer, edge.conversion)
        return cut.floats()

    def to_dict(self) -> dict[str, object]:
        """Content for JSON; `from_dict` reads it back."""
        return {
            "float": dict(self.float_cost),
            "integer": dict(self.integer_cost),
            "edges": [[edge.producer, edge.consumer, edge.conversion] for edge in self.edges],
            "rest": self.rest,
            "unit": self.unit,
            "wide": self.wide,
        }

    @staticmethod
    def from_dict(content: Mapping[str, object]) -> LayerCosts:
        """What `to_dict` gave."""
        edges = cast("Sequence[tuple[str, str, float]]", content["edges"])
        return LayerCosts(
            dict(cast("Mapping[str, float]", content["float"])),
            dict(cast("Mapping[str, float]", content["integer"])),
            tuple(Edge(*edge) for edge in edges),
            float(cast("float", content["rest"])),
            str(content["unit"]),
            cast("float | None", content["wide"]),
        )


class _Cut:
    """A minimal cut by Dinic's algorithm: what stays with the sink is left float.

    Source: Y. Dinitz, Algorithm for solution of a problem of maximum flow in a network with power estimation, 1970.
    """

    _CODES, _FLOAT = 0, 1

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._links: list[list[int]] = [[], []]
        self._to: list[int] = []
        self._room: list[int] = []

    def add(self, name: str, *, in_float: float, in_codes: float, forced: bool) -> None:
        """Take a node that can have codes."""
        number = self._numbers[name] = len(self._links)
        self._links.append([])
        least = min(in_float, in_codes)
        self._link(self._CODES, number, _whole(in_float - least), 0)
        self._link(number, self._FLOAT, 1 << 60 if forced else _whole(in_codes - least), 0)

    def join(self, a: str, b: str, cost: float) -> None:
        """Take a tensor between two nodes; a node that was not added is float."""
        first, second = (self._numbers.get(name, self._FLOAT) for name in (a, b))
        if first != second:
            self._link(first, second, _whole(cost), _whole(cost))

    def floats(self) -> frozenset[str]:
        """The nodes that stay float: those that the flow cuts off from the source, and no more."""
        while True:
            depth = self._depths(self._CODES, forward=True)
            if depth[self._FLOAT] < 0:
                break
            at = [0] * len(self._links)
            while self._push(depth, at):
                pass
        # Seen from the sink, so that of equal cuts the one with the fewest float nodes is taken.
        reaching = self._depths(self._FLOAT, forward=False)
        return frozenset(name for name, number in self._numbers.items() if reaching[number] >= 0)

    def _link(self, a: int, b: int, there: int, back: int) -> None:
        for start, end, room in ((a, b, there), (b, a, back)):
            self._links[start].append(len(self._to))
            self._to.append(end)
            self._room.append(room)

    def _depths(self, start: int, *, forward: bool) -> list[int]:
        """How many links each node is away from `start`, along links with room; -1 where it cannot be reached."""
        depth = [-1] * len(self._links)
        depth[start] = 0
        waiting = deque([start])
        while waiting:
            node = waiting.popleft()
            for link in self._links[node]:
                other = self._to[link]
                if depth[other] < 0 and self._room[link if forward else link ^ 1] > 0:
                    depth[other] = depth[node] + 1
                    waiting.append(other)
        return depth

    def _push(self, depth: list[int], at: list[int]) -> int:
        """Send flow along one shortest path; how much."""
        path: list[int] = []
        node = self._CODES
        while node != self._FLOAT:
            links = self._links[node]
            while at[node] < len(links):
                link = links[at[node]]
                if self._room[link] > 0 and depth[self._to[link]] == depth[node] + 1:
                    break
                at[node] += 1
            if at[node] < len(links):
                path.append(links[at[node]])
                node = self._to[path[-1]]
            elif path:
                node = self._to[path.pop() ^ 1]
                at[node] += 1
            else:
                return 0
        amount = min(self._room[link] for link in path)
        for link in path:
            self._room[link] -= amount
            self._room[link ^ 1] += amount
        return amount


def _whole(cost: float) -> int:
    return max(0, round(cost * _SCALE))
