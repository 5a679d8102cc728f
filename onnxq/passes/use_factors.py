"""Takes the numbers of every layer from a record instead of from calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from onnxq.errors import RecordError
from onnxq.factors import LayerFactors
from onnxq.graph import GraphModel, Node
from onnxq.passes._ascend_layers import find_layers, locate
from onnxq.passes._base import Fact, Pass, PassReport
from onnxq.passes._limits import needs_symmetric, why_beyond, why_not_wide
from onnxq.passes._linear import LINEAR_OPS, read_linear

if TYPE_CHECKING:
    from onnxq.context import QuantContext
    from onnxq.targets import Target


@dataclass(frozen=True)
class UseFactors(Pass):
    """Writes ``ctx.factors`` from a record, after making sure that it fits the graph.

    Given:
        the float graph in the form its layers were calibrated in (BatchNormalization folded, Gemm normalized).
    Result:
        the graph unchanged; `ctx.factors`. Layers that are not in the record stay float.

    Attributes:
        factors: By layer: the name of a node, or ``node:index`` for an input of a node without a weight.
    """

    factors: Mapping[str, LayerFactors]

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS_LIFTED, Fact.SHAPES})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.FACTORS})
    preserves_function: ClassVar[bool] = True

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Check and hand over.

        Raises:
            RecordError: With all problems of the record at once.
        """
        problems = [
            f"layer {key!r}: {problem}" if not problem.startswith("layer ") else problem
            for key, values in self.factors.items()
            if (problem := _problem(graph, key, values, ctx.target)) is not None
        ]
        if problems:
            raise RecordError("the record does not fit the model:\n  " + "\n  ".join(problems))
        find_layers(graph, self.factors, s19=ctx.recipe.fp16_scales)
        ctx.factors = dict(self.factors)
        return PassReport(notes=(f"{len(self.factors)} layers have factors",))


def _problem(graph: GraphModel, key: str, factors: LayerFactors, target: Target) -> str | None:
    try:
        node, index = locate(graph, key)
    except RecordError as err:
        return str(err)
    if node.op not in target.compute and node.op not in target.slower:
        return f"{target.title} does not compute {node.op} with codes; known: {', '.join(_known(target))}"
    reason = _form(node, index, factors) or why_beyond(graph, node, target)
    if reason is not None:
        return reason
    source = node.inputs[index or 0]
    if graph.is_constant(source) or not graph.is_float32(source):
        found = "a constant" if graph.is_constant(source) else str(graph.dtype(source))
        return f"its input {source.name!r} is {found}; must be a float32 activation"
    if factors.act_bits == 4 and (factors.tensor_quantize or factors.wts_bits != 4):
        return f"act_bits is 4 and wts_bits is {factors.wts_bits}; activations of 4 bits go with weights of 4 bits only"
    if factors.offset_d and needs_symmetric(graph, node, target):
        return f"offset_d is {factors.offset_d}; {target.title} takes symmetric activations here: calibrate with 0"
    return why_not_wide(graph, node, factors.act_bits, target) or _numbers(graph, node, factors)


def _known(target: Target) -> list[str]:
    return sorted(target.compute | set(target.slower))


def _form(node: Node, index: int | None, factors: LayerFactors) -> str | None:
    """Whether a key names an input, and an entry has a weight, exactly where the layer does."""
    if factors.tensor_quantize and index is None:
        return f"is_tensor_quantize is set; its key must name an input: {node.name}:0"
    if not factors.tensor_quantize and index is not None:
        return f"its key names an input; use {node.name!r}, or set is_tensor_quantize"
    if factors.tensor_quantize and node.op in ("Conv", "ConvTranspose", "Gemm", "AveragePool"):
        return f"a {node.op} is no layer for is_tensor_quantize; use {node.name!r} with its scale_w"
    if not factors.tensor_quantize and node.op not in (*LINEAR_OPS, "AveragePool"):
        return f"a {node.op} has no weight; use the key {node.name}:0 with is_tensor_quantize and without scale_w"
    return None


def _numbers(graph: GraphModel, node: Node, factors: LayerFactors) -> str | None:
    """Whether there are as many numbers as the layer has channels."""
    if factors.tensor_quantize:
        return None
    if node.op == "AveragePool":
        plain = factors.scale_w.size == 1 and factors.scale_w[0] == np.float32(1)
        return None if plain else "an AveragePool has a single scale_w, 1.0"
    linear = read_linear(graph, node)
    if isinstance(linear, str):
        return linear
    outputs, inputs = linear.layout.out_channels, linear.layout.in_channels
    if factors.scale_w.size not in (1, outputs):
        return f"has {factors.scale_w.size} scale_w; must be 1 or {outputs}, one for each output"
    if factors.balance is not None and factors.balance.size != inputs:
        return f"has {factors.balance.size} tensor_balance_factor; must be {inputs}, one for each input channel"
    return None
