"""A node of a training graph that is looked at, and what is written in its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxq.errors import GraphError
from onnxq.graph import Dim, GraphModel, Node, Tensor
from onnxq.passes._training_ops import Chain

Size: TypeAlias = int | Tensor
"""The length of an axis: a number, or an int64 tensor of shape (1,) where only the running model knows it."""
END = np.iinfo(np.int64).max


class RefusalError(GraphError):
    """A node cannot be trained through; says why and what to do, but not which node."""


class LegalChain(Chain):
    """Adds operators of opset 13 and newer; shapes of their results are left open."""

    def op(
        self,
        op: str,
        *inputs: Tensor | None,
        shape: Sequence[Dim] | None = None,
        dtype: object = np.float32,
        **attrs: object,
    ) -> Tensor:
        """The first result of an operator."""
        node = self.graph.add_node(op, inputs, name=f"{self.name}/{op.lower()}", attrs=attrs, dtype=dtype, shape=shape)
        return node.outputs[0]

    def ints(self, *values: int) -> Tensor:
        """An int64 constant of one axis."""
        return self.graph.add_constant(f"{self.name}/ints", np.asarray(values, np.int64))

    def real(self, value: ArrayLike) -> Tensor:
        """A float32 constant that is not trained."""
        return self.number("number", value)

    def identity(self, tensor: Tensor) -> Tensor:
        """The same values under another name."""
        return self.op("Identity", tensor, shape=self.graph.shape(tensor))

    # ---- shapes

    def sizes(self, tensor: Tensor) -> list[Size]:
        """The lengths of the axes of a tensor of known rank."""
        dims = self.graph.shape(tensor) or ()
        if all(isinstance(dim, int) for dim in dims):
            return list(dims)
        whole = self.op("Shape", tensor, dtype=np.int64, shape=[len(dims)])
        return [
            dim if isinstance(dim, int) else self.op("Slice", whole, self.ints(i), self.ints(i + 1), dtype=np.int64)
            for i, dim in enumerate(dims)
        ]

    def times(self, size: Size, factor: int) -> Size:
        """A length times a number."""
        if isinstance(size, int):
            return size * factor
        return size if factor == 1 else self.op("Mul", size, self.ints(factor), dtype=np.int64)

    def dims(self, sizes: Sequence[Size]) -> Tensor:
        """Lengths as one int64 tensor."""
        if all(isinstance(size, int) for size in sizes):
            return self.ints(*sizes)
        parts = [self.ints(size) if isinstance(size, int) else size for size in sizes]
        return self.op("Concat", *parts, axis=0, dtype=np.int64)

    def reshape(self, tensor: Tensor, sizes: Sequence[Size]) -> Tensor:
        """The same values in another shape; 0 keeps the length of an axis, -1 is what is left."""
        return self.op("Reshape", tensor, self.dims(sizes))

    def unsqueeze(self, tensor: Tensor, *axes: int) -> Tensor:
        """With axes of length 1."""
        return self.op("Unsqueeze", tensor, self.ints(*axes))

    def squeeze(self, tensor: Tensor, *axes: int) -> Tensor:
        """Without axes of length 1."""
        return self.op("Squeeze", tensor, self.ints(*axes))

    def transpose(self, tensor: Tensor, *perm: int) -> Tensor:
        """With its axes in another order."""
        if perm == tuple(range(len(perm))):
            return tensor
        return self.op("Transpose", tensor, perm=list(perm))

    def per_channel(self, vector: Tensor, rank: int) -> Tensor:
        """A vector with one value per channel, to be broadcast against a tensor whose channels are axis 1."""
        return vector if rank == 2 else self.reshape(vector, [-1, *[1] * (rank - 2)])

    # ---- values

    def slice(self, tensor: Tensor, axis: int, start: int, end: int = END) -> Tensor:
        """A part along an axis."""
        return self.op("Slice", tensor, self.ints(start), self.ints(end), self.ints(axis))

    def gather(self, tensor: Tensor, indices: ArrayLike, axis: int) -> Tensor:
        """Values by indexes that do not change."""
        constant = self.graph.add_constant(f"{self.name}/indices", np.asarray(indices, np.int64))
        return self.op("Gather", tensor, constant, axis=axis)

    def top(self, tensor: Tensor, axis: int, *, largest: bool = True) -> Tensor:
        """The largest or the smallest value along an axis, which stays."""
        name = f"{self.name}/topk"
        node = self.graph.add_node(
            "TopK", [tensor, self.ints(1)], name=name, attrs={"axis": axis, "largest": int(largest)},
            outputs=[f"{name}_output", f"{name}_index"],
        )  # fmt: skip
        self.graph.set_type(node.outputs[0], np.float32, None)
        self.graph.set_type(node.outputs[1], np.int64, None)
        return node.outputs[0]

    def reduce(self, op: str, tensor: Tensor, axes: Sequence[int], *, keepdims: bool = True) -> Tensor:
        """A reduction over axes."""
        if self.graph.opset >= (13 if op == "ReduceSum" else 18):
            return self.op(op, tensor, self.ints(*axes), keepdims=int(keepdims))
        return self.op(op, tensor, axes=list(axes), keepdims=int(keepdims))

    def below(self, tensor: Tensor) -> Tensor:
        """``min(x, 0)``."""
        return self.op("Neg", self.op("Relu", self.op("Neg", tensor)))

    def clip(self, tensor: Tensor, low: float, high: float) -> Tensor:
        """Values between two numbers."""
        return self.op("Clip", tensor, self.real(low), self.real(high))

    def total(self, tensors: Sequence[Tensor]) -> Tensor:
        """The sum of tensors."""
        result = tensors[0]
        for tensor in tensors[1:]:
            result = self.op("Add", result, tensor)
        return result if len(tensors) > 1 else self.identity(result)

    def plus(self, tensor: Tensor, bias: Tensor | None) -> Tensor:
        """With something added, if there is anything."""
        return tensor if bias is None else self.op("Add", tensor, bias)

    def times_number(self, tensor: Tensor, factor: float) -> Tensor:
        """Times a number."""
        return tensor if factor == 1 else self.op("Mul", tensor, self.real(factor))


@dataclass(frozen=True)
class Site:
    """A node that gradients must pass.

    Attributes:
        graph: Its graph.
        node: The node.
        moved: Names of the tensors that depend on trained parameters.
        wanted: Names of the tensors that the loss depends on.
    """

    graph: GraphModel
    node: Node
    moved: frozenset[str]
    wanted: frozenset[str]

    @cached_property
    def chain(self) -> LegalChain:
        """Writes operators named after the node."""
        return LegalChain(self.graph, str(self.node.name))

    def refuse(self, why: str, advice: str) -> NoReturn:
        """Say that gradients cannot pass.

        Raises:
            RefusalError: In any case.
        """
        raise RefusalError(f"{why}; {advice}")

    # ---- attributes

    def attr(self, name: str, default: Any) -> Any:  # noqa: ANN401 - attributes are of any type
        """An attribute."""
        return self.node.attrs.get(name, default)

    def integers(self, name: str, default: Sequence[int]) -> list[int]:
        """An attribute that is a list of integers."""
        return [int(v) for v in self.node.attrs.get(name, default)]

    # ---- inputs

    def given(self, index: int) -> Tensor | None:
        """An input, or None where it is left out."""
        inputs = self.node.inputs
        return inputs[index] if index < len(inputs) and inputs[index].name else None

    def input(self, index: int = 0) -> Tensor:
        """An input that must be there."""
        found = self.given(index)
        if found is None:
            self.refuse(f"it has no input {index}", "the model is not valid")
        return found

    def learns(self, index: int) -> bool:
        """Whether an input depends on trained parameters, so that it needs a gradient."""
        found = self.given(index)
        return found is not None and found.name in self.moved

    def values(self, index: int, what: str) -> NDArray[Any] | None:
        """The numbers of an input, or None where it is left out.

        Raises:
            RefusalError: If they are computed when the model runs.
        """
        found = self.given(index)
        if found is None:
            return None
        if not self.graph.is_constant(found):
            self.refuse(f"its {what} are computed when the model runs", "export the model with constant ones")
        return np.asarray(self.graph.value(found))

    def rank(self, index: int = 0) -> int:
        """The rank of an input.

        Raises:
            RefusalError: If it is not known.
        """
        rank = self.graph.rank(self.input(index))
        if rank is None:
            self.refuse("the rank of its input is not known", "export the model with shapes")
        return rank

    def length(self, axis: int, what: str, index: int = 0) -> int:
        """The length of an axis of an input.

        Raises:
            RefusalError: If it is not known before the model runs.
        """
        size = (self.graph.shape(self.input(index)) or [None] * (axis + 1))[axis]
        if not isinstance(size, int):
            self.refuse(
                f"{what} depends on the length of axis {axis}, which is not known before the model runs",
                "give the model's inputs fixed sizes",
            )
        return size

    def spatial(self) -> int:
        """How many axes come behind batch and channels."""
        return self.rank() - 2

    def used(self, index: int) -> bool:
        """Whether anybody reads an output."""
        outputs = self.node.outputs
        if index >= len(outputs) or not outputs[index].name:
            return False
        tensor = outputs[index]
        graph = self.graph
        return bool(graph.consumers(tensor)) or graph.is_output(tensor) or graph.read_by_subgraph(tensor)

    def needed(self, index: int) -> bool:
        """Whether the loss depends on an output."""
        outputs = self.node.outputs
        return index < len(outputs) and outputs[index].name in self.wanted


Rewrite = Callable[[Site], "Tensor | bool"]
"""Gives what takes the place of the node's first output; or whether the node was changed where it is."""
