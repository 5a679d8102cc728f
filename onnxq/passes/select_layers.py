"""Decides which nodes compute with codes, where codes begin and end, and says why the rest stays float."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from onnxq.opinfo import OPS
from onnxq.passes._base import Fact, Pass, PassReport, Skip
from onnxq.passes._candidates import Candidate, examine
from onnxq.passes._flow import Flow, settle
from onnxq.passes._linear import kind, label
from onnxq.passes._patterns import ATTENTION, fused_patterns
from onnxq.passes._placement import place
from onnxq.plan import Decision, Plan

if TYPE_CHECKING:
    from onnxq.context import QuantContext
    from onnxq.graph import GraphModel
    from onnxq.targets import Target

_QUANTIZED_OPS = (
    *("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"),
    *("AscendQuant", "AscendDequant"),
)


@dataclass(frozen=True)
class SelectLayers(Pass):
    """Writes ``ctx.plan``: what is quantized, with which type and granularity, and why the rest is not.

    What the recipe skips stays float first of all. Then every node is judged by itself: whether the
    target computes it with codes, whether its weight is constant and float32, whether it is part of
    a LayerNorm, Gelu, HardSwish or attention softmax. Then the flow decides: linear operators are
    quantized wherever they can be; what lies between them is quantized where its inputs come as codes
    and its output goes to something that wants codes. A model that has codes already is left alone.

    Given:
        a named graph with lifted constants and known element types.
    Result:
        the graph unchanged; `ctx.plan`.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS_LIFTED, Fact.SHAPES})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN})
    preserves_function: ClassVar[bool] = True

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Judge every node.

        Raises:
            RecipeError: If a name of the recipe matches nothing, or the target lacks a type it asks for.
        """
        nodes = graph.nodes()
        ctx.recipe.check_names(((label(n), str(n.op)) for n in nodes), op_types=frozenset(OPS))
        done = graph.nodes(*_QUANTIZED_OPS)
        if done:
            reason = f"the model is quantized already ({len(done)} nodes such as {done[0].op}); give the float model"
            ctx.plan = Plan(tuple(Decision(label(n), str(n.op), "float", reason) for n in nodes))
            return PassReport(notes=(reason,))
        flow = settle(graph, self._judge(graph, ctx), ctx.target)
        ctx.plan = place(graph, flow, ctx.target, ctx.recipe)
        skipped = tuple(Skip(d.node, d.reason) for d in ctx.plan.left_float())
        return PassReport(skipped=skipped, notes=_notes(graph, flow, ctx.target))

    def _judge(self, graph: GraphModel, ctx: QuantContext) -> dict[str, Candidate | str]:
        patterns = {} if ctx.target.alone else fused_patterns(graph)
        if ctx.target.all_codes:
            patterns = {n: reason for n, reason in patterns.items() if reason != ATTENTION}
        return {
            label(n): examine(graph, n, ctx.recipe.resolve(label(n), kind(n)), ctx.target, patterns)
            for n in graph.nodes()
        }


def _notes(graph: GraphModel, flow: Flow, target: Target) -> tuple[str, ...]:
    if graph.opset < 13 and flow.quantized and target.standard:
        note = f"the model stays at opset {graph.opset}, which has one scale for a whole weight only; "
        return (note + "export it at opset 13 or newer for one per channel",)
    return ()
