"""Gives the outputs of convolutions their means back, without data."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.moments import Moments
from onnxq.algos.weight.codes import WeightCodes, decode, encode
from onnxq.graph import GraphModel, Node
from onnxq.passes._base import Fact, Pass, PassReport
from onnxq.passes._bias import add_to_bias
from onnxq.passes._linear import optional_input
from onnxq.passes._moments import follow
from onnxq.passes._weights import weight_value
from onnxq.plan import Plan

if TYPE_CHECKING:
    from onnxq.context import QuantContext


class RestoreMeans(Pass):
    """Takes from each bias what the rounding of the weights adds to the mean of the layer's output.

    The mean of the input is not measured: batch normalization says what it is in front of the activation, and
    behind that it is the mean of a function of a normal variable. Where there is none in front of a convolution,
    its bias stays as it is.

    Given:
        a plan of weights, their codes, and what batch normalizations said before they were folded.
    Result:
        new float biases; convolutions without a bias get one.

    Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019,
    section 4.2.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN, Fact.CODES, Fact.MOMENTS})

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Correct every convolution whose input is known."""
        known = follow(graph, ctx.moments) if ctx.moments else {}
        corrected = 0
        for plan in (ctx.plan or Plan()).weights:
            node = graph.node(plan.node)
            moments = known.get(node.inputs[0].name)
            if node.op != "Conv" or moments is None or not _can_have_bias(graph, node):
                continue
            shift = _shift(
                weight_value(graph, plan), ctx.weight_codes[plan.key], moments, int(node.attrs.get("group", 1))
            )
            if shift is not None:
                add_to_bias(graph, plan.node, (node, 2), shift)
                corrected += 1
        return PassReport(changed=corrected)


def _can_have_bias(graph: GraphModel, node: Node) -> bool:
    bias = optional_input(node, 2)
    return bias is None or (graph.is_constant(bias) and graph.is_float32(bias))


def _shift(
    weight: NDArray[np.float32], codes: WeightCodes, moments: Moments, groups: int
) -> NDArray[np.float32] | None:
    """What to add to the bias, shape (outputs,); None where the input does not fit the weight."""
    outputs, inputs = weight.shape[:2]
    if moments.mean.size != groups * inputs:
        return None
    error = (decode(encode(weight, codes), codes) - weight).reshape(groups, outputs // groups, inputs, -1)
    means = moments.mean.reshape(groups, 1, inputs)
    shift: NDArray[np.float64] = -(error.sum(axis=3, dtype=np.float64) * means).sum(axis=2)
    return shift.reshape(-1).astype(np.float32)
