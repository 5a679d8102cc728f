"""The layers of a model as AMCT's configuration sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxq.pipeline import Result


@dataclass(frozen=True, slots=True)
class Layer:
    """A node that the target quantizes, or could.

    Attributes:
        name: Its name.
        op_type: Its operator type.
        weight_rank: Rank of its constant weight; None where it has none.
        input_rank: Rank of its first input; None where it is not known.
        group: Groups of a convolution.
        dilated: Whether a convolution has a dilation above 1.
        depthwise: Whether a convolution has one input channel per group, and several groups.
        bias: Whether it has a bias of its own.
        in_channels: What its weight sums over, of one group; None where it has none, or nobody knows.
    """

    name: str
    op_type: str
    weight_rank: int | None = None
    input_rank: int | None = None
    group: int = 1
    dilated: bool = False
    depthwise: bool = False
    bias: bool = False
    in_channels: int | None = None


@dataclass(frozen=True, slots=True)
class Layers:
    """A model's nodes.

    Attributes:
        quantizable: The layers that are quantized if nothing speaks against it, in topological order.
        others: All other nodes.
        reasons: Why other nodes stay float, by name, where the target would have computed them.
        batch: The fixed batch size of the model's first input; None where it is free.
    """

    quantizable: Mapping[str, Layer]
    others: Mapping[str, Layer] = field(default_factory=lambda: MappingProxyType({}))
    reasons: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    batch: int | None = None

    @property
    def nodes(self) -> dict[str, Layer]:
        """All nodes by name."""
        return {**self.quantizable, **self.others}

    @staticmethod
    def of(layers: Mapping[str, Layer] | list[Layer]) -> Layers:
        """Layers that are all quantizable."""
        found = list(layers.values()) if isinstance(layers, Mapping) else layers
        return Layers({layer.name: layer for layer in found})


def layers_of(result: Result) -> Layers:
    """The layers of a plan for the Ascend target.

    Args:
        result: What `onnxq.plan_model` gave.
    """
    quantizable: dict[str, Layer] = {}
    others: dict[str, Layer] = {}
    reasons: dict[str, str] = {}
    for decision in result.plan.decisions:
        layer = _layer(result, decision.node, decision.op_type)
        if decision.role == "quantized":
            quantizable[decision.node] = layer
        else:
            others[decision.node] = layer
            reasons[decision.node] = decision.reason
    return Layers(quantizable, others, reasons, _batch(result))


def _layer(result: Result, name: str, op_type: str) -> Layer:
    graph = result.graph
    node = graph.node(name)
    inputs = node.inputs
    weight = inputs[1] if len(inputs) > 1 and graph.is_constant(inputs[1]) else None
    rank = None if weight is None else graph.rank(weight)
    group = int(node.attrs.get("group", 1))
    shape = (graph.shape(weight) or ()) if weight is not None else ()
    return Layer(
        name,
        op_type,
        weight_rank=rank,
        input_rank=graph.rank(inputs[0]) if inputs and inputs[0].name else None,
        group=group,
        dilated=any(d > 1 for d in node.attrs.get("dilations", ())),
        depthwise=op_type == "Conv" and group > 1 and len(shape) > 1 and shape[1] == 1,
        bias=len(inputs) > 2 and bool(inputs[2].name),
        in_channels=_in_channels(op_type, shape, transposed=bool(node.attrs.get("transB", 0))),
    )


def _in_channels(op_type: str, shape: tuple[int | str | None, ...], *, transposed: bool) -> int | None:
    if len(shape) < 2:
        return None
    found = shape[1] if op_type == "Conv" or transposed else shape[-2] if op_type == "MatMul" else shape[0]
    return found if isinstance(found, int) else None


def _batch(result: Result) -> int | None:
    graph = result.graph
    for tensor in graph.inputs:
        shape = graph.shape(tensor)
        if shape:
            return shape[0] if isinstance(shape[0], int) else None
    return None
