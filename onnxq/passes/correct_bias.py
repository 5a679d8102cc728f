"""Corrects, layer by layer, what rounded weights do to the mean of each channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.algos import kernels
from onnxq.algos.affine import dequantize
from onnxq.algos.bias_correct import correction
from onnxq.algos.weight import quantize_weight
from onnxq.calib.chunks import first_batches
from onnxq.calib.engine import Collector, batch_for, by_channel
from onnxq.calib.feeds import Feed, batching, sample_count
from onnxq.calib.points import StatisticPoint, StatKind
from onnxq.calib.segments import SegmentRunner
from onnxq.graph import GraphModel, Node
from onnxq.passes._base import Fact, Pass, PassReport, Skip
from onnxq.passes._bias import add_to_bias
from onnxq.passes._inputs import inputs_of
from onnxq.passes._linear import LINEAR_OPS
from onnxq.passes._weights import weight_value
from onnxq.plan import Plan, WeightPlan
from onnxq.runtime import make_session, thread_count

if TYPE_CHECKING:
    from onnxq.context import QuantContext

_COPIES = 4
"""How many tensors of the largest size may be alive at the same time in an ordinary network."""


@dataclass(frozen=True)
class CorrectBias(Pass):
    """Adds to each bias what the rounding of the weights took from the mean of the layer's output.

    Layers are corrected in graph order, each against predecessors that are corrected already; the
    activations are floats, because errors of rounded activations are no shift of the weights'. The
    model with rounded weights runs once, piece by piece, and the float model once: the cost is that
    of two forward passes over `samples` samples, whatever the number of layers.

    Given:
        a plan and its numbers, and ``ctx.reader``.
    Result:
        new float biases; layers without a bias get one. MatMul has none and is left alone.

    Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV
    2019, section 4.2, with measured instead of assumed means.

    Attributes:
        samples: How many samples the means are taken over.
    """

    samples: int = 32

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN, Fact.PARAMS})

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Correct every layer that can have a bias.

        Raises:
            CalibrationError: If a mean is not finite.
        """
        plan = ctx.plan or Plan()
        layers = [w for w in plan.weights if _has_bias_input(graph.node(w.node), w)]
        skipped = tuple(
            Skip(w.node, f"{graph.node(w.node).op} has no bias that could be corrected")
            for w in plan.weights
            if graph.node(w.node).op in LINEAR_OPS and not _has_bias_input(graph.node(w.node), w)
        )
        if not layers or ctx.reader is None:
            return PassReport(skipped=skipped)
        inputs = inputs_of(graph)
        count = min(self.samples, _affordable(ctx))
        feeds = first_batches(ctx.reader, count, _batch(ctx), inputs)
        expected = _float_means(graph, layers, feeds, ctx)
        shifts = _shifts(graph, layers, feeds, expected, ctx)
        for layer, shift in zip(layers, shifts, strict=True):
            add_to_bias(graph, layer.node, (graph.node(layer.node), 2), shift)
        used = sum(sample_count(feed, batching(inputs).carried) or 1 for feed in feeds)
        return PassReport(len(layers), skipped, (f"{len(layers)} biases corrected over {used} samples",))


def _has_bias_input(node: Node, plan: WeightPlan) -> bool:
    return node.op in ("Conv", "ConvTranspose", "Gemm") and plan.index == 1


def _affordable(ctx: QuantContext) -> int:
    """How many samples fit into the memory budget, judged by the largest activation that was measured."""
    largest = max((s.count for s in ctx.stats.values()), default=0) * 4 / max(ctx.samples, 1)
    budget = ctx.recipe.calibration.memory_budget_mb * 2**20
    return max(1, int(budget / max(_COPIES * largest, 1)))


def _batch(ctx: QuantContext) -> int:
    return batch_for(4 * sum(s.count for s in ctx.stats.values()) / max(ctx.samples, 1))


def _axis(node: Node) -> int:
    return -1 if node.op == "Gemm" else 1


def _float_means(
    graph: GraphModel, layers: Sequence[WeightPlan], feeds: Sequence[Feed], ctx: QuantContext
) -> dict[str, NDArray[np.float64]]:
    nodes = [graph.node(w.node) for w in layers]
    points = [StatisticPoint(n.outputs[0].name, StatKind.CHANNEL_SUM, _axis(n)) for n in nodes]
    session = make_session(graph, threads=1, outputs=[p.tensor for p in points])
    collector = Collector(session, points, inputs_of(graph), workers=thread_count(ctx.threads), batch=_batch(ctx))
    return {name: stats.channel_mean for name, stats in collector.run(feeds).items()}


def _shifts(
    graph: GraphModel,
    layers: Sequence[WeightPlan],
    feeds: Sequence[Feed],
    expected: dict[str, NDArray[np.float64]],
    ctx: QuantContext,
) -> list[NDArray[np.float32]]:
    """What to add to each layer's bias."""
    skeleton, rounded = _with_rounded_weights(graph, layers)
    constants = {t.name: t for t in graph.constants()}

    def weight(name: str) -> onnx.TensorProto:
        if name in rounded:
            params = ctx.params[rounded[name].key]
            array = dequantize(quantize_weight(weight_value(graph, rounded[name]), params), params)
        else:
            array = graph.value(constants[name])
        return onnx.numpy_helper.from_array(np.asarray(array, order="C"), name)  # keeps scalars scalars

    by_output = {graph.node(w.node).outputs[0].name: graph.node(w.node) for w in layers}
    found: dict[str, NDArray[np.float32]] = {}
    with SegmentRunner(skeleton, weight, feeds, list(by_output), thread_count(ctx.threads)) as runner:
        for done in range(1, len(layers) + 1):
            name, values = runner.advance()
            axis = _axis(by_output[name])
            found[name] = correction(expected[name], _mean(values, axis))
            for value in values:
                value += _along(found[name], value.ndim, axis)
            if ctx.progress is not None:
                ctx.progress("correcting biases", done, len(layers))
    return [found[graph.node(w.node).outputs[0].name] for w in layers]


def _with_rounded_weights(
    graph: GraphModel, layers: Sequence[WeightPlan]
) -> tuple[onnx.ModelProto, dict[str, WeightPlan]]:
    """The model in which every layer reads its weight under a name of its own, and the weights by these names.

    Others may read the same weight as it is, or rounded in another way.
    """
    skeleton = graph.skeleton()
    nodes = {n.name: n for n in skeleton.graph.node}
    rounded: dict[str, WeightPlan] = {}
    for layer in layers:
        name = f"{layer.node}/{layer.tensor}/rounded"
        nodes[layer.node].input[layer.index] = name
        skeleton.graph.initializer.add(name=name)
        rounded[name] = layer
    return skeleton, rounded


def _mean(values: Sequence[NDArray[np.float32]], axis: int) -> NDArray[np.float64]:
    total: NDArray[np.float64] | None = None
    count = 0
    for value in values:
        view = by_channel(value, axis)
        total = kernels.channel_sum(view, total)
        count += view.shape[0] * view.shape[2]
    return np.asarray(total) / count


def _along(vector: NDArray[np.float32], rank: int, axis: int) -> NDArray[np.float32]:
    return vector.reshape([-1 if i == axis % rank else 1 for i in range(rank)])
