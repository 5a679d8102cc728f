"""Tensors whose channels can be scaled one by one at no cost: what lies in front of depthwise convolutions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from onnxq.graph import GraphModel, Node
from onnxq.passes._clamps import clamp_limits
from onnxq.passes._linear import why_shared
from onnxq.plan import ActivationPlan, Plan, WeightPlan
from onnxq.recipe import Custom
from onnxq.spec import PerAxis


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """A convolution, a clamp or nothing, and the depthwise convolution that reads the result.

    Attributes:
        activation: The tensor between them.
        producer: The convolution in front.
        clamp: The Relu or Clip between, or None.
        consumer: The depthwise convolution.
        limit: No value of the tensor is larger.
    """

    activation: ActivationPlan
    producer: Node
    clamp: Node | None
    consumer: Node
    limit: float = math.inf


def links(graph: GraphModel, plan: Plan) -> Iterator[Link]:
    """Find them.

    Both convolutions have a scale for each channel, or stay float, so factors on the channels change nothing in the
    precision of their weights. A clamp between them keeps what it cuts off below zero; it need not be one that
    saturation replaces.
    """
    weights = {w.node: w for w in plan.weights}
    for activation in plan.activations.values():
        if activation.group != activation.tensor or len(activation.readers) > 1:
            continue
        if isinstance(activation.method, Custom):  # an observer of the user's is to see the tensor as it is
            continue
        tensor = graph.tensor(activation.tensor)
        if why_shared(graph, tensor):
            continue
        use = graph.consumers(tensor)[0]
        consumer = use.node
        if use.index or not _is_depthwise(graph, consumer) or not _per_channel(weights, consumer):
            continue
        producer = graph.producer(tensor)
        limits = None if producer is None else clamp_limits(graph, producer)
        if limits is not None:
            clamp, producer = producer, graph.producer(producer.inputs[0])
            if limits[0] != 0 or why_shared(graph, clamp.inputs[0]):
                continue
        else:
            clamp, limits = None, (-math.inf, math.inf)
        if producer is not None and producer.op == "Conv" and _per_channel(weights, producer):
            yield Link(activation, producer, clamp, consumer, min(limits[1], activation.bounds[1]))


def _is_depthwise(graph: GraphModel, node: Node) -> bool:
    if node.op != "Conv":
        return False
    shape = graph.shape(node.inputs[1]) or ()
    return len(shape) >= 3 and shape[1] == 1 and int(node.attrs.get("group", 1)) > 1


def _per_channel(weights: dict[str, WeightPlan], node: Node) -> bool:
    """Whether a factor for each channel costs the weight of a node nothing; float weights have no scale at all."""
    plan = weights.get(node.name)
    return plan is None or plan.spec.granularity == PerAxis(0)
