"""Edges of the graph: rewiring graphsurgeon's lists in linear time, names, and the checks on both.

graphsurgeon keeps every edge in two lists, ``node.inputs`` and ``tensor.outputs``, and keeps them in
step by comparing whole nodes. Here both are written directly, and compared by identity.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxq._graph import dtypes
from onnxq._graph.weights import LazyArray
from onnxq.errors import GraphError
from onnxq.spec import QType

Node = Any
Tensor = Any
_DEFAULT_DOMAINS = ("", "ai.onnx", None)


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
    """The numbers of the inputs of `node` that read `tensor`."""
    return [i for i, t in enumerate(node.inputs) if t is tensor]


def drop(items: list[Any], item: object) -> None:
    """Remove one occurrence of `item` itself, looked for from both ends."""
    last = len(items) - 1
    for i in range(last // 2 + 1):
        if items[i] is item:
            list.__delitem__(items, i)
            return
        if items[last - i] is item:
            list.__delitem__(items, last - i)
            return


def set_input(node: Node, index: int, tensor: Tensor) -> None:
    """See `GraphModel.set_input`."""
    while len(node.inputs) <= index:
        node.inputs.append(gs.Variable.empty())
    old = node.inputs[index]
    if old is tensor:
        return
    list.__setitem__(node.inputs, index, tensor)
    drop(old.outputs, node)
    list.append(tensor.outputs, node)


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
            list.__setitem__(node.inputs, i, new)
    list.extend(new.outputs, readers)
    list.clear(old.outputs)


def move_some(old: Tensor, new: Tensor, uses: Iterable[tuple[Node, int]]) -> None:
    """Let the named inputs read `new` instead of `old`; linear in the readers of `old`.

    Raises:
        GraphError: If one of them does not read `old`.
    """
    moved: dict[int, int] = {}
    for node, i in uses:
        if i >= len(node.inputs) or node.inputs[i] is not old:
            raise GraphError(f"input {i} of node {node.name!r} ({node.op}) does not read {old.name!r}")
        list.__setitem__(node.inputs, i, new)
        list.append(new.outputs, node)
        moved[id(node)] = moved.get(id(node), 0) + 1
    left = []
    for node in old.outputs:
        if moved.get(id(node), 0):
            moved[id(node)] -= 1
        else:
            left.append(node)
    list.__setitem__(old.outputs, slice(None), left)


def unlink(node: Node) -> None:
    """Cut all edges of `node`."""
    for tensor in node.inputs:
        drop(tensor.outputs, node)
    for tensor in node.outputs:
        drop(tensor.inputs, node)
    list.clear(node.inputs)
    list.clear(node.outputs)


def as_codes(array: NDArray[Any], qtype: QType) -> NDArray[Any]:
    """Integer codes in the element type of `qtype`, shape unchanged.

    Raises:
        ValueError: If they are not integers or one is out of range.
    """
    dtype = dtypes.of_qtype(qtype)
    if array.dtype == dtype:
        return array
    if array.dtype.kind not in "iu":
        raise ValueError(f"{qtype.label} codes must be integers, got {array.dtype}")
    low, high = qtype.bounds
    if array.size and (int(array.min()) < low or int(array.max()) > high):
        raise ValueError(f"codes {array.min()}..{array.max()} are outside {qtype.label}'s {low}..{high}")
    return array.astype(dtype)


def lazy_codes(lazy: LazyArray, qtype: QType) -> LazyArray:
    """`as_codes` of an array that is not made yet."""
    return LazyArray(lazy.shape, dtypes.of_qtype(qtype), lambda: as_codes(np.asarray(lazy.make()), qtype))


def check(
    nodes: Iterable[Node],
    tensors: Mapping[str, Tensor],
    inputs: Iterable[Tensor],
    outputs: Iterable[Tensor],
    captures: Mapping[int, Mapping[str, Tensor]],
) -> None:
    """See `GraphModel.validate`; the order of the nodes has been checked before.

    Raises:
        GraphError: At the first thing that is wrong.
    """
    given = {id(t) for t in inputs}
    for node in nodes:
        for tensor in (*node.inputs, *captures.get(id(node), {}).values()):
            _check_read(f"node {node.name!r} ({node.op})", tensor, given)
        for tensor in (*node.inputs, *node.outputs):
            if tensor.name and tensors.get(tensor.name) is not tensor:
                raise GraphError(f"node {node.name!r} ({node.op}): two tensors are called {tensor.name!r}")
        for tensor in node.outputs:
            if tensor.name and (len(tensor.inputs) != 1 or id(tensor) in given or isinstance(tensor, gs.Constant)):
                names = [n.name for n in tensor.inputs] or ["nobody"]
                raise GraphError(f"tensor {tensor.name!r} must have exactly one producer, has {', '.join(names)}")
    for tensor in outputs:
        _check_read("the graph's outputs", tensor, given)


def _check_read(who: str, tensor: Tensor, given: set[int]) -> None:
    if not (tensor.inputs or isinstance(tensor, gs.Constant) or id(tensor) in given or not tensor.name):
        raise GraphError(f"{who} read {tensor.name!r}, which nothing computes")
