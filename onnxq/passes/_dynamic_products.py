"""Products as integer products: MatMulInteger, and what makes floats of its sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.graph import GraphModel, Node, Tensor
from onnxq.passes._dynamic_activations import Activations, Codes
from onnxq.passes._dynamic_forms import Factor, Product, product_of
from onnxq.passes._dynamic_weights import CodedWeight, Weights
from onnxq.passes._linear import label
from onnxq.plan import WeightPlan


@dataclass
class Products:
    """Writes MatMul and Gemm in the forms that ONNX Runtime fuses into one kernel.

    Attributes:
        graph: Where to.
        activations: Gives the codes of activations.
        weights: Gives the codes of weights.
        exact: Whether zero points may lie beyond uint8.
    """

    graph: GraphModel
    activations: Activations
    weights: Weights
    exact: bool

    def write(self, node: Node, plan: WeightPlan | None) -> None:
        """Replace a node.

        Args:
            node: A MatMul or Gemm.
            plan: Its weight; None where it multiplies two activations.
        """
        product = product_of(self.graph, node)
        result, name = node.outputs[0], label(node)
        self.graph.remove_node(node)
        steps = _Steps(self.graph, name)
        if plan is not None:
            self._with_weight(product, plan, steps)
        elif self.exact:
            self._of_centred(product, steps)
        else:
            self._of_variables(product, steps)
        if product.bias is not None and product.beta:
            steps.add("Add", [steps.last, self._bias(product, steps)])
        steps.finish(result)

    def _with_weight(self, product: Product, plan: WeightPlan, steps: _Steps) -> None:
        graph = self.graph
        left = plan.index == 0
        factor, other = (product.left, product.right) if left else (product.right, product.left)
        vector = graph.rank(other.tensor) == 1
        weight = self.weights.factor(
            plan, factor.tensor, transpose=factor.transposed, vector=vector, sums=self.exact
        )  # fmt: skip
        codes = self._codes(other)
        pairs = [(weight.codes, weight.zero_point), (codes.codes, codes.zero_point)]
        (a, a_zero), (b, b_zero) = pairs if left else pairs[::-1]
        steps.add("MatMulInteger", [a, b, a_zero, *([b_zero] if b_zero is not None else [])])
        scale = self._scale(plan, weight, product)
        self._to_float(steps, [codes.scale, scale])
        if codes.rest is not None and weight.sums is not None:
            sums = steps.constant("sums", (weight.sums * np.float32(product.alpha)).astype(np.float32))
            rest = steps.aside("Mul", [codes.rest, sums], "rest")
            steps.add("Add", [steps.last, rest])

    def _scale(self, plan: WeightPlan, weight: CodedWeight, product: Product) -> Tensor:
        values: NDArray[np.float32] = (weight.scale * np.float32(product.alpha)).astype(np.float32)
        return self.weights.scale(plan, values, own=product.alpha != 1.0)

    def _of_variables(self, product: Product, steps: _Steps) -> None:
        left, right = self._codes(product.left), self._codes(product.right)
        steps.add("MatMulInteger", [left.codes, right.codes, left.zero_point, right.zero_point])
        self._to_float(steps, [self._with_alpha(left.scale, product, steps), right.scale])

    def _of_centred(self, product: Product, steps: _Steps) -> None:
        """Whole numbers as floats: their products and sums are exact, and zero points may be anything."""
        factors = [self.activations.centred(f.tensor, transpose=f.transposed) for f in (product.left, product.right)]
        steps.add("MatMul", factors)
        left, right = self._codes(product.left), self._codes(product.right)
        scales = steps.aside("Mul", [self._with_alpha(left.scale, product, steps), right.scale], "scales")
        steps.add("Mul", [steps.last, scales])

    def _with_alpha(self, scale: Tensor, product: Product, steps: _Steps) -> Tensor:
        if product.alpha == 1.0:
            return scale
        return steps.aside("Mul", [scale, steps.constant("alpha", np.float32(product.alpha))], "scale_alpha")

    def _codes(self, factor: Factor) -> Codes:
        give = self.activations.transposed if factor.transposed else self.activations.codes
        return give(factor.tensor)

    def _to_float(self, steps: _Steps, scales: Sequence[Tensor]) -> None:
        steps.add("Cast", [steps.last], attrs={"to": np.dtype(np.float32)})
        steps.add("Mul", [steps.last, steps.aside("Mul", scales, "scales")])

    def _bias(self, product: Product, steps: _Steps) -> Tensor:
        bias = product.bias
        if product.beta == 1.0:
            return bias
        return steps.aside("Mul", [bias, steps.constant("beta", np.float32(product.beta))], "bias")


class _Steps:
    """A chain of nodes called after the one they replace."""

    def __init__(self, graph: GraphModel, name: str) -> None:
        self._graph = graph
        self._name = name
        self._node: Node = None

    @property
    def last(self) -> Tensor:
        """What the chain gives so far."""
        return self._node.outputs[0]

    def add(
        self,
        op: str,
        inputs: Sequence[Tensor],
        *,
        attrs: dict[str, object] | None = None,
    ) -> None:
        """Add a link."""
        name = f"{self._name}_{op}"
        self._node = self._graph.add_node(op, inputs, name=name, outputs=[name], attrs=attrs)

    def aside(self, op: str, inputs: Sequence[Tensor], suffix: str) -> Tensor:
        """Add a node beside the chain."""
        name = f"{self._name}_{suffix}"
        return self._graph.add_node(op, inputs, name=name, outputs=[name]).outputs[0]

    def constant(self, suffix: str, values: NDArray[np.float32] | np.float32) -> Tensor:
        """A constant of this chain."""
        return self._graph.add_constant(f"{self._name}_{suffix}", np.asarray(values, np.float32))

    def finish(self, result: Tensor) -> None:
        """Let the last node compute `result`."""
        self._graph.replace_output(self._node, 0, result)
