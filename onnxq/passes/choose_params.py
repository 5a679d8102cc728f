"""Turns statistics and weights into scales and zero points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxq.algos import activation as activation_methods
from onnxq.algos import weight as weight_methods
from onnxq.algos.affine import fp16_scale, params_from_range
from onnxq.algos.bias_correct import quantize_bias
from onnxq.algos.weight.pair_sums import largest_pair_sums, safe_scale
from onnxq.errors import CalibrationError, GraphError
from onnxq.graph import GraphModel, Node
from onnxq.passes._base import Fact, Pass, PassReport
from onnxq.passes._linear import optional_input
from onnxq.passes._measured import groups_of, merged_stats
from onnxq.passes._weights import weight_value
from onnxq.plan import ActivationPlan, Plan, WeightPlan
from onnxq.recipe import ActivationMSE, OutputMSE
from onnxq.spec import PerBlock, QuantParams
from onnxq.stats import TensorStats

if TYPE_CHECKING:
    from onnxq.context import QuantContext


@dataclass(frozen=True)
class ChooseParams(Pass):
    """Writes ``ctx.params``: the scale and zero point of every activation and weight of the plan.

    Tensors of one group share the numbers that their merged statistics give; the limits of an
    absorbed Relu or Clip cut the range. Where an int32 bias would overflow, the scale of its weight
    grows until the bias fits.

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
        params = _activations(plan, ctx)
        notes: list[str] = []
        for weight in plan.weights:
            if weight.key not in params:
                params[weight.key] = _weight(graph, weight)
            if ctx.target.safe_pairs:  # what are neighbours depends on the node, also where a weight is shared
                params[weight.key] = _with_safe_pairs(graph, weight, params[weight.key])
        for weight in plan.weights:
            notes += _fit_bias(graph, weight, params)
        ctx.params = params
        return PassReport(notes=tuple(notes))


def _activations(plan: Plan, ctx: QuantContext) -> dict[str, QuantParams]:
    params: dict[str, QuantParams] = {}
    for group, members in groups_of(plan).items():
        low, high = ctx.ranges.get(group) or _find_range(members, ctx.stats)
        chosen = params_from_range(low, high, members[0].spec, full_range=ctx.target.full_range)
        if ctx.recipe.fp16_scales:
            chosen = QuantParams(chosen.spec, fp16_scale(chosen.scale), chosen.zero_point)
        params |= {m.key: chosen for m in members}
    return params


def _find_range(members: list[ActivationPlan], stats: dict[str, TensorStats]) -> tuple[float, float]:
    total, bounds = merged_stats(members, stats)
    method = members[0].method
    if isinstance(method, OutputMSE):  # SearchRanges did not run, or nothing reads the tensor
        method = ActivationMSE()
    config = activation_methods.config_from_dict(method.name, method.parameters())
    if activation_methods.method_info(method.name).needs_quantiles:  # of values of one tensor, not of several
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


def _with_safe_pairs(graph: GraphModel, plan: WeightPlan, params: QuantParams) -> QuantParams:
    """Scales with which no CPU saturates the sum of two products."""
    spec = plan.spec
    if not (plan.input and spec.bits == 8 and spec.qtype.signed and spec.symmetric):
        return params
    if isinstance(spec.granularity, PerBlock):
        return params
    rows = _sums(graph.node(plan.node), plan.index, weight_value(graph, plan))
    if rows is None:
        return params
    matrix, outputs_first = rows
    scale = safe_scale(params.scale, largest_pair_sums(matrix, outputs_first=outputs_first))
    return QuantParams(spec, scale, params.zero_point)


def _sums(node: Node, index: int, weight: NDArray[np.float32]) -> tuple[NDArray[np.float32], bool] | None:
    """The weight as a matrix, one sum of products per row (or per column, then False), in the order it is added.

    A convolution adds the channels of one kernel position after the other; a depthwise one has no
    neighbours, ConvTranspose has no integer kernel, and a weight on the left takes the part of the activations.
    """
    if node.op == "Conv":
        depthwise = weight.shape[1] == 1 and weight.shape[0] == int(node.attrs.get("group", 1))
        return None if depthwise else (np.moveaxis(weight, 1, -1).reshape(weight.shape[0], -1), True)
    if index != 1 or node.op not in ("Gemm", "MatMul"):
        return None
    if weight.ndim == 1:
        return weight.reshape(-1, 1), False
    if weight.ndim > 2:
        return np.moveaxis(weight, -1, -2).reshape(-1, weight.shape[-2]), True
    return weight, bool(node.attrs.get("transB", 0))


def _fit_bias(graph: GraphModel, plan: WeightPlan, params: dict[str, QuantParams]) -> list[str]:
    """Let the weight's scale grow where the bias needs it."""
    tensor = optional_input(graph.node(plan.node), 2)
    if not plan.bias or tensor is None:
        return []
    bias = np.asarray(graph.value(tensor)).reshape(-1)
    old = params[plan.key]
    try:
        fitted = quantize_bias(bias, float(params[plan.input_key].scale), old.scale)
    except CalibrationError as err:
        raise GraphError(f"bias {tensor.name!r} of node {plan.node!r}: {err}") from err
    if not fitted.enlarged.any():
        return []
    params[plan.key] = QuantParams(old.spec, fitted.w_scale, old.zero_point)
    count = int(fitted.enlarged.sum())
    return [f"{plan.node}: {count} weight scales enlarged so that the int32 bias does not overflow"]
