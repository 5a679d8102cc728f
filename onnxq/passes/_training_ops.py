"""Chains of operators for training graphs, written one call per operator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from onnxq.graph import Dim, GraphModel, Tensor


class Chain:
    """Adds float32 operators, all named after what they are for.

    Args:
        graph: Where they go.
        name: What they are called, less the operator.
    """

    def __init__(self, graph: GraphModel, name: str) -> None:
        self.graph = graph
        self.name = name

    def op(self, op: str, *inputs: Tensor | None, shape: Sequence[Dim] | None = None, **attrs: object) -> Tensor:
        """The result of an operator.

        Args:
            op: Its type.
            inputs: What it reads.
            shape: Shape of the result; by default that of the first input.
            attrs: Its attributes.
        """
        first, name = inputs[0], f"{self.name}/{op.lower()}"
        result = shape if shape is not None or first is None else self.graph.shape(first)
        node = self.graph.add_node(
            op, inputs, name=name, outputs=[f"{name}_out"], attrs=attrs, dtype=np.float32, shape=result
        )
        return node.outputs[0]

    def number(self, name: str, value: ArrayLike) -> Tensor:
        """A float32 constant that is not trained."""
        return self.graph.add_constant(f"{self.name}/{name}", np.asarray(value, np.float32))

    def detach(self, tensor: Tensor) -> Tensor:
        """The same values, which pass no gradient."""
        sequence = self.graph.add_node(
            "SequenceConstruct", [tensor], name=f"{self.name}/hold", outputs=[f"{self.name}/held"]
        ).outputs[0]
        first = self.graph.add_constant(f"{self.name}/first", np.asarray(0, np.int64))
        return self.op("SequenceAt", sequence, first, shape=self.graph.shape(tensor))

    def exchange(self, tensor: Tensor, value: Tensor) -> Tensor:
        """The values of `value` with the gradient of `tensor`."""
        return self.op("Add", tensor, self.detach(self.op("Sub", value, tensor)))
