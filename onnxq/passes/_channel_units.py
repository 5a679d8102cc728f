"""Channels that must be kept or removed together, and where in a graph they are.

Every output channel of a layer is a unit. Following the graph forward, each axis that holds channels gets the numbers
of its units; -1 stands for a channel that no layer makes. An Add ties the units of its operands, an operator that
mixes channels fixes them, and whatever has a size that depends on them is noted as an edit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.graph import GraphModel, Node, Tensor
from onnxq.passes._linear import WeightLayout, describe

Labels = NDArray[np.int64]
"""Units along an axis, shape (C,)."""
Mask = NDArray[np.bool_]
NONE = -1


class Units:
    """A union-find over all units."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._reasons: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._parent)

    def new(self, count: int) -> Labels:
        """Units of a new layer."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def find(self, unit: int) -> int:
        """The unit that stands for all those `unit` is tied to: the first of them."""
        parent = self._parent
        while parent[unit] != unit:
            parent[unit] = parent[parent[unit]]
            unit = parent[unit]
        return unit

    def roots(self, labels: Labels) -> Labels:
        """`find` of each."""
        return np.asarray([self.find(u) if u >= 0 else NONE for u in labels.tolist()], np.int64)

    def tie(self, first: Labels, second: Labels, reason: str) -> None:
        """Let both be kept or removed together, one by one.

        Args:
            first: Units.
            second: As many.
            reason: Why a unit is fixed that is tied to a channel of no layer.
        """
        if first is second:
            return
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            if a < 0 or b < 0:
                self._fix(max(a, b), reason)
                continue
            a, b = sorted((self.find(a), self.find(b)))
            if a != b:
                self._parent[b] = a
                told = self._reasons.pop(b, None)
                if told is not None:
                    self._reasons.setdefault(a, told)

    def fix(self, labels: Labels, reason: str) -> None:
        """Never remove these."""
        for unit in labels.tolist():
            self._fix(unit, reason)

    def _fix(self, unit: int, reason: str) -> None:
        if unit >= 0:
            self._reasons.setdefault(self.find(unit), reason)

    def why_fixed(self, unit: int) -> str | None:
        """Why a unit cannot be removed, or None."""
        return self._reasons.get(self.find(unit))


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """The axis of a tensor that holds channels, and their units."""

    axis: int
    labels: Labels


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A layer that makes channels.

    Attributes:
        node: Conv, ConvTranspose, Gemm or MatMul.
        weight: Its weight.
        layout: How the weight is laid out.
        units: Its output channels.
    """

    node: Node
    weight: Tensor
    layout: WeightLayout
    units: Labels


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """Something that changes with the number of channels.

    Attributes:
        labels: It changes if any of these is removed.
        apply: Makes the change, given which of all units are kept.
    """

    labels: Labels
    apply: Callable[[Mask], None]


@dataclass(slots=True, eq=False)
class Trace:
    """What has been found so far.

    Attributes:
        graph: The graph; it is not changed before the edits are applied.
        units: All channels.
        layers: The layers that make them.
        places: Where they are, by ``id`` of the tensor.
        edits: What has to change.
        parts: Sets of channels of which some must be left, one entry each: the outputs of a Split.
        groups: For grouped convolutions: channels of each group, which must stay equally many; and why nothing is
            removed where they cannot.
        reasons: Why layers make no channels that could be removed, by ``id`` of the node.
    """

    graph: GraphModel
    units: Units = field(default_factory=Units)
    layers: list[Layer] = field(default_factory=list)
    places: dict[int, Place] = field(default_factory=dict)
    tensors: dict[int, Tensor] = field(default_factory=dict)
    edits: list[Edit] = field(default_factory=list)
    parts: list[Labels] = field(default_factory=list)
    groups: list[tuple[list[Labels], str]] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)

    def at(self, tensor: Tensor) -> Place | None:
        """Where the channels of a tensor are; None if it has none that could be removed."""
        return self.places.get(id(tensor))

    def labelled(self, node: Node) -> list[tuple[int, Place]]:
        """The inputs of a node that have channels."""
        return [(i, p) for i, t in enumerate(node.inputs) if t.name and (p := self.at(t)) is not None]

    def put(self, tensor: Tensor, axis: int, labels: Labels) -> None:
        """Say where the channels of a tensor are."""
        if not (labels >= 0).any():
            return
        self.places[id(tensor)] = Place(axis, labels)
        self.tensors[id(tensor)] = tensor
        if self.graph.is_output(tensor):
            self.units.fix(labels, f"its channels are those of the graph output {tensor.name!r}")
        if self.graph.read_by_subgraph(tensor):
            self.units.fix(labels, f"{tensor.name!r} is read inside the body of an If, Loop or Scan")

    def follow(self, node: Node, place: Place) -> None:
        """The first output has the channels of `place`."""
        self.put(node.outputs[0], place.axis, place.labels)

    def fix_inputs(self, node: Node, what: str) -> None:
        """Remove none of the channels that a node reads.

        Args:
            node: The node.
            what: What it does, behind its name.
        """
        for _, place in self.labelled(node):
            self.units.fix(place.labels, f"{describe(node)} behind it {what}")

    def edit(self, labels: Labels, apply: Callable[[Mask], None]) -> None:
        """Note what has to be changed if any of `labels` is removed."""
        self.edits.append(Edit(labels, apply))

    def cut(self, node: Node, index: int, axis: int, labels: Labels) -> None:
        """Note that a constant that `node` reads has channels on an axis."""
        self.edit(labels, lambda alive: cut_constant(self.graph, node, index, {axis: keep(labels, alive)}))

    def dim(self, tensor: Tensor, axis: int) -> int | None:
        """The size of a dimension, if it is known."""
        shape = self.graph.shape(tensor)
        if shape is None or not -len(shape) <= axis < len(shape):
            return None
        size = shape[axis]
        return size if isinstance(size, int) else None


def sizes_of(graph: GraphModel, tensor: Tensor) -> tuple[int, ...]:
    """The shape of a constant."""
    return tuple(d for d in graph.shape(tensor) or () if isinstance(d, int))


def keep(labels: Labels, alive: Mask) -> Labels:
    """Positions of the channels that are kept; those of no layer always are.

    Args:
        labels: Units of an axis.
        alive: Which of all units are kept.
    """
    return np.flatnonzero((labels < 0) | alive[labels])


def count(labels: Labels, alive: Mask) -> int:
    """How many of `labels` are kept."""
    return len(keep(labels, alive))


def cut_constant(graph: GraphModel, node: Node, index: int, kept: dict[int, Labels]) -> None:
    """Let a node read only some of the entries of a constant.

    Args:
        graph: The graph.
        node: The reader.
        index: Which input.
        kept: Positions that are kept, by axis.
    """
    tensor = node.inputs[index]
    shape = list(sizes_of(graph, tensor))
    for axis, positions in kept.items():
        shape[axis] = len(positions)

    def make(array: NDArray[Any]) -> NDArray[Any]:
        for axis, positions in kept.items():
            array = np.take(array, positions, axis)
        return np.ascontiguousarray(array)

    write_constant(graph, node, index, make, shape)


def write_constant(
    graph: GraphModel, node: Node, index: int, make: Callable[[NDArray[Any]], NDArray[Any]], shape: Iterable[int]
) -> None:
    """Let a node read what `make` gives of a constant; it keeps its name where nobody else reads it.

    Args:
        graph: The graph.
        node: The reader.
        index: Which input.
        make: Called whenever the numbers are read.
        shape: Of what it gives.
    """
    tensor = node.inputs[index]
    numbers = graph.derived(tensor, make, shape=tuple(shape), dtype=graph.dtype(tensor))
    if graph.is_private(tensor):
        graph.rewrite_constant(tensor, numbers)
    else:
        graph.set_input(node, index, graph.add_constant(f"{tensor.name}_pruned", numbers))
