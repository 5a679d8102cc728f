"""Products of matrices in one form: what is multiplied, from which side, transposed or not."""

from __future__ import annotations

from dataclasses import dataclass

from onnxq.graph import GraphModel, Node, Tensor
from onnxq.passes._linear import optional_input

PRODUCTS = ("MatMul", "Gemm")
RECURRENT = ("LSTM", "GRU", "RNN")
ATTENTION = "com.microsoft::Attention"


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """One side of a product.

    Attributes:
        tensor: What is multiplied.
        index: 0 for the left side, 1 for the right one.
        constant: Whether it is a weight.
        transposed: Whether its transpose is what is multiplied.
    """

    tensor: Tensor
    index: int
    constant: bool
    transposed: bool = False

    def channel_axis(self, rank: int) -> int | None:
        """The axis of a weight that counts outputs: rows on the left side, columns on the right one; None for a vector.

        Args:
            rank: Rank of the weight.
        """
        if rank < 2:
            return None
        return rank - 1 if (self.index == 1) != self.transposed else rank - 2


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """``alpha * left right + beta * bias``.

    Attributes:
        node: The MatMul or Gemm.
        left: First factor.
        right: Second factor.
        alpha: See above.
        beta: See above.
        bias: What is added; None where nothing is.
    """

    node: Node
    left: Factor
    right: Factor
    alpha: float = 1.0
    beta: float = 1.0
    bias: Tensor | None = None

    @property
    def weight(self) -> Factor | None:
        """The constant factor; None where both are activations."""
        return next((f for f in (self.left, self.right) if f.constant), None)


def product_of(graph: GraphModel, node: Node) -> Product:
    """What a MatMul or Gemm computes.

    Args:
        graph: Its graph.
        node: The node.
    """
    left, right = node.inputs[:2]
    constants = graph.is_constant(left), graph.is_constant(right)
    if node.op == "MatMul":
        return Product(node, Factor(left, 0, constants[0]), Factor(right, 1, constants[1]))
    attrs = node.attrs
    return Product(
        node,
        Factor(left, 0, constants[0], bool(attrs.get("transA", 0))),
        Factor(right, 1, constants[1], bool(attrs.get("transB", 0))),
        float(attrs.get("alpha", 1.0)),
        float(attrs.get("beta", 1.0)),
        optional_input(node, 2),
    )
