"""Quantizers of weights in a training graph: their parameters, and the operators that use them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from onnxq.algos.lsq import TINY, gradient_scale, moments_step
from onnxq.algos.weight import mse
from onnxq.errors import RecipeError
from onnxq.graph import GraphModel, Node, Tensor
from onnxq.learned import LearnedScale
from onnxq.passes._linear import LINEAR_OPS
from onnxq.passes._training_ops import Chain
from onnxq.passes._weights import weight_value
from onnxq.plan import Plan, WeightPlan
from onnxq.recipe import LSQ, AbsMax
from onnxq.spec import PerAxis, PerBlock, QuantParams

if TYPE_CHECKING:
    from onnxq.context import QuantContext

_EASY = 8
"""With fewer bits training begins with the scales of least squared error: from the largest magnitudes it takes long."""
_AXES_AS_INPUT = 18
"""The first operator set whose ReduceMax takes its axes as an input."""


def learned_scales(graph: GraphModel, plan: Plan, ctx: QuantContext) -> tuple[LearnedScale, ...]:
    """Make the parameters of every weight; they begin with what calibration has given.

    Raises:
        RecipeError: If the codes of a weight cannot be trained.
    """
    found: dict[str, LearnedScale] = {}
    for weight in plan.weights:
        if weight.key not in found:
            found[weight.key] = _learned(graph, weight, ctx)
    return tuple(found.values())


def _learned(graph: GraphModel, weight: WeightPlan, ctx: QuantContext) -> LearnedScale:
    node, spec = graph.node(weight.node), weight.spec
    name = str(node.inputs[weight.index].name)
    if spec.qtype.floating:
        raise RecipeError(f"node {weight.node!r}: {spec.qtype.label} codes cannot be trained; use an integer type")
    if isinstance(spec.granularity, PerBlock):
        raise RecipeError(f"node {weight.node!r}: weights in blocks cannot be trained; use per_axis or per_tensor")
    if node.op not in LINEAR_OPS or not (spec.symmetric and spec.qtype.signed):
        return LearnedScale(weight.key, name, "fixed", spec)
    if not isinstance(weight.trained or LSQ(), LSQ):
        return LearnedScale(weight.key, name, "arq", spec, full_range=ctx.target.full_range)
    rate = ctx.recipe.training.scale_rate
    scale = ctx.params[weight.key].scale
    trained = weight.trained
    if isinstance(trained, LSQ) and trained.init != "calibrated":
        scale = moments_step(weight_value(graph, weight), spec, narrow=trained.init == "moments_narrow")
    elif spec.bits < _EASY and isinstance(weight.method, AbsMax):
        scale = mse.find_params(weight_value(graph, weight), spec, mse.MseConfig()).scale
    start = np.log(scale.astype(np.float64)) / rate
    rank = graph.rank(node.inputs[weight.index]) or 1
    shape = _along(spec.granularity.axis, rank) if isinstance(spec.granularity, PerAxis) else (1,) * rank
    parameter = graph.add_constant(f"{weight.key}.log_scale", start.astype(np.float32).reshape(shape))
    return LearnedScale(weight.key, name, "lsq", spec, str(parameter.name), rate)


def _along(axis: int, rank: int) -> tuple[int, ...]:
    return tuple(-1 if i == axis else 1 for i in range(rank))


class WeightWriter:
    """Writes quantizers of weights, one for each weight however many nodes read it.

    Args:
        graph: Where they go; it has the parameters.
        scale_gradients: Make the gradients of steps as small as LSQ's authors do, which matters to an optimizer that
            follows the size of gradients.
        params: What calibration has given, for scales that stay what they were.
    """

    def __init__(self, graph: GraphModel, scale_gradients: bool, params: Mapping[str, QuantParams]) -> None:
        self._graph = graph
        self._scale_gradients = scale_gradients
        self._params = params
        self._done: dict[str, Tensor] = {}
        self._scales: dict[str, Tensor] = {}
        self._biases: set[tuple[str, int]] = set()

    def write(self, plan: WeightPlan, learned: LearnedScale) -> None:
        """Let an input of a node read the rounded weight."""
        node = self._graph.node(plan.node)
        if plan.key not in self._done:
            weight = node.inputs[plan.index]
            chain = Chain(self._graph, f"{plan.key}/fake_quant")
            match learned.method:
                case "lsq":
                    rounded = self._lsq(chain, weight, learned)
                case "arq":
                    rounded = self._arq(chain, weight, learned)
                case _:
                    rounded = self._fixed(chain, weight, plan.key)
            self._done[plan.key] = rounded
        self._graph.set_input(node, plan.index, self._done[plan.key])

    def write_bias(self, plan: WeightPlan, place: tuple[Node, int], step: Tensor) -> None:
        """Let a bias be a multiple of the product of both scales, as its int32 codes will be.

        Args:
            plan: The weight, which is written already.
            place: The node that reads the bias, and which of its inputs it is.
            step: Step of the activation, shape (1,).
        """
        node, index = place
        bias, key = node.inputs[index], (str(node.name), index)
        if key in self._biases or not self._graph.is_constant(bias):
            return
        self._biases.add(key)
        chain = Chain(self._graph, f"{plan.node}/bias/fake_quant")
        flat = self._graph.add_constant(f"{chain.name}/flat", np.asarray([-1], np.int64))
        scale = chain.op("Reshape", self._scales[plan.key], flat, shape=(None,))
        unit = chain.op("Mul", step, scale, shape=(None,))
        rounded = chain.op("Mul", chain.op("Round", chain.op("Div", bias, unit)), unit)
        self._graph.set_input(node, index, chain.exchange(bias, rounded))

    def _lsq(self, chain: Chain, weight: Tensor, learned: LearnedScale) -> Tensor:
        logarithm = self._graph.tensor(learned.parameter)
        if learned.rate != 1:
            logarithm = chain.op("Mul", logarithm, chain.number("rate", learned.rate))
        scale = chain.op("Exp", logarithm)
        if self._scale_gradients:
            size, scales = (int(self._graph.value(t).size) for t in (weight, self._graph.tensor(learned.parameter)))
            factor = gradient_scale(size, scales, learned.spec)
            small = chain.op("Mul", scale, chain.number("gradient_scale", factor))
            scale = chain.exchange(small, scale)
        self._scales[learned.key] = scale
        low, high = learned.spec.bounds
        steps = chain.op("Div", weight, scale)
        steps = chain.op("Clip", steps, chain.number("low", low), chain.number("high", high))
        return chain.op("Mul", chain.exchange(steps, chain.op("Round", steps)), scale)

    def _arq(self, chain: Chain, weight: Tensor, learned: LearnedScale) -> Tensor:
        low, high = learned.spec.bounds
        above = self._largest(chain, weight, learned)
        below = self._largest(chain, weight, learned, negated=True)
        if learned.full_range:
            steps = (
                chain.op("Div", above, chain.number("high", high)),
                chain.op("Div", below, chain.number("low", -low)),
            )
            larger = self._graph.add_node("GreaterOrEqual", [above, below], name=f"{chain.name}/larger", dtype=np.bool_)
            scale = chain.op("Where", larger.outputs[0], *steps, shape=self._graph.shape(above))
        else:
            scale = chain.op("Div", chain.op("Max", above, below), chain.number("high", high))
        self._scales[learned.key] = scale = chain.op("Max", scale, chain.number("tiny", TINY))
        codes = chain.op("Round", chain.op("Div", weight, scale))
        codes = chain.op("Clip", codes, chain.number("lowest", low), chain.number("highest", high))
        return chain.exchange(weight, chain.op("Mul", codes, scale))

    def _largest(self, chain: Chain, weight: Tensor, learned: LearnedScale, *, negated: bool = False) -> Tensor:
        """The largest number of each channel, or of its negative, at least 0."""
        rank = self._graph.rank(weight) or 1
        axis = learned.spec.granularity.axis if isinstance(learned.spec.granularity, PerAxis) else None
        axes = [i for i in range(rank) if i != axis]
        shape = [int(n) if i == axis else 1 for i, n in enumerate(self._graph.value(weight).shape)]
        source = chain.op("Neg", weight) if negated else weight
        if self._graph.opset >= _AXES_AS_INPUT:
            numbers = self._graph.add_constant(f"{chain.name}/axes", np.asarray(axes, np.int64))
            found = chain.op("ReduceMax", source, numbers, shape=shape)
        else:
            found = chain.op("ReduceMax", source, shape=shape, axes=axes)
        return chain.op("Max", found, chain.number("zero", 0.0))

    def _fixed(self, chain: Chain, weight: Tensor, key: str) -> Tensor:
        params = self._params[key]
        rank = self._graph.rank(weight) or 0
        axis = params.spec.granularity.axis if isinstance(params.spec.granularity, PerAxis) else None
        shape = () if axis is None else _along(axis, rank)
        self._scales[key] = scale = chain.number("scale", params.scale.reshape(shape))
        zero_point = params.zero_point.reshape(shape)
        low, high = params.spec.bounds
        codes = chain.op("Round", chain.op("Div", weight, scale))
        codes = chain.op("Max", codes, chain.number("low", low - zero_point))
        codes = chain.op("Min", codes, chain.number("high", high - zero_point))
        return chain.exchange(weight, chain.op("Mul", codes, scale))
