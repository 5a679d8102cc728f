"""Lets every channel in front of a depthwise convolution use all codes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from onnxq.graph import GraphModel
from onnxq.passes._base import Fact, Pass, PassReport, Skip
from onnxq.passes._depthwise import Link, links
from onnxq.passes._linear import Linear, Vector, read_linear, write_bias, write_weight
from onnxq.passes._rescaled import between, note_rescaled
from onnxq.plan import Plan, WeightPlan
from onnxq.recipe import MinMax
from onnxq.stats import TensorStats

if TYPE_CHECKING:
    from onnxq.context import QuantContext

_SUFFIX = "spread"
_HEADROOM = 2.0
"""The fewer samples, the larger the values of a channel they have not shown: 20 % more for 100, 63 % for 10."""
_LARGEST_FACTOR = 2.0**12
"""Channels that are smaller still are as good as zero."""


@dataclass(frozen=True)
class SpreadChannels(Pass):
    """Multiplies the channels of a tensor by factors that give all of them the same largest magnitude.

    ``dw(clamp(conv(x)))`` becomes ``(dw / s)(clamp(s * conv(x)))``: the factors s go into the weights
    and the bias of the first convolution and are taken out of the second one's. Both have one weight
    scale per channel, so nothing is lost there, and the activation between them, which has one scale
    for all channels, no longer rounds its small channels away.

    Given:
        a plan, and statistics with the largest magnitude of each channel of those tensors.
    Result:
        new weights and biases; statistics and ranges of the tensors as they are now. Behind a
        Clip(0, u) all channels end at u, so a channel is cut at the largest value that was measured.

    Source: the channel scaling of Nagel et al., ICCV 2019, section 4.1, with measured activations in
    place of weight ranges.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN, Fact.STATS})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN, Fact.STATS})
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.PARAMS})

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Spread every such tensor."""
        plan = Plan() if ctx.plan is None else ctx.plan
        activations = dict(plan.activations)
        skipped: list[Skip] = []
        changed = 0
        for link in links(graph, plan):
            name = link.activation.tensor
            stats = ctx.stats.get(name)
            if stats is None or stats.channel_absmax is None:
                continue
            reason = _spread(graph, link, stats, headroom=1 + _HEADROOM / math.sqrt(max(ctx.samples, 1)))
            if isinstance(reason, str):
                skipped.append(Skip(link.consumer.name, reason))
                continue
            ctx.stats[name] = reason
            note_rescaled(ctx, list(between(graph, link.producer, link.consumer)))
            activations[name] = replace(link.activation, method=MinMax())
            changed += 1
        weights = tuple(_renamed(graph, weight) for weight in plan.weights)
        ctx.plan = Plan(plan.decisions, activations, weights, plan.absorbed)
        return PassReport(changed, tuple(skipped))


def _renamed(graph: GraphModel, plan: WeightPlan) -> WeightPlan:
    """The plan of a weight that has become another constant."""
    name = graph.node(plan.node).inputs[plan.index].name
    return plan if name == plan.tensor else replace(plan, tensor=name, key=name)


def _spread(graph: GraphModel, link: Link, stats: TensorStats, *, headroom: float) -> TensorStats | str:
    """Scale the channels between two convolutions; returns the new statistics, or why not."""
    first, second = read_linear(graph, link.producer), read_linear(graph, link.consumer)
    for layer in (first, second):
        if isinstance(layer, str):
            return layer
    assert isinstance(first, Linear) and isinstance(second, Linear)  # noqa: S101, PT018 - for the type checker
    largest = np.asarray(stats.channel_absmax, np.float64)
    bound = link.limit
    top = bound if math.isfinite(bound) else float(largest.max(initial=0.0))
    factors = _factors(np.minimum(largest * headroom, top), top)
    write_weight(graph, first, first.layout.scaled(graph.value(first.weight), outputs=factors), _SUFFIX)
    if first.bias is not None:
        write_bias(graph, first, first.bias * factors, _SUFFIX)
    per_output = np.repeat(1.0 / factors, second.layout.out_channels // len(factors))
    write_weight(graph, second, second.layout.scaled(graph.value(second.weight), outputs=per_output), _SUFFIX)
    low = 0.0 if link.clamp is not None else -top
    return TensorStats(low, top, stats.count)


def _factors(largest: Vector, top: float) -> Vector:
    floor = top / _LARGEST_FACTOR
    return np.divide(top, largest, out=np.ones_like(largest), where=largest > floor)
