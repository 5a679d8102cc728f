"""Corrects every quantized layer by itself: fed with the codes of its own float input, it keeps its mean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.algos.affine import code_dtype, dequantize
from onnxq.algos.bias_correct import correction
from onnxq.algos.weight import quantize_weight
from onnxq.calib.chunks import take
from onnxq.calib.engine import Collector, batch_for
from onnxq.calib.feeds import Feed
from onnxq.calib.points import StatisticPoint, StatKind
from onnxq.graph import GraphModel, Node
from onnxq.passes._base import Fact, Pass, PassReport, Skip
from onnxq.passes._bias import add_to_bias, bias_place
from onnxq.passes._inputs import inputs_of
from onnxq.passes._linear import LINEAR_OPS, optional_input
from onnxq.passes._weights import weight_value
from onnxq.plan import Plan, WeightPlan
from onnxq.runtime import make_session, thread_count
from onnxq.spec import QuantParams

if TYPE_CHECKING:
    from onnxq.context import QuantContext

_LARGEST_CODE = 0.6 * ((1 << 31) - 1)
"""A corrected bias with a larger code is left as it was."""
_CONVOLUTIONS = ("Conv", "ConvTranspose")
_AXES_ARE_INPUTS = 18
"""The first operator set whose ReduceMean takes its axes as an input."""
_MOST_WEIGHTS = 1 << 30
"""So many bytes of rounded weights fit beside a model into one message."""
_PREFIX = "onnxq.twin"

Place = tuple[Node, int]
"""The node that reads a bias, and which of its inputs it is."""


@dataclass(frozen=True)
class MatchMeans(Pass):
    """Adds to each bias the mean difference between a float layer and its quantized twin.

    The twin reads the codes of the float layer's own input, so that no layer sees the errors of those
    in front of it, and no correction depends on another. Both run side by side on every sample, the
    twins inside the same session, and nothing but one mean per channel leaves it: the cost is that of
    about three forward passes, and memory does not grow with the samples.

    Given:
        a plan and its numbers, and ``ctx.reader``.
    Result:
        new float biases; layers without a bias get one. The bias of a MatMul is the constant that an
        Add behind it adds; without one it is left alone.

    Source: the published behaviour of MindSpore Lite's bias_correction, there for convolutions only.

    Attributes:
        samples: How many samples the means are taken over; None for all.
    """

    samples: int | None = None

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN, Fact.PARAMS})

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Correct every layer that can have a bias.

        Raises:
            CalibrationError: If a mean is not finite.
        """
        plan = ctx.plan or Plan()
        coded = {(w.node, w.index) for w in plan.weights}
        places: list[tuple[WeightPlan, Place]] = []
        skipped: list[Skip] = []
        for weight in plan.weights:
            node = graph.node(weight.node)
            place = _place(graph, node, weight)
            if place is not None and (place[0].name, place[1]) not in coded:
                places.append((weight, place))
            elif node.op in LINEAR_OPS:
                skipped.append(Skip(weight.node, f"{node.op} has no bias that could be corrected"))
        if not places or ctx.reader is None:
            return PassReport(skipped=tuple(skipped))
        notes: list[str] = []
        corrections = list(_corrections(graph, [w for w, _ in places], self.samples, ctx))
        for (weight, place), shift in zip(places, corrections, strict=True):
            notes += _correct(graph, weight, place, shift, ctx)
        used = ctx.samples if self.samples is None else min(self.samples, ctx.samples)
        done = f"{len(places)} biases corrected over {used} samples, each layer fed with its own float input"
        return PassReport(len(places), tuple(skipped), (*notes, done))


def _place(graph: GraphModel, node: Node, weight: WeightPlan) -> Place | None:
    if weight.index != 1 or node.op not in LINEAR_OPS:
        return None
    return bias_place(graph, node) if node.op == "MatMul" else (node, 2)


def _correct(
    graph: GraphModel, weight: WeightPlan, place: Place, shift: NDArray[np.float32], ctx: QuantContext
) -> list[str]:
    """Write a bias; returns what the user should know."""
    old = optional_input(*place)
    bias = shift.astype(np.float64) if old is None else graph.value(old).astype(np.float64) + shift
    notes: list[str] = []
    if weight.bias and weight.input_key in ctx.params:
        scale = float(ctx.params[weight.input_key].scale) * ctx.params[weight.key].scale.astype(np.float64)
        beyond = np.abs(np.broadcast_to(bias, shift.shape) / scale) > _LARGEST_CODE
        if beyond.any():
            notes.append(f"{weight.node}: {int(beyond.sum())} biases left as they were: their codes would be too large")
            shift = np.where(beyond, np.float32(0), shift)
    add_to_bias(graph, weight.node, place, shift)
    return notes


def _corrections(
    graph: GraphModel, layers: Sequence[WeightPlan], samples: int | None, ctx: QuantContext
) -> Iterator[NDArray[np.float32]]:
    """What to add to each layer's bias, in order; several runs where the rounded weights are too large for one."""
    inputs = inputs_of(graph)
    size = 2 * 4 * sum(s.count for s in ctx.stats.values()) / max(ctx.samples, 1)
    total = ctx.samples if samples is None else min(samples, ctx.samples)
    groups = list(_groups(graph, layers, min(ctx.recipe.calibration.memory_budget_mb << 20, _MOST_WEIGHTS)))
    for number, group in enumerate(groups):
        twins = _Twins(graph, ctx.params)
        points = [twins.add(layer) for layer in group]
        session = make_session(graph, threads=1, outputs=[p.tensor for pair in points for p in pair], extra=twins.nodes)

        def report(done: int, before: int = number * total) -> None:
            if ctx.progress is not None:
                ctx.progress("correcting biases", before + done, len(groups) * total)

        flat = [point for pair in points for point in pair]
        workers = thread_count(ctx.threads)
        collector = Collector(session, flat, inputs, workers=workers, batch=batch_for(size), on_samples=report)
        feeds: Iterable[Feed] = take(ctx.reader or (), samples, inputs)
        found = collector.run(feeds)
        for expected, rounded in points:
            yield correction(found[expected.tensor].channel_mean, found[rounded.tensor].channel_mean)


def _groups(graph: GraphModel, layers: Sequence[WeightPlan], budget: int) -> Iterator[list[WeightPlan]]:
    """Layers whose weights together fit into a budget."""
    group: list[WeightPlan] = []
    used = 0
    for layer in layers:
        size = 4 * int(np.prod(weight_value(graph, layer).shape))
        if group and used + size > budget:
            yield group
            group, used = [], 0
        group.append(layer)
        used += size
    if group:
        yield group


class _Twins:
    """Nodes beside a model: the twins of its layers, and the means over all but samples and channels.

    Args:
        graph: The model.
        params: Scales and zero points by key.
    """

    def __init__(self, graph: GraphModel, params: dict[str, QuantParams]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._graph = graph
        self._params = params
        self._protos = {n.name: n for n in graph.skeleton().graph.node}
        self._rounded: dict[str, str] = {}
        self._count = 0

    def add(self, layer: WeightPlan) -> tuple[StatisticPoint, StatisticPoint]:
        """The means of a layer and of its twin."""
        proto = self._protos[layer.node]
        twin = onnx.NodeProto()
        twin.CopyFrom(proto)
        twin.name = self._name("layer")
        twin.output[0] = self._name("output")
        source = layer.input_key if layer.input_key in self._params else ""
        twin.input[0] = self._through_codes(twin.input[0], source) if source else twin.input[0]
        params = self._params[layer.key]
        value = dequantize(quantize_weight(weight_value(self._graph, layer), params), params)
        twin.input[layer.index] = self._constant(np.asarray(value, np.float32))
        self.nodes.append(twin)
        node = self._graph.node(layer.node)
        return self._mean(node, proto.output[0]), self._mean(node, twin.output[0])

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{_PREFIX}.{kind}{self._count}"

    def _node(self, op: str, inputs: Sequence[str], kind: str, *, domain: str = "", **attrs: Any) -> str:  # noqa: ANN401 - as ONNX has it
        name = self._name(kind)
        self.nodes.append(onnx.helper.make_node(op, inputs, [name], name=name, domain=domain, **attrs))
        return name

    def _constant(self, value: NDArray[np.generic]) -> str:
        return self._node("Constant", [], "constant", value=onnx.numpy_helper.from_array(np.asarray(value, order="C")))

    def _through_codes(self, tensor: str, key: str) -> str:
        """A float tensor that has only the values of its codes; made once for each key."""
        if key not in self._rounded:
            params = self._params[key]
            zero_point = params.zero_point.astype(code_dtype(params.spec))
            numbers = [self._constant(params.scale), self._constant(zero_point)]
            if params.spec.bounds != params.spec.qtype.bounds:  # the operators know the type alone
                limits = [self._constant(np.asarray(limit, np.float32)) for limit in (params.low, params.high)]
                tensor = self._node("Max", [self._node("Min", [tensor, limits[1]], "least"), limits[0]], "cut")
            # those of ONNX Runtime itself take every type, whatever the operator set of the model
            codes = self._node("QuantizeLinear", [tensor, *numbers], "codes", domain="com.microsoft")
            self._rounded[key] = self._node("DequantizeLinear", [codes, *numbers], "values", domain="com.microsoft")
        return self._rounded[key]

    def _mean(self, node: Node, tensor: str) -> StatisticPoint:
        """One mean per sample and channel; what is small anyway is left as it is."""
        if node.op in _CONVOLUTIONS:
            return StatisticPoint(self._node("GlobalAveragePool", [tensor], "mean"), StatKind.CHANNEL_SUM, 1)
        rank = self._graph.rank(node.outputs[0])
        if rank is None or rank < 3:
            return StatisticPoint(self._node("Identity", [tensor], "mean"), StatKind.CHANNEL_SUM, -1)
        axis = rank - 2
        if self._graph.opset >= _AXES_ARE_INPUTS:
            name = self._node("ReduceMean", [tensor, self._constant(np.array([axis], np.int64))], "mean")
        else:
            name = self._node("ReduceMean", [tensor], "mean", axes=[axis])
        return StatisticPoint(name, StatKind.CHANNEL_SUM, -1)
