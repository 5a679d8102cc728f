"""A linear layer in parts, as parallel devices compute it: by outputs or by inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import GraphError, RecipeError, nearest
from onnxq.graph import GraphModel, Node, Tensor
from onnxq.passes._base import Fact, Pass, PassReport, Skip
from onnxq.passes._linear import optional_input

if TYPE_CHECKING:
    from onnxq.context import QuantContext


@dataclass(frozen=True)
class SplitLinear(Pass):
    """``A B + C`` becomes products with parts of B, put together again, and an Add of C.

    By outputs each part computes some columns and a Concat gathers them; by inputs each part gets some columns of A
    and a Sum reduces what they give. All that takes the place of layer ``x`` is called ``x/part0``, ``x/gather``,
    ``x/scatter``, ``x/reduce`` and ``x/bias``.

    Given:
        Gemm without transA, or MatMul, with constant float32 weights of rank 2.
    Result:
        MatMul with constant weights; Gemm's alpha and beta are in the constants. A layer of another form is left as
        it is.

    Attributes:
        nodes: Names of the layers.
        along: Whether columns (``outputs``) or rows (``inputs``) of B are cut.
        parts: How many there are.
    """

    nodes: tuple[str, ...]
    along: Literal["outputs", "inputs"]
    parts: int = 1

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS_LIFTED, Fact.SHAPES})
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN, Fact.STATS, Fact.PARAMS})
    preserves_function: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.parts < 1:
            raise RecipeError(f"parts found {self.parts}; must be at least 1")

    def check(self, graph: GraphModel, ctx: QuantContext) -> None:
        """Refuse names that are not in the model.

        Raises:
            GraphError: With the nearest names.
        """
        for name in self.nodes:
            if not graph.has_node(name):
                raise GraphError(f"there is no node {name!r}{nearest(name, (str(n.name) for n in graph.nodes()))}")

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Split the layers."""
        skipped: list[Skip] = []
        changed = 0
        for name in self.nodes:
            reason = self._split(graph, graph.node(name))
            if reason is None:
                changed += 1
            else:
                skipped.append(Skip(name, reason))
        if changed:
            graph.sort()
            graph.sweep()
        return PassReport(changed=changed, skipped=tuple(skipped))

    def _split(self, graph: GraphModel, node: Node) -> str | None:
        """Split one layer; gives why it is left as it is."""
        reason = _why_not(graph, node)
        if reason is not None:
            return reason
        weight, bias = _matrix(graph, node), _bias(graph, node)
        axis = 1 if self.along == "outputs" else 0
        if weight.shape[axis] < self.parts:
            return f"it has {weight.shape[axis]} {self.along}, which {self.parts} parts cannot share"
        if self.parts == 1 and bias is None and node.op == "MatMul":
            return "it is one product without a bias already"
        name, data, result = str(node.name), node.inputs[0], node.outputs[0]
        graph.remove_node(node)
        pieces = np.array_split(weight, self.parts, axis=axis)
        shares = _scattered(graph, name, data, [p.shape[0] for p in pieces], split=axis == 0)
        last = "bias" if bias is not None else "joined" if self.parts > 1 else "part"
        products: list[Tensor] = []
        for index, (share, piece) in enumerate(zip(shares, pieces, strict=True)):
            constant = graph.add_constant(f"{name}/weight{index}", np.ascontiguousarray(piece))
            made = graph.add_node(
                "MatMul", [share, constant], name=f"{name}/part{index}", outputs=(result,) if last == "part" else ()
            )
            products.append(made.outputs[0])
        joined = products[0]
        if self.parts > 1:
            op, end, attrs = ("Concat", "gather", {"axis": -1}) if axis else ("Sum", "reduce", {})
            outputs = (result,) if last == "joined" else ()
            joined = graph.add_node(op, products, name=f"{name}/{end}", outputs=outputs, attrs=attrs).outputs[0]
        if bias is not None:
            constant = graph.add_constant(f"{name}/bias_value", bias)
            graph.add_node("Add", [joined, constant], name=f"{name}/bias", outputs=(result,))
        return None


def _why_not(graph: GraphModel, node: Node) -> str | None:
    if node.op not in ("Gemm", "MatMul"):
        return f"{node.op} is no linear layer; name a Gemm or a MatMul"
    if node.attrs.get("transA", 0):
        return "its first factor is transposed"
    for tensor in (node.inputs[1], optional_input(node, 2)):
        if tensor is not None and not (graph.is_constant(tensor) and graph.is_float32(tensor)):
            return f"{tensor.name!r} is not a float32 constant"
    return None if graph.rank(node.inputs[1]) == 2 else f"its weight {node.inputs[1].name!r} is no matrix"


def _matrix(graph: GraphModel, node: Node) -> NDArray[np.float32]:
    """The weight as it is multiplied with, shape (inputs, outputs), alpha included."""
    values = graph.value(node.inputs[1])
    values = values.T if node.attrs.get("transB", 0) else values
    alpha = float(node.attrs.get("alpha", 1.0))
    return values if alpha == 1.0 else (values.astype(np.float64) * alpha).astype(np.float32)


def _bias(graph: GraphModel, node: Node) -> NDArray[np.float32] | None:
    tensor = optional_input(node, 2) if node.op == "Gemm" else None
    if tensor is None:
        return None
    return np.asarray(graph.value(tensor).astype(np.float64) * float(node.attrs.get("beta", 1.0)), np.float32)


def _scattered(graph: GraphModel, name: str, data: Tensor, sizes: list[int], *, split: bool) -> list[Tensor]:
    """What each part reads."""
    if not split or len(sizes) == 1:
        return [data] * len(sizes)
    outputs = [graph.unique_name(f"{name}/share{index}") for index in range(len(sizes))]
    if graph.opset < 13:  # sizes became an input
        attrs: dict[str, object] = {"axis": -1, "split": sizes}
        return list(graph.add_node("Split", [data], name=f"{name}/scatter", outputs=outputs, attrs=attrs).outputs)
    lengths = graph.add_constant(f"{name}/sizes", np.array(sizes, np.int64))
    made = graph.add_node("Split", [data, lengths], name=f"{name}/scatter", outputs=outputs, attrs={"axis": -1})
    return list(made.outputs)
