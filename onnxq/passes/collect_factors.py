"""Gathers, layer by layer, the numbers that were chosen tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from onnxq.errors import RecordError
from onnxq.factors import LayerFactors
from onnxq.graph import GraphModel
from onnxq.passes._base import Fact, Pass, PassReport
from onnxq.plan import ActivationPlan, Plan, WeightPlan

if TYPE_CHECKING:
    from onnxq.context import QuantContext

_NO_WEIGHT = np.zeros(0, np.float32)
_ONE = np.ones(1, np.float32)


@dataclass(frozen=True)
class CollectFactors(Pass):
    """Writes ``ctx.factors``: what a record holds for each layer of the plan.

    A layer with a weight goes by the name of its node, and so does an AveragePool, whose weight counts as 1. Each
    input of a node without a weight goes by ``node:index``.

    Given:
        a plan and its numbers.
    Result:
        the graph unchanged; `ctx.factors` in topological order.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN, Fact.PARAMS})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.FACTORS})
    preserves_function: ClassVar[bool] = True

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Gather.

        Raises:
            RecordError: If a layer has numbers that records cannot hold.
        """
        plan = ctx.plan or Plan()
        weights = {w.node: w for w in plan.weights}
        found: dict[str, LayerFactors] = {}
        for name, index, activation in _inputs(plan):
            is_layer = name in weights or graph.node(name).op == "AveragePool"
            key = name if is_layer else f"{name}:{index}"
            try:
                found[key] = _factors(ctx, name, activation, weights.get(name), tensor=not is_layer)
            except RecordError as err:
                raise RecordError(f"layer {key!r}: {err}") from err
        order = {n.name: i for i, n in enumerate(graph.nodes())}
        ctx.factors = dict(sorted(found.items(), key=lambda item: order[_node_of(item[0], order)]))
        return PassReport(notes=(f"{len(found)} layers have factors",))


def _inputs(plan: Plan) -> Iterator[tuple[str, int, ActivationPlan]]:
    """Node, input and plan of every input that gets codes, the inputs of a node in order."""
    rows = [(name, index, a) for a in plan.activations.values() for name, index in a.readers]
    yield from sorted(rows, key=lambda row: (row[0], row[1]))


def _node_of(key: str, known: dict[str, int]) -> str:
    return key if key in known else key.rpartition(":")[0]


def _factors(
    ctx: QuantContext, name: str, activation: ActivationPlan, weight: WeightPlan | None, *, tensor: bool
) -> LayerFactors:
    params = ctx.params[activation.key]
    scale_w, wts_bits = (_NO_WEIGHT if tensor else _ONE), 8
    if weight is not None:
        chosen = ctx.params[weight.key]
        if chosen.zero_point.any():
            raise RecordError("its weight has a zero point; leave out weights.symmetric: false")
        scale_w, wts_bits = chosen.scale.reshape(-1), chosen.spec.bits
    return LayerFactors(
        float(params.scale), int(params.zero_point), scale_w, act_bits=params.spec.bits, wts_bits=wts_bits,
        balance=ctx.balance.get(name), cluster=getattr(ctx, "clusters", {}).get(name), tensor_quantize=tensor,
    )  # fmt: skip
