"""Writing nodes that carry slopes backwards, for tensors whose shapes are known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.tune.prefixes import Copies

Shape = tuple[int, ...]
STEP = 0.01
"""How far apart, in parts of a tensor's size, two values are whose difference stands for a derivative."""


@dataclass(eq=False)
class Slopes:
    """What rules write with, and what they know of the model.

    Attributes:
        copies: Takes the nodes.
        shapes: Shape of every tensor of numbers, for one sample.
        sizes: Root mean square of every float tensor, for one sample.
        values: Small tensors of whole numbers, for one sample: shapes, positions, repeats.
    """

    copies: Copies
    shapes: Mapping[str, Shape]
    sizes: Mapping[str, float]
    values: Mapping[str, NDArray[Any]]
    _constants: dict[tuple[str, Shape, bytes], str] = field(default_factory=dict)

    def value(self, name: str) -> NDArray[Any] | None:
        """A constant, or a small tensor of whole numbers; None for others."""
        if not name:
            return None
        if name in self.values:
            return self.values[name]
        graph = self.copies.graph
        tensor = graph.tensor(name)
        return graph.value(tensor) if graph.is_constant(tensor) else None

    def constant(self, value: NDArray[Any]) -> str:
        """A constant; equal ones are written once."""
        array = np.asarray(value)
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.copies.constant(array)
        return self._constants[key]

    def number(self, value: float) -> str:
        """A float constant without dimensions."""
        return self.constant(np.array(value, np.float32))

    def node(self, op: str, *inputs: str, **attrs: Any) -> str:  # noqa: ANN401 - as ONNX has it
        """A node with one output."""
        return self.copies.node(op, inputs, **attrs)

    def again(self, proto: onnx.NodeProto, inputs: Mapping[int, str], outputs: int = 1) -> list[str]:
        """A node of the model once more, with other inputs; gives the names of its outputs."""
        names = [inputs.get(index, name) for index, name in enumerate(proto.input)]
        twin = onnx.NodeProto()
        twin.CopyFrom(proto)
        twin.name = f"onnxq.again{len(self.copies.nodes)}"
        del twin.input[:], twin.output[:]
        twin.input.extend(names)
        twin.output.extend(f"{twin.name}.{number}" for number in range(outputs))
        self.copies.nodes.append(twin)
        return list(twin.output)

    def reshape(self, tensor: str, shape: Sequence[int]) -> str:
        """The same values in another shape."""
        return self.node("Reshape", tensor, self.constant(np.array(shape, np.int64)))

    def expand(self, tensor: str, shape: Sequence[int]) -> str:
        """Values repeated along dimensions of size 1."""
        return self.node("Expand", tensor, self.constant(np.array(shape, np.int64)))

    def total(self, tensor: str, axes: Sequence[int]) -> str:
        """Sums along axes, which stay as dimensions of size 1."""
        if not axes:
            return tensor
        return self.node("ReduceSum", tensor, self.constant(np.array(axes, np.int64)), keepdims=1)

    def mean(self, tensor: str, shape: Shape, axes: Sequence[int]) -> str:
        """Means along axes, which stay as dimensions of size 1."""
        count = math.prod(shape[axis] for axis in axes)
        return self.node("Mul", self.total(tensor, axes), self.number(1.0 / count))

    def summed_to(self, tensor: str, shape: Shape, wanted: Shape) -> str:
        """What broadcasting from one shape to another adds up to on its way back."""
        if shape == wanted:
            return tensor
        extra = len(shape) - len(wanted)
        axes = [a for a in range(len(shape)) if a < extra or (wanted[a - extra] == 1 and shape[a] > 1)]
        return self.reshape(self.total(tensor, axes), wanted)

    def masked(self, slope: str, a: str, b: str) -> str:
        """A slope where two tensors are equal, 0 elsewhere."""
        return self.node("Mul", slope, self.node("Cast", self.node("Equal", a, b), to=onnx.TensorProto.FLOAT))


def attribute(proto: onnx.NodeProto, name: str, default: Any) -> Any:  # noqa: ANN401 - whatever ONNX has
    """An attribute of a node."""
    for entry in proto.attribute:
        if entry.name == name:
            found = onnx.helper.get_attribute_value(entry)
            return found.decode() if isinstance(found, bytes) else found
    return default
