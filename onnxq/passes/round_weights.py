"""Chooses the codes of weights by what they do to the layer's output, not by their own error."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.algos.affine import dequantize, fake_quantize
from onnxq.algos.weight import config_from_dict, nuq, rounding
from onnxq.algos.weight.adaround import AdaRoundConfig
from onnxq.algos.weight.gptq import GptqConfig
from onnxq.calib.chunks import first_batches
from onnxq.calib.engine import batch_for
from onnxq.calib.feeds import Feed, batching, sample_count
from onnxq.calib.segments import SegmentRunner
from onnxq.graph import GraphModel
from onnxq.passes._base import Fact, Pass, PassReport, Skip
from onnxq.passes._compensate import compensated, why_not_compensated
from onnxq.passes._following import following_activation
from onnxq.passes._inputs import inputs_of
from onnxq.passes._linear import LINEAR_OPS, Linear, read_linear
from onnxq.passes._rows import count_rows, from_rows, gather_rows, to_rows, why_not_rows
from onnxq.passes._weights import weight_value
from onnxq.plan import Plan, WeightPlan
from onnxq.recipe import NUQ, AdaRound, WeightRounding
from onnxq.runtime import thread_count
from onnxq.spec import QuantParams

if TYPE_CHECKING:
    from onnxq.context import QuantContext

_FEWEST, _MOST = 4096, 32768
_PER_COLUMN = 16
_COPIES = 8
"""Tensors of the largest size that are alive at the same time, in both models together."""


@dataclass(frozen=True)
class RoundWeights(Pass):
    """Chooses the codes of weights, in graph order: by AdaRound and NUQ where these are their methods, or by GPTQ.

    AdaRound: inputs of a layer come from the model whose weights before it are rounded already, what the layer is to
    give from the float model. Both run once, piece by piece, over the first samples of the data; of each layer's
    outputs so many positions are drawn as its weights need.

    Given:
        a plan and its numbers, and ``ctx.reader`` for AdaRound.
    Result:
        each of these weights is a constant of code times scale: rounding it to nearest gives the codes again.
        ``ctx.clusters`` has the centres of NUQ.

    Attributes:
        step: Choose by GPTQ, for all weights that have another method. It looks at the inputs alone, as the layer gets
            them behind rounded weights.
    """

    step: WeightRounding | None = None

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN, Fact.PARAMS})

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Choose.

        Raises:
            CalibrationError: If the data or the weights hold NaN or infinity.
        """
        plan = ctx.plan or Plan()
        centres = [w for w in plan.weights if isinstance(w.method, NUQ) and self.step is None]
        skipped = list(_choose_centres(graph, centres, ctx))
        changed = len(centres) - len(skipped)
        layers: list[_Layer] = []
        for weight in plan.weights:
            if isinstance(weight.method, AdaRound) if self.step is None else _by_gptq(weight):
                found = _layer(graph, weight, ctx, self.step)
                if isinstance(found, str):
                    skipped.append(Skip(weight.node, found))
                else:
                    layers.append(found)
        notes = _Rounder(graph, plan, layers, ctx).run() if layers else ()
        return PassReport(changed + len(layers), tuple(skipped), tuple(notes))


def _choose_centres(graph: GraphModel, weights: Sequence[WeightPlan], ctx: QuantContext) -> Iterator[Skip]:
    done: dict[str, tuple[NDArray[np.float32], NDArray[np.int8]]] = {}
    for weight in weights:
        config = config_from_dict(weight.method.name, weight.method.parameters())
        if not isinstance(config, nuq.NuqConfig):
            raise TypeError(config)
        params = ctx.params[weight.key]
        reason = nuq.why_not(params.spec, config)
        if reason is not None:
            yield Skip(weight.node, f"rounded to nearest: {reason}")
            continue
        if weight.key not in done:
            codes, centres = nuq.choose_centres(weight_value(graph, weight), params, config)
            done[weight.key] = dequantize(codes, params), centres
        values, centres = done[weight.key]
        ctx.clusters[weight.node] = centres
        _replace(graph, weight, values)


def _replace(graph: GraphModel, weight: WeightPlan, values: NDArray[np.float32]) -> None:
    name = graph.unique_name(f"{weight.tensor}_rounded")
    graph.set_input(graph.node(weight.node), weight.index, graph.add_constant(name, values))


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """A layer whose weight AdaRound or GPTQ rounds."""

    plan: WeightPlan
    linear: Linear
    config: AdaRoundConfig | GptqConfig
    samples: int

    @property
    def source(self) -> str:
        return str(self.linear.node.inputs[0].name)


def _by_gptq(weight: WeightPlan) -> bool:
    return not isinstance(weight.method, (AdaRound, NUQ))


def _layer(graph: GraphModel, weight: WeightPlan, ctx: QuantContext, step: WeightRounding | None) -> _Layer | str:
    node = graph.node(weight.node)
    config, samples, name = _settings(weight, step)
    if node.op not in LINEAR_OPS or weight.index != 1:
        return f"{name} rounds weights of {', '.join(LINEAR_OPS)}; this one of {node.op} is rounded to nearest"
    if isinstance(config, GptqConfig) and (reason := why_not_compensated(ctx.params[weight.key])) is not None:
        return f"rounded to nearest: {reason}"
    linear = read_linear(graph, node)
    reason = linear if isinstance(linear, str) else why_not_rows(linear)
    if isinstance(linear, str) or reason is not None:
        return f"rounded to nearest: {reason}"
    if graph.is_constant(node.inputs[0]):
        return "rounded to nearest: its input is a constant"
    if ctx.reader is None:
        return f"rounded to nearest: {name} needs calibration data"
    return _Layer(weight, linear, config, samples)


def _settings(weight: WeightPlan, step: WeightRounding | None) -> tuple[AdaRoundConfig | GptqConfig, int, str]:
    """Parameters, how many samples, and what the method is called."""
    if step is not None:
        gptq = step.method
        return GptqConfig(gptq.damping, gptq.act_order, gptq.block_size), step.samples, "GPTQ"
    method = weight.method
    config = config_from_dict(method.name, method.parameters())
    if not isinstance(method, AdaRound) or not isinstance(config, AdaRoundConfig):
        raise TypeError(method)
    return config, method.samples, "AdaRound"


class _Rounder:
    """Runs the float and the rounded model side by side and rounds a layer when its input is there."""

    def __init__(self, graph: GraphModel, plan: Plan, layers: Sequence[_Layer], ctx: QuantContext) -> None:
        self._graph = graph
        self._plan = plan
        self._ctx = ctx
        self._waiting: dict[str, list[_Layer]] = {}
        for layer in layers:
            self._waiting.setdefault(layer.source, []).append(layer)
        self._total = len(layers)
        self._constants = {t.name: t for t in graph.constants()}
        self._chosen: dict[str, NDArray[np.float32]] = {}
        self._workers = thread_count(ctx.threads)
        self._notes: list[str] = []
        self._take_known()

    def _take_known(self) -> None:
        """Take what was rounded before for the same numbers."""
        for name, layers in list(self._waiting.items()):
            for layer in layers:
                if (key := self._key(layer)) in self._ctx.rounded:
                    self._chosen[layer.plan.key] = self._ctx.rounded[key]
            if all(layer.plan.key in self._chosen for layer in layers):
                del self._waiting[name]

    def _key(self, layer: _Layer) -> tuple[str, str, bytes]:
        return (
            layer.plan.node,
            repr((layer.plan.method, layer.config)),
            self._ctx.params[layer.plan.key].scale.tobytes(),
        )

    def run(self) -> list[str]:
        """Round all layers; returns a note for each."""
        if self._waiting:
            self._round_waiting()
        for weight in self._plan.weights:
            if weight.key in self._chosen:
                _replace(self._graph, weight, self._chosen[weight.key])
        return self._notes

    def _round_waiting(self) -> None:
        feeds, samples = self._feeds()
        self._notes.append(f"{self._total} weights rounded over {samples} samples")
        given = {t.name for t in self._graph.inputs}
        for name in [n for n in self._waiting if n in given]:
            values = [np.asarray(feed[name]) for feed in feeds]
            self._round(name, values, values)
        stops = list(self._waiting)
        skeleton, rounded = _with_rounded_weights(self._graph, self._plan)

        def exact(name: str) -> onnx.TensorProto:
            return _proto(self._graph.value(self._constants[name]), name)

        def inexact(name: str) -> onnx.TensorProto:
            return _proto(self._weight(rounded[name]), name) if name in rounded else exact(name)

        with (
            SegmentRunner(self._graph.skeleton(), exact, feeds, stops, self._workers) as reference,
            SegmentRunner(skeleton, inexact, feeds, stops, self._workers) as runner,
        ):
            for _ in stops:
                name, wanted = reference.advance()
                _, values = runner.advance()
                self._round(name, values, wanted)

    def _feeds(self) -> tuple[list[Feed], int]:
        ctx = self._ctx
        inputs = inputs_of(self._graph)
        wanted = max(layer.samples for layers in self._waiting.values() for layer in layers)
        sizes = [s.count * 4 / max(ctx.samples, 1) for s in ctx.stats.values()]
        budget = ctx.recipe.calibration.memory_budget_mb * 2**20
        count = min(wanted, max(1, int(budget / max(_COPIES * max(sizes, default=0), 1))))
        feeds = first_batches(ctx.reader or (), count, batch_for(sum(sizes)), inputs)
        return feeds, sum(sample_count(feed, batching(inputs).carried) or 1 for feed in feeds)

    def _weight(self, plan: WeightPlan) -> NDArray[np.float32]:
        """A weight as its codes say; to nearest where nothing was chosen."""
        found = self._chosen.get(plan.key)
        return fake_quantize(weight_value(self._graph, plan), self._ctx.params[plan.key]) if found is None else found

    def _round(self, name: str, values: Sequence[NDArray[np.float32]], wanted: Sequence[NDArray[np.float32]]) -> None:
        for layer in self._waiting.pop(name):
            if layer.plan.key not in self._chosen:
                self._solve(layer, values, wanted)
            done = self._total - sum(map(len, self._waiting.values()))
            if self._ctx.progress is not None:
                self._ctx.progress("rounding weights", done, self._total)

    def _solve(
        self, layer: _Layer, values: Sequence[NDArray[np.float32]], wanted: Sequence[NDArray[np.float32]]
    ) -> None:
        start = time.perf_counter()
        plan, linear = layer.plan, layer.linear
        if isinstance(layer.config, GptqConfig):
            self._compensate(layer, layer.config, values)
            return
        rng = self._ctx.rng(f"adaround/{plan.node}")
        after = following_activation(self._graph, linear)
        weight = weight_value(self._graph, plan)
        rows = to_rows(linear, np.asarray(weight, np.float32))
        problem = self._problem(linear, values, wanted, rows, after, rng)
        choices = _choices(linear, rows, weight.shape, self._ctx.params[plan.key])
        found = rounding.solve(problem, choices, layer.config, rng, workers=self._workers)
        reals = from_rows(linear, choices.weights(found.up))
        self._chosen[plan.key] = fake_quantize(reals, self._ctx.params[plan.key])
        self._ctx.rounded[self._key(layer)] = self._chosen[plan.key]
        gain = found.loss / found.nearest_loss if found.nearest_loss else 1.0
        self._notes.append(
            f"{plan.node}: squared error {found.nearest_loss:.3g} to {found.loss:.3g} ({gain:.0%}), "
            f"{problem.inputs.shape[2]} positions, {found.steps} steps, {time.perf_counter() - start:.2f} s"
        )

    def _compensate(self, layer: _Layer, config: GptqConfig, values: Sequence[NDArray[np.float32]]) -> None:
        plan, linear = layer.plan, layer.linear
        weight, counts = weight_value(self._graph, plan), [count_rows(linear, value.shape) for value in values]
        columns = math.prod(linear.layout.shape) // linear.layout.out_channels
        kept = min(sum(counts), self._affordable(linear, columns))
        drawn = self._ctx.rng(f"gptq/{plan.node}").permutation(sum(counts))[:kept]
        inputs = _gather(linear, values, counts, drawn)
        squares = [(x @ x.T).astype(np.float64) / max(kept, 1) for x in inputs]
        params = self._ctx.params[plan.key]
        pairs = self._ctx.target.safe_pairs
        found, moved = compensated(linear, plan, weight, params, squares, config, self._workers, safe_pairs=pairs)
        self._chosen[plan.key] = self._ctx.rounded[self._key(layer)] = found
        self._notes.append(
            f"{plan.node}: {moved} of {linear.layout.out_channels} outputs compensated, {kept} positions"
        )

    def _problem(
        self, linear: Linear, values: Sequence[NDArray[np.float32]], wanted: Sequence[NDArray[np.float32]],
        weight: NDArray[np.float32], after: rounding.Activation, rng: np.random.Generator,
    ) -> rounding.Layer:  # fmt: skip
        """The layer as arrays, over positions that are drawn from all samples."""
        counts = [count_rows(linear, value.shape) for value in values]
        kept = min(sum(counts), self._affordable(linear, weight.shape[1]))
        drawn = rng.permutation(sum(counts))[:kept]
        bias = np.zeros(len(weight), np.float32) if linear.bias is None else linear.bias.astype(np.float32)
        target = rounding.Layer(
            _gather(linear, wanted, counts, drawn), np.zeros((0, kept), np.float32), bias, after
        ).activated(weight)
        return rounding.Layer(_gather(linear, values, counts, drawn), target, bias, after)

    def _affordable(self, linear: Linear, columns: int) -> int:
        numbers = linear.layout.groups * columns + 2 * linear.layout.out_channels
        budget = self._ctx.recipe.calibration.memory_budget_mb * 2**20 / 4
        most = int(budget / (4 * numbers))
        return max(1, min(max(_PER_COLUMN * columns, _FEWEST), _MOST, most))


def _gather(
    linear: Linear, values: Sequence[NDArray[np.float32]], counts: Sequence[int], drawn: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Unfolded inputs at some positions, counted over all batches: shape (G, K, M)."""
    groups, columns = linear.layout.groups, math.prod(linear.layout.shape) // linear.layout.out_channels
    found = np.empty((groups, columns, len(drawn)), np.float32)
    begin = 0
    for value, count in zip(values, counts, strict=True):
        where = np.flatnonzero((drawn >= begin) & (drawn < begin + count))
        if where.size:
            found[:, :, where] = gather_rows(linear, value, drawn[where] - begin)
        begin += count
    return found


def _choices(
    linear: Linear, weight: NDArray[np.float32], shape: tuple[int, ...], params: QuantParams
) -> rounding.Choices:
    """Both codes of every weight, as reals."""
    spec = params.spec
    ones, zeros = np.ones(shape, np.int32), np.zeros(shape, np.int32)
    scale = dequantize(ones, QuantParams(spec, params.scale, np.zeros_like(params.zero_point)))
    zero = -dequantize(zeros, QuantParams(spec, np.ones_like(params.scale), params.zero_point))
    qmin, qmax = spec.bounds
    return rounding.Choices.of(weight, *(to_rows(linear, v) for v in (scale, qmin - zero, qmax - zero)))


def _with_rounded_weights(graph: GraphModel, plan: Plan) -> tuple[onnx.ModelProto, dict[str, WeightPlan]]:
    """The model in which every planned weight has a name of its own, and the weights by these names."""
    skeleton = graph.skeleton()
    nodes = {n.name: n for n in skeleton.graph.node}
    rounded: dict[str, WeightPlan] = {}
    for weight in plan.weights:
        name = f"{weight.node}/{weight.index}/{weight.tensor}/rounded"
        nodes[weight.node].input[weight.index] = name
        skeleton.graph.initializer.add(name=name)
        rounded[name] = weight
    return skeleton, rounded


def _proto(array: NDArray[np.generic], name: str) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.asarray(array, order="C"), name)
