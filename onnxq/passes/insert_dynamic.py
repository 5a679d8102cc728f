"""Writes products, tables and recurrent layers with int8 weights, and activations that are rounded as they come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from onnxq.errors import GraphError
from onnxq.graph import GraphModel, Node
from onnxq.passes._base import Fact, Pass, PassReport
from onnxq.passes._dynamic_activations import Activations
from onnxq.passes._dynamic_forms import ATTENTION, PRODUCTS, RECURRENT
from onnxq.passes._dynamic_kernels import Kernels
from onnxq.passes._dynamic_products import Products
from onnxq.passes._dynamic_weights import Weights, find_params
from onnxq.passes._linear import kind
from onnxq.plan import Plan, WeightPlan
from onnxq.recipe import Dynamic
from onnxq.spec import QuantParams

if TYPE_CHECKING:
    from onnxq.context import QuantContext

_REPLACED = frozenset({*PRODUCTS, "LSTM", ATTENTION})


@dataclass(frozen=True)
class InsertDynamic(Pass):
    """Replaces planned nodes by ones that compute with codes.

    Given:
        a plan of `SelectDynamic`.
    Result:
        each product is a MatMulInteger whose sums become floats by Cast and Mul, and each activation it reads
        passes one DynamicQuantizeLinear, whoever reads it; ONNX Runtime makes one kernel of them. A table is
        decoded behind its Gather, so that only rows that are picked become floats. LSTM and Attention become ONNX
        Runtime's kernels for codes; the weights of GRU and RNN, for which it has none, are decoded when the model is
        loaded. `ctx.params` has the scales of the weights. Names of what nodes compute are kept.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.PARAMS, Fact.QUANTIZED})
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN, Fact.STATS})

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Insert.

        Raises:
            GraphError: If the plan does not fit the graph, or a weight holds NaN or infinity.
        """
        plan = ctx.plan or Plan()
        params: dict[str, QuantParams] = {}
        for weight in plan.weights:
            if weight.key not in params:
                params[weight.key] = find_params(graph, weight, safe_pairs=ctx.target.safe_pairs)
        scheme = ctx.recipe.scheme
        exact = isinstance(scheme, Dynamic) and scheme.ranges == "exact"
        activations, weights = Activations(graph, exact=exact), Weights(graph, params)
        products = Products(graph, activations, weights, exact)
        kernels = Kernels(graph, weights)
        by_node: dict[str, list[WeightPlan]] = {}
        for weight in plan.weights:
            by_node.setdefault(weight.node, []).append(weight)
        changed = 0
        for decision in plan.decisions:
            if decision.role == "quantized":
                _write(graph.node(decision.node), by_node.get(decision.node, []), products, kernels)
                changed += 1
        graph.sort()
        ctx.params = params
        return PassReport(changed=changed)

    def verify(self, graph: GraphModel, ctx: QuantContext) -> None:
        """Raise `GraphError` if a planned node still computes with floats."""
        for decision in (ctx.plan or Plan()).decisions:
            if decision.role != "quantized" or decision.op_type not in _REPLACED or not graph.has_node(decision.node):
                continue
            if kind(graph.node(decision.node)) == decision.op_type:
                raise GraphError(f"node {decision.node!r} was planned and still computes with floats")


def _write(node: Node, plans: list[WeightPlan], products: Products, kernels: Kernels) -> None:
    op = kind(node)
    if op in PRODUCTS:
        products.write(node, plans[0] if plans else None)
    elif op == "Gather":
        kernels.lookup(node, plans[0])
    elif op == "LSTM":
        kernels.lstm(node, plans)
    elif op in RECURRENT:
        kernels.decoded(node, plans)
    elif op == ATTENTION:
        kernels.attention(node, plans[0], products.activations)
    else:
        raise GraphError(f"node {node.name!r} ({op}) was planned and cannot be written with codes")
