"""The anatomy of a model that has just been quantized: from its plan, its statistics and its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from onnxq.passes._base import Fact, Instrument, Pass
from onnxq.plan import ActivationPlan, Plan
from onnxq.report.anatomy import Anatomy, WeightPlace
from onnxq.report.distributions import Distribution, distribution
from onnxq.report.numbers import Numbers, numbers_of, numbers_of_codes

if TYPE_CHECKING:
    from onnxq.context import QuantContext
    from onnxq.graph import GraphModel
    from onnxq.result import Result
    from onnxq.spec import QuantParams


class Spreads(Instrument):
    """Looks at the calibration statistics before they are gone, once the numbers are chosen.

    Attributes:
        found: How the values of activations are spread, by name.
    """

    def __init__(self) -> None:
        self.found: dict[str, Distribution] = {}

    def before_pass(self, position: int, step: Pass, graph: GraphModel, ctx: QuantContext) -> None:
        """Look, in front of the pass that writes numbers into the graph."""
        if step.provides & {Fact.FACTORS, Fact.QUANTIZED} and ctx.plan is not None:
            numbers = activation_numbers(ctx.plan, ctx.params)
            self.found = {name: distribution(seen, numbers.get(name)) for name, seen in ctx.stats.items() if seen.count}


def anatomy_of(result: Result, spreads: Mapping[str, Distribution]) -> Anatomy | None:
    """What is known of a result without running it.

    Args:
        result: What `onnxq.quantize` gave.
        spreads: How the values of activations are spread, by name.

    Returns:
        None where the float model was not kept.
    """
    graph = result.prepared or result.original
    if graph is None:
        return None
    return Anatomy(
        graph,
        {d.node: d for d in result.plan.decisions},
        activation_numbers(result.plan, result.params),
        _weights(result),
        dict(spreads),
    )


def activation_numbers(plan: Plan, params: Mapping[str, QuantParams]) -> dict[str, Numbers]:
    """How activations become codes, by name; the first way where readers want one tensor in several.

    Args:
        plan: What is quantized.
        params: Scales and zero points by the keys of the plan.
    """
    groups: dict[str, list[str]] = {}
    for activation in plan.activations.values():
        groups.setdefault(activation.group, []).append(activation.tensor)
    found: dict[str, Numbers] = {}
    for key, activation in plan.activations.items():
        numbers = params.get(key)
        if numbers is not None and activation.tensor not in found:
            shared = tuple(t for t in groups[activation.group] if t != activation.tensor)
            found[activation.tensor] = numbers_of(activation.tensor, numbers, _method(activation), shared)
    return found


def _method(activation: ActivationPlan) -> str:
    return str(activation.method.name)


def _weights(result: Result) -> dict[WeightPlace, Numbers]:
    found: dict[WeightPlace, Numbers] = {}
    for weight in result.plan.weights:
        method = str(weight.method.name)
        if weight.key in result.weight_codes:
            numbers = numbers_of_codes(weight.tensor, result.weight_codes[weight.key], method)
        elif weight.key in result.params:
            numbers = numbers_of(weight.tensor, result.params[weight.key], method)
        else:
            continue
        found[weight.node, weight.index] = numbers
    return found
