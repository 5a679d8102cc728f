"""Balances layers as a record says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import RecordError
from onnxq.graph import GraphModel
from onnxq.passes._balance import (
    balanceable,
    folded_layers,
    mul_name,
    scale_weight,
    write_mul,
    written_factors,
)
from onnxq.passes._base import Fact, Pass, PassReport
from onnxq.passes._linear import label

if TYPE_CHECKING:
    from onnxq.context import QuantContext

_TOLERANCE = 1e-5


@dataclass(frozen=True)
class ApplyBalance(Pass):
    """Divides the inputs of layers by the factors of a record and multiplies their weights.

    Given:
        the numbers of layers, some with balance factors.
    Result:
        a Mul called ``<layer>.mul`` in front of each of these, and its weight times the factors; layers
        that the graph has balanced already are left as they are.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS_LIFTED, Fact.FACTORS})
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN, Fact.STATS, Fact.PARAMS})
    preserves_function: ClassVar[bool] = True

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Balance the layers.

        Raises:
            RecordError: If a record's layer has no channels to balance, or others than the record says, or is
                balanced with other factors already.
            GraphError: If there is no such layer, or a weight overflows float32.
        """
        folded = folded_layers(graph)
        changed = 0
        for name, factors in ctx.factors.items():
            if factors.balance is None:
                continue
            if name not in folded and not _written(graph, name, factors.balance):
                _balance(graph, name, factors.balance)
                changed += 1
            ctx.balance[name] = factors.balance
        if changed:
            graph.sort()
        return PassReport(changed)


def _balance(graph: GraphModel, name: str, balance: NDArray[np.float32]) -> None:
    node = graph.node(name)
    linear = balanceable(graph, node)
    if isinstance(linear, str):
        raise RecordError(f"layer {name!r} has a tensor_balance_factor and cannot be balanced: {linear}")
    channels = linear.layout.in_channels
    if balance.shape != (channels,):
        raise RecordError(
            f"layer {name!r} has {balance.size} numbers as tensor_balance_factor and {channels} input channels; "
            "the record belongs to another model"
        )
    write_mul(graph, node, balance)
    scale_weight(graph, linear, balance)


def _written(graph: GraphModel, name: str, balance: NDArray[np.float32]) -> bool:
    """Whether a Mul with these factors is in front of the layer."""
    node = graph.node(name)
    found = written_factors(graph, node)
    if found is None:
        return False
    if found.shape != balance.shape or not np.allclose(found * balance, 1.0, rtol=0, atol=_TOLERANCE):
        raise RecordError(
            f"layer {label(node)!r}: {mul_name(node)!r} in the model does not hold the tensor_balance_factor of the "
            "record; use the record that belongs to the model, or the float model"
        )
    return True
