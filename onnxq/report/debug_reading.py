"""Reads a quantized model: which nodes only make codes of floats or floats of codes, and what tensors stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.calib.segments import piece_session
from onnxq.graph import GraphModel, Node, OpaqueAttribute, Tensor

_ENCODING = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
_RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli")


@dataclass(frozen=True, slots=True)
class Source:
    """Where the values of a tensor come from.

    Attributes:
        names: The tensor itself; or codes, their scale and their zero point.
        factor: What the values are multiplied with, in a shape that broadcasts; None for 1.
        make: Computes a constant; None where `names` are tensors of the quantized model.
    """

    names: tuple[str, ...]
    factor: NDArray[np.float32] | None = field(default=None, compare=False)
    make: Callable[[], NDArray[Any]] | None = field(default=None, compare=False)

    def values(self, arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """The values, from what `names` hold."""
        if len(arrays) > 1:
            codes, scale, zero_point = arrays
            values: NDArray[Any] = (codes.astype(np.float32) - zero_point.astype(np.float32)) * scale
            return values
        return arrays[0] if self.factor is None else arrays[0] * self.factor


@dataclass
class Reading:
    """A quantized model that runs here, understood.

    Attributes:
        graph: The model.
        hidden: Identities of the nodes that only convert, or only decode constants.
        sources: Where the values of a tensor come from, for tensors that do not hold them as floats.
        names: What a tensor stands for, where it is not called so.
        constants: Names of tensors that are computed from constants alone.
    """

    graph: GraphModel
    hidden: set[int] = field(default_factory=set)
    sources: dict[str, Source] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    constants: dict[str, Node] = field(default_factory=dict)

    def is_constant(self, tensor: Tensor) -> bool:
        """Whether its values are known without running the model."""
        return self.graph.is_constant(tensor) or tensor.name in self.constants

    def holds_floats(self, tensor: Tensor) -> bool:
        """Whether there are floats to tell about, as far as that is known."""
        dtype = self.graph.dtype(tensor)
        return tensor.name in self.sources or dtype is None or "float" in dtype.name

    def source(self, tensor: Tensor) -> Source:
        """Where its values come from."""
        return self.sources.get(tensor.name) or Source((str(tensor.name),))

    def name(self, tensor: Tensor) -> str:
        """What it stands for."""
        return self.names.get(tensor.name, str(tensor.name))


def read_quantized(graph: GraphModel) -> Reading:
    """Understand a quantized model of standard operators.

    Args:
        graph: The model.
    """
    reading = Reading(graph)
    for node in graph.nodes():
        if _known(reading, node):
            reading.hidden.add(id(node))
            reading.constants |= {t.name: node for t in node.outputs if t.name}
        elif node.op in _ENCODING:
            reading.hidden.add(id(node))
        else:
            continue
        if node.inputs:
            reading.names |= {t.name: reading.name(node.inputs[0]) for t in node.outputs if t.name}
    return reading


def _known(reading: Reading, node: Node) -> bool:
    """Whether all a node gives can be computed from constants."""
    if node.op in _RANDOM or any(isinstance(value, OpaqueAttribute) for value in node.attrs.values()):
        return False
    return all(not t.name or reading.is_constant(t) for t in node.inputs)


class Constants:
    """The values of tensors that are computed from constants alone, one after the other.

    Args:
        reading: The model they are in.
    """

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._skeleton = reading.graph.skeleton() if reading.constants else onnx.ModelProto()
        self._nodes = list(self._skeleton.graph.node)
        self._makers = {name: place for place, node in enumerate(self._nodes) for name in node.output}

    def value(self, name: str) -> NDArray[Any]:
        """The values of one.

        Raises:
            ModelError: If ONNX Runtime cannot compute it.
        """
        graph = self._reading.graph
        if name not in self._reading.constants:
            return graph.value(graph.tensor(name))
        nodes, weights = self._needed(name)
        found: NDArray[Any] = piece_session(self._skeleton, nodes, weights, {}, [name]).run([name], {})[0]
        return found

    def _needed(self, name: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """The nodes and initializers a tensor is made of, in order."""
        places: set[int] = set()
        weights: dict[str, onnx.TensorProto] = {}
        waiting = [name]
        while waiting:
            wanted = waiting.pop()
            place = self._makers.get(wanted)
            if place is None:
                weights[wanted] = self._initializer(wanted)
            elif place not in places:
                places.add(place)
                waiting += [n for n in self._nodes[place].input if n]
        return [self._nodes[place] for place in sorted(places)], list(weights.values())

    def _initializer(self, name: str) -> onnx.TensorProto:
        value = np.ascontiguousarray(self._reading.graph.value(self._reading.graph.tensor(name)))
        return onnx.numpy_helper.from_array(value, name)


def decoded(constants: Constants, source: Source) -> NDArray[Any]:
    """The values of a source that is constant."""
    return source.make() if source.make is not None else source.values([constants.value(n) for n in source.names])


def fetched(source: Source, found: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """The values of a source that was computed."""
    return source.values([found[name] for name in source.names])
