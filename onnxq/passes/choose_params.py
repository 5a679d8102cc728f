"""Turns statistics and weights into scales and zero points."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from onnxq.algos import activation as activation_methods
from onnxq.algos import weight as weight_methods
from onnxq.algos.affine import fp16_scale, params_from_range
from onnxq.errors import CalibrationError, GraphError
from onnxq.graph import GraphModel
from onnxq.passes._base import Fact, Pass, PassReport
from onnxq.passes._clamps import clamp_limits
from onnxq.passes._fitting import fit_bias, with_safe_pairs
from onnxq.passes._measured import groups_of, merged_stats
from onnxq.passes._weights import weight_value
from onnxq.plan import ActivationPlan, Plan, WeightPlan
from onnxq.recipe import ActivationMSE, Custom, OutputMSE
from onnxq.spec import QuantParams
from onnxq.stats import TensorStats

if TYPE_CHECKING:
    from onnxq.context import QuantContext
    from onnxq.targets import Target


_ONE_AXIS = 13
"""The first operator set whose Softmax is taken over one axis; before, it is over that axis and all behind it."""


@dataclass(frozen=True)
class ChooseParams(Pass):
    """Writes ``ctx.params``: the scale and zero point of every activation and weight of the plan.

    Tensors of one group share the numbers that their merged statistics give; the limits of an
    absorbed Relu or Clip cut the range. One that is not absorbed reads codes with the numbers of what it
    gives: what it cuts off needs none. Where an int32 bias would overflow, the scale of its weight
    grows until the bias fits. Codes behind a Softmax are as coarse as its kernel needs them.

    Given:
        a plan and the statistics of its activations.
    Result:
        the graph unchanged; `ctx.params` by tensor name, weights by their key in the plan.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN, Fact.STATS})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.PARAMS})
    preserves_function: ClassVar[bool] = True

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Choose.

        Raises:
            CalibrationError: If a tensor was not measured, or its numbers cannot be used.
            GraphError: If a weight holds NaN or infinity.
        """
        plan = ctx.plan or Plan()
        params = _activations(graph, plan, ctx)
        _share_behind_clamps(graph, plan, params)
        notes: list[str] = []
        for weight in plan.weights:
            if weight.key not in params:
                params[weight.key] = _weight(graph, weight)
            if ctx.target.safe_pairs:  # what are neighbours depends on the node, also where a weight is shared
                params[weight.key] = with_safe_pairs(graph, weight, params[weight.key])
        for weight in plan.weights:
            notes += fit_bias(graph, weight, params)
        ctx.params = params
        return PassReport(notes=tuple(notes))


def _activations(graph: GraphModel, plan: Plan, ctx: QuantContext) -> dict[str, QuantParams]:
    params: dict[str, QuantParams] = {}
    for group, members in groups_of(plan).items():
        low, high = ctx.ranges.get(group) or _find_range(members, ctx.stats)
        high = max(high, *(_softmax_room(graph, m, ctx.target) for m in members))
        chosen = params_from_range(low, high, members[0].spec, full_range=ctx.target.full_range)
        if ctx.recipe.fp16_scales:
            chosen = QuantParams(chosen.spec, fp16_scale(chosen.scale), chosen.zero_point)
        params |= {m.key: chosen for m in members}
    return params


def _softmax_room(graph: GraphModel, member: ActivationPlan, target: Target) -> float:
    """What the range of codes that a Softmax gives must reach; minus infinity where that does not matter."""
    node = graph.producer(graph.tensor(member.tensor))
    if node is None or node.op != "Softmax" or member.spec.bits > 8 or not target.softmax_room:
        return -math.inf
    shape = graph.shape(node.outputs[0]) or ()
    flat = graph.opset < _ONE_AXIS
    axis = int(node.attrs.get("axis", 1 if flat else -1))
    dims = shape[axis:] if flat else shape[axis:][:1]
    known = [d for d in dims if isinstance(d, int)]
    return target.softmax_room / max(1, math.prod(known))


def _share_behind_clamps(graph: GraphModel, plan: Plan, params: dict[str, QuantParams]) -> None:
    """Give what only a Relu or Clip reads the numbers of what that gives: rounding twice is rounding once then."""
    groups = groups_of(plan)
    by_tensor: dict[str, list[ActivationPlan]] = {}
    for activation in plan.activations.values():
        by_tensor.setdefault(activation.tensor, []).append(activation)
    for activation in plan.activations.values():
        tensor = graph.tensor(activation.tensor)
        if not activation.everywhere or len(groups[activation.group]) > 1 or not graph.is_private(tensor):
            continue
        use = graph.consumers(tensor)[0]
        if use.index or clamp_limits(graph, use.node) is None:
            continue
        behind = by_tensor.get(use.node.outputs[0].name, [])
        if len(behind) == 1 and behind[0].spec == activation.spec:
            params[activation.key] = params[behind[0].key]


def _find_range(members: list[ActivationPlan], stats: dict[str, TensorStats]) -> tuple[float, float]:
    total, bounds = merged_stats(members, stats)
    method = members[0].method
    if isinstance(method, Custom):
        low, high = total.require_observed(method.request).find_range()
        return max(low, bounds[0]), min(high, bounds[1])
    if isinstance(method, OutputMSE):  # SearchRanges did not run, or nothing reads the tensor
        method = ActivationMSE()
    config = activation_methods.config_from_dict(method.name, method.parameters())
    if activation_methods.method_info(method.name).joins_ranges:
        parts = [stats[m.tensor] for m in members if m.tensor in stats and stats[m.tensor].count]
    else:
        parts = [total]
    ranges = [activation_methods.find_range(part, members[0].spec, config) for part in parts]
    low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    return max(low, bounds[0]), min(high, bounds[1])


def _weight(graph: GraphModel, plan: WeightPlan) -> QuantParams:
    method = weight_methods.config_from_dict(plan.method.name, plan.method.parameters())
    try:
        return weight_methods.find_params(weight_value(graph, plan), plan.spec, method)
    except CalibrationError as err:
        raise GraphError(f"weight {plan.tensor!r} of node {plan.node!r}: {err}; mend it, or skip the node") from err
