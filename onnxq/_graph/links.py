"""Edges of the graph: rewiring graphsurgeon's lists in linear time, names, and the checks on both.

graphsurgeon keeps every edge in two lists, ``node.inputs`` and ``tensor.outputs``, and keeps them in
step by comparing whole nodes. Here both are written directly, and compared by identity.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from onnxq.errors import GraphError

Node = Any
Tensor = Any
_DEFAULT_DOMAINS = ("", "ai.onnx", None)
_WIDE = 32
"""Lists with more edges are searched through an index."""


class Names:
    """All names in use, and fresh ones in constant time.

    Nodes and tensors share one space here, so that a name says one thing only.
    """

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)
        self._next: dict[str, int] = {}

    def take(self, name: str) -> None:
        """Note that `name` is in use."""
        self._taken.add(name)

    def take_all(self, names: Iterable[str]) -> None:
        """Note that all of `names` are in use."""
        self._taken.update(names)

    def fresh(self, base: str) -> str:
        """`base`, or `base` with the lowest number that makes it new; in use from now on."""
        name = base or "unnamed"
        number = self._next.get(name, 0)
        candidate = name if number == 0 else f"{name}_{number}"
        while candidate in self._taken:
            number += 1
            candidate = f"{name}_{number}"
        self._next[name] = number
        self._taken.add(candidate)
        return candidate


def matches(node: Node, wanted: frozenset[str]) -> bool:
    """Whether a node is one of the operators in `wanted` (see `GraphModel.nodes`)."""
    if node.domain in _DEFAULT_DOMAINS:
        return node.op in wanted or f"ai.onnx::{node.op}" in wanted
    return f"{node.domain}::{node.op}" in wanted or (node.op in wanted and not onnx.defs.has(node.op))


def distinct(nodes: Iterable[Node]) -> Iterator[Node]:
    """Each node once, in the order of its first occurrence."""
    return iter({id(node): node for node in nodes}.values())


def positions(node: Node, tensor: Tensor) -> list[int]:
    """The numbers of the inputs of `node` that read `tensor`; in constant time, however many inputs there are."""
    inputs = node.inputs
    if len(inputs) <= _WIDE:
        return [i for i, t in enumerate(inputs) if t is tensor]
    where = _where(inputs)
    return sorted({i for i in where.get(id(tensor), ()) if inputs[i] is tensor})


def _where(items: Any) -> dict[int, list[int]]:  # noqa: ANN401 - a gs list
    """Positions by identity, kept on the list; some may be out of date, so check before use."""
    length, where = items.__dict__.get("onnxq_where", (-1, {}))
    if length != len(items):
        where = {}
        for i, item in enumerate(items):
            where.setdefault(id(item), []).append(i)
        items.onnxq_where = len(items), where
    return where  # type: ignore[no-any-return] # gs is untyped


def _write(node: Node, index: int, tensor: Tensor) -> None:
    """Change one input of `node`, and nothing else."""
    list.__setitem__(node.inputs, index, tensor)
    if len(node.inputs) > _WIDE:
        _where(node.inputs).setdefault(id(tensor), []).append(index)


def drop(items: Any, item: object) -> None:  # noqa: ANN401 - a gs list
    """Remove one occurrence of `item` itself from a list of nodes.

    In constant time: in a long list the last one takes its place, in a short one the order stays.
    """
    last = len(items) - 1
    if last < _WIDE:
        for i, other in enumerate(items):
            if other is item:
                list.__delitem__(items, i)
                return
        return
    place = _place(items, item)
    if place < 0:
        return
    where = _where(items)
    moved = items[last]
    list.__setitem__(items, place, moved)
    list.__delitem__(items, last)
    where.setdefault(id(moved), []).append(place)
    items.onnxq_where = last, where


def _place(items: Any, item: object) -> int:  # noqa: ANN401 - a gs list
    for _ in range(2):
        places = _where(items).get(id(item), [])
        while places:
            place = places.pop()
            if place < len(items) and items[place] is item:
                return place
        items.onnxq_where = -1, {}  # something else changed the list: look once more
    return -1


def _append(items: Any, item: object) -> None:  # noqa: ANN401 - a gs list
    list.append(items, item)
    length, where = items.__dict__.get("onnxq_where", (-1, {}))
    if length == len(items) - 1:
        where.setdefault(id(item), []).append(length)
        items.onnxq_where = len(items), where


def set_input(node: Node, index: int, tensor: Tensor) -> None:
    """See `GraphModel.set_input`."""
    while len(node.inputs) <= index:
        node.inputs.append(gs.Variable.empty())
    old = node.inputs[index]
    if old is not tensor:
        _write(node, index, tensor)
        drop(old.outputs, node)
        _append(tensor.outputs, node)


def set_output(node: Node, index: int, tensor: Tensor) -> None:
    """Let `node` compute `tensor`; what it computed is left without a producer."""
    drop(node.outputs[index].inputs, node)
    list.__setitem__(node.outputs, index, tensor)
    list.append(tensor.inputs, node)


def move_all(old: Tensor, new: Tensor) -> None:
    """Let every reader of `old` read `new`."""
    readers = list(old.outputs)
    for node in distinct(readers):
        for i in positions(node, old):
            _write(node, i, new)
    list.extend(new.outputs, readers)
    list.clear(old.outputs)


def move_some(old: Tensor, new: Tensor, uses: Iterable[tuple[Node, int]]) -> None:
    """Let the named inputs read `new` instead of `old`.

    Raises:
        GraphError: If one of them does not read `old`; nothing is changed then.
    """
    uses = tuple(uses)
    for node, i in uses:
        if i >= len(node.inputs) or node.inputs[i] is not old:
            raise GraphError(f"input {i} of node {node.name!r} ({node.op}) does not read {old.name!r}")
    for node, i in uses:
        set_input(node, i, new)


def unlink(node: Node) -> None:
    """Cut all edges of `node`."""
    for tensor in node.inputs:
        drop(tensor.outputs, node)
    for tensor in node.outputs:
        drop(tensor.inputs, node)
    list.clear(node.inputs)
    list.clear(node.outputs)


def check_edges(
    nodes: Iterable[Node],
    tensors: Mapping[str, Tensor],
    given: frozenset[int],
    outputs: Iterable[Tensor],
    captures: Mapping[int, Mapping[str, Tensor]],
) -> None:
    """Check that what is read is computed once; see `GraphView.validate`.

    Raises:
        GraphError: At the first thing that is wrong.
    """
    for node in nodes:
        for tensor in (*node.inputs, *captures.get(id(node), {}).values()):
            _check_read(node, tensor, given)
        for tensor in (*node.inputs, *node.outputs):
            if tensor.name and tensors.get(tensor.name) is not tensor:
                raise GraphError(f"node {node.name!r} ({node.op}): two tensors are called {tensor.name!r}")
        for tensor in node.outputs:
            if tensor.name and (len(tensor.inputs) != 1 or id(tensor) in given or isinstance(tensor, gs.Constant)):
                names = ", ".join(repr(n.name) for n in tensor.inputs)
                raise GraphError(f"tensor {tensor.name!r} is computed twice (by {names}) or is an input or a constant")
    for tensor in outputs:
        if not (tensor.inputs or isinstance(tensor, gs.Constant) or id(tensor) in given):
            raise GraphError(f"nothing computes the graph output {tensor.name!r}")


def _check_read(node: Node, tensor: Tensor, given: frozenset[int]) -> None:
    if not (tensor.inputs or isinstance(tensor, gs.Constant) or id(tensor) in given or not tensor.name):
        raise GraphError(f"node {node.name!r} ({node.op}) reads {tensor.name!r}, which nothing computes")


def check_names(nodes: Iterable[Node], *, must_differ: bool) -> dict[str, Node]:
    """Nodes that have a name by it, the first one of each.

    Raises:
        GraphError: If two have one name, or one has none, and `must_differ`.
    """
    by_name: dict[str, Node] = {}
    for node in nodes:
        other: Any = by_name.setdefault(node.name, node) if node.name else None
        if must_differ and other is not node:
            what = "no name" if other is None else f"the name {node.name!r} of another one ({other.op})"
            raise GraphError(f"node {node.name!r} ({node.op}) has {what}; AssignNames gives each a name of its own")
    return by_name
