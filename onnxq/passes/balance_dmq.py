"""DMQ balancing: uneven channels of an activation are evened out at the expense of the weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.balance import balance_factors
from onnxq.errors import CalibrationError
from onnxq.graph import GraphModel
from onnxq.passes._balance import (
    SUFFIX,
    BalancedLayer,
    channel_shape,
    input_absmax,
    layers_to_balance,
    note_folded,
    scale_weight,
    write_mul,
)
from onnxq.passes._base import Fact, Pass, PassReport, Skip
from onnxq.passes._fold import Fold, find_fold
from onnxq.passes._linear import LINEAR_OPS
from onnxq.passes._patterns import fused_patterns
from onnxq.passes._rescaled import note_rescaled
from onnxq.plan import Plan

if TYPE_CHECKING:
    from onnxq.context import QuantContext

_Factors = NDArray[np.float32]


@dataclass(frozen=True)
class BalanceDmq(Pass):
    """``x W`` becomes ``(x / f) (f W)`` with one factor per input channel.

    Given:
        a plan, a recipe that wants some of its layers balanced, and the largest magnitude of each channel
        of what they read.
    Result:
        weights times ``f = amax**s / wmax**(1 - s)``. The division of the activation is written into the
        constants in front where all readers of the tensor are balanced and only operations that let
        factors pass are in between; these layers then share one factor, found for all their weights
        together. Elsewhere a Mul called ``<layer>.mul`` does it, or the layer is left alone, as the recipe
        says. Notes say which is the case and why; ``ctx.balance`` holds the factors. A layer with a factor
        out of bounds is left alone.

    Where the numbers of layers go into a record of their own, weights of quantized layers in front are
    left as they are: the record has to fit the model without the division as well.

    Source: AMCT's DMQBalancer, which always writes the Mul; Xiao et al., SmoothQuant, ICML 2023.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS_LIFTED, Fact.PLAN, Fact.STATS})
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN, Fact.STATS, Fact.PARAMS})
    preserves_function: ClassVar[bool] = True

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Balance all layers.

        Raises:
            CalibrationError: If an input was not measured.
            GraphError: If a weight overflows float32.
        """
        layers, skipped = layers_to_balance(graph, ctx)
        writer = _Writer(graph, ctx, frozenset(fused_patterns(graph)), _fixed(graph, ctx))
        for group in _by_tensor(layers):
            reason = writer.fold(group)
            if reason is not None:
                for layer in group:
                    writer.multiply(layer, reason) if layer.mul else writer.skip(layer, reason)
        if writer.changed:
            graph.sort()
        return PassReport(writer.changed, (*skipped, *writer.skipped), tuple(writer.notes))


class _Writer:
    """Balances layer by layer and remembers what it did."""

    def __init__(self, graph: GraphModel, ctx: QuantContext, patterns: frozenset[str], fixed: frozenset[str]) -> None:
        self._graph = graph
        self._ctx = ctx
        self._patterns = patterns
        self._fixed = fixed
        self.changed = 0
        self.skipped: list[Skip] = []
        self.notes: list[str] = []

    def fold(self, group: list[BalancedLayer]) -> str | None:
        """Balance the layers that read one tensor with one factor and without a node; returns why not."""
        reason = _why_not_together(self._graph, group)
        if reason is not None:
            return reason
        graph, tensor = self._graph, group[0].tensor
        factors = self._factors(group)
        if factors is None:
            return None
        shape = channel_shape(graph, group[0].node, factors.size)
        found = find_fold(
            graph, tensor, factors.astype(np.float64).reshape(shape), fixed=self._fixed, patterns=self._patterns
        )
        if not isinstance(found, Fold):
            return found
        found.apply(graph, SUFFIX)
        note_rescaled(self._ctx, found.tensors)
        note_folded(graph, [layer.name for layer in group])
        for layer in group:
            self._finish(layer, factors, f"the division is part of what computes {tensor.name!r}")
        return None

    def multiply(self, layer: BalancedLayer, reason: str) -> None:
        """Balance one layer with a Mul in front of it."""
        factors = self._factors([layer])
        if factors is not None:
            write_mul(self._graph, layer.node, factors)
            self._finish(layer, factors, f"a Mul divides its input, for {reason}")

    def skip(self, layer: BalancedLayer, reason: str) -> None:
        """Leave a layer as it is."""
        self.skipped.append(Skip(layer.name, f"not balanced: {reason}, and the recipe wants no Mul (balance.mul)"))

    def _finish(self, layer: BalancedLayer, factors: _Factors, how: str) -> None:
        scale_weight(self._graph, layer.linear, factors)
        self._ctx.balance[layer.name] = factors
        self.notes.append(f"{layer.name}: {how}")
        self.changed += 1

    def _factors(self, group: list[BalancedLayer]) -> _Factors | None:
        """The factors of layers that read one tensor; None where there is nothing to balance."""
        name, tensor = group[0].name, group[0].tensor
        stats = self._ctx.stats.get(tensor.name)
        if stats is None or stats.channel_absmax is None or stats.channel_absmax.size != group[0].channels:
            raise CalibrationError(
                f"layer {name!r}: the {group[0].channels} channels of its input {tensor.name!r} were not measured; "
                "run CalibrateChannels before BalanceDmq"
            )
        weight = np.maximum.reduce([input_absmax(self._graph, layer.linear) for layer in group])
        try:
            factors = balance_factors(stats.channel_absmax, weight, group[0].strength)
            reason = "every factor is 1" if (factors == 1).all() else ""
        except CalibrationError as err:
            reason = str(err)
        if reason:
            self.skipped += [Skip(layer.name, f"not balanced: {reason}") for layer in group]
            return None
        return factors


def _by_tensor(layers: list[BalancedLayer]) -> Iterator[list[BalancedLayer]]:
    groups: dict[str, list[BalancedLayer]] = {}
    for layer in layers:
        groups.setdefault(layer.tensor.name, []).append(layer)
    yield from groups.values()


def _why_not_together(graph: GraphModel, group: list[BalancedLayer]) -> str | None:
    """Why the tensor that these layers read cannot change for all its readers."""
    tensor = group[0].tensor
    if graph.is_output(tensor):
        return f"{tensor.name!r} is a graph output"
    if graph.read_by_subgraph(tensor):
        return f"{tensor.name!r} is read inside the body of an If, Loop or Scan"
    names = {layer.name for layer in group}
    others = [use.node.name for use in graph.consumers(tensor) if use.node.name not in names or use.index != 0]
    if others:
        return f"{others[0]!r} reads {tensor.name!r} as well and is not balanced"
    if len({layer.strength for layer in group}) > 1:
        return f"the layers that read {tensor.name!r} are to be balanced with different strengths"
    return None


def _fixed(graph: GraphModel, ctx: QuantContext) -> frozenset[str]:
    """The layers whose weights must not change where their numbers are kept outside the graph."""
    if ctx.target.insertion == "qdq":
        return frozenset()
    plan = Plan() if ctx.plan is None else ctx.plan
    quantized = {d.node for d in plan.decisions if d.role == "quantized"}
    return frozenset(n.name for n in graph.nodes(*LINEAR_OPS) if n.name in quantized)
