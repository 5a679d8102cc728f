"""Puts quantizers whose scales are learned into a float graph, for quantization-aware training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from onnxq.errors import GraphError
from onnxq.graph import GraphModel, Tensor, Use
from onnxq.learned import LearnedRange
from onnxq.passes._base import Fact, Pass, PassReport
from onnxq.passes._bias import bias_place
from onnxq.passes._fake_quant_ranges import RangeWriter, learned_ranges
from onnxq.passes._fake_quant_weights import WeightWriter, learned_scales
from onnxq.plan import ActivationPlan, Plan

if TYPE_CHECKING:
    from onnxq.context import QuantContext

_MOVERS = frozenset(
    {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather", "MaxPool", "Split", "Identity"}
    | {"Expand", "Tile", "DepthToSpace", "SpaceToDepth"}
)
"""Operators whose results are values of their first input, which need not be rounded a second time."""


@dataclass(frozen=True)
class InsertFakeQuant(Pass):
    """Lets every planned activation and weight pass a quantizer in standard operators.

    Ranges and scales begin where calibration left them; the parameters are initializers of their own:

    * ``<group>.clip_max``, ``<group>.clip_min`` (ULQ), ``<group>.alpha`` (PACT), ``<group>.log_step`` and
      ``<group>.offset`` (LSQ+), all of shape (1,);
    * ``<weight>.log_scale`` (LSQ), which broadcasts against the weight. ARQ has none.

    Rounding is taken for the identity by the gradient. What must not pass gradients goes through SequenceConstruct and
    SequenceAt, which pass none. The values are, bit for bit, those that QuantizeLinear and DequantizeLinear give with
    the scales of `onnxq.learned`.

    Given:
        a plan and its numbers.
    Result:
        the graph with quantizers; ``ctx.ranges_learned`` and ``ctx.scales_learned``. Graph outputs keep their names.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN, Fact.PARAMS})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.LEARNING})
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.STATS})

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Insert.

        Raises:
            RecipeError: If a weight's codes cannot be trained: blocks, or asymmetric ones.
            GraphError: If the plan does not fit the graph.
        """
        plan = ctx.plan or Plan()
        ranges = learned_ranges(graph, plan, ctx)
        scales = learned_scales(graph, plan, ctx)
        biases = [(w, bias_place(graph, graph.node(w.node))) for w in plan.weights if w.bias]
        activations = _write_ranges(graph, plan, ranges)
        writer = WeightWriter(graph, ctx.recipe.training.optimizer == "sgd", ctx.params)
        by_key = {scale.key: scale for scale in scales}
        for weight in plan.weights:
            writer.write(weight, by_key[weight.key])
        for weight, place in biases:
            if place is not None:
                writer.write_bias(weight, place, activations.step(plan.activations[weight.input_key].group))
        graph.sort()
        ctx.ranges_learned, ctx.scales_learned = ranges, scales
        return PassReport(changed=len(plan.weights) + len(plan.activations))

    def verify(self, graph: GraphModel, ctx: QuantContext) -> None:
        """Raise `GraphError` if a parameter is not in the graph."""
        names = [name for learned in ctx.ranges_learned for name in learned.parameters]
        names += [learned.parameter for learned in ctx.scales_learned if learned.parameter]
        constants = {t.name for t in graph.constants()}
        for name in names:
            if name not in constants:
                raise GraphError(f"the parameter {name!r} of a quantizer is not in the graph")


def _write_ranges(graph: GraphModel, plan: Plan, ranges: tuple[LearnedRange, ...]) -> RangeWriter:
    writer = RangeWriter(graph, ranges)
    by_key = {key: learned.group for learned in ranges for key in learned.keys}
    moved = {key for key, a in plan.activations.items() if _is_moved(graph, plan, a)}
    for key, activation in plan.activations.items():
        if key not in moved:
            _insert(graph, activation, by_key[key], writer)
    return writer


def _is_moved(graph: GraphModel, plan: Plan, activation: ActivationPlan) -> bool:
    """Whether the values of a tensor have been rounded to the same reals in front of the node that moves them here."""
    maker = graph.producer(graph.tensor(activation.tensor))
    if maker is None or maker.op not in _MOVERS:
        return False
    source = plan.activations.get(maker.inputs[0].name)
    if source is None or source.group != activation.group:
        return False
    return source.everywhere or (maker.name, 0) in source.readers


def _insert(graph: GraphModel, activation: ActivationPlan, group: str, writer: RangeWriter) -> None:
    tensor = graph.tensor(activation.tensor)
    if activation.everywhere and (graph.is_output(tensor) or graph.read_by_subgraph(tensor)):
        maker = graph.producer(tensor)
        index = next(i for i, t in enumerate(maker.outputs) if t is tensor)
        floats = graph.new_variable(f"{tensor.name}_float", graph.dtype(tensor), graph.shape(tensor))
        graph.replace_output(maker, index, floats)
        writer.apply(floats, group, activation.key, tensor)
        return
    if activation.everywhere:
        uses: tuple[Use, ...] = graph.consumers(tensor)
    else:
        uses = tuple(Use(graph.node(name), index) for name, index in activation.readers)
    rounded: Tensor = writer.apply(tensor, group, activation.key)
    graph.replace_uses(tensor, rounded, uses)
