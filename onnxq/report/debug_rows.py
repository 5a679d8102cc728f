"""Which tensors a debug report has rows for, and where their values come from in both models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.graph import GraphModel, Node, Tensor
from onnxq.report.debug_reading import Reading, Source
from onnxq.report.debug_standins import StandIn
from onnxq.report.pairs import after_rounding


@dataclass(frozen=True, slots=True)
class Measure:
    """A tensor in both models; every one is measured once, however many rows show it.

    Attributes:
        origin: Its name in the float model; None where that has none.
        source: Where its values come from in the quantized model.
        constant: Both are known without running anything.
    """

    origin: str | None
    source: Source
    constant: bool


@dataclass(frozen=True, slots=True)
class Place:
    """An input or an output of a node of the quantized model.

    Attributes:
        node: Name of the node.
        op_type: Its operator type.
        index: Which input or output.
        output: Whether it is an output.
        tensor: What the tensor is called in the float model, or in the quantized one where that has none.
        measure: What is told about it.
    """

    node: str
    op_type: str
    index: int
    output: bool
    tensor: str
    measure: Measure


@dataclass(frozen=True, slots=True)
class Layout:
    """The rows of a debug report.

    Attributes:
        places: In the order in which the quantized model runs.
        outputs: The graph outputs by name.
    """

    places: tuple[Place, ...]
    outputs: Mapping[str, Measure] = field(default_factory=dict)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Each once."""
        return tuple(dict.fromkeys([*(p.measure for p in self.places), *self.outputs.values()]))


def find_places(original: GraphModel, reading: Reading, stand_ins: Mapping[int, StandIn] | None = None) -> Layout:
    """Match the tensors of two models.

    Args:
        original: The float model.
        reading: What became of it, as it runs here.
        stand_ins: Nodes of the float model to show in the place of nodes of the quantized one, by their identities.
    """
    finder = _Finder(original, reading, original.tensors())
    places = tuple(finder.places(stand_ins or {}))
    known = finder.known
    outputs = {
        t.name: Measure(t.name, Source((t.name,)), constant=False)
        for t in reading.graph.outputs
        if t.name in known and reading.graph.is_tensor(t) and not reading.is_constant(t)
    }
    return Layout(places, outputs)


@dataclass(frozen=True, slots=True)
class _Finder:
    original: GraphModel
    reading: Reading
    known: Mapping[str, Tensor]

    def places(self, stand_ins: Mapping[int, StandIn]) -> Iterator[Place]:
        """The places of all nodes that are shown."""
        for node in self.reading.graph.nodes():
            if id(node) in stand_ins:
                yield from self.of_stand_in(stand_ins[id(node)])
            elif id(node) not in self.reading.hidden:
                yield from self.of_node(node)

    def of_stand_in(self, stand_in: StandIn) -> Iterator[Place]:
        """The places of a node of the float model."""
        node = stand_in.node
        for output, tensors in ((False, node.inputs), (True, node.outputs)):
            for index, tensor in enumerate(tensors):
                source = stand_in.sources.get((output, index))
                if source is not None and is_float(tensor, self.original):
                    measure = Measure(str(tensor.name), source, not output and index in stand_in.constants)
                    yield Place(str(node.name), str(node.op), index, output, str(tensor.name), measure)

    def of_node(self, node: Node) -> Iterator[Place]:
        """The places of a node: its inputs, then its outputs."""
        for index, tensor in enumerate(node.inputs):
            if tensor.name:
                yield from self._place(node, index, tensor, tensor, output=False)
        for index, tensor in enumerate(node.outputs):
            if tensor.name:
                yield from self._place(node, index, tensor, after_rounding(self.reading.graph, tensor), output=True)

    def _place(self, node: Node, index: int, tensor: Tensor, seen: Tensor, *, output: bool) -> Iterator[Place]:
        reading = self.reading
        source = reading.source(seen)
        constant = reading.is_constant(seen)
        if not (reading.holds_floats(seen) and reading.graph.is_tensor(seen)):
            return
        origin = self._constant(node, index, seen) if constant else self._variable(node, index, tensor, seen, output)
        name = origin or reading.name(tensor)
        yield Place(str(node.name), str(node.op), index, output, name, Measure(origin, source, constant))

    def _variable(self, node: Node, index: int, tensor: Tensor, seen: Tensor, output: bool) -> str | None:
        """The float model's tensor: of the same name, else at the same place of the same node."""
        for name in (seen.name, tensor.name, self.reading.name(tensor), self.reading.name(seen)):
            found = self.known.get(name)
            if found is not None and not self.original.is_constant(found):
                return str(name)
        found = self._same_place(node, index, output=output)
        return None if found is None or self.original.is_constant(found) else str(found.name)

    def _constant(self, node: Node, index: int, tensor: Tensor) -> str | None:
        """The float model's constant: at the same place of the same node, else of the same name."""
        found = self._same_place(node, index, output=False)
        for candidate in (found, self.known.get(self.reading.name(tensor))):
            if candidate is not None and self.original.is_constant(candidate) and is_float(candidate, self.original):
                return str(candidate.name)
        return None

    def _same_place(self, node: Node, index: int, *, output: bool) -> Tensor | None:
        if not self.original.has_node(node.name):
            return None
        other = self.original.node(node.name)
        tensors = other.outputs if output else other.inputs
        if other.op != node.op or index >= len(tensors) or not tensors[index].name:
            return None
        return tensors[index]


def is_float(tensor: Tensor, graph: GraphModel) -> bool:
    """Whether a tensor holds floats, as far as that is known."""
    dtype = graph.dtype(tensor)
    return dtype is None or "float" in dtype.name


def as_floats(values: NDArray[Any]) -> NDArray[np.floating[Any]]:
    """Values in a type that numpy computes with: float32 or float64."""
    return values if values.dtype in (np.float32, np.float64) else values.astype(np.float32)
