"""Large products with a constant matrix as MatMulNBits, an operator of ONNX Runtime's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.weight.blocks import encode_blocks
from onnxq.graph import GraphModel, Node, Tensor
from onnxq.passes._linear import optional_input
from onnxq.plan import WeightPlan

DOMAIN = "com.microsoft"
OPERATOR = "MatMulNBits"
LARGE = 1 << 14
"""From so many weights on, reading them takes longer than the product; smaller ones gain nothing."""


class BlockWriter:
    """Replaces MatMul and Gemm; a weight that several of them read is written once.

    Args:
        graph: Where.
        size: Weights that share a scale.
        accuracy_level: That of MatMulNBits; 0 leaves it out.
    """

    def __init__(self, graph: GraphModel, size: int, *, accuracy_level: int = 0) -> None:
        self._graph = graph
        self._size = size
        self._level = {"accuracy_level": accuracy_level} if accuracy_level else {}
        self._known: dict[tuple[str, bool, int], list[Tensor]] = {}

    def fits(self, plan: WeightPlan, bits: int) -> bool:
        """Whether the node that reads a weight can become a MatMulNBits, and gains by it."""
        graph, node = self._graph, self._graph.node(plan.node)
        if node.op not in ("MatMul", "Gemm") or plan.index != 1 or bits > 8 or not graph.is_float32(node.inputs[1]):
            return False
        shape, rank = graph.shape(node.inputs[1]) or (), graph.rank(node.inputs[0])
        if len(shape) != 2 or rank is None or rank < 2:
            return False
        sizes = [d for d in shape if isinstance(d, int)]
        inputs = sizes[1 if node.attrs.get("transB", 0) else 0]
        plain = not node.attrs.get("transA", 0) and float(node.attrs.get("alpha", 1.0)) == 1.0
        return plain and sizes[0] * sizes[1] >= LARGE and inputs >= self._size

    def write(self, plan: WeightPlan, bits: int) -> None:
        """Put a MatMulNBits, and an Add where there is a bias, in the place of the node."""
        graph, node = self._graph, self._graph.node(plan.node)
        transposed = bool(node.attrs.get("transB", 0))
        shape = graph.shape(node.inputs[1]) or ()
        outputs, inputs = shape if transposed else shape[::-1]
        width = 4 if bits <= 4 else 8
        constants = self._constants(plan, node, transposed=transposed, bits=width)
        self.replace(node, constants, {"K": inputs, "N": outputs, "bits": width, "block_size": self._size})

    def replace(self, node: Node, constants: Sequence[Tensor], attrs: Mapping[str, object]) -> None:
        """Put a MatMulNBits with these constants and attributes, and an Add where there is a bias, in its place."""
        self._product(node, OPERATOR, constants, DOMAIN, {**attrs, **self._level})

    def as_matmul(self, node: Node, weight: Tensor) -> None:
        """Put a MatMul, and an Add where there is a bias, in the place of a Gemm.

        Args:
            node: A Gemm without transA and alpha.
            weight: Its weight, inputs along the first axis.
        """
        self._product(node, "MatMul", [weight], None, {})

    def _product(
        self, node: Node, op: str, constants: Sequence[Tensor], domain: str | None, attrs: Mapping[str, object]
    ) -> None:
        graph, name = self._graph, str(node.name)
        x, result, bias = node.inputs[0], node.outputs[0], self._bias(node)
        graph.remove_node(node)
        product = result if bias is None else graph.new_variable(f"{result.name}_product", np.float32)
        made = graph.add_node(op, [x, *constants], name=name, outputs=[product], domain=domain, attrs=attrs)
        graph.rename_node(made, name)
        if bias is not None:
            graph.add_node("Add", [product, bias], name=f"{name}_add", outputs=[result])

    def _constants(self, plan: WeightPlan, node: Node, *, transposed: bool, bits: int) -> list[Tensor]:
        key = (plan.key, transposed, bits)
        if key not in self._known:
            weight: NDArray[np.float32] = self._graph.value(node.inputs[1])
            coded = encode_blocks(weight if transposed else weight.T, bits, self._size)
            parts = (("blocks", coded.codes), ("scales", coded.scale), ("zero_points", coded.zero_point))
            self._known[key] = [self._graph.add_constant(f"{plan.key}_{n}", a) for n, a in parts]
        return self._known[key]

    def _bias(self, node: Node) -> Tensor | None:
        """What is added to the product; Gemm's C, times beta."""
        bias = optional_input(node, 2) if node.op == "Gemm" else None
        beta = float(node.attrs.get("beta", 1.0))
        if bias is None or beta == 0:
            return None
        if beta == 1:
            return bias
        factor = self._graph.add_constant(f"{node.name}_beta", np.array(beta, np.float32))
        return self._graph.add_node(
            "Mul", [bias, factor], name=f"{node.name}_bias", dtype=np.float32, shape=self._graph.shape(bias)
        ).outputs[0]
