"""A stable, iterative topological order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from onnxq.errors import GraphError


def topological(nodes: list[Any], producers_of: Callable[[Any], Iterable[Any]]) -> list[Any]:
    """Order nodes so that each comes after the producers of what it reads.

    An order that is right already is kept; a node that comes too late is moved to just before its
    first reader. Linear in nodes and edges, without recursion.

    Args:
        nodes: `gs.Node` objects.
        producers_of: The nodes that must come before a node.

    Raises:
        GraphError: If there is a cycle; names one node of it.
    """
    done: set[int] = set()
    open_: set[int] = set()
    result: list[Any] = []
    for root in nodes:
        if id(root) in done:
            continue
        stack = [(root, iter(producers_of(root)))]
        open_.add(id(root))
        while stack:
            node, waiting = stack[-1]
            for producer in waiting:
                if id(producer) in done:
                    continue
                if id(producer) in open_:
                    raise GraphError(f"node {node.name!r} ({node.op}) depends on its own output: the graph has a cycle")
                open_.add(id(producer))
                stack.append((producer, iter(producers_of(producer))))
                break
            else:
                stack.pop()
                open_.discard(id(node))
                done.add(id(node))
                result.append(node)
    return result
