"""What the scales of weights must leave room for: sums of products, and biases."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.bias_correct import quantize_bias
from onnxq.algos.weight.pair_sums import largest_pair_sums, safe_scale
from onnxq.errors import CalibrationError, GraphError
from onnxq.graph import GraphModel, Node
from onnxq.passes._linear import optional_input
from onnxq.passes._weights import weight_value
from onnxq.plan import WeightPlan
from onnxq.spec import PerBlock, QuantParams

_LARGEST_PAIR = 128
"""Codes that two neighbours may add up to: 255 times that is below 2**15."""


def with_safe_pairs(graph: GraphModel, plan: WeightPlan, params: QuantParams) -> QuantParams:
    """Scales with which no CPU saturates the sum of two products."""
    spec = params.spec
    if not (plan.input and spec.bits == 8 and spec.qtype.signed and spec.symmetric) or spec.qtype.floating:
        return params
    if isinstance(spec.granularity, PerBlock):
        return params
    rows = _sums(graph.node(plan.node), plan.index, weight_value(graph, plan))
    if rows is None:
        return params
    matrix, outputs_first = rows
    scale = safe_scale(params.scale, largest_pair_sums(matrix, outputs_first=outputs_first))
    return QuantParams(spec, scale, params.zero_point)


def saturating_outputs(
    node: Node, plan: WeightPlan, weight: NDArray[np.float32], params: QuantParams
) -> NDArray[np.bool_] | None:
    """Outputs of which two neighbouring weights add up to more than 16 bits of a CPU hold; None where none can.

    Args:
        node: The layer.
        plan: Its weight.
        weight: What its codes stand for.
        params: Their scale and zero point.
    """
    spec = params.spec
    if not (plan.input and spec.bits == 8 and spec.qtype.signed and spec.symmetric):
        return None
    rows = _sums(node, plan.index, weight)
    if rows is None:
        return None
    sums = largest_pair_sums(rows[0], outputs_first=rows[1])
    return np.asarray(sums > np.float32(_LARGEST_PAIR + 0.5) * params.scale.reshape(-1))


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


def fit_bias(graph: GraphModel, plan: WeightPlan, params: dict[str, QuantParams]) -> list[str]:
    """Let the weight's scale grow where the bias needs it.

    Returns:
        What was done, a sentence each.

    Raises:
        GraphError: If the bias cannot be used.
    """
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
